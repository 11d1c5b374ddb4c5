"""What the program does not load: nothing heavy for any help, and no network library for the denoiser that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dsdmae_cli.cli import COMMANDS, load

# Longer to import than help may take altogether.
_HEAVY = {
    "torch", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "optuna", "huggingface_hub", "numpy", "PIL",
    "jaxtyping", "safetensors", "psutil",
}  # fmt: skip
# What a U-Net needs none of; timm brings torchvision and the compiler with it.
_NOT_FOR_A_UNET = {
    "timm", "torchvision", "sklearn", "scipy", "matplotlib", "optuna", "huggingface_hub", "sympy", "triton",
    "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.fsdp", "torch.utils.flop_counter",
}  # fmt: skip

# Runs each command line in one process and says, after each, what has been loaded by then.
_PROGRAM = """
import contextlib, io, json, sys
from dsdmae_cli.__main__ import main

lines, sys.argv = json.loads(sys.argv[1]), ["dsdmae"]
loaded = []
for words in lines:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(words)
        except SystemExit as leaving:
            code = leaving.code
    loaded.append((code, out.getvalue(), sorted(sys.modules)))
print(json.dumps(loaded))
"""


def loaded_by(lines: list[list[str]]) -> list[tuple[int, str, set[str]]]:
    """Exit code, output and modules loaded so far of each command line, one after the other in a fresh Python."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(lines)], capture_output=True, text=True, check=True
    )
    return [(code, out, set(modules)) for code, out, modules in json.loads(done.stdout)]


def every_command() -> list[tuple[str, ...]]:
    """The words of each command, groups and the program itself among them; a command is loaded only when called."""
    found: list[tuple[str, ...]] = [()]
    for entry in COMMANDS:
        below = getattr(load(entry.name), "commands", {})
        found += [(entry.name,), *((entry.name, own) for own in below)]
    return found


def test_no_help_loads_anything_heavy() -> None:
    commands = every_command()
    assert {(), ("pretrain",), ("denoise",), ("config", "show")} <= set(commands)
    found = loaded_by([[*words, "--help"] for words in commands])
    for words, (code, out, modules) in zip(commands, found, strict=True):
        assert code == 0
        assert f"Usage: {' '.join(['dsdmae', *words])}" in out
        assert not modules & _HEAVY, f"dsdmae {' '.join(words)} --help loads {sorted(modules & _HEAVY)}"


def test_the_denoiser_that_ships_loads_torch_and_no_library_of_networks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [(code, out, modules)] = loaded_by([["denoise", str(tmp_path / "a.png"), "--device", "cpu"]])
    assert code == 0
    assert out.startswith(str(tmp_path / "a.denoised.png"))
    assert "torch" in modules
    assert sorted(modules & _NOT_FOR_A_UNET) == []
