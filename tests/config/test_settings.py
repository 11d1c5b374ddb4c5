"""Settings: gathered from every place in one order, refused in one line, written down and read back the same.

The command line's side of it (flags, help, `dsdmae config`) is in test_cli.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dsdmae_cli.config.compose import from_tables, load
from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.config.presets import preset_names
from dsdmae_cli.config.resolve import resolve, resolve_data
from dsdmae_cli.config.schema import PRETRAIN, SECTIONS, Loaded
from dsdmae_cli.config.sources import parse_word
from dsdmae_cli.errors import DsdmaeError, PluginError, SettingsError
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME, Settings
from dsdmae_cli.settings.resolved import ResolvedSettings

# Every preset alone, and one of each kind together.
PRESETS = [*preset_names(), "dsdmae,cifar10,vit-tiny", "cae,imagenet,vit-base"]

_SIDES = "a pair [a whole number from 4 to 4096, a whole number from 4 to 4096]"


def loaded(*assignments: str, **places: Any) -> Loaded:
    """Settings from --set alone, unless other places are named; never from the tester's environment."""
    return load(assignments=list(assignments), **{"environ": {}, **places})


def resolved(*assignments: str, **places: Any) -> Settings:
    return resolve(loaded(*assignments, **places).settings)


def refusal(*assignments: str, **places: Any) -> str:
    """The message that settings are refused with, which must be one line."""
    with pytest.raises(DsdmaeError) as caught:
        resolved(*assignments, **places)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where a test's configuration file goes."""
    return tmp_path / "mine.toml"


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


# Refusals

WHOLE = "a whole number from 1 up"
STD = "a number from 0 up or a pair [a number from 0 up, a number from 0 up] or 'auto'"
RATIO = "a number above 0 to 1 or a pair [a number above 0 to 1, a number above 0 to 1]"
CROP = "a pair [a number above 0 to 1, a number above 0 to 1] or 'auto' or 'none'"


