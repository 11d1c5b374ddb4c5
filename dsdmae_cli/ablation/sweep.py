"""What `--sweep KEY VALUES` means: the settings of every trial, checked before anything runs. No torch here.

    VALUES    0.75..0.95        a range, ends included, about five steps
              0.75..0.95:0.05   the same with a step
              0.75..0.95/5      the same with a number of values; 1e-4..1e-2/5log spaces them evenly by ratio
              0.2,0.4,0.6       a list of values, words or ranges; a pair stands in brackets: [0.8,0.95],[0.7,0.9]

In --mask-ratio "0.75..0.95" is one value, a range that the run draws from; here it is a range of runs. How trials are
run and kept is in dsdmae_cli.ablation.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.describe import admits, key_of
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import NAMED, PRETRAIN, SECTIONS, Loaded, Schema, section_class
from dsdmae_cli.errors import DsdmaeError, PluginError, SettingsError, nearest
from dsdmae_cli.settings.models import Settings

MOST_TRIALS = 1000
_USUAL_VALUES = 5
_RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>[^:/]+?)(?::(?P<step>[^/]+?))?(?:/(?P<count>\w+?))?(?P<log>log)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")

# Names for several settings of one key, in the words of the paper's Table 3. None leaves the setting as it is.
HEADS: dict[str, str | None] = {"both": None, "decoder": "1", "regressor": "0"}

Point = dict[str, str]


@dataclass(frozen=True)
class Span:
    """A range that a search may draw from.

    Attributes:
        low, high: its ends, included.
        step: distance of the values that are allowed; None = any.
        log: evenly by ratio.
        whole: whole numbers only.
    """

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool


@dataclass(frozen=True)
class Axis:
    """One --sweep.

    Attributes:
        key: as it was written, without dashes before it: "mask-ratio", "optim.weight_decay", "heads".
        dotted: the setting: "method.mask_ratio".
        values: the values as texts, in the order written.
        span: the range that a search may draw from, if VALUES is one.
    """

    key: str
    dotted: str
    values: tuple[str, ...]
    span: Span | None = None

    def word(self, value: str) -> str | None:
        """What a value sets; None = nothing."""
        return HEADS[value] if self.key == "heads" else value

    @property
    def numbers(self) -> list[float] | None:
        """The values as numbers, None where one is a word."""
        return [float(v) for v in self.values] if all(_NUMBER.fullmatch(v) for v in self.values) else None


@dataclass(frozen=True)
class Base:
    """What all trials of a sweep share: where settings come from, as the person gave them.

    Attributes:
        plugins: names of the plugins that a sweep goes through, by section. What a flag or --set says of such a section
            holds for those plugins that have the setting: method.decoder_depth for MAE, not for MoCo v3.
    """

    preset: str | None = None
    config: Path | None = None
    flags: Mapping[str, Any] | None = None
    assignments: tuple[str, ...] = ()
    plugins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def sweeping(self, pairs: list[tuple[str, str]]) -> Base:
        """The same, for the two words of every --sweep."""
        found = {}
        for section in (s for s in SECTIONS if s in NAMED):
            key = NAMED[section][0]
            # A plugin's flag is called after its kind: method, backbone, dataset.
            flag = next(f.removeprefix("--") for f, dotted in PRETRAIN.flags.items() if dotted == f"{section}.{key}")
            words = [values for name, values in pairs if name.removeprefix("--") in (flag, f"{section}.{key}")]
            if words:
                found[section] = tuple(_split(words[0]))
        return replace(self, plugins=found)

    def _left_out(self, words: Mapping[str, str]) -> set[str]:
        """Settings that the plugin of a point does not have and another one of the sweep has."""
        left: set[str] = set()
        for section, names in self.plugins.items():
            key = NAMED[section][0]
            given = {d for d in [*(self.flags or {}), *map(_assigned, self.assignments)] if d.startswith(f"{section}.")}
            given.discard(f"{section}.{key}")
            mine = words.get(f"{section}.{key}") or self._own(section, given)
            somewhere = set[str]().union(*(_keys(section, name) for name in names))
            left |= {d for d in given if (k := d.partition(".")[2]) in somewhere and k not in _keys(section, mine)}
        return left

    def _own(self, section: str, given: set[str]) -> str:
        """The plugin that is named without the sweep."""
        loaded = compose(
            replace(PRETRAIN, default_preset="quick-ablate"),
            preset=self.preset,
            config=self.config,
            flags={k: v for k, v in (self.flags or {}).items() if k not in given},
            assignments=[a for a in self.assignments if _assigned(a) not in given],
        )
        return str(getattr(getattr(loaded.settings, section), NAMED[section][0]))

    def load(
        self,
        axes: tuple[Axis, ...] = (),
        point: Point | None = None,
        seed: int | None = None,
        epochs: int | None = None,
    ) -> Loaded[Settings]:
        """The settings of a point; without one, those that all trials start from.

        Args:
            axes: what the point is on.
            point: a value for each axis.
            seed: in place of the shared one.
            epochs: what --equal compute gives this point; None = the shared ones.

        Raises:
            SettingsError, PluginError: a value is refused; the message names the --sweep it is from.
        """
        words = {axis.dotted: word for axis in axes if point and (word := axis.word(point[axis.key])) is not None}
        named = {f"--sweep {axis.key}": axis.dotted for axis in axes}
        if epochs is not None:
            words["train.epochs"] = str(epochs)
            named["--equal compute"] = "train.epochs"
        flags = {flag: dotted for flag, dotted in PRETRAIN.flags.items() if dotted not in words}
        if seed is not None:
            words["train.seed"] = str(seed)
        schema: Schema[Settings] = replace(PRETRAIN, default_preset="quick-ablate", flags={**flags, **named})
        left = self._left_out(words)
        return compose(
            schema,
            preset=self.preset,
            config=self.config,
            flags={**{k: v for k, v in (self.flags or {}).items() if k not in left}, **words},
            # --set stands above flags, but not above what makes this trial differ from the others.
            assignments=[a for a in self.assignments if _assigned(a) not in {*words, *left}],
        )

    def gives(self, dotted: str) -> str | None:
        """The flag that sets this setting for all trials, None if there is none."""
        if (self.flags or {}).get(dotted) is not None:
            return next(flag for flag, name in PRETRAIN.flags.items() if name == dotted)
        return next((f"--set {a}" for a in self.assignments if _assigned(a) == dotted), None)


def _keys(section: str, name: str) -> set[str]:
    """The settings of a plugin."""
    key, _, shared = NAMED[section]
    try:
        model = section_class(section, {key: name})
    except PluginError:
        model = shared  # validation will say so, and from where the name came
    return {key_of(n, f) for n, f in model.model_fields.items()}


def _assigned(text: str) -> str:
    """The setting of a --set."""
    return text.partition("=")[0].strip()


def parse_axes(pairs: list[tuple[str, str]], base: Base) -> tuple[Axis, ...]:
    """The axes of a grid from the two words of every --sweep.

    Raises:
        SettingsError: a key that does not exist or stands twice, values that are none.
    """
    settings = base.load().settings
    axes: list[Axis] = []
    for key, values in pairs:
        axis = parse_axis(key, values, settings)
        for other in axes:
            if other.dotted == axis.dotted:
                raise SettingsError(f"--sweep {other.key} and --sweep {axis.key} both set {axis.dotted}; give one")
        if flag := base.gives(axis.dotted):
            raise SettingsError(f"--sweep {axis.key} and {flag} both set {axis.dotted}; leave one out")
        axes.append(axis)
    if math.prod(len(axis.values) for axis in axes) > MOST_TRIALS:
        counts = " x ".join(str(len(axis.values)) for axis in axes)
        raise SettingsError(f"--sweep asks for {counts} trials; at most {MOST_TRIALS} are run in one study, take fewer")
    return tuple(axes)


def parse_axis(key: str, values: str, settings: Settings) -> Axis:
    """One --sweep; `settings` are those that all trials start from."""
    key, values = (" ".join(text.split()) for text in (key, values))  # a line break would break the messages' line
    name, dotted = _find_key(key, settings)
    whole = _is_whole(dotted, settings)
    if not values:
        raise SettingsError(f"--sweep {name} has no values; write a range (0.75..0.95) or a list (0.2,0.4)")
    found: list[str] = []
    span: Span | None = None
    for item in _split(values):
        if not item:
            raise SettingsError(f"--sweep {name} {values}: a value is missing between commas")
        ranged = _range(name, item, whole)
        found += ranged[0] if ranged else [item]
        span = ranged[1] if ranged else None
    if name == "heads":
        _check_heads(found, settings)
    for value in found:
        if found.count(value) > 1:
            raise SettingsError(f"--sweep {name} {values}: {value} stands there twice; nothing is run twice")
    return Axis(name, dotted, tuple(found), span if len(_split(values)) == 1 else None)


def _find_key(written: str, settings: Settings) -> tuple[str, str]:
    """(name, dotted name) of a key."""
    name = written.removeprefix("--")
    if name == "heads":
        return name, "method.lambda"
    flags = {f.split("/")[0].removeprefix("--"): d for f, d in PRETRAIN.flags.items()}
    del flags["seed"]
    dotted = flags.get(name.replace("_", "-"), name)
    section, dot, key = dotted.partition(".")
    if dotted in ("seed", "train.seed"):
        raise SettingsError("--sweep seed: seeds repeat every trial and are no setting to choose; use --seeds N")
    if dot and section in SECTIONS and key:
        return (name.replace("_", "-") if dotted != name else name), dotted
    known = [f"{s}.{key_of(n, f)}" for s, model in settings for n, f in type(model).model_fields.items()]
    bare = next((d for d in known if d.partition(".")[2] == name.replace("-", "_")), None)
    hint = f" (did you mean {bare}?)" if bare else nearest(name, [*flags, "heads", *known])
    raise SettingsError(
        f"--sweep {written}: there is no such setting{hint}; KEY is {', '.join(flags)}, heads, or SECTION.KEY as"
        " `dsdmae config describe` lists them"
    )


def _is_whole(dotted: str, settings: Settings) -> bool | None:
    """Whether a setting takes whole numbers only; None if it belongs to another plugin than the common one."""
    section, _, key = dotted.partition(".")
    fields = {key_of(n, f): f for n, f in type(getattr(settings, section)).model_fields.items()}
    return None if key not in fields else admits(fields[key], int) and not admits(fields[key], float)


def _check_heads(values: list[str], settings: Settings) -> None:
    strange = next((v for v in values if v not in HEADS), None)
    if strange is not None:
        raise SettingsError(f"--sweep heads {strange}{nearest(strange, list(HEADS))}: it takes {', '.join(HEADS)}")
    weight = getattr(settings.method, "lambda_", None)
    if weight is None:
        raise SettingsError(f"--sweep heads is about dsdmae's two heads; method {settings.method.name!r} has none")
    if "both" in values and not 0 < weight < 1:
        raise SettingsError(f"--sweep heads both needs a --lambda between 0 and 1, got {weight:g}")


def _split(values: str) -> list[str]:
    """At commas that stand outside brackets and braces."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text) if _NUMBER.fullmatch(text) else None
    except InvalidOperation:
        return None


