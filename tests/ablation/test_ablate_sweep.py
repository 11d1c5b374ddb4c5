"""`--sweep KEY VALUES`: what values mean, and what is refused before anything runs."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsdmae_cli.ablation.sweep import Base, describe, grid, parse_axes, parse_axis, validate
from dsdmae_cli.ablation.values import MOST_TRIALS
from dsdmae_cli.cli.ablate import fold
from dsdmae_cli.errors import DsdmaeError

BASE = Base()
SETTINGS = BASE.load().settings


def values(key: str, text: str) -> tuple[str, ...]:
    return parse_axis(key, text, SETTINGS).values


def refusal(key: str, text: str) -> str | None:
    """Why a sweep is refused, None if it is not."""
    try:
        axes = parse_axes([(key, text)], BASE)
        validate(axes, grid(axes)[:5], BASE)
    except DsdmaeError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("mask-ratio", "0.75..0.95", "0.75 0.8 0.85 0.9 0.95"),
        ("--mask-ratio", "0.75..0.95", "0.75 0.8 0.85 0.9 0.95"),
        ("mask_ratio", "0.5..0.9:0.2", "0.5 0.7 0.9"),
        ("method.mask_ratio", "0.5..0.9/3", "0.5 0.7 0.9"),
        ("lambda", "0..1", "0 0.2 0.4 0.6 0.8 1"),
        ("lr", "1e-4..1e-2/3log", "0.0001 0.001 0.01"),
        ("epochs", "1..4", "1 2 3 4"),
        ("batch-size", "16..64:16", "16 32 48 64"),
        ("mask-ratio", "0.2,0.4", "0.2 0.4"),
        ("mask-ratio", "0.2, 0.75..0.95/3", "0.2 0.75 0.85 0.95"),
        ("heads", "both,decoder,regressor", "both decoder regressor"),
        ("method", "dsdmae,mae", "dsdmae mae"),
        ("train.knn_images", "100000000..100000003", "100000000 100000001 100000002 100000003"),
        ("noise-std", "[0.5,1],2", "[0.5,1] 2"),
        ("optim.clip_grad", "none,3", "none 3"),
        ("compile", "true,false", "true false"),
    ],
)
def test_values(key: str, text: str, expected: str) -> None:
    axes = parse_axes([(key, text)], BASE)
    assert " ".join(axes[0].values) == expected
    validate(axes, grid(axes), BASE)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("masc-ratio", "0.5", "did you mean mask-ratio?"),
        ("decoder-depth", "1..3", "did you mean method.decoder_depth?"),
        ("method.decoder_dept", "1..3", "did you mean decoder_depth?"),
        ("seed", "1,2", "--seeds N"),
        ("mask-ratio", "", "has no values"),
        ("mask-ratio", "0.5,,0.6", "missing between commas"),
        ("mask-ratio", "0.95..0.75", "write 0.75..0.95"),
        ("mask-ratio", "0.9..0.9", "empty"),
        ("mask-ratio", "0.5..0.9:0.15", "end at 0.8, not at 0.9"),
        ("mask-ratio", "0.5..0.9:0", "a number above 0"),
        ("mask-ratio", "0.5..0.9:-0.1", "a number above 0"),
        ("mask-ratio", "0.1..0.9/1", "2 to"),
        ("mask-ratio", "0.1..0.9:0.1/3", "not both"),
        ("lambda", "0..1log", "above 0"),
        ("epochs", "1..3/5", "take fewer"),
        ("epochs", "0..1e40", "1e+15"),
        ("epochs", "1..1e60log", "1e+15"),
        ("epochs", "1.5..3", "whole numbers"),
        ("lambda", "0..1:0.0001", "larger step"),
        ("mask-ratio", "0.5,2", "(from --sweep mask-ratio) is not allowed; it takes a number above 0 to 1"),
        ("mask-ratio", "a..b", "is not allowed"),
        ("mask-ratio", "0.5,0.5", "twice"),
        ("mask-ratio", "0.5,0.50", "the same settings"),
        ("method", "dsdmae,sdxx", "is not installed"),
        ("heads", "both,non", "it takes both, decoder, regressor"),
        ("backbone.patch_size", "0..2", "(from --sweep backbone.patch_size)"),
    ],
)
def test_refused_in_one_line(key: str, text: str, said: str) -> None:
    message = refusal(key, text)
    assert message is not None
    assert said in message
    assert "\n" not in message


def test_what_two_places_set_is_refused() -> None:
    with pytest.raises(DsdmaeError, match=r"--sweep heads both set method\.lambda"):
        parse_axes([("lambda", "0.2,0.4"), ("heads", "both,decoder")], BASE)
    with pytest.raises(DsdmaeError, match="--sweep lambda and --lambda both set"):
        parse_axes([("lambda", "0.2,0.4")], Base(flags={"method.lambda": "0.3"}))
    with pytest.raises(DsdmaeError, match=r"--sweep lambda and --set method\.lambda=0\.3 both set"):
        parse_axes([("lambda", "0.2,0.4")], Base(assignments=("method.lambda=0.3",)))


def test_what_makes_a_trial_stands_above_what_all_share() -> None:
    base = Base(assignments=("train.seed=5", "train.epochs=7"))
    axes = parse_axes([("lambda", "0.2,0.4")], base)
    loaded = base.load(axes, {"lambda": "0.2"}, seed=6, epochs=9)
    assert (loaded.settings.train.seed, loaded.settings.train.epochs) == (6, 9)
    assert loaded.sources["train.epochs"] == "--equal compute"


def test_a_grid_that_is_too_large_is_refused() -> None:
    with pytest.raises(DsdmaeError, match=f"at most {MOST_TRIALS}"):
        parse_axes([("lambda", "0..1/100"), ("mask-ratio", "0.1..0.9/100")], BASE)


def test_heads_are_the_rows_of_table_3() -> None:
    axes = parse_axes([("heads", "both,decoder,regressor")], BASE)
    weights = [getattr(s.method, "lambda_") for s in validate(axes, grid(axes), BASE)]  # noqa: B009
    assert weights == [0.6, 1.0, 0.0]
    with pytest.raises(DsdmaeError, match=r"leaves method\.lambda as it is, and that is 1\.0, which is decoder"):
        parse_axes([("heads", "both,decoder")], Base(flags={"method.lambda": "1"}))
    with pytest.raises(DsdmaeError, match="'mae' has none"):
        parse_axes([("heads", "both,decoder")], Base(flags={"method.name": "mae"}))


def test_another_method_brings_its_own_settings() -> None:
    axes = parse_axes([("method", "dsdmae,mae")], BASE)
    both = validate(axes, grid(axes), BASE)
    assert [getattr(s.method, "mask_ratio") for s in both] == [0.9, 0.75]  # noqa: B009


def test_what_is_said_of_swept_plugins_holds_for_those_that_have_it() -> None:
    pairs = [("method", "dsdmae,mae,mocov3")]
    said = ("method.regressor_depth=3", "method.decoder_depth=2", "method.hidden_dim=64")
    base = Base(flags={"method.mask_ratio": "0.8"}, assignments=said).sweeping(pairs)
    axes = parse_axes(pairs, base)
    validate(axes, grid(axes), base)
    dsdmae, mae, mocov3 = (base.load(axes, point, 0).settings.method.model_dump() for point in grid(axes))
    assert (dsdmae["mask_ratio"], dsdmae["decoder_depth"], dsdmae["regressor_depth"]) == (0.8, 2, 3)
    assert (mae["mask_ratio"], mae["decoder_depth"]) == (0.8, 2)
    assert mocov3["hidden_dim"] == 64
    with pytest.raises(DsdmaeError, match=r"unknown setting method\.hiden_dim"):
        Base(assignments=("method.hiden_dim=64",)).sweeping(pairs).load(axes, {"method": "mocov3"}, 0)
    with pytest.raises(DsdmaeError, match=r"unknown setting method\.hidden_dim"):  # no method of this sweep has it
        Base(assignments=said).sweeping([("mask-ratio", "0.5,0.6")]).load()


def test_grid_is_every_combination_in_order() -> None:
    axes = parse_axes([("lambda", "0.2,0.6"), ("mask-ratio", "0.75,0.9")], BASE)
    assert [describe(point) for point in grid(axes)] == [
        "lambda 0.2, mask-ratio 0.75",
        "lambda 0.2, mask-ratio 0.9",
        "lambda 0.6, mask-ratio 0.75",
        "lambda 0.6, mask-ratio 0.9",
    ]


def test_the_default_is_a_preset_of_its_own() -> None:
    assert SETTINGS.data.dataset == "digits"
    assert Base(preset="quick-ablate").load().settings == SETTINGS
    assert Base(flags={"data.dataset": "cifar10"}).load().settings.train.epochs == 500


@settings(deadline=None)
@given(
    low=st.integers(1, 99),
    width=st.integers(1, 400),
    count=st.integers(2, 40),
)
def test_ranges_hold_their_ends_and_rise(low: int, width: int, count: int) -> None:
    first, last = Decimal(low) / 100, Decimal(low + width) / 100
    found = [float(v) for v in values("noise-std", f"{first}..{last}/{count}")]
    assert (found[0], found[-1]) == (float(first), float(last))
    assert len(found) == count
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) - min(steps) < 2e-3 * found[-1]


@settings(deadline=None)
@given(low=st.integers(0, 50), step=st.integers(1, 30), steps=st.integers(1, 30))
def test_steps_are_exact(low: int, step: int, steps: int) -> None:
    text = f"0.{low:03d}..{Decimal(low + step * steps) / 1000}:0.{step:03d}"
    assert [Decimal(v) * 1000 for v in values("noise-std", text)] == [low + step * i for i in range(steps + 1)]


@settings(deadline=None)
@given(low=st.integers(1, 500), width=st.integers(1, 500))
def test_whole_numbers_stay_whole(low: int, width: int) -> None:
    found = [int(v) for v in values("epochs", f"{low}..{low + width}")]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (low, low + width)
    assert min(width + 1, 4) <= len(found) <= 7


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=12), st.text(max_size=12))
@example("mask-ratio", "0..1:1e999999999")
@example("mask-ratio", "٣..٤")
@example("mask-ratio", "[0.1,0.2")
def test_any_text_is_understood_or_refused_in_one_line(key: str, text: str) -> None:
    for name in (key, "mask-ratio", "epochs"):
        assert "\n" not in (refusal(name, text) or "")


@pytest.mark.parametrize(
    ("words", "folded"),
    [
        (["--sweep", "lambda", "0..1"], ["--sweep=lambda=0..1"]),
        (["--sweep", "lambda", "-1..1", "--json"], ["--sweep=lambda=-1..1", "--json"]),
        (["--sweep", "lambda=0..1", "x"], ["--sweep=lambda=0..1", "x"]),
        (["--sweep", "lambda", "--json"], ["--sweep=lambda", "--json"]),
        (["--sweep", "lambda"], ["--sweep=lambda"]),
        (["--sweep"], ["--sweep="]),
        (["--sweep", "--sweep", "a", "--sweep", "b", "1"], ["--sweep=", "--sweep=a", "--sweep=b=1"]),
        (["--sweep", "--json"], ["--sweep=", "--json"]),
    ],
)
def test_two_words_become_one(words: list[str], folded: list[str]) -> None:
    assert fold(words) == folded
