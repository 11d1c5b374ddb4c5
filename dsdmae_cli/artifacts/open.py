"""Open the encoder that a person named (subject.py says how): a run's, a file's, published weights, or new ones.

Runs and files that this program wrote are opened in trained.py, anybody else's weights in foreign.py.
"""

from __future__ import annotations

from dataclasses import replace

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.artifacts.foreign import open_foreign
from dsdmae_cli.artifacts.opened import Opened, Request, fill, finished
from dsdmae_cli.artifacts.subject import Subject, parse, published_backbone, published_size
from dsdmae_cli.artifacts.trained import open_checkpoint, open_file
from dsdmae_cli.backbone import Pixels
from dsdmae_cli.config.resolve import RGB, check_taken, resolve_backbone
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.settings.judge import PIXELS, SCRATCH
from dsdmae_cli.settings.models import BackboneSettings, DataSettings
from dsdmae_cli.settings.size import Size


def open_encoder(
    subject: Subject | str,
    data: DataSettings | None,
    *,
    backbone: BackboneSettings | None,
    image_size: Size | None,
    seed: int,
    head: bool = False,
    teacher: bool = False,
    adapt: bool = False,
) -> Opened:
    """Open what a person named.

    Args:
        subject: parsed, or as it was typed.
        data: what it will look at; gives the image size of `scratch`.
        backbone: the architecture of `scratch` and of weights that say nothing of theirs; settings of published
            weights (pretrained = false for random ones); for the others only drop_path, which is no part of what was
            trained: what else is set must be as it was. None = not given.
        image_size: of the images it should take; None = those it was trained on.
        seed: of the weights that are drawn.
        head: keep the head of a fine-tuned network in `Opened.tuned`; otherwise it is left out, and a note says so.
        teacher: the moving average that a run's method kept, out of its newest checkpoint.
        adapt: bring its first layer to the channels of `data` where it was trained with others, and say so in a note,
            as for a network that will go on learning; otherwise it is refused.

    Raises:
        CheckpointError: no such run or file, it is damaged, or the weights do not fit.
        SettingsError: what was given does not go together, or the image size cannot be.
        PluginError: a plugin is missing, or published weights cannot be fetched.
    """
    parsed = parse(subject) if isinstance(subject, str) else subject
    request = Request(parsed, data, backbone, image_size, seed, head, teacher)
    if not adapt or parsed.path is None:  # published weights are adapted by those who publish them
        return _opened(request)
    channels = request.channels()
    if backbone is not None and backbone.in_chans == channels:  # resolved for the images; the weights' own may differ
        backbone = backbone.model_copy(update={"in_chans": "auto"})
    found = _opened(replace(request, data=None, backbone=backbone, image_size=request.wanted_size()))
    return found if found.encoder.in_chans == channels else _on_channels(found, channels, request)


def adapted_words(was: int, now: int) -> str:
    """What is said of weights for images of another number of channels."""
    return f"first layer is adapted from {was} to {now} channel{'' if now == 1 else 's'}"


def _on_channels(opened: Opened, channels: int, request: Request) -> Opened:
    """The same weights in a network for images of another number of channels."""
    text, was = request.subject.text, opened.encoder.in_chans
    spec = plugins.find("backbone", opened.backbone.name).spec
    if not spec.any_channels:
        check_taken(was, channels, text)
    backbone = opened.backbone.without_weights().model_copy(update={"in_chans": channels})
    encoder = build_backbone(backbone, opened.encoder.image_size, request.seed)
    fill(encoder, encoder.adapted(opened.encoder.timm_state()), text)
    note = f"the {adapted_words(was, channels)}: {text} learned from images of {was}"
    return replace(opened, encoder=encoder, backbone=backbone, notes=(*opened.notes, note))


def _opened(request: Request) -> Opened:
    parsed = request.subject
    if request.teacher:
        if parsed.kind != "run" or parsed.path is None:
            raise SettingsError(f"probe.teacher = true needs a run's directory with its checkpoints, not {parsed.text}")
        return open_checkpoint(parsed.settings(), parsed.path, request)
    if parsed.weights is not None:
        settings = parsed.settings()
        if settings is None:
            return open_foreign(parsed.weights, request)
        return open_file(settings, parsed.weights, request)
    if parsed.path is not None:
        return open_checkpoint(parsed.settings(), parsed.path, request)
    without_files = {"published": _open_published, SCRATCH: _open_scratch, PIXELS: _open_pixels}
    return without_files[parsed.kind](request)


def _open_published(request: Request) -> Opened:
    name, given = request.subject.text, request.backbone
    if given is not None and given.name != name:
        raise SettingsError(f"--backbone {given.name} contradicts {name}; leave it out")
    backbone = published_backbone(name, given)
    if backbone.in_chans == "auto":
        backbone = backbone.model_copy(update={"in_chans": request.channels()})
    size = request.image_size or published_size(backbone)
    opened = finished(build_backbone(backbone, size, request.seed), backbone, request)
    if getattr(backbone, "pretrained"):  # noqa: B009  (a setting of the plugin's own class)
        if backbone.in_chans != RGB:
            note = f"the {adapted_words(RGB, opened.encoder.in_chans)}: {name} learned from RGB images"
            return replace(opened, notes=(*opened.notes, note))
        return opened
    return replace(opened, notes=(*opened.notes, f"{name} with random weights: pretrained = false"))


def _open_scratch(request: Request) -> Opened:
    backbone = request.backbone or BackboneSettings.model_validate({})
    if getattr(backbone, "pretrained", False):
        raise SettingsError(
            f"{SCRATCH} means random weights; leave backbone.pretrained = true out, or name {backbone.name}"
        )
    size = _needed_size(request)
    spec = plugins.find("backbone", backbone.name).spec
    if not isinstance(backbone, spec.settings):
        backbone = spec.settings(**backbone.model_dump())
    backbone = resolve_backbone(backbone, size, request.channels())
    return finished(build_backbone(backbone, size, request.seed), backbone, request)


def _open_pixels(request: Request) -> Opened:
    none = BackboneSettings.model_validate({"name": PIXELS})
    subject = request.subject
    pixels = Pixels(_needed_size(request), request.channels())
    return Opened(pixels, subject.kind, subject.name, none, checkpoint.weights_sha256({}))


def _needed_size(request: Request) -> Size:
    size = request.wanted_size()
    if size is None:
        raise SettingsError(f"{request.subject.text} needs the side of its images: give --dataset or --image-size")
    return size