@pytest.mark.parametrize(
    ("assignment", "got", "allowed"),
    [
        ("train.epochs=", "''", WHOLE),
        ("train.epochs=0", "0", WHOLE),
        ("train.epochs=5.5", "5.5", WHOLE),
        ("train.epochs=abc", "'abc'", WHOLE),
        ("train.epochs=none", "'none'", WHOLE),
        ("train.epochs=inf", "inf", WHOLE),
        ("train.epochs=true", "True", WHOLE),
        ("train.epochs=5,6", "[5, 6]", WHOLE),
        ("train.epochs=5\nx=3", r"'5\nx=3'", WHOLE),
        ("train.seed=-1", "-1", "a whole number from 0 up"),
        ("train.keep_checkpoints=1", "1", "a whole number from 2 up"),
        ("train.precision=fp8", "'fp8'", "'auto' or 'bf16' or 'fp16' or 'fp32'"),
        ("train.compile=maybe", "'maybe'", "true or false or 'auto'"),
        ("data.image_size=3", "3", f"a whole number from 4 to 4096 or {_SIDES} or 'auto'"),
        ("data.image_size=240,180,3", "[240, 180, 3]", f"a whole number from 4 to 4096 or {_SIDES} or 'auto'"),
        ("data.image_size=64,2", "[64, 2]", f"a whole number from 4 to 4096 or {_SIDES} or 'auto'"),
        ("data.image_size=48,", "[48]", f"a whole number from 4 to 4096 or {_SIDES} or 'auto'"),
        ("data.image_size=5000", "5000", f"a whole number from 4 to 4096 or {_SIDES} or 'auto'"),
        ("data.holdout=1", "1", "a number above 0 below 1"),
        ("data.holdout=nan", "nan", "a number above 0 below 1"),
        ("data.crop_scale=0.2", "0.2", CROP),
        ("data.crop_scale=0,1", "0", CROP),
        ("data.crop_scale=0.2,0.5,1", "[0.2, 0.5, 1]", CROP),
        ("data.crop_scale=,", "','", CROP),
        ("data.strict=perhaps", "'perhaps'", "true or false"),
        ("optim.lr=0", "0", "a number above 0 or 'auto'"),
        ("optim.lr=nan", "nan", "a number above 0 or 'auto'"),
        ("optim.lr=-inf", "-inf", "a number above 0 or 'auto'"),
        ("optim.weight_decay=-0.1", "-0.1", "a number from 0 up"),
        ("optim.betas=0.9", "0.9", "a pair [a number from 0 below 1, a number from 0 below 1]"),
        ("optim.betas=0.9,1.0", "1.0", "a pair [a number from 0 below 1, a number from 0 below 1]"),
        ("optim.betas={}", "{}", "a pair [a number from 0 below 1, a number from 0 below 1]"),
        ("optim.clip_grad=None", "'None'", "a number above 0 or 'none'"),
        ("backbone.patch_size=none", "'none'", f"{WHOLE} or 'auto'"),
        ("backbone.pos_embed=rope", "'rope'", "'sincos' or 'learn'"),
        ("method.mask_ratio=0", "0", RATIO),
        ("method.mask_ratio=1.5", "1.5", RATIO),
        ("method.mask_ratio=0.5,1.5", "[0.5, 1.5]", RATIO),
        ("method.mask_ratio=50%", "'50%'", RATIO),
        ("method.mask_ratio=", "''", RATIO),
        ("method.noise_std=-1", "-1", STD),
        ("method.noise_std=1e309", "inf", STD),
        ("method.lambda=2", "2", "a number from 0 to 1"),
        ("method.lambda=true", "True", "a number from 0 to 1"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_key_source_and_what_is_allowed(
    assignment: str, got: str, allowed: str, config: Path
) -> None:
    key, _, text = assignment.partition("=")
    message = refusal(assignment)
    assert message.startswith(f"{key} = {got} (from --set ")
    assert message.endswith(f"it takes {allowed}")

    section, _, name = key.partition(".")
    variable = f"DSDMAE_{section}_{name}".upper()
    message = refusal(environ={variable: text})
    assert message.startswith(f"{key} = {got} (from environment variable {variable})")

    config.write_text(to_toml({section: {name: parse_word(text)}}))
    assert refusal(config=config).startswith(f"{key} = {got} (from {config})")


@pytest.mark.parametrize(
    ("assignment", "advice"),
    [
        ("method.mask_ratio=0.95,0.75", "write [0.75, 0.95]"),
        ("method.noise_std=1..0", "write [0.0, 1.0]"),
        ("data.crop_scale=1.0,0.2", "write [0.2, 1.0]"),
        ("data.crop_ratio=2,1", "write [1.0, 2.0]"),
    ],
)
def test_a_range_runs_from_low_to_high(assignment: str, advice: str) -> None:
    message = refusal(assignment)
    assert assignment.partition("=")[0] in message
    assert f"(from --set {assignment})" in message
    assert advice in message


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("data.dataset=Digits", "did you mean digits?"),
        ("data.dataset=", "there is cifar10"),
        ("data.dataset=digits:8", "takes no argument"),
        ("data.dataset=folder:", "folder:PATH"),
        ("data.dataset=[]", "there is cifar10"),
        ("backbone.name=vit-tyni", "did you mean vit-tiny?"),
        ("backbone.name=timm:", "timm:NAME"),
        ("method.name=dsdmea", "did you mean dsdmae?"),
        ("method.name=ÿ☃", "there is beit, cae, dsdmae, lejepa, mae"),
    ],
)
def test_a_plugin_that_is_not_there_is_named_with_its_key_and_source(assignment: str, hint: str) -> None:
    message = refusal(assignment)
    assert hint in message
    assert assignment.partition("=")[0] in message
    assert f"(from --set {assignment})" in message
    with pytest.raises(PluginError):
        loaded(assignment)


@pytest.mark.parametrize(
    ("assignment", "suggestion"),
    [
        ("train.epoch=5", "did you mean epochs?"),
        ("train.Epochs=5", "did you mean epochs?"),
        ("optim.weightdecay=5", "did you mean weight_decay?"),
        ("method.lamda=0.5", "did you mean lambda?"),
        ("method.lambda_=0.5", "did you mean lambda?"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(assignment: str, suggestion: str, config: Path) -> None:
    key, _, value = assignment.partition("=")
    section, _, name = key.partition(".")
    message = refusal(assignment)
    assert message.startswith(f"unknown setting {key} (from --set {assignment})")
    assert suggestion in message
    config.write_text(f"[{section}]\n{name} = {value}\n")
    message = refusal(config=config)
    assert message.startswith(f"unknown setting {key} (from {config})")
    assert suggestion in message


def test_an_unknown_key_lists_what_the_plugin_knows() -> None:
    message = refusal("method.name=mae", "method.noise_std=2")
    assert message.endswith(
        "[method] has name, uniformity_weight, sigreg_weight, mask_ratio, decoder_depth, decoder_dim, decoder_heads,"
        " norm_pix_loss here"
    )


def test_a_key_written_twice_in_two_spellings_is_not_blamed_on_its_range() -> None:
    message = refusal("method.lambda=0.3", "method.lambda_=0.4")
    assert "is not allowed; it takes" not in message
    assert "lambda_" in message


def test_an_unknown_section_suggests_the_nearest(config: Path) -> None:
    config.write_text("[trian]\nepochs = 5\n")
    message = refusal(config=config)
    assert f"unknown section [trian] in {config} (did you mean train?)" in message
    assert "data, backbone, method, optim, train" in message
    message = refusal("trian.epochs=5")
    assert "trian.epochs=5" in message
    assert "did you mean train?" in message


@pytest.mark.parametrize("variable", ["DSDMAE_TRIAN_EPOCHS", "DSDMAE_TRAIN_EPOCH", "DSDMAE_PRESETS"])
def test_an_unknown_variable_suggests_the_nearest(variable: str) -> None:
    message = refusal(environ={variable: "5"})
    assert variable in message
    assert "did you mean" in message


@pytest.mark.parametrize("variable", ["DSDMAE_", "DSDMAE_TRAIN", "DSDMAE_TRAIN_", "DSDMAE_FOO"])
def test_an_unknown_variable_is_refused_with_an_example(variable: str) -> None:
    message = refusal(environ={variable: "5"})
    assert message.startswith(f"unknown environment variable {variable}")
    assert "DSDMAE_TRAIN_EPOCHS=5" in message


def test_an_unknown_preset_suggests_the_nearest_and_is_named_with_its_source(config: Path) -> None:
    config.write_text('preset = "quik"\n')
    for place, source in [
        ({"preset": "quik"}, "--preset"),
        ({"environ": {"DSDMAE_PRESET": "quik"}}, "DSDMAE_PRESET"),
        ({"config": config}, str(config)),
    ]:
        message = refusal(**place)
        assert "unknown preset 'quik'" in message
        assert "(did you mean quick?)" in message
        assert "vit-small" in message
        assert source in message


@pytest.mark.parametrize("name", ["", "../quick", "quick.toml", "quick\n"])
def test_a_preset_is_one_of_the_packaged_ones(name: str) -> None:
    assert "unknown preset" in refusal(preset=name)


@pytest.mark.parametrize("text", ["", "=", ".=", "train", "train=5", "train.=5", ".epochs=5", "=5"])
def test_an_assignment_has_a_section_a_key_and_a_value(text: str) -> None:
    message = refusal(text)
    assert "--set takes SECTION.KEY=VALUE" in message
    assert repr(text) in message


def test_an_assignment_may_hold_spaces_and_equals_signs(tmp_path: Path) -> None:
    assert loaded(" optim.clip_grad = 3 ").settings.optim.clip_grad == 3
    assert loaded(f"data.dataset=folder:{tmp_path}/a=b").settings.data.dataset == f"folder:{tmp_path}/a=b"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[train]\nepochs = 1\nepochs = 2\n", "is not valid TOML: Cannot overwrite a value (at line 3"),
        (b"epochs 5", "is not valid TOML"),
        (bytes(range(256)), "is not valid TOML"),
        ("[train]\nepochs = 5\n".encode("utf-16"), "is not valid TOML"),
        (b"[train]\nepochs = " + b"9" * 5000, "is not valid TOML"),
        (b"[train]\nepochs = " + b"[" * 5000, "is not valid TOML"),
        (b"train = 1\n", "train in"),
        (b"[[train]]\nepochs = 1\n", "must be a table"),
        (b"preset = 3\n", "must be a preset's name or a list of them, got 3"),
        (b"preset = [[]]\n", "must be a preset's name or a list of them, got [[]]"),
        (b"[train]\nepochs = 2020-01-01\n", "it takes a whole number"),
    ],
    ids=[
        "duplicate",
        "no toml",
        "binary",
        "utf-16",
        "huge number",
        "deep",
        "scalar",
        "array",
        "preset",
        "presets",
        "date",
    ],
)
def test_a_file_that_is_no_settings_file_is_refused_by_name(content: bytes, says: str, config: Path) -> None:
    config.write_bytes(content)
    message = refusal(config=config)
    assert str(config) in message
    assert says in message


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf[train]\r\nepochs = 3\r\n", b"# nothing\n", b"[train]\n"])
def test_a_file_may_say_little_and_come_from_windows(content: bytes, config: Path) -> None:
    config.write_bytes(content)
    assert loaded(config=config).settings.train.epochs == (3 if b"3" in content else loaded().settings.train.epochs)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(config=tmp_path) == f"cannot read {tmp_path}: Is a directory"
    missing = tmp_path / "missing.toml"
    assert refusal(config=missing) == f"cannot read {missing}: No such file or directory"
    assert refusal(environ={"DSDMAE_CONFIG": str(missing)}) == f"cannot read {missing}: No such file or directory"


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "x" * 5000])
def test_very_long_values_are_refused_like_any_other(value: str) -> None:
    assert "train.epochs" in refusal(f"train.epochs={value}")


def test_an_empty_path_is_no_folder() -> None:
    assert "data.data_dir" in refusal("data.data_dir=")


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


# Written down and read back


def assert_round_trip(before: Settings) -> None:
    text = to_toml(tables(before))
    values = tomllib.loads(text)
    assert values == tables(before)
    after = from_tables(values, "settings.toml").settings
    after = resolve(after) if isinstance(before, ResolvedSettings) else after
    assert after == before
    assert [type(section) for _, section in after] == [type(section) for _, section in before]
    assert tomllib.loads(to_toml(values, dict.fromkeys(_keys(values), "here"))) == values


def _keys(values: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{section}.{key}" for section, table in values.items() for key in table]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("change", ["optim.clip_grad=none", "method.name=mae", "backbone.name=timm:convnext_atto"])
def test_settings_survive_being_written_down(preset: str, change: str) -> None:
    assert_round_trip(loaded(change, preset=preset).settings)
    if not ("mae" in change or "timm" in change):
        assert_round_trip(resolved(change, preset=preset))


# Every character that a path or name may hold; TOML is UTF-8, so that lone surrogates cannot be written.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
whole = st.integers(1, 10**6)
number = st.floats(0, 1e6, exclude_min=True)
share = st.floats(0, 1, exclude_min=True)
scalar = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), words)
values = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
random_tables = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"dataset": words.map("folder:x{}".format), "data_dir": st.just("none") | words.map("/{}".format)},
            optional={
                "image_size": st.integers(4, 4096) | st.just("auto"),
                "crop_scale": st.sampled_from(["auto", "none"]) | st.lists(share, min_size=2, max_size=2).map(sorted),
                "flip": st.booleans() | st.just("auto"),
            },
        ),
        "backbone": st.one_of(
            st.fixed_dictionaries({"name": st.just("vit-small")}, optional={"patch_size": whole, "embed_dim": whole}),
            st.fixed_dictionaries(
                {"name": words.map("timm:x{}".format), "options": st.dictionaries(words, values, max_size=4)}
            ),
        ),
        "method": st.one_of(
            st.fixed_dictionaries(
                {"name": st.just("dsdmae")},
                optional={
                    "mask_ratio": share | st.lists(share, min_size=2, max_size=2).map(sorted),
                    "lambda": st.floats(0, 1),
                    "noise_std": number,
                },
            ),
            st.fixed_dictionaries({"name": st.just("mae")}, optional={"decoder_dim": whole | st.just("auto")}),
        ),
        "optim": st.fixed_dictionaries({}, optional={"lr": number, "clip_grad": number | st.just("none")}),
        "train": st.fixed_dictionaries({}, optional={"epochs": whole, "device": words, "compile": st.booleans()}),
    }
)


