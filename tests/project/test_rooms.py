"""The house: no file too long, no room too large, no plugin known by name, no plugin that stands on more than it may.

Import-linter holds the arrows between rooms; here is what it cannot see. docs/design/architecture.md draws the rooms.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "dsdmae_cli").rglob("*.py"))
OURS = sorted((ROOT / "plugins" / "dsdmae_builtin").rglob("*.py"))
MOST_LINES = 400

# Names that belong to plugins: of methods' prerequisites, backbones, and DSdMAE's parts.
PLUGIN_NAMES = re.compile(r"tokenizer|\btimm\b|vit-|^(both|heads|decoder|regressor)$")
# Where such a word may stand in the core, and why.
EXCEPTIONS = {
    "timm is the library whose names and files are written, not the plugin": (
        "artifacts/card.py", "artifacts/classifier.py", "artifacts/format.py",
        "artifacts/timm_folder.py", "bench/machine.py", "cli/export.py", "data/rand_augment.py", "page/run.py",
        "recipes/export.py", "runs/environment.py",
        "settings/judge.py",
    ),
    "the names of weights in anybody's checkpoints": ("artifacts/elsewhere.py",),
    "the command `dsdmae tokenizer` and its presets": (
        "__main__.py", "cli/__init__.py", "cli/tokenizer.py", "config/flags.py", "config/schema.py",
    ),
    "help names one as an example, and the command `dsdmae tokenizer`": ("cli/options.py",),
    "the paper's Table 3, as a command line": ("ablation/paper.py",),
    "the backbone that a run has where nobody names one": ("settings/models.py",),
}  # fmt: skip

# The plugin interface: docs/plugins.md says so to authors.
INTERFACE = {
    "backbone", "corruption", "degradation", "data.arrays", "data.archives", "data.augment", "data.base", "data.decode",
    "data.files", "data.label_file", "data.masks", "data.once", "data.open", "data.packed", "data.shards",
    "data.source", "data.splits", "data.square",
    "data.values", "errors",
    "evaluation.attentive",
    "evaluation.dense", "evaluation.dense_knn", "evaluation.dense_linear",
    "evaluation.efficient",
    "evaluation.knn", "evaluation.linear", "evaluation.logistic", "evaluation.probes", "evaluation.split", "masking",
    "methods", "plugins", "settings.judge", "settings.models",
    "settings.size", "testing", "tracking", "views",
}  # fmt: skip


def texts(tree: ast.Module) -> list[ast.Constant]:
    """The strings of a module that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [node for node in found if isinstance(node.value, str)]


def named(source: str) -> list[str]:
    return [str(node.value) for node in texts(ast.parse(source)) if PLUGIN_NAMES.search(str(node.value))]


def test_the_core_knows_no_plugin_by_name() -> None:
    allowed = {path for paths in EXCEPTIONS.values() for path in paths}
    found = {str(path.relative_to(ROOT / "dsdmae_cli")): named(path.read_text(encoding="utf-8")) for path in CORE}
    guilty = {path: words for path, words in found.items() if words and path not in allowed}
    assert guilty == {}
    assert sorted(path for path in allowed if not found[path]) == [], "exceptions that are no longer needed"


@pytest.mark.parametrize("source", ["x = 'vit-tiny'", "f(kind='tokenizer')", "y = {'heads': 1}", "z = f'use timm:{x}'"])
def test_a_name_would_be_found(source: str) -> None:
    assert named(source)
    assert not named(f'"""{source}"""')


def test_no_file_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): n for path in [*CORE, *OURS]
            if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES}  # fmt: skip
    assert long == {}


def test_no_room_is_larger_than_a_sixth() -> None:
    lines: Counter[str] = Counter()
    for path in [*CORE, *OURS]:
        parts = path.relative_to(ROOT).parts
        room = "/".join(parts[:2]) if len(parts) > 2 else "dsdmae_cli"
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    largest, number = lines.most_common(1)[0]
    assert number <= sum(lines.values()) / 6, largest


def test_recipes_are_stories() -> None:
    """Little more than two thousand lines in all (thirteen commands), and none that does not fit in the head."""
    recipes = [path for path in CORE if path.parent.name == "recipes"]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in recipes) < 2300


def imported(source: str) -> set[str]:
    """Modules of the program that a plugin's file imports, without "dsdmae_cli."."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "dsdmae_cli":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsdmae_cli."):
            assert node.module is not None
            found.add(node.module.removeprefix("dsdmae_cli."))
            if node.module == "dsdmae_cli.evaluation":
                found.remove("evaluation")
                found |= {f"evaluation.{alias.name}" for alias in node.names}
    return found


def test_plugins_stand_on_the_interface_alone() -> None:
    for path in [*OURS, *(ROOT / "tests/plugins/example_plugin").rglob("*.py")]:
        beyond = {name for name in imported(path.read_text(encoding="utf-8"))
                  if name not in INTERFACE and name.split(".")[0] not in INTERFACE}  # fmt: skip
        assert beyond == set(), path
