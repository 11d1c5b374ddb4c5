"""The model card of an exported network: what it learned from, how, at what cost, and what it is worth."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsdmae_cli import __version__, plugins
from dsdmae_cli.artifacts.anonymous import anonymous, of_dataset
from dsdmae_cli.artifacts.classifier import Tuned
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.seen import Seen, seen_by
from dsdmae_cli.artifacts.subject import Subject
from dsdmae_cli.artifacts.trained import device_beside
from dsdmae_cli.errors import CheckpointError, PluginError, SettingsError
from dsdmae_cli.evaluation.closing import NEIGHBOURS
from dsdmae_cli.report import duration, markdown, number_of, shown
from dsdmae_cli.runs.results import Row, read_result
from dsdmae_cli.runs.rundir import RESULT
from dsdmae_cli.settings.size import height_width, size_words

_UNKNOWN = "not known"


def found_results(opened: Opened, subject: Subject, given: tuple[Path, ...]) -> tuple[list[Row], list[str]]:
    """Scores for the card, and remarks: the files given, a fine-tuned network's own result beside it, and those below
    the run that judged these very weights. What else lies there is passed over with a remark.

    Raises:
        CheckpointError: a file that was given is missing or no result of ours.
    """
    rows, notes = [], []
    tuned = opened.fine_tuning
    if tuned is not None and tuned.result:
        rows.append(read_result(tuned.path.parent / RESULT))
    for path in given:
        row = read_result(path)
        if row.weights_sha256 not in (None, opened.weights_sha256) and row not in rows:
            notes.append(f"{path} judged other weights than these; it is in the card because you named it")
        if row not in rows:
            rows.append(row)
    folder = subject.path if subject.path is not None and subject.path.is_dir() else None
    for path in sorted(folder.glob(f"*/**/{RESULT}")) if folder is not None else []:
        try:
            row = read_result(path)
        except CheckpointError as error:  # nobody named it, and the weights need it not
            notes.append(f"{error}; it is not in the card")
            continue
        if row.weights_sha256 == opened.weights_sha256 and row not in rows:
            rows.append(row)
    return [row for row in rows if row.top1 is not None or row.mean_iou is not None], notes


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
        pipeline_tag="image-classification" if opened.tuned else "image-feature-extraction",
        tags=["dsdmae", "timm", *(["self-supervised-learning", method] if (method := _method(opened)) else [])],
    )
    tuned = opened.fine_tuning
    sections = [
        f"# {markdown(name)}",
        _introduction(opened),
        *(["## Fine-tuning\n\n" + _table(_finetuning(tuned))] if tuned else []),
        "## Pre-training\n\n" + _table(_before(tuned) if tuned else _pretraining(opened)),
        "## Results\n\n" + _results(opened, rows),
        "## How to load it\n\n" + _loading(opened),
        "## Licence\n\n" + (f"{licence}." if licence else "The author of these weights has stated none."),
        "## Citation\n\n" + _citation(opened),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _introduction(opened: Opened) -> str:
    encoder, tuned = opened.encoder, opened.tuned
    tensors = [*encoder.timm_state().values(), *(tuned.network.head.parameters() if tuned else ())]
    parameters = sum(tensor.numel() for tensor in tensors)
    if tuned is not None:
        return (
            f"An image classifier, `{_code(opened.backbone.name)}` with {parameters / 1e6:.2f} M parameters, fine-tuned"
            f" on {_named(tuned.settings['data']['dataset'])}. It maps {size_words(encoder.image_size)} pixels"
            f" to a logit for each of {len(tuned.classes)} classes: {markdown(short_list(tuned.classes))}. Made with"
            f" dsdmae {__version__}."
        )
    learned = ""
    if opened.beheaded is not None:
        learned = f", fine-tuned on {_named(opened.beheaded.settings['data']['dataset'])} and taken without its head"
    elif opened.settings:
        learned = f", pre-trained without labels by `{_code(opened.method)}` on {_dataset(opened)}"
    return (
        f"An image encoder, `{_code(opened.backbone.name)}` with {parameters / 1e6:.2f} M parameters{learned}. It maps"
        f" {size_words(encoder.image_size)} pixels to a grid of {encoder.grid[0]}x{encoder.grid[1]} tokens of"
        f" {encoder.width} features. It has no classifier. Made with dsdmae"
        f" {__version__}."
    )


def short_list(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(shown(name, one_line=True) for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def _dataset(opened: Opened) -> str:
    return _named(opened.dataset or _UNKNOWN)


def _method(opened: Opened) -> str | None:
    """That of pre-training, where known."""
    if opened.fine_tuning is None:
        return opened.method
    found = opened.fine_tuning.result
    return found["method"] if found.get("pretrain_dataset") else None


def _named(dataset: str) -> str:
    return markdown(of_dataset(dataset))  # a directory of the author's machine is nobody's business


def _pretraining(opened: Opened) -> dict[str, str]:
    settings = opened.settings
    if settings is None:
        return {"history": "none of dsdmae's: these weights came from elsewhere or are random"}
    train, data = settings["train"], settings["data"]
    return {
        "dataset": f"{_dataset(opened)}, images of {_size(data)} px",
        "method": f"`{_code(opened.method)}`: {_words(anonymous(settings)['method'])}",
        "schedule": f"{_epochs(opened.epochs)}, batch {train['batch_size']}, seed {train['seed']}",
        **_cost(opened.images_seen, opened.seconds, opened.device_name, opened.flops),
        "weights": f"SHA-256 `{opened.weights_sha256}`, before any resampling of positions",
    }


def _finetuning(tuned: Tuned) -> dict[str, str]:
    found = tuned.result
    train, data = tuned.settings["train"], tuned.settings["data"]
    return {
        "dataset": f"{_named(data['dataset'])}, images of {_size(data)} px",
        "protocol": markdown(found.get("protocol", _UNKNOWN)),
        "schedule": f"{number_of(train['epochs'], 'epoch')}, batch {train['batch_size']}, seed {train['seed']}",
        **_cost(found.get("images_seen"), found.get("seconds"), device_beside(tuned.path), found.get("flops")),
        "weights": f"SHA-256 `{tuned.sha256}`, before any resampling of positions",
    }


def _before(tuned: Tuned) -> dict[str, str]:
    """What is known of the weights that fine-tuning started from."""
    found = tuned.result
    if found.get("pretrain_dataset") is None:
        start = anonymous(tuned.settings)["finetune"]["start"]
        return {"history": "none: the weights were random" if start == "scratch" else f"that of {markdown(start)}"}
    return {
        "dataset": _named(found["pretrain_dataset"]),
        "method": f"`{_code(found['method'])}`",
        "schedule": f"{_epochs(found['pretrain_epochs'])}",
        "time": duration(found["pretrain_seconds"]) if found["pretrain_seconds"] is not None else _UNKNOWN,
        "compute": _flop(found["pretrain_flops"]),
        "weights": f"SHA-256 `{found['weights_sha256']}`",
    }


def _cost(
    images_seen: int | None, seconds: float | None, device_name: str | None, flops: float | None
) -> dict[str, str]:
    return {
        "images seen": f"{images_seen:,}" if images_seen is not None else _UNKNOWN,
        "time": duration(seconds) if seconds is not None else _UNKNOWN,
        "device": markdown(device_name or _UNKNOWN),
        "compute": _flop(flops),
    }


def _flop(flops: float | None) -> str:
    return f"{flops:.3g} FLOP, forward and backward" if flops is not None else _UNKNOWN


def _words(table: dict[str, Any]) -> str:
    return markdown(", ".join(f"{key} {value}" for key, value in table.items() if key != "name"))


def _code(name: object) -> str:
    """Within backticks, where nothing is escaped but what would end them or the line."""
    return shown(str(name), one_line=True).replace("`", "'").replace("|", "/")


def _epochs(value: float | None) -> str:
    return f"{_UNKNOWN} epochs" if value is None else number_of(value, "epoch")


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.4g}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _results(opened: Opened, rows: list[Row]) -> str:
    lines = ["| what | dataset | score | protocol |", "|---|---|---|---|"]
    if opened.knn_accuracy is not None:
        knn = f"{opened.knn_accuracy:.1%} | at the end of pre-training, k = {NEIGHBOURS}"
        lines.append(f"| k-NN | {_dataset(opened)} | {knn} |")
    for row in rows:
        dataset = of_dataset(row.dataset)
        score = row.top1_words() if row.mean_iou is None else f"mean IoU {row.mean_iou_words()}"
        lines.append(f"| {' | '.join(map(markdown, (row.kind, dataset, score, row.protocol or '')))} |")
    if len(lines) == 2:
        return "None were measured."
    headless = opened.beheaded is not None and any(row.kind == "finetune" for row in rows)
    return "\n".join(lines) + ("\n\nFine-tuning was measured with the head, which is not here." if headless else "")


def _loading(opened: Opened) -> str:
    channels = opened.encoder.in_chans
    shape = (1, channels, *height_width(opened.encoder.image_size))
    seen = seen_by(opened)
    other = seen.channels != 3 or seen.bands is not None or seen.range is not None
    bands = f"\n\n{_seen(seen)}" if other else ""
    if opened.tuned is not None:
        use = f"""logits = model(images)  # [1, {len(opened.tuned.classes)}]
