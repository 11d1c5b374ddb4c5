"""The Trainer: precision, compilation, accumulation, distribution, the guard against non-finite steps.

It trains any Method on any Source and knows none by name. What a run writes and shows is its owner's business, told
through Hooks. Three levels: fit -> epoch -> step.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsdmae_cli import distributed
from dsdmae_cli.data.source import MicroBatch, Source, derive_seed
from dsdmae_cli.errors import CheckpointError, RunFailed, is_lack_of_memory
from dsdmae_cli.methods.base import Corruption, Losses, Method, StepInfo, SupervisedMethod
from dsdmae_cli.methods.projection import is_synchronized
from dsdmae_cli.methods.recomputing import recompute
from dsdmae_cli.methods.statistics import RunningStatistics
from dsdmae_cli.optim import build_optimizer, clipped_norm, learning_rate, optimizer_tensors, restore_optimizer
from dsdmae_cli.runtime import Runtime, autocast, choose_attention, dividing_power, keep_freed_memory, seed_global
from dsdmae_cli.settings.models import LoopSettings
from dsdmae_cli.settings.resolved import ResolvedOptim
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.sharding import Sharded, joined
from dsdmae_cli.window import Window


class Hooks:
    """What the owner of a run is told, in this order within a step. These do nothing; an owner overrides some."""

    def taken_up(self) -> None:
        """Before the first step of this process, when what the last one before it left open was logged."""

    def stepped(self, step: int) -> None:
        """After every step; must be cheap."""

    def logged(self, record: dict[str, float]) -> None:
        """Means over the steps since the last record."""

    def epoch_ended(self, epoch: int) -> None:
        """After the last step of an epoch (counted from 1)."""

    def recut(self, micro_batch: int, before: int) -> None:
        """Micro-batches hold this many images from here on, since `before` did not fit."""

    def should_stop(self) -> bool:
        """Whether to leave after this step; the same answer in all processes."""
        return False


def _explained(error: RuntimeError | MemoryError, runtime: Runtime, whole_batch: bool = False) -> RunFailed | None:
    """What a person can do about an error out of torch; None where there is nothing to say."""
    if isinstance(error, MemoryError) or is_lack_of_memory(error):
        return RunFailed(
            f"memory ran out with micro-batches of {runtime.micro_batch} images; lower --set train.micro_batch (the"
            " effective batch stays the same) or --set data.workers, or end other programs; go on with --resume"
        )
    if isinstance(error, torch.OutOfMemoryError):
        if whole_batch:
            return RunFailed(
                f"{runtime.device} ran out of memory with a batch of {runtime.micro_batch} images, which this method"
                " needs whole; lower --batch-size, start more processes, or set train.checkpoint_activations=true"
            )
        half = max(1, runtime.micro_batch // 2)
        return RunFailed(
            f"{runtime.device} ran out of memory with micro-batches of {runtime.micro_batch} images;"
            f" try --set train.micro_batch={half} (the effective batch stays the same)"
        )
    if "DataLoader worker" in str(error):  # told by a signal handler, so wherever the step happens to be
        return RunFailed(
            f"a process that decodes images died ({str(error).splitlines()[0]}); if memory ran out, lower"
            " --set data.workers; go on with --resume"
        )
    if "mixed torch.Tensor and DTensor" in str(error):
        return RunFailed(
            "a weight was used elsewhere than in the forward pass of the network or block that has it, so that this"
            " method or backbone cannot be divided among processes; say --set train.shard=none"
        )
    return distributed.lost(error, "go on from the last checkpoint with --resume")


class Trainer:
    """Trains a method.

    Args:
        method: on the device already, unless it is to be sharded.
        source: its batches.
        optim, train: resolved settings.
        runtime: what the hardware decided.
        hooks: whom to tell.
    """

    def __init__(
        self,
        method: Method,
        source: Source,
        optim: ResolvedOptim,
        train: LoopSettings,
        runtime: Runtime,
        hooks: Hooks,
    ) -> None:
        self.method = method
        self.source = source
        self.optim = optim
        self.train = train
        self.runtime = runtime
        self.hooks = hooks
        self.steps_per_epoch = source.batching.steps_per_epoch
        self.total_steps = self.steps_per_epoch * train.epochs
        self.step = 0
        self.whole = True  # not in the midst of a step
        self._since = time.perf_counter(), 0  # when, and after which step, the last record was made
        self.sharded: Sharded | None = None
        self.model = self._prepare()
        self.optimizer = build_optimizer(method, optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        # Non-finite steps: in all, and in a row until now.
        self.skipped = torch.zeros((), device=runtime.device)
        self.streak = torch.zeros((), device=runtime.device)
        self.window = Window(runtime.device)
        self.statistics = RunningStatistics(method)
        # Set to a micro-batch's seed before each use: a new one would not be known to a captured graph.
        self._generator = torch.Generator(device=runtime.device)

    def _prepare(self) -> nn.Module:
        if self.runtime.device.type == "cpu":
            keep_freed_memory()
        choose_attention(self.method, self.runtime)
        self.method.train()
        if self.train.checkpoint_activations:
            recompute(self.method)
        if self.runtime.sharded:
            self.sharded = Sharded(self.method, self.runtime.device, compiled=self.runtime.compile)
            return self.method
        if self.runtime.compile:
            self.method.compile()
        if distributed.world_size() == 1:
            return self.method
        # Under its newer name where torch has it, and warns of the old one in every process.
        given = inspect.signature(DistributedDataParallel.__init__).parameters
        unsent: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in given else "broadcast_buffers": False
        }
        return DistributedDataParallel(self.method, gradient_as_bucket_view=True, **unsent)

    # -- fit -> epoch -> step

    def fit(self) -> None:
        """Train to the end, or until the hooks say stop.

        Raises:
            RunFailed: too many non-finite steps in a row, the device's memory is too small, or a process that decodes
                images died.
        """
        try:
            # Slices and statistics are gathered in the midst of a micro-batch: who ran out of memory there would leave
            # the others waiting, so that what has them is not tried.
            if self.runtime.may_halve and self.sharded is None and not is_synchronized(self.method):
                self._fit_memory()
            if self.window.steps and self._is_logged():  # an error came between a step and its record
                self._lr = self._rate(self.step - 1)
                self.hooks.logged(self._read(float("inf"), self.window.steps))
            self.hooks.taken_up()
            while self.step < self.total_steps and self._epoch():
                pass
        except BaseException as error:
            # Workers whose source a traceback holds would keep this process from ending; and of several that were
            # killed each would tell its own end, in the midst of this.
            self.source.close()
            if not isinstance(error, RuntimeError | MemoryError):
                raise
            known = _explained(error, self.runtime, self.method.whole_batch)
            if known is None:
                raise
            raise known from error

    def _fit_memory(self) -> None:
        """Halve the micro-batch until one fits in every process; what is tried leaves nothing behind."""
        while distributed.highest(int(not self._fits())):
            before = self.runtime.micro_batch
            if before == 1:
                raise RunFailed(
                    f"{self.runtime.device} has not the memory for a single image; take a smaller network, or"
                    " --set train.checkpoint_activations=true"
                )
            self._recut(dividing_power(self.source.batching.local_batch, before // 2))
            self.hooks.recut(self.runtime.micro_batch, before)

    def _recut(self, micro_batch: int) -> None:
        self.runtime = replace(self.runtime, micro_batch=micro_batch)
        self.source.recut(micro_batch)

    def _fits(self) -> bool:
        """Whether a micro-batch, and beside it the moments that the first step will make, fit into memory.

        It is one of black images, so that no image is decoded for it, and gradients are not exchanged: of several
        processes one may run out of memory where the others would wait for it.
        """
        encoder, device = self.method.encoder(), self.runtime.device
        buffers = [(buffer, buffer.clone()) for buffer in self.method.buffers()]
        shape = (self.runtime.micro_batch, encoder.in_chans, *height_width(encoder.image_size))
        try:
            moments = [torch.empty_like(p) for p in self.parameters if p not in self.optimizer.state for _ in range(2)]
            images = self.method.as_views(torch.full(shape, -1.0, device=device))
            labels = self.method.labels_to_try(images) if isinstance(self.method, SupervisedMethod) else None
            self._backward(MicroBatch(images, 0, labels), 1, False)
            del moments
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        self.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)
        if not fits and device.type == "cuda":
            torch.cuda.empty_cache()
        return fits

    def _epoch(self) -> bool:
        """Go to the end of the current epoch; False if the hooks asked to stop on the way."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        self._since = time.perf_counter(), self.step
        for micro_batches in self.source.steps(epoch, first):
            self._step(micro_batches)
            self.hooks.stepped(self.step)
            if self._is_logged():
                started, at = self._since
                record = self._read(time.perf_counter() - started, self.step - at)
                self._since = time.perf_counter(), self.step
                self.hooks.logged(record)
            if self.step % self.steps_per_epoch == 0:
                self.hooks.epoch_ended(epoch + 1)
            if self.hooks.should_stop():
                return False
        return True

    def figures(self) -> dict[str, float]:
        """What this process knows of the steps since the last record, for a person who waits; the device is waited for.

        The record that comes next does not change by it.
        """
        started, at = self._since
        speed = (self.step - at) * self.source.batching.batch_size / max(time.perf_counter() - started, 1e-9)
        return {**self.window.peek(), "lr": self._lr, "images_per_second": speed}

    def _is_logged(self) -> bool:
        """Whether a record belongs to the step that was done last."""
        return self.step % self.train.log_every == 0 or self.step == self.total_steps

    def _step(self, micro_batches: Iterator[MicroBatch]) -> None:
        self.whole = False
        lr = self._set_learning_rate()
        names, losses = self._accumulate(micro_batches)
        self.scaler.unscale_(self.optimizer)
        norm = clipped_norm(self.parameters, self.optim.clip_grad)
        skipped = self._nonfinite(norm, losses[names.index("loss")])
        # The fused optimiser reads this flag on the device: set, it leaves weights, moments and counts untouched.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        if self.scaler.is_enabled():  # fp16's own flag would replace it
            for flag in self.scaler._found_inf_per_device(self.optimizer).values():
                flag.copy_(skipped)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.statistics.after_step(skipped)
        self.step += 1
        self.method.after_step(StepInfo(self.step, self.total_steps, self.steps_per_epoch, skipped))
        self.skipped += skipped
        self.streak.add_(1).mul_(skipped)
        self.window.add((*names, "grad_norm"), torch.cat([losses, norm.unsqueeze(0)]), skipped)
        self._lr = lr
        self.whole = True

    def _accumulate(self, micro_batches: Iterator[MicroBatch]) -> tuple[tuple[str, ...], Float[Tensor, " n"]]:
        """Gradients of the step in .grad; the names of its losses, and their values."""
        names: tuple[str, ...] = ()
        totals: Tensor | None = None
        local_batch = self.source.batching.local_batch
        remaining = local_batch
        for batch in micro_batches:
            remaining -= len(batch.images)
            share = len(batch.images) / local_batch
            losses = self._backward(batch, share, last=remaining == 0)
            part = torch.stack([value.detach().float() for value in losses.values()])
            part = part if share == 1 else part * share
            names, totals = tuple(losses), part if totals is None else totals + part
        assert totals is not None
        return names, totals

    def _backward(self, batch: MicroBatch, share: float, last: bool) -> Losses:
        """A micro-batch's losses, their gradient added to .grad; it is exchanged with the last one of a step."""
        # Stochastic depth draws from the global state, by a key of its own: else it drew the very numbers of `corrupt`.
        seed_global(self.runtime.device, derive_seed(batch.seed, "depth"))
        with self._unsynced(last):
            with torch.no_grad():
                corruption = self._corrupt(batch, self._generator.manual_seed(batch.seed))
            with autocast(self.runtime.device, self.runtime.precision):
                losses: Losses = self.model(batch.images, corruption)
            loss = losses["loss"]
            self.scaler.scale(loss if share == 1 else loss * share).backward()
        return losses

    def _corrupt(self, batch: MicroBatch, generator: torch.Generator) -> Corruption:
        if batch.labels is None:
            return self.method.corrupt(batch.images, generator)
        assert isinstance(self.method, SupervisedMethod)
        return self.method.corrupt_labelled(batch.images, batch.labels, generator)

    def _unsynced(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged once a step, with the last micro-batch; of shards with each of them."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _nonfinite(self, norm: Tensor, loss: Tensor) -> Tensor:
        """1.0 if the gradient or the loss of any process is not finite, else 0.0; never read back here."""
        # x - x is 0, and NaN of what is not finite: half as many kernels as two questions.
        return distributed.max_(((norm - norm) + (loss - loss)).isnan().float())

    def _rate(self, step: int) -> float:
        optim = self.optim
        warmup = optim.warmup_epochs * self.steps_per_epoch
        return learning_rate(step, self.total_steps, warmup, optim.lr, optim.min_lr)

    def _set_learning_rate(self) -> float:
        lr = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _read(self, seconds: float, steps: int) -> dict[str, float]:
        means, streak = self.window.read(self.streak)
        record = {"step": self.step, "epoch": self.step / self.steps_per_epoch, **means}
        record["lr"] = self._lr
        record["images_per_second"] = steps * self.source.batching.batch_size / max(seconds, 1e-9)
        if streak >= self.train.max_nonfinite:
            raise RunFailed(
                f"the last {streak:.0f} steps had a non-finite loss or gradient and were skipped; lower --lr, set"
                " optim.clip_grad, or use --precision bf16 or fp32, then resume from the last checkpoint or start anew"
            )
        return record

    # -- what observers and a checkpoint need

    def gathered(self) -> AbstractContextManager[None]:
        """The method with whole weights (Sharded.gathered), as it is where it is not sharded."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in self.method.named_parameters()}

    def state(self, alone: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """(weights, training tensors, the rest) for a checkpoint; of shards the first process has the tensors.

        Args:
            alone: the other processes are not asked at the same time; the open window is then this one's own.
        """
        training = optimizer_tensors(self.optimizer, self._names())
        training |= {"engine/skipped": self.skipped, "engine/streak": self.streak}
        training |= {f"window/{name}": value for name, value in self.window.state(alone).items()}
        model: dict[str, Tensor] = dict(self.method.state_dict())
        if self.sharded is not None:
            main = distributed.rank() == 0
            model, training = joined(model, main), joined(training, main)
        rest = {"window_steps": self.window.steps, "scaler": self.scaler.state_dict()}
        rest["micro_batch"] = self.runtime.micro_batch
        return model, training, rest

    def restore(self, step: int, training: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Go on after `step`; the method's weights were loaded by the caller."""
        if step > self.total_steps:
            raise CheckpointError(f"the checkpoint is of step {step}, but the run ends at {self.total_steps}")
        self.step = step
        # What was chosen stays, whatever another version would choose: other micro-batches draw other masks and noise.
        micro_batch = rest.get("micro_batch")
        if self.runtime.automatic and micro_batch and not self.source.batching.local_batch % micro_batch:
            self._recut(micro_batch)
        restore_optimizer(self.optimizer, self._names(), training)
        self.statistics.keep()
        device = self.runtime.device
        for name in ("skipped", "streak"):
            found = training.get(f"engine/{name}")
            if found is None or found.shape != () or not found.is_floating_point():
                raise CheckpointError(f"the checkpoint's count engine/{name} is missing or no number; it is damaged")
            setattr(self, name, found.to(device))
        sums = {k.removeprefix("window/"): value for k, value in training.items() if k.startswith("window/")}
        self.window.restore(sums, rest["window_steps"])
        if rest["scaler"]:  # of a run that was in fp16
            self.scaler.load_state_dict(rest["scaler"])
