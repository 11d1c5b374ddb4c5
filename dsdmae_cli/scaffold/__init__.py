"""Write a new plugin package that installs, is found and passes its own tests: `dsdmae plugins new`.

What is written lies in templates/: common/ for every kind, and one folder for each kind. What a plugin is,
dsdmae_cli.plugins says. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template

from dsdmae_cli import __version__
from dsdmae_cli.errors import PluginError
from dsdmae_cli.plugins import Kind, group

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# The folder of a template tree that takes the package's own name.
_PACKAGE_FOLDER = "package"
_SUFFIX = ".tmpl"
# Where the spec is; what is small enough stands in one file with it.
_MODULES: dict[Kind, str] = {"probe": "probe", "tracker": "tracker"}


def create(kind: Kind, name: str, into: Path) -> list[Path]:
    """Write the package dsdmae-NAME with a plugin that works and its tests.

    All files appear at once or none does.

    Args:
        kind: what to make.
        name: what a user types for it, as in `--method NAME`.
        into: the folder that receives dsdmae-NAME/; it is made if need be.

    Returns:
        The folder dsdmae-NAME, then its files, sorted.

    Raises:
        PluginError: the name is malformed or taken, the folder exists, or it cannot be written.
    """
    _check_name(kind, name)
    words = _words(kind, name)
    target = into / words["distribution"]
    if target.exists() or target.is_symlink():
        raise PluginError(f"{target} exists already; choose another name or another --into, or remove it")
    try:
        return _write_at_once(kind, words, target)
    except OSError as error:
        raise PluginError(f"cannot write {target}: {error.strerror or error}; try another --into") from error


def _check_name(kind: Kind, name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise PluginError(
            f"{name!r} cannot be a plugin's name; take lower-case letters, digits and single hyphens,"
            " a letter first (my-method), and no word that Python reserves"
        )
    for entry in entry_points(group=group(kind), name=name):
        owner = f" by {entry.dist.name} {entry.dist.version}" if entry.dist else ""
        raise PluginError(f"{kind} {name!r} exists already, installed{owner}; choose another name")
    package = _words(kind, name)["package"]
    # "cli" and "builtin" would shadow the program itself.
    if importlib.util.find_spec(package) is not None:
        raise PluginError(f"a Python package {package} exists already; choose another name than {name!r}")


def _words(kind: Kind, name: str) -> dict[str, str]:
    """What the templates may say."""
    return {
        "kind": kind,
        "name": name,
        "distribution": f"dsdmae-{name}",
        "package": f"dsdmae_{name.replace('-', '_')}",
        "group": group(kind),
        "module": _MODULES.get(kind, "spec"),
        "version": __version__,
    }


def _write_at_once(kind: Kind, words: dict[str, str], target: Path) -> list[Path]:
    written = _render(kind, words)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic only within a file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as aside:
        draft = Path(aside) / target.name
        for path, text in written.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
        draft.rename(target)
    return [target, *sorted(target / path for path in written)]


def _render(kind: Kind, words: dict[str, str]) -> dict[PurePosixPath, str]:
    """The text of every file by its path in the new folder."""
    templates = files(__name__) / "templates"
    return {
        _destination(path, words): Template(source.read_text(encoding="utf-8")).substitute(words)
        for folder in ("common", kind)
        for path, source in _walk(templates / folder, PurePosixPath())
    }


def _walk(folder: Traversable, at: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, at / item.name)
        elif item.name.endswith(_SUFFIX):
            yield at / item.name.removesuffix(_SUFFIX), item


def _destination(path: PurePosixPath, words: dict[str, str]) -> PurePosixPath:
    return PurePosixPath(*(words["package"] if part == _PACKAGE_FOLDER else part for part in path.parts))
