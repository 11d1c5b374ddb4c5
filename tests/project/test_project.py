"""What strangers meet: the page on a package index, ways to contribute, declared dependencies, missing data."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dsdmae_cli import scaffold

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
REPOSITORY = "https://example.org/someone/dsdmae"
PAPER = "https://doi.org/10.5815/ijigsp.2023.05.03"
_TARGET = re.compile(r"\]\(([^)\s]+)\)")


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DSDMAE_", "PYTEST_"))}
    return subprocess.run(command, cwd=cwd, env=kept | environ, capture_output=True, text=True, timeout=120)


def metadata(folder: Path, repository: str) -> subprocess.CompletedProcess[str]:
    """What a wheel would say of the project if a maintainer had filled in this address."""
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "dsdmae_cli").mkdir()
    shutil.copy(ROOT / "dsdmae_cli" / "__init__.py", folder / "dsdmae_cli")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    filled, count = re.subn(r'(?m)^repository = ".*"$', f'repository = "{repository}"', settings)
    assert count == 1, "the repository's address stands in one place"
    (folder / "pyproject.toml").write_text(filled, encoding="utf-8")
    return run(sys.executable, "-m", "hatchling", "metadata", cwd=folder)


# -- the page on a package index


def test_the_page_without_an_address_has_no_link_that_leads_nowhere(tmp_path: Path) -> None:
    done = metadata(tmp_path, "")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["urls"] == {"Paper": PAPER}
    text = found["readme"]["text"]
    assert found["readme"]["content-type"] == "text/markdown"
    assert [target for target in _TARGET.findall(text) if not target.startswith("https://")] == []
    assert "![" not in text
    assert "(docs/datasets.md)." in text, "a link becomes its text"
    assert "noise of another level" not in text, "a caption goes with its picture"
    # All that is neither picture nor caption is still there.
    headings = re.findall(r"(?m)^#+ .*$", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert re.findall(r"(?m)^#+ .*$", text) == headings


def test_the_page_with_an_address_has_all_pictures_and_links_below_it(tmp_path: Path) -> None:
    done = metadata(tmp_path, REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["urls"]["Paper"] == PAPER
    assert found["urls"]["Repository"] == REPOSITORY
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    expected = re.sub(r"(!\[[^\]]*\])\((docs/)", rf"\1({REPOSITORY}/raw/HEAD/\2", page)
    expected = re.sub(r"\]\((docs/|[A-Z]+\.(?:md|cff)\))", rf"]({REPOSITORY}/blob/HEAD/\1", expected)
    assert found["readme"]["text"] == expected
    below = [*found["urls"].values(), *_TARGET.findall(expected)]
    paths = [url.split("/HEAD/")[1] for url in below if "/HEAD/" in url]
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("repository", ["example.org/someone/dsdmae", "https://example.org/", f"{REPOSITORY}/", "TODO"])
def test_an_address_that_is_none_is_refused(repository: str, tmp_path: Path) -> None:
    done = metadata(tmp_path, repository)
    assert done.returncode != 0
    assert f"repository is '{repository}': give an address like" in done.stderr


def test_no_address_of_the_project_is_invented() -> None:
    """Other projects are linked where their methods are documented; of this one there is no address but the paper's."""
    tracked = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    pages = [name for name in tracked if not name.startswith("docs/") and name != "tests/project/test_project.py"]
    assert "README.md" in pages
    assert ".github/workflows/ci.yml" in pages
    texts = {name: (ROOT / name).read_bytes().decode("utf-8", errors="ignore") for name in pages}
    forge = re.compile(r"(?:github|gitlab|bitbucket|codeberg)\.(?:com|org)[/:]\w+|[\w.+-]+@[\w-]+\.(?:com|org|net)\b")
    # Authors' code that a method or a table is held against, and the line that a pointer of Git LFS begins with.
    allowed = {"github.com/facebookresearch", "github.com/microsoft", "github.com/spec"}
    found = {name: hits for name, text in texts.items() if (hits := set(forge.findall(text)) - allowed)}
    assert found == {}


# -- ways to contribute


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_a_contributor_calls(workflow: Path) -> None:
    called = commands(workflow)
    ours = {word for command in called for word in command.split() if word.startswith(".ci/")}
    assert ".ci/site.py" in ours if workflow.name == "site.yml" else ".ci/run" in ours
    for script in ours:
        assert os.access(ROOT / script, os.X_OK), script


