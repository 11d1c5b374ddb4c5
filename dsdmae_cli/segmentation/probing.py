"""What `dsdmae probe` does where a probe labels pixels: open, tokens, the probe, its scores, pictures, what is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli import plugins
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.open import choose
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.dense import DenseData, DenseResult
from dsdmae_cli.evaluation.dense_features import Lens, Patches, cuts, patches, seen
from dsdmae_cli.evaluation.inner import candidates, seen_in_words
from dsdmae_cli.evaluation.judging import base_result, warn_of_twins
from dsdmae_cli.evaluation.overlap import COUNTS
from dsdmae_cli.evaluation.probes import best_of
from dsdmae_cli.evaluation.segmentation import SegmentationScores, segmentation_scores
from dsdmae_cli.evaluation.split import require_held_out
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.page.words import page_line
from dsdmae_cli.report import Report, number_of
from dsdmae_cli.runs.judged import choice, closing_lines, describe_probe, write_probe_page
from dsdmae_cli.runs.rundir import RESULT, RunDir
from dsdmae_cli.runtime import choose_device, choose_micro_batch, choose_precision
from dsdmae_cli.segmentation.answers import PICTURES, Answers, answer, score_lines
from dsdmae_cli.segmentation.drawing import draw_scores
from dsdmae_cli.segmentation.splits import MaskedSplits, hold_out_images, open_masked
from dsdmae_cli.settings.judge import PIXELS, DenseProbeSection, ProbeSettings
from dsdmae_cli.settings.resolved import ResolvedProbeSettings
from dsdmae_cli.settings.size import height_width, size_words
from dsdmae_cli.tasks.segmenter import check_cells
from dsdmae_cli.work import encoder_flops


class PatchPixels(Backbone):
    """No network: the pixels of each patch are its features, the baseline of bare colours."""

    def __init__(self, image_size: Any, patch_size: int, in_chans: int = 3) -> None:
        super().__init__()
        self.set_channels(in_chans)
        height, width = height_width(image_size)
        if height % patch_size or width % patch_size:
            raise SettingsError(
                f"data.image_size = {size_words(image_size)} is no whole number of patches of {patch_size} px; set"
                " backbone.patch_size to a divisor of both sides"
            )
        self.grid, self.width = (height // patch_size, width // patch_size), in_chans * patch_size**2
        self.image_size, self.timm_name, self.timm_kwargs = image_size, "", {}

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        rows, columns = self.grid
        b, c, height, width = images.shape
        patches = images.view(b, c, rows, height // rows, columns, width // columns)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, -1)

    def timm_state(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class DenseSubject:
    """An encoder and the images with masks that it is judged by."""

    settings: ResolvedProbeSettings
    report: Report
    device: torch.device
    precision: str
    splits: MaskedSplits
    opened: Opened
    began: float = field(default_factory=time.monotonic)

    @property
    def probe(self) -> DenseProbeSection:
        """[probe]."""
        assert isinstance(self.settings.probe, DenseProbeSection)
        return self.settings.probe

    def candidates(self) -> dict[str, Backbone]:
        """What is probed, by block."""
        return candidates(self.opened.encoder, self.probe.blocks, self.probe.input_noise)


def open_subject(settings: ResolvedProbeSettings, report: Report) -> DenseSubject:
    """What is judged and by which images; nothing is computed."""
    probe = settings.probe
    if probe.few_shot or probe.pool != "mean":
        key, other = ("few_shot", "all images") if probe.few_shot else ("pool", "every patch for itself")
        raise SettingsError(
            f"probe.{key} is for kinds that label images; {probe.kind} learns from {other}: leave it out"
        )
    device = choose_device(settings.train.device)
    splits = open_masked(settings.data, report)
    report.account(splits.rows(settings.data))
    subject = parse(probe.start)
    opened = open_encoder(
        subject, settings.data, backbone=settings.backbone, image_size=settings.data.image_size,
        seed=settings.train.seed, teacher=probe.teacher,
    )  # fmt: skip
    if subject.kind == PIXELS:
        patch, size = settings.backbone.patch_size, opened.encoder.image_size
        assert isinstance(patch, int)
        opened = replace(opened, encoder=PatchPixels(size, patch, opened.encoder.in_chans))
    for note in (*splits.train.notes, *opened.notes):
        report.note(note)
    warn_of_twins(splits.twins, report)
    found = DenseSubject(settings, report, device, choose_precision(settings.train.precision, device), splits, opened)
    for encoder in found.candidates().values():
        check_cells(encoder)
    return found


def judge(subject: DenseSubject, run: RunDir, loaded: Loaded[ProbeSettings]) -> dict[str, Any]:
    """Tokens, the probe, its scores, and all that is left in the run's directory."""
    settings, splits, probe = subject.settings, subject.splits, subject.probe
    chosen = splits.train_indices[choose(len(splits.train_indices), probe.train_images, settings.train.seed, "images")]
    subject.report.note(
        f"{probe.kind} probe of {subject.opened.name} on {settings.data.dataset}: {len(chosen):,} training and"
        f" {number_of(len(splits.test_indices), 'test image')}, windows of"
        f" {size_words(subject.opened.encoder.image_size)} px, on"
        f" {subject.device} in {subject.precision}"
    )
    subject.opened.encoder.to(subject.device).eval().requires_grad_(False)
    best, learned = _fit(subject, chosen.tolist())
    answers = _answer(subject, best.encoder, best.found)
    scores = segmentation_scores(answers.counts, answers.all_pixels)
    for note in best.found.notes:
        subject.report.warn(note)
    result = _describe(subject, run, best, learned, answers.windows, scores)
    report = subject.report
    about = describe_probe(run, loaded, settings, report, device=subject.device, precision=subject.precision)
    # Of every image, so that two probes can be compared on the same images (docs/segmentation.md).
    run.write_json(RESULT, result)
    answers.save(run.path / COUNTS)
    _draw(subject, run, best.found, scores, answers)
    write_probe_page(run, loaded, about, result, report)
    return result


