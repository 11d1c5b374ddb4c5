"""Packages of others, as they reach a user: built as wheels, installed, found, tested, and pre-trained with.

A wheel is built with hatchling and unpacked into a folder on PYTHONPATH, which is all that installing a pure
Python wheel does; that needs neither pip, nor uv, nor a network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from dsdmae_cli import scaffold
from dsdmae_cli.plugins import KINDS, Kind

HERE = Path(__file__).parent
EXAMPLE = HERE / "example_plugin"
HF = HERE.parents[1] / "plugins" / "dsdmae-hf"
GUIDE = HERE.parents[1] / "docs" / "plugins.md"


def execute(*command: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages in `site` installed; it must succeed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    # The user's own settings are no part of the test.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DSDMAE_")}
    done = subprocess.run(
        [sys.executable, *command],
        env=environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def install(source: Path, site: Path, wheels: Path) -> None:
    execute("-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), site=site, cwd=source)
    [wheel] = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def run_own_tests(source: Path, site: Path) -> None:
    """Run a package's tests with its own configuration, against what is installed."""
    execute("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "tests", site=site, cwd=source)


@pytest.fixture(scope="module")
def example_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dsdmae-example installed."""
    site = tmp_path_factory.mktemp("site")
    install(EXAMPLE, site, tmp_path_factory.mktemp("wheels"))
    return site


def test_the_example_is_listed(example_site: Path, tmp_path: Path) -> None:
    done = execute("-m", "dsdmae_cli", "plugins", "--json", site=example_site, cwd=tmp_path)
    listing = json.loads(done.stdout)
    ours = {(p["kind"], p["name"], p["version"]) for p in listing["plugins"] if p["distribution"] == "dsdmae-example"}
    assert ours == {
        ("backbone", "example-mixer", "1.2.0"),
        ("dataset", "example-gratings", "1.2.0"),
        ("dataset", "example-table", "1.2.0"),
        ("method", "example-colour", "1.2.0"),
        ("probe", "example-ridge", "1.2.0"),
    }
    assert listing["broken"] == []
    assert done.stderr == ""


@pytest.mark.slow
def test_the_example_passes_its_own_tests(example_site: Path) -> None:
    run_own_tests(EXAMPLE, example_site)


@pytest.mark.slow
def test_the_example_pre_trains(example_site: Path, tmp_path: Path) -> None:
    words = "pretrain --dataset example-gratings --method example-colour --backbone example-mixer --epochs 1"
    more = "--batch-size 16 --device cpu --set data.num_images=64 --set method.loss=l1 --out run"
    execute("-m", "dsdmae_cli", *words.split(), *more.split(), site=example_site, cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["dataset"], result["method"], result["backbone"]) == (
        "example-gratings",
        "example-colour",
        "example-mixer",
    )
    assert result["steps"] == 4
    weights = load_file(tmp_path / "run" / "encoder.safetensors")
    assert weights["embed.weight"].shape == (96, 3, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [kind if kind == "method" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_a_new_package_passes_its_own_tests_once_installed(kind: Kind, tmp_path: Path) -> None:
    folder = scaffold.create(kind, f"fresh-{kind}", tmp_path)[0]
    site = tmp_path / "site"
    site.mkdir()
    install(folder, site, tmp_path / "wheels")
    run_own_tests(folder, site)


@pytest.mark.slow
def test_the_plugin_for_the_datasets_library_passes_its_own_tests(tmp_path: Path) -> None:
    """A distribution of its own that is kept here; it is installed as any other."""
    site = tmp_path / "site"
    site.mkdir()
    install(HF, site, tmp_path / "wheels")
    run_own_tests(HF, site)
    done = execute("-m", "dsdmae_cli", "plugins", "--json", site=site, cwd=tmp_path)
    assert ("dsdmae-hf", "hf") in {(p["distribution"], p["name"]) for p in json.loads(done.stdout)["plugins"]}


def test_the_guide_quotes_the_example() -> None:
    sources = [path.read_text() for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")]
    quotes = re.findall(r"^```(?:python|toml)\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(quotes) >= 7
    for quote in quotes:
        assert any(quote in source for source in sources), quote
