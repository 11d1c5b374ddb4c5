"""The tasks at work: as many beside each other as there are places, within a budget of time. One thread; children work.

What is left below the directory: settings/ of the commands, judged/NAME/ of each, logs/NAME.log, and worth.json, the
question and how many epochs fine-tuning got. A task whose result is there is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dsdmae_cli.errors import RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.files import parsed_json, read_within, require_folder, write_bytes
from dsdmae_cli.report import Report, duration, number_of
from dsdmae_cli.runs.child import Child, Slot
from dsdmae_cli.runs.held import LOCK, busy, held_by_another
from dsdmae_cli.runs.rundir import RESULT, SETTINGS, RunDir
from dsdmae_cli.signals import handled, once, stops
from dsdmae_cli.worth.tasks import Question, Task, epochs_of, words_of, write_settings

QUESTION = "worth.json"
_POLL_SECONDS = 0.2
_MOST_EPOCHS = 100  # of fine-tuning with all labels, as its recipes have
# What the budget leaves to the tasks: figures, the page and other people's work take the rest.
_TO_TASKS = 0.95


class Runner:
    """Works on a question until it is answered.

    Args:
        folder: where everything is kept.
        slots: where tasks run.
        report: what a person sees.

    Attributes:
        failed: reasons of tasks that failed, by name; the others are done in spite of them.
        epochs: of fine-tuning with all labels, once that is known.
        notes: what a reader of the page has to know.
        took: seconds of the processes of tasks, by name.
    """

    def __init__(self, question: Question, folder: Path, slots: list[Slot], report: Report) -> None:
        self.question, self.folder, self.slots, self.report = question, folder, slots, report
        self.judged = folder / "judged"
        self.failed: dict[str, str] = {}
        known = _read(folder / QUESTION)
        self.epochs: int = known.get("epochs") or 0
        self.notes: list[str] = known.get("notes", [])
        self.took: dict[str, float] = known.get("took", {})
        self._spent: float = known.get("seconds", 0.0)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """That it took so far, earlier sittings included."""
        return self._spent + time.monotonic() - self._began

    def run(self) -> None:
        """Do every task, cheap ones first: what they take says how many epochs of fine-tuning the budget holds.

        Raises:
            RunInterrupted: a signal asked to stop; the same command goes on.
            RunFailed: nothing can be said of the run or of the network without pre-training.
        """
        question = self.question
        for name in ("judged", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_settings(question, self.folder / "settings")
        self.save()
        first, later = question.seed_numbers[:1], question.seed_numbers[1:]
        try:
            self._do(question.probes("linear", question.seed_numbers))
            self._do(question.probes("ep", first))
            self.epochs = self.epochs or self._affordable()
            if self.epochs:
                self.save()
                self.report.note(f"fine-tuning for {number_of(self.epochs, 'epoch')} of all labels, more of fewer")
                self._do(question.finetunings())
            self._efficient_probes(later)
        finally:
            self.save()
        for contender in question.contenders[:2]:
            if not any(path.parent.name.startswith(f"{contender.key}-") for path in self.judged.glob(f"*/{RESULT}")):
                name, reason = next(iter(self.failed.items()))
                raise RunFailed(f"{name} failed: {reason}; what the tasks said is in {self.folder / 'logs'}")

    def save(self) -> None:
        """Write down the question and how far it is answered."""
        state = {"epochs": self.epochs, "notes": self.notes, "took": self.took, "seconds": round(self.seconds, 1)}
        text = json.dumps(self.question.json() | state, indent=2)
        write_bytes(self.folder / QUESTION, (text + "\n").encode())

    def _affordable(self) -> int:
        """Epochs of fine-tuning with all labels, from one epoch that is timed; 0 where that fails."""
        question = self.question
        timed = Task(question.contenders[1], "finetune", question.seed_numbers[0], timing=True)
        self._do([timed], epochs=1)
        if timed.name in self.failed:
            return 0
        result = RunDir(self.judged / timed.name).read_json(RESULT)
        epoch = result["train_seconds"]
        beside = max(0.0, self.took.get(timed.name, 0.0) - epoch)
        ahead = (question.seeds - 1) * len(question.contenders) * self._of("ep")
        tasks = question.finetunings()
        places = len(self.slots)
        left = (_TO_TASKS * 60 * question.minutes - self.seconds) * places - ahead - beside * len(tasks)
        each = epoch * sum(share * epochs_of(100, share) / 100 for share in (task.share for task in tasks))
        epochs = int(left / each)
        if epochs < 1:
            self._say(
                f"the budget of {number_of(question.minutes, 'minute')} is too short for fine-tuning: it gets one"
                " epoch of all labels, and more time; give --budget more"
            )
        return max(1, min(_MOST_EPOCHS, epochs))

    def _say(self, text: str) -> None:
        """For the page and for who waits for it."""
        self.notes.append(text)
        self.report.warn(text)

    def _of(self, way: str) -> float:
        """Seconds of a task judged this way, on average; 0 where none is known."""
        seconds = [value for name, value in self.took.items() if f"-{way}-" in name]
        return sum(seconds) / len(seconds) if seconds else 0.0

    def _efficient_probes(self, seeds: range) -> None:
        """Those of further seeds, as many as the budget has time for; a seed is judged whole or not at all."""
        for seed in seeds:
            tasks = [task for task in self.question.probes("ep", range(seed, seed + 1)) if not self._done(task)]
            if not tasks:
                continue
            if self.seconds + self._of("ep") * -(-len(tasks) // len(self.slots)) > 60 * self.question.minutes:
                self._say(
                    f"efficient probes were made with {seed - seeds.start + 1} of {self.question.seeds} seeds, too few"
                    f" to be chosen: the budget of {number_of(self.question.minutes, 'minute')} was used up"
                )
                return
            self._do(tasks)

    # -- tasks

    def _done(self, task: Task) -> bool:
        return bool(RunDir(self.judged / task.name).read_json(RESULT))  # a damaged one is made anew

    def _do(self, tasks: Iterable[Task], epochs: int | None = None) -> None:
        """Do those that are not done yet, beside each other."""
        waiting = [task for task in tasks if not self._done(task)]
        free, at_work = list(self.slots), dict[str, tuple[Task, Child, Slot, float]]()
        asked: list[int] = []
        with handled(dict.fromkeys(stops(), once(lambda number, frame: asked.append(number)))):
            try:
                while (waiting or at_work) and not asked:
                    while waiting and free:
                        task, slot = waiting.pop(0), free.pop(0)
                        child = self._start(task, slot, epochs or self.epochs)
                        at_work[task.name] = task, child, slot, time.monotonic()
                    time.sleep(_POLL_SECONDS)
                    for name, (task, child, slot, since) in list(at_work.items()):
                        if self._ended(task, child, since):
                            del at_work[name]
                            free.append(slot)
                if asked:
                    raise RunInterrupted("stopped; what was done is kept", asked[0])
            finally:
                _stop([child for _, child, _, _ in at_work.values()], asked)

    def _start(self, task: Task, slot: Slot, epochs: int) -> Child:
        folder = self.judged / task.name
        if busy(folder):
            raise held_by_another(folder)
        words = words_of(task, self.question, self.folder / "settings", epochs)
        if task.way == "finetune" and (folder / SETTINGS).exists():
            words = ["finetune", "--resume"]
        else:
            shutil.rmtree(folder, ignore_errors=True)  # half of a probe, left by a process that was stopped
        return Child([*words, "--out", str(folder)], self.folder / "logs" / f"{task.name}.log", slot)

    def _ended(self, task: Task, child: Child, since: float) -> bool:
        name, state = task.name, child.poll()
        if state == "running":
            return False
        self.took[name] = round(time.monotonic() - since, 1)
        self.save()
        if state != "done":
            self.failed[name] = child.reason
            self.report.warn(f"{name} failed: {child.reason}; what it said is in {child.log}")
            return True
        weights = RunDir(self.judged / name).read_json(RESULT).get("weights_sha256")
        if task.contender.weights and weights != task.contender.weights:
            raise RunFailed(
                f"the weights of {task.contender.word} changed while they were judged; let its training end, ask again"
            )
        self.report.note(f"{name}: {_told(self.judged / name)} after {duration(self.took[name])}")
        return True


def _told(folder: Path) -> str:
    result = RunDir(folder).read_json(RESULT)
    if result.get("few_shot"):
        return ", ".join(f"{row['top1']:.1%} of {number_of(row['images'], 'label')}" for row in result["few_shot"])
    return f"{result['top1']:.1%}"


def _stop(children: list[Child], asked: list[int]) -> None:
    """Let them save and end; a second signal ends them at once."""
    for child in children:
        child.stop()
    while any(child.poll() == "running" for child in children):
        if len(asked) > 1:
            for child in children:
                child.kill()
        time.sleep(_POLL_SECONDS)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = parsed_json(read_within(path))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {error}; give another --out") from error
    return found if isinstance(found, dict) else {}


def check_same(question: Question, folder: Path) -> None:
    """See that a directory is free, or holds this very question, and can be written.

    Raises:
        SettingsError: it holds another one, or something else; or it cannot, or another process works in it.
    """
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        require_folder(folder)
    except OSError as error:
        raise SettingsError(f"cannot use --out {folder}: {error.strerror or error}") from error
    if busy(folder):
        raise held_by_another(folder)
    others = [name for name in names if name != LOCK]
    if not others:
        return
    before = _read(folder / QUESTION)
    if not before:
        raise SettingsError(
            f"--out {folder} holds no `dsdmae worth` but other things ({others[0]}); choose another one"
        )
    now = json.loads(json.dumps(question.json()))
    differ = [key for key in now if before.get(key) != now[key]]
    if differ:
        raise SettingsError(
            f"--out {folder} holds another question ({', '.join(differ)} differ); choose another directory, or ask as"
            " before to go on"
        )


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """A block that has a question's directory to itself.

    Raises:
        SettingsError: it cannot be made, or another process works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot use --out {folder}: {error.strerror or error}") from error
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise held_by_another(folder) from None
    try:
        yield
    finally:
        lock.release()
