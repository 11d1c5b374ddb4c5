"""One protocol for three kinds of features: a run's encoder, the same network untrained, and raw pixels.

Mean-pooled tokens of clean images (raw pixels: all of them); k-NN (k 20, cosine, centred) and scikit-learn's logistic
regression on standardised features, C chosen on a held-out fifth of the training images, never on the test images.
The interval is a 95% bootstrap over test images.

    python bench/features.py RUN [--train 20000] [--test 10000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dsdmae_cli import checkpoint
from dsdmae_cli.config.compose import from_tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.resident import to_tensor
from dsdmae_cli.data.run_data import Labelled, labelled_indices
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.square import decode_square
from dsdmae_cli.evaluation.features import mean_features
from dsdmae_cli.evaluation.knn import knn_accuracy
from dsdmae_cli.runs.build import build_method


def score(bank: torch.Tensor, train: Labelled, queries: torch.Tensor, test: Labelled) -> dict[str, float]:
    knn = knn_accuracy(bank, train.labels, queries, test.labels)
    scaler = StandardScaler().fit(bank.numpy())
    x, y = scaler.transform(bank.numpy()), train.labels.numpy()
    fold = np.random.default_rng(0).permutation(len(x))
    fit, held = fold[len(x) // 5 :], fold[: len(x) // 5]

    def of(c: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=500, tol=1e-3).fit(x[rows], y[rows])

    c = max((0.001, 0.01, 0.1, 1.0), key=lambda value: of(value, fit).score(x[held], y[held]))
    right = of(c, fold).predict(scaler.transform(queries.numpy())) == test.labels.numpy()
    draws = np.random.default_rng(0).choice(right, (1000, len(right))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"knn": knn, "logistic": right.mean(), "low": low, "high": high, "C": c}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=10_000)
    arguments = parser.parse_args()

    settings = resolve(from_tables(read_toml(arguments.run / "settings.toml"), "settings.toml").settings)
    sets = []
    for split, most in (("train", arguments.train), ("test", arguments.test)):
        dataset = open_dataset(settings.data, split)
        unreadable = Unreadable(len(dataset), settings.data)
        chosen = labelled_indices(dataset, most)
        assert dataset.labels is not None, "this protocol needs labels"
        arrays, kept = decode_square(dataset, chosen, settings.data.image_size, unreadable)
        sets.append(Labelled(to_tensor(arrays, torch.device("cpu")), torch.from_numpy(dataset.labels[kept])))
    train, test = sets
    method = build_method(settings)
    untrained = [mean_features(method.encoder(), s.images, 256) for s in sets]
    saved, _ = checkpoint.load_newest_weights(arguments.run / "checkpoints")
    assert saved is not None
    checkpoint.load_into(method, saved.model, str(arguments.run))
    trained = [mean_features(method.encoder(), s.images, 256) for s in sets]
    pixels = [torch.cat(list(s.images.split(256))).flatten(1).float() / 127.5 - 1 for s in sets]
    print(f"{len(train.labels)} training and {len(test.labels)} test images of {settings.data.dataset}")
    print("| features | width | k-NN | logistic regression (95% interval) | C |\n|---|---|---|---|---|")
    rows = {f"pre-trained, step {saved.step}": trained, "untrained": untrained, "raw pixels": pixels}
    results = {}
    for name, (bank, queries) in rows.items():
        r = results[name] = score(bank, train, queries, test)
        interval = f"{r['logistic']:.1%} ({r['low']:.1%}, {r['high']:.1%})"
        print(f"| {name} | {bank.shape[1]} | {r['knn']:.1%} | {interval} | {r['C']:g} |", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