@dataclass(frozen=True)
class _Best:
    """The block that was chosen, what the probe found, and held-out mean IoU by block (empty: there was one)."""

    block: str
    encoder: Backbone
    found: DenseResult
    held_out: dict[str, float]


@dataclass(frozen=True)
class _Learned:
    """How many images and windows were learned from."""

    images: int
    windows: int


def _fit(subject: DenseSubject, chosen: list[int]) -> tuple[_Best, _Learned]:
    """What the probe finds in the tokens of one block; of several, in those that are best on held-out images."""
    settings, tried = subject.settings, subject.candidates()
    fit = partial(plugins.made_by, plugins.find("probe", subject.probe.kind).spec.build, DenseResult)
    found: dict[str, DenseResult] = {}
    held_out: dict[str, float] = {}
    learned = _Learned(0, 0)
    unreadable = Unreadable(len(subject.splits.train), settings.data)
    for block, encoder in tried.items():
        data = _data(subject, encoder, chosen, unreadable)
        learned = _Learned(len(data.split.fit) + len(data.split.held), len(data.tokens))
        if len(tried) > 1:
            require_held_out(data.split, "block", range(len(tried)), of_classes=False)
        probe = settings.probe if len(data.split.held) else settings.probe.without_choice()
        found[block] = fit(probe, data)
        if len(tried) > 1:
            scores = found[block].held_out
            held_out[block] = max(scores.values()) if scores else _held_out(fit, probe, data)
    _say_unreadable(subject, unreadable)
    if len(tried) == 1:
        [(block, encoder)] = tried.items()
        return _Best(block, encoder, found[block], {}), learned
    block = best_of(held_out)
    words = f"{found[block].protocol}; tokens after block {block}, chosen from {len(tried)} by the same held-out images"
    return _Best(block, tried[block], replace(found[block], protocol=words), held_out), learned


def _held_out(fit: Any, probe: Any, data: DenseData) -> float:
    """Mean IoU on the held-out images of a probe that has nothing to choose itself, fitted to the others."""
    rows = data.windows(torch.from_numpy(data.split.fit))
    part = replace(data, tokens=data.tokens[rows], masks=data.masks[rows], images=data.images[rows])
    return data.held_out_iou(fit(probe, part).answer)


def _data(subject: DenseSubject, encoder: Backbone, chosen: list[int], unreadable: Unreadable) -> DenseData:
    settings, train = subject.settings, subject.splits.train
    coming = cuts(train, chosen, Lens.of(encoder, subject.probe), unreadable)
    through = seen(encoder, coming, subject.device, subject.precision, _batch(subject, encoder))
    learned: Patches = patches(subject.report.watched(through, "tokens of", f"{len(chosen):,} images", len(chosen)))
    return DenseData(
        tokens=learned.tokens,
        masks=learned.masks,
        images=learned.images,
        grid=encoder.grid,
        split=hold_out_images(len(learned.indices), settings.probe.validation, settings.train.seed),
        num_classes=len(subject.splits.legend.classes),
        schedule=settings.train,
        device=subject.device,
        report=subject.report,
    )


def _batch(subject: DenseSubject, encoder: Backbone) -> int:
    return max(16, choose_micro_batch("auto", 64, encoder.num_tokens, encoder.width, subject.device))


def _say_unreadable(subject: DenseSubject, unreadable: Unreadable) -> None:
    for line in unreadable.lines():
        subject.report.warn(f"skipped {line}")


