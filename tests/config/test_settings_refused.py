"""Settings that are refused: in one line, which names key, value, source and what is allowed, or the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from gathered import loaded, refusal, resolved

from dsdmae_cli.config.describe import to_toml
from dsdmae_cli.config.sources import parse_word
from dsdmae_cli.errors import PluginError

_SIDES = "a pair of such"
WHOLE = "a whole number from 1 up"
STD = "a number from 0 up, a pair of such or 'auto'"
RATIO = "a number above 0 to 1 or a pair of such"
CROP = "a pair of numbers above 0 to 1, 'auto' or 'none'"


def named_refusal(assignment: str) -> str:
    """The message, which names the key and where its value came from."""
    message = refusal(assignment)
    assert assignment.partition("=")[0] in message
    assert f"(from --set {assignment})" in message
    return message


@pytest.mark.parametrize(
    ("assignment", "got", "allowed"),
    [
        ("train.epochs=", "''", WHOLE),
        ("train.epochs=0", "0", WHOLE),
        ("train.epochs=5.5", "5.5", WHOLE),
        ("train.epochs=abc", "'abc'", WHOLE),
        ("train.epochs=none", "'none'", WHOLE),
        ("train.epochs=inf", "inf", WHOLE),
        ("train.epochs=true", "true", WHOLE),
        ("train.epochs=5,6", "[5, 6]", WHOLE),
        ("train.epochs=5\nx=3", r"'5\nx=3'", WHOLE),
        ("train.seed=-1", "-1", "a whole number from 0 up"),
        ("train.keep_checkpoints=1", "1", "a whole number from 2 up"),
        ("train.precision=fp8", "'fp8'", "'auto', 'bf16', 'fp16' or 'fp32'"),
        ("train.compile=maybe", "'maybe'", "true, false or 'auto'"),
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
        ("optim.betas=0.9", "0.9", "a pair of numbers from 0 below 1"),
        ("optim.betas=0.9,1.0", "1.0", "a pair of numbers from 0 below 1"),
        ("optim.betas={}", "{}", "a pair of numbers from 0 below 1"),
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
        ("method.lambda=true", "true", "a number from 0 to 1"),
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
    ("assignment", "why"),
    [
        ("data.dataset=folder:\udcff", "UTF-8"),
        ("data.data_dir=a\udce9", "UTF-8"),
        ("train.start=caf\udce9/run", "UTF-8"),
        ("method.noise_std=1e308", "float32"),
        ("method.noise_std=0.1,1e39", "float32"),
        ("optim.lr=1e300", "float32"),
    ],
)
def test_what_settings_toml_or_the_network_cannot_hold_is_refused(assignment: str, why: str) -> None:
    message = refusal(assignment)
    assert message.startswith(f"{assignment.replace('=', ' = ')} (from --set {assignment}) is not allowed")
    assert why in message


def test_values_of_files_may_be_beyond_float32(tmp_path: Path) -> None:
    assert loaded("data.range=0,1e40").settings.data.range == (0, 1e40)


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
    assert advice in named_refusal(assignment)


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
    assert hint in named_refusal(assignment)
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
        (b"[train]\nepochs = 2020-01-01\n", "train.epochs = 2020-01-01 (from"),
        (b"preset = [10:00:00, true]\n", "got [10:00:00, true]"),
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
        "times",
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


@pytest.mark.parametrize("text", ["9223372036854775808", "+99_999_999_999_999_999_999", "9" * 400])
def test_whole_numbers_that_toml_does_not_know_are_refused(text: str) -> None:
    """A run with such a seed trained, and its settings.toml could be read by nothing any more, --resume included."""
    message = refusal(f"train.seed={text}")
    assert message is not None
    assert message.startswith(f"train.seed = {text} (from --set train.seed={text}) is not allowed: it has more than 64")
    assert loaded("train.seed=9223372036854775807").settings.train.seed == 2**63 - 1
    assert loaded("optim.lr=99999999999999999999").settings.optim.lr == 1e20
    assert loaded(f"data.dataset=folder:{text}").settings.data.dataset == f"folder:{text}"
