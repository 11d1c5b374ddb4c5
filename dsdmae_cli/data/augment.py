"""Batches of uint8 images to network input, each image with a draw of its own, on the device they are on.

Crop, flip and shift are here, and the scaling to [-1, 1]. Masks and noise are dsdmae_cli/corruption.py;
colour augmentations belong to the methods that want them; what a run may ask for is DataSettings in
dsdmae_cli/settings/models.py.

Why not torchvision's transforms: on a batch they draw one set of numbers for all of it, and one call per
image leaves a GPU idle. Why not grid_sample: it does not antialias, so that it is not the same crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from dsdmae_cli.data.square import middle
from dsdmae_cli.settings.size import Size, height_width

Interpolation = Literal["bicubic", "bilinear"]

# RandomResizedCrop's, before it takes the centre.
NUM_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What happens to each training image, all automatic values resolved.

    Attributes:
        image_size: of what comes out: side of a square in pixels, or (height, width).
        crop_scale: smallest and largest share of the area that a random resized crop takes; None = no crop.
        crop_ratio: narrowest and widest width/height of a crop, in units of image_size's own.
        interpolation: kernel of the resampling, antialiased.
        flip: mirror each image left to right with probability 1/2.
        crop_from: side of the squares that windows of image_size pixels are cut from unscaled; None = resized crops.
        shift: largest translation in output pixels, each way and in both directions; edges are repeated.
    """

    image_size: Size
    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    interpolation: Interpolation
    flip: bool
    shift: int
    crop_from: int | None = None

    @property
    def height(self) -> int:
        """Of what comes out, in pixels."""
        return height_width(self.image_size)[0]

    @property
    def width(self) -> int:
        """Of what comes out, in pixels."""
        return height_width(self.image_size)[1]

    @property
    def ratios(self) -> tuple[float, float]:
        """Narrowest and widest width/height of a crop, in pixels.

        A crop of a rectangle is as seldom stretched one way as the other, like that of a square.
        """
        narrow, wide = (ratio * (self.width / self.height) for ratio in self.crop_ratio)
        return narrow, wide

    def boxes(self, batch: int, height: int, width: int, generator: Generator) -> Boxes:
        """Random boxes for images of a height and width; crop_scale says how large."""
        assert self.crop_scale is not None
        return crop_boxes(batch, height, width, self.crop_scale, self.ratios, generator)


class Boxes(NamedTuple):
    """Rectangles of whole pixels, one per image.

    Attributes:
        corner: top and left.
        sides: height and width.
    """

    corner: Int64[Tensor, "2 b"]
    sides: Int64[Tensor, "2 b"]


class View(NamedTuple):
    """Where each image of a batch is seen: one draw, the same for its pixels and its mask.

    Attributes:
        boxes: what is resampled to the plan's size; None = nothing is resampled.
        rows, columns: which of the resampled pixels (of the images' own where nothing is) each one of the result shows.
    """

    boxes: Boxes | None
    rows: Int64[Tensor, "_ s"]
    columns: Int64[Tensor, "_ t"]


def augment(
    images: UInt8[Tensor, "b c h w"], plan: Augmentation, generator: Generator
) -> Float[Tensor, "b c {plan.height} {plan.width}"]:
    """Random views in [-1, 1], one draw per image.

    Without a crop, and with images of the right size, nothing is resampled: pixels are moved and scaled.

    Args:
        generator: on the images' device; the only source of randomness.
    """
    return _seen(images, plan, _view(images.shape, plan, generator))


def augment_with_masks(
    images: UInt8[Tensor, "b c h w"], masks: UInt8[Tensor, "b h w"], plan: Augmentation, generator: Generator
) -> tuple[Float[Tensor, "b c {plan.height} {plan.width}"], UInt8[Tensor, "b {plan.height} {plan.width}"]]:
    """`augment`, with the images' masks under the very same boxes, flips and shifts.

    A mask's values are names and cannot be averaged: each pixel of the result takes the one under its middle.
    """
    view = _view(images.shape, plan, generator)
    rows, columns = view.rows, view.columns
    if view.boxes is not None:
        corner, sides = view.boxes
        rows = _under_middle(corner[0], sides[0], plan.height, rows)
        columns = _under_middle(corner[1], sides[1], plan.width, columns)
    return _seen(images, plan, view), _pick(masks.unsqueeze(1), rows, columns).squeeze(1)


def _view(shape: torch.Size, plan: Augmentation, generator: Generator) -> View:
    b, _, h, w = shape
    boxes = None
    if plan.crop_from is not None:
        assert h == w == plan.crop_from
    elif plan.crop_scale is not None:
        boxes = plan.boxes(b, h, w, generator)
    elif (h, w) != (plan.height, plan.width):
        boxes = _middle(h, w, plan.image_size, generator.device)
    return View(boxes, *_sources(b, plan, generator))


