"""What restores tiles, whatever computes it (torch_network.py, onnx_network.py); engines.py chooses. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float32

Engine = Literal["torch", "onnx"]
Images = Float32[np.ndarray, "b 3 h w"]


class Network(Protocol):
    """A denoiser at work on a device.

    Attributes:
        engine: what computes it.
        device: where, in torch's words ("cpu", "cuda:0").
        origin: where its weights came from, for messages.
        sha256: names the weights in records.
        image_size: side of the images it takes, in pixels; where it takes others too, about what it learned from.
        size_multiple: it takes any height and width that are multiples of this; None = squares of image_size alone.
        patch: (height, width) of a patch, in pixels.
        batch_size: images of that size that go through it at once.
    """

    @property
    def engine(self) -> Engine: ...
    @property
    def device(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def image_size(self) -> int: ...
    @property
    def size_multiple(self) -> int | None: ...
    @property
    def patch(self) -> tuple[int, int]: ...
    @property
    def batch_size(self) -> int: ...

    def begin(self, images: Images) -> Callable[[], Images]:
        """Images in [-1, 1] on their way to being without their noise, in float32; what is given back waits for them.

        A device of its own works meanwhile; where there is none, all work is done when the result is asked for.

        Raises:
            MemoryError: the device has too little, which may be known only when the result is asked for.
        """
