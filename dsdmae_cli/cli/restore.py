"""`dsdmae restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.denoise import Force, Json, limits_of
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.flags import NETWORK
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import DataError, SettingsError

if TYPE_CHECKING:
    from dsdmae_cli.data.values import Ranges

_RESULT, _SHEET, _RGB = "Result", "restored.png", 3

Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The directory of a pre-training run, also of one that has not ended",
                   show_default=False, autocompletion=completion.runs),
]  # fmt: skip
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="PICTURE|FOLDER|GLOB|-", help="What to restore; - is standard input", show_default=False),
]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="FILE", help="One picture of all: given, corrupted, restored, original, a row each."
                 f" Default: {_SHEET} here, unless --out is given", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write NAME.corrupted.png, NAME.restored.png and NAME.original.png into"
                 " this folder", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
RangeOf = Annotated[
    str,
    typer.Option("--range", metavar="LOW,HIGH|NAME", help="Values that are black and white in pictures of more than 8"
                 " bits, or a number of bits; auto = those of the run's images, else each picture's own, none ="
                 " 0..65535",
                 rich_help_panel=NETWORK),
]  # fmt: skip


@takes("restore")
def command(
    *,
    run: Run,
    inputs: Inputs = None,
    sheet: Sheet = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
    range_: RangeOf = "auto",
    given: Given,
) -> None:
    """Show what a run has learned to restore: pictures masked or made noisy, and given back.

    The middle square of each picture is scaled to what the network sees, corrupted as in training or as the flags say,
    and restored by the run's method. PSNR is that of the pixels that were changed. A picture that cannot be read leaves
    the others done; the exit code is then 1, and 2 where nothing that was named could be restored. To take noise out of
    pictures of any size: `dsdmae denoise`.
    """
    from dsdmae_cli.config.use import hardware
    from dsdmae_cli.pictures import paths
    from dsdmae_cli.report import print_result, say

    limits = _limits(range_)
    if out is not None and out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file; name a folder")
    if sheet is None and out is None:
        sheet = Path(_SHEET)
    if sheet is not None:
        _check_sheet(sheet, force)
    folder = None if out is None else f"{out}/"
    results = {part: paths.Results(folder, part, verb="restore") for part in paths.PARTS}
    sources, failed = paths.find(inputs or [], results[paths.PARTS[0]], None if as_json else say)
    if not sources:
        raise DataError(f"nothing to restore: {paths.told(failed, most=5)}")
    targets = {part: paths.targets(sources, of) for part, of in results.items()} if folder else {}

    from dsdmae_cli.recipes import restore as recipe

    where = hardware({key: value for key, value in given.flags.items() if key in ("train.device", "train.precision")})
    options = recipe.Options(
        flags={setting: value for setting, value in given.flags.items() if setting.startswith("method.")},
        seed=_seed(given.flags.get("train.seed", "0")),
        device=where.device,
        precision=where.precision,
        sheet=sheet,
        force=force,
        limits=limits,
        quiet=as_json,
    )
    outcome = recipe.restore(run, sources, targets, failed, options)
    if as_json:
        print_result(outcome.result(), as_json=True, text="")
    if error := outcome.failure():
        raise error


def _limits(text: str) -> Ranges | Literal["auto"] | None:
    limits = limits_of(text)
    if limits == "batch":
        raise SettingsError("--range batch is of `dsdmae denoise`; it takes auto, LOW,HIGH, a number of bits or none")
    if isinstance(limits, tuple) and isinstance(limits[0], tuple) and len(limits) != _RGB:
        raise SettingsError(f"--range says {len(limits)} pairs; it takes one, or three of red, green and blue")
    return limits


def _check_sheet(sheet: Path, force: bool) -> None:
    from dsdmae_cli.pictures.picture import WRITERS

    if sheet.suffix.lower() not in WRITERS:
        raise SettingsError(f"--sheet {sheet} must end in one of {', '.join(WRITERS)}")
    if sheet.exists() and not force:
        raise SettingsError(f"--sheet {sheet} exists; --force replaces it, --sheet FILE names another")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"--seed {text} is not allowed; it takes 0 or a larger whole number")
    return int(text)
