"""What every tracker promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dsdmae_cli import plugins
from dsdmae_cli.testing.material import check_spec, small


def check_tracker(name: str) -> None:
    """See that an installed tracker follows a run to its end, and one that is stopped.

    Args:
        name: as train.trackers takes it, with its argument if it has one.

    Raises:
        AssertionError: a promise is not kept.
    """
    from dsdmae_cli.config.describe import tables
    from dsdmae_cli.recipes.pretrain import pretrain
    from dsdmae_cli.report import Report
    from dsdmae_cli.tracking import TrackedRun, Tracker

    class Listening(Report):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    spec = check_spec("tracker", name)
    loaded = small(f"train.trackers={name}", "train.knn_every=1")
    with tempfile.TemporaryDirectory(prefix="dsdmae-check-") as folder:
        path = Path(folder) / "run"
        path.mkdir()
        tracker = plugins.load(spec.build)(TrackedRun(name, path, "pretrain", tables(loaded.settings), 4))
        assert isinstance(tracker, Tracker), (
            f"build gives a {type(tracker).__name__}, not a dsdmae_cli.tracking.Tracker"
        )
        tracker.log({"step": 5, "epoch": 0.5, "loss": 1.0})
        tracker.log({"step": 5, "epoch": 0.5, "knn": 0.1, "spread": 0.5, "rank": 3.0})
        tracker.close(None)
        report = Listening()
        pretrain(loaded, out=Path(folder) / "trained", resume=False, overridden=False, report=report)
        assert not report.warnings, f"a run with it warned: {report.warnings[0]}"
