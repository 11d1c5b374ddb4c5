"""Pictures inside a page, each of bounded size."""

from __future__ import annotations

import base64
import io

from PIL import Image

from dsdmae_cli.page.blocks import Thumb

MOST_BYTES = 90_000
_QUALITIES = (85, 70, 50, 30)


def thumb(image: Image.Image, alt: str, *, width: int = 800, most: int = MOST_BYTES, sharp: bool = False) -> Thumb:
    """A picture as WebP of `width` pixels and `most` bytes at most: its quality falls first, then its size.

    Args:
        sharp: its pixels are seen where it is enlarged.
    """
    image = image.convert("RGB")
    while True:
        if image.width > width:
            size = (width, max(1, round(image.height * width / image.width)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            stream = io.BytesIO()
            image.save(stream, format="WEBP", quality=quality, method=2)
            if stream.tell() <= most or width <= 64:
                source = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
                return Thumb(source, image.width, image.height, alt, sharp)
        width = min(width, image.width) * 3 // 4
