"""MLflow, by its client. Not imported until a run begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dsdmae_cli.plugins import TrackerSpec
from dsdmae_cli.tracking import TrackedRun, Tracker, final_figures, flat, need

_INSTALL = "pip install 'dsdmae[mlflow]'"
_LONGEST = 500  # characters of a parameter, by the stores' own limit at its lowest


class MLflow(Tracker):
    """A run in the store of MLFLOW_TRACKING_URI; where none is named, in mlflow/ of its directory (SQLite, files).

    The experiment is MLFLOW_EXPERIMENT_NAME or "dsdmae"; settings are parameters, the result's numbers metrics.
    """

    @classmethod
    def usable(cls) -> None:
        need("mlflow", "mlflow", _INSTALL)

    def __init__(self, run: TrackedRun) -> None:
        self.usable()
        # By themselves minutes of tries for each figure, in the midst of training.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        package = import_module("mlflow")
        for name in ("mlflow", "alembic"):  # tables that are made are nobody's news
            logging.getLogger(name).setLevel(logging.WARNING)
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder = run.path.resolve() / "mlflow"
            folder.mkdir(exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        self.client: Any = package.MlflowClient(tracking_uri=uri)
        self.step = run.resumed_at
        identity = run.identity()
        if identity is None:
            identity = self._begun(run, artifacts)
            run.keep(identity)
        else:
            self.client.update_run(identity, status="RUNNING")
        self.identity = identity

    def _begun(self, run: TrackedRun, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dsdmae"
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=artifacts)
        begun = self.client.create_run(experiment, run_name=run.path.resolve().name, tags={"command": run.command})
        identity = str(begun.info.run_id)
        for key, value in flat(run.settings).items():
            self.client.log_param(identity, key, str(value)[:_LONGEST])
        return identity

    def log(self, record: Mapping[str, float]) -> None:
        self.step = int(record["step"])
        for name in record.keys() - {"step"}:
            self.client.log_metric(self.identity, name, float(record[name]), step=self.step)

    def picture(self, file: Path, step: int) -> None:
        self.client.log_artifact(self.identity, str(file), "pictures")

    def close(self, result: Mapping[str, Any] | None) -> None:
        for name, value in final_figures(result or {}).items():
            self.client.log_metric(self.identity, f"result.{name}", float(value), step=self.step)
        self.client.set_terminated(self.identity, "KILLED" if result is None else "FINISHED")


MLFLOW = TrackerSpec(
    summary=f"MLflow: MLFLOW_TRACKING_URI, or the run's directory ({_INSTALL})",
    build="dsdmae_builtin.trackers.mlflow:MLflow",
)
