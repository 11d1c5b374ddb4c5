"""`dsdmae denoise`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.flags import NETWORK
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import DataError, SettingsError
from dsdmae_cli.files import beside

if TYPE_CHECKING:
    from dsdmae_cli.data.values import Ranges

_RESULT, _COMPARE = "Result", "Noise and comparison"
_MEGA = 1_000_000

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="PICTURE|FOLDER|GLOB|-", help="What to denoise; - is standard input", show_default=False),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="FILE|DIR|-", help="Where results go: a file (.png, .tif, .webp, .jpg), a folder, or"
                 " - for standard output. Default: beside each picture", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Suffix = Annotated[
    str | None,
    typer.Option("--suffix", metavar="TEXT", help="What follows a picture's name: NAMETEXT.png. Default: .denoised, and"
                 " nothing in another folder than the picture's", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist", rich_help_panel=_RESULT)]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="FILE", help="One picture more: all of them beside their results, cut where"
                 " large, and magnified where most has changed", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, no progress", rich_help_panel=_RESULT)]
MaxMegapixels = Annotated[
    float,
    typer.Option("--max-megapixels", metavar="N", min=0.000001, help="Refuse larger pictures, before memory is"
                 " taken for them", rich_help_panel=_RESULT),
]  # fmt: skip
Run = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Denoise with what this pre-training run has learned so far",
                 rich_help_panel=NETWORK, show_default=False, autocompletion=completion.runs),
]  # fmt: skip
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Denoise with what `dsdmae export --to denoiser` or"
                 " `--to denoiser-onnx` wrote. Default: weights that ship with dsdmae",
                 rich_help_panel=NETWORK, show_default=False),
]  # fmt: skip
EngineName = Annotated[
    Literal["auto", "torch", "onnx"],
    typer.Option("--engine", help="What computes. onnx: onnxruntime on the CPU, which starts in a fraction of torch's"
                 " time; its file is made once and kept. auto: onnx where that file is there and no GPU, else torch",
                 rich_help_panel=NETWORK),
]  # fmt: skip
Passes = Annotated[
    int,
    typer.Option("--passes", metavar="N", min=1, max=256, help="Average N passes, each shifted, mirrored or turned:"
                 " better, in N times the time", rich_help_panel=NETWORK),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option("--strength", metavar="X", min=0, max=1, help="Fraction of the correction to apply, 0..1. Default: all"
                 " of it, less where next to no noise is found", rich_help_panel=NETWORK, show_default=False),
]  # fmt: skip
RangeOf = Annotated[
    str,
    typer.Option("--range", metavar="LOW,HIGH|NAME", help="Values that are black and white in pictures of more than 8"
                 " bits, or a number of bits; auto = each picture's own, batch = one range for all of them, none ="
                 " 0..65535",
                 rich_help_panel=NETWORK),
]  # fmt: skip
Reference = Annotated[
    Path | None,
    typer.Option("--reference", metavar="FILE|DIR", help="The clean picture, or a folder of them by the same names:"
                 " says PSNR and SSIM before and after", rich_help_panel=_COMPARE, show_default=False),
]  # fmt: skip
Corrupt = Annotated[
    float | None,
    typer.Option("--corrupt", metavar="RATIO", help="Add noise to this share of the patches first and write"
                 " NAME.triptych.png: noisy, restored, original, with PSNR and SSIM", rich_help_panel=_COMPARE,
                 show_default=False),
]  # fmt: skip
NoiseStd = Annotated[
    float | None,
    typer.Option("--noise-std", metavar="SIGMA", help="σ of that noise for pixels in [-1, 1], as in pre-training;"
                 " 0.2 is 25 of 255. Default 0.2", rich_help_panel=_COMPARE, show_default=False),
]  # fmt: skip
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="Seed of that noise. Default 0", rich_help_panel=_COMPARE,
                 show_default=False),
]  # fmt: skip


@takes("denoise")
def command(
    *,
    inputs: Inputs = None,
    out: Out = None,
    suffix: Suffix = None,
    force: Force = False,
    sheet: Sheet = None,
    as_json: Json = False,
    max_megapixels: MaxMegapixels = 100,
    run: Run = None,
    weights: Weights = None,
    engine: EngineName = "auto",
    passes: Passes = 1,
    strength: Strength = None,
    range_: RangeOf = "auto",
    reference: Reference = None,
    corrupt: Corrupt = None,
    noise_std: NoiseStd = None,
    seed: Seed = None,
    given: Given,
) -> None:
    """Take the noise out of pictures.

    Works as installed and offline, for pictures of any size and any amount of noise, with the weights that ship with
    dsdmae. Transparency, 16 bits, colour profile and EXIF are kept. A picture that cannot be denoised leaves the others
    done; the exit code is then 1, and 2 where nothing that was named could be denoised.
    """
    if run is not None and weights is not None:
        raise SettingsError("--run and --weights both name a network; give one")
    _check(out, sheet, force, reference, corrupt, noise_std, seed, as_json)
    limits = limits_of(range_)
    device, precision = "auto", "auto"
    if given.flags:  # the settings' models take longer to import than onnxruntime
        from dsdmae_cli.config.use import hardware

        where = hardware(given.flags)
        device, precision = where.device, where.precision
    from dsdmae_cli.pictures import paths as pictures
    from dsdmae_cli.report import print_result, say

    if not math.isfinite(max_megapixels):
        raise SettingsError(f"--max-megapixels {max_megapixels:g} is not allowed; it takes a number such as 400")
    results = pictures.Results(out, "triptych" if corrupt is not None else "denoised", suffix)
    sources, failed = pictures.find(inputs or [], results, None if as_json else say)
    if not sources:
        raise DataError(f"nothing to denoise: {pictures.told(failed, most=5)}")
    targets = pictures.targets(sources, results)
    _check_stdout(targets[0].path, as_json)

    from dsdmae_cli.recipes import denoise as recipe

    noise = None
    if corrupt is not None:
        from dsdmae_cli.pictures.corrupting import Corruption

        noise = Corruption(corrupt, 0.2 if noise_std is None else noise_std, seed or 0)
    options = recipe.Options(
        force=force,
        run=run,
        weights=weights,
        passes=passes,
        strength=strength,
        engine=engine,
        device=device,
        precision=precision,
        corrupt=noise,
        reference=reference,
        sheet=sheet,
        page=Path(out) if out not in (None, "-") and len(sources) > 1 else None,
        limits=limits,
        max_pixels=round(max_megapixels * _MEGA),
        quiet=as_json,
    )
    outcome = recipe.denoise(sources, targets, failed, options)
    if as_json:
        print_result(outcome.result(), as_json=True, text="")
    if error := outcome.failure():
        raise error


def limits_of(text: str) -> Ranges | Literal["auto", "batch"] | None:
    """--range, as data.range but that a batch may have one.

    Raises:
        SettingsError: it is none of these.
    """
    from dsdmae_cli.settings.ranges import range_of

    if text == "none":
        return None
    if text in ("auto", "batch"):
        return "auto" if text == "auto" else "batch"
    try:
        return range_of(text)
    except ValueError as error:
        raise SettingsError(f"--range {text} is not allowed: {error}") from error


def _check(
    out: str | None,
    sheet: Path | None,
    force: bool,
    reference: Path | None,
    corrupt: float | None,
    noise_std: float | None,
    seed: int | None,
    json: bool,
) -> None:
    """Flags that do not go together, before anything is read."""
    from dsdmae_cli.pictures.picture import WRITERS

    if corrupt is None and (noise_std is not None or seed is not None):
        raise SettingsError("--noise-std and --seed are of the noise that --corrupt adds; give --corrupt RATIO too")
    if corrupt is not None and not 0 < corrupt <= 1:
        raise SettingsError(f"--corrupt {corrupt:g} is not allowed; it takes a share of patches above 0 and up to 1")
    if noise_std is not None and not 0 <= noise_std < float("inf"):
        raise SettingsError(f"--noise-std {noise_std:g} is not allowed; it takes 0 or more")
    if corrupt is not None and reference is not None:
        raise SettingsError("--corrupt compares with the picture itself; leave --reference out")
    if reference is not None and not reference.exists():
        raise SettingsError(f"there is no --reference {reference}{beside(reference)}")
    if sheet is not None and sheet.suffix.lower() not in WRITERS:
        raise SettingsError(f"--sheet {sheet} must end in one of {', '.join(WRITERS)}")
    if sheet is not None and sheet.exists() and not force:
        raise SettingsError(f"--sheet {sheet} exists; --force replaces it")
    if json and out == "-":
        raise SettingsError("--json and --out - both want standard output; name a file with --out")


def _check_stdout(target: Path | None, json: bool) -> None:
    import sys

    if target is None and json:
        raise SettingsError("the picture and --json both want standard output; name a file with --out")
    if target is None and sys.stdout.isatty():
        raise SettingsError("the picture would go to the terminal; name a file with --out, or redirect")
