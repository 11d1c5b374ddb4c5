"""timm's RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as a Transform of the processes that decode."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import Size, height_width


class RandAugment:
    """A policy such as "rand-m9-mstd0.5-inc1" for images of one size, drawn by a seed of each image's own.

    Raises:
        SettingsError: timm does not understand the policy, or the images are not RGB.
    """

    def __init__(self, policy: str, image_size: Size, channels: int = 3) -> None:
        if channels != 3:
            raise SettingsError(
                f"finetune.rand_augment varies the colours of RGB images, and data.channels = {channels}; switch it off"
                " with --set finetune.rand_augment=none"
            )
        # As timm's own training: shifts up to 45% of the shorter side, and grey where an image moves out of its frame.
        options = {"translate_const": int(min(height_width(image_size)) * 0.45), "img_mean": (128, 128, 128)}
        try:
            self.transform = rand_augment_transform(policy, options)
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise SettingsError(
                f"finetune.rand_augment = {policy!r} is no policy of timm's RandAugment; write it as"
                " rand-m9-mstd0.5-inc1 (magnitude 9, spread 0.5, stronger with magnitude), or none"
            ) from error

        for op in self.transform.ops:
            if "Posterize" in op.name:
                op.level_fn = partial(_at_least_one_bit, op.level_fn)

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        # timm draws from the global states of the interpreter and of numpy.
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return self.transform(image)


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, options: dict[str, Any]) -> tuple[int]:
    """timm's strongest posterising keeps no bit at all, a black image, which Pillow 13 refuses."""
    return (max(1, level_fn(level, options)[0]),)
