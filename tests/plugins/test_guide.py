"""docs/new-method.md: its parts are files, the files are a package, and the package does what the page says it does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import records
from test_third_party import execute, install, run_own_tests

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "new-method.md").read_text(encoding="utf-8")


def blocks(pattern: str) -> list[tuple[str, str]]:
    """(what follows the language, content) of the page's code blocks in these languages."""
    return re.findall(rf"^```(?:{pattern})\b *(.*?)\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


def files() -> dict[str, str]:
    """The package's files by path. A part that goes on with a class follows after one empty line, others after two."""
    found: dict[str, str] = {}
    for path, part in blocks("python|toml"):
        gap = "\n" if part.startswith(" ") else "\n\n"
        found[path] = f"{found[path]}{gap}{part}" if path in found else part
    return found


def commands() -> list[str]:
    """What the page tells people to type with the package installed: blocks called bash, which test_docs.py leaves."""
    lines = [line for _, block in blocks("bash") for line in block.splitlines()]
    return [line.removeprefix("dsdmae ") for line in lines if line.startswith("dsdmae ")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a reader would have typed it."""
    folder = tmp_path_factory.mktemp("guide") / "dsdmae-simmim"
    for path, text in files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that package installed."""
    folder = tmp_path_factory.mktemp("site")
    install(package, folder, tmp_path_factory.mktemp("wheels"))
    return folder


def test_the_method_is_a_file_of_about_a_hundred_lines() -> None:
    assert files().keys() == {
        "pyproject.toml",
        "dsdmae_simmim/__init__.py",
        "dsdmae_simmim/spec.py",
        "dsdmae_simmim/method.py",
        "tests/test_simmim.py",
    }
    for path, text in files().items():
        assert len(text.splitlines()) <= 110, path
        assert max(map(len, text.splitlines())) <= 120, path


def test_it_is_listed_once_installed(site: Path, tmp_path: Path) -> None:
    listing = json.loads(execute("-m", "dsdmae_cli", "plugins", "--json", site=site, cwd=tmp_path).stdout)
    [found] = [plugin for plugin in listing["plugins"] if plugin["distribution"] == "dsdmae-simmim"]
    assert (found["kind"], found["name"], listing["broken"]) == ("method", "simmim", [])


@pytest.mark.slow
def test_it_passes_its_own_tests(package: Path, site: Path) -> None:
    run_own_tests(package, site)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # eight processes, most of which load torch
def test_every_command_of_the_page_runs(site: Path, tmp_path: Path) -> None:
    for command in commands():
        execute("-m", "dsdmae_cli", *shlex.split(command), site=site, cwd=tmp_path)
    for run, parts in (("plain", {"loss", "pixel"}), ("taught", {"loss", "pixel", "feature"})):
        assert json.loads((tmp_path / run / "result.json").read_text())["method"] == "simmim"
        steps = [record for record in records(tmp_path / run) if "loss" in record]
        assert parts <= steps[0].keys()
        assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    judged = json.loads((tmp_path / "judged" / "result.json").read_text())
    assert (judged["probe"], judged["method"]) == ("knn", "simmim")
    assert judged["top1"] > 0.3  # ten classes
