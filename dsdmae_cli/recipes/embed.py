"""`dsdmae embed`: features of every image of a dataset, with file names and labels, as .npz or Parquet (the files are
written in artifacts/embedding.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli.artifacts import embedding as rows
from dsdmae_cli.artifacts.learned_from import images_and_backbone
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.patch_picture import Looked, Wanted, check_patches, draw, drawn_in_words
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.config.use import passed_over
from dsdmae_cli.data.beyond import range_notes
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.evaluation.attention import attention_maps, check_attention
from dsdmae_cli.evaluation.dataset_features import dataset_features
from dsdmae_cli.evaluation.features import Cached, Pool, check_pools
from dsdmae_cli.report import Report, make_report, number_of
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.size import Size

Split = Literal["train", "test", "labelled", "all"]
_ADVICE = "make room or choose another --out"


@dataclass(frozen=True)
class Request:
    """What to embed and how.

    Attributes:
        subject: see artifacts/subject.py.
        flags, assignments: settings of data and backbone, as given; without a dataset, a run's own is taken.
        split: "all" = train, then test.
        pool: see evaluation.features.
        image_size: of the images the encoder sees; None = that of its training.
        device, precision: as train.device and train.precision.
        cache: keep the features in the user's cache, and look for them there; tokens are never kept.
        attention, thumbnails: add where the encoder looks, and small pictures.
        picture: a picture of the patches to draw, and what is in it.
    """

    subject: str
    flags: Mapping[str, Any]
    assignments: Sequence[str] | None = None
    split: Split = "train"
    pool: Pool = "mean"
    image_size: Size | None = None
    device: str = "auto"
    precision: str = "auto"
    cache: bool = True
    attention: bool = False
    thumbnails: bool = False
    picture: Wanted | None = None


@dataclass(frozen=True)
class Computed:
    """Features, and what is said of them.

    Attributes:
        about: what the numbers are, kept in a file beside them.
        unreadable: reasons by the names of images that could not be read.
        looked: the images that the rows are of, in order.
    """

    embedding: rows.Embedding
    about: dict[str, Any]
    unreadable: dict[str, str]
    looked: tuple[Looked, ...] = ()


def embed(request: Request, out: Path | None, *, force: bool = False, as_json: bool = False) -> dict[str, Any]:
    """Compute and write features; what was written, as --json prints it.

    Args:
        out: the .npz or .parquet file to write; None = a picture alone.
        force: replace what is there.

    Raises:
        SettingsError: the path is taken or its ending unknown; and see compute.
        RunFailed: the file cannot be written.
    """
    write = None if out is None else rows.free(out, request.thumbnails, force, attention=request.attention)
    found = compute(request, make_report(as_json=as_json, main_process=True))
    whole, picture = found.embedding, request.picture

    def drawn() -> dict[str, Any]:
        return {} if picture is None else draw(picture, whole, found.looked, found.about["image_size"], _ADVICE)

    return {
        **(drawn() if out is None or write is None else rows.written(write, out, whole, found.about, drawn, _ADVICE)),
        "images": len(whole.names),
        "features": whole.features.shape[-1],
        "labelled": int((whole.labels >= 0).sum()) if whole.labels is not None else 0,
        "classes": len(whole.classes) if whole.classes else None,
        "unreadable_images": len(found.unreadable),
        "unreadable": found.unreadable,
        **found.about,
    }


def compute(request: Request, report: Report) -> Computed:
    """Features of the images that are asked for.

    Raises:
        SettingsError: the encoder has no such pooling, no dataset is named.
        CheckpointError, PluginError: see open_encoder.
        DataError: the dataset is not there, or too many images cannot be read.
    """
    subject = parse(request.subject)
    data, backbone = images_and_backbone(subject, request.flags, request.assignments)
    opened = open_encoder(subject, data, backbone=backbone, image_size=request.image_size, seed=0)
    check_pools(opened.encoder, [request.pool])
    if request.attention:
        check_attention(opened.encoder)
    if request.picture is not None:
        check_patches(opened.encoder.grid, opened.name)
    device = choose_device(request.device)
    precision = choose_precision(request.precision, device)
    for note in [*passed_over(), *opened.notes]:
        report.note(note)
    parts: list[rows.Embedding] = []
    looked: list[Looked] = []
    unreadable: dict[str, str] = {}
    opened.encoder.to(device)
    for split in ("train", "test") if request.split == "all" else (request.split,):
        dataset = open_dataset(data, split)
        for note in (*dataset.notes, *range_notes(dataset)) if not parts else ():
            report.note(note)
        skipped = Unreadable(len(dataset), data, split)
        if request.pool == "tokens":
            rows.check_room(len(dataset), opened.encoder)
        images = number_of(len(dataset), f"{split} image")
        report.note(f"{images} of {data.dataset} through {opened.name} on {device} in {precision}")
        (found,) = dataset_features(
            [opened.encoder], dataset, data.interpolation, [request.pool], device, precision, skipped, report,
            cache=request.cache and request.pool != "tokens",
        )  # fmt: skip
        _tell(report, found, len(dataset), split)
        kept = found.features.indices.tolist()
        for line in skipped.lines():
            report.warn(f"skipped {line}")
        unreadable.update(skipped.reasons)
        part = rows.rows_of(found.features.by_pool[request.pool], dataset, kept, split, opened.encoder.grid)
        if request.attention:
            maps = attention_maps(opened.encoder, dataset, kept, device, precision, data.interpolation, skipped)
            part = rows.with_attention(part, maps, dataset, kept, opened.encoder.image_size)
        looked.append(Looked(dataset, kept))
        parts.append(replace(part, thumbnails=rows.thumbnails_of(dataset, kept)) if request.thumbnails else part)
    about = _about(request, opened, data, precision, str(device))
    return Computed(rows.joined(parts), about, unreadable, tuple(looked))


def _tell(report: Report, found: Cached, total: int, split: str) -> None:
    if found.note:
        report.warn(found.note)
    if found.found:
        images = number_of(total, f"{split} image")
        report.note(f"features of {len(found.features.indices):,} of {images} from the cache")


def _about(request: Request, opened: Opened, data: DataSettings, precision: str, device: str) -> dict[str, Any]:
    """What the numbers are, kept in the file beside them."""
    return {
        "encoder": opened.name,
        "weights_sha256": opened.weights_sha256,
        "dataset": data.dataset,
        "split": request.split,
        "pool": request.pool,
        "grid": list(opened.encoder.grid),
        "image_size": opened.encoder.image_size,
        "precision": precision,
        "device": device,
    }


def summary(said: dict[str, Any]) -> str:
    """The lines for people."""
    labels = f", {said['labelled']} labelled" if said["labelled"] else ""
    lines = drawn_in_words(said)
    if "path" not in said:
        return "\n".join(lines)
    features = number_of(said["features"], "feature")
    lines.append(f"wrote          {said['path']}: {number_of(said['images'], 'image')}{labels}, {features} each")
    if said["unreadable_images"]:
        lines.append(f"skipped        {said['unreadable_images']} unreadable images")
    if said["path"].endswith(".npz"):
        lines.append(f"load it with   numpy.load({said['path']!r})['features']")
    else:
        lines.append(f"load it with   pandas.read_parquet({said['path']!r})")
    return "\n".join(lines)
