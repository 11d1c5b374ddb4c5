"""Whether the images of a study have the labels that its metrics need: seen before anything is trained."""

from __future__ import annotations

from typing import Any

from dsdmae_cli import plugins
from dsdmae_cli.ablation.definition import Definition, Metric, names_pixels
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.run_data import labelled_indices
from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.judging import open_labelled
from dsdmae_cli.segmentation.splits import open_masked
from dsdmae_cli.settings.resolved import ResolvedData


class Unmeasurable(DataError):  # noqa: N818
    """What trials are judged by cannot be measured on their images."""


def check_measurable(definition: Definition, settings: ResolvedData) -> None:
    """See that what trials are judged by can be measured on these images; those that are not here yet pass.

    Raises:
        Unmeasurable: they have no labels, or no masks, for the metric, for what is measured besides, or for pruning.
    """
    here = settings.model_copy(update={"download": False})
    spec = plugins.find("dataset", settings.dataset).spec
    try:
        splits = [open_dataset(here, split) for split in (spec.labelled_split, "test")]
    except DataError:  # to be downloaded; where nothing can be, the plan has said so
        return
    asked = [("--metric", definition.metric), *(("--also", metric) for metric in definition.also)]
    for flag, metric in asked:
        options = definition.metric_options if metric is definition.metric else ()
        if metric.command and not _other_images(metric, options):
            try:
                _open_judged(metric, options, here)
            except DataError as error:
                raise Unmeasurable(f"{flag} {metric.name} cannot be measured: {error}") from error
    if all(labelled_indices(split, 1) for split in splits):
        return
    for flag, metric in asked:
        if metric.name == "knn":
            raise Unmeasurable(_without_labels(definition, f"{flag} knn cannot be measured", settings.dataset))
    if definition.prune and definition.metric.name != "loss":
        raise Unmeasurable(
            _without_labels(definition, "--prune goes by the k-NN accuracy on the way", settings.dataset)
        )


def _without_labels(definition: Definition, what: str, dataset: str) -> str:
    other = "" if definition.loss_differs else "take --metric loss, "
    if what.startswith("--also") or (definition.prune and definition.metric.name != "knn"):
        other = "leave it out, "
    return (
        f"{what}: images of {dataset} have no labels; {other}put each class into a folder of its own, give --labels"
        " FILE.csv, or name a labelled --dataset"
    )


def _open_judged(metric: Metric, options: tuple[str, ...], settings: Any) -> None:
    """Open the images as the command that measures will."""
    if names_pixels(metric, options):
        open_masked(settings)
    else:
        open_labelled(settings)


def _other_images(metric: Metric, options: tuple[str, ...]) -> bool:
    """Whether the metric's options may name other images, or other labels, than the trials learn from."""
    flags = [flag for flag in flags_of(metric.command[0]) if flag.setting.startswith("data.")]
    words = {"--config", *(f"--{flag.word}" for flag in flags)}  # a preset of these commands names none
    return any(word.partition("=")[0] in words or word.partition("=")[0].startswith("data.") for word in options)
