"""Weights to the Hugging Face hub and from it, against a server on 127.0.0.1 that keeps what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from helpers import assignments, cli, digit_folder, one_line, train, words

from dsdmae_cli.artifacts import hub
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.errors import CheckpointError, SettingsError

TOKEN = "hf_" + "s3cret" * 5
COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """The few answers that huggingface_hub asks for; repositories are dictionaries of files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.public: set[str] = set()  # repositories that everybody can read
        self.ill = 0  # what every question is answered by, where that is not 0
        self.token: dict[str, Any] = {"role": "write"}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if self.server.ill:
            self.answer({"error": "later"}, self.server.ill)
        elif path == "/api/whoami-v2":
            good = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            who = {"type": "user", "name": "ada", "orgs": [], "auth": {"accessToken": self.server.token}}
            self.answer(who if good else {"error": "no"}, 200 if good else 401)
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/.*)?", path):
            if (files := self.server.repos.get(found[1])) is None:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer(
                    {"id": found[1], "sha": COMMIT, "siblings": siblings, "private": found[1] not in self.server.public}
                )
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/tree/.*", path):
            files = self.server.repos[found[1]]
            self.answer(
                [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                 for name, content in files.items()]
            )  # fmt: skip
        elif found := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repos[found[1]][found[2]]
            self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer({"error": path}, 500)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked.get('organization', 'ada')}/{asked['name']}"
            self.server.made.append(asked)
            self.server.repos.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(sent)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.match(r"/api/models/([\w-]+/[\w-]+)/commit/", self.path):
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repos[found[1]][line["value"]["path"]] = content
            self.answer({"commitUrl": f"{self.server.address}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT,
                         "success": True})  # fmt: skip
        else:
            self.answer({"error": self.path}, 500)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, with nothing of this user's own: no token, no cache."""
    from huggingface_hub import constants

    with Hub() as hub_server:
        Thread(target=hub_server.serve_forever, daemon=True).start()
        # The library reads the environment when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", hub_server.address)
        template = f"{hub_server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.fetched.cache_clear()
        yield hub_server
        hub_server.shutdown()
    hub.fetched.cache_clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(digit_folder(folder / "digits"), folder / "mine", "train.epochs=1", "backbone.depth=1")
    return folder / "mine"


