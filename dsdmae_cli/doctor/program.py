"""The program: how it is installed, its libraries, plugins and extras, and variables that change its settings."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from dsdmae_cli import __version__
from dsdmae_cli.doctor import Check

_OF_DEVELOPERS = frozenset({"dev", "test"})


def install(extra: str = "") -> str:
    """The command that installs the program, or an extra of it, the way it is installed here."""
    what = f"'dsdmae[{extra}]'" if extra else "dsdmae"
    parts = Path(sys.prefix).parts
    if "pipx" in parts:
        return f"pipx install --force {what}"
    if "uv" in parts and "tools" in parts:
        return f"uv tool install --force {what}"
    if (root := _clone()) is not None:
        what = f"'.[{extra}]'" if extra else "."
        return f"pip install -e {what}  (in {root})"
    return f"pip install {what}" if extra else f"pip install --force-reinstall {what}"


def install_beside(folder: Path) -> str:
    """The command that installs a plugin's package, to be changed where it lies, into the program's own environment."""
    what = f"-e '{folder}[test]'"
    if "pipx" in Path(sys.prefix).parts:
        return f"pipx runpip dsdmae install {what}"
    if find_spec("pip") is None:  # an environment of uv's
        return f"uv pip install --python '{sys.prefix}' {what}"
    return f"pip install {what}"


def _clone() -> Path | None:
    """The clone that the program runs from, where it does."""
    root = Path(__file__).parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def itself() -> Iterator[Check]:
    yield Check("dsdmae", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}, {platform.platform(terse=True)}")


def libraries() -> Iterator[Check]:
    """Every library that the program needs, by the versions that its own metadata asks for; torch by importing it."""
    from packaging.requirements import Requirement

    try:
        asked = metadata.requires("dsdmae") or []
    except metadata.PackageNotFoundError:
        yield Check(
            "libraries",
            "wrong",
            "the program is not installed here: it has no metadata, so no plugins",
            f"install it: {install()}",
        )
        return
    there, problems = [], []
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
        there.append(f"{requirement.name} {version}")
    if problems:
        yield Check("libraries", "wrong", "; ".join(problems), f"install them: {install()}")
    else:
        yield Check("libraries", "ok", f"all {len(there)}, {', '.join(t for t in there if _told(t))}")
    yield _imported("torch")
    yield _imported("torchvision")


def _told(library: str) -> bool:
    return library.split()[0] in ("numpy", "pillow", "torch", "torchvision")


def _imported(name: str) -> Check:
    try:
        module = __import__(name)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return Check(
            name,
            "wrong",
            f"it cannot be imported ({type(error).__name__}: {reason})",
            f"torch and torchvision must be of one release and one build; {install()}",
        )
    built = getattr(getattr(module, "version", None), "cuda", None)
    return Check(name, "ok", f"{module.__version__}" + (f", built for CUDA {built}" if isinstance(built, str) else ""))


def plugins_found() -> Iterator[Check]:
    from dsdmae_cli.plugins import KINDS, BrokenPlugin, discover

    found = list(chain.from_iterable(discover(kind) for kind in KINDS))
    packages = sorted({f"{plugin.distribution} {plugin.version}" for plugin in found})
    broken = [plugin for plugin in found if isinstance(plugin, BrokenPlugin)]
    if not found:
        yield Check(
            "plugins",
            "wrong",
            "none are found: the program's metadata is not that of its source",
            f"install it: {install()}",
        )
        return
    yield Check("plugins", "ok", f"{len(found) - len(broken)} of {', '.join(packages)}")
    for plugin in broken:
        yield Check(
            f"plugin {plugin.name}",
            "wrong",
            f"{plugin.kind} of {plugin.distribution}: {plugin.reason}",
            f"mend it, update {plugin.distribution}, or uninstall it",
        )


def extras() -> Iterator[Check]:
    from packaging.requirements import Requirement

    about = metadata.metadata("dsdmae")
    asked = [Requirement(text) for text in metadata.requires("dsdmae") or []]
    for extra in sorted(set(about.get_all("Provides-Extra") or []) - _OF_DEVELOPERS):
        needed = [
            r.name
            for r in asked
            if r.marker is not None and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
        ]
        missing = [name for name in needed if not _installed(name)]
        if missing:
            yield Check(f"extra {extra}", "note", f"{', '.join(missing)} not installed", install(extra))
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in needed))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def environment() -> Iterator[Check]:
    """Settings in variables count in every run; a forgotten one is hard to find."""
    from dsdmae_cli.config.schema import PRETRAIN
    from dsdmae_cli.config.sources import environment_layer
    from dsdmae_cli.errors import SettingsError

    try:
        environment_layer(os.environ, PRETRAIN)
    except SettingsError as error:
        yield Check("environment", "wrong", str(error), "unset it, or mend its name: every command would refuse it")
        return
    names = sorted(name for name in os.environ if name.startswith("DSDMAE_") and name != "DSDMAE_TEST_DATA")
    if names:
        yield Check(
            "environment",
            "note",
            f"{', '.join(names)} set, above presets and files",
            "`dsdmae config show --sources` says what comes from them; unset them where that is not meant",
        )