def _seen(images: UInt8[Tensor, "b c h w"], plan: Augmentation, view: View) -> Float[Tensor, "b c s t"]:
    boxes, rows, columns = view
    if boxes is None:
        return _to_unit(_pick(images, rows, columns).float())
    # Bicubic weights are partly negative and overshoot at edges. No image has such pixels, noise levels and
    # the pixel loss are in units of the valid range, and 8-bit pipelines (PIL, torchvision's) cut them too.
    return _to_unit(_resample(images, boxes, plan.image_size, plan.interpolation, rows, columns).clamp_(0, 255))


def _under_middle(
    start: Int64[Tensor, " n"], length: Int64[Tensor, " n"], size: int, outputs: Int64[Tensor, "_ s"]
) -> Int64[Tensor, "_ s"]:
    """Of `length` pixels from `start` on that become `size`: those under the middles of the new ones, exactly."""
    return start[:, None] + (2 * outputs + 1) * length[:, None] // (2 * size)


def prepare(
    images: UInt8[Tensor, "b c h w"], image_size: Size, interpolation: Interpolation
) -> Float[Tensor, "b c rows columns"]:
    """Evaluation's input: images of one size, the middle resized if they have another, in [-1, 1]; not random."""
    h, w = images.shape[-2:]
    if (h, w) == height_width(image_size):
        return _to_unit(images.float())
    boxes = _middle(h, w, image_size, images.device)
    return _to_unit(_resample(images, boxes, image_size, interpolation).clamp_(0, 255))


