"""What run.json says of the machine and the program."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsdmae_cli.report import without_password

_PACKAGES = (
    "dsdmae",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "scikit-learn",
)


def environment() -> dict[str, Any]:
    """What run.json says of the machine and the program, torch's view of the hardware excepted."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": [without_password(word) for word in sys.argv],
        "cwd": _here(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in _PACKAGES},
        "cpu_count": os.cpu_count(),
        "git": _git_state(Path(__file__).parent),
    }


def _here() -> str | None:
    """The directory that the process is in; None where it is gone."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the program's own source, None when it was installed from a wheel."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "runs/rundir.py") != "runs/rundir.py":
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