def test_what_is_private_is_not_pushed_where_everybody_reads(
    server: Hub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repos["ada/open"] = {}
    server.public.add("ada/open")
    words = ("export", run, "--to", "hf", "--out", tmp_path / "out", "--push", "ada/open", "--private")
    code, _, err = cli(capfd, *words)
    assert code == 1
    assert "--private: ada/open exists and everybody can read it" in err
    assert server.repos["ada/open"] == {}
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_there_and_back(
    server: Hub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "out"
    code, said, err = cli(
        capfd, "export", run, "--to", "hf", "--out", out, "--push", "ada/digits", "--private", "--json"
    )
    assert code == 0, err
    assert TOKEN not in said + err
    assert json.loads(said)["pushed_to"].endswith("/ada/digits")
    [made] = server.made
    assert (made["name"], made.get("private", made.get("visibility") == "private")) == ("digits", True)
    sent = server.repos["ada/digits"]
    assert set(json.loads(said)["files"]) == set(sent) == {file.name for file in out.iterdir()}
    assert all((out / name).read_bytes() == content for name, content in sent.items())
    assert b'timm.create_model("hf-hub:ada/digits", pretrained=True)' in sent["README.md"]
    # Back, as a SUBJECT, without a token and with a revision.
    monkeypatch.delenv("HF_TOKEN")
    subject = parse("hf:ada/digits@main")
    assert (subject.kind, subject.name) == ("weights", "hf:ada/digits@main")
    back, own = (opened(place) for place in ("hf:ada/digits", str(run)))
    assert back.described()["subject"] == "hf:ada/digits"
    pairs = zip(back.encoder.state_dict().values(), own.encoder.state_dict().values(), strict=True)
    assert all(bool((one == other).all()) for one, other in pairs)


def opened(place: str) -> Opened:
    return open_encoder(place, None, backbone=None, image_size=None, seed=0)


def test_pretraining_begins_with_it(server: Hub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.repos["ada/mine"] = {"encoder.safetensors": (run / "encoder.safetensors").read_bytes(), "notes": b"no"}
    chosen = words(assignments(run.parent / "digits", "train.epochs=1", "backbone.depth=1"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--from", "hf:ada/mine", "--out", tmp_path / "more")
    assert code == 0, err
    assert "begins with the weights of hf:ada/mine" in err
    assert not list((tmp_path / "hub").rglob("notes"))


def test_what_was_fetched_serves_when_the_hub_is_away(server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server.repos["ada/mine"] = {"encoder.safetensors": (run / "encoder.safetensors").read_bytes()}
    first = parse("hf:ada/mine").weights
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.fetched.cache_clear()
    assert parse("hf:ada/mine").weights == first
    with pytest.raises(CheckpointError, match=r"hf:ada/other: http://127\.0\.0\.1:9 cannot be reached"):
        parse("hf:ada/other")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_was_fetched_serves_when_the_hub_is_ill(
    status: int, server: Hub, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.repos["ada/mine"] = {"encoder.safetensors": (run / "encoder.safetensors").read_bytes()}
    first = parse("hf:ada/mine").weights
    assert capfd.readouterr().err == ""
    server.ill = status
    hub.fetched.cache_clear()
    assert parse("hf:ada/mine").weights == first
    [line] = capfd.readouterr().err.splitlines()
    said = f"dsdmae: warning: hf:ada/mine: {server.address} answered {status}; going by what was fetched before ("
    assert line.startswith(said)
    with pytest.raises(CheckpointError, match=f"hf:ada/other: {server.address} answered {status}"):
        parse("hf:ada/other")


@pytest.mark.faults
@pytest.mark.parametrize("why", ["File too large", "Not a directory"])
def test_a_cache_that_cannot_be_written_is_no_hub_that_is_away(
    why: str, server: Hub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource")
    server.repos["ada/mine"] = {"encoder.safetensors": (run / "encoder.safetensors").read_bytes()}
    line = ("export", "hf:ada/mine", "--to", "timm", "--out", tmp_path / "out")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if why == "Not a directory":
        (tmp_path / "hub").write_text("a file")
    else:  # as a full disk: the file's beginning can be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        code, _, err = cli(capfd, *line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert f"hf:ada/mine: cannot write {tmp_path / 'hub'}" in one_line(err)
    assert f": {why}; make room, or name another folder" in err
    assert not (tmp_path / "out").exists()
    if why == "Not a directory":
        (tmp_path / "hub").unlink()
    assert cli(capfd, *line)[0] == 0


READ = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [{"permissions": ["repo.content.read"]}]}}
WRITE = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [{"permissions": ["repo.write"]}]}}


@pytest.mark.parametrize(
    ("token", "fine"), [({"role": "read"}, False), (READ, False), (WRITE, True), ({"role": "write"}, True), ({}, True)]
)
def test_a_token_that_may_only_read_is_told_before_anything_is_written(
    token: dict[str, Any], fine: bool, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.token = token
    if fine:
        hub.check_pushable("ada/digits")
        return
    with pytest.raises(SettingsError, match="the token of ada may only read; log in by `hf auth login`"):
        hub.check_pushable("ada/digits")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hf:nothing", "write OWNER/NAME"),
        ("hf:ada/none", "no such repository on http"),
        ("hf:ada/words", "has no weights"),
    ],
)
def test_what_is_not_there(server: Hub, text: str, why: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server.repos["ada/words"] = {"README.md": b"words"}
    code, out, err = cli(capfd, "export", text, "--to", "timm", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert why in one_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("token", "flags", "why"),
    [
        (None, ("--to", "hf", "--push", "ada/digits"), "needs a token"),
        ("hf_wrong", ("--to", "hf", "--push", "ada/digits"), "refuses this token (401)"),
        (TOKEN, ("--to", "hf", "--push", "digits"), "write OWNER/NAME"),
        (TOKEN, ("--to", "timm", "--push", "ada/digits"), "is for --to hf"),
        (TOKEN, ("--to", "hf", "--private"), "add that, or leave it out"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_written(
    server: Hub, token: str | None, flags: tuple[str, ...], why: str, run: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    code, _, err = cli(capfd, "export", run, *flags, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert why in one_line(err)
    assert "hf_wrong" not in err
    assert TOKEN not in err
    assert not (tmp_path / "out").exists()
    assert server.made == []