def _range(key: str, item: str, whole: bool | None) -> tuple[list[str], Span] | None:
    """The values of LOW..HIGH, and its span; None if the text is no range of numbers.

    Raises:
        SettingsError: it is empty, runs backwards, or its steps do not meet its end.
    """
    match = _RANGE.fullmatch(item)
    ends = (_number(match["low"].strip()), _number(match["high"].strip())) if match else (None, None)
    low, high = ends
    if match is None or low is None or high is None:
        return None
    said = f"--sweep {key} {item}"
    if low == high:
        raise SettingsError(f"{said}: the range is empty; write one value, {low}, or two different ends")
    if low > high:
        raise SettingsError(f"{said}: the range runs backwards; write {match['high']}..{match['low']}")
    if whole is None:
        whole = low == low.to_integral_value() and high == high.to_integral_value()
    if whole and (low != int(low) or high != int(high)):
        raise SettingsError(f"{said}: this setting takes whole numbers; got ends {low} and {high}")
    log = match["log"] is not None
    if log and low <= 0:
        raise SettingsError(f"{said}: log needs ends above 0, got {low}")
    if match["step"] is not None and (log or match["count"] is not None):
        raise SettingsError(f"{said}: give a step (:0.05) or a number of values (/5, /5log), not both")
    if match["step"] is not None:
        step = _number(match["step"].strip())
        values = _stepped(said, low, high, step, whole)
        return [_text(v) for v in values], Span(float(low), float(high), float(step or 0), False, whole)
    count = _count(said, match["count"])
    if count is None:
        count = _USUAL_VALUES if log else _usual_count(low, high, whole)
    values = _spaced(low, high, count, whole, log)
    if len(set(values)) < count:
        raise SettingsError(f"{said}: there are not {count} different whole numbers from {low} to {high}; take fewer")
    return [_text(v) for v in values], Span(float(low), float(high), None, log, whole)


