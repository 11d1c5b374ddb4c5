"""What a backbone is to this program, and what its author must read.

A backbone maps an image to a grid of features. One that can also encode a subset of its patches sets
`encodes_subset` in its spec and overrides `forward_subset`; one that can replace patches by a mask token sets
`takes_mask_token` and overrides `forward_masked`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import Size, as_size, height_width, size_word, size_words


class Backbone(nn.Module):
    """An image encoder with a grid of tokens.

    Attributes:
        grid: (rows, columns) of tokens.
        width: features per token.
        image_size: of the images it takes: side of a square in pixels, or (height, width); `height_width` reads both.
        timm_name, timm_kwargs: `timm.create_model(timm_name, **timm_kwargs)` builds the same network, and
            `timm_state()` fits it. An empty timm_name means an architecture that timm does not have; `timm_state()`
            is then its own state_dict.
        in_chans: channels of the images it takes; `set_channels` sets it.
        mean, std: how the network under timm's names wants its pixels normalised, from [0, 1], by channel. `forward`
            takes images in [-1, 1] whatever they are; a backbone with other values than 0.5 renormalises inside.
        has_class_token: `forward_tokens` gives one.
        size_multiple: where it is a number, `forward` takes images of any height and width that are multiples of it,
            whatever image_size says; None = image_size alone.
    """

    grid: tuple[int, int]
    width: int
    image_size: Size
    timm_name: str
    timm_kwargs: dict[str, Any]
    in_chans: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    has_class_token: bool = False
    size_multiple: int | None = None
    _gain: Tensor | None
    _offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_gain", None, persistent=False)

    def set_channels(self, in_chans: int | str) -> int:
        """Take images of so many channels; what `__init__` of one that does so for any number calls first.

        Args:
            in_chans: as its settings have it; "auto", where no images have said how many there are, is RGB.
        """
        self.in_chans = 3 if isinstance(in_chans, str) else in_chans
        self.mean = self.std = (0.5,) * self.in_chans
        return self.in_chans

    def set_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Have `normalize` give the network pixels by this mean and standard deviation of theirs, from [0, 1].

        Of values for RGB, where that is not what the network sees, each channel gets their average.
        """
        if len(mean) != self.in_chans:
            mean, std = ((sum(values) / len(values),) * self.in_chans for values in (mean, std))
        self.mean, self.std = mean, std
        of_mean, of_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        # ((x + 1) / 2 - mean) / std as one multiplication and addition; no part of the weights.
        self.register_buffer("_gain", 0.5 / of_std, persistent=False)
        self.register_buffer("_offset", (0.5 - of_mean) / of_std, persistent=False)

    def normalize(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] as the network wants them: by `mean` and `std` where set_normalization set them."""
        return images if self._gain is None else torch.addcmul(self._offset, images, self._gain)

    @property
    def num_tokens(self) -> int:
        """Tokens per image, rows times columns."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the part of the image that stands behind one token."""
        height, width = height_width(self.image_size)
        return height // self.grid[0], width // self.grid[1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """Final features of all tokens, row by row, normalised as the architecture does last."""
        raise AssertionError("a backbone overrides forward")

    def forward_tokens(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]:
        """What `forward` gives, and the class token's final features, or None where there is none."""
        return self(images), None

    @property
    def num_blocks(self) -> int:
        """How many blocks `forward_blocks` knows, the last with the final features; 1 = those alone."""
        return 1

    def forward_blocks(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int]
    ) -> Sequence[tuple[Float[Tensor, "b _ _"], Float[Tensor, "b _"] | None]]:
        """Features after each of these blocks (1 = the first): its tokens, and its class token if there is one.

        What the last block gives is what `forward_tokens` gives, final norm included; inner blocks give what the next
        one reads. Blocks of one network may differ in grid and width.
        """
        return [self.forward_tokens(images) for _ in blocks]

    def forward_grid(self, images: Float[Tensor, "b c h w"], block: int | None = None) -> Float[Tensor, "b r k d"]:
        """Features of the patches as they lie in the images: [images, rows, columns, features].

        Args:
            images: of any height and width that are whole numbers of patches (`at_size` says what happens then). Who
                has many batches of one other size calls `at_size` once and this on what it gives.
            block: after which one, as forward_blocks counts; None = the final features.

        Raises:
            SettingsError: the architecture takes no images of this size.
        """
        size = as_size(*images.shape[-2:])
        net = at_size(self, size)
        [(tokens, _)] = net.forward_blocks(images, [self.num_blocks if block is None else block])
        grid = net.grid if tokens.shape[1] == net.num_tokens else grid_of(tokens.shape[1], size)
        return tokens.unflatten(1, grid)

    def attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads rows columns"] | None:
        """How much the last block looks at each patch: the class token's attention, or where there is none, the mean of
        all patches'. None for an architecture without such attention.
        """
        return None

    def forward_subset(
        self, images: Float[Tensor, "b c h w"], ids_keep: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """Final features of the tokens `ids_keep` alone; the others are never computed."""
        raise AssertionError("the spec says that this backbone cannot encode a subset")

    def forward_subset_tokens(
        self, images: Float[Tensor, "b c h w"], ids_keep: Int64[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b d"] | None]:
        """What `forward_subset` gives, and the class token's features that saw the same tokens, or None."""
        return self.forward_subset(images, ids_keep), None

    def forward_masked(
        self, images: Float[Tensor, "b c h w"], masked: Bool[Tensor, "b t"], mask_token: Float[Tensor, "1 1 d"]
    ) -> Float[Tensor, "b t d"]:
        """Final features where the embedding of each masked patch (True) is replaced by `mask_token`.

        Positions are added afterwards, so that the network knows where something is missing.
        """
        raise AssertionError("the spec says that this backbone takes no mask token")

    def timm_state(self) -> dict[str, Tensor]:
        """Weights under timm's own parameter names, the network's own tensors: what is copied into them is loaded."""
        raise AssertionError("a backbone overrides timm_state")

    def adapted(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same network for images of another number of channels, brought to this one's, as timm does
        with published ones (see on_channels). For a network whose first layers are convolutions of pixels; one that
        reads them otherwise overrides this.

        Args:
            given: under the names of timm_state, as they are.
        """
        own = self.timm_state()
        return {
            name: on_channels(weight, self.in_chans) if self._reads_pixels(own.get(name), weight) else weight
            for name, weight in given.items()
        }

    def _reads_pixels(self, own: Tensor | None, given: Tensor) -> bool:
        """Whether a weight is the same convolution of pixels as an own one, but for the number of their channels."""
        if own is None or own.ndim != 4 or own.shape[1] != self.in_chans or own.shape == given.shape:
            return False
        return own.shape[:1] + own.shape[2:] == given.shape[:1] + given.shape[2:]

    @property
    def body(self) -> nn.Module:
        """timm's module inside, by whose layers the learning rate can decay; itself where there is none."""
        return self

    def set_image_size(self, image_size: Size) -> None:
        """Take images of another size with the same weights, position embeddings resampled; patches keep their size.

        Raises:
            SettingsError: the architecture cannot, or the size is no whole number of patches.
        """
        if image_size != self.image_size:
            raise SettingsError(
                f"{type(self).__name__} takes images of {size_words(self.image_size)} px alone: its plugin has no"
                f" set_image_size; leave --image-size {size_word(image_size)} out"
            )


class Pixels(Backbone):
    """No network: the pixels themselves as one token, the baseline that any features must beat."""

    def __init__(self, image_size: Size, in_chans: int = 3) -> None:
        super().__init__()
        self.set_channels(in_chans)
        height, width = height_width(image_size)
        self.grid, self.width, self.image_size = (1, 1), in_chans * height * width, image_size
        self.timm_name, self.timm_kwargs = "", {}

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 d"]:
        return images.flatten(1).unsqueeze(1)

    def timm_state(self) -> dict[str, Tensor]:
        return {}


B = TypeVar("B", bound=Backbone)


def at_size(backbone: B, image_size: Size) -> B:
    """The same network for images of another size, rectangles too: position embeddings (and tables of biases over
    distances) are interpolated from the backbone's own, all other weights are the very same tensors.

    The backbone is not changed, and no second interpolation is laid over a first one. What is trained through the
    result trains the backbone, but for what was interpolated, which is the result's own; what is loaded into the
    backbone afterwards is seen but for that.

    Returns:
        The backbone itself if it takes images of that size as it is.

    Raises:
        SettingsError: the architecture cannot, or the size is no whole number of patches.
    """
    if height_width(image_size) == height_width(backbone.image_size):
        return backbone
    shared = [*backbone.parameters(), *backbone.buffers()]
    other = copy.deepcopy(backbone, {id(tensor): tensor for tensor in shared})
    other.set_image_size(image_size)
    return other


def on_channels(weight: Float[Tensor, "o c ..."], number: int) -> Float[Tensor, "o n ..."]:
    """Filters of c channels for images of another number of them.

    They are repeated channel by channel and scaled by c / number, so that answers stay of the size they had (and, where
    number is a multiple of c, the same for an image whose channels are all alike); for one channel they are summed.
    As timm.models.adapt_input_conv does for three channels.
    """
    if number == 1:
        return weight.sum(dim=1, keepdim=True)
    there = weight.shape[1]
    repeats = [1, -(-number // there), *[1] * (weight.ndim - 2)]
    return weight.repeat(*repeats)[:, :number] * (there / number)


def grid_of(num_tokens: int, image_size: Size) -> tuple[int, int]:
    """Rows and columns of so many tokens of an image, the division that is nearest to its height over width.

    Maps of hierarchical networks say how many tokens they have and not how they lie.
    """
    height, width = height_width(image_size)
    rows = [n for n in range(1, num_tokens + 1) if num_tokens % n == 0]
    best = min(rows, key=lambda n: abs(math.log(n * n / num_tokens * width / height)))
    return best, num_tokens // best


def to_autocast_dtype(x: Tensor) -> Tensor:
    """Cast to autocast's dtype where autocast is on, so that a residual stream runs in it.

    Half the memory traffic of the pointwise work; docs/design/performance.md has the figures.
    """
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def gather_tokens(x: Float[Tensor, "b t d"], ids: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """The tokens `ids` of each image."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "1 t d"]:
    """Fixed 2-D sine-cosine position embedding, as MAE (He et al. 2022) has it.

    The first half of the features encodes the column, the second the row; each half is sin then cos of
    position / 10000^(i / (width/4)).

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sine-cosine embedding needs a width that is a multiple of 4, got {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    parts = []
    for positions in (columns.repeat(grid[0]), rows.repeat_interleave(grid[1])):
        angles = positions[:, None] * omega
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float().unsqueeze(0)


def freeze_unmet(network: nn.Module, output: Tensor) -> None:
    """Take the weights out of training that a result of a network does not depend on.

    No gradient ever reaches them: DDP would wait for it in vain, and in one process they would be counted as trained.

    Args:
        output: of the network in eval mode, where no block is dropped at random; made while gradients are recorded.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(trained)
    if output.requires_grad:
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A block with a network in eval mode, and afterwards in the mode that it was in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