@settings(max_examples=60, deadline=None)
@given(random_tables)
def test_any_settings_survive_being_written_down(given_values: dict[str, dict[str, Any]]) -> None:
    assert_round_trip(from_tables(given_values, "a test").settings)


@pytest.mark.parametrize(
    "name", ["two  spaces", "tab\there", "line\nbreak", 'quo"te', "back\\slash", "# no comment", "ünï☃", " edges "]
)
def test_a_path_survives_being_written_down_letter_by_letter(name: str) -> None:
    found = from_tables({"data": {"dataset": f"folder:/{name}", "data_dir": f"/{name}"}}, "a test").settings
    assert_round_trip(found)


def test_written_settings_say_which_source_each_line_has() -> None:
    found = loaded("optim.betas=0.8,0.9")
    lines = to_toml(tables(found.settings), found.sources).splitlines()
    [line] = [line for line in lines if line.startswith("betas")]
    assert line.endswith("# --set optim.betas=0.8,0.9")


def test_written_settings_are_refused_like_a_persons() -> None:
    with pytest.raises(SettingsError, match=r"train\.epochs = 0 \(from old/settings\.toml\)"):
        from_tables({"train": {"epochs": 0}}, "old/settings.toml")


# What "auto" becomes


@pytest.mark.parametrize(("dataset", "size"), [("digits", 16), ("cifar10", 32), ("cifar100", 32), ("stl10", 96),
                                               ("imagenet", 224)])  # fmt: skip
