"""The images that a subject learned from: read where their plugin is not installed, and missed in words that say what
to do. No torch here but what a dataset's plugin brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsdmae_cli import plugins
from dsdmae_cli.artifacts import hub
from dsdmae_cli.artifacts.packaged import ALL
from dsdmae_cli.config.compose import written
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Values, schema_of
from dsdmae_cli.config.use import given
from dsdmae_cli.errors import DataError, PluginError, SettingsError
from dsdmae_cli.settings.models import BackboneSettings, DataSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings, ResolvedProbeSettings, ResolvedSettings

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.subject import Subject

Resolved = ResolvedSettings | ResolvedFinetuneSettings | ResolvedProbeSettings
T = TypeVar("T")
# Of the data that an encoder learned from: how the values of a picture become those that it sees.
_SEEN_BY = ("range", "bands", "channels")


def resolved_with_weights(values: Values, origin: str) -> Resolved:
    """The settings that stand beside weights, which are resolved already: the network can be used where nothing here
    can open its images.

    Raises:
        SettingsError, PluginError: they are damaged, or name another plugin that is not here.
    """
    data = values.get("data", {})
    dataset = data.get("dataset")
    if not isinstance(dataset, str) or _installed(dataset):
        return resolved(values, origin)
    shared = {key: value for key, value in data.items() if key in DataSettings.model_fields and key != "dataset"}
    found: Any = resolved({**values, "data": shared}, origin)  # as if they were of the default dataset
    return found.model_copy(update={"data": found.data.model_copy(update={"dataset": dataset})})


def resolved(values: Values, origin: str) -> Resolved:
    """Settings that were written down.

    Raises:
        SettingsError, PluginError, DataError: they are damaged, or name what is not here.
    """
    found: Resolved = resolve(written(schema_of(values), values, origin).settings)
    return found


def with_images(subject: str, below: Values, make: Callable[[], T], own: Callable[[T], DataSettings | None]) -> T:
    """Settings of a command that looks at the images its subject learned from, unless others were named.

    Args:
        subject: as it was typed.
        below: what stands below all that was said: the subject's own.
        make: the settings.
        own: their [data]; None where other images were named.

    Raises:
        DataError: the subject's own images are meant, and are not to be had here; it says which, and to name others.
        SettingsError, PluginError: as make.
    """
    dataset = below.get("data", {}).get("dataset")
    if dataset is None:
        return make()
    try:
        found = make()
    except PluginError as error:
        if _installed(dataset) or not str(error).startswith(f"data.dataset = {dataset!r}"):
            raise
        raise _missed(subject, dataset, str(error).partition(": ")[2]) from error
    if (data := own(found)) is not None:
        try:
            _look(subject, data)
        except DataError as error:
            raise _missed(subject, dataset, str(error)) from error
    return found


def images_and_backbone(
    subject: Subject, flags: Mapping[str, Any], assignments: Sequence[str] | None
) -> tuple[DataSettings, BackboneSettings | None]:
    """The data to look at: what was named, seen by the subject's range, or else what the subject learned from. And the
    backbone, as given.

    Raises:
        SettingsError: no dataset is named, and the subject says none.
        DataError: as with_images.
    """
    below: tuple[Values, str] | None = None
    own: Values = {}
    if flags.get("data.dataset") is not None or any(a.strip().startswith("data.dataset") for a in assignments or []):
        with suppress(DataError, PluginError):  # what it learned from need not be here any more
            values, origin = subject.taken_over()
            seen = {key: value for key, value in values.get("data", {}).items() if key in _SEEN_BY}
            below = ({"data": seen}, origin) if seen else None
    elif subject.settings() is None:
        raise SettingsError(f"which images? {subject.text} does not say what it learned from; add --dataset NAME")
    else:
        own, origin = subject.taken_over()
        below = ({"data": own["data"]}, origin)
    data, backbone = with_images(subject.text, own, partial(given, flags, assignments, below), lambda found: found[0])
    assert data is not None  # it was named, or stands below
    return data, backbone


def _look(subject: str, data: DataSettings) -> None:
    spec = plugins.find("dataset", data.dataset).spec
    path = plugins.argument_of(data.dataset)
    if spec.argument == "PATH" and not Path(path).is_absolute() and _from_elsewhere(subject):
        raise DataError("a path where it was trained")  # a folder of that name here is another one
    if spec.count is not None:
        plugins.load(spec.count)(data)
    elif path:
        plugins.load(spec.build)(data, spec.labelled_split)


def _from_elsewhere(subject: str) -> bool:
    return hub.is_hub(subject) or subject in {packaged.word for packaged in ALL}


def _installed(dataset: str) -> bool:
    return dataset.partition(":")[0] in plugins.names("dataset")


def _missed(subject: str, dataset: str, why: str) -> DataError:
    return DataError(
        f"which images? {subject} learned from {dataset}, which cannot be had here ({why}); name others by"
        " --dataset NAME"
    )
