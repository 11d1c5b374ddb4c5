"""What runs left behind: result.json of `dsdmae pretrain`, `probe` and `finetune` as rows that can be compared.

No torch here: comparing runs should not wait for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.evaluation.closing import NEIGHBOURS
from dsdmae_cli.files import parsed_json, read_within
from dsdmae_cli.page.words import top5_words
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.rundir import RESULT


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: the run's directory, in one word.
        kind: "pretrain" (its k-NN score), "probe" or "finetune".
        dataset, method, backbone: by the names of their plugins.
        top1, top5: shares of images, from 0 to 1.
        top1_interval: of top1, low and high.
        mean_iou, mean_iou_low, mean_iou_high: of segmentation, with its interval.
        epochs: of the probe or fine-tuning; of pre-training itself for kind "pretrain".
        flops, seconds: as epochs.
        pretrain_epochs, pretrain_flops: what the judged encoder had cost before.
        protocol: a sentence.
        subject: what was judged.
        weights_sha256: which weights.
        path: the file; empty for the paper's.
        of_paper: it is a row of the paper's table, not a run.
    """

    name: str
    kind: str
    dataset: str
    method: str | None = None
    backbone: str | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5: float | None = None
    mean_iou: float | None = None
    mean_iou_low: float | None = None
    mean_iou_high: float | None = None
    epochs: float | None = None
    pretrain_epochs: float | None = None
    pretrain_flops: float | None = None
    flops: float | None = None
    seconds: float | None = None
    protocol: str | None = None
    subject: str | None = None
    weights_sha256: str | None = None
    path: str = ""
    of_paper: bool = False

    def rank(self) -> tuple[int, float]:
        """By which rows of a dataset stand best first: those with top-1, then by mean IoU, then those with neither."""
        for place, score in enumerate((self.top1, self.mean_iou)):
            if score is not None:
                return place, -score
        return 2, 0.0

    def top1_words(self) -> str:
        """75.1% (74.3 to 75.9)."""
        if self.top1 is None:
            return "none"
        interval = self.top1_interval
        return f"{self.top1:.1%}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")

    def mean_iou_words(self) -> str:
        """38.2% (37.0 to 39.4)."""
        if self.mean_iou is None:
            return ""
        low, high = self.mean_iou_low, self.mean_iou_high
        between = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
        return f"{self.mean_iou:.1%}{between}"

    def overlaps(self, other: Row) -> bool | None:
        """Whether the intervals of two results overlap; None where one has none."""
        a, b = self.top1_interval, other.top1_interval
        return None if a is None or b is None else a[0] <= b[1] and b[0] <= a[1]


def read_result(path: Path) -> Row:
    """The result in a run's directory, or in a result.json by whatever name.

    Raises:
        CheckpointError: it is missing, damaged, or no result of this program's.
    """
    file = path / RESULT if path.is_dir() else path
    if not file.is_file():
        missing = (
            f"{path} has no {RESULT}: the run has not ended, or is none"
            if path.is_dir()
            else f"there is no {path}{near(str(path), '.json')}"
        )
        raise CheckpointError(f"{missing}; give the directories or result files of finished runs")
    try:
        content = parsed_json(read_within(file))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or f"no JSON: {error}"
        raise CheckpointError(f"cannot read {file}: {reason}") from error
    return _row(content, file)


def _row(content: Any, file: Path) -> Row:
    known = isinstance(content, dict) and isinstance(content.get("dataset"), str)
    if known and "kind" not in content and "knn_accuracy" in content:
        content = {**content, "kind": "pretrain"}
    if not known or content.get("kind") not in {"pretrain", "probe", "finetune"}:
        raise CheckpointError(f"{file} is no result of dsdmae's pretrain, probe or finetune")
    pretrain = content["kind"] == "pretrain"
    top1 = "knn_accuracy" if pretrain else "top1"
    interval = content.get("top1_interval")
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        raise CheckpointError(f"{file} is damaged: top1_interval is {interval!r}, not a pair")
    low, high = (_number(file, "top1_interval", end) for end in interval) if interval else (None, None)
    if isinstance(over := content.get("mean_iou_interval"), list) and len(over) == 2:
        content = {**content, "mean_iou_low": over[0], "mean_iou_high": over[1]}
    numbers = (
        "mean_iou",
        "mean_iou_low",
        "mean_iou_high",
        "top5",
        "epochs",
        "pretrain_epochs",
        "pretrain_flops",
        "flops",
        "seconds",
    )
    further: dict[str, Any] = {key: _number(file, key, content.get(key)) for key in numbers}
    if top5_words(content) is None:
        further["top5"] = None
    further |= {key: _text(content.get(key)) for key in ("method", "backbone", "subject", "weights_sha256")}
    return Row(
        name=file.resolve().parent.name if file.name == RESULT else file.stem,
        kind=content["kind"],
        dataset=content["dataset"],
        top1=_number(file, top1, content.get(top1)),
        top1_interval=(low, high) if low is not None and high is not None else None,
        protocol=f"k-NN at the end of pre-training, k = {NEIGHBOURS}" if pretrain else _text(content.get("protocol")),
        path=str(file),
        **further,
    )


def _number(file: Path, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{file} is damaged: {key} is {value!r}, not a number")
    return value


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
