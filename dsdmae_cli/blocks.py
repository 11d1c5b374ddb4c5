"""Blocks of an encoder by name, and what several of them give side by side: for probes and heads that read more than
the final features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.backbone import Backbone, evaluating
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import height_width

# Of the patches, and the class token where there is one.
Tokens = tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]


def check_blocks(encoder: Backbone, blocks: Sequence[int], key: str) -> None:
    """See that an encoder offers these blocks.

    Args:
        key: the setting that names them.

    Raises:
        SettingsError: it does not.
    """
    count = encoder.num_blocks
    if count == 1 and tuple(blocks) != (1,):
        raise SettingsError(
            f"{key}: {type(encoder).__name__} offers its final features alone; leave it out, or say last"
        )
    if outside := [block for block in blocks if not 1 <= block <= count]:
        raise SettingsError(f"{key}: there is no block {outside[0]}; this encoder has blocks 1 to {count}")


def numbers_of(encoder: Backbone, text: str, key: str) -> tuple[int, ...]:
    """The numbers, from 1, of blocks that are called "last", a number, or "last:N" (the last N).

    Raises:
        SettingsError: the encoder has no such blocks.
    """
    count = encoder.num_blocks
    if text == "last":
        return (count,)
    if text.isdigit():
        check_blocks(encoder, (int(text),), key)
        return (int(text),)
    wanted = int(text.removeprefix("last:"))
    if wanted > count > 1:
        raise SettingsError(f"{key}: {text} of {count} blocks, which this encoder has; take last:{count} or fewer")
    blocks = tuple(range(count - wanted + 1, count + 1))
    check_blocks(encoder, blocks, key)
    return blocks


@torch.no_grad()
def shape_of(encoder: Backbone, blocks: Sequence[int], key: str) -> tuple[int, int, bool]:
    """(tokens, features of each, whether there is a class token) of what some blocks give side by side.

    Raises:
        SettingsError: they have grids of several sizes.
    """
    device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
    blank = torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size), device=device)
    with evaluating(encoder):
        found = encoder.forward_blocks(blank, blocks)
    sizes = [patches.shape[1] for patches, _ in found]
    if len(set(sizes)) > 1:
        several, grids = (", ".join(map(str, numbers)) for numbers in (blocks, sizes))
        raise SettingsError(
            f"{key}: blocks {several} have grids of {grids} tokens and cannot be put side by side; name one block, or"
            " last"
        )
    return sizes[0], sum(patches.shape[2] for patches, _ in found), all(token is not None for _, token in found)
