"""Weights to begin pre-training with: an encoder that has learned before, and the other parts of its method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from statistics import fmean

from torch import Tensor

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.format import holds_encoder
from dsdmae_cli.artifacts.open import adapted_words, open_encoder
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.artifacts.trained_method import method_in_denoiser
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.rundir import REQUIRED
from dsdmae_cli.settings.resolved import ResolvedSettings


@dataclass(frozen=True)
class Beginning:
    """What `train.start` names.

    Attributes:
        text: as it was typed.
        encoder: as it was trained.
        method: name of the method that trained it; empty where that is not known.
        parts: weights of that method under its own names, without the encoder's.
        notes: what a person should know.
    """

    text: str
    encoder: Backbone
    method: str = ""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fill_encoder(self, backbone: Backbone) -> None:
        """Give a new backbone the weights; positions are resampled where its images are of another size, and the first
        layer is adapted where they are of another number of channels.

        Raises:
            CheckpointError: it is another network.
            SettingsError: the encoder cannot take images of that size, or wants its pixels otherwise.
        """
        if not _alike(backbone, self.encoder):
            raise SettingsError(
                f"{self.text} wants pixels normalised by {self.encoder.mean} and {self.encoder.std}, this backbone by"
                f" {backbone.mean} and {backbone.std}; take the backbone that they were made with"
            )
        self.encoder.set_image_size(backbone.image_size)
        own, given = backbone.timm_state(), self.encoder.timm_state()
        if backbone.in_chans != self.encoder.in_chans:
            given = backbone.adapted(given)
        try:
            checkpoint.check_fit(own, given, f"{self.text} (train.start)")
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; leave --backbone and [backbone] out, and the network is that of the weights"
            ) from error
        for name, tensor in own.items():
            tensor.data.copy_(given[name])

    def fill_parts(self, method: Method, name: str) -> str:
        """Give a method's other parts their weights where the method is the same; what was filled, in words."""
        was, now = self.encoder.in_chans, method.encoder().in_chans
        adapted = f"; its {adapted_words(was, now)}" if was != now else ""
        if name != self.method or not self.parts:
            why = f", since they were trained by {self.method}" if self.method not in ("", name) else ""
            return f"the encoder begins with the weights of {self.text}{adapted}; everything else is new{why}"
        state = method.state_dict()
        fitting = {
            key: self.parts[key]
            for key in _without_encoder(method, state)
            if key in self.parts and self.parts[key].shape == state[key].shape
        }
        method.load_state_dict({**state, **fitting})
        filled = {key.partition(".")[0] for key in fitting}
        new = {key.partition(".")[0] for key in _without_encoder(method, state) if key not in fitting} - {"teacher"}
        whole, parts = sorted(filled - new), sorted(filled & new)  # a deeper decoder has blocks of both kinds
        with_them = f" and {', '.join(whole)} begin" if whole else " begins"
        fit = f", and of {', '.join(parts)} what fits" if parts else ""
        rest = f"; new: {', '.join(sorted(new - filled))}" if new - filled else ""
        return f"the encoder{with_them} with the weights of {self.text}{fit}{adapted}{rest}"


def _alike(one: Backbone, other: Backbone) -> bool:
    """Whether two networks want their pixels normalised in one way; by their averages, if their channels differ."""
    if one.in_chans == other.in_chans:
        return (one.mean, one.std) == (other.mean, other.std)
    return all(isclose(fmean(a), fmean(b), abs_tol=1e-6) for a, b in ((one.mean, other.mean), (one.std, other.std)))


def open_beginning(text: str, settings: ResolvedSettings) -> Beginning:
    """Open what a run should begin with: a run, a file of an encoder or a denoiser, anybody's or published weights.

    Args:
        text: names it.
        settings: of the run that begins.

    Raises:
        CheckpointError: no such run or file, or it is damaged.
        SettingsError, PluginError: it is no weights, or they cannot be fetched.
    """
    subject = parse(text, trained=True)
    own = subject.settings()
    if isinstance(own, ResolvedSettings):
        method: Method | None = None
        state: dict[str, Tensor] = {}
        if subject.kind == "run" and subject.path is not None:
            method, state = _in_run(subject.path, own, subject.weights is not None)
        elif subject.weights is not None and not holds_encoder(subject.metadata):
            method, state = method_in_denoiser(subject.weights, own)
        if method is not None:
            parts = {key: state[key] for key in _without_encoder(method, state)}
            return Beginning(text, method.encoder(), own.method.name, parts)
    foreign = own is None and subject.kind == "weights"  # shapes leave some of its network to what a person says
    opened = open_encoder(
        subject,
        None,
        backbone=settings.backbone if foreign else None,
        image_size=settings.data.image_size if foreign else None,
        seed=settings.train.seed,
    )
    return Beginning(text, opened.encoder, notes=opened.notes)


def _in_run(folder: Path, settings: ResolvedSettings, ended: bool) -> tuple[Method | None, dict[str, Tensor]]:
    """All of a run's method out of its newest checkpoint; None where it has ended and its checkpoints are gone."""
    found, complaints = checkpoint.load_newest_weights(folder / "checkpoints")
    if found is None:
        if ended:
            return None, {}
        why = complaints[0] if complaints else "it has no checkpoint yet"
        raise CheckpointError(f"nothing to begin with in {folder}: {why}; let the run go on first")
    method = build_method(settings.without_weights(), folder / REQUIRED)
    checkpoint.load_into(method, found.model, str(folder / "checkpoints"))
    return method, found.model


def _without_encoder(method: Method, state: Mapping[str, Tensor]) -> list[str]:
    """Names of a method's weights that are not its encoder's."""
    encoder = method.encoder()
    prefix = next(name for name, module in method.named_modules() if module is encoder) + "."
    return [key for key in state if not key.startswith(prefix)]