def _count(said: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 2 <= int(text) <= MOST_TRIALS:
        raise SettingsError(f"{said}: after / stands how many values, 2 to {MOST_TRIALS}, got {text!r}")
    return int(text)


def _stepped(said: str, low: Decimal, high: Decimal, step: Decimal | None, whole: bool) -> list[Decimal]:
    if step is None or step <= 0 or (whole and step != int(step)):
        kind = "whole number" if whole else "number"
        raise SettingsError(f"{said}: after : stands the step, a {kind} above 0")
    steps = (high - low) / step
    if steps > MOST_TRIALS:
        raise SettingsError(f"{said}: that is more than {MOST_TRIALS} values; take a larger step")
    if steps != int(steps):
        last = _text(low + step * int(steps))
        raise SettingsError(
            f"{said}: steps of {_text(step)} end at {last}, not at {_text(high)}; change the step or the end, or say"
            " how many values by /N"
        )
    return [low + step * i for i in range(int(steps) + 1)]


def _usual_count(low: Decimal, high: Decimal, whole: bool) -> int:
    """How many values make round steps, four to seven of them; five where nothing is round."""

    def roundness(count: int) -> tuple[int, int]:
        step = (high - low) / (count - 1)
        digits = step.normalize().as_tuple().digits
        return len(digits), abs(count - _USUAL_VALUES)

    if whole and high - low < _USUAL_VALUES + 2:
        return int(high - low) + 1
    fits = [n for n in range(4, 8) if not whole or (high - low) % (n - 1) == 0]
    best = min(fits, key=roundness, default=_USUAL_VALUES)
    return best if fits and (whole or roundness(best)[0] <= 2) else _USUAL_VALUES


def _spaced(low: Decimal, high: Decimal, count: int, whole: bool, log: bool) -> list[Decimal]:
    shares = [Decimal(i) / (count - 1) for i in range(count)]
    if log:
        values = [low * (high / low) ** share for share in shares]
    else:
        values = [low + (high - low) * share for share in shares]
    # Four digits are plenty, unless the values lie closer to each other than that.
    apart = float((values[1] - low) / max(abs(low), abs(high)))
    digits = max(4, 2 + math.ceil(-math.log10(max(apart, 1e-20))))
    rounded = [value.to_integral_value() if whole else Decimal(f"{value:.{digits}g}") for value in values]
    return [low, *rounded[1:-1], high]


def _text(number: Decimal) -> str:
    """The number as TOML takes it: 0.75, 20, 1e-05."""
    plain = format(number.normalize(), "f")
    return plain if len(plain) <= 8 else repr(float(number))


def grid(axes: tuple[Axis, ...]) -> list[Point]:
    """Every combination of values, the last axis fastest."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def validate(axes: tuple[Axis, ...], points: list[Point], base: Base) -> list[Settings]:
    """The resolved settings of each point.

    Raises:
        SettingsError, PluginError: a point's settings are refused, or two points are one.
    """
    seen: list[Settings] = []
    for point in points:
        try:
            settings = resolve(base.load(axes, point).settings)
        except DsdmaeError as error:
            if f"--sweep {next(iter(point))}" in str(error):
                raise
            raise type(error)(f"trial {describe(point)}: {error}") from error
        if settings in seen:
            twin = points[seen.index(settings)]
            raise SettingsError(f"{describe(twin)} and {describe(point)} are the same settings; nothing is run twice")
        seen.append(settings)
    return seen


def describe(point: Point) -> str:
    """A point in words: "mask-ratio 0.75, lambda 0.6"."""
    return ", ".join(f"{key} {value}" for key, value in point.items())
