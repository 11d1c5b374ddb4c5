"""`dsdmae probe`: every kind on a tiny run, what it leaves and refuses, and that it never chooses on the test set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cli, digit_folder, listing, one_line, train
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_runs import judge

from dsdmae_cli.errors import SettingsError

KINDS = ("linear", "knn", "logistic", "attentive", "ep")
FEWER = {"knn": ["probe.k=[1,3]"], "logistic": ["probe.c=[0.1,1]"], "attentive": ["probe.learning_rates=[0.001,0.01]"],
         "ep": ["probe.learning_rates=[1,10]"]}  # fmt: skip


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=80, test=40)


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    train(digits, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_leaves_its_result_and_figures(kind: str, run: Path, tmp_path: Path, drawn: None) -> None:
    result = judge(run, tmp_path / "probed", f"probe.kind={kind}", *FEWER.get(kind, []))
    figures = {"confusion", "classes", "mistakes", "pca", "tsne", "choice", *(["curves"] if kind == "linear" else [])}
    assert listing(tmp_path / "probed") == {
        "settings.toml", "run.json", "result.json", ".lock", "report.html", "figures",
        *(f"figures/{name}.png" for name in figures),
    }  # fmt: skip
    assert json.loads((tmp_path / "probed" / "result.json").read_text()) == result
    assert (result["kind"], result["probe"], result["num_images"]) == ("probe", kind, 40)
    assert result["epochs"] == (3 if kind in ("linear", "attentive", "ep") else None)
    low, high = result["top1_interval"]
    assert low <= result["top1"] <= high
    assert result["top5"] >= result["top1"]
    assert "held-out training images" in result["protocol"]
    [value] = result["chosen"].values()
    assert result["held_out"][f"{value:g}"] == max(result["held_out"].values())


def test_the_same_probe_gives_the_same_number_cached_or_not(run: Path, tmp_path: Path) -> None:
    first = judge(run, tmp_path / "a")
    again = judge(run, tmp_path / "b")
    fresh = judge(run, tmp_path / "c", "probe.cache=false")
    same = ("top1", "confusion", "chosen", "held_out", "nll", "weights_sha256", "protocol")
    assert {k: first[k] for k in same} == {k: again[k] for k in same} == {k: fresh[k] for k in same}


def test_frozen_timm_weights_are_probed_twice_alike(digits: Path, tmp_path: Path) -> None:
    words = ("data.dataset=folder:" + str(digits), "backbone.pretrained=false", "data.image_size=96")
    a, b = (judge("timm:resnet10t", tmp_path / name, *words) for name in "ab")
    assert a["top1"] == b["top1"]
    assert a["confusion"] == b["confusion"]


def test_a_logistic_probe_is_scikit_learns(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command against scikit-learn on the features it used."""
    from dsdmae_cli.evaluation import probe_data
    from dsdmae_cli.recipes import probe as recipe

    seen: list[Any] = []
    gather = probe_data.gather

    def and_keep(*given: Any) -> Any:
        seen.append(gather(*given))
        return seen[-1]

    monkeypatch.setattr(recipe, "gather", and_keep)
    result = judge(run, tmp_path / "probed", "probe.kind=logistic", "probe.c=1.0")
    [(tried, truth)] = seen
    data = tried["last"]
    scaler = StandardScaler().fit(data.train_features.numpy())
    model = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(
        scaler.transform(data.train_features.numpy()), data.train_labels.numpy()
    )
    assert result["top1"] == model.score(scaler.transform(data.test_features.numpy()), truth.labels.numpy())


def test_the_choice_does_not_depend_on_the_test_images(run: Path, digits: Path, tmp_path: Path) -> None:
    shuffled = shutil.copytree(digits, tmp_path / "data")
    for number in range(9):  # every test image gets another class's name
        (shuffled / "test" / str(number)).rename(shuffled / "test" / f"was{number}")
    (shuffled / "test" / "9").rename(shuffled / "test" / "0")
    for number in range(9):
        (shuffled / "test" / f"was{number}").rename(shuffled / "test" / str(number + 1))
    mine = judge(run, tmp_path / "a", "probe.kind=knn", *FEWER["knn"])
    theirs = judge(run, tmp_path / "b", "probe.kind=knn", *FEWER["knn"], f"data.dataset=folder:{shuffled}")
    assert mine["held_out"] == theirs["held_out"]
    assert mine["chosen"] == theirs["chosen"]
    assert mine["top1"] != theirs["top1"]


