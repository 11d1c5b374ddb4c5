"""Nothing that trains or evaluates makes the host wait for a GPU but where it must, and few operators are launched.

On a CUDA device that is not there (harness.py), so that it is known before there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from harness import CUDA, Audit, no_cuda, on_fake_cuda
from steps import attentive_step, built, classifier_step, log_line, paper_step, segmenter_step, step_of, streamed_step
from torch import Tensor

from dsdmae_builtin.methods.dsdmae import DSdMAE
from dsdmae_cli.artifacts.denoiser import Denoiser
from dsdmae_cli.data.resident import ResidentSource
from dsdmae_cli.evaluation.features import Batch, extract, mean_features
from dsdmae_cli.evaluation.knn import knn_accuracy
from dsdmae_cli.evaluation.linear import Protocol, train_heads
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.pictures import torch_network
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import corrected
from dsdmae_cli.pictures.torch_network import TorchNetwork
from dsdmae_cli.plugins import BrokenPlugin, discover

pytestmark = pytest.mark.fake_cuda
METHODS = [plugin.name for plugin in discover("method") if not isinstance(plugin, BrokenPlugin)]


def assert_never_waits(step: Audit) -> None:
    assert step.around
    assert not step.faults
    assert not step.waits


@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits(name: str) -> None:
    assert_never_waits(step_of(name))


@pytest.mark.parametrize("name", ["dsdmae", "mocov3"])
def test_a_scaled_step_never_waits(name: str) -> None:
    assert_never_waits(step_of(name, precision="fp16"))


def test_muon_waits_once_a_step() -> None:
    """For the flag that leaves a step out; in fp16 the scaler reads it."""
    step = step_of("dsdmae", "optim.optimizer=muon")
    assert not step.faults
    [wait] = step.waits
    assert "muon.py" in wait


def test_accumulated_gradients_are_not_waited_for() -> None:
    whole, cut = step_of("dsdmae", "train.batch_size=16"), step_of("dsdmae", "train.batch_size=16", micro_batch=4)
    assert_never_waits(cut)
    assert sum(cut.forward.values()) > 3 * sum(whole.forward.values())


def test_a_step_on_images_that_are_decoded_ahead_never_waits() -> None:
    step = streamed_step("mocov3")
    assert_never_waits(step)
    assert step.copies


@pytest.mark.parametrize("step", [classifier_step, segmenter_step, attentive_step])
def test_learning_from_labels_never_waits(step: Callable[[], Audit]) -> None:
    assert_never_waits(step())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_line_of_the_log_waits_once(precision: str) -> None:
    [wait] = log_line(precision).waits
    assert "window.py" in wait


def test_what_surrounds_the_network_is_at_most_120_operators() -> None:
    """Augmentation, corruption, clipping, guard, teacher, optimiser and log."""
    step = paper_step()
    assert sum(step.forward.values()) > 400  # it is the whole network that is taken out
    assert sum(step.around.values()) <= 120, step.around.most_common()


# -- evaluation: as many waits for many batches as for few


def _extract(count: int) -> None:
    encoder = on_fake_cuda(built("mae")[1]).encoder()
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    batches = (Batch(images, torch.arange(8)) for _ in range(count))
    extract([encoder], batches, ("mean", "max"), "bf16")


def _mean_features(count: int) -> None:
    encoder = on_fake_cuda(built("mae")[1]).encoder()
    mean_features(encoder, torch.zeros(8 * count, 3, 32, 32, dtype=torch.uint8, device=CUDA), 8, "bf16")


def _knn(count: int) -> None:
    features, labels = (
        torch.zeros(1024 * count, 4, device=CUDA),
        torch.zeros(1024 * count, dtype=torch.int64, device=CUDA),
    )
    knn_accuracy(features[:64], labels[:64], features, labels)


def _linear(count: int) -> None:
    features, labels = torch.zeros(8 * count, 4, device=CUDA), torch.zeros(8 * count, dtype=torch.int64, device=CUDA)
    train_heads(features, labels, 3, (0.1, 0.2), Protocol(epochs=1, batch_size=8), (features, labels))


@pytest.mark.parametrize("work", [_extract, _mean_features, _knn, _linear])
def test_evaluation_does_not_wait_for_a_batch(work: Callable[[int], None]) -> None:
    found = []
    for count in (2, 6):
        with no_cuda() as audit:
            work(count)
        assert audit.around
        found.append(len(audit.waits))
    assert found[0] == found[1], audit.waits


def test_a_device_predicts_while_tiles_are_blended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches come from pinned memory; waited for is one with the next under way, and so for nothing but the last."""
    monkeypatch.setattr(torch_network, "_GPU_TILES", 4)
    for side, batches in ((64, 3), (128, 7)):  # of 9 and of 25 tiles
        settings, method = built("dsdmae")
        monkeypatch.setattr(method, "to", lambda device, method=method: method)  # it is there; fakes do not move
        with no_cuda() as audit:
            network = TorchNetwork(Denoiser(on_fake_cuda(method), settings, "", "tests"), CUDA, "bf16")
            corrected(network, Picture.of(np.zeros((side, side, 3), np.uint8)))
        copies = Counter(text.partition(",")[0] for text in audit.copies)
        assert copies == {"cpu -> cuda": batches, "cuda -> cpu": batches}
        assert len(audit.waits) == 1, audit.waits
        assert "transfer.py" in audit.waits[0]


