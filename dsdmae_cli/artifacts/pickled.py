"""Weights in torch's own file format, read without running anything that is in the file.

`torch.load` with weights_only=True rebuilds tensors and plain containers alone. What public checkpoints of the field
carry beside them (the options of the run, a NumPy score) is allowed by name; all else is refused in one line, since a
full unpickling runs whatever code a file brings. Safetensors files are read by checkpoint.py.
"""

from __future__ import annotations

import argparse
import errno
import pathlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import instead, require_file

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def read_pickled(path: Path) -> Any:
    """What torch.save wrote: tensors on the CPU in plain containers, mapped from the file where its format allows.

    Raises:
        CheckpointError: it cannot be read, is no such file, or holds objects that only a full unpickling would rebuild.
    """
    try:
        require_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped and _is_torchscript(path):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a file of weights; where you trust it, write its weights with"
                f" torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), 'weights.pth')"
            )
        with torch.serialization.safe_globals(_plain()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles that it goes on to refuse
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # what cannot be mapped, for it is too short
            raise CheckpointError(_explained(path, error)) from error
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
        raise CheckpointError(_explained(path, error)) from error


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _plain() -> list[Any]:
    """Classes that hold data and do nothing: a run's options, paths among them, and NumPy's numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)}
    return [
        argparse.Namespace,
        (pathlib.PurePosixPath, "pathlib.PosixPath"),
        (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
        np.dtype,
        *dtypes,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _explained(path: Path, error: Exception) -> str:
    found = _REFUSED.search(str(error))
    if found is not None:
        return (
            f"{path} holds more than weights ({found[1]}), and reading that would run code of the file; where you trust"
            f" it, write its weights alone: torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'],"
            " 'weights.pth'), with the key under which they stand"
        )
    # What the unpickler stumbled over says nothing to people, and torch's first line is advice to those who call it.
    return f"{path} is no readable file of weights: it is damaged, or was not written by torch.save{instead(path)}"
