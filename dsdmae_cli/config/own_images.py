"""What defaults and presets come to on a person's own images: a batch that fits few of them, and a size that was meant
for others. What a person said is never changed. No torch here.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.config.presets import presets_by_kind, read_preset
from dsdmae_cli.config.resolve import BEGUN_RATE, resolve_data
from dsdmae_cli.config.schema import Loaded, Schema
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import DatasetSpec, MethodSpec
from dsdmae_cli.report import number_of
from dsdmae_cli.settings.size import height_width, size_words

_STEPS = 8  # an epoch of few images has at least so many, where the method allows it
L = TypeVar("L", bound=BaseModel)
_IMAGES = " to learn from"  # how the origin of a value ends that was decided here


def fitted(loaded: Loaded[L]) -> Loaded[L]:
    """Settings whose batch, where nobody said it, fits the images, so that an epoch of few has steps to learn in.

    Of fewer than `_STEPS` default batches, or fewer than a preset's one, it becomes the largest power of two that makes
    `_STEPS` steps an epoch, but no smaller than the method can do with, nor larger than leaves room for an unreadable
    image. The peak rate, where nobody said that either, stays what it was for the larger batch: AdamW divides by the
    gradient's size, so that by the linear rule next to nothing would be learned in the steps that few images make. A
    run that begins with trained weights has a tenth of that here too.

    Raises:
        DataError: the images are not there.
    """
    settings: Any = loaded.settings
    wanted = settings.train.batch_size
    images = None if _said(loaded, "train.batch_size") else _num_images(settings)
    if images is None or (images >= wanted and loaded.sources["train.batch_size"] != "default"):
        return loaded
    batch = min(wanted, max(_fewest(settings), _power_of_two(images // _STEPS)), _power_of_two(images - 1))
    if batch == wanted:
        return loaded
    origin = f"{number_of(images, 'image')}{_IMAGES}"
    changed: dict[str, Any] = {"train": settings.train.model_copy(update={"batch_size": batch})}
    sources = {**loaded.sources, "train.batch_size": origin}
    if settings.optim.lr == "auto":
        begun = getattr(settings.train, "start", None) is not None
        peak = settings.optim.base_lr * wanted / 256 * (BEGUN_RATE if begun else 1)
        changed["optim"] = settings.optim.model_copy(update={"lr": peak})
        sources["optim.lr"] = origin
    return Loaded(settings.model_copy(update=changed), sources)


def _power_of_two(most: int) -> int:
    """The largest that is no more; at least 1."""
    return 1 << max(0, most.bit_length() - 1)


def _fewest(settings: Any) -> int:
    """Images that a batch is not made smaller than."""
    method = getattr(settings, "method", None)
    return MethodSpec.fewest_in_batch if method is None else plugins.find("method", method.name).spec.fewest_in_batch


def _said(loaded: Loaded[Any], dotted: str) -> bool:
    """Whether a person said a value, or a run that goes on has it."""
    source = loaded.sources[dotted]
    return source != "default" and not source.startswith("preset ")


def _num_images(settings: Any) -> int | None:
    """The images that a run learns from; None where that would take opening the dataset, which is done only for a share
    of its labelled images: a default batch may be larger than that."""
    spec = plugins.find("dataset", settings.data.dataset).spec
    finetune = getattr(settings, "finetune", None)
    if spec.count is not None:
        images, labelled = plugins.load(spec.count)(settings.data)
    else:
        images = labelled = spec.num_images.get("train" if finetune is None else spec.labelled_split)
        if images is None and finetune is not None and finetune.labels < 1:
            images, labelled = _opened(spec, settings.data)
        if images is None:
            return None
    if finetune is None:
        return int(images)
    if finetune.task == "segment":  # whose labels are masks, and not counted among the labelled
        labelled = images
    if not labelled:  # nothing to learn from, as whoever opens them will say
        return None
    return max(1, int(labelled * finetune.labels * (1 - finetune.validation)))


def _opened(spec: DatasetSpec, data: Any) -> tuple[int | None, int]:
    """Images of the labelled split, and those with a label; (None, 0) where they are not here, as whoever opens them
    for good will say, or fetch them."""
    try:
        found = plugins.load(spec.build)(data.model_copy(update={"download": False}), spec.labelled_split)
    except DataError:
        return None, 0
    return len(found), 0 if found.labels is None else int((found.labels >= 0).sum())


def remarks(loaded: Loaded[Any], schema: Schema[Any]) -> list[str]:
    """What a person should know of values that nobody said, a sentence each."""
    return [*_about_batch(loaded), *_about_size(loaded, schema)]


def _about_batch(loaded: Loaded[Any]) -> list[str]:
    source = loaded.sources["train.batch_size"]
    if not source.endswith(_IMAGES):
        return []
    rate = f" and a peak rate of {loaded.settings.optim.lr:.3g}" if loaded.sources["optim.lr"] == source else ""
    batch = loaded.settings.train.batch_size
    return [f"batches of {batch}{rate}, for {source}; --batch-size and --lr say otherwise"]


def _about_size(loaded: Loaded[Any], schema: Schema[Any]) -> list[str]:
    """A preset that was made for small images makes others small."""
    data, source = loaded.settings.data, loaded.sources["data.image_size"]
    if not source.startswith("preset ") or loaded.sources["data.dataset"] == source:
        return []
    meant = _dataset_of(source.removeprefix("preset "), schema)
    if meant is None:
        return []
    own = resolve_data(data.model_copy(update={"image_size": "auto", "crop_from": None})).image_size
    if min(height_width(own)) <= min(height_width(data.image_size)):
        return []
    small = f"the images are brought to {size_words(data.image_size)} px, which {source} has for {meant}"
    return [f"{small}; their own size is {own}: --set data.image_size=auto --set backbone.patch_size=auto"]


def _dataset_of(preset: str, schema: Schema[Any]) -> str | None:
    """The dataset that a preset was made for."""
    kinds = [kind for kind, names in presets_by_kind(schema).items() if preset in names]
    found = read_preset(schema, kinds[0], preset).get("data", {}).get("dataset") if kinds else None
    return None if found is None else str(found)
