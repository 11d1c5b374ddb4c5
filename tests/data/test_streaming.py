"""What workers decode ahead: the same batches whatever their number, in pieces, within what memory there is."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from test_plain import photograph, saved

from dsdmae_cli.data import cores, look_ahead
from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.streaming import StreamingSource
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.settings.models import DataSettings

PLAN = Augmentation(32, (0.2, 1.0), (3 / 4, 4 / 3), "bicubic", True, 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    """JPEGs, large ones among them, PNGs, and two that cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    names = []
    for number in range(80):
        image = photograph(60 + number, 50 + 2 * number).rotate(4 * number)
        large = number % 20 == 7
        names.append(f"{number:03d}.{'png' if number % 3 == 0 else 'jpg'}")
        (image.resize((500, 400), Image.Resampling.BILINEAR) if large else image).save(root / names[-1])
    (root / names[5]).write_bytes(b"no image")
    (root / names[40]).write_bytes(saved(photograph())[:2000])
    return FileImages(Directory(root, names), np.arange(80), np.arange(80) % 7, tuple("abcdefg"))


def batches(pictures: FileImages, workers: int, micro: int, views: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    unreadable = Unreadable(len(pictures), DataSettings(max_unreadable=0.1))
    source = StreamingSource(
        pictures, Batching(80, 72, micro, 0), PLAN, torch.device("cpu"), workers, unreadable, True, None, views
    )
    try:
        steps = [[(m.images, m.labels) for m in step] for epoch in (0, 1) for step in source.steps(epoch)]
    finally:
        source.close()
    assert 1 <= len(unreadable) <= 2
    return [micro for step in steps for micro in step]


# Three are more than the cores that a test may have, which torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_batches_are_the_same_whatever_the_number_of_workers(pictures: FileImages) -> None:
    alone = batches(pictures, 0, 72)
    assert [tuple(images.shape) for images, _ in alone] == [(72, 3, 32, 32)] * 2
    for workers in (1, 3):
        several = batches(pictures, workers, 72)
        for (images, labels), (others, other_labels) in zip(alone, several, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_views_and_uneven_micro_batches_come_whole(pictures: FileImages) -> None:
    alone, several = batches(pictures, 0, 70, 2), batches(pictures, 2, 70, 2)
    assert [len(images) for images, _ in alone] == [70, 2, 70, 2]
    assert alone[0][0].shape[1:] == (2, 3, 32, 32)
    assert not torch.equal(alone[0][0][:, 0], alone[0][0][:, 1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, several, strict=True))


def test_a_label_is_that_of_the_image_that_is_shown(pictures: FileImages) -> None:
    """Next to an unreadable image its neighbour is shown, with the neighbour's label."""
    unreadable = Unreadable(80, DataSettings(max_unreadable=0.1))
    source = StreamingSource(pictures, Batching(80, 80, 80, 0), PLAN, torch.device("cpu"), 0, unreadable, True)
    order = source.batching.order(0).tolist()
    (step,) = source.steps(0)
    (micro,) = step
    shown = [index + (index in (5, 40)) for index in order]
    assert micro.labels.tolist() == [index % 7 for index in shown]


# ---------------------------------------------------------------------------------------- how much, and by how many

Usage = namedtuple("Usage", "free")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Free memory and free /dev/shm, in bytes."""
    there = {"available": 64 * 2.0**30, "shared": 32 * 2.0**30}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "available")(there["available"]))
    monkeypatch.setattr(look_ahead, "_shared_room", lambda: there["shared"])
    for name in ("LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    return there


@pytest.mark.parametrize(
    ("images", "most", "piece"), [(64, 64, 64), (65, 64, 33), (1024, 64, 64), (100, 64, 50), (7, 64, 7)]
)
def test_pieces_are_even(images: int, most: int, piece: int) -> None:
    assert look_ahead.pieces(images, most) == piece
    assert sum(len(part) for part in torch.empty(images).split(piece)) == images


def test_with_room_a_worker_has_four_pieces_of_64(memory: dict[str, float]) -> None:
    assert look_ahead.look_ahead(16, 1024, 2 * 224 * 224 * 3) == (64, 4)


def test_what_is_ahead_is_bounded_in_bytes_over_all_processes(
    memory: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, found = 2 * 224 * 224 * 3, []
    for gib in (16, 8, 4, 2):
        memory["shared"] = gib * 2.0**30
        ahead = look_ahead.look_ahead(32, 1024, image)
        assert 32 * ahead.piece * ahead.pieces * image <= 0.8 * memory["shared"]
        found.append(tuple(ahead))
    assert found == [(64, 4), (64, 4), (64, 4), (64, 2)]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    memory["shared"] = 8 * 2.0**30
    assert look_ahead.look_ahead(32, 1024, image) == (64, 2)
    memory["available"] = 16 * 2.0**30
    assert look_ahead.look_ahead(32, 1024, image) == (32, 3)


def test_too_little_shared_memory_is_said_before_anything_starts(memory: dict[str, float]) -> None:
    memory["shared"] = 64 * 2.0**20
    with pytest.raises(RunFailed, match=r"16 processes .* want 294 MiB .*64 MiB free.*--shm-size.*data\.workers"):
        look_ahead.look_ahead(16, 1024, 2 * 224 * 224 * 3)
    assert look_ahead.look_ahead(2, 1024, 224 * 224 * 3) == (64, 2)


def test_workers_follow_cores_and_processes(monkeypatch: pytest.MonkeyPatch, memory: dict[str, float]) -> None:
    from dsdmae_cli.data.open import num_workers

    monkeypatch.setattr(cores, "usable_cores", lambda: 192)
    assert num_workers(DataSettings()) == 191
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert num_workers(DataSettings()) == 23
    assert num_workers(DataSettings(workers=5)) == 5
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert num_workers(DataSettings()) == 11


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there is no affinity here")
def test_cores_are_those_of_the_affinity_or_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert 1 <= cores.usable_cores() <= 6
