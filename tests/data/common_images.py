"""What each of the processes runs in test_together.py: images that they have in common, beside those of one alone.

    torchrun ... common_images.py FOLDER MASKED OUT

OUT gets rankN.json: what was the same, by name, and how much of the memory in common process N has to itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import settings

from dsdmae_cli import distributed
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import FINETUNE
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.channels import Grey
from dsdmae_cli.data.mask_views import MaskedSubset
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import open_dataset, open_source, place
from dsdmae_cli.data.resident import ResidentSource
from dsdmae_cli.data.run_data import RunData, open_run_data
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.settings.resolved import ResolvedData

CPU = torch.device("cpu")
SAID: list[str] = []


@contextmanager
def alone() -> Iterator[None]:
    """As if this process were the only one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 1)
        patch.setattr(distributed, "rank", lambda: 0)
        yield


def own_share() -> dict[str, int]:
    """KiB of the memory in common that this process sees, and that are its own by the system's account."""
    found = {"Rss": 0, "Pss": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            ours = "memfd:dsdmae-images" in line
        elif ours and (word := first.removesuffix(":")) in found:
            found[word] += int(rest[0])
    return found


def run_data(folder: Path, *more: str) -> RunData:
    given = ("data.placement=resident", "data.image_size=12", "data.max_unreadable=0.5", *more)
    data = resolve(settings(folder, *given).settings).data
    train = open_dataset(data, "train")
    batching = Batching(len(train), batch_size=8, micro_batch=8, seed=0)
    return open_run_data(train, data, batching, CPU, num_views=1, most=30, note=SAID.append, account=lambda rows: None)


def tensors(data: RunData) -> list[Any]:
    assert isinstance(data.source, ResidentSource)
    assert data.bank is not None
    assert data.queries is not None
    kept = torch.from_numpy(np.arange(42) if data.source.kept is None else data.source.kept)
    pixels = [torch.cat(list(found.images.split(7))) for found in (data.bank, data.queries)]
    return [data.source.images, kept, *pixels, data.bank.labels, data.queries.labels, data.pictures]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(one, other, strict=True))


def source_of(dataset: ImageDataset, data: ResolvedData, **labels: Any) -> ResidentSource:
    where = place(dataset, data, CPU, masked="masked" in labels)
    unreadable = Unreadable(len(dataset), data)
    source = open_source(dataset, data, where, Batching(8, 8, 8, 0), CPU, unreadable, note=SAID.append, **labels)
    assert isinstance(source, ResidentSource)
    return source


def arrays(found: dict[str, Any]) -> Iterator[ResidentSource]:
    """Of a dataset that is an array, of parts of one, and of one whose colours are left out."""
    data = resolve(settings("digits", "data.placement=resident").settings).data
    for name, some in {
        "array": lambda whole: whole,
        "part": lambda whole: Subset(whole, np.arange(100, 3, -2)),
        "grey": Grey,
    }.items():
        with alone():
            expected = source_of(some(open_dataset(data, "train")), data, labelled=True)
            one = open_dataset(data, "train")
        whole = open_dataset(data, "train")
        source = source_of(some(whole), data, labelled=True)
        assert source.labels is not None
        assert expected.labels is not None
        found[name] = torch.equal(source.images, expected.images) and torch.equal(source.labels, expected.labels)
        found[f"{name}, identity"] = whole.identity() == one.identity()
        pixels = whole.arrays()
        assert pixels is not None
        if name == "array":
            found["one memory"] = torch.from_numpy(pixels).data_ptr() == source.images.data_ptr()
        yield source


def masks(found: dict[str, Any], folder: Path) -> None:
    given = (f"data.dataset=folder:{folder}", "data.image_size=24,32", "finetune.task=segment")
    data = resolve(compose(FINETUNE, assignments=given, environ={}).settings).data
    whole = open_dataset(data, "train")
    assert isinstance(whole, MaskedImages)
    for name, dataset in {
        "masks": whole,
        "some masks": MaskedSubset(whole, np.array([7, 1, 4, 3, 2, 9, 8, 0])),
    }.items():
        with alone():
            expected = source_of(dataset, data, masked=dataset)
        source = source_of(dataset, data, masked=dataset)
        assert source.masks is not None
        assert expected.masks is not None
        found[name] = torch.equal(source.masks, expected.masks) and torch.equal(source.images, expected.images)


def main() -> None:
    folder, masked, out = map(Path, sys.argv[1:])
    found: dict[str, Any] = {}
    held: list[Any] = []  # or its memory would be gone before it is looked at
    for name, more in {"image": (), "whole": ("data.crop_from=16",)}.items():
        with alone():
            expected = run_data(folder, *more)
        data = run_data(folder, *more)
        found[name] = same(tensors(data), tensors(expected))
        found[f"{name}, unreadable"] = (
            list(data.unreadable.reasons) == list(expected.unreadable.reasons)
            and len(data.unreadable) == 3
            and list(data.held_out_unreadable.reasons) == list(expected.held_out_unreadable.reasons)
        )
        held.append(data)
    held += arrays(found)
    masks(found, masked)
    distributed.all_gathered(None)
    share = own_share()
    distributed.all_gathered(None)  # none leaves while another looks
    Path(out, f"rank{distributed.rank()}.json").write_text(json.dumps({"same": found, "said": SAID, **share}))


if __name__ == "__main__":
    with distributed.process_group(CPU):
        main()
