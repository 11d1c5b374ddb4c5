"""Plugins: found, looked up, listed and scaffolded. Built and installed packages: test_third_party.py."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dsdmae_cli import __version__, scaffold
from dsdmae_cli.cli import plugins as command
from dsdmae_cli.errors import PluginError
from dsdmae_cli.plugins import KINDS, SPECS, BrokenPlugin, Kind, Plugin, argument_of, discover, find, load

Install = Callable[..., None]

OURS: dict[Kind, set[str]] = {
    "backbone": {"vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge", "vit-giant", "timm"},
    "dataset": {"cifar10", "cifar100", "stl10", "imagenet", "digits", "folder", "idx"},
    "method": {"dsdmae", "mae"},
    "tracker": {"mlflow", "tensorboard", "trackio", "wandb"},
    "probe": {"linear", "knn", "logistic", "attentive", "ep"},
}
GOOD_METHOD = """
from dsdmae_cli.plugins import MethodSpec
SPEC = MethodSpec(summary="a method in [brackets]", build="good_plugin:build")
def build(settings, backbone):
    return "built"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution of one entry point and one module, as pip lays it out."""

    def install(distribution: str, kind: Kind, name: str, value: str, source: str = "", version: str = "1.0") -> None:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[dsdmae.{kind}s]\n{name} = {value}\n")
        module = value.partition(":")[0]
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def names(kind: Kind) -> set[str]:
    return {plugin.name for plugin in discover(kind) if isinstance(plugin, Plugin)}


def broken(kind: Kind, name: str) -> BrokenPlugin:
    [plugin] = [p for p in discover(kind) if p.name == name]
    assert isinstance(plugin, BrokenPlugin)
    return plugin


def run(*words: str) -> Result:
    return CliRunner().invoke(command.app, list(words))


# Discovery


def test_what_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "late" not in {found.name for found in discover("method")}
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dsdmae.methods]\nlate = late:SPEC\n")
    assert "late" in {found.name for found in discover("method")}


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_plugins_are_found_as_anyones(kind: Kind) -> None:
    found = {plugin.name: plugin for plugin in discover(kind)}
    assert OURS[kind] <= set(found)
    for name in OURS[kind]:
        plugin = found[name]
        assert isinstance(plugin, Plugin), plugin
        assert (plugin.distribution, plugin.version) == ("dsdmae", __version__)
        assert isinstance(plugin.spec, SPECS[kind])
        assert plugin.spec.summary


@pytest.mark.parametrize("kind", KINDS)
def test_what_our_specs_name_can_be_imported(kind: Kind) -> None:
    for plugin in discover(kind):
        if plugin.name in OURS[kind]:
            assert isinstance(plugin, Plugin)
            assert callable(load(plugin.spec.build))


def test_listing_and_settings_need_no_torch() -> None:
    code = """
import sys
from dsdmae_cli.cli.plugins import app
from dsdmae_cli import plugins, scaffold
for kind in plugins.KINDS:
    for plugin in plugins.discover(kind):
        getattr(plugin.spec, "settings", None)
