"""Who is judged and how: every task is a command of this program, `dsdmae probe` or `dsdmae finetune`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.files import write_bytes
from dsdmae_cli.settings.judge import SCRATCH, FinetuneSettings

Way = Literal["linear", "ep", "finetune"]
WAYS: dict[Way, str] = {"linear": "linear probe", "ep": "efficient probe", "finetune": "fine-tuning"}
# Of every task's labels, to choose between ways and settings by; the test images are read once, at the end.
HELD_OUT = 0.1
# Few labels make short epochs: 1% of them get ten times the epochs, and a tenth of the steps.
_MOST_TIMES_EPOCHS = 10
_PROTOCOL = 2  # raised where tasks are judged another way: what an earlier one found is another question's
_STEPS_AN_EPOCH = 8
_FEWEST_A_CLASS = 2  # one to learn from and one to choose by


@dataclass(frozen=True)
class Contender:
    """A network before it sees labels.

    Attributes:
        key: for file names.
        name: for people.
        word: SUBJECT of the commands that judge it.
        own_backbone: its architecture is its own and not the run's.
        weights: their SHA-256; empty for what is drawn anew by every seed.
        size: what it is given, for people: "32 px, 64 tokens".
    """

    key: str
    name: str
    word: str
    own_backbone: bool = False
    weights: str = ""
    size: str = ""


@dataclass(frozen=True)
class Task:
    """One command: a contender judged one way with one seed, which also draws the labels.

    A linear probe judges with every share of the labels at once; fine-tuning with one; an efficient probe with all.

    Attributes:
        timing: it is there to see what it takes, and judges nothing.
    """

    contender: Contender
    way: Way
    seed: int
    share: float = 1.0
    timing: bool = False

    @property
    def name(self) -> str:
        """Of its directory and log."""
        if self.timing:
            return "pace"
        share = f"-{100 * self.share:g}%" if self.way == "finetune" else ""
        return f"{self.contender.key}-{self.way}{share}-{self.seed}"


@dataclass(frozen=True)
class Question:
    """All that is asked; the same question finds its directory again.

    Attributes:
        contenders: the first is the network without pre-training, the second the run.
        shares: of each class's labels, ascending; the last is 1.
        labels: how many images each share is.
        seeds: how many.
        minutes: the budget.
        data: fingerprint of the labelled images.
        settings: of fine-tuning, with the data that all tasks share.
    """

    contenders: tuple[Contender, ...]
    shares: tuple[float, ...]
    labels: tuple[int, ...]
    seeds: int
    minutes: float
    data: str
    settings: FinetuneSettings

    def json(self) -> dict[str, Any]:
        """What tells this question from another."""
        return {
            "contenders": [asdict(contender) for contender in self.contenders],
            "shares": list(self.shares),
            "labels": list(self.labels),
            "seeds": self.seeds,
            "minutes": self.minutes,
            "data": self.data,
            "settings": tables(self.untold),
            "protocol": _PROTOCOL,
        }

    @property
    def peak_rate(self) -> float:
        """Of fine-tuning, whatever its batch: the linear rule, at the batches that few labels make, would leave next to
        nothing to learn with (config/own_images.py), and least to a network that has learned nothing before."""
        optim = self.settings.optim
        return optim.base_lr * self.settings.train.batch_size / 256 if optim.lr == "auto" else optim.lr

    @property
    def untold(self) -> FinetuneSettings:
        """The settings without trackers, which change nothing in the answer; every task but the timing names them."""
        train = self.settings.train.model_copy(update={"trackers": ()})
        return self.settings.model_copy(update={"train": train})

    @property
    def seed_numbers(self) -> range:
        """From the settings' own on."""
        first = self.settings.train.seed
        return range(first, first + self.seeds)

    def probes(self, way: Way, seeds: range) -> list[Task]:
        """Of every contender, seed by seed."""
        return [Task(contender, way, seed) for seed in seeds for contender in self.contenders]

    def finetunings(self) -> list[Task]:
        """Of every contender with every share, seed by seed."""
        return [
            Task(contender, "finetune", seed, share)
            for seed in self.seed_numbers
            for share in self.shares
            for contender in self.contenders
        ]


def usable_shares(
    shares: tuple[float, ...], labels: Int64[np.ndarray, " n"]
) -> tuple[dict[float, int], dict[float, int]]:
    """The shares that leave every class labels enough, and those that do not, with how many labels each is.

    All labels are always among them.
    """
    counts = np.unique(labels, return_counts=True)[1]
    good: dict[float, int] = {}
    bad: dict[float, int] = {}
    for share in sorted({*shares, 1.0}):
        each = np.maximum(1, np.rint(share * counts)).astype(int)
        (good if each.min() >= _FEWEST_A_CLASS or share == 1 else bad)[share] = int(each.sum())
    return good, bad


def epochs_of(full: int, share: float) -> int:
    """Epochs of fine-tuning with a share of the labels, where all of them get `full`."""
    return max(1, round(full * min(_MOST_TIMES_EPOCHS, share**-0.5)))


def write_settings(question: Question, folder: Path) -> None:
    """The settings files of the tasks' commands: the run's, the bare network's, and of others the data's alone."""
    folder.mkdir(parents=True, exist_ok=True)
    values = tables(question.untold)
    backbone = question.settings.backbone.without_weights()
    bare = tables(question.untold.model_copy(update={"backbone": backbone}))
    for source in (values, bare):  # each command names what it begins with
        del source["finetune"]["start"]
    kinds = {"finetune": tuple(values), "probe": ("data", "backbone")}
    for command, sections in kinds.items():
        for name, source in (("", values), ("-scratch", bare)):
            own = {section: source[section] for section in sections}
            write_bytes(folder / f"{command}{name}.toml", to_toml(own).encode())
        del own["backbone"]
        write_bytes(folder / f"{command}-data.toml", to_toml(own).encode())


def words_of(task: Task, question: Question, settings: Path, epochs: int) -> list[str]:
    """What a person would type after `dsdmae`, but for --out.

    Args:
        settings: the folder of write_settings.
        epochs: of fine-tuning with all labels.
    """
    train, pool = question.settings.train, question.settings.finetune.pool
    command = "finetune" if task.way == "finetune" else "probe"
    which = "-data" if task.contender.own_backbone else "-scratch" if task.contender.word == SCRATCH else ""
    words = [command, task.contender.word, "--config", str(settings / f"{command}{which}.toml"),
             "--seed", str(task.seed), "--device", train.device, "--precision", train.precision,
             *(word for name in train.trackers if not task.timing for word in ("--track", name)),
             "--pool", pool]  # fmt: skip
    if task.way == "linear":
        # As they are: in percent they would be rounded.
        shares = ", ".join(map(repr, question.shares))
        return [*words, "--kind", "linear", "--set", f"probe.few_shot=[{shares}]", "--set", "probe.draws=1"]
    if task.way == "ep":
        return [*words[:-2], "--kind", "ep"]  # which reads all tokens
    own = epochs_of(epochs, task.share)
    fitted = dict(zip(question.shares, question.labels, strict=True))[task.share] * (1 - HELD_OUT)
    batch = min(train.batch_size, 2 ** max(1, int(math.log2(max(2, fitted / _STEPS_AN_EPOCH)))))
    return [*words, "--epochs", str(own), "--batch-size", str(batch), "--lr", repr(question.peak_rate),
            "--validation", str(HELD_OUT),
            "--set", f"finetune.labels={task.share!r}", "--set", f"train.score_every={own}"]  # fmt: skip
