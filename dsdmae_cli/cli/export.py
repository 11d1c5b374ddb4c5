"""`dsdmae export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given

_CARD = "Model card"

Subject = Annotated[
    str,
    typer.Argument(metavar="RUN|FILE|NAME", help="A run's directory (of pre-training also one that"
                   " has not ended), a file of weights (.safetensors, .pth, ...), timm's published ones (timm:NAME), or"
                   " those of a repository on the Hugging Face hub (hf:OWNER/NAME); for denoiser-onnx also a denoiser's"
                   " file, or the word packaged (packaged-white-noise) for one that ships", show_default=False,
                   autocompletion=completion.subjects),
]  # fmt: skip
To = Annotated[
    Literal["timm", "hf", "onnx", "denoiser", "denoiser-onnx"],
    typer.Option("--to", metavar="FORM", help="timm: a folder for timm.create_model; hf: the same with a model card,"
                 " for the Hugging Face hub; onnx: the encoder as one file, checked against torch; denoiser: what"
                 " restores pixels, for `dsdmae denoise`; denoiser-onnx: the same as one ONNX file, checked against"
                 " torch",
                 show_default=False),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="The folder (timm, hf) or file (.onnx, .safetensors) to write; needed",
                 show_default=False),
]  # fmt: skip
ImageSize = Annotated[
    str | None,
    typer.Option("--image-size", metavar="N|H,W", help="Images it shall take, in pixels: the side of a square or"
                 " HEIGHT,WIDTH; position embeddings are resampled. Default: that of its training", show_default=False),
]  # fmt: skip
NoHead = Annotated[bool, typer.Option("--no-head", help="Of a fine-tuned network write the encoder alone")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out")]
Licence = Annotated[
    str | None,
    typer.Option("--license", metavar="NAME", help="Of the weights, as the hub writes it: apache-2.0, cc-by-4.0, ..."
                 " Default: the card says that none is stated", rich_help_panel=_CARD, show_default=False),
]  # fmt: skip
Results = Annotated[
    list[Path] | None,
    typer.Option("--results", metavar="FILE", help="A result.json of probe or finetune for the card, repeatable; those"
                 " below the run that judged the same weights are found by themselves", rich_help_panel=_CARD,
                 show_default=False),
]  # fmt: skip
Push = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="With --to hf: upload the folder to this repository of the"
                 " Hugging Face hub, which is made where there is none; `hf auth login` or HF_TOKEN says who you are",
                 rich_help_panel=_CARD, show_default=False),
]  # fmt: skip
Private = Annotated[
    bool, typer.Option("--private", help="With --push: a repository that is made is private", rich_help_panel=_CARD)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout")]


@takes("export")
def command(
    *,
    subject: Subject,
    to: To,
    out: Out = None,
    image_size: ImageSize = None,
    no_head: NoHead = False,
    force: Force = False,
    licence: Licence = None,
    results: Results = None,
    push: Push = None,
    private: Private = False,
    as_json: Json = False,
    given: Given,
) -> None:
    """Write an encoder in the form that other programs read.

    dsdmae export RUN --to timm --out my-encoder

    Of a run of `dsdmae finetune` it writes the classifier, with its head and the names of its classes.
    """
    from dsdmae_cli.config import use

    chosen = use.given(given.flags, given.assignments)[1]

    from dsdmae_cli.recipes.export import Request, export, summary
    from dsdmae_cli.report import make_report, print_result
    from dsdmae_cli.settings.size import size_flag

    request = Request(
        subject,
        to,
        out,
        size_flag(image_size),
        chosen,
        force,
        licence,
        tuple(results or ()),
        not no_head,
        push,
        private,
    )
    said = export(request)
    report = make_report(as_json=as_json, main_process=True)
    for note in [*use.passed_over(), *said["notes"]]:
        report.note(note)
    print_result(said, as_json=as_json, text=summary(said))
