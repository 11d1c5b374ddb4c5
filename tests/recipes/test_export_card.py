"""The model card that `dsdmae export --to hf` writes: what it says, and that its code runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import exported

from dsdmae_cli.artifacts.anonymous import anonymous, of_dataset
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.errors import CheckpointError, SettingsError


def test_the_card_of_a_classifier(encoder_run: Path, tuned_run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    exported(tuned_run, "hf", tmp_path / "digits-vit", licence="mit")
    result = json.loads((tuned_run / "result.json").read_text())
    card = ModelCard.load(tmp_path / "digits-vit" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    for words in (
        "fine-tuned on folder:digits", "a logit for each of 10 classes: 0, 1, 2", result["classifier_sha256"],
        "| schedule | 4 epochs, batch 8, seed 0 |", f"| images seen | {result['images_seen']:,} |",
        f"| compute | {result['flops']:.3g} FLOP", f"| compute | {result['pretrain_flops']:.3g} FLOP",
        "| method | `dsdmae` |", f"| finetune | folder:digits | {result['top1']:.1%} (",
        "doi:10.5815/ijigsp.2023.05.03",
    ):  # fmt: skip
        assert words in card.text, words
    code = card.text.split("```python\n")[1].split("```")[0].replace("THIS-FOLDER", str(tmp_path / "digits-vit"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 10)
    assert names["names"][0] in "0123456789"
    for file in (tmp_path / "digits-vit").iterdir():
        for folder in (encoder_run.parent, tuned_run.parent):
            assert str(folder).encode() not in file.read_bytes(), file.name


def test_a_result_of_other_weights_is_no_classifiers_result(tuned_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tuned_run, tmp_path / "run", ignore=lambda *_: ["checkpoints", "figures"])
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"classifier_sha256": "00"}))
    exported(run, "hf", tmp_path / "out", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "None were measured." in card
    assert "| protocol | not known |" in card


# -- the model card


def test_the_model_card(encoder_run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = shutil.copytree(encoder_run, tmp_path / "run")
    opened = open_encoder(str(run), None, backbone=None, image_size=None, seed=0)
    judged = {"kind": "probe", "dataset": "folder:/home/me/birds", "top1": 0.5, "top1_interval": [0.4, 0.6]}
    for name, sha in (("mine", opened.weights_sha256), ("others", "00")):
        (run / name).mkdir()
        result = {**judged, "protocol": f"protocol of {name}", "weights_sha256": sha}
        (run / name / "result.json").write_text(json.dumps(result))
    said = exported(run, "hf", tmp_path / "vit-of-digits", licence="cc-by-4.0")
    card = ModelCard.load(tmp_path / "vit-of-digits" / "README.md")
    assert (card.data.library_name, card.data.license) == ("timm", "cc-by-4.0")
    assert card.data.pipeline_tag == "image-feature-extraction"
    for words in (
        "# vit-of-digits", "`dsdmae`", "2 epochs, batch 8, seed 0", "| images seen | 80 |", opened.weights_sha256,
        f"{opened.flops:.3g} FLOP", "| probe | folder:birds | 50.0% (40.0 to 60.0) | protocol of mine |",
        f"| k-NN | folder:digits | {opened.knn_accuracy:.1%} |", "doi:10.5815/ijigsp.2023.05.03",
    ):  # fmt: skip
        assert words in card.text, words
    assert "protocol of others" not in card.text
    assert "/home/me" not in card.text
    assert said["upload_with"] == f"hf upload YOUR-NAME/vit-of-digits {tmp_path / 'vit-of-digits'}"


def test_the_card_of_a_fine_tuned_network_without_its_head_says_so(tuned_run: Path, tmp_path: Path) -> None:
    exported(tuned_run, "hf", tmp_path / "out", head=False)
    card = (tmp_path / "out" / "README.md").read_text()
    result = json.loads((tuned_run / "result.json").read_text())
    assert "fine-tuned on folder:digits and taken without its head" in card
    assert "none of dsdmae's" not in card
    assert f"`{result['classifier_sha256']}`" in card
    assert f"| schedule | {result['pretrain_epochs']:.4g} epochs |" in card, "what was before fine-tuning"
    assert f"| finetune | folder:digits | {result['top1']:.1%}" in card
    assert "Fine-tuning was measured with the head, which is not here." in card


def test_results_that_are_named(encoder_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"kind": "finetune", "dataset": "x", "top1": 0.25, "weights_sha256": "00"}))
    said = exported(encoder_run, "hf", tmp_path / "out", results=(other,))
    assert "| finetune | x | 25.0% |" in (tmp_path / "out" / "README.md").read_text()
    notes = said["notes"]
    assert isinstance(notes, list)
    assert any("judged other weights" in note for note in notes)
    assert any("no --license" in note for note in notes)


@pytest.mark.parametrize("content", ['{"kind": "worth", "dataset": "digits"}', '{"kind": "probe"', "[]"])
def test_a_strange_result_below_the_run_keeps_no_weights_back(content: str, encoder_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(encoder_run, tmp_path / "run")
    (run / "worth").mkdir()
    (run / "worth" / "result.json").write_text(content)
    notes = exported(run, "hf", tmp_path / "out", licence="mit")["notes"]
    assert isinstance(notes, list)
    [note] = notes
    assert str(run / "worth" / "result.json") in note
    assert note.endswith("; it is not in the card")
    with pytest.raises(CheckpointError):  # what was named must be one
        exported(run, "hf", tmp_path / "other", results=(run / "worth",))


def test_no_path_of_the_machine_is_in_an_export(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a server that the run was told of; the name of a public dataset or repository stays whole."""
    private: dict[str, dict[str, Any]] = {
        "data": {"labels": "/home/ada/secret/labels.csv", "data_dir": "/home/ada/data"},
        "method": {"tokenizer": "/home/ada/runs/words"},
        "train": {"trackers": ["mlflow:http://ada:pw@tracker.home"], "start": "/home/ada/first.safetensors"},
    }
    opened = open_encoder(str(encoder_run), None, backbone=None, image_size=None, seed=0)
    assert opened.settings is not None
    for section, table in private.items():
        opened.settings[section].update(table)
    monkeypatch.setattr("dsdmae_cli.recipes.export.open_encoder", lambda *given, **how: opened)
    exported(encoder_run, "hf", tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    for content in files.values():
        assert b"/home/" not in content
        assert b"tracker.home" not in content
    assert b"tokenizer words" in files["README.md"]
    opened.settings["data"]["dataset"] = "hf:uoft-cs/cifar10"
    opened.settings["train"]["start"] = "hf:ada/my-encoder"
    kept = anonymous(opened.settings)
    assert (kept["data"]["dataset"], kept["train"]["start"]) == ("hf:uoft-cs/cifar10", "hf:ada/my-encoder")
    assert (kept["data"]["labels"], kept["method"]["tokenizer"]) == ("labels.csv", "words")


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("folder:/home/ada/birds/", "folder:birds"), ("folder:birds", "folder:birds"), ("digits", "digits"),
        ("hf:/home/ada/birds", "hf:birds"), ("hf:uoft-cs/cifar10", "hf:uoft-cs/cifar10"),
    ],
)  # fmt: skip
def test_what_a_dataset_is_called_elsewhere(dataset: str, said: str) -> None:
    assert of_dataset(dataset) == said


def test_the_cards_code_runs(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "hf", tmp_path / "out", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("THIS-FOLDER", str(tmp_path / "out"))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["features"].shape == (1, 32)  # type: ignore[attr-defined]


def test_a_licence_that_is_none(encoder_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no licence identifier"):
        exported(encoder_run, "hf", tmp_path / "out", licence="My own: terms")
    assert not (tmp_path / "out").exists()