def test_images_keep_their_datasets_size(dataset: str, size: int) -> None:
    assert resolved(f"data.dataset={dataset}").data.image_size == size
    assert resolved(f"data.dataset={dataset}", "data.image_size=48").data.image_size == 48


@pytest.mark.parametrize(
    ("size", "patch"), [(8, 1), (16, 1), (32, 2), (64, 4), (96, 6), (128, 8), (144, 16), (224, 16), (512, 16)]
)
def test_patches_make_the_papers_grid_of_small_images(size: int, patch: int) -> None:
    found = resolved("data.dataset=cifar10", f"data.image_size={size}")
    assert found.backbone.patch_size == patch


@pytest.mark.parametrize("size", [28, 40, 72, 100, 120, 150, 192, 200, 250, 300])
def test_patches_of_auto_fit_the_image(size: int) -> None:
    patch = resolved("data.dataset=cifar10", f"data.image_size={size}").backbone.patch_size
    assert size % int(patch) == 0


def test_a_patch_size_that_is_given_stays() -> None:
    assert resolved("data.dataset=cifar10", "backbone.patch_size=8").backbone.patch_size == 8


def test_timm_models_keep_their_own_patch_size() -> None:
    found = resolved("data.dataset=cifar10", "backbone.name=timm:convnext_atto")
    assert found.backbone.patch_size == "auto"