names = [model.pretrained_cfg["label_names"][index] for index in logits.argmax(dim=1)]"""
        more = ""
    else:
        use = f"""features = model(images)  # [1, {opened.encoder.width}]
tokens = model.forward_features(images)"""
        more = " Add\n`num_classes=10` to `create_model` for a network with a new classifier to train."
    return f"""```python
import timm
import torch

model = timm.create_model("local-dir:THIS-FOLDER", pretrained=True).eval()
# or, from the hub: timm.create_model("hf-hub:YOUR-NAME/THIS-MODEL", pretrained=True)
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)

images = torch.rand{shape}  # transform(image).unsqueeze(0)
{use}
```

Pixels in [0, 1] are normalised by mean {list(opened.mean)} and standard deviation {list(opened.std)}.{more}{bands}"""


def _seen(seen: Seen) -> str:
    """What a network sees that does not see RGB of 8 bits."""
    words = f"It sees {seen.channels_in_words}."
    if seen.range is not None:
        words += f" Before normalisation values from black to white become [0, 1]: {json.dumps(seen.range)}."
    return words + (" timm's transform is for RGB of 8 bits." if seen.range or seen.channels != 3 else "")


def _size(data: dict[str, Any]) -> str:
    sides = data["image_size"]  # a list where there are two: the settings are tables
    return str(sides) if isinstance(sides, int) else size_words((sides[0], sides[1]))


def _citation(opened: Opened) -> str:
    paper = ""
    if method := _method(opened):
        try:
            paper = plugins.find("method", method).spec.paper
        except PluginError:  # the plugin that trained it need not be here
            paper = ""
    return paper if paper else "None is known for these weights."
