"""Weights & Biases, and Trackio, which has the same interface: init, log, finish. None is imported yet."""

from __future__ import annotations

import io
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.plugins import TrackerSpec
from dsdmae_cli.tracking import TrackedRun, Tracker, final_figures, need

_PATIENCE = 30  # seconds for a server to answer


class Logging(Tracker):
    """What both share: a run of a project, figures with their steps, pictures, the result's figures at the end.

    The project is WANDB_PROJECT or TRACKIO_PROJECT, or "dsdmae"; the run's name is its directory's.
    """

    module: ClassVar[str]
    install: ClassVar[str]

    @classmethod
    def usable(cls) -> None:
        need(cls.module, cls.module, cls.install)

    def __init__(self, run: TrackedRun) -> None:
        self.usable()
        self.step = run.resumed_at
        self.project = os.environ.get(f"{self.module.upper()}_PROJECT") or "dsdmae"
        identity = run.identity()
        # A name of its own: two directories called "run" are two runs.
        identity = identity or f"{run.path.resolve().name}-{uuid.uuid4().hex[:8]}"
        with _quiet():
            self.package: Any = import_module(self.module)
            self.run: Any = self.begun(run, identity)
        run.keep(identity)

    def begun(self, run: TrackedRun, identity: str) -> Any:
        """Begin a run, or go on with the one that this process group began before."""
        raise AssertionError("Logging is for a package")

    def put(self, values: dict[str, Any], step: int) -> None:
        """Log values of one step."""
        raise AssertionError("Logging is for a package")

    def log(self, record: Mapping[str, float]) -> None:
        self.step = int(record["step"])
        self.put({name: value for name, value in record.items() if name != "step"}, self.step)

    def picture(self, file: Path, step: int) -> None:
        self.put({file.stem.partition("-step-")[0]: self.package.Image(str(file))}, step)


class WeightsAndBiases(Logging):
    """A run of Weights & Biases: online, or offline where WANDB_MODE says so. Steps that a resumed run does again
    are logged again."""

    module = "wandb"
    install = "pip install 'dsdmae[wandb]'"

    def begun(self, run: TrackedRun, identity: str) -> Any:
        kind = self.package.Settings
        # By itself it waits for a network that has gone as long as that takes, with a GPU in its hands.
        known = {"finish_timeout": _PATIENCE} if "finish_timeout" in getattr(kind, "model_fields", {}) else {}
        settings = kind(silent=True, console="off", init_timeout=_PATIENCE, **known)
        try:
            begun = self.package.init(
                project=self.project, id=identity, name=run.path.resolve().name, resume="allow", dir=str(run.path),
                config=_plain(run.settings), job_type=run.command, settings=settings,
            )  # fmt: skip
        except self.package.errors.UsageError as error:
            raise SettingsError(
                f"tracker wandb: {' '.join(str(error).split())} (`wandb login`, or WANDB_MODE=offline to keep the run"
                " in its own directory until `wandb sync`)"
            ) from error
        # Their own counter must not go back, as a resumed run does: ours is an axis instead.
        begun.define_metric("step", hidden=True)
        begun.define_metric("*", step_metric="step")
        return begun

    def put(self, values: dict[str, Any], step: int) -> None:
        self.run.log({**values, "step": step})

    def close(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self.run.summary.update({f"result/{name}": value for name, value in final_figures(result).items()})
        with _quiet():
            self.run.finish(exit_code=0 if result is not None else 1)


class Trackio(Logging):
    """A run in Trackio's local store (TRACKIO_DIR; `trackio show` opens it), or where its own variables say."""

    module = "trackio"
    install = (
        "pip install trackio && pip install 'pillow>=13' (Trackio asks for an older Pillow than dsdmae, and works with"
        " this one)"
    )

    def begun(self, run: TrackedRun, identity: str) -> Any:
        config = {**_plain(run.settings), "command": run.command}
        return self.package.init(project=self.project, name=identity, resume="allow", config=config)

    def put(self, values: dict[str, Any], step: int) -> None:
        self.run.log(values, step=step)

    def close(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self.put({f"result/{name}": value for name, value in final_figures(result).items()}, self.step)
        with _quiet():
            self.package.finish()  # the run's own finish would leave it to be finished again as Python ends


def _plain(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {section: dict(table) for section, table in settings.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """No words of theirs among the lines of the run, and no question that nobody is there to answer."""
    keyboard = sys.stdin
    with redirect_stdout(io.StringIO()), Path(os.devnull).open(encoding="utf-8") as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = keyboard


WANDB = TrackerSpec(
    summary=f"Weights & Biases, online or with WANDB_MODE=offline ({WeightsAndBiases.install})",
    build="dsdmae_builtin.trackers.wandb:WeightsAndBiases",
)
TRACKIO = TrackerSpec(
    summary="Trackio's local store, for `trackio show` (pip install trackio)",
    build="dsdmae_builtin.trackers.wandb:Trackio",
)
