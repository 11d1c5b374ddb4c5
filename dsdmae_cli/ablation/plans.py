"""What each trial takes, worked out once and before it runs; with --equal compute, how many epochs that allows it.

Equal compute is equal floating-point operations of pre-training, counted in the network (runs.plan.measure_work).
The budget is the work of the base: the settings that all trials start from, without what is swept, for their epochs.
Epochs are whole, so that a trial meets the budget as nearly as half of one of its epochs.
"""

from __future__ import annotations

import statistics as st
from dataclasses import replace

from dsdmae_cli.ablation.definition import Definition
from dsdmae_cli.ablation.measurable import Unmeasurable, check_measurable
from dsdmae_cli.ablation.sweep import Point, describe
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.runs.plan import Plan, make_plan
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedSettings
from dsdmae_cli.settings.size import Size

Pace = tuple[str, str, Size]  # method, network, size of an image
FAR_BEYOND = 1.5  # times the budget: no longer a comparison at equal compute


class Plans:
    """The plan of each point of a study."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._plans: dict[str, Plan] = {}
        self._paces: dict[Pace, float | None] = {}
        self._pace_of: dict[str, Pace] = {}
        self._measurable: list[ResolvedData] = []
        self._images_differ = any(axis.dotted.startswith("data.") for axis in definition.axes)

    def of(self, point: Point) -> Plan:
        """A point's plan, the base's for {}; points differ in more than their work, seeds in nothing.

        Raises:
            DsdmaeError: the network or the data refuse the point's settings.
        """
        name = describe(point)
        if name not in self._plans:
            try:
                self._plans[name] = self._work_out(point)
            except DsdmaeError as error:
                of_all = not name or (isinstance(error, Unmeasurable) and not self._images_differ)
                raise type(error)(str(error) if of_all else f"trial {name}: {error}") from error
        return self._plans[name]

    def _work_out(self, point: Point) -> Plan:
        settings = self._resolved(point, None)
        plan = make_plan(settings, timed=False)
        # Of other images than any trial's nothing is measured.
        if (point or not self._images_differ) and settings.data not in self._measurable:
            check_measurable(self.definition, settings.data)
            self._measurable.append(settings.data)
        budget = self.budget if point else None
        if budget is None:
            return plan
        epochs = max(1, round(plan.epochs * budget / _gflop(plan)))
        self._resolved(point, epochs)  # a warm-up of a fixed length may be longer than these epochs
        return replace(plan, epochs=epochs, steps=plan.steps // plan.epochs * epochs)

    def _resolved(self, point: Point, epochs: int | None) -> ResolvedSettings:
        return resolve(self.definition.settings(point, self.definition.seed_numbers()[0], epochs).settings)

    def work_out(self, points: list[Point]) -> None:
        """The plans of a grid's points; of a search, whose points are not known, the plan of what they start from."""
        for point in points or [{}]:
            self.of(point)

    def once(self) -> Definition:
        """The definition without the points that are the same computation as an earlier one."""
        seen: list[tuple[Settings, str]] = []
        twins: dict[str, str] = {}
        for point in self.definition.points:
            settings = self._resolved(point, None)
            method = settings.method.model_copy(update=settings.method.rounded(self.of(point).tokens))
            computed, name = settings.model_copy(update={"method": method}), describe(point)
            first = next((before for known, before in seen if known == computed), None)
            if first is None:
                seen.append((computed, name))
            else:
                twins[name] = first
        return replace(self.definition, twins=twins)

    def settings(self, point: Point, seed: int) -> Loaded[Settings]:
        """The settings of one trial, with the epochs that it gets."""
        epochs = None if self.budget is None else self.of(point).epochs
        return self.definition.settings(point, seed, epochs)

    @property
    def budget(self) -> float | None:
        """GFLOP that each trial may take; None where trials have equal epochs."""
        return None if self.definition.equal == "epochs" else _gflop(self.of({}))

    def warnings(self) -> list[str]:
        """Which points so far cannot meet the budget."""
        if self.budget is None:
            return []
        shares = {name: _gflop(plan) / self.budget for name, plan in self._plans.items()}
        return [
            f"{name}: one epoch takes {share:.2f} times what --equal compute allows; give the base more --epochs"
            for name, share in shares.items()
            if share > FAR_BEYOND
        ]

    def most_memory(self) -> float:
        """GiB of the largest plan so far."""
        return max(plan.memory_gib for plan in self._plans.values())

    def work(self, point: Point) -> float:
        """GFLOP of a whole run."""
        return _gflop(self.of(point))

    def seconds(self, point: Point) -> float | None:
        """Likely time of a run on this machine, with the threads set now; None where only the run itself can tell.

        One micro-batch is timed of each method and network; what differs in other settings goes by its work.
        """
        name = describe(point)
        if name not in self._pace_of:  # of a point, not of each of its seeds: settings take their time
            settings = self._resolved(point, None)
            network = settings.backbone.model_dump_json()
            self._pace_of[name] = (settings.method.name, network, self.of(point).image_size)
        pace = self._pace_of[name]
        if pace not in self._paces:
            plan = make_plan(self._resolved(point, None))
            self._paces[pace] = None if plan.estimated_seconds is None else plan.estimated_seconds / _gflop(plan)
        per_gflop = self._paces[pace]
        return None if per_gflop is None else per_gflop * self.work(point)

    def likely_work(self, point: Point) -> float:
        """The same of a point that may not be worked out yet, or may be refused: then the mean of those that are."""
        known = self._plans.get(describe(point))
        return _gflop(known) if known else st.mean(map(_gflop, self._plans.values()))


def _gflop(plan: Plan) -> float:
    return plan.gflop_per_image * plan.steps * plan.effective_batch