sys.exit(str({"torch", "timm", "torchvision", "sklearn", "matplotlib"} & set(sys.modules) or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_plugin_on_the_path_is_found_and_loads(install: Install) -> None:
    install("dsdmae-good", "method", "good", "good_plugin:SPEC", GOOD_METHOD, version="3.1")
    plugin = find("method", "good")
    assert (plugin.distribution, plugin.version) == ("dsdmae-good", "3.1")
    assert load(plugin.spec.build)(None, None) == "built"
    assert "good" in names("method")
    assert "good" not in names("backbone") | names("dataset")


# Look-up


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [("backbone", "vit-tinny", "vit-tiny"), ("dataset", "cifar-10", "cifar10"), ("probe", "lineal", "linear")],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_the_rest(kind: Kind, wrong: str, right: str) -> None:
    with pytest.raises(PluginError) as caught:
        find(kind, wrong)
    message = str(caught.value)
    assert f"{kind} '{wrong}' is not installed (did you mean {right}?)" in message
    assert all(name in message for name in OURS[kind])


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(PluginError, match=r"method 'qqq' is not installed; there is .*dsdmae"):
        find("method", "qqq")


def test_an_argument_is_demanded_where_one_is_needed() -> None:
    for name in ("folder", "folder:"):
        with pytest.raises(PluginError, match=r"dataset 'folder' needs an argument: folder:PATH"):
            find("dataset", name)


def test_an_argument_is_refused_where_none_is_taken() -> None:
    with pytest.raises(PluginError, match=r"takes no argument, got 'vit-tiny:x'; write vit-tiny"):
        find("backbone", "vit-tiny:x")


def test_an_argument_may_hold_colons() -> None:
    assert find("dataset", r"folder:C:\images").name == "folder"
    assert argument_of(r"folder:C:\images") == r"C:\images"


@pytest.mark.parametrize("reference", ["no_such_module:build", "dsdmae_cli.errors:no_such_attribute"])
def test_a_reference_to_nothing_is_a_plugin_error(reference: str) -> None:
    with pytest.raises(PluginError, match=f"a plugin names '{reference}', which cannot be imported"):
        load(reference)


# Conflicts and broken plugins


def test_a_name_that_two_distributions_claim_belongs_to_neither(install: Install) -> None:
    install("dsdmae-good", "method", "good", "good_plugin:SPEC", GOOD_METHOD)
    install("dsdmae-rival", "method", "good", "good_plugin:SPEC", GOOD_METHOD, version="2.0")
    with pytest.raises(PluginError, match=r"claimed by dsdmae-good 1\.0 and dsdmae-rival 2\.0; uninstall"):
        find("method", "good")
    assert {p.distribution for p in discover("method") if p.name == "good"} == {"dsdmae-good", "dsdmae-rival"}
    assert find("method", "dsdmae").distribution == "dsdmae"


def test_a_rival_to_a_plugin_of_ours_is_named(install: Install) -> None:
    install("dsdmae-good", "method", "mae", "good_plugin:SPEC", GOOD_METHOD)
    with pytest.raises(PluginError, match=rf"claimed by dsdmae {__version__} and dsdmae-good 1\.0"):
        find("method", "mae")


BROKEN = {
    "a missing dependency": (
        "import no_such_library",
        "ModuleNotFoundError: No module named 'no_such_library'",
    ),
    "a fault of its own": ("1 / 0", "ZeroDivisionError: division by zero"),
    "a message of several lines": (r"raise ValueError('one\ntwo')", "ValueError: one two"),
    "a typing error": ("def (", "SyntaxError: "),
    "no such attribute": ("", "AttributeError: "),
    "the wrong type": ("SPEC = 3", "bad_plugin:SPEC is a int, not a BackboneSpec"),
    "the wrong kind": (GOOD_METHOD, "bad_plugin:SPEC is a MethodSpec, not a BackboneSpec"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_and_harms_nobody_else(install: Install, source: str, reason: str) -> None:
    before = names("backbone")
    install("dsdmae-bad", "backbone", "bad", "bad_plugin:SPEC", source, version="0.3")
    plugin = broken("backbone", "bad")
    assert plugin.reason.startswith(reason)
    assert "\n" not in plugin.reason
    assert (plugin.distribution, plugin.version) == ("dsdmae-bad", "0.3")
    assert names("backbone") == before
    with pytest.raises(PluginError, match=r"backbone 'bad' of dsdmae-bad 0\.3 is broken: "):
        find("backbone", "bad")
    assert find("backbone", "vit-tiny").name == "vit-tiny"


def test_a_broken_plugin_that_nobody_asks_for_is_never_imported(install: Install, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    install("dsdmae-bad", "method", "bad", "bad_plugin:SPEC", f"open({str(touched)!r}, 'w').close()")
    find("method", "dsdmae")
    with pytest.raises(PluginError):
        find("method", "unknown")
    assert not touched.exists()


# dsdmae plugins


def test_the_plain_listing_is_aligned_and_complete() -> None:
    result = run()
    header, *rows = result.stdout.splitlines()
    assert result.exit_code == 0
    assert header.split() == ["name", "kind", "distribution", "version", "summary"]
    column = header.index("kind")
    assert {row[column:].split()[0] for row in rows} == set(KINDS)
    assert {row.split()[0] for row in rows} >= {"folder:PATH", "timm:NAME", "vit-tiny", "dsdmae"}


def test_json_gives_one_object(install: Install) -> None:
    install("dsdmae-good", "method", "good", "good_plugin:SPEC", GOOD_METHOD)
    install("dsdmae-bad", "dataset", "bad", "bad_plugin:SPEC", "1 / 0")
    result = run("--json")
    listing: dict[str, list[dict[str, Any]]] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {
        "name": "good",
        "kind": "method",
        "distribution": "dsdmae-good",
        "version": "1.0",
        "argument": None,
        "summary": "a method in [brackets]",
    } in listing["plugins"]
    assert {
        "name": "bad",
        "kind": "dataset",
        "distribution": "dsdmae-bad",
        "version": "1.0",
        "reason": "ZeroDivisionError: division by zero",
    } in listing["broken"]
    assert {p["name"]: p["argument"] for p in listing["plugins"]}["folder"] == "PATH"


def test_a_broken_plugin_stands_in_the_table_and_in_one_line_on_stderr(install: Install) -> None:
    install("dsdmae-bad", "dataset", "bad", "bad_plugin:SPEC", "1 / 0")
    result = run()
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if line.startswith("bad ")]
    assert row.endswith("broken: ZeroDivisionError: division by zero")
    assert (
        "dsdmae: warning: dataset 'bad' of dsdmae-bad 1.0 is broken: ZeroDivisionError: division by zero"
        in result.stderr.splitlines()
    )


def test_a_terminal_gets_a_table_whose_brackets_survive(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("dsdmae-good", "method", "good", "good_plugin:SPEC", GOOD_METHOD)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command.app(args=[], standalone_mode=False)
    assert "a method in [brackets]" in capsys.readouterr().out


# dsdmae plugins new


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_a_whole_package(kind: Kind, tmp_path: Path) -> None:
    result = run("new", kind, "fresh-one", "--into", str(tmp_path / "made" / "here"))
    folder = tmp_path / "made" / "here" / "dsdmae-fresh-one"
    assert result.exit_code == 0
    assert result.stdout == f"{folder}\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "pyproject.toml",
        "README.md",
        "dsdmae_fresh_one/__init__.py",
        "tests/test_plugin.py",
    } < written
    declared = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    [module] = {value.partition(":")[0] for value in declared[f"dsdmae.{kind}s"].values()}
    assert f"{module.replace('.', '/')}.py" in written
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    assert not any("$" in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_create_returns_the_folder_and_its_files(tmp_path: Path) -> None:
    folder, *written = scaffold.create("dataset", "fresh", tmp_path)
    assert folder == tmp_path / "dsdmae-fresh"
    assert written == sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name", ["", "My-net", "my_net", "-net", "net-", "my--net", "1net", "../net", "a b", "class", "é"]
)
def test_new_refuses_what_cannot_be_a_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="cannot be a plugin's name; take lower-case letters"):
        scaffold.create("method", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("method", "mae", rf"method 'mae' exists already, installed by dsdmae {__version__}"),
        ("backbone", "cli", "a Python package dsdmae_cli exists already"),
        ("backbone", "builtin", "a Python package dsdmae_builtin exists already"),
    ],
)
def test_new_refuses_a_name_that_is_taken(kind: Kind, name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=reason):
        scaffold.create(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_leaves_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "dsdmae-fresh").mkdir()
    with pytest.raises(PluginError, match=r"dsdmae-fresh exists already"):
        scaffold.create("method", "fresh", tmp_path)
    assert list((tmp_path / "dsdmae-fresh").iterdir()) == []


def test_new_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match=r"cannot write .*dsdmae-fresh: "):
        scaffold.create("method", "fresh", tmp_path / "file")


def test_new_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = Path.write_text, iter(range(3))

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        if next(count, None) is None:
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(PluginError, match="No space left on device"):
        scaffold.create("method", "fresh", tmp_path)
    assert list(tmp_path.iterdir()) == []
