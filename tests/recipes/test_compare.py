"""`dsdmae compare`: any number of results in one table, the paper's beside them, and what the intervals say."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import cli, one_line

from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.recipes.compare import cells, compare, markdown, paper_rows

PROBE: dict[str, Any] = {
    "kind": "probe",
    "protocol": "BatchNorm and a linear layer on frozen features",
    "subject": "runs/a",
    "method": "dsdmae",
    "backbone": "vit-tiny",
    "dataset": "cifar10",
    "top1": 0.70,
    "top1_interval": [0.69, 0.71],
    "top5": 0.97,
    "epochs": 90,
    "pretrain_epochs": 500,
    "pretrain_flops": 4.5e17,
    "flops": 1e12,
    "seconds": 75,
    "weights_sha256": "00",
}


def result(folder: Path, name: str, **changes: Any) -> Path:
    run = folder / name
    run.mkdir()
    (run / "result.json").write_text(json.dumps({**PROBE, **changes}))
    return run


def test_results_stand_by_dataset_and_best_first(tmp_path: Path) -> None:
    runs = [
        result(tmp_path, "low", top1=0.5, top1_interval=None),
        result(tmp_path, "other", dataset="folder:/data/birds", top1=0.1),
        result(tmp_path, "high", top1=0.9, top1_interval=[0.89, 0.91]),
        result(tmp_path, "none", top1=None, top1_interval=None),
    ]
    found = compare(runs, paper="none")
    assert [row.name for row in found.rows] == ["high", "low", "none", "other"]
    assert found.citation is None
    heading, *lines = cells(found)
    assert heading == ["dataset", "result", "kind", "method", "backbone", "top-1", "top-5", "pre-training epochs",
                       "pre-training FLOP", "epochs", "FLOP", "time"]  # fmt: skip
    assert lines[0] == ["cifar10", "high", "probe", "dsdmae", "vit-tiny", "90.0% (89.0 to 91.0)", "97.0%", "500",
                        "4.5e+17", "90", "1e+12", "1 min 15 s"]  # fmt: skip
    assert lines[3][0] == "birds"


def test_results_in_segmentation_stand_best_first_too(tmp_path: Path) -> None:
    none = {"top1": None, "top1_interval": None, "top5": None}
    scores = {"low": 0.2, "best": 0.6, "unknown": None, "middle": 0.4}
    runs = [result(tmp_path, name, mean_iou=score, **none) for name, score in scores.items()]
    runs.append(result(tmp_path, "classes", top1=0.1))
    assert [row.name for row in compare(runs, "none").rows] == ["classes", "best", "middle", "low", "unknown"]


def test_a_file_and_its_directory_are_the_same(tmp_path: Path) -> None:
    run = result(tmp_path, "run")
    renamed = (run / "result.json").rename(tmp_path / "kept.json")
    [row] = compare([renamed], "none").rows
    assert row.name == "kept"
    assert row.top1 == 0.70


def test_a_result_that_is_named_twice_stands_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = result(tmp_path, "run")
    monkeypatch.chdir(tmp_path)
    found = compare([run, Path("run"), run / "result.json"], "none")
    assert [row.name for row in found.rows] == ["run"]
    assert found.remarks == ("a result was named more than once, and stands here once",)
    assert compare([run], "none").remarks == ()


def test_a_pretraining_run(encoder_run: Path) -> None:
    written = json.loads((encoder_run / "result.json").read_text())
    [row] = compare([encoder_run]).rows
    assert (row.kind, row.name, row.top1) == ("pretrain", "run", written["knn_accuracy"])
    heading, line = cells(compare([encoder_run]))
    assert line[heading.index("pre-training epochs")] == "2"
    assert "epochs" not in heading


# -- what the intervals say


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ([0.73, 0.75], "a has the highest top-1, but its interval overlaps that of b: they are not told apart"),
        ([0.75, 0.76], "a has the highest top-1, but its interval overlaps that of b: they are not told apart"),
        ([0.72, 0.74], "a has the highest top-1, and its interval overlaps no other"),
        (None, "without intervals nothing can be said about b"),
    ],
)
def test_overlapping_intervals(tmp_path: Path, interval: list[float] | None, says: str) -> None:
    runs = [
        result(tmp_path, "b", top1=0.74, top1_interval=interval),
        result(tmp_path, "a", top1=0.76, top1_interval=[0.75, 0.77]),
    ]
    [remark] = compare(runs).remarks
    assert remark.startswith("cifar10, probe: ")
    assert says in remark


def test_only_the_same_kind_is_told_apart(tmp_path: Path) -> None:
    runs = [result(tmp_path, "probe"), result(tmp_path, "tuned", kind="finetune", top1=0.701)]
    assert compare(runs).remarks == ()


def test_protocols_that_differ(tmp_path: Path) -> None:
    runs = [result(tmp_path, "linear"), result(tmp_path, "knn", protocol="k-NN", top1=0.5, top1_interval=[0.4, 0.6])]
    assert "protocols differ" in compare(runs).remarks[1]


# -- the paper


def test_the_papers_table() -> None:
    table = {
        (row.dataset, row.backbone, row.kind, row.method, row.pretrain_epochs): row.top1
        for dataset in ("cifar10", "cifar100", "stl10")
        for row in paper_rows(dataset)
    }
    assert len(table) == 6 * (9 + 8)
    assert table["cifar10", "vit-tiny", "finetune", "scratch", None] == 0.7388
    assert table["cifar10", "vit-small", "probe", "dsdmae", 500] == 0.7698
    assert table["cifar100", "vit-tiny", "finetune", "mae", 1200] == 0.6672
    assert table["stl10", "vit-base", "finetune", "dsdmae", 500] == 0.8786
    assert table["stl10", "vit-small", "probe", "mocov3", 500] == 0.7887
    assert ("stl10", "vit-tiny", "probe", "dsdmae", 500) not in table


def test_the_papers_rows_stand_beside_their_dataset(tmp_path: Path) -> None:
    found = compare([result(tmp_path, "mine"), result(tmp_path, "birds", dataset="folder:/birds")])
    theirs = [row for row in found.rows if row.of_paper]
    assert [(row.dataset, row.backbone, row.kind, row.method, row.top1) for row in theirs] == [
        ("cifar10", "vit-tiny", "probe", "dsdmae", 0.7553)
    ]
    assert found.citation is not None
    assert "10.5815/ijigsp.2023.05.03" in found.citation


def test_a_result_of_another_method_brings_its_row(tmp_path: Path) -> None:
    found = compare([result(tmp_path, "mine", method="mae", kind="finetune", backbone="vit-small")])
    assert {(row.method, row.pretrain_epochs, row.top1) for row in found.rows if row.of_paper} == {
        ("scratch", None, 0.7986), ("mae", 500, 0.9026), ("mae", 1200, 0.9179), ("dsdmae", 500, 0.9194)
    }  # fmt: skip


def test_the_papers_rows_on_demand(tmp_path: Path) -> None:
    run = result(tmp_path, "mine", dataset="folder:/data/cifar10")
    assert not [row for row in compare([run]).rows if row.of_paper]  # a folder of that name need not be theirs
    assert [row.top1 for row in compare([run], "cifar10").rows if row.of_paper] == [0.7553]
    with pytest.raises(SettingsError, match="did you mean cifar10"):
        compare([run], "cifar1")


# -- forms


def test_markdown(tmp_path: Path) -> None:
    lines = markdown(compare([result(tmp_path, "a|b")])).splitlines()
    assert lines[0].startswith("| dataset | result |")
    assert lines[1].replace("| --- ", "") == "|"
    assert any("a\\|b" in line for line in lines)
    assert {line.replace("\\|", "").count("|") for line in lines[:4]} == {lines[0].count("|")}
    assert lines[-1].startswith("paper: Xu & Stirenko 2023")


def test_csv_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = result(tmp_path, "a, b")
    code, out, _ = cli(capfd, "compare", run, "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    mine = next(row for row in rows if row["name"] == "a, b")
    assert (float(mine["top1"]), float(mine["top1_low"]), float(mine["pretrain_flops"])) == (0.70, 0.69, 4.5e17)
    code, out, _ = cli(capfd, "compare", run, "--json")
    said = json.loads(out)
    assert [row["name"] for row in said["results"]] == ["paper", "a, b"]
    assert said["results"][1]["top1_interval"] == [0.69, 0.71]


def test_the_plain_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(capfd, "compare", result(tmp_path, "mine"))
    heading, paper, mine, source = out.splitlines()
    assert (code, err) == (0, "")
    assert heading.index("top-1") == mine.index("70.0% (69.0 to 71.0)") == paper.index("75.5%")
    assert source.startswith("paper: ")


# -- what it refuses


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON"),
        ("[1]", "is no result of dsdmae"),
        ('{"accuracy": 0.5}', "is no result of dsdmae"),
        ('{"kind": "probe", "dataset": "x", "top1": "high"}', "top1 is 'high', not a number"),
        ('{"kind": "probe", "dataset": "x", "top1": NaN}', "top1 is nan, not a number"),
        ('{"kind": "probe", "dataset": "x", "top1": 0.5, "top1_interval": [0.4]}', "not a pair"),
        ('{"kind": "denoise", "dataset": "x"}', "is no result of dsdmae"),
    ],
)
def test_foreign_and_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, says: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(content)
    code, out, err = cli(capfd, "compare", tmp_path)
    assert (code, out) == (2, "")
    assert says in one_line(err)
    assert "result.json" in one_line(err)


def test_missing_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"has no result\.json: the run has not ended, or is none"):
        compare([tmp_path])
    result(tmp_path, "cifar-linear")
    with pytest.raises(CheckpointError, match=r"there is no .*cifar-liner \(did you mean .*cifar-linear\?\); give the"):
        compare([tmp_path / "cifar-liner"])
    with pytest.raises(CheckpointError, match="timm:resnet18 is no result; judge it first"):
        compare([Path("timm:resnet18")])
    for name in ("theirs.pth", "theirs.safetensors", "folder/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"weights")
        named = tmp_path / name.removesuffix("/model.safetensors")
        with pytest.raises(CheckpointError, match=rf"{named.name} is no result; judge it first \(`dsdmae probe "):
            compare([named])
    code, _, err = cli(capfd, "compare")
    assert code == 2
    assert "nothing to compare" in one_line(err)
    code, _, err = cli(capfd, "compare", tmp_path, "--csv", "--json")
    assert code == 2
    assert "exclude each other" in one_line(err)


def test_a_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `probe` and `embed` take it: where runs go by default."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    from dsdmae_cli.runs.rundir import default_folder

    default_folder().mkdir(parents=True)
    (result(default_folder(), "mine") / "settings.toml").write_text("[data]\n")
    (default_folder() / "going").mkdir()
    (default_folder() / "going" / "settings.toml").write_text("[data]\n")
    [row] = compare([Path("mine")], "none").rows
    assert row.name == "mine"
    with pytest.raises(CheckpointError, match=r"going has no result\.json: the run has not ended"):
        compare([Path("going")])


def test_comparing_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from dsdmae_cli.__main__ import _run; code = _run(['compare', sys.argv[1]]);"
        " sys.exit(code or 'torch' in sys.modules or 'timm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, result(tmp_path, "run")], check=True, capture_output=True)
