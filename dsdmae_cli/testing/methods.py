"""What every method promises. dsdmae's own methods are held to the same functions (tests/methods)."""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsdmae_cli import plugins
from dsdmae_cli.testing.material import SIDE, check_spec, digit_images, small

if TYPE_CHECKING:
    from torch import Tensor

    from dsdmae_cli.methods.base import Method


def check_method(name: str, *assignments: str) -> None:
    """See that an installed method keeps what methods promise; takes some twenty seconds on a CPU.

    Args:
        name: as --method takes it.
        assignments: settings for a tiny network on 16x16 digits, as --set takes them ("method.width=8").

    Raises:
        AssertionError: a promise is not kept.
    """
    check_spec("method", name)
    for promise in (
        all_but_teachers_learn,
        skipped_step_changes_nothing,
        randomness_is_the_generators,
        batch_may_be_cut,
        bf16_is_near_fp32,
        shows_pictures,
    ):
        promise(build(name, *assignments))
    if plugins.find("method", name).spec.rectangles:
        learns_from_rectangles(name, *assignments)
    with tempfile.TemporaryDirectory(prefix="dsdmae-check-") as folder:
        trains_and_resumes(name, Path(folder), *assignments)


def build(name: str, *assignments: str) -> Method:
    """The method around a tiny backbone, on the CPU."""
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.runs.build import build_method

    return build_method(resolve(small(*assignments, method=name).settings))


def batch_of(method: Method, count: int = 8) -> tuple[Tensor, Any]:
    """Real images as the method's views, and a corruption of them."""
    import torch

    from dsdmae_cli.data.source import seeded
    from dsdmae_cli.settings.size import height_width

    height, width = height_width(method.encoder().image_size)
    images = method.as_views(digit_images(count, max(height, width))[..., :height, :width])
    return images, method.corrupt(images, seeded(torch.device("cpu"), 1))


def all_but_teachers_learn(method: Method) -> None:
    """Every trained weight has a gradient, or DistributedDataParallel waits for it in vain; no teacher's has one."""
    from dsdmae_cli.methods.ema import EMATeacher
    from dsdmae_cli.methods.frozen import Frozen

    losses = method.train()(*batch_of(method))
    carrying = [key for key, value in losses.items() if value.requires_grad]
    assert carrying == ["loss"], f"forward must return 'loss' with a gradient and detach all others; got {carrying}"
    losses["loss"].backward()
    teachers = [part for part in method.modules() if isinstance(part, EMATeacher | Frozen)]
    taught = {id(p) for part in teachers for p in part.parameters()}
    for key, parameter in method.named_parameters():
        assert id(parameter) not in taught or not parameter.requires_grad, f"{key} of a teacher is trained"
        got = parameter.grad is not None
        assert got == parameter.requires_grad, f"{key}: requires_grad is {parameter.requires_grad}, a gradient {got}"
    assert not any(part.training for teacher in teachers for part in teacher.modules()), "a teacher is in train mode"


def skipped_step_changes_nothing(method: Method) -> None:
    """A step with a non-finite gradient must leave teachers and other state alone (StepInfo.skipped)."""
    import torch

    from dsdmae_cli.methods.base import StepInfo

    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.after_step(StepInfo(1, 10, 5, torch.ones(())))
    changed = [key for key, value in method.state_dict().items() if not torch.equal(value, before[key])]
    assert not changed, f"after_step changed {changed[0]} in a step that was skipped; multiply by 1 - info.skipped"


def randomness_is_the_generators(method: Method) -> None:
    """corrupt draws from its generator alone, forward draws nothing: so a resumed run is the same run."""
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    from dsdmae_cli.data.source import seeded

    cpu = torch.device("cpu")
    images = method.as_views(digit_images(8))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (
        [leaf for leaf in tree_leaves(method.corrupt(images, seeded(cpu, seed))) if isinstance(leaf, Tensor)]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state), "corrupt draws from torch's global state, not its generator"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "one seed, two corruptions"
    # A method that draws nothing has nothing that could differ.
    differs = not first or not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert differs, "corrupt gives the same for two seeds"
    corruption = method.corrupt(images, seeded(cpu, 1))
    values = [method.eval()(images, corruption)["loss"].item() for _ in range(2)]
    assert values[0] == values[1], "forward gives two losses for one corruption"
    assert torch.equal(torch.get_rng_state(), state), "forward draws from torch's global state"