def test_the_learning_rate_grows_with_the_batch() -> None:
    at = {batch: resolved(f"train.batch_size={batch}", "data.dataset=cifar10").optim.lr for batch in (256, 1024, 2048)}
    assert at == pytest.approx({256: 1.5e-4, 1024: 6e-4, 2048: 1.2e-3})
    assert resolved("optim.base_lr=1e-3", "train.batch_size=64", "data.dataset=cifar10").optim.lr == 2.5e-4
    assert resolved("optim.lr=0.5", "train.batch_size=2048", "data.dataset=cifar10").optim.lr == 0.5


@pytest.mark.parametrize(("epochs", "warmup"), [(500, 20), (100, 4), (1, 0.04)])
def test_warm_up_is_the_papers_share_of_the_run(epochs: int, warmup: float) -> None:
    assert resolved(f"train.epochs={epochs}").optim.warmup_epochs == pytest.approx(warmup)


def augment(*assignments: str) -> tuple[object, ...]:
    data = resolved(*assignments).data
    return data.crop_scale, data.flip, data.shift


def test_augmentation_is_the_datasets() -> None:
    assert augment() == (None, False, 1)
    assert augment("data.dataset=cifar10") == ((0.2, 1.0), True, 0)
    plain = ("data.crop_scale=none", "data.flip=false", "data.shift=2")
    assert augment("data.dataset=cifar10", *plain) == (None, False, 2)
    assert augment("data.crop_scale=0.5,1", "data.flip=true", "data.shift=0") == ((0.5, 1.0), True, 0)