def test_the_matrix_is_the_pythons_that_the_project_promises() -> None:
    versions = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if ":: Python :: 3." in c]
    assert versions == ["3.11", "3.12", "3.13"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert ["3.11", *jobs["other-pythons"]["strategy"]["matrix"]["python"]] == versions
    # The newest and the oldest in .ci/run, those between in .ci/long.
    assert ".ci/light 3.13;" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert ".ci/light 3.11 --resolution lowest-direct" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert ".ci/light 3.12;" in (ROOT / ".ci/long").read_text(encoding="utf-8")
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    assert all(allowed.contains(f"{version}.0") for version in versions)
    assert not allowed.contains("3.14.0")
    stated = "Python 3.11, 3.12 or 3.13 (any patch release)"
    assert stated in (ROOT / "README.md").read_text(encoding="utf-8")


def test_hooks_run_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    steps = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for hook in hooks:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert command in steps, hook["id"]
    assert len(hooks) == 4


@pytest.mark.parametrize("form", [form for form in FORMS if form.stem != "config"], ids=lambda path: path.name)
def test_issue_forms_have_what_a_form_needs(form: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"]
    assert content["description"]
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    for field in content["body"]:
        assert field["type"] in {"input", "textarea", "markdown", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]


def test_a_bug_report_asks_for_what_a_run_is_repeated_from() -> None:
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    for wanted in ("dsdmae --version", "settings.toml", "run.json"):
        assert wanted in text
    assert ".ci/run" in (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:dsdmae_cli|plugins|tests|docs|\.ci|\.github)/[\w./-]*)`", text))
    named |= {word for command in re.findall(r"`pytest ([^`]+)`", text) for word in command.split() if "/" in word}
    assert len(named) >= 8
    missing = {path for path in named if not (ROOT / path.replace("/NAME.py", "")).exists()}
    assert missing == set()
    groups = set(re.findall(r"`(dsdmae\.\w+)`", text))
    assert groups == {"dsdmae.probes", "dsdmae.trackers"}
    assert groups <= set(PROJECT["project"]["entry-points"])


def test_testing_has_what_contributing_names() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    testing = import_module("dsdmae_cli.testing")
    checks = set(re.findall(r"\bcheck_\w+", text))
    assert checks == {"check_method", "check_dataset", "check_backbone", "check_probe", "check_tracker"}
    assert [name for name in sorted(checks) if not callable(getattr(testing, name, None))] == []


@pytest.mark.parametrize(("kind", "second"), [("method", "method.py"), ("dataset", "images.py")])
def test_a_new_package_is_two_files(kind: Any, second: str, tmp_path: Path) -> None:
    folder, *_ = scaffold.create(kind, "some-name", tmp_path)
    [package] = folder.glob("dsdmae_*")
    assert {file.name for file in package.iterdir()} - {"__init__.py"} == {"spec.py", second}


# -- what is declared


def imports(package: Path) -> set[str]:
    found: set[str] = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"dsdmae_cli", "dsdmae_builtin"}


def test_every_import_is_declared() -> None:
    project = PROJECT["project"]
    extras = [
        line
        for name in ("heif", "onnx", "parquet", "tensorboard", "tiff")
        for line in project["optional-dependencies"][name]
    ]
    declared = {Requirement(line).name.lower().replace("_", "-") for line in [*project["dependencies"], *extras]}
    brought = packages_distributions()
    for package in ("dsdmae_cli", "plugins/dsdmae_builtin"):
        for name in sorted(imports(ROOT / package)):
            by = {distribution.lower().replace("_", "-") for distribution in brought[name]}
            assert by & declared, f"{package} imports {name} of {by}, which pyproject.toml does not declare"


# -- data that cannot be shared

_NEEDS_DATA = "def test_it(test_data):\n    assert (test_data / 'photos.tar').is_file()\n"


def outcome(folder: Path, **environ: str) -> str:
    (folder / "test_it.py").write_text(_NEEDS_DATA)
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), str(ROOT / "plugins")])
    options = ("-p", "conftest", "-p", "no:cacheprovider", "-rs", "--no-fold-skipped", "--rootdir", str(folder))
    done = run(sys.executable, "-m", "pytest", *options, "test_it.py", cwd=folder, PYTHONPATH=paths, **environ)
    return done.stdout


@pytest.mark.parametrize("ci", ["", "true"])
def test_without_data_a_test_is_skipped_and_named(tmp_path: Path, ci: str) -> None:
    said = outcome(tmp_path, CI=ci)
    assert "1 skipped" in said
    assert "SKIPPED test_it.py::test_it - " in said
    assert "DSDMAE_TEST_DATA is not set" in said


def test_data_that_is_named_and_missing_fails(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10.tar.xz").touch()
    said = outcome(tmp_path, DSDMAE_TEST_DATA=str(tmp_path / "data"))
    assert "1 error" in said
    assert "lacks photos.tar and" in said
    for name in ("photos.tar", "kodak24.tar", "real-noise.tar", "camvid.tar"):
        (tmp_path / "data" / name).touch()
    assert "1 passed" in outcome(tmp_path, DSDMAE_TEST_DATA=str(tmp_path / "data"))