def test_few_labels_are_drawn_repeatedly(run: Path, tmp_path: Path) -> None:
    result = judge(run, tmp_path / "few", "probe.kind=knn", "probe.k=1", "probe.few_shot=20,50%", "probe.draws=3")
    rows = result["few_shot"]
    assert result["train_images"] == rows[-1]["images"]
    assert result["protocol"].startswith("50% of the labels, the first of 3 draws: ")
    assert [row["share"] for row in rows] == [0.2, 0.5]
    for row in rows:
        assert len(row["values"]) == 3
        assert row["top1"] == pytest.approx(np.mean(row["values"]))
        assert row["std"] == pytest.approx(np.std(row["values"], ddof=1))
    assert rows[0]["images"] < rows[1]["images"] < 80


def test_one_label_a_class_leaves_nothing_to_choose(run: Path, tmp_path: Path) -> None:
    words = {"linear": "base rate 0.1;", "knn": "the 1 nearest", "logistic": "C = 1", "attentive": "rate 0.001;",
             "ep": "base rate 2;"}  # fmt: skip
    for kind, said in words.items():
        result = judge(run, tmp_path / kind, f"probe.kind={kind}", "probe.few_shot=1%", "probe.draws=1")
        [row] = result["few_shot"]
        assert (row["images"], row["values"]) == (10, [result["top1"]])
        assert said in result["protocol"]
        assert ("AdamW, weight decay 0.05 of matrices" in result["protocol"]) == (kind == "attentive")
        assert result["held_out"] == {}


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_the_block_is_chosen_on_held_out_images(kind: str, digits: Path, tmp_path: Path) -> None:
    train(digits, tmp_path / "deep", "backbone.depth=3")
    quick = (f"probe.kind={kind}", "probe.k=1" if kind == "knn" else "probe.c=1")
    tried = judge(tmp_path / "deep", tmp_path / "all", *quick, "probe.blocks=all")
    assert list(tried["held_out_by_block"]) == ["1", "2", "3"]
    assert tried["held_out_by_block"][tried["block"]] == max(tried["held_out_by_block"].values())
    assert f"features after block {tried['block']}, chosen from 3" in tried["protocol"]
    alone = judge(tmp_path / "deep", tmp_path / "alone", *quick, f"probe.blocks={tried['block']}")
    assert (alone["top1"], alone["confusion"]) == (tried["top1"], tried["confusion"])
    assert alone["held_out_by_block"] == {}
    beside = judge(tmp_path / "deep", tmp_path / "beside", *quick, "probe.blocks=last:2", "probe.input_noise=0.1")
    assert (beside["features_width"], beside["input_noise"]) == (64, 0.1)


@pytest.mark.parametrize("blocks", ["middle", "0", "last:0", "-1", "1,2"])
def test_blocks_that_are_no_blocks(blocks: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=f"probe.blocks = '{blocks}'.*it takes last, all, a number from 1 up, or last:N"
    ):
        judge(run, tmp_path / "none", f"probe.blocks={blocks}")


def test_the_teacher_is_probed(run: Path, digits: Path, tmp_path: Path) -> None:
    from dsdmae_cli import checkpoint
    from dsdmae_cli.artifacts.open import open_encoder

    quick = ("probe.kind=knn", "probe.k=1")
    student, teacher = judge(run, tmp_path / "a", *quick), judge(run, tmp_path / "b", *quick, "probe.teacher=true")
    assert teacher["subject"] == f"{student['subject']} (teacher)"
    assert teacher["weights_sha256"] != student["weights_sha256"]
    opened = open_encoder(str(run), None, backbone=None, image_size=None, seed=0, teacher=True)
    kept, _ = checkpoint.load_newest_weights(run / "checkpoints")
    assert kept is not None
    for name, weight in opened.encoder.state_dict().items():
        torch.testing.assert_close(weight, kept.model[f"teacher.module.{name}"], rtol=0, atol=0)
    with pytest.raises(SettingsError, match="needs a run's directory"):
        judge(run / "encoder.safetensors", tmp_path / "c", *quick, "probe.teacher=true")
    train(digits, tmp_path / "mae", method="mae")
    with pytest.raises(SettingsError, match="mae keeps no average of the encoder; leave --teacher out"):
        judge(tmp_path / "mae", tmp_path / "d", *quick, "probe.teacher=true")


def test_few_labels_choose_their_block(run: Path, tmp_path: Path) -> None:
    result = judge(run, tmp_path / "few", "probe.kind=knn", "probe.k=1", "probe.few_shot=0.5", "probe.draws=2",
                   "probe.blocks=last:1")  # fmt: skip
    assert len(result["few_shot"][0]["values"]) == 2
    with pytest.raises(SettingsError, match="offers its final features alone"):
        judge(run, tmp_path / "none", "probe.blocks=7")
    assert not (tmp_path / "none").exists()


