"""TensorBoard events, in the folder tensorboard/ of the run. No torch until a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.plugins import TrackerSpec
from dsdmae_cli.tracking import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Every figure as a scalar against the step."""

    def __init__(self, run: TrackedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                "tracker tensorboard (train.trackers) needs TensorBoard; pip install 'dsdmae[tensorboard]'"
            ) from error
        self.writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def log(self, record: Mapping[str, float]) -> None:
        for name in record.keys() - {"step", "epoch"}:
            self.writer.add_scalar(name, record[name], record["step"])

    def close(self, result: Mapping[str, Any] | None) -> None:
        self.writer.close()


TENSORBOARD = TrackerSpec(
    summary="TensorBoard events in the run's directory (pip install 'dsdmae[tensorboard]')",
    build="dsdmae_builtin.trackers.tensorboard:TensorBoard",
)
