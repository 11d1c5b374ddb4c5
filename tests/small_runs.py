"""Runs of every command that learns or exports, small enough for a test: settings, what they leave, hooks into them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dsdmae_cli.artifacts.subject import taken_over
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import FINETUNE, PROBE, Loaded
from dsdmae_cli.errors import RunInterrupted
from dsdmae_cli.recipes.export import Form, Request, export
from dsdmae_cli.recipes.finetune import finetune
from dsdmae_cli.recipes.probe import probe
from dsdmae_cli.runs.run import Run

# -- pre-training

# Three epochs of five steps, each of three micro-batches; windows of four steps never end with an epoch. Everything
# that is random is switched on.
RANDOM = (
    "train.epochs=3", "train.log_every=4", "train.micro_batch=3", "train.knn_every=1", "backbone.depth=2",
    "backbone.drop_path=0.3", "method.noise_std=[0.5, 1.5]", "method.mask_ratio=[0.5, 0.9]", "data.flip=true",
    "data.shift=1", "data.crop_scale=[0.5, 1]",
)  # fmt: skip
PLACES = {
    "resident": ("data.placement=resident",),
    "streaming": ("data.placement=streaming", "data.workers=0"),
    "workers": ("data.placement=streaming", "data.workers=1"),
}
STEPS = 15
CURVES = {f"{name}.svg" for name in ("loss", "accuracy", "rank", "spread", "learning-rate", "gradient")}
MOMENTS = [f"{name}-step-{step:08d}.png" for name in ("restored", "patches") for step in (0, 4, 8, 11, 15)]
FIGURES = {"restored.png", "patches.png", *MOMENTS}
CHECKPOINT = ("manifest.json", "model.safetensors", "state.json", "training.safetensors")
FILES = {
    ".lock", "settings.toml", "run.json", "metrics.jsonl", "result.json", "encoder.safetensors", "report.html",
    "figures", *(f"figures/{name}" for name in FIGURES | CURVES), "checkpoints",
    *(f"checkpoints/step-{step:08d}" for step in (10, 15)),
    *(f"checkpoints/step-{step:08d}/{name}" for step in (10, 15) for name in CHECKPOINT),
}  # fmt: skip


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something as soon as a step is done."""
    stepped = Run.stepped

    def and_act(self: Run, now: int) -> None:
        stepped(self, now)
        if now == step:
            act()

    monkeypatch.setattr(Run, "stepped", and_act)


@contextmanager
def stopped_after(step: int, said: str | None = None) -> Iterator[None]:
    """In it a run gets SIGTERM as soon as a step is done, saves and ends, in words that match `said` (None = any)."""
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(RunInterrupted, match=said):
            yield


# -- fine-tuning, probing, exporting

TUNED_QUICKLY = (
    "train.device=cpu", "train.precision=fp32", "train.epochs=2", "train.batch_size=8", "train.log_every=1",
    "optim.lr=1e-3", "optim.warmup_epochs=0.5",
)  # fmt: skip
PROBED_QUICKLY = ("train.device=cpu", "train.precision=fp32", "train.epochs=3", "train.batch_size=16")


def tuning(subject: str | Path, *assignments: str, like: Path | None = None, preset: str | None = None) -> Loaded[Any]:
    """The settings of a short fine-tuning, with what the subject brings."""
    values, origin = taken_over(str(subject), str(like) if like else None)
    values = {**values, "finetune": {"start": str(subject)}}
    given = [*TUNED_QUICKLY, *assignments]
    return compose(FINETUNE, preset=preset, assignments=given, environ={}, base=(values, origin))


def tune(
    subject: str | Path,
    out: Path,
    *assignments: str,
    like: Path | None = None,
    resume: bool = False,
    preset: str | None = None,
) -> dict[str, Any]:
    """A short fine-tuning in this process; what result.json holds."""
    loaded = tuning(subject, *assignments, like=like, preset=preset)
    return finetune(loaded, out=out, resume=resume, overridden=False, as_json=True)


def judge(
    subject: str | Path,
    out: Path,
    *assignments: str,
    like: Path | None = None,
    quick: Sequence[str] = PROBED_QUICKLY,
) -> dict[str, Any]:
    """A short probe in this process; what result.json holds."""
    values, origin = taken_over(str(subject), str(like) if like else None)
    values = {**values, "probe": {"start": str(subject)}}
    loaded = compose(PROBE, assignments=[*quick, *assignments], environ={}, base=(values, origin))
    return probe(loaded, out=out, as_json=True)


def exported(subject: object, form: Form, out: Path, **more: object) -> dict[str, object]:
    """`dsdmae export SUBJECT --to FORM --out OUT` in this process; what it says as JSON."""
    return export(Request(str(subject), form, out, **more))  # type: ignore[arg-type]


# -- denoising

# A denoiser of 16x16 pixels, before anything is learned.
UNTAUGHT = (
    "data.dataset=folder:somewhere/pictures",
    "data.image_size=16",
    "backbone.patch_size=4",
    "backbone.embed_dim=32",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "method.decoder_depth=1",
    "method.regressor_depth=1",
    "method.residual=true",
)
