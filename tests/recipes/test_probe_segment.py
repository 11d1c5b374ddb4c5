"""`dsdmae probe --kind segment` and `segment-knn`: every kind of subject, what they leave and refuse, and that nothing
is chosen on the test set.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
from helpers import cli, digit_folder, listing, one_line
from PIL import Image

from dsdmae_cli.errors import DataError, SettingsError
from dsdmae_cli.evaluation.overlap import mean_iou
from dsdmae_cli.recipes.compare import compare
from dsdmae_cli.recipes.probe import summary

QUICK = ("train.device=cpu", "train.precision=fp32", "train.epochs=3", "data.image_size=24,32")
FEWER = {"segment": ["probe.learning_rates=[0.003,0.03]"], "segment-knn": ["probe.k=[1,5]"]}

pytestmark = pytest.mark.usefixtures("undrawn")


def judge(subject: str | Path, out: Path, *assignments: str, like: Path | None = None) -> dict[str, Any]:
    kind = next((text.partition("=")[2] for text in assignments if text.startswith("probe.kind=")), "segment")
    given = (f"probe.kind={kind}", *FEWER[kind], *assignments)
    return small_runs.judge(subject, out, *given, like=like, quick=QUICK)


def test_pretraining_on_images_with_masks_ends_with_what_judges_it(masked_run: Path) -> None:
    result = json.loads((masked_run / "result.json").read_text())
    assert (result["labels"], result["knn_accuracy"]) == ("masks", None)
    assert "dsdmae probe RUN --kind segment" in result["closing"]
    page = (masked_run / "report.html").read_text()
    assert "dsdmae finetune RUN --task segment" in page
    assert "dsdmae worth" not in page


@pytest.mark.parametrize("kind", FEWER)
def test_each_kind_leaves_its_result_and_pictures(kind: str, masked_run: Path, tmp_path: Path, drawn: None) -> None:
    result = judge(masked_run, tmp_path / "probed", f"probe.kind={kind}")
    figures = (f"figures/{name}.png" for name in ("segmentation", "confusion", "classes", "choice"))
    assert listing(tmp_path / "probed") == {
        "settings.toml", "run.json", "result.json", "counts.npz", ".lock", "report.html", "figures", *figures
    }  # fmt: skip
    assert json.loads((tmp_path / "probed" / "result.json").read_text()) == result
    assert (result["kind"], result["probe"], result["num_images"]) == ("probe", kind, 6)
    assert (result["image_size"], result["grid"]) == ([24, 32], [6, 8])  # a run on 16 px, seen at another size
    low, high = result["mean_iou_interval"]
    assert low <= result["mean_iou"] <= high
    assert result["void_share"] == pytest.approx(55 / 768)
    assert sum(result["pixels_per_class"]) == 6 * (768 - 55)
    [value] = result["chosen"].values()
    assert result["held_out"][f"{value:g}"] == max(result["held_out"].values())
    assert "held-out training images" in result["protocol"]
    with np.load(tmp_path / "probed" / "counts.npz") as kept:
        assert mean_iou(kept["counts"].sum(axis=0)) == result["mean_iou"]
        assert len(kept["images"]) == 6
    lines = summary(result)
    assert f"mean IoU       {result['mean_iou']:.1%} (95% interval" in lines
    assert "  shade  IoU " in lines


def test_the_same_probe_gives_the_same_number(masked_run: Path, tmp_path: Path) -> None:
    a, b = (judge(masked_run, tmp_path / name) for name in "ab")
    same = ("mean_iou", "confusion", "chosen", "held_out", "weights_sha256", "protocol")
    assert {key: a[key] for key in same} == {key: b[key] for key in same}


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("scratch", ("backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2", "backbone.patch_size=8")),
        ("pixels", ("backbone.patch_size=4",)),
        ("timm:resnet10t", ("backbone.pretrained=false", "data.image_size=64,96")),
    ],
)
def test_every_subject_is_probed(subject: str, words: tuple[str, ...], masked: Path, tmp_path: Path) -> None:
    result = judge(subject, tmp_path / "probed", f"data.dataset=folder:{masked}", *words)
    assert 0 < result["mean_iou"] < 1
    assert result["features_width"] == {"scratch": 32, "pixels": 48, "timm:resnet10t": 512}[subject]
    assert result["grid"] == {"scratch": [3, 4], "pixels": [6, 8], "timm:resnet10t": [2, 3]}[subject]


def test_ink_is_told_from_paper_by_bare_colours(masked: Path, tmp_path: Path) -> None:
    """Each token is a pixel here, and the classes are ranges of grey."""
    words = (f"data.dataset=folder:{masked}", "backbone.patch_size=1", "train.epochs=40")
    result = judge("pixels", tmp_path / "probed", *words, "probe.learning_rates=0.1")
    assert result["mean_iou"] > 0.9


def test_the_choice_does_not_depend_on_the_test_masks(masked_run: Path, masked: Path, tmp_path: Path) -> None:
    other = shutil.copytree(masked, tmp_path / "data")
    for path in (other / "masks" / "test").iterdir():
        with Image.open(path) as mask:
            values = np.asarray(mask)
        Image.fromarray(np.where(values == 255, 255, 2 - values).astype(np.uint8)).save(path)
    mine = judge(masked_run, tmp_path / "a")
    theirs = judge(masked_run, tmp_path / "b", f"data.dataset=folder:{other}")
    assert (mine["held_out"], mine["chosen"]) == (theirs["held_out"], theirs["chosen"])
    assert mine["mean_iou"] != theirs["mean_iou"]


def test_the_best_block_is_chosen_on_held_out_images(masked: Path, tmp_path: Path) -> None:
    net = ("backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2", "backbone.patch_size=4")
    words = (f"data.dataset=folder:{masked}", *net)
    result = judge("scratch", tmp_path / "all", *words, "probe.blocks=all")
    assert set(result["held_out_by_block"]) == {"1", "2"}
    assert result["held_out_by_block"][result["block"]] == max(result["held_out_by_block"].values())
    alone = judge("scratch", tmp_path / "one", *words, f"probe.blocks={result['block']}")
    assert alone["confusion"] == result["confusion"]
    single = judge("scratch", tmp_path / "k", *words, "probe.blocks=all", "probe.kind=segment-knn", "probe.k=3")
    assert all(value > 0 for value in single["held_out_by_block"].values())


def test_windows_slide_over_larger_pictures(masked_run: Path, tmp_path: Path) -> None:
    result = judge(masked_run, tmp_path / "probed", "data.image_size=16", "probe.scale=1")
    assert result["train_windows"] == 24 * 2 * 3
    assert "scaled by 1, or by more where they would not cover the window, windows of 16x16 px" in result["protocol"]
    assert sum(result["pixels_per_class"]) == 6 * (768 - 55)


def test_results_are_compared_image_by_image(masked_run: Path, masked: Path, tmp_path: Path) -> None:
    judge(masked_run, tmp_path / "a")
    words = (f"data.dataset=folder:{masked}", "backbone.patch_size=1")
    judge("pixels", tmp_path / "b", *words, "probe.kind=segment-knn")
    found = compare([tmp_path / "a", tmp_path / "b"])
    [remark] = [words for words in found.remarks if "points of mean IoU" in words]
    assert "a is " in remark  # greys alone, centred, point in two directions and cannot tell three classes apart
    assert " above b on the same images (95% interval " in remark
    (tmp_path / "a" / "counts.npz").unlink()
    assert any(
        "cannot be compared image by image" in words for words in compare([tmp_path / "a", tmp_path / "b"]).remarks
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("probe.few_shot=0.1",), r"probe\.few_shot is for kinds that label images; segment learns from all images"),
        (("probe.pool=max",), r"probe\.pool is for kinds that label images"),
        (("data.image_size=25,32",), "25"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], said: str, masked_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        judge(masked_run, tmp_path / "probed", *words)
    assert not (tmp_path / "probed").exists()


def test_a_dataset_without_masks_and_a_folder_of_masks_for_classes(
    masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = digit_folder(tmp_path / "classes")
    code, _, err = cli(capfd, "probe", "scratch", "--dataset", digits, "--kind", "segment")
    assert (code, "have no masks" in one_line(err)) == (2, True)
    code, _, err = cli(capfd, "probe", "scratch", "--dataset", masked, "--kind", "linear")
    assert (code, "are a dataset for segmentation" in one_line(err)) == (2, True)


def test_a_dry_run_says_what_there_is(masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("probe", "scratch", "--dataset", masked, "--kind", "segment", "--set", "data.image_size=24,32")
    code, said, _ = cli(capfd, *given, "--dry-run")
    assert code == 0
    assert "masks     3 classes: paper, shade, ink; void (255) is 7.2% of 30 masks" in said
    assert "segment probe of scratch on folder:" in said


def test_results_by_other_masks_are_not_compared_image_by_image(masked_run: Path, tmp_path: Path) -> None:
    """Of the same images, but with another class left out as void: what is left to judge is another question."""
    judge(masked_run, tmp_path / "a", "probe.kind=segment-knn")
    legend = json.loads((tmp_path / "a" / "result.json").read_text())
    judge(masked_run, tmp_path / "b", "probe.kind=segment-knn", "data.void=[1,255]")
    assert len(json.loads((tmp_path / "b" / "result.json").read_text())["classes"]) == len(legend["classes"]) - 1
    remarks = compare([tmp_path / "a", tmp_path / "b"]).remarks
    assert not any("points of mean IoU" in words for words in remarks)
    assert any("were judged by other masks, classes or void (data.void)" in words for words in remarks)


def test_test_images_of_which_none_can_be_read_are_one_line(
    masked_run: Path, masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "masked"
    shutil.copytree(masked, folder)
    first, *others = sorted((folder / "images" / "test").iterdir())
    for path in others:
        path.unlink()
        (folder / "masks" / "test" / f"{path.stem}.png").unlink()
    first.write_bytes(first.read_bytes()[:60])  # one may always be unreadable (source.Unreadable)
    words = (f"--dataset={folder}", "--out", str(tmp_path / "probed"), *(f"--set={text}" for text in QUICK))
    code, _, err = cli(capfd, "probe", str(masked_run), "--kind=segment-knn", *words)
    assert (code, "none of 1 image can be read (first: " in err.splitlines()[-1]) == (2, True)
    assert not (tmp_path / "probed").exists()


def test_a_protocol_says_what_was_looked_at(masked_run: Path, tmp_path: Path) -> None:
    more = ("probe.input_noise=0.1", "probe.blocks=1", "probe.scale=0.1", "probe.train_images=3")
    result = judge(masked_run, tmp_path / "probed", "probe.learning_rates=0.03", *more)
    protocol = result["protocol"]
    assert "clean" not in protocol
    assert "; features after block 1; Gaussian noise of σ 0.1 on the images" in protocol
    assert "pictures scaled by 0.1, or by more where they would not cover the window" in protocol  # as they are here
    assert "batch 3 windows" in protocol  # there are no more
    assert result["flops"] % (result["train_windows"] + result["num_images"]) == 0


def test_a_single_image_has_no_classes_to_be_held_out(masked: Path, tmp_path: Path) -> None:
    two_blocks = (f"data.dataset=folder:{masked}", "backbone.patch_size=4", "backbone.depth=2", "backbone.embed_dim=32")
    with pytest.raises(DataError, match="there is one training image, so that none can be held out"):
        judge("scratch", tmp_path / "probed", *two_blocks, "probe.train_images=1", "probe.blocks=all")
