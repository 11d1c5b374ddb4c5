"""What `--sweep KEY VALUES` means: the settings of every trial, checked before anything runs. No torch here.

How VALUES are written is in values.py; how trials are run and kept, in run.py and study.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsdmae_cli import plugins
from dsdmae_cli.ablation.values import MOST_TRIALS, Span, is_number, parse_values, split_values
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.describe import admits, key_of, plain
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.own_images import fitted
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import ABLATE, NAMED, SECTIONS, Loaded, section_class
from dsdmae_cli.config.sources import parse_word
from dsdmae_cli.errors import DataError, DsdmaeError, PluginError, SettingsError, nearest
from dsdmae_cli.settings.models import Settings

Point = dict[str, str]


@dataclass(frozen=True)
class Axis:
    """One --sweep.

    Attributes:
        key: as it was written, without dashes before it: "mask-ratio", "optim.weight_decay".
        dotted: the setting: "method.mask_ratio".
        values: the values as texts, in the order written.
        span: the range that a search may draw from, if VALUES is one.
        words: what each value sets where the key is a method's own (plugins.NamedSweep); None = nothing.
    """

    key: str
    dotted: str
    values: tuple[str, ...]
    span: Span | None = None
    words: Mapping[str, str | None] = field(default_factory=dict)

    def word(self, value: str) -> str | None:
        """What a value sets; None = nothing."""
        return self.words.get(value, value)

    @property
    def numbers(self) -> list[float] | None:
        """The values as numbers, None where one is a word."""
        return [float(v) for v in self.values] if all(map(is_number, self.values)) else None


@dataclass(frozen=True)
class Base:
    """What all trials of a sweep share: where settings come from, as the person gave them.

    Attributes:
        plugins: names of the plugins that a sweep goes through, by section. What a flag or --set says of such a section
            holds for those plugins that have the setting: method.decoder_depth for MAE, not for MoCo v3.
    """

    preset: str | Sequence[str] | None = None
    config: Path | None = None
    flags: Mapping[str, Any] | None = None
    assignments: tuple[str, ...] = ()
    plugins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def sweeping(self, pairs: list[tuple[str, str]]) -> Base:
        """The same, for the two words of every --sweep."""
        found = {}
        for section in (s for s in SECTIONS if s in NAMED):
            key = NAMED[section][0]
            flag = _flag_words()[f"{section}.{key}"]
            words = [values for name, values in pairs if name.removeprefix("--") in (flag, f"{section}.{key}")]
            if words:
                found[section] = tuple(split_values(words[0]))
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
            ABLATE,
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
        origins = {axis.dotted: f"--sweep {axis.key}" for axis in axes if axis.dotted in words}
        if epochs is not None:
            words["train.epochs"], origins["train.epochs"] = str(epochs), "--equal compute"
        if seed is not None:
            words["train.seed"] = str(seed)
        left = self._left_out(words)
        loaded = compose(
            ABLATE,
            preset=self.preset,
            config=self.config,
            flags={**{k: v for k, v in (self.flags or {}).items() if k not in left}, **words},
            origins=origins,
            # --set stands above flags, but not above what makes this trial differ from the others.
            assignments=[a for a in self.assignments if _assigned(a) not in {*words, *left}],
        )
        try:
            return fitted(loaded)
        except DataError:  # of images that cannot be had: said by whoever opens them, and a report needs none
            return loaded

    def gives(self, dotted: str) -> str | None:
        """The flag that sets this setting for all trials, None if there is none."""
        if (self.flags or {}).get(dotted) is not None:
            return next(flag for flag, name in ABLATE.flags.items() if name == dotted)
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
    own = _own_sweeps(settings)
    name = key.removeprefix("--")
    if name in own:
        dotted = f"method.{own[name].setting}"
        found, _ = parse_values(name, values, whole=None)
        _check_words(name, found, own[name], settings)
        return Axis(name, dotted, found, words=own[name].values)
    name, dotted = _find_key(key, settings)
    found, span = parse_values(name, values, _is_whole(dotted, settings))
    return Axis(name, dotted, found, span)


def named_sweeps() -> dict[str, plugins.NamedSweep]:
    """Names that installed methods have for values of their settings, the first method's where two share one."""
    found: dict[str, plugins.NamedSweep] = {}
    for plugin in plugins.discover("method"):
        found = {**plugin.spec.named_sweeps, **found} if isinstance(plugin, plugins.Plugin) else found
    return found


def _own_sweeps(settings: Settings) -> Mapping[str, plugins.NamedSweep]:
    """The names that the method at hand has."""
    found: Mapping[str, plugins.NamedSweep] = plugins.find("method", settings.method.name).spec.named_sweeps
    return found


def _flag_words() -> dict[str, str]:
    """What the settings that have a flag are called: {"method.mask_ratio": "mask-ratio"}."""
    return {flag.setting: flag.word for flag in flags_of(ABLATE.command)}


def _find_key(written: str, settings: Settings) -> tuple[str, str]:
    """(name, dotted name) of a key."""
    name = written.removeprefix("--")
    flags = {word: dotted for dotted, word in _flag_words().items() if dotted != "train.seed"}
    dotted = flags.get(name.replace("_", "-"), name)
    section, dot, key = dotted.partition(".")
    if dotted in ("seed", "train.seed"):
        raise SettingsError("--sweep seed: seeds repeat every trial and are no setting to choose; use --seeds N")
    if dot and section in SECTIONS and key:
        return (name.replace("_", "-") if dotted != name else name), dotted
    if name in named_sweeps():
        raise SettingsError(f"--sweep {name} is of another method; method {settings.method.name!r} has none such")
    own = list(_own_sweeps(settings))
    known = [f"{s}.{key_of(n, f)}" for s, model in settings for n, f in type(model).model_fields.items()]
    bare = next((d for d in known if d.partition(".")[2] == name.replace("-", "_")), None)
    hint = f" (did you mean {bare}?)" if bare else nearest(name, [*flags, *own, *known])
    raise SettingsError(
        f"--sweep {written}: there is no such setting{hint}; KEY is {', '.join([*flags, *own])}, or SECTION.KEY as"
        " `dsdmae config describe` lists them"
    )


def _is_whole(dotted: str, settings: Settings) -> bool | None:
    """Whether a setting takes whole numbers only; None if it belongs to another plugin than the common one."""
    section, _, key = dotted.partition(".")
    fields = {key_of(n, f): f for n, f in type(getattr(settings, section)).model_fields.items()}
    return None if key not in fields else admits(fields[key], int) and not admits(fields[key], float)


def _check_words(name: str, words: Sequence[str], sweep: plugins.NamedSweep, settings: Settings) -> None:
    known = sweep.values
    strange = next((word for word in words if word not in known), None)
    if strange is not None:
        raise SettingsError(f"--sweep {name} {strange}{nearest(strange, list(known))}: it takes {', '.join(known)}")
    fields = {key_of(n, f): n for n, f in type(settings.method).model_fields.items()}
    now = plain(getattr(settings.method, fields[sweep.setting]))
    twin = next((word for word, value in known.items() if value is not None and parse_word(value) == now), None)
    unchanged = next((word for word in words if known[word] is None), None)
    if twin is not None and unchanged is not None:
        raise SettingsError(
            f"--sweep {name} {unchanged} leaves method.{sweep.setting} as it is, and that is {now}, which is {twin};"
            f" give another method.{sweep.setting}"
        )


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
