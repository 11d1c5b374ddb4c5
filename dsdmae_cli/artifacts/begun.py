"""What weights to begin pre-training with bring along before they are opened: their network, and what they learned
from where no other images are named. No torch here; beginning.py opens them.
"""

from __future__ import annotations

from dsdmae_cli.artifacts.learned_from import with_images
from dsdmae_cli.artifacts.subject import parse, to_adapt
from dsdmae_cli.config.schema import Loaded, Values
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.files import typed
from dsdmae_cli.settings.models import Settings


def begun_with(text: str, images_named: bool) -> tuple[Values, str]:
    """[backbone] and [data] that stand below what a person says, and where they are from.

    The first layer of a network for RGB is adapted to other images' channels (beginning.py).

    Args:
        text: names the weights.
        images_named: the images to learn from are named; else they are those that the weights learned from.

    Raises:
        CheckpointError, SettingsError, PluginError: it is no weights; or no images are named and they say none.
    """
    values, origin = parse(text, trained=True).taken_over()
    if images_named:
        values = to_adapt(values, other_images=True)
        data = {key: values["data"].get(key, "auto") for key in ("image_size", "range", "bands", "channels")}
        data = {key: value for key, value in data.items() if value not in ("auto", "none", None)}
        return {"backbone": values["backbone"], **({"data": data} if data else {})}, origin
    if values.get("data", {}).get("dataset") is None:
        raise SettingsError(
            f"which images? {text} does not say what it learned from; name them: dsdmae pretrain PATH --from"
            f" {typed(text)}"
        )
    return to_adapt(values, other_images=False), origin


def with_its_images(loaded: Loaded[Settings]) -> Loaded[Settings]:
    """The same settings, whose images are there where they are those that the weights learned from.

    Raises:
        DataError: they are not, with what to name.
    """
    start, source = loaded.settings.train.start, loaded.sources["data.dataset"]
    if start is None or source != loaded.sources["backbone.name"]:
        return loaded
    data = loaded.settings.data
    return with_images(start, {"data": {"dataset": data.dataset}}, lambda: loaded, lambda _: data)
