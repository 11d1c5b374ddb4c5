"""What became of pictures: records for scripts, lines for people, and the error to end with where some failed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsdmae_cli.data.values import Range
from dsdmae_cli.errors import DataError, DsdmaeError, RunFailed
from dsdmae_cli.pictures.network import Network
from dsdmae_cli.pictures.paths import Failure
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import Likeness, compare

# Below this even --strength 1 would change hardly a value (of 255).
_NOTHING = 0.05


class Scores(NamedTuple):
    """A picture before and after, each against its original."""

    noisy: Likeness
    restored: Likeness

    @classmethod
    def of(cls, noisy: Picture, restored: Picture, original: Picture) -> Scores:
        """Alpha is left out."""
        reference = original.pixels[..., : original.num_colors]
        before, after = (compare(p.pixels[..., : p.num_colors], reference) for p in (noisy, restored))
        return cls(before, after)

    def record(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: null where the pictures are equal."""
        return {
            f"{kind}_{name}": value if value is not None and math.isfinite(value) else None
            for kind, likeness in self._asdict().items()
            for name, value in likeness._asdict().items()
        }


@dataclass(frozen=True)
class Done:
    """A picture that was written.

    Attributes:
        output: its file; None = standard output.
        frames: pictures in the source.
        pages: how many of them were denoised, where it is a stack; else 1.
        limits: values that are black and white; None where all of 8 or 16 bits are used.
        noise_level: what the network would take out, root mean square, in units of 1/255.
        found: the kind of noise; empty for none.
        strength: share of the network's correction that was taken, 0..1.
        changed: whether any value of the result is another.
        scores: None where there was nothing to compare with.
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
    limits: Range | None
    noise_level: float
    found: str
    strength: float
    changed: bool
    scores: Scores | None
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
            "range": list(self.limits) if self.limits else None,
            "noise_level": round(self.noise_level, 2),
            "found": self.found or None,
            "strength": round(self.strength, 3),
            "changed": self.changed,
            **(self.scores.record() if self.scores else {}),
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        depth = f" {self.depth}-bit" if self.depth != 8 else ""
        words = [f"{self.width}x{self.height} {self.mode}{depth}", self._noise()]
        if self.scores:
            words.append(f"{self.scores.noisy} -> {self.scores.restored}")
        if self.limits:
            words.insert(1, f"{self.limits[0]:g} to {self.limits[1]:g}")
        if self.pages > 1:
            words.append(f"{self.pages} pages")
        elif self.frames > 1:
            words.append(f"the first of {self.frames} pictures in the file")
        return f"{self.output or 'standard output'}  {', '.join(words)}, {self.seconds:.1f} s"

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


@dataclass
class Outcome:
    """What became of all pictures.

    Attributes:
        network: what restored them.
        passes: shifted and turned passes that were averaged.
        done: what was written.
        failed: what was not, and why.
        sheet: the file that has all of them beside their results, once it is written.
        seconds: from opening the denoiser to the last file.
    """

    network: Network
    passes: int
    done: list[Done] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    sheet: Path | None = None
    seconds: float = 0.0

    def result(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "weights": {"origin": self.network.origin, "sha256": self.network.sha256},
            "engine": self.network.engine,
            "passes": self.passes,
            "pictures": [done.record() for done in self.done],
            "failed": [{"source": failure.source, "reason": failure.reason} for failure in self.failed],
            "sheet": str(self.sheet) if self.sheet else None,
            "seconds": round(self.seconds, 2),
        }

    def failure(self) -> DsdmaeError | None:
        """What to end with where something failed: with 2 where nothing came of it and the input alone is to blame."""
        if not self.failed:
            return None
        names = "; ".join(map(str, self.failed))
        if not self.done:
            kind = DataError if all(failure.of_input for failure in self.failed) else RunFailed
            return kind(f"nothing was denoised: {names}")
        return RunFailed(f"{len(self.failed)} of {len(self.failed) + len(self.done)} failed: {names}")