def batch_may_be_cut(method: Method) -> None:
    """The mean of the losses of micro-batches is the loss of the batch, or `whole_batch` is set.

    What a corruption has no row of each image for, all images share.
    """
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    # A batch norm looks at its batch in training alone.
    method.train(method.whole_batch)
    with torch.no_grad():
        images, corruption = batch_of(method)
        whole = method(images, corruption)
        parts = []
        for half in (slice(None, 4), slice(4, None)):

            def cut(tensor: Tensor, part: slice = half) -> Tensor:
                return tensor[part] if tensor.dim() and len(tensor) == len(images) else tensor

            parts.append(method(images[half], tree_map_only(Tensor, cut, corruption)))
    if method.whole_batch:
        gap = abs((parts[0]["loss"] + parts[1]["loss"]) / 2 - whole["loss"])
        assert gap > 3e-5 * whole["loss"], "whole_batch is set, and cutting the batch makes no difference"
        return
    for key, value in whole.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value, rtol=1e-5, atol=1e-6)


def losses_and_gradient(method: Method, autocast: AbstractContextManager[Any]) -> tuple[dict[str, float], Tensor]:
    """Of one batch, under autocast or without it; the gradient is the encoder's, flat."""
    import torch

    method.zero_grad()
    with autocast:
        losses = method(*batch_of(method, 16))
    losses["loss"].backward()
    encoder = [p.grad.flatten() for p in method.encoder().parameters() if p.grad is not None]
    return {key: value.item() for key, value in losses.items()}, torch.cat(encoder)


def bf16_is_near_fp32(method: Method) -> None:
    """Losses within 3% and the encoder's gradient in the same direction: what is sensitive is computed in float32."""
    import torch

    exact, right = losses_and_gradient(method, nullcontext())
    rounded, gradient = losses_and_gradient(method, torch.autocast("cpu", torch.bfloat16))
    for key, value in rounded.items():
        near = math.isclose(value, exact[key], rel_tol=0.03, abs_tol=0.003)
        assert near, f"{key} is {exact[key]:.4g} in float32 and {value:.4g} under bf16 autocast"
    cosine = torch.nn.functional.cosine_similarity(gradient, right, dim=0).item()
    assert cosine > 0.9, f"the encoder's gradients in float32 and bf16 have a cosine of {cosine:.3f}"


def shows_pictures(method: Method) -> None:
    """Rows of images in [-1, 1] or thereabouts, one for each image given."""
    import torch

    with torch.no_grad():
        shown = method.eval().show(*batch_of(method, 3))
    for row, tiles in shown.items():
        assert tiles.shape[:2] == (3, 3), f"row {row!r} of show is {tuple(tiles.shape)}, not [3, 3, h, w]"
        assert tiles.isfinite().all(), f"row {row!r} of show has values that are not finite"


def learns_from_rectangles(name: str, *assignments: str) -> None:
    """Of images half as high again as wide, and the other way round: all weights learn, rows have their shape."""
    import torch

    for size in ((SIDE + SIDE // 2, SIDE), (SIDE, SIDE + SIDE // 2)):
        method = build(name, *assignments, f"data.image_size={size[0]},{size[1]}")
        assert method.encoder().image_size == size, f"the encoder takes {method.encoder().image_size}, not {size}"
        all_but_teachers_learn(method)
        with torch.no_grad():
            shown = method.eval().show(*batch_of(method, 3))
        for row, tiles in shown.items():
            height, width = tiles.shape[-2:]
            assert height * size[1] == width * size[0], f"row {row!r} of show is {height}x{width} for images of {size}"


def trains_and_resumes(name: str, folder: Path, *assignments: str) -> None:
    """Its loss falls on digits, and a run that is resumed half-way ends with the same weights to the last bit."""
    from dsdmae_cli import checkpoint
    from dsdmae_cli.recipes.pretrain import pretrain
    from dsdmae_cli.report import Report

    loaded = small("train.epochs=3", "train.checkpoint_every=1", "train.keep_checkpoints=3", *assignments, method=name)
    whole, half = folder / "whole", folder / "half"
    pretrain(loaded, out=whole, resume=False, overridden=False, report=Report())
    from dsdmae_cli.runs.rundir import RunDir

    losses = [record["loss"] for record in RunDir(whole).metrics() if "loss" in record]
    assert all(map(math.isfinite, losses)), "a loss is not finite"
    fifth = len(losses) // 5
    first, last = sum(losses[:fifth]) / fifth, sum(losses[-fifth:]) / fifth
    assert last < 0.98 * first, (
        f"the loss does not fall: {first:.4g} in the first fifth of the steps, {last:.4g} in the last"
    )
    shutil.copytree(whole, half)
    newest = checkpoint.newest_first(half / "checkpoints")[0]
    shutil.rmtree(newest)
    (half / "result.json").unlink()
    pretrain(loaded, out=half, resume=True, overridden=False, report=Report())
    for file in ("model.safetensors", "training.safetensors"):
        same = (newest / file).read_bytes() == (whole / "checkpoints" / newest.name / file).read_bytes()
        assert same, f"a resumed run ends with another {file}: state that is neither a buffer nor drawn by corrupt?"
