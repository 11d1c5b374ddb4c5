"""--dry-run: what a run would be, worked out without writing anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dsdmae_cli import distributed, plugins
from dsdmae_cli.config.resolve import colour_notes
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import in_common, open_dataset, place
from dsdmae_cli.data.source import Batching, Unreadable, seeded
from dsdmae_cli.data.square import require_some
from dsdmae_cli.data.twins import find_twins, twins_row
from dsdmae_cli.errors import DataError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.optim import build_optimizer
from dsdmae_cli.report import duration, number_of
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.observers.trackers import check_usable
from dsdmae_cli.runs.prerequisite import has_ended, required_folder, requirement
from dsdmae_cli.runs.rundir import RunDir
from dsdmae_cli.runtime import Runtime, autocast, choose_attention, choose_device, choose_runtime
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedSettings
from dsdmae_cli.settings.size import Size, height_width, size_words
from dsdmae_cli.work import measure_work, state_bytes

# Beyond this much work a timed micro-batch would keep the person waiting.
_TIMED_GFLOP = 400


@dataclass(frozen=True)
class Plan:
    """A run in numbers.

    Attributes:
        memory_gib: of a process, on its device.
        common_gib: of that, what all processes of a machine have in common.
    """

    dataset: str
    train_images: int
    test_images: int | None
    placement: str
    image_size: Size
    tokens: int
    encoder_parameters: int
    parameters: int
    epochs: int
    steps: int
    effective_batch: int
    micro_batch: int
    learning_rate: float
    gflop_per_image: float
    memory_gib: float
    device: str
    precision: str
    compile: bool
    processes: int
    sharded: bool
    unshared: str | None
    common_gib: float
    estimated_seconds: float | None
    beforehand: str | None = None
    account: dict[str, str] | None = None
    data_notes: tuple[str, ...] = ()
    optimizer: str = "AdamW"

    def json(self) -> dict[str, Any]:
        """As an object for scripts."""
        return asdict(self)

    def gone_on_with(self, run: Path) -> Plan:
        """The plan of a run that is there: with a word where it has finished, so that nothing is left to do."""
        if RunDir(run).finished() is None:
            return self
        return replace(self, data_notes=(*self.data_notes, f"finished already, in {run}: --resume trains nothing"))

    def _time(self) -> str:
        if self.estimated_seconds is None:
            return "unknown until it runs"
        one = f", {duration(self.estimated_seconds / self.epochs)} an epoch" if self.epochs > 1 else ""
        return f"about {duration(self.estimated_seconds)}{one}"

    def text(self) -> str:
        """As lines for people."""
        test = f", {self.test_images:,} to evaluate" if self.test_images is not None else ""
        rows = {
            "dataset": f"{self.dataset}: {number_of(self.train_images, 'image')} to train{test}, {self.placement}",
            "image": f"{size_words(self.image_size)} px, {self.tokens} tokens",
            "parameters": f"{self.encoder_parameters / 1e6:.2f} M kept, {self.parameters / 1e6:.2f} M trained",
            "steps": f"{self.steps:,} ({number_of(self.epochs, 'epoch')} of {self.steps // self.epochs:,})",
            "batch": f"{self.effective_batch} in micro-batches of {self.micro_batch}",
            "learning rate": f"{self.learning_rate:.3g} at its peak, {self.optimizer}",
            "work": f"{self.gflop_per_image:.3g} GFLOP per image and step",
            "memory": f"about {self.memory_gib - self.common_gib:.2g} GiB on {self.device}",
            "device": f"{self.device}, {self.precision}{', compiled' if self.compile else ''}",
            "time": self._time(),
        }
        if self.sharded or self.common_gib:
            rows["memory"] += f", of each of {self.processes} processes"
        if self.common_gib:
            rows["memory"] += f", and {self.common_gib:.2g} GiB of images once on each machine"
        if self.sharded:
            rows["weights"] = "divided among the processes, with gradients and moments (train.shard)"
        if self.unshared is not None:
            rows["weights"] = self.unshared
        if self.beforehand is not None:
            rows["beforehand"] = self.beforehand
        if self.account is not None:
            rows = {"dataset": rows.pop("dataset"), **self.account, **rows}
        lines = [f"{name:<14}{value}" for name, value in rows.items()]
        return "\n".join([*lines[:1], *(f"{'':<14}{note}" for note in self.data_notes), *lines[1:]])


def make_plan(
    settings: Any,
    method: Method | None = None,
    split: str = "train",
    *,
    timed: bool = True,
    build: Callable[[], Method] | None = None,
    train: ImageDataset | None = None,
    further: Mapping[str, str] | None = None,
) -> Plan:
    """Work out the plan of resolved settings of a command that trains, in all processes that would train.

    Args:
        method: what is trained; None = the pre-training method that the settings name.
        split: of the dataset that is trained on.
        timed: run a micro-batch on a CPU to estimate the time, which takes some itself.
        build: makes the pre-training method, where that takes more than settings.
        train: the images that are trained on, where they are not all of the split.
        further: rows of the account beside those of the images.

    Raises:
        DataError: the dataset is not here and its official size is not known, it has no image to hold out, or more of
            its images cannot be read than a run passes over.
        PluginError, SettingsError: a tracker is not there.
    """
    with distributed.process_group(choose_device(settings.train.device)):
        return _plan(settings, method, split, timed, build, train, further or {})


def _plan(
    settings: Any,
    method: Method | None,
    split: str,
    timed: bool,
    build: Callable[[], Method] | None,
    train: ImageDataset | None,
    further: Mapping[str, str],
) -> Plan:
    check_usable(settings.train.trackers)
    beforehand = _beforehand(settings) if method is None else None
    if method is None:
        method = build_method(settings) if build is None else build()
    found = _data(settings.data, choose_device(settings.train.device), split)
    runtime = choose_runtime(settings, method, held=found.num_bytes)
    train_images = found.train if train is None else len(train)
    batching = Batching(train_images, settings.train.batch_size, runtime.micro_batch, settings.train.seed)
    world = distributed.world_size()
    shards, recomputed = world if runtime.sharded else 1, settings.train.checkpoint_activations
    flop, memory = _work_and_memory(method, runtime, recomputed=recomputed, shards=shards)
    steps = batching.steps_per_epoch * settings.train.epochs
    account = _account(found, settings.data, further) if timed else None
    per_step = _seconds_per_step(method, settings, runtime, flop) if timed else None
    return Plan(
        dataset=settings.data.dataset,
        train_images=train_images,
        test_images=found.test,
        placement=found.placement,
        image_size=settings.data.image_size,
        tokens=method.encoder().num_tokens,
        encoder_parameters=sum(p.numel() for p in method.encoder().parameters()),
        parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        epochs=settings.train.epochs,
        steps=steps,
        effective_batch=settings.train.batch_size,
        micro_batch=runtime.micro_batch,
        learning_rate=settings.optim.lr,
        gflop_per_image=flop / 1e9,
        memory_gib=(memory + found.num_bytes) / 2**30,
        device=str(runtime.device),
        precision=runtime.precision,
        compile=runtime.compile,
        processes=world,
        sharded=runtime.sharded,
        unshared=runtime.unshared,
        common_gib=found.num_bytes / 2**30 if in_common(runtime.device) else 0.0,
        estimated_seconds=per_step * steps if per_step else None,
        beforehand=beforehand,
        account=account,
        data_notes=(*found.notes, *colour_notes(settings)),
        optimizer=settings.optim.optimizer_name,
    )


def _work_and_memory(method: Method, runtime: Runtime, *, recomputed: bool, shards: int) -> tuple[float, float]:
    """(FLOP of a step for each image, bytes that a micro-batch and the training's state take on the device)."""
    flop, activation_bytes = measure_work(method)
    fused = runtime.device.type == "cuda"
    if fused or recomputed:  # which changes the memory alone
        activation_bytes = measure_work(method, fused_attention=fused, recomputed=recomputed)[1]
    halved = 1 if runtime.precision == "fp32" else 0.5
    return flop, state_bytes(method, shards) + activation_bytes * halved * runtime.micro_batch


def _beforehand(settings: ResolvedSettings) -> str | None:
    """What the method needs: where that is, or that it will be trained first; None if it needs nothing."""
    needs = requirement(settings)
    if needs is None:
        return None
    try:
        data = settings.data.model_copy(update={"download": False})
        folder, loaded = required_folder(settings.model_copy(update={"data": data}), needs)
    except DataError:
        return f"a {needs.method}, trained first, not counted above"
    if has_ended(folder):
        return f"the {needs.method} {folder}"
    epochs = loaded.settings.train.epochs
    return f"a {needs.method}, trained first, for {number_of(epochs, 'epoch')}, not counted above"


def _account(found: _Data, settings: ResolvedData, further: Mapping[str, str]) -> dict[str, str] | None:
    if not found.splits:
        return None
    account = take_account(found.splits, settings.range, decoded=True)
    if account.unreadable and not account.kinds:
        name, reason = next(iter(account.unreadable.items()))
        raise DataError(f"none of the {account.looked_at:,} images that were looked at can be read ({name}: {reason})")
    for split, dataset in reversed(found.splits.items()):  # so many that a run would stop, in its order
        unreadable = Unreadable(len(dataset), settings, split)
        for name, reason in account.unreadable_of.get(split, {}).items():
            unreadable.add(name, reason)
        require_some(len(dataset) - len(unreadable), len(dataset), unreadable)
    twins = find_twins(*found.splits.values()) if len(found.splits) > 1 else None
    return {**account.rows(), **twins_row(twins), **further}


@dataclass(frozen=True)
class _Data:
    """Numbers of images, where they will live, and the splits themselves where they are here."""

    train: int
    test: int | None
    placement: str
    num_bytes: int
    splits: dict[str, ImageDataset] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were found."""
        return next((dataset.notes for dataset in self.splits.values()), ())


def _data(settings: ResolvedData, device: torch.device, split: str) -> _Data:
    here = settings.model_copy(update={"download": False})
    try:
        train = open_dataset(here, split)
    except DataError:
        official = plugins.find("dataset", settings.dataset).spec.num_images
        if not (settings.download and official and split == "train"):
            raise
        return _Data(official["train"], official.get("test"), "not downloaded yet", 0)
    placement = place(train, settings, device)
    splits = {"training": train}
    try:
        splits["held-out"] = open_dataset(here, "test")
    except DataError:
        if not (settings.download and plugins.find("dataset", settings.dataset).spec.num_images):
            raise  # it will not be there when the run asks for it either
        return _Data(len(train), None, placement.word, placement.num_bytes, splits)
    return _Data(len(train), len(splits["held-out"]), placement.word, placement.num_bytes, splits)


def _seconds_per_step(method: Method, settings: Any, runtime: Runtime, flop: float) -> float | None:
    """From one timed micro-batch and one step of the optimiser on a CPU; a GPU's first steps say little."""
    if runtime.device.type != "cpu" or flop * runtime.micro_batch / 1e9 > _TIMED_GFLOP:
        return None
    choose_attention(method, runtime)
    optimizer = build_optimizer(method, settings.optim)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    shape = (runtime.micro_batch, method.encoder().in_chans, *height_width(method.encoder().image_size))
    images = method.as_views(torch.rand(shape) * 2 - 1)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        corruption = method.corrupt(images, seeded(runtime.device, 0))
        with autocast(runtime.device, runtime.precision):
            loss = method(images, corruption)["loss"]
        loss.backward()
        of_images = time.perf_counter() - began
        optimizer.step()
        seconds = of_images * settings.train.batch_size / runtime.micro_batch + time.perf_counter() - began - of_images
    return seconds
