"""Where a plain vision transformer looks: the attention of its last block, over the images of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.augment import Interpolation, prepare
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.size import height_width

_BATCH = 64


def check_attention(encoder: Backbone) -> None:
    """See that an encoder, on the CPU, tells where it looks.

    Raises:
        SettingsError: it does not.
    """
    images = torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size))
    with torch.no_grad():
        found = encoder.eval().attention(images)
    if found is None:
        raise SettingsError("--attention is for plain vision transformers, and this encoder is none; leave it out")


@torch.no_grad()
def attention_maps(
    encoder: Backbone,
    dataset: ImageDataset,
    indices: Sequence[int],
    device: torch.device,
    precision: str,
    interpolation: Interpolation,
    unreadable: Unreadable,
) -> Float[Tensor, "n heads rows columns"]:
    """`Backbone.attention` of images that can be read, in eval mode, on the CPU.

    Args:
        encoder: on the device; one that tells (see check_attention).

    Raises:
        DataError: an image that could be read before cannot be read any more, and others neither.
    """
    encoder.eval()
    parts = []
    for batch in square_batches(dataset, indices, encoder.image_size, _BATCH, device, unreadable):
        with autocast(device, precision):
            found = encoder.attention(prepare(batch.images, encoder.image_size, interpolation))
        assert found is not None  # check_attention looked
        parts.append(found.float().cpu())
    return torch.cat(parts)
