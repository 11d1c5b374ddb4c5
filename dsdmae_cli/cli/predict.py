"""`dsdmae predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.report import number_of, tell

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.subject import Subject as Network
    from dsdmae_cli.config.use import HardwareSection

_RESULT = "Result"

Subject = Annotated[
    str,
    typer.Argument(metavar="RUN|CLASSIFIER", help="A run of `dsdmae finetune`, or its classifier.safetensors",
                   show_default=False, autocompletion=completion.runs),
]  # fmt: skip
Pictures = Annotated[
    list[str],
    typer.Argument(metavar="PICTURE|FOLDER|GLOB|-", help="Whose classes to say; - is standard input",
                   show_default=False),
]  # fmt: skip
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="FILE|DIR", help="The .csv or .json file to write. Default: standard output, as CSV."
                 " Of a network that names pixels the folder for a mask of each picture, or one picture's mask (.png)",
                 rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Top = Annotated[
    int,
    typer.Option("--top", metavar="K", min=1, help="How many classes of each picture, the most probable first",
                 rich_help_panel=_RESULT),
]  # fmt: skip
Json = Annotated[
    bool,
    typer.Option("--json", help="JSON instead of CSV, or beside masks, no progress", rich_help_panel=_RESULT),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out", rich_help_panel=_RESULT)]


@takes("predict")
def command(
    *,
    subject: Subject,
    pictures: Pictures,
    top: Top = 1,
    out: Out = None,
    as_json: Json = False,
    force: Force = False,
    given: Given,
) -> None:
    """Say what is on pictures, by a fine-tuned network: classes and probabilities as CSV or JSON.

    dsdmae predict RUN photos/ --top 3 --out classes.csv

    Of `dsdmae finetune --task segment` it writes a mask of each picture, of its size, as a PNG:

    dsdmae predict RUN photos/ --out masks

    A picture that cannot be read leaves the others done; the exit code is then 1, and 2 where nothing that was named
    could be read.
    """
    from dsdmae_cli.artifacts.subject import names_pixels, parse_classifier
    from dsdmae_cli.config.use import hardware
    from dsdmae_cli.pictures.paths import Results, find, told
    from dsdmae_cli.report import say

    where = hardware(given.flags)
    network = parse_classifier(subject)
    if names_pixels(network):
        _segment(network, pictures, top, out, as_json, force, where)
        return
    file = None if out is None else Path(out)
    form = _form(file, as_json, force)
    sources, failures = find(pictures, Results(kind=""), None if as_json else say)
    if not sources:
        raise SettingsError(f"cannot read {told(failures)}; there is no other picture")

    from dsdmae_cli.pictures.predict import predict
    from dsdmae_cli.report.counted import Counted

    with Counted("classifying", 1, quiet=as_json) as counted:
        counted.begin(f"{len(sources)} picture{'' if len(sources) == 1 else 's'}")
        found = predict(
            network, sources, top=top, device=where.device, precision=where.precision, advance=counted.advance
        )
    found = found.with_failures(failures)
    for note in found.notes:
        say(note)
    text = found.json() if form == "json" else found.csv()
    if file is None:
        tell(text.removesuffix("\n"), as_data=True)
    else:
        from dsdmae_cli.files import write_bytes

        write_bytes(
            file, text.encode("utf-8", "surrogateescape"), "nothing was written. Make room or choose another --out"
        )
        say(
            f"{len(found.predictions):,} of {number_of(len(found.predictions) + len(found.failures), 'picture')},"
            f" written to {out}"
        )
    if found.failures:
        count = len(found.failures)
        say(f"dsdmae: warning: cannot read {f'{count:,} pictures: ' if count > 1 else ''}{told(found.failures)}")
        raise typer.Exit(1 if found.predictions else 2)


def _segment(
    network: Network,
    pictures: list[str],
    top: int,
    out: str | None,
    as_json: bool,
    force: bool,
    where: HardwareSection,
) -> None:
    """A mask of each picture.

    Raises:
        SettingsError: there is no folder for them, or something else was asked for.
    """
    if top != 1:
        raise SettingsError(f"--top {top}: {network.text} names pixels, each by its most probable class; leave it out")
    if out in (None, "-") or Path(str(out)).suffix.lower() in (".csv", ".json"):
        said = "give" if out is None else f"--out {out} is {'standard output' if out == '-' else 'a file'}; give"
        raise SettingsError(f"{network.text} names pixels: {said} a folder for the masks with --out DIR")

    from dsdmae_cli.pictures.paths import Results, find, told
    from dsdmae_cli.report import print_result, say

    results = Results(out, kind="", suffix="", verb="segment", alone=True)
    sources, failed = find(pictures, results, None if as_json else say)
    if not sources:
        raise SettingsError(f"cannot read {told(failed)}; there is no other picture")

    from dsdmae_cli.segmentation.predicting import segment

    outcome = segment(
        network,
        sources,
        failed,
        results=results,
        force=force,
        device=where.device,
        precision=where.precision,
        quiet=as_json,
    )
    if as_json:
        print_result(outcome.result(), as_json=True, text="")
    if error := outcome.failure():
        raise error


def _form(out: Path | None, as_json: bool, force: bool) -> Literal["csv", "json"]:
    """What is written.

    Raises:
        SettingsError: the file's name says something else, or it is there.
    """
    if out is None:
        return "json" if as_json else "csv"
    suffix = out.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise SettingsError(f"--out {out}: it must end in .csv or .json")
    if as_json and suffix == ".csv":
        raise SettingsError(f"--json and --out {out} contradict each other; name a .json file, or leave --json out")
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a file")
    if out.exists() and not force:
        raise SettingsError(f"--out {out} exists; --force replaces it")
    if not out.parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}; make it first")
    return "json" if suffix == ".json" else "csv"
