"""`dsdmae bench`: tables, turns, what is kept of a programme, each measurement on tiny sizes. No figure is judged."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cli, listing, words
from PIL import Image

from dsdmae_cli.bench.machine import CARDS, Rates, best, calibrate, card_of, described
from dsdmae_cli.bench.programme import REPORT, STATE, Kept, Part, chosen, go_through, read_programme
from dsdmae_cli.bench.turns import Finding, Spread, by_turns
from dsdmae_cli.errors import RunFailed, SettingsError

CPU = torch.device("cpu")
TINY = ("backbone.embed_dim=16", "backbone.depth=1", "backbone.num_heads=2", "data.image_size=16",
        "backbone.patch_size=4", "method.decoder_depth=1", "method.regressor_depth=1")  # fmt: skip


def set_to(*assignments: str) -> list[str]:
    return words(list(assignments))


# -- turns and tables


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def one(name: str, value: float) -> float:
        order.append(name)
        return value + len(order)

    found = by_turns({"a": lambda: one("a", 0), "b": lambda: one("b", 100)}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [104, 106]}


def test_a_spread_is_median_and_extremes() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread(13.04, 12.54, 14.11).text() == "13 (12.5, 14.1)"
    assert Spread(12345.6, 987.65, 0.0123).text() == "12346 (988, 0.0123)", "no 1.23e+04"
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


def test_a_finding_is_a_table_in_markdown_and_in_columns() -> None:
    found = Finding("A step", ["who", "rate"], [["a|b", "1"], ["longer", "22"]], {"batch": "8"}, {"x": 1}, ["Said."])
    assert found.markdown() == (
        "### A step\n\nbatch 8\n\n| who | rate |\n|---|---|\n| a\\|b | 1 |\n| longer | 22 |\n\nSaid.\n"
    )
    assert found.text() == "A step\n  batch: 8\nwho     rate\na|b        1\nlonger    22\nSaid."
    assert found.json() == {"title": "A step", "facts": {"batch": "8"}, "x": 1, "notes": ["Said."]}


# -- the machine


def test_the_longest_name_of_a_card_counts() -> None:
    assert card_of("NVIDIA H100 80GB HBM3") is CARDS["NVIDIA H100 80GB HBM3"]
    assert card_of("NVIDIA H200") is CARDS["NVIDIA H200"]
    assert card_of("NVIDIA GeForce GT 710") is None
    assert card_of("NVIDIA L40") is None, "no L4"
    assert card_of("NVIDIA H200 NVL") is None


def test_rates_are_of_work_that_was_done() -> None:
    rates = calibrate(CPU, side=64)
    assert min(rates.json().values()) > 0
    assert Rates(60.0, 0.4, 0.03).text() == ("matrix products 60 TFLOP/s in fp32, 400 GFLOP/s in bf16; copies 30 GB/s")
    assert Rates(60.0, 0.4, 4.8).text().endswith("copies 4800 GB/s")
    done: list[int] = []
    assert best(CPU, lambda: done.append(1), repeats=3) >= 0
    assert len(done) == 4
    assert {"processor", "Python", "torch", "dsdmae"} <= set(described(CPU))


# -- what is kept of a programme


def test_the_packaged_programme_names_networks_and_functions_that_are_there() -> None:
    from dsdmae_cli.bench.subjects import step_settings

    for rehearsal in (False, True):
        programme = read_programme(rehearsal)
        text = json.dumps([part.given for part in programme.parts])
        named = set(re.findall(r'"(ViT[^"]*|tiny|small)"', text))
        assert named
        assert named <= set(programme.networks)
    for network in programme.networks.values():
        step_settings(batch_size=8, assignments=network, environ={})
    with pytest.raises(SettingsError, match=r"--only nonsense is no part; there are waits, runs"):
        chosen(programme, ("nonsense",))
    assert sum(part.minutes for part in read_programme(False).parts) <= 22


PARTS = (Part("one", "the first", 1, {"n": 1}), Part("two", "the second", 1, {}), Part("three", "the third", 50, {}))


def through(kept: Kept, functions: dict[str, Any], minutes: float = 10) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return go_through(PARTS, functions, kept, minutes, said.append), said


def test_a_part_that_fails_stops_nobody_and_is_done_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def ok(**given: Any) -> list[Finding]:
        calls.append("ok")
        return [Finding("Found", ["who"], [["me"]])]

    def fails() -> list[Finding]:
        calls.append("fails")
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    left, said = through(Kept(tmp_path / "out", {"gpu": "A"}), {"one": ok, "two": fails, "three": ok})
    assert calls == ["ok", "fails"]
    assert left == ["two", "three"]
    assert said[-1] == "three: left for the next call, 50 min of 10.0 that remain"
    report = (tmp_path / "out" / REPORT).read_text()
    assert "**Failed**: RuntimeError: CUDA error: an illegal memory access (test_bench.py:" in report
    assert "| me |" in report
    again = Kept(tmp_path / "out", {"gpu": "A"})
    left, said = through(again, {"one": ok, "two": ok, "three": ok}, minutes=100)
    assert left == []
    assert said[0] == "one: done before"
    assert calls == ["ok", "fails", "ok", "ok"]
    state = json.loads((tmp_path / "out" / STATE).read_text())
    assert [part["failed"] for part in state["parts"].values()] == ["", "", ""]


def test_a_report_says_what_it_was_measured_on(tmp_path: Path) -> None:
    machine = {"processor": "one, 2 cores, 2 threads"}
    Kept(tmp_path / "cpu", machine).add(PARTS[0], 1.0, [])
    Kept(tmp_path / "gpu", machine | {"device": "NVIDIA H100 80GB HBM3, 79 GiB, CUDA 12.8"}).add(PARTS[0], 1.0, [])
    tried, measured = ((tmp_path / name / REPORT).read_text() for name in ("cpu", "gpu"))
    assert tried.startswith("# Tried on a processor, on tiny sizes\n")
    assert "`dsdmae bench gpu --device cpu --only one`" in tried
    assert measured.startswith("# Measured on a GPU\n")
    assert "`dsdmae bench gpu --only one`" in measured


def test_figures_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    kept = Kept(folder, {"gpu": "A"})
    kept.add(PARTS[0], 1.0, [])
    with pytest.raises(SettingsError, match="another machine or version \\(gpu: A, now B\\)"):
        Kept(folder, {"gpu": "B"})
    (folder / STATE).write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        Kept(folder, {"gpu": "A"})
    (folder / STATE).write_text('{"format": 9, "machine": {}, "parts": {}}')
    with pytest.raises(SettingsError, match="format 9"):
        Kept(folder, {"gpu": "A"})
    (folder / STATE).unlink()
    with pytest.raises(SettingsError, match="is not empty"):
        Kept(folder, {"gpu": "A"})
    assert (folder / REPORT).exists(), "what a person has there stays"


# -- each measurement


@pytest.mark.slow
def test_contenders_of_a_step_compute_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(
        capfd, "bench", "step", "--batch-size", "8", "--rounds", "2", "--device", "cpu", "--json", *set_to(*TINY)
    )
    assert code == 0, err
    found = json.loads(out)
    assert [len(one["seconds"]) for one in found["contenders"]] == [2] * 5
    losses = [one["loss"] for one in found["contenders"]]
    assert max(losses) - min(losses) < 0.01 * max(losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_contenders_that_differ_are_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.bench import step as module
    from dsdmae_cli.bench.subjects import step_settings

    cut: list[Any] = []

    class Fake:
        def __init__(self, name: str, settings: Any) -> None:
            cut.append(settings.train.micro_batch)
            self.first = {"loss": 1.0 if name == "dsdmae" else 1.5, "seconds": 0.1}
            self.process = self

        def kill(self) -> None: ...

    monkeypatch.setattr(module, "_Contender", Fake)
    monkeypatch.setattr(module, "calibrate", lambda device: Rates(1, 1, 1))
    settings = step_settings(batch_size=8, device="cpu", assignments=TINY, environ={})
    assert settings.train.micro_batch == "auto"
    with pytest.raises(RunFailed, match="do not compute the same"):
        module.bench_step(settings, 1)
    assert cut == [8] * 5, "chosen once, and not by what the others leave of a card"


def test_a_contender_leaves_the_cards_memory_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.bench import step as module

    did: list[str] = []

    def timed(device: torch.device, work: Any) -> float:
        did.append("timed")
        work()
        return 1.5

    def step() -> float:
        did.append("step")
        return 0.0

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: did.append("room"))
    monkeypatch.setattr(module, "timed", timed)
    seconds = module._seconds(torch.device("cuda"), step)
    assert did == ["step", "timed", "step", "room"]
    assert seconds == 1.5
    did.clear()
    module._seconds(CPU, step)
    assert did == ["timed", "step"]


def test_what_a_step_is_reckoned_to_take_is_what_a_micro_batch_is_chosen_by() -> None:
    from dsdmae_cli.bench.subjects import step_settings
    from dsdmae_cli.runs.build import build_method
    from dsdmae_cli.work import most_images, state_bytes, step_bytes

    method = build_method(step_settings(batch_size=8, device="cpu", assignments=TINY, environ={}))
    weights = sum(p.numel() for p in method.parameters())
    always, each = step_bytes(method, "bf16")
    assert always == state_bytes(method) + 2 * weights
    assert step_bytes(method, "fp32") == (state_bytes(method), 2 * each)
    assert step_bytes(method, "bf16", spare=0.0)[1] == pytest.approx(each / 1.25)
    assert most_images(method, "bf16", int((always + 10.5 * each) / 0.9)) == 10


def test_attention_is_timed_by_a_gradient_that_lies_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.bench import gpu_parts

    given: list[tuple[int, ...]] = []
    grad = torch.autograd.grad

    def watched(outputs: Any, inputs: Any, gradient: Any) -> Any:
        given.append(gradient.stride())
        return grad(outputs, inputs, gradient)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    part = gpu_parts.OnDevice(CPU, read_programme(True), lambda text: None)
    [found] = part.attention([[2, 3, 16, 16]])
    assert any(row[1] == "matmul, softmax, matmul" and row[2] != "not for this" for row in found.rows)
    assert set(given) == {(768, 256, 16, 1)}


@pytest.mark.slow
def test_a_contender_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(
        capfd, "bench", "step", "--batch-size", "8", "--device", "cpu", *set_to(*(*TINY, "data.dataset=folder:/none"))
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "/none" in err


def test_decoding_is_timed_beside_peers_and_the_crops_are_theirs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((256, 192), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.jpg", quality=90)
    code, out, err = cli(
        capfd, "bench", "feed", str(tmp_path), "--size", "48", "--rounds", "1", "--workers", "0", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert {"PIL", "torchvision.io", "simplejpeg", "dsdmae"} <= set(found["milliseconds"])
    assert found["levels_off"]["simplejpeg"] < 1
    assert found["levels_off"]["dsdmae"] < 6
    assert found["loader"]["0"]["own_ms"] > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("feed", "EMPTY"), "there is no JPEG in"),
        (("feed", "EMPTY", "--workers", "1,x"), "--workers 1,x is neither none nor numbers"),
        (("feed", "EMPTY", "--workers", "²"), "--workers ² is neither none nor numbers"),
        (("denoise", "EMPTY"), "there is no picture"),
        (("denoise", "BROKEN"), "unreadable image"),
        (("startup", "--picture", "/no/such/picture.png"), "--picture /no/such/picture.png: no such file"),
        (("startup", "--picture", "BROKEN/a.png"), "a.png: "),
        (("gpu", "--only", "all", "--device", "cpu"), "--only all is no part"),
        (("gpu", "--photographs", "EMPTY", "--device", "cpu"), "there is no JPEG in"),
        (("gpu", "--out", "BROKEN/a.png", "--device", "cpu"), "cannot use --out"),
        (("gpu", "--out", "BROKEN/a.png/x", "--device", "cpu"), "Not a directory"),
        (("step", "--method", "nonsense"), "nonsense"),
        (("step", "--device", "cuda:77"), "is not on this machine"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    line: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    began = listing(tmp_path)
    given = [word.replace("EMPTY", f"{tmp_path}/empty").replace("BROKEN", f"{tmp_path}/broken") for word in line]
    code, out, err = cli(capfd, "bench", *given)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert listing(tmp_path) == began


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_the_denoiser_gains_on_a_noisy_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ramp = np.linspace(40, 200, 96)[None, :, None] + np.zeros((96, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "clean.png")
    code, out, err = cli(capfd, "bench", "denoise", str(tmp_path), "--rounds", "1", "--device", "cpu", "--json")
    assert code == 0, err
    ours = [one for one in json.loads(out)["contenders"] if one["name"].startswith("dsdmae")]
    assert ours
    assert all(one["gain"] > 5 for one in ours)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_gpus_programme_can_be_tried_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bench"
    code, out, err = cli(capfd, "bench", "gpu", "--device", "cpu", "--out", str(folder), "--minutes", "60")
    assert code == 0, err
    assert f"report: {folder / 'report.md'}" in out
    parts = json.loads((folder / STATE).read_text())["parts"]
    assert list(parts) == [part.name for part in read_programme(True).parts if part.name != "feed"]
    assert "feed: left out, it needs a folder of JPEG photographs" in err
    assert all(not part["failed"] for part in parts.values())
    methods = parts["waits"]["findings"][0]["methods"]
    assert len(methods) >= 11
    assert all(one["said"] == "runs" for one in methods)
    assert "losses are equal, all of them" in " ".join(parts["runs"]["findings"][0]["notes"])
    one, two = parts["processes"]["findings"][0]["methods"][0]["losses"]
    assert one[0] == pytest.approx(two[0], rel=0.05)
    code, _, err = cli(capfd, "bench", "gpu", "--device", "cpu", "--out", str(folder))
    assert code == 0
    assert err.count("done before") == len(parts)


@pytest.mark.parametrize(
    ("content", "said"),
    [("pipe", "a named pipe, no file"), ("[]", "cannot be read"), ("[" * 10_000, "nested too deep"),
     ('{"format": 1, "machine": {}, "parts": {"waits": 3}}', "cannot be read"),
     ('{"format": 1, "machine": {}, "parts": {"waits": {"what": "x"}}}', "KeyError: 'when'")],
)  # fmt: skip
def test_what_is_no_state_of_a_programme_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    if content == "pipe":
        os.mkfifo(tmp_path / "bench.json")
    else:
        (tmp_path / "bench.json").write_text(content)
    with pytest.raises(SettingsError, match=said):
        Kept(tmp_path, {})
