"""`dsdmae probe`: what a frozen backbone's features are worth, in figures that can be compared and published."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation import linear, logistic
from dsdmae_cli.evaluation.attentive import attentive_logits
from dsdmae_cli.evaluation.dataset_features import dataset_features
from dsdmae_cli.evaluation.features import check_pools
from dsdmae_cli.evaluation.judging import base_result, draw, open_judged
from dsdmae_cli.evaluation.knn import knn_probabilities
from dsdmae_cli.evaluation.metrics import Scores, score, spread
from dsdmae_cli.evaluation.split import HeldOut, few_shot, hold_out
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.report import Report, duration, make_report
from dsdmae_cli.runs.rundir import RESULT, RunDir, default_path, environment
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.settings.judge import ProbeSettings
from dsdmae_cli.settings.resolved import ResolvedProbeSettings
from dsdmae_cli.work import encoder_flops


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        logits: [m, c] of the test images.
        protocol: what was done, in words.
        chosen: the setting that was chosen on held-out images: its name and value. None = there was no choice.
        held_out: held-out accuracy by value.
        notes: what a person should know.
    """

    logits: Float[Tensor, "m c"]
    protocol: str
    chosen: tuple[str, float] | None
    held_out: dict[float, float]
    notes: tuple[str, ...]
    curves: linear.Curves | None = None


@dataclass(frozen=True)
class Material:
    """Features and labels of the training and test images that could be read."""

    train: Float[Tensor, "n d"]
    train_labels: Int64[Tensor, " n"]
    test: Float[Tensor, "m d"]
    test_labels: Int64[Tensor, " m"]
    test_indices: Int64[Tensor, " m"]
    num_classes: int


def probe(loaded: Loaded[ProbeSettings], *, out: Path | None, as_json: bool) -> dict[str, Any]:
    """Judge a frozen encoder and leave result.json and figures.

    Args:
        out: a new or empty directory; None = one of its own under the user's data directory.

    Returns:
        What result.json holds.
    """
    report = make_report(as_json=as_json, main_process=True)
    settings = resolve(loaded.settings)
    path = out or default_path(datetime.now(), f"probe-{settings.probe.kind}", settings.backbone.name, settings.data)
    run = RunDir(path)
    run.check_free()
    try:
        subject = _Subject(settings, report)  # before a directory is made: most mistakes are found here
        run.create(loaded.settings)
        return subject.judge(run)
    except BaseException:  # Ctrl-C too: nothing was found, so nothing should be in the way of another try
        if run.held:
            run.abandon()
        raise
    finally:
        run.release()


