"""The model card of an exported encoder: what it learned from, how, at what cost, and what it is worth."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from dsdmae_cli import __version__, plugins
from dsdmae_cli.errors import PluginError, SettingsError
from dsdmae_cli.recipes.encoders import Opened
from dsdmae_cli.recipes.results import Row, read_result
from dsdmae_cli.report import duration
from dsdmae_cli.rundir import RESULT

_UNKNOWN = "not known"


def found_results(opened: Opened, subject: str, given: tuple[Path, ...]) -> tuple[list[Row], list[str]]:
    """Scores for the card, and remarks: the files given, and those below the run that judged these very weights.

    Raises:
        CheckpointError: a file that was given is missing or no result of ours.
    """
    rows, notes = [], []
    for path in given:
        row = read_result(path)
        if row.weights_sha256 not in (None, opened.weights_sha256):
            notes.append(f"{path} judged other weights than these; it is in the card because you named it")
        rows.append(row)
    folder = Path(subject)
    for path in sorted(folder.glob(f"*/**/{RESULT}")) if folder.is_dir() else []:
        row = read_result(path)
        if row.weights_sha256 == opened.weights_sha256 and all(row != other for other in rows):
            rows.append(row)
    return [row for row in rows if row.top1 is not None], notes


def model_card(opened: Opened, rows: list[Row], licence: str | None, name: str) -> str:
    """README.md for the Hugging Face hub.

    Raises:
        SettingsError: the licence is no identifier.
    """
    from huggingface_hub import ModelCardData

    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise SettingsError(
            f"--license {licence!r} is no licence identifier; write it as the Hugging Face hub does (apache-2.0, mit,"
            " cc-by-4.0, other)"
        )
    data = ModelCardData(
        library_name="timm",
        license=licence or "unknown",
        pipeline_tag="image-feature-extraction",
        tags=["dsdmae", "timm", "self-supervised-learning", *([opened.method] if opened.method else [])],
    )
    sections = [
        f"# {name}",
        _introduction(opened),
        "## Pre-training\n\n" + _table(_pretraining(opened)),
        "## Results\n\n" + _results(opened, rows),
        "## How to load it\n\n" + _loading(opened),
        "## Licence\n\n" + (f"{licence}." if licence else "The author of these weights has stated none."),
        "## Citation\n\n" + _citation(opened),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _introduction(opened: Opened) -> str:
    encoder = opened.encoder
    parameters = sum(tensor.numel() for tensor in encoder.timm_state().values())
    learned = f", pre-trained without labels by `{opened.method}` on {_dataset(opened)}" if opened.settings else ""
    return (
        f"An image encoder, `{opened.backbone.name}` with {parameters / 1e6:.2f} M parameters{learned}. It maps"
        f" {encoder.image_size}x{encoder.image_size} pixels to a grid of {encoder.grid[0]}x{encoder.grid[1]} tokens of"
        f" {encoder.width} features. It has no classifier. Made with dsdmae"
        f" {__version__}."
    )


def _dataset(opened: Opened) -> str:
    plugin, colon, argument = (opened.dataset or _UNKNOWN).partition(":")
    return f"{plugin}{colon}{PurePath(argument).name}"  # a directory of the author's machine is nobody's business


def _pretraining(opened: Opened) -> dict[str, str]:
    settings = opened.settings
    if settings is None:
        return {"history": "none of dsdmae's: these weights came from elsewhere or are random"}
    train, data = settings["train"], settings["data"]
    return {
        "dataset": f"{_dataset(opened)}, images of {data['image_size']} px",
        "method": f"`{opened.method}`: {_words(settings['method'])}",
        "schedule": f"{_number(opened.epochs)} epochs, batch {train['batch_size']}, seed {train['seed']}",
        "images seen": f"{opened.images_seen:,}" if opened.images_seen is not None else _UNKNOWN,
        "time": duration(opened.seconds) if opened.seconds is not None else _UNKNOWN,
        "device": opened.device_name or _UNKNOWN,
        "compute": f"{opened.flops:.3g} FLOP, forward and backward" if opened.flops is not None else _UNKNOWN,
        "weights": f"SHA-256 `{opened.weights_sha256}`, before any resampling of positions",
    }


def _words(table: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.4g}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _results(opened: Opened, rows: list[Row]) -> str:
    lines = ["| what | dataset | top-1 | protocol |", "|---|---|---|---|"]
    if opened.knn_accuracy is not None:
        lines.append(f"| k-NN | {_dataset(opened)} | {opened.knn_accuracy:.1%} | at the end of pre-training, k = 20 |")
    for row in rows:
        dataset = row.dataset.rpartition("/")[2]
        lines.append(f"| {row.kind} | {dataset} | {row.top1_words()} | {row.protocol or ''} |")
    return "\n".join(lines) if len(lines) > 2 else "None were measured."


def _loading(opened: Opened) -> str:
    side = opened.encoder.image_size
    return f"""```python
import timm
import torch

model = timm.create_model("local-dir:THIS-FOLDER", pretrained=True).eval()
# or, from the hub: timm.create_model("hf-hub:YOUR-NAME/THIS-MODEL", pretrained=True)
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)

images = torch.rand(1, 3, {side}, {side})  # transform(image).unsqueeze(0)
features = model(images)  # [1, {opened.encoder.width}]
tokens = model.forward_features(images)
```

Pixels in [0, 1] are normalised by mean {list(opened.mean)} and standard deviation {list(opened.std)}. Add
`num_classes=10` to `create_model` for a network with a new classifier to train."""


def _citation(opened: Opened) -> str:
    paper = ""
    if opened.method:
        try:
            paper = plugins.find("method", opened.method).spec.paper
        except PluginError:  # the plugin that trained it need not be here
            paper = ""
    return paper if paper else "None is known for these weights."
