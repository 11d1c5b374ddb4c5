"""What became of pictures: records for scripts, lines for people, and the error to end with where some failed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from jaxtyping import Shaped

from dsdmae_cli.data.values import Ranges, in_words
from dsdmae_cli.errors import DataError, DsdmaeError, RunFailed
from dsdmae_cli.pictures.paths import Failure, told
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import Likeness, compare, psnr_where
from dsdmae_cli.report import number_of

# Below this even --strength 1 would change hardly a value (of 255).
_NOTHING = 0.05
_NAMED = 3  # values that are left out


def finite(value: float | None) -> float | None:
    """For JSON, which has no infinity: null where pictures are equal."""
    return value if value is not None and math.isfinite(value) else None


class Changed(NamedTuple):
    """The pixels that were changed on purpose, before and after.

    Attributes:
        share: of all pixels, 0 to 1.
        before, after: their PSNR in dB; of all pixels where none was changed.
    """

    share: float
    before: float
    after: float

    @classmethod
    def of(
        cls,
        corrupted: Shaped[np.ndarray, "h w c"],
        restored: Shaped[np.ndarray, "h w c"],
        original: Shaped[np.ndarray, "h w c"],
    ) -> Changed:
        """Of pictures of one size and type; a pixel is changed where one of its channels is."""
        where = (corrupted != original).any(axis=2)
        share = float(where.mean())
        taken = where if share else np.ones_like(where)
        return cls(share, psnr_where(corrupted, original, taken), psnr_where(restored, original, taken))

    def record(self, name: str) -> dict[str, float | None]:
        """For --json; `name` is what the pictures are called before they are restored."""
        return {
            "changed": round(self.share, 4),
            f"{name}_changed_psnr": finite(self.before),
            "restored_changed_psnr": finite(self.after),
        }


class Scores(NamedTuple):
    """A picture before and after, each against its original."""

    noisy: Likeness
    restored: Likeness
    changed: Changed | None = None

    @classmethod
    def of(cls, noisy: Picture, restored: Picture, original: Picture, *, on_purpose: bool = False) -> Scores:
        """Alpha is left out.

        Args:
            on_purpose: `noisy` was made of `original`: say the scores of the pixels that were changed, too.
        """
        given, result, reference = (p.pixels[..., : p.num_colors] for p in (noisy, restored, original))
        before, after = compare(given, reference), compare(result, reference)
        return cls(before, after, Changed.of(given, result, reference) if on_purpose else None)

    def record(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: null where the pictures are equal."""
        found = {
            f"{kind}_{name}": finite(value)
            for kind, likeness in (("noisy", self.noisy), ("restored", self.restored))
            for name, value in likeness._asdict().items()
        }
        return found | (self.changed.record("noisy") if self.changed else {})


@dataclass(frozen=True)
class Done:
    """A picture that was written.

    Attributes:
        output: its file; None = standard output.
        frames: pictures in the source.
        pages: how many of them were denoised, where it is a stack; else 1.
        beside: pages that are overviews or masks of these, and were left out.
        limits: values that are black and white; None where all of 8 or 16 bits are used.
        noise_level: what the network would take out, root mean square, in units of 1/255.
        found: the kind of noise; empty for none.
        strength: share of the network's correction that was taken, 0..1.
        changed: whether any value of the result is another.
        scores: None where there was nothing to compare with.
        left_out: values that say that nothing was measured, or that stand apart; where they are nothing is changed.
        weights: SHA-256 of those that restored it; of a stack its first page.
        seconds: from reading to writing.
    """

    source: str
    output: Path | None
    width: int
    height: int
    mode: str
    depth: int
    frames: int
    pages: int
    beside: int
    limits: Ranges | None
    noise_level: float
    found: str
    strength: float
    changed: bool
    scores: Scores | None
    left_out: tuple[float, ...] = ()
    weights: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "source": self.source,
            "output": str(self.output) if self.output else None,
            "width": self.width,
            "height": self.height,
            "mode": self.mode,
            "depth": self.depth,
            "frames": self.frames,
            "pages": self.pages,
            "overviews_left_out": self.beside,
            "range": self.limits,
            "left_out": list(self.left_out),
            "noise_level": round(self.noise_level, 2),
            "found": self.found or None,
            "strength": round(self.strength, 3),
            "changed": self.changed,
            "weights_sha256": self.weights,
            **(self.scores.record() if self.scores else {}),
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        return f"{self.output or 'standard output'}  {self.words()}, {self.seconds:.1f} s"

    def words(self) -> str:
        """What the picture is, what was found in it and what was done."""
        depth = f" {self.depth}-bit" if self.depth != 8 else ""
        words = [f"{self.width}x{self.height} {self.mode}{depth}", self._noise()]
        if self.scores:
            words.append(f"{self.scores.noisy} -> {self.scores.restored}")
        if self.limits:
            words.insert(1, f"{in_words(self.limits)}{_but(self.left_out)}")
        if self.pages > 1:
            words.append(f"{self.pages} pages")
        elif self.frames > 1:
            words.append(f"the first of {self.frames} pictures in the file")
        if self.beside:
            words.append(f"without {number_of(self.beside, 'overview')} or mask{'s' * (self.beside > 1)}")
        return ", ".join(words)

    def _noise(self) -> str:
        """What was found and what was done about it."""
        level = f"{self.noise_level:.1f} of 255"
        if not self.changed:
            if self.noise_level < _NOTHING:
                return "unchanged: there is nothing to take out"
            if self.strength == 0 and self.found:
                return f"unchanged as asked for: {self.found}, about {level}"
            return f"unchanged: no noise found; --strength 1 would take out {level}"
        what = f"{self.found}, about {level}" if self.found else f"what looks like noise, {level}"
        done = "removed" if self.strength > 0.995 else f"{self.strength:.0%} of it removed"
        return f"{what}: {done}"


def _but(values: tuple[float, ...]) -> str:
    """The first of the values that are left out, and how many more there are."""
    more = f" and {len(values) - _NAMED:,} more" if len(values) > _NAMED else ""
    return f" but {', '.join(f'{value:g}' for value in values[:_NAMED])}{more}" if values else ""


class Record(Protocol):
    """What became of one picture: a frozen dataclass.

    Attributes:
        seconds: from reading to writing.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seconds(self) -> float: ...
    def record(self) -> dict[str, Any]:
        """For --json."""

    def __str__(self) -> str:
        """A line for people."""


@dataclass
class Outcome:
    """What became of all pictures.

    Attributes:
        about: what restored them, for --json.
        verb: what was done to them, for messages: "denoised".
        done: what was written.
        failed: what was not, and why.
        sheet: the file that has all of them beside their results, once it is written.
        seconds: from opening the network to the last file.
    """

    about: dict[str, Any]
    verb: str
    done: list[Record] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    sheet: Path | None = None
    seconds: float = 0.0

    def result(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            **self.about,
            "pictures": [done.record() for done in self.done],
            "failed": [{"source": failure.source, "reason": failure.reason} for failure in self.failed],
            "sheet": str(self.sheet) if self.sheet else None,
            "seconds": round(self.seconds, 2),
        }

    def failure(self) -> DsdmaeError | None:
        """What to end with where something failed: with 2 where nothing came of it and the input alone is to blame."""
        if not self.failed:
            return None
        names = told(self.failed, most=5)
        if not self.done:
            kind = DataError if all(failure.of_input for failure in self.failed) else RunFailed
            return kind(f"nothing was {self.verb}: {names}")
        return RunFailed(f"{len(self.failed)} of {len(self.failed) + len(self.done)} failed: {names}")