class _Subject:
    """An encoder and the data that it is judged by."""

    def __init__(self, settings: ResolvedProbeSettings, report: Report) -> None:
        self.settings, self.report = settings, report
        self.began = time.monotonic()
        self.device = choose_device(settings.train.device)
        self.precision = choose_precision(settings.train.precision, self.device)
        self.judged = open_judged(settings.data)
        size = settings.data.image_size
        subject = parse(settings.probe.start)
        self.opened = open_encoder(
            subject, settings.data, backbone=settings.backbone, image_size=size, seed=settings.train.seed
        )
        for note in self.opened.notes:
            report.note(note)
        check_pools(self.opened.encoder, [settings.probe.pool])
        if settings.probe.kind == "attentive" and settings.probe.few_shot:
            raise SettingsError("--few-shot goes with linear, knn and logistic probes; leave it out for attentive")

    def judge(self, run: RunDir) -> dict[str, Any]:
        settings = self.settings
        self.report.note(
            f"{settings.probe.kind} probe of {self.opened.name} on {settings.data.dataset}: {len(self.judged.train)}"
            f" training and {len(self.judged.test)} test images on {self.device} in {self.precision}"
        )
        self.opened.encoder.to(self.device)
        material = self.material()
        split = self._split(material.train_labels)
        if settings.probe.few_shot:
            result, scores, probed = self._few_shot(material)
        else:
            probed = self._probe(material, split)
            result, scores = {}, score(probed.logits, material.test_labels)
        for note in probed.notes:
            self.report.warn(note)
        result = self._result(run, probed, scores, len(material.train)) | result
        draw(
            run.figures, self.judged, scores, probed.logits, material.test_labels, material.test_indices,
            material.test, settings.data,
        )  # fmt: skip
        self._draw_choice(run, probed)
        run.write_json("run.json", environment() | {"run": "probe", "device": str(self.device),
                       "precision": self.precision, "resolved_settings": tables(settings)})  # fmt: skip
        run.write_json(RESULT, result)
        return result

    # -- features

    def material(self) -> Material:
        """Features of both splits, from the cache where they are."""
        parts = []
        for name in ("train", "test"):
            dataset = getattr(self.judged, name)
            unreadable = Unreadable(len(dataset), self.settings.data)
            pool = self.settings.probe.pool
            cached = dataset_features(
                self.opened.encoder, dataset, self.settings.data.interpolation, [pool], self.device, self.precision,
                unreadable, cache=self.settings.probe.cache,
            )  # fmt: skip
            if cached.note:
                self.report.warn(cached.note)
            found = cached.features
            for line in unreadable.lines():
                self.report.warn(f"skipped an unreadable image: {line}")
            labels = torch.from_numpy(dataset.labels)[found.indices]
            parts.append((found.by_pool[self.settings.probe.pool], labels, found.indices))
        (train, train_labels, _), (test, test_labels, indices) = parts
        return Material(train, train_labels, test, test_labels, indices, len(self.judged.classes))

    def _without_choice(self) -> _Subject:
        """The same with one customary value of what else is chosen: MAE's rate, one neighbour, C = 1."""
        rate = {"lars": 0.1, "sgd": 0.1, "adamw": 1e-3}[self.settings.probe.optimizer]
        single = self.settings.probe.model_copy(update={"learning_rates": (rate,), "k": (1,), "c": (1.0,)})
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"probe": single})
        return other

    def _split(self, labels: Int64[Tensor, " n"]) -> HeldOut:
        return hold_out(labels.numpy(), self.settings.probe.validation, self.settings.train.seed)

    # -- kinds

    def _probe(self, material: Material, split: HeldOut) -> Probed:
        return _KINDS[self.settings.probe.kind](self, material, split)

    def _batch_size(self, num_images: int) -> int:
        """The batch of a linear or attentive probe."""
        wanted = self.settings.train.batch_size
        return wanted if wanted != "auto" else min(1024, 1 << max(16, num_images // 16).bit_length() - 1)

    def _linear(self, m: Material, split: HeldOut) -> Probed:
        s, t = self.settings.probe, self.settings.train
        batch_size = self._batch_size(len(m.train))
        rates = linear.BASE_LRS[s.optimizer] if s.learning_rates == "auto" else s.learning_rates
        protocol = linear.Protocol(s.optimizer, t.epochs, t.warmup_epochs, batch_size, seed=t.seed)
        found = linear.select_and_fit(
            m.train, m.train_labels, split, m.test, m.num_classes, rates, protocol, self.device
        )
        words = (
            f"BatchNorm without affine terms and a linear layer on {s.pool}-pooled features of clean images, backbone"
            f" frozen in eval mode; {s.optimizer.upper()}, {t.epochs} epochs, batch {batch_size}, base rate"
            f" {found.chosen:g}{self._how_chosen(len(rates), split)}; the last epoch is the result"
        )
        chosen = ("base learning rate", found.chosen)
        return Probed(found.logits, words, chosen, found.held_out, found.notes, found.selection)

    def _knn(self, m: Material, split: HeldOut) -> Probed:
        ks = self.settings.probe.k
        fit, held = (torch.from_numpy(part) for part in split)
        held_out: dict[float, float] = {}
        if len(ks) > 1:
            logistic.require_held_out(split, "k", ks)
            votes = knn_probabilities(
                m.train[fit], m.train_labels[fit], m.train[held], m.num_classes, ks, device=self.device
            )
            truth = m.train_labels[held]
            held_out = {k: float((p.argmax(dim=1) == truth).double().mean()) for k, p in votes.items()}
        k = int(max(held_out, key=held_out.__getitem__)) if held_out else ks[0]
        answers = knn_probabilities(m.train, m.train_labels, m.test, m.num_classes, (k,), device=self.device)[k]
        words = (
            f"the {k} nearest neighbours by cosine of centred {self.settings.probe.pool}-pooled features, votes"
            f" weighted by exp(cosine/0.07); k{self._how_chosen(len(ks), split, 'with neighbours among')}"
        )
        return Probed(answers.log(), words, ("k", k), held_out, ())

    def _logistic(self, m: Material, split: HeldOut) -> Probed:
        cs = self.settings.probe.c
        found = logistic.select_and_fit(m.train, m.train_labels, split, m.test, m.num_classes, cs, self.device)
        words = (
            f"logistic regression (L-BFGS, L2) on standardised {self.settings.probe.pool}-pooled features,"
            f" C = {found.chosen:g}{self._how_chosen(len(cs), split)}"
        )
        return Probed(found.logits, words, ("C", found.chosen), found.held_out, found.notes)

    def _attentive(self, m: Material, split: HeldOut) -> Probed:
        batch_size = self._batch_size(len(m.train))
        found = attentive_logits(
            self.settings, self.opened.encoder, self.judged, split, batch_size, self.device, self.precision, self.report
        )
        words = (
            "one cross-attention block with a learned query and a linear layer on all tokens, backbone frozen in eval"
            f" mode; AdamW, {self.settings.train.epochs} epochs, batch {batch_size}, rate"
            f" {found.chosen:g}{self._how_chosen(len(found.held_out), split)}; the last epoch is the result"
        )
        # The map of features and the pictures are of the images that could be read, which are those of `m`.
        return Probed(found.logits[m.test_indices], words, ("learning rate", found.chosen), found.held_out, ())

    def _how_chosen(self, number: int, split: HeldOut, then: str = "trained anew on") -> str:
        if number < 2:
            return ""
        return (
            f" chosen from {number} on {len(split.held)} held-out training images, then {then} all"
            f" {len(split.fit) + len(split.held)}"
        )

    # -- few labels

    def _few_shot(self, m: Material) -> tuple[dict[str, Any], Scores, Probed]:
        """Repeated draws for each share; scores and figures of the largest share's first draw."""
        settings, rows, shown = self.settings, [], None
        for share in sorted(settings.probe.few_shot):
            scores = []
            for number in range(settings.probe.draws):
                chosen = torch.from_numpy(few_shot(m.train_labels.numpy(), share, settings.train.seed, number))
                part = replace(m, train=m.train[chosen], train_labels=m.train_labels[chosen])
                split = self._split(part.train_labels)
                # With a single image a class there is nothing to choose on.
                subject = self if len(split.held) else self._without_choice()
                probed = subject._probe(part, split)
                scores.append(score(probed.logits, m.test_labels))
                shown = (scores[-1], probed) if number == 0 else shown
            of = spread([s.top1 for s in scores])
            rows.append(
                {"share": share, "images": len(chosen), "draws": len(of.values), "top1": of.mean, "std": of.std,
                 "values": list(of.values)}
            )  # fmt: skip
            self.report.note(f"{share:.3g} of the labels ({len(chosen)} images): {_pm(of.mean, of.std)}")
        assert shown is not None
        return {"few_shot": rows}, *shown

    # -- what is left

    def _result(self, run: RunDir, probed: Probed, scores: Scores, used: int) -> dict[str, Any]:
        seen = len(self.judged.train) + len(self.judged.test)
        return {
            "run": str(run.path),
            **base_result("probe", probed.protocol, self.opened.described(), self.settings, self.judged, scores),
            "probe": self.settings.probe.kind,
            "pool": self.settings.probe.pool,
            "epochs": self.settings.train.epochs if self.settings.probe.kind in ("linear", "attentive") else None,
            "chosen": dict([probed.chosen]) if probed.chosen else None,
            "held_out": {f"{value:g}": accuracy for value, accuracy in probed.held_out.items()},
            "features_width": self.opened.encoder.width,
            "flops": encoder_flops(self.opened.encoder) * seen,
            "seconds": round(time.monotonic() - self.began, 1),
            "notes": list(probed.notes),
            "figures": str(run.figures),
        }

    def _draw_choice(self, run: RunDir, probed: Probed) -> None:
        if probed.chosen is None or len(probed.held_out) < 2:
            return
        name, value = probed.chosen
        figures.selection(probed.held_out, value, name, run.figures / "choice.png")
        if probed.curves is not None:
            rates = probed.curves.base_lrs
            labels = [f"{rate:g}" for rate in rates]
            chosen = int(np.argmin([abs(rate - value) for rate in rates]))
            figures.head_curves(probed.curves.loss, probed.curves.held_out, labels, chosen, run.figures / "curves.png")


_KINDS: dict[str, Callable[[_Subject, Material, HeldOut], Probed]] = {
    "linear": _Subject._linear,
    "knn": _Subject._knn,
    "logistic": _Subject._logistic,
    "attentive": _Subject._attentive,
}


def _pm(mean: float, std: float | None) -> str:
    return f"{mean:.1%}" + (f" ± {std:.1%}" if std is not None else "")


def plan_text(settings: ResolvedProbeSettings) -> tuple[dict[str, Any], str]:
    """--dry-run: what resolved settings amount to, as an object and as lines; nothing is computed or written."""
    subject = _Subject(settings, Report())
    judged, encoder = subject.judged, subject.opened.encoder
    flop = encoder_flops(encoder)
    plan = {
        "subject": subject.opened.name,
        "kind": settings.probe.kind,
        "dataset": settings.data.dataset,
        "train_images": len(judged.train),
        "test_images": len(judged.test),
        "classes": len(judged.classes),
        "image_size": encoder.image_size,
        "width": encoder.width,
        "gflop_per_image": flop / 1e9,
        "device": str(subject.device),
        "precision": subject.precision,
    }
    text = (
        f"{plan['kind']} probe of {plan['subject']} on {plan['dataset']}: {len(judged.train)} training and"
        f" {len(judged.test)} test images of {len(judged.classes)} classes\n"
        f"{encoder.width} features of {encoder.image_size}x{encoder.image_size} px, {flop / 1e9:.3g} GFLOP an image, on"
        f" {subject.device} in {subject.precision}"
    )
    return plan, text


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    low, high = result["top1_interval"]
    lines = [
        f"{result['subject']} on {result['dataset']}, {result['probe']} probe",
        f"top-1          {result['top1']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        f"top-{result['top5_k']}          {result['top5']:.1%}",
    ]
    if "few_shot" in result:
        lines = [lines[0]] + [
            f"{row['share']:<14.3g} {_pm(row['top1'], row['std'])} over {row['draws']} draws of {row['images']} images"
            for row in result["few_shot"]
        ]
    lines += [
        f"protocol       {result['protocol']}",
        f"figures        {result['figures']}",
        f"time           {duration(result['seconds'])}",
    ]
    return "\n".join(lines)
