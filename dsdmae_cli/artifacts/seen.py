"""What a network's channels are and which values are black and white to it: for whoever gives it pixels without dsdmae.

A file that leaves dsdmae has to say so, or 12-bit pictures are divided by 65,535 and all are black to the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.data.values import Ranges, in_words


@dataclass(frozen=True)
class Seen:
    """How pictures become a network's pixels.

    Attributes:
        channels: of its input.
        bands: which of a picture's bands they are, from 0; None = all, or not known.
        range: (low, high) of the pictures' values, black and white, or a pair for each channel; None = those of the
            file's type (255 or 65,535 is white).
    """

    channels: int
    bands: tuple[int, ...] | None = None
    range: Ranges | None = None

    @property
    def channels_in_words(self) -> str:
        """RGB, grey, or how many, and of which bands."""
        words = {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")
        if self.bands is None:
            return words
        return f"{self.channels} channels (bands {', '.join(map(str, self.bands))} of its pictures)"

    def in_words(self, black: int) -> str:
        """What they are before normalisation, as a part of a line.

        Args:
            black: what becomes of black; white is 1.
        """
        if self.range is None:
            return f"{self.channels_in_words} in [{black}, 1]"
        return f"{self.channels_in_words}, values of {in_words(self.range)} as [{black}, 1]"

    def pixels(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> str:
        """What a network takes, in words; in [-1, 1] where nothing is said to normalise by."""
        if mean is None or std is None:
            return self.in_words(-1)
        return f"{self.in_words(0)}, normalised by mean {_one_or_all(mean)} and std {_one_or_all(std)}"

    def as_values(self) -> dict[str, Any]:
        """For JSON."""
        return {"channels": self.channels, "bands": self.bands, "range": self.range}

    def as_metadata(self) -> dict[str, str]:
        """For a file's metadata, JSON in strings; what is not known is left out."""
        return {key: json.dumps(value) for key, value in self.as_values().items() if value is not None}


def seen_by(opened: Opened) -> Seen:
    """What the network was trained on: of a fine-tuned one, in fine-tuning."""
    data = (opened.tuned.settings if opened.tuned else opened.settings or {}).get("data", {})
    bands, limits = data.get("bands", "auto"), data.get("range")
    return Seen(
        opened.encoder.in_chans,
        tuple(bands) if isinstance(bands, list | tuple) else None,
        _ranges(limits) if isinstance(limits, list | tuple) else None,
    )


def _one_or_all(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(set(values)) == 1 else list(values)


def _ranges(limits: Any) -> Ranges:
    if isinstance(limits[0], list | tuple):
        return tuple((float(low), float(high)) for low, high in limits)
    return (float(limits[0]), float(limits[1]))
