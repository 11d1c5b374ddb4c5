"""The Hugging Face hub: weights that come from it, `hf:OWNER/NAME`, and folders that go there, by huggingface_hub.

Whose token it is and where it lies is that library's business: it is neither read nor shown here. No torch.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from dsdmae_cli.errors import CheckpointError, DsdmaeError, RunFailed, SettingsError
from dsdmae_cli.files import typed
from dsdmae_cli.report import say, without_password

PREFIX = "hf:"
_PATIENCE = 20  # seconds
# Why this machine does not keep what was fetched; errors of the network have numbers, too.
_NOT_KEPT = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EEXIST, errno.ENOENT,
}  # fmt: skip
_LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


def is_hub(text: str) -> bool:
    """Whether a SUBJECT is on the hub."""
    return text.startswith(PREFIX)


def repository(text: str) -> str:
    """OWNER/NAME of "hf:OWNER/NAME@REVISION"."""
    return text.removeprefix(PREFIX).partition("@")[0]


@lru_cache(maxsize=16)  # a command asks for its subject several times, and all of them mean the same weights
def fetched(text: str, names: tuple[str, ...]) -> Path:
    """The folder with the weights of hf:OWNER/NAME or hf:OWNER/NAME@REVISION, out of the hub's own cache, and that is
    said, where the hub cannot be reached or cannot serve (5xx, and 429: too many requests).

    Args:
        names: of files with weights; the first that is there is fetched.

    Raises:
        CheckpointError: there is no such repository, it holds none of them, or the hub cannot be reached.
        RunFailed: its cache cannot be written.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo, revision = repository(text), text.partition("@")[2] or None
    _check_name(repo, text, CheckpointError)
    with _told(text, CheckpointError):
        try:
            # Unlike the list of files alone this is asked once: who is offline need not wait for five tries.
            found = HfApi().model_info(repo, revision=revision, timeout=_PATIENCE)
            there = {file.rfilename for file in found.siblings or ()}
            wanted = next((name for name in names if name in there), None)
            if wanted is None:
                raise CheckpointError(f"{text} has no weights: it has neither {' nor '.join(names)}")
            with _quiet():
                patterns = [wanted, "config.json", "preprocessor_config.json"]
                return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
        except DsdmaeError:
            raise
        except Exception as error:
            if not _away(error):
                raise
            folder = _kept(repo, revision, names, error)
            say(f"dsdmae: warning: {text}: {_absence(error)}; going by what was fetched before ({folder})")
            return folder


def _kept(repo: str, revision: str | None, names: tuple[str, ...], why: Exception) -> Path:
    """What was fetched before; raises what kept it from being fetched now where there is nothing."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:
        raise why from None
    if not any((folder / name).is_file() for name in names):
        raise why
    return folder


def check_pushable(name: str) -> None:
    """See that a folder may be pushed there, before it is made.

    Raises:
        SettingsError: it is no OWNER/NAME, or nobody is logged in, or the token is refused or may only read.
        RunFailed: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    _check_name(name, f"--push {name}", SettingsError)
    if get_token() is None:
        raise SettingsError(f"--push {name} needs a token of the Hugging Face hub that may write; {_LOGIN}")
    with _told(f"--push {name}", RunFailed):
        who = HfApi().whoami()
    if _may_only_read(who):
        raise SettingsError(
            f"--push {name}: the token of {who.get('name')} may only read; {_LOGIN} to one that may write"
        )


def push(folder: Path, files: list[str], name: str, private: bool) -> str:
    """Upload files of a folder to a repository, which is made where there is none; its address.

    Raises:
        RunFailed: it cannot be done; the folder stays.
    """
    from huggingface_hub import HfApi

    with (
        _told(f"--push {name}", RunFailed, f"; {folder} is whole, and `hf upload {name} {typed(folder)}` tries again"),
        _quiet(),
    ):
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        # One that was there keeps what it is, and what others may read cannot be taken back.
        if private and api.repo_info(name).private is False:
            raise RunFailed(
                f"--private: {name} exists and everybody can read it, so that nothing was uploaded; make it private"
                f" there, or push to another name; {folder} is whole"
            )
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=files, commit_message="Weights exported by dsdmae"
        )
        return str(address)


def _check_name(name: str, text: str, kind: Callable[[str], DsdmaeError]) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        fine = name.count("/") == 1
    except HFValidationError:
        fine = False
    if not fine:
        raise kind(f"{text} names no repository of the Hugging Face hub; write OWNER/NAME, for example ada/my-encoder")


def _may_only_read(who: dict[str, Any]) -> bool:
    """Whether the hub says so of a token; of one whose rights it does not tell, pushing will."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") != "fineGrained":
        return bool(token.get("role") == "read")
    scoped = (token.get("fineGrained") or {}).get("scoped")
    return scoped is not None and not any("repo.write" in (one.get("permissions") or ()) for one in scoped)


def _status(error: Exception) -> int | None:
    """What the hub has answered; None where it has not."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _away(error: Exception) -> bool:
    """Whether the hub is at fault, or the way to it, and not what was asked for, or where it is kept."""
    status = _status(error)
    if _not_kept(error) is not None:
        return False
    return status is None or status >= 500 or status == 429


def _not_kept(error: BaseException | None) -> OSError | None:
    """Why this machine cannot write what came, behind what the library makes of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NOT_KEPT:
            return error
        error = error.__cause__ or error.__context__
    return None


def _absence(error: Exception) -> str:
    """The same in words."""
    from huggingface_hub import constants

    status = _status(error)
    said = f"answered {status}" if status else f"cannot be reached ({type(error).__name__})"
    return f"{without_password(constants.ENDPOINT)} {said}"


@contextmanager
def _told(what: str, kind: Callable[[str], DsdmaeError], more: str = "") -> Iterator[None]:
    """Errors of the library, of which there are many, as one line of ours."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except DsdmaeError:
        raise
    except Exception as error:  # it is a library of several generations, over HTTP libraries of two
        if (refused := _not_kept(error)) is not None:
            place = refused.filename or constants.HF_HUB_CACHE
            raise RunFailed(
                f"{what}: cannot write {place}: {refused.strerror or refused}; make room, or name another folder for"
                " the hub's cache by HF_HOME, then give the same command again"
            ) from error
        status = _status(error)
        at = without_password(constants.ENDPOINT)
        if isinstance(error, GatedRepoError):
            why = f"its owner asks for an agreement, which is given on its page; then {_LOGIN}"
        elif isinstance(error, RevisionNotFoundError):
            why = "there is no such revision; name a branch, a tag or a commit after the @"
        elif isinstance(error, RepositoryNotFoundError):
            why = f"no such repository on {at}, or a private one; check its name, or {_LOGIN}"
        elif status in (401, 403):
            why = f"{at} refuses this token ({status}); {_LOGIN} with one that may write"
        elif status is not None:
            why = f"{_absence(error)}{more}"
        else:
            why = f"{_absence(error)}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE{more}"
        raise kind(f"{what}: {why}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Bars for a person at a terminal alone."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
