"""A list of measurements on one device, done in one call or in several: the programme of gpu.toml.

A part that fails is noted, with its last words, and the next one begins: on hardware that nobody has tried yet that is
a finding too. What is done is written at once (bench.json) and not done again; report.md is ready for docs/results.
"""

from __future__ import annotations

import json
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsdmae_cli.bench.turns import Finding, last_words
from dsdmae_cli.errors import DsdmaeError, SettingsError
from dsdmae_cli.files import parsed_json, read_within, require_folder, write_bytes
from dsdmae_cli.report import duration

STATE, REPORT = "bench.json", "report.md"
_FORMAT = 1
_KEPT_OF_A_PART = ("what", "when", "seconds", "given", "failed", "markdown", "findings")
Say = Callable[[str], None]


class LeftOutError(Exception):
    """A part that cannot be done here, or not with what was given; a later call may."""


@dataclass(frozen=True)
class Part:
    """A part of the programme.

    Attributes:
        name: by which it is asked for.
        what: one line on what it measures.
        minutes: that it may be expected to take.
        given: parameters of its function.
    """

    name: str
    what: str
    minutes: float
    given: dict[str, Any]


@dataclass(frozen=True)
class Programme:
    """Parts in order, and the networks that they name."""

    parts: tuple[Part, ...]
    networks: dict[str, list[str]]


def read_programme(rehearsal: bool) -> Programme:
    """The packaged programme.

    Args:
        rehearsal: with the sizes for a CPU.
    """
    found = tomllib.loads((Path(__file__).parent / "gpu.toml").read_text(encoding="utf-8"))
    parts = tuple(
        Part(one["name"], one["what"], one["minutes"], one["with"] | (one["rehearsal"] if rehearsal else {}))
        for one in found["part"]
    )
    return Programme(parts, found["networks"])


def chosen(programme: Programme, only: tuple[str, ...]) -> tuple[Part, ...]:
    """The parts that were asked for, all by default.

    Raises:
        SettingsError: there is no such part.
    """
    names = [part.name for part in programme.parts]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise SettingsError(f"--only {unknown[0]} is no part; there are {', '.join(names)}")
    return tuple(part for part in programme.parts if not only or part.name in only)


class Kept:
    """What was found until now, in a folder.

    Args:
        folder: is made if it is not there.
        machine: hardware and versions.

    Raises:
        SettingsError: the folder holds what another machine, another version or another program wrote, or cannot be
            used.
    """

    def __init__(self, folder: Path, machine: Mapping[str, str]) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {"format": _FORMAT, "machine": dict(machine), "parts": {}}
        there = folder / STATE
        try:
            if there.exists():
                self.state = self._read(there, machine)
            elif folder.exists() and any(folder.iterdir()):
                raise SettingsError(f"{folder} is not empty and holds no {STATE}; name a new folder with --out")
            require_folder(folder)  # before the first part, whose figures would have no place
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot use --out {folder}: {error.strerror or error}") from error

    @staticmethod
    def _read(path: Path, machine: Mapping[str, str]) -> dict[str, Any]:
        try:
            state = parsed_json(read_within(path))
            before = dict(state["machine"])
            for part in state["parts"].values():
                _ = [part[key] for key in _KEPT_OF_A_PART]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            raise SettingsError(f"{path} cannot be read ({why}); name a new folder with --out") from error
        if state.get("format") != _FORMAT:
            raise SettingsError(
                f"{path} is of format {state.get('format')}, this program writes {_FORMAT}; name a new folder"
            )
        differing = [
            f"{name}: {before.get(name)}, now {value}" for name, value in machine.items() if before.get(name) != value
        ]
        if differing:
            raise SettingsError(
                f"{path} is of another machine or version ({differing[0]}); figures of two do not go into one table:"
                " name a new folder with --out"
            )
        return dict(state)

    def done(self, part: Part) -> bool:
        """Whether it was done with these parameters, and did not fail."""
        found = self.state["parts"].get(part.name)
        return bool(found) and not found.get("failed") and found.get("given") == part.given

    def add(self, part: Part, seconds: float, findings: list[Finding], failed: str = "") -> None:
        """Keep what a part found, and write the report anew."""
        self.state["parts"][part.name] = {
            "what": part.what,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "given": part.given,
            "failed": failed,
            "markdown": [finding.markdown() for finding in findings],
            "findings": [finding.json() for finding in findings],
        }
        again = "the same command goes on from what is there"
        write_bytes(self.folder / STATE, json.dumps(self.state, indent=1).encode(), again)
        write_bytes(self.folder / REPORT, self.report().encode(), again)

    def report(self) -> str:
        """All that was found, as Markdown."""
        parts = self.state["parts"]
        # A machine without a device has tried the programme on its processor.
        tried = "device" not in self.state["machine"]
        title, where = ("Tried on a processor, on tiny sizes", " --device cpu") if tried else ("Measured on a GPU", "")
        lines = [f"# {title}", ""]
        lines += [f"- {name}: {value}" for name, value in self.state["machine"].items()]
        lines += ["", "Contenders of one table took turns in one run; median (min, max).", ""]
        for name, part in parts.items():
            lines += [f"## {name}: {part['what']}", ""]
            lines += [f"`dsdmae bench gpu{where} --only {name}`, {part['when']}, {duration(part['seconds'])}.", ""]
            if part["failed"]:
                lines += [f"**Failed**: {part['failed']}", ""]
            lines += part["markdown"]
        return "\n".join(lines).rstrip() + "\n"


def go_through(
    parts: tuple[Part, ...], functions: Mapping[str, Callable[..., list[Finding]]], kept: Kept, minutes: float, say: Say
) -> list[str]:
    """Do the parts that are not done and fit the time; names of those that are left or failed.

    Args:
        functions: of each part, called with its parameters.
        minutes: for all.
    """
    began, left, worked = time.monotonic(), [], False
    for part in parts:
        spent = (time.monotonic() - began) / 60
        if kept.done(part):
            say(f"{part.name}: done before")
            continue
        if worked and part.minutes > minutes - spent:
            say(f"{part.name}: left for the next call, {part.minutes:g} min of {minutes - spent:.1f} that remain")
            left.append(part.name)
            continue
        say(f"{part.name}: {part.what}")
        at, failed, findings = time.monotonic(), "", []
        worked = True
        try:
            findings = functions[part.name](**part.given)
        except LeftOutError as why:
            say(f"{part.name}: left out, {why}")
            continue
        except DsdmaeError as error:
            failed = str(error)
        except Exception as error:  # whatever it is on hardware that nobody has tried, the rest is worth having
            where = traceback.extract_tb(error.__traceback__)[-1]
            failed = f"{type(error).__name__}: {last_words(error)} ({Path(where.filename).name}:{where.lineno})"
        kept.add(part, time.monotonic() - at, findings, failed)
        if failed:
            left.append(part.name)
        say(f"{part.name}: {f'failed: {failed}' if failed else 'done'} after {duration(time.monotonic() - at)}")
    return left
