"""TensorBoard events, in the folder tensorboard/ of the run. No torch until a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsdmae_cli.plugins import TrackerSpec
from dsdmae_cli.tracking import TrackedRun, Tracker, final_figures, flat, need

_INSTALL = "pip install 'dsdmae[tensorboard]'"


class TensorBoard(Tracker):
    """Every figure as a scalar against the step, pictures as images, settings and the result as texts."""

    @classmethod
    def usable(cls) -> None:
        need("tensorboard", "tensorboard", _INSTALL)

    def __init__(self, run: TrackedRun) -> None:
        self.usable()
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint that a resumed run goes on from is written again.
        purge = run.resumed_at + 1 if run.resumed_at else None
        self.writer: Any = SummaryWriter(str(run.path / "tensorboard"), purge_step=purge)
        self.step = run.resumed_at
        if not run.resumed_at:
            self.writer.add_text("settings", _table(flat(run.settings)), 0)

    def log(self, record: Mapping[str, float]) -> None:
        self.step = int(record["step"])
        for name in record.keys() - {"step", "epoch"}:
            self.writer.add_scalar(name, record[name], self.step)

    def picture(self, file: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            self.writer.add_image(file.stem.partition("-step-")[0], np.asarray(image.convert("RGB")), step, None, "HWC")

    def close(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self.writer.add_text("result", _table(final_figures(result)), self.step)
        self.writer.close()


def _table(values: Mapping[str, Any]) -> str:
    """Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])


TENSORBOARD = TrackerSpec(
    summary=f"TensorBoard events in the run's directory ({_INSTALL})",
    build="dsdmae_builtin.trackers.tensorboard:TensorBoard",
)
