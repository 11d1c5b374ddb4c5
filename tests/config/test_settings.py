"""Settings: gathered from every place in one order, whatever plugins are named, from words to values that stay.

What is refused is in test_settings_refused.py, what a file keeps in test_settings_written.py, and what "auto" becomes
in test_settings_resolved.py. The command line's side (flags, help, `dsdmae config`) is in tests/cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gathered import loaded, refusal
from pydantic import BaseModel, ValidationError

from dsdmae_cli.config.compose import load
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import PRETRAIN, SECTIONS
from dsdmae_cli.config.sources import parse_word
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME

# Precedence and provenance


def test_later_places_win_and_are_named(config: Path) -> None:
    config.write_text("[train]\nepochs = 31\n")
    places: list[tuple[str, int, dict[str, Any]]] = [
        ("default", 500, {"flags": {"data.dataset": "digits"}}),
        ("preset mae", 500, {"preset": "mae"}),
        (str(config), 31, {"config": config}),
        ("environment variable DSDMAE_TRAIN_EPOCHS", 32, {"environ": {"DSDMAE_TRAIN_EPOCHS": "32"}}),
        ("--epochs", 33, {"flags": {"data.dataset": "digits", "train.epochs": "33"}}),
        ("--set train.epochs=34", 34, {"assignments": ["train.epochs=34"]}),
    ]
    given_places: dict[str, Any] = {"environ": {}}
    for source, epochs, place in places:
        given_places |= place
        found = load(**given_places)
        assert (found.settings.train.epochs, found.sources["train.epochs"]) == (epochs, source)


def test_every_value_has_a_source() -> None:
    found = loaded("data.flip=true")
    assert set(found.sources) == {f"{s}.{k}" for s, table in tables(found.settings).items() for k in table}
    assert found.sources["data.flip"] == "--set data.flip=true"
    assert found.sources["data.dataset"] == "preset quick"
    assert found.sources["data.shift"] == "default"


@pytest.mark.parametrize("flag", PRETRAIN.flags)
def test_every_flag_stands_for_a_setting(flag: str) -> None:
    section, _, key = PRETRAIN.flags[flag].partition(".")
    assert key in tables(loaded("data.dataset=folder:pictures").settings)[section]


def test_the_last_assignment_of_a_key_wins() -> None:
    found = loaded("method.lambda=0.3", "method.lambda=0.4")
    assert found.settings.method.lambda_ == 0.4  # type: ignore[attr-defined]
    assert found.sources["method.lambda"] == "--set method.lambda=0.4"


def test_flags_that_were_not_given_change_nothing() -> None:
    assert loaded(flags=dict.fromkeys(PRETRAIN.flags.values())) == loaded()


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSDMAE_OPTIM_WEIGHT_DECAY", "0.25")
    assert load().settings.optim.weight_decay == 0.25


def test_keys_with_underscores_can_be_named_in_the_environment() -> None:
    found = load(environ={"DSDMAE_METHOD_MASK_RATIO": "0.75..0.95", "DSDMAE_DATA_CROP_SCALE": "none",
                          "DSDMAE_METHOD_LAMBDA": "0.2", "HOME": "/", "DSDMAE_TEST_DATA": "/data"})  # fmt: skip
    assert found.settings.method.mask_ratio == (0.75, 0.95)  # type: ignore[attr-defined]
    assert found.settings.method.lambda_ == 0.2  # type: ignore[attr-defined]
    assert found.settings.data.crop_scale is None


# Which preset, which file


def test_quick_is_the_preset_when_nothing_is_named() -> None:
    found = loaded()
    assert found == loaded(preset="quick")
    assert (found.settings.data.dataset, found.sources["train.epochs"]) == ("digits", "preset quick")


@pytest.mark.parametrize(
    "place",
    [
        {"flags": {"data.dataset": "cifar10"}},
        {"assignments": ["data.dataset=cifar10"]},
        {"environ": {"DSDMAE_DATA_DATASET": "cifar10"}},
    ],
)
def test_quick_is_no_preset_where_a_dataset_is_named(place: dict[str, Any]) -> None:
    found = load(**{"environ": {}, **place})
    assert "preset quick" not in found.sources.values()
    assert found.settings.train.epochs == 500


def test_quick_is_no_preset_where_a_file_names_a_dataset(config: Path) -> None:
    config.write_text('[data]\ndataset = "cifar10"\n')
    assert "preset quick" not in loaded(config=config).sources.values()
    config.write_text("[data]\nflip = true\n")
    assert loaded(config=config).settings.data.dataset == "digits"


def test_a_preset_stays_when_a_dataset_is_named_beside_it() -> None:
    found = loaded("data.dataset=cifar10", preset="quick")
    assert (found.settings.data.dataset, found.sources["train.epochs"]) == ("cifar10", "preset quick")


def test_the_preset_of_a_flag_stands_above_environment_and_file(config: Path) -> None:
    config.write_text('preset = "stl10"\n[train]\nepochs = 7\n')
    environ = {"DSDMAE_PRESET": "cifar100"}
    assert loaded(config=config).sources["data.dataset"] == "preset stl10"
    assert loaded(config=config).settings.train.epochs == 7
    assert load(config=config, environ=environ).sources["data.dataset"] == "preset cifar100"
    assert load(config=config, environ=environ, preset="quick").sources["data.dataset"] == "preset quick"


def test_the_file_of_a_flag_stands_above_the_environments(config: Path, tmp_path: Path) -> None:
    config.write_text("[train]\nepochs = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("[train]\nepochs = 8\n")
    environ = {"DSDMAE_CONFIG": str(config)}
    assert load(environ=environ).sources["train.epochs"] == str(config)
    assert load(environ=environ, config=other).settings.train.epochs == 8


@pytest.mark.parametrize("variable", ["DSDMAE_PRESET", "DSDMAE_CONFIG"])
def test_an_empty_variable_names_no_preset_and_no_file(variable: str) -> None:
    assert load(environ={variable: ""}) == loaded()


# Other plugins


def test_another_method_drops_the_keys_of_the_first(config: Path) -> None:
    config.write_text("[method]\nmask_ratio = 0.8\ndecoder_depth = 3\nnoise_std = 0.5\n")
    found = loaded("method.name=mae", config=config)
    assert type(found.settings.method).__name__ == "MAESettings"
    assert tables(found.settings)["method"] == {
        "name": "mae", "mask_ratio": 0.75, "norm_pix_loss": False, "decoder_depth": 4, "decoder_dim": "auto",
        "decoder_heads": "auto", "uniformity_weight": 0.0, "sigreg_weight": 0.0,
    }  # fmt: skip
    assert found.sources["method.mask_ratio"] == "default"


def test_what_is_said_of_a_method_where_it_is_named_stays(config: Path) -> None:
    config.write_text('[method]\nname = "mae"\nmask_ratio = 0.6\n')
    assert loaded(config=config).settings.method.mask_ratio == 0.6  # type: ignore[attr-defined]
    again = loaded("method.name=mae", "method.decoder_dim=64", config=config)
    assert again.settings.method.mask_ratio == 0.6  # type: ignore[attr-defined]


def test_what_one_command_line_says_of_a_method_stays() -> None:
    found = loaded("method.name=mae", flags={"method.mask_ratio": "0.6"})
    assert found.settings.method.mask_ratio == 0.6  # type: ignore[attr-defined]
    assert found.sources["method.mask_ratio"] == "--mask-ratio"


def test_another_backbone_keeps_the_patch_size_alone() -> None:
    found = loaded(preset="quick", flags={"backbone.name": "vit-small"})
    backbone = tables(found.settings)["backbone"]
    assert {k: backbone[k] for k in ("patch_size", "embed_dim", "depth", "num_heads")} == {
        "patch_size": 4, "embed_dim": 384, "depth": 12, "num_heads": 6,
    }  # fmt: skip
    assert found.sources["backbone.patch_size"] == "preset quick"
    assert found.sources["backbone.embed_dim"] == "default"


def test_the_same_backbone_by_name_drops_nothing() -> None:
    assert tables(loaded(flags={"backbone.name": "vit-tiny"}).settings) == tables(loaded().settings)


def test_what_is_said_before_a_plugin_is_named_stays_where_it_has_such_a_setting() -> None:
    said = {"DSDMAE_DATA_DATASET": "cifar10", "DSDMAE_BACKBONE_LAYER_SCALE": "0.1"}
    assert tables(load(environ=said, flags={"backbone.name": "vit-small"}).settings)["backbone"]["layer_scale"] == 0.1
    assert "layer_scale" not in tables(load(environ=said, flags={"backbone.name": "unet"}).settings)["backbone"]
    wrong = {"DSDMAE_DATA_DATASET": "cifar10", "DSDMAE_BACKBONE_LAYER_SCAL": "0.1"}
    assert "unknown setting backbone.layer_scal " in refusal(environ=wrong, flags={"backbone.name": "unet"})


def test_another_dataset_keeps_what_all_datasets_share() -> None:
    found = loaded("data.dataset=cifar10", preset="stl10")
    assert found.settings.data.image_size == 96
    split = loaded("data.dataset=stl10", "data.stl10_split=train")
    assert tables(split.settings)["data"]["stl10_split"] == "train"
    assert "unknown setting data.stl10_split" in refusal("data.dataset=cifar10", "data.stl10_split=train")


# Words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e3", 1000.0),
        ("-1", -1),
        ("true", True),
        ("none", "none"),
        ("auto", "auto"),
        ("", ""),
        ('"quoted"', "quoted"),
        ("0.75,0.95", [0.75, 0.95]),
        ("0.75..0.95", [0.75, 0.95]),
        ("0.75 .. 0.95", [0.75, 0.95]),
        ("[0.75, 0.95]", [0.75, 0.95]),
        ("{drop_rate = 0.1}", {"drop_rate": 0.1}),
        ("folder:/photos/2020..2021", "folder:/photos/2020..2021"),
        ("folder:/a,b", "folder:/a,b"),
        ("../images", "../images"),
        ("5\nx = 3", "5\nx = 3"),
        ("héllo", "héllo"),
    ],
)  # fmt: skip
def test_words(text: str, value: object) -> None:
    assert parse_word(text) == value


@pytest.mark.parametrize("text", ["0.75,0.95", "0.75..0.95", "[0.75, 0.95]", "0.75, 0.95"])
def test_ranges_may_be_written_in_several_ways(text: str) -> None:
    assert loaded(f"method.mask_ratio={text}").settings.method.mask_ratio == (0.75, 0.95)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.crop_scale", None), ("data.data_dir", None), ("optim.clip_grad", None), ("train.knn_every", None),
     ("method.target_norm", "none")],
)  # fmt: skip
def test_none_is_a_word(key: str, value: object, config: Path) -> None:
    section, _, name = key.partition(".")
    config.write_text(f'[{section}]\n{name} = "none"\n')
    variable = f"DSDMAE_{section}_{name}".upper()
    for found in (loaded(f"{key}=none"), loaded(config=config), load(environ={variable: "none"})):
        assert getattr(getattr(found.settings, section), name) == value


@pytest.mark.parametrize("name", ["2024", "2024-01-01", "1,2", "true", "1e3"])
def test_a_folder_may_be_called_anything(name: str) -> None:
    found = loaded(flags={"data.data_dir": name})
    assert found.settings.data.data_dir == Path(name)
    assert load(environ={"DSDMAE_DATA_DATA_DIR": name}).settings.data.data_dir == Path(name)


# Frozen


def test_settings_are_frozen() -> None:
    found = loaded().settings
    for section in SECTIONS:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(found, section, getattr(found, section))
        model: BaseModel = getattr(found, section)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, next(iter(type(model).model_fields)), "other")


def test_what_may_change_on_resume_exists() -> None:
    known = {f"{s}.{k}" for s, table in tables(loaded().settings).items() for k in table}
    assert known >= MAY_CHANGE_ON_RESUME
