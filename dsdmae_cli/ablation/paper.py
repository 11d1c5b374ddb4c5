"""The ablations of the DSdMAE paper (Xu & Stirenko 2023) as sweeps, with what the paper states of their outcome.

Its Fig. 3 and Fig. 4 are curves without printed numbers, and their values are not guessed here: only the optimum that
the text names is drawn. Table 3 has numbers. Which values the figures' axes have is not stated either; ours are chosen
to hold the stated optimum and both of its sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dsdmae_cli.settings.models import Settings


@dataclass(frozen=True)
class Paper:
    """One figure or table of the paper.

    Attributes:
        title: what it is.
        sweep: KEY and VALUES.
        metric: the paper's own metric; for Fig. 3, whose metric is not stated, the cheapest.
        seeds: runs of each point unless --seeds says otherwise.
        says: the paper's result in words.
        best: the stated optimum, as a range of the axis.
        points: {dataset: {value: share}} where the paper prints numbers.
        points_metric: the metric of `points`.
        source: how the points were measured.
    """

    title: str
    sweep: tuple[str, str]
    metric: str
    says: str
    seeds: int = 3
    best: tuple[float, float] | None = None
    points: dict[str, dict[str, float]] = field(default_factory=dict)
    points_metric: str | None = None
    source: str = ""


# Its student and teacher read every patch, which is no longer the default.
AS_IN_THE_PAPER = {"dsdmae": "method.patch_dropout=0"}

PAPERS = {
    "fig3": Paper(
        title="Fig. 3, noise-masking ratio",
        sweep=("mask-ratio", "0.5,0.6,0.75,0.85,0.9,0.95"),
        metric="knn",
        says="On all three datasets the paper finds the best mask ratio between 0.90 and 0.95, and worse features where"
        " it is too low. It prints no values.",
        best=(0.90, 0.95),
    ),
    "fig4": Paper(
        title="Fig. 4, λ",
        sweep=("lambda", "0.2,0.4,0.6,0.8"),
        metric="finetune",
        says="On all three datasets the paper's fine-tuned accuracy is best at λ = 0.6. It prints no values.",
        best=(0.6, 0.6),
    ),
    "table3": Paper(
        title="Table 3, decoder and regressor",
        sweep=("heads", "both,decoder,regressor"),
        metric="linear",
        says="In the paper's linear probe both heads are best, the decoder alone loses 2.8 to 4.1 points, and the"
        " regressor alone 8.0 to 16.7.",
        points={
            "cifar10": {"both": 0.7698, "decoder": 0.7420, "regressor": 0.6893},
            "cifar100": {"both": 0.5384, "decoder": 0.4974, "regressor": 0.4451},
            "stl10": {"both": 0.7856, "decoder": 0.7535, "regressor": 0.6183},
        },
        points_metric="linear",
        source="ViT-S, linear probe, batch 2048; the table says 300 epochs, but equals the 500-epoch row of Table 2",
    ),
}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10"}


def paper_dataset(settings: Settings) -> str | None:
    """Which of the paper's three datasets this is: by its plugin, or by the name of a folder that holds it."""
    name = settings.data.dataset.rstrip("/").rsplit("/", 1)[-1].removeprefix("folder:")
    word = name.lower().replace("-", "")
    return word if word in _DATASETS else None


def dataset_title(name: str) -> str:
    """ "CIFAR-10" of "cifar10"."""
    return _DATASETS[name]
