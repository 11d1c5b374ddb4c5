"""Backbones and methods, built from resolved settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dsdmae_cli import plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.projection import synchronized
from dsdmae_cli.runs.prerequisite import required_settings, requirement
from dsdmae_cli.settings.models import BackboneSettings, Settings
from dsdmae_cli.settings.resolved import ResolvedSettings
from dsdmae_cli.settings.size import Size


def build_backbone(settings: BackboneSettings, image_size: Size, seed: int) -> Backbone:
    """A backbone of resolved settings, on the CPU, with first weights drawn from the seed.

    Raises:
        SettingsError: it refuses its settings or the images' size.
        PluginError: its plugin cannot be imported, or published weights cannot be fetched.
    """
    spec = plugins.find("backbone", settings.name).spec
    torch.manual_seed(derive_seed(seed, "weights"))
    return plugins.made_by(spec.build, Backbone, settings, image_size)


def build_method(
    settings: ResolvedSettings, kept: Path | None = None, begin: Callable[[Backbone], None] | None = None
) -> Method:
    """The method around its backbone, on the CPU, with first weights drawn from the seed.

    What it needs trained beforehand is untrained in it; a run gives it its weights (runs/prerequisite.py).

    Args:
        kept: the copy of its prerequisite's settings that a run keeps, if there is one.
        begin: fills the new backbone with weights before the method is put around it, so that a teacher copies them.

    Raises:
        SettingsError: the backbone or method refuses its settings.
        PluginError: a plugin cannot be imported.
    """
    spec = plugins.find("method", settings.method.name).spec
    needs = requirement(settings)
    required = () if needs is None else (_untrained(required_settings(settings, needs, kept=kept).settings),)
    # The method's own parts are drawn from where the backbone left off.
    backbone = build_backbone(settings.backbone, settings.data.image_size, settings.train.seed)
    if begin is not None:
        begin(backbone)
    backbone = synchronized(backbone)
    return plugins.made_by(spec.build, Method, settings.method, backbone, *required)


def _untrained(settings: Settings) -> Method:
    return build_method(resolve(settings).without_weights())