# -- that it would be seen


def _w1(self: DSdMAE, images: Tensor, noisy: Tensor, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    std = torch.as_tensor(0.5, device=images.device)
    return images + std, std.expand(len(images), 1)


def _w3(self: ResidentSource, epoch: int, first_step: int = 0) -> Iterator[Any]:
    order = self.batching.order(epoch)
    for step in range(first_step, self.batching.steps_per_epoch):
        ids = [ids.to(self.images.device, non_blocking=True) for ids in self.batching.micro_batches(order, step)]
        yield self._step(epoch, step, ids)


def _read_flag(self: EMATeacher, student: Any, info: Any) -> None:
    if info.skipped > 0:
        return


@pytest.mark.parametrize(
    ("owner", "name", "waiting"),
    [(DSdMAE, "_gaussian", _w1), (ResidentSource, "steps", _w3), (EMATeacher, "follow", _read_flag)],
)
def test_a_wait_that_is_put_back_is_named(owner: Any, name: str, waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, waiting)
    step = step_of("dsdmae")
    assert step.waits
    assert all(f"test_no_waiting.py:{waiting.__code__.co_firstlineno + 1}"[:-2] in wait for wait in step.waits)


def test_a_generator_of_the_wrong_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(self: DSdMAE, images: Tensor, generator: torch.Generator) -> Any:
        return torch.rand(3, generator=torch.Generator().manual_seed(99), device=CUDA)

    monkeypatch.setattr(DSdMAE, "corrupt", corrupt)
    monkeypatch.setattr(DSdMAE, "forward", lambda self, images, corruption: {"loss": self.student(images).mean()})
    assert "generator on cpu" in step_of("dsdmae").faults[0]


def test_a_kernel_a_tensor_is_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the teacher moved before: weights of no dimension take a list off its multi-tensor kernel."""

    def follow(self: EMATeacher, student: Any, info: Any) -> None:
        mine, weight = [p.data for p in self.module.parameters()], 1 - info.skipped
        torch._foreach_lerp_(mine, [p.detach() for p in student.parameters()], [weight] * len(mine))

    before = step_of("dsdmae")
    assert before.operators["aten::_fused_sgd_"] == 1
    monkeypatch.setattr(EMATeacher, "follow", follow)
    after = step_of("dsdmae")
    assert after.operators["aten::_foreach_lerp_.List"] > 10
    assert sum(after.around.values()) > sum(before.around.values()) + 10
