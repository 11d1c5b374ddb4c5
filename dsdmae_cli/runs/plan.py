"""--dry-run: what a run would be, worked out without writing anything."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dsdmae_cli import plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.build import build_method, choose_runtime
from dsdmae_cli.data.open import open_dataset, place
from dsdmae_cli.data.source import Batching, seeded
from dsdmae_cli.engine import Runtime, choose_attention
from dsdmae_cli.errors import DataError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.report import duration
from dsdmae_cli.runs.tokenizer import is_trained, needs_tokenizer, tokenizer_folder
from dsdmae_cli.settings.models import DataSettings, Settings

# Beyond this much work a timed micro-batch would keep the person waiting.
_TIMED_GFLOP = 400


@dataclass(frozen=True)
class Plan:
    """A run in numbers."""

    dataset: str
    train_images: int
    test_images: int | None
    placement: str
    image_size: int
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
    estimated_seconds: float | None
    tokenizer: str | None = None

    def json(self) -> dict[str, Any]:
        """As an object for scripts."""
        return asdict(self)

    def text(self) -> str:
        """As lines for people."""
        test = f", {self.test_images} to evaluate" if self.test_images is not None else ""
        known = self.estimated_seconds is not None
        rows = {
            "dataset": f"{self.dataset}: {self.train_images} images to train{test}, {self.placement}",
            "image": f"{self.image_size}x{self.image_size} px, {self.tokens} tokens",
            "parameters": f"{self.encoder_parameters / 1e6:.2f} M kept, {self.parameters / 1e6:.2f} M trained",
            "steps": f"{self.steps} ({self.epochs} epochs of {self.steps // self.epochs})",
            "batch": f"{self.effective_batch} in micro-batches of {self.micro_batch}",
            "learning rate": f"{self.learning_rate:.3g} at its peak",
            "work": f"{self.gflop_per_image:.3g} GFLOP per image and step",
            "memory": f"about {self.memory_gib:.2g} GiB on {self.device}",
            "device": f"{self.device}, {self.precision}{', compiled' if self.compile else ''}",
            "time": f"about {duration(self.estimated_seconds or 0)}" if known else "unknown until it runs",
        }
        if self.tokenizer is not None:
            rows["tokenizer"] = self.tokenizer
        return "\n".join(f"{name:<14}{value}" for name, value in rows.items())


def make_plan(settings: Any, method: Method | None = None, split: str = "train", *, timed: bool = True) -> Plan:
    """Work out the plan of resolved settings of a command that trains.

    Args:
        method: what is trained; None = the pre-training method that the settings name.
        split: of the dataset that is trained on.
        timed: run a micro-batch on a CPU to estimate the time, which takes some itself.

    Raises:
        DataError: the dataset is not here and its official size is not known.
    """
    words = _tokenizer(settings) if method is None else None
    method = build_method(settings) if method is None else method
    runtime = choose_runtime(settings, method)
    train_images, test_images, placement, resident_bytes = _data(settings.data, runtime, split)
    batching = Batching(train_images, settings.train.batch_size, runtime.micro_batch, settings.train.seed)
    flop, activation_bytes = measure_work(method)
    trained = [p for p in method.parameters() if p.requires_grad]
    # Trained: weight, gradient and two moments; kept along: the weight alone. All in float32.
    state = 16 * sum(p.numel() for p in trained) + 4 * sum(
        p.numel() for p in method.parameters() if not p.requires_grad
    )
    halved = 1 if runtime.precision == "fp32" else 0.5
    memory = state + resident_bytes + activation_bytes * halved * runtime.micro_batch
    steps = batching.steps_per_epoch * settings.train.epochs
    per_image = _seconds_per_image(method, runtime, flop) if timed else None
    assert isinstance(settings.optim.lr, float)
    assert isinstance(settings.data.image_size, int)
    return Plan(
        dataset=settings.data.dataset,
        train_images=train_images,
        test_images=test_images,
        placement=placement,
        image_size=settings.data.image_size,
        tokens=method.encoder().num_tokens,
        encoder_parameters=sum(p.numel() for p in method.encoder().parameters()),
        parameters=sum(p.numel() for p in trained),
        epochs=settings.train.epochs,
        steps=steps,
        effective_batch=settings.train.batch_size,
        micro_batch=runtime.micro_batch,
        learning_rate=settings.optim.lr,
        gflop_per_image=flop / 1e9,
        memory_gib=memory / 2**30,
        device=str(runtime.device),
        precision=runtime.precision,
        compile=runtime.compile,
        estimated_seconds=per_image * steps * settings.train.batch_size if per_image else None,
        tokenizer=words,
    )


def _tokenizer(settings: Settings) -> str | None:
    """Where a run's tokenizer is, or that it will be trained first; None if its method needs none."""
    if not needs_tokenizer(settings):
        return None
    try:
        data = settings.data.model_copy(update={"download": False})
        folder, loaded = tokenizer_folder(settings.model_copy(update={"data": data}))
    except DataError:
        return "trained first, not counted above"
    if is_trained(folder):
        return f"{folder}"
    epochs = loaded.settings.train.epochs
    return f"trained first, for {epochs} epoch{'s' if epochs > 1 else ''}, not counted above"


def _data(settings: DataSettings, runtime: Runtime, split: str) -> tuple[int, int | None, str, int]:
    here = settings.model_copy(update={"download": False})
    try:
        train = open_dataset(here, split)
    except DataError:
        official = plugins.find("dataset", settings.dataset).spec.num_images
        if not (settings.download and official and split == "train"):
            raise
        return official["train"], official.get("test"), "not downloaded yet", 0
    placement = place(train, settings, runtime.device)
    try:
        test: int | None = len(open_dataset(here, "test"))
    except DataError:
        test = None
    return len(train), test, placement.word, placement.num_bytes


def measure_work(method: Method) -> tuple[float, int]:
    """(FLOP, bytes kept for the backward pass in float32) of one image's forward and backward, counted not run."""
    size = method.encoder().image_size
    images = method.as_views(torch.zeros(1, 3, size, size))
    with torch.no_grad():
        corruption = method.corrupt(images, seeded(torch.device("cpu"), 0))
    ghost = copy.deepcopy(method).to("meta")
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(remember, lambda tensor: tensor):
        losses = ghost(images.to("meta"), tree_map_only(Tensor, lambda t: t.to("meta"), corruption))
        losses["loss"].backward()
    return float(counter.get_total_flops()), sum(saved.values())


def encoder_flops(encoder: Backbone) -> float:
    """FLOP of one image's forward pass, counted not run."""
    ghost = copy.deepcopy(encoder).to("meta")
    size = encoder.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.zeros(1, 3, size, size, device="meta"))
    return float(counter.get_total_flops())


def _seconds_per_image(method: Method, runtime: Runtime, flop: float) -> float | None:
    """From one timed micro-batch on a CPU; a GPU's first steps say little."""
    if runtime.device.type != "cpu" or flop * runtime.micro_batch / 1e9 > _TIMED_GFLOP:
        return None
    size = method.encoder().image_size
    choose_attention(method, runtime)
    images = method.as_views(torch.rand(runtime.micro_batch, 3, size, size) * 2 - 1)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        corruption = method.corrupt(images, seeded(runtime.device, 0))
        with torch.autocast("cpu", torch.bfloat16, enabled=runtime.precision == "bf16"):
            loss = method(images, corruption)["loss"]
        loss.backward()
        seconds = time.perf_counter() - began
    return seconds / runtime.micro_batch