def crop_boxes(
    batch: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
) -> Boxes:
    """A random box for each image, distributed as torchvision's RandomResizedCrop.get_params.

    All ten tries are drawn at once and the first that fits is taken, because asking whether one fits would
    stall the device; where none fits, the largest central box within `ratio`.

    Args:
        height, width: of the images, in pixels.
        scale: range of the box's share of the area, uniform.
        ratio: range of its width/height, log-uniform.
    """
    draws = _uniform((4, NUM_TRIES, batch), generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (log_low + (log_high - log_low) * draws[1]).exp()
    # Heights and widths are one tensor, here and wherever boxes go: half as many kernels as two have.
    sides = torch.stack([area / aspect, area * aspect]).sqrt().round()
    device = generator.device
    full = _pair(height, width, device)
    fits = ((sides > 0) & (sides <= full)).all(dim=0)
    # The first of equal values, as argmax; and whether there is one that fits.
    found, first = fits.max(dim=0)
    central = central_box(height, width, ratio)
    sides = torch.where(found, sides.gather(1, first.expand(2, 1, -1)).long(), _pair(*central, device))
    # u < 1 in float32 keeps floor(u * n) < n for every n below 2^24.
    corner = (draws[2:, :1] * (full + 1 - sides)).long()
    corner = torch.where(found, corner, _pair((height - central[0]) // 2, (width - central[1]) // 2, device))
    return Boxes(corner[:, 0], sides[:, 0])


def _pair(first: int, second: int, device: torch.device) -> int | Int64[Tensor, "2 1 1"]:
    """Two numbers for two rows, one where they are equal; filled in, since a copy from the host would be waited for."""
    if first == second:
        return first
    pair = torch.full((2, 1, 1), second, device=device)
    pair[0].fill_(first)
    return pair


def _uniform(shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "*shape"]:
    return torch.rand(shape, generator=generator, device=generator.device)


def _middle(height: int, width: int, size: Size, device: torch.device) -> Boxes:
    """The largest box of the shape of `size` in whole pixels, once for all images of a batch: matrices broadcast."""
    tall, wide = (max(1, round(side)) for side in middle(height, width, size))
    sides, corner = (torch.empty((2, 1), dtype=torch.int64, device=device) for _ in range(2))
    for number, (side, of) in enumerate(((tall, height), (wide, width))):  # filled: a copy would be waited for
        sides[number].fill_(side)
        corner[number].fill_((of - side) // 2)
    return Boxes(corner, sides)


def central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of get_params' fallback, but at least one pixel where torchvision can round to none."""
    if width / height < min(ratio):
        return max(1, round(width / min(ratio))), width
    if width / height > max(ratio):
        return height, max(1, round(height * max(ratio)))
    return height, width


def _sources(batch: int, plan: Augmentation, generator: Generator) -> tuple[Int64[Tensor, "n s"], Int64[Tensor, "m t"]]:
    """Which row and column of the unmoved image each output row and column shows: flip and shift as an index.

    n and m are the batch, or 1 where all images have the same.
    """
    rows, columns = (torch.arange(side, device=generator.device).unsqueeze(0) for side in (plan.height, plan.width))
    if plan.flip:
        mirrored = _uniform((batch, 1), generator) < 0.5
        columns = torch.where(mirrored, plan.width - 1 - columns, columns)
    if plan.shift:
        steps = torch.randint(-plan.shift, plan.shift + 1, (2, batch, 1), generator=generator, device=generator.device)
        rows = (rows + steps[0]).clamp(0, plan.height - 1)
        # A mirrored image moves the other way, which is as likely.
        columns = (columns + steps[1]).clamp(0, plan.width - 1)
    if plan.crop_from is not None:
        if plan.height == plan.width:
            corners = list(_up_to((2, batch, 1), plan.crop_from - plan.height, generator))
        else:
            corners = [_up_to((batch, 1), plan.crop_from - side, generator) for side in (plan.height, plan.width)]
        rows, columns = rows + corners[0], columns + corners[1]
    return rows, columns


def _up_to(shape: tuple[int, ...], most: int, generator: Generator) -> Int64[Tensor, "*shape"]:
    return torch.randint(0, most + 1, shape, generator=generator, device=generator.device)


def _pick(
    images: UInt8[Tensor, "b c h w"], rows: Int64[Tensor, "n s"], columns: Int64[Tensor, "m t"]
) -> UInt8[Tensor, "b c s t"]:
    """Pixels at the given rows and columns of each image."""
    b, c, _, w = images.shape
    flat = (rows[:, :, None] * w + columns[:, None, :]).flatten(1)
    return images.flatten(2).gather(2, flat[:, None].expand(b, c, -1)).unflatten(2, (rows.shape[1], -1))


def _resample(
    images: UInt8[Tensor, "b c h w"],
    boxes: Boxes,
    size: Size,
    interpolation: Interpolation,
    rows: Int64[Tensor, "_ s"] | None = None,
    columns: Int64[Tensor, "_ t"] | None = None,
) -> Float[Tensor, "b c s t"]:
    """Each image's box at `size`, in the images' own units; not clamped: bicubic overshoots.

    Equal to torchvision's resized_crop(..., antialias=True) on floats: resampling is linear in the pixels
    and separable, so that two batched products with [height, h] and [width, w] matrices do a whole batch of
    different boxes. They are mostly zeros; multiplying by those is still far cheaper than a call per image.

    Args:
        rows, columns: those of the pixels that are made; None = all, in order.
    """
    b, c, h, w = images.shape
    height, width = height_width(size)
    rows = torch.arange(height, device=images.device).unsqueeze(0) if rows is None else rows
    columns = torch.arange(width, device=images.device).unsqueeze(0) if columns is None else columns
    if h == w and height == width:
        outputs = torch.stack(torch.broadcast_tensors(rows, columns))
        vertical, horizontal = _weights(boxes.corner, boxes.sides, h, height, outputs, interpolation)
    else:
        vertical = _weights(boxes.corner[0], boxes.sides[0], h, height, rows, interpolation)
        horizontal = _weights(boxes.corner[1], boxes.sides[1], w, width, columns, interpolation)
    # Channels beside the columns: both products are then one matrix per image, and none has to be repeated.
    x = images.transpose(1, 2).contiguous().to(vertical.dtype).reshape(b, h, c * w)
    # Autocast would round weights and pixels to bf16, which is up to a grey level each time.
    with torch.autocast(images.device.type, enabled=False):
        x = vertical.expand(b, -1, -1) @ x
        x = x.reshape(b, height * c, w) @ horizontal.expand(b, -1, -1).mT
    return x.reshape(b, height, c, width).transpose(1, 2)


def _weights(
    start: Int64[Tensor, "*pair n"],
    length: Int64[Tensor, "*pair n"],
    full: int,
    size: int,
    outputs: Int64[Tensor, "*pair m s"],
    interpolation: Interpolation,
) -> Float[Tensor, "*pair k s {full}"]:
    """Matrices that resample `length` pixels from `start` on to `size` pixels, of which they give `outputs`.

    As aten's antialiased upsampling has it, which follows PIL: the kernel widens when shrinking and never
    when enlarging, sees no pixel outside the box, and is normalised over those it sees.
    """
    start, length = start[..., None, None], length[..., None, None]
    zoom = length / size
    widening = zoom.clamp(min=1)
    pixels = torch.arange(full, device=start.device)
    # Positions relative to the box, as aten has them after the crop: absolute ones round differently.
    inside = pixels - start
    centers = zoom * (outputs[..., None] + 0.5)
    weights = _kernel((inside + 0.5 - centers) / widening, interpolation)
    weights.mul_((inside >= 0) & (inside < length))
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _kernel(distance: Float[Tensor, "*k s t"], interpolation: Interpolation) -> Float[Tensor, "*k s t"]:
    """Triangle, or Keys' cubic with a = -0.5: aten's constant with antialiasing, as PIL's (without: -0.75).

    Overwrites its argument. The cubic's two pieces, a(|x|-1)(|x|-2)^2 between 1 and 2 and
    (a+2)|x|^3 - (a+3)|x|^2 + 1 below 1, are written with cut-off powers: the same polynomials without
    comparisons, which took most of the time on a CPU.
    """
    x = distance.abs_()
    if interpolation == "bilinear":
        return x.neg_().add_(1).clamp_(min=0)
    a = -0.5
    outer = x.neg_().add_(2).clamp_(min=0)
    inner = (outer - 1).clamp_(min=0)
    wide = outer.square().mul_(outer - 1).mul_(-a)
    return wide.addcmul_(inner.square(), inner.mul_(-2).add_(4 * a + 3))


def _to_unit(pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """[0, 255] to [-1, 1], in place; a fresh contiguous tensor where the caller's is a view."""
    return pixels.contiguous().div_(127.5).sub_(1)