def test_tokens_that_do_not_fit_are_encoded_anew(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.evaluation import efficient

    quick = ("probe.kind=ep", *FEWER["ep"])
    kept = judge(run, tmp_path / "kept", *quick)
    monkeypatch.setattr(efficient, "_MOST_BYTES", 1000)
    anew = judge(run, tmp_path / "anew", *quick)
    assert {key: kept[key] for key in ("top1", "nll", "held_out")} == {
        key: anew[key] for key in ("top1", "nll", "held_out")
    }


def test_unreadable_images_shift_no_label(run: Path, digits: Path, tmp_path: Path) -> None:
    """A probe that reads images, not features, sees the same ones under the same labels."""
    torn = shutil.copytree(digits, tmp_path / "data")
    for split in ("train", "test"):
        first = min((torn / split).rglob("*.png"))
        first.write_bytes(first.read_bytes()[:60])
    gone = shutil.copytree(torn, tmp_path / "gone")
    for split in ("train", "test"):
        min((gone / split).rglob("*.png")).unlink()
    a, b = (
        judge(run, tmp_path / f"{folder.name}-probed", "probe.kind=attentive", *FEWER["attentive"],
              "train.epochs=6", f"data.dataset=folder:{folder}", "data.max_unreadable=0.2")
        for folder in (torn, gone)
    )  # fmt: skip
    same = ("confusion", "chosen", "held_out", "num_images")
    assert {key: a[key] for key in same} == {key: b[key] for key in same}


def test_scratch_has_random_weights_of_the_seed(run: Path, tmp_path: Path) -> None:
    a = judge("scratch", tmp_path / "a", like=run)
    b = judge("scratch", tmp_path / "b", "train.seed=1", like=run)
    assert a["method"] == "scratch"
    assert a["weights_sha256"] != b["weights_sha256"]


def test_pixels_are_a_baseline_like_any_other(run: Path, tmp_path: Path) -> None:
    result = judge("pixels", tmp_path / "p", "probe.kind=knn", like=run)
    assert (result["method"], result["features_width"], result["flops"]) == ("pixels", 3 * 16 * 16, 0)


def test_a_fine_tuned_network_is_probed_without_its_head(run: Path, tmp_path: Path) -> None:
    from small_runs import tune

    tune(run, tmp_path / "tuned", "train.epochs=1")
    whole = judge(tmp_path / "tuned", tmp_path / "a", "probe.kind=knn")
    file = judge(tmp_path / "tuned" / "classifier.safetensors", tmp_path / "b", "probe.kind=knn")
    before = judge(run, tmp_path / "c", "probe.kind=knn")
    assert whole["weights_sha256"] == file["weights_sha256"] != before["weights_sha256"]
    assert whole["confusion"] == file["confusion"]


def test_another_image_size_resamples_positions(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capfd, "probe", run, "--kind", "knn", "--set", "data.image_size=32", "--set", "probe.k=3",
                       "--device", "cpu", "--out", tmp_path / "p", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["image_size"] == 32


def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "refused"

    def refuse(*words: str | Path) -> str:
        code, printed, err = cli(capfd, "probe", *words, "--out", out)
        assert (code, printed) == (2, "")
        assert not out.exists()
        return one_line(err)

    assert "say what to judge" in refuse()
    assert "there is no nowhere" in refuse("nowhere")
    assert "probe.kind = 'lineal' (from --kind): probe 'lineal' is not installed (did you mean linear?); there is" in (
        refuse(run, "--kind", "lineal")
    )
    assert "[probe] has" in refuse(run, "--set", "probe.k=3")  # the linear probe has none
    assert "probe.k = []" in refuse(run, "--kind", "knn", "--set", "probe.k=[]")
    assert "class token" in refuse(run, "--pool", "cls")
    assert "probe.few_shot" in refuse(run, "--few-shot", "150%")
    assert "it takes shares of the labels, as 0.01,0.1 or 1,10%" in refuse(run, "--few-shot", "a few%")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((run / "encoder.safetensors").read_bytes()[:100])
    assert "torn.safetensors" in refuse(torn)
    one = shutil.copytree(digits, tmp_path / "one")
    for split in ("train", "test"):
        for number in range(1, 10):
            shutil.rmtree(one / split / str(number))
    assert "have no labels" in refuse(run, "--dataset", f"folder:{one}")  # one folder is no class


def test_dry_run_prints_the_plan_and_writes_nothing(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("probe", "finetune"):
        code, out, _ = cli(capfd, command, run, "--dry-run", "--json", "--device", "cpu", "--batch-size", "16")
        assert code == 0
        assert json.loads(out)["train_images"] == 80
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