def test_a_method_has_crops_of_its_own_where_the_dataset_has_any() -> None:
    moco = "method.name=mocov3"
    assert augment("data.dataset=cifar10", moco) == ((0.08, 1.0), True, 0)
    assert augment("data.dataset=cifar10", "method.name=msa") == ((0.2, 1.0), True, 0)
    assert augment("data.dataset=cifar10", moco, "data.crop_scale=[0.5, 1]") == ((0.5, 1.0), True, 0)
    assert augment("data.dataset=cifar10", moco, "data.crop_scale=none") == (None, True, 0)
    # Digits are never cropped unless somebody says so.
    assert augment(moco) == (None, False, 1)
    assert augment(moco, "data.crop_scale=[0.4, 1]") == ((0.4, 1.0), False, 1)


def test_without_a_method_augmentation_is_the_datasets() -> None:
    """A probe or fine-tuning learns by no method, whatever pre-trained the network."""
    asked = loaded("data.dataset=cifar10", "method.name=mocov3").settings
    assert resolve_data(asked.data).crop_scale == (0.2, 1.0)
    assert resolve_data(asked.data, asked.method).crop_scale == (0.08, 1.0)


@pytest.mark.parametrize(("epochs", "every"), [(500, 50), (100, 10), (5, 1), (1, 1)])
def test_scores_and_checkpoints_come_ten_times_a_run(epochs: int, every: int) -> None:
    train = resolved(f"train.epochs={epochs}").train
    assert (train.knn_every, train.checkpoint_every) == (every, every)
    given_train = resolved(f"train.epochs={epochs}", "train.knn_every=none", "train.checkpoint_every=3").train
    assert (given_train.knn_every, given_train.checkpoint_every) == (None, 3)


def test_the_hardwares_words_are_left_to_the_run() -> None:
    train = resolved().train
    assert (train.device, train.precision, train.compile, train.micro_batch) == ("auto",) * 4


@pytest.mark.parametrize("preset", PRESETS)
def test_resolving_twice_changes_nothing(preset: str) -> None:
    once = resolved(preset=preset)
    assert resolve(once) == once


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["train.epochs=30", "optim.warmup_epochs=30.5"], "optim.warmup_epochs = 30.5 must be below train.epochs = 30"),
        (["train.epochs=1", "optim.warmup_epochs=1"], "optim.warmup_epochs = 1 must be below train.epochs = 1"),
        (["optim.lr=0.25", "optim.min_lr=5"], "optim.min_lr = 5 must not exceed the peak rate 0.25"),
        (["method.name=mae", "backbone.name=timm:resnet18"], "method 'mae' drops patches, and backbone 'timm"),
        (
            ["method.noise_std=1", "method.noise_law=lognormal"],
            "noise_law = 'lognormal' draws from a range and noise_std is one number",
        ),
        (
            ["method.noise_std=1", "method.noise_per=patch"],
            "noise_per = 'patch' draws from a range and noise_std is one number",
        ),
        (["method.noise_std=0,1", "method.noise_law=loguniform"], "noise_law = 'loguniform' has no σ of 0"),
        (["method.noise=mix", "method.noise_std=0.1,1", "method.noise_law=lognormal"], "has no highest σ"),
        (["method.noise=mix", "method.noise_std=2"], "noise_std = 2 is too large for noise = 'mix'"),
        (["method.noise=mix", "method.noise_std=0.5,2"], "noise_std = 2 is too large for noise = 'mix'"),
    ],
)
def test_rules_between_settings(assignments: list[str], says: str) -> None:
    assert says in refusal(*assignments)


def test_rules_between_settings_have_an_allowed_side() -> None:
    resolved("train.epochs=3", "optim.warmup_epochs=2.9")
    resolved("optim.lr=0.25", "optim.min_lr=0.25")
    resolved("method.name=mae")
    resolved("backbone.name=timm:resnet18")
    resolved("method.noise=mix", "method.noise_std=1")
