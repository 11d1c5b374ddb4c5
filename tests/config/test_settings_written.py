"""Settings written down as TOML and read back the same, whatever they hold."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from gathered import PRESETS, loaded, resolved
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdmae_cli.config.compose import from_tables
from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedSettings


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