def _answer(subject: DenseSubject, encoder: Backbone, found: DenseResult) -> Answers:
    """Labels of every pixel of every test image, in its mask's own size."""
    test, indices = subject.splits.test, subject.splits.test_indices.tolist()
    unreadable = Unreadable(len(test), subject.settings.data)
    answers = answer(
        test, indices, encoder, Lens.of(encoder, subject.probe), lambda tokens: found.answer(tokens), unreadable,
        subject.report, device=subject.device, precision=subject.precision, batch_size=_batch(subject, encoder),
        grid=encoder.grid, pictures=PICTURES,
    )  # fmt: skip
    _say_unreadable(subject, unreadable)
    return answers


def _describe(
    subject: DenseSubject, run: RunDir, best: _Best, learned: _Learned, windows: int, scores: SegmentationScores
) -> dict[str, Any]:
    """What result.json holds.

    Args:
        windows: of the test images.
    """
    settings, splits, found = subject.settings, subject.splits, best.found
    size, looked = best.encoder.image_size, seen_in_words(settings.probe.blocks, settings.probe.input_noise)
    protocol = f"{found.protocol}{looked}; {_looking(subject)}"
    return {
        "run": str(run.path),
        **base_result("probe", protocol, subject.opened.described(), settings, splits, scores),
        "image_size": size if isinstance(size, int) else list(size),
        "void": list(splits.legend.void),
        "train_images": learned.images,
        "train_windows": learned.windows,
        "probe": settings.probe.kind,
        **choice(best.block, best.held_out, settings.probe.input_noise, found),
        "features_width": best.encoder.width,
        "grid": list(best.encoder.grid),
        "flops": encoder_flops(best.encoder) * (learned.windows + windows),
        "seconds": round(time.monotonic() - subject.began, 1),
        "notes": list(found.notes),
        "figures": str(run.figures),
    }


def _looking(subject: DenseSubject) -> str:
    """The words of a protocol for how pictures come under the window."""
    probe, size = subject.probe, size_words(subject.opened.encoder.image_size)
    scaled = "scaled to cover the window"
    if probe.scale != "fit":
        scaled = f"scaled by {probe.scale:g}, or by more where they would not cover the window"
    return (
        f"pictures {scaled}, windows of {size} px at steps of at most {probe.stride:.2g} of a side, their scores"
        " averaged where they overlap; scored in the masks' own size, void left out"
    )


def _draw(subject: DenseSubject, run: RunDir, found: DenseResult, scores: SegmentationScores, answers: Answers) -> None:
    """Figures; one that cannot be drawn is a warning."""
    draw_scores(run.figures, subject.splits.classes, answers.shown, scores, subject.report)
    report = subject.report
    if found.chosen is not None and len(found.held_out) > 1:
        with report.spared("the picture of what was chosen"):
            name, value = found.chosen
            figures.selection(found.held_out, value, name, run.figures / "choice.png", what="mean IoU")


def plan_text(settings: ResolvedProbeSettings) -> tuple[dict[str, Any], str]:
    """--dry-run: what resolved settings amount to, as an object and as lines; nothing is computed or written."""
    subject = open_subject(settings, Report())
    *_, encoder = subject.candidates().values()
    flop, splits = encoder_flops(encoder), subject.splits
    plan = {
        "subject": subject.opened.name,
        "kind": settings.probe.kind,
        "dataset": settings.data.dataset,
        "train_images": min(len(splits.train_indices), subject.probe.train_images),
        "test_images": len(splits.test_indices),
        "classes": len(splits.legend.classes),
        "void_share": splits.masks.void_share,
        "image_size": encoder.image_size,
        "width": encoder.width,
        "gflop_per_window": flop / 1e9,
        "device": str(subject.device),
        "precision": subject.precision,
        "account": splits.rows(settings.data),
    }
    text = "\n".join(splits.lines(settings.data)) + (
        f"\n{plan['kind']} probe of {plan['subject']} on {plan['dataset']}: {plan['train_images']} training and"
        f" {number_of(len(splits.test_indices), 'test image')} with masks of {plan['classes']} classes\n"
        f"{encoder.width} features of each of {encoder.grid[0]}x{encoder.grid[1]} patches, windows of"
        f" {size_words(encoder.image_size)} px, {flop / 1e9:.3g} GFLOP each, on {subject.device} in {subject.precision}"
    )
    return plan, text


def summary(result: dict[str, Any]) -> str:
    """The lines for people: the figures, and IoU class by class."""
    lines = [f"{result['subject']} on {result['dataset']}, {result['probe']} probe", *score_lines(result)]
    return "\n".join([*lines, *closing_lines(result), *page_line(Path(result["figures"]).parent)])
