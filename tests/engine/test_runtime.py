"""What the hardware decides: device, precision, micro-batch and attention."""

from __future__ import annotations

import pytest
import torch
from helpers import settings
from toy import CPU

from dsdmae_cli import distributed, runtime
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import Runtime, choose_device, choose_micro_batch, choose_precision


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(SettingsError, match=r"train\.device = 'warp' is not a device; try auto, cpu"):
        choose_device("warp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    for wanted in ("cuda", "cuda:1", "mps", "xpu"):
        with pytest.raises(SettingsError, match=f"'{wanted}' is not on this machine; there is cpu"):
            choose_device(wanted)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(distributed, "launched_by_torchrun", lambda: True)
    assert choose_device("auto") == CPU
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert chosen[-1] == torch.device("cuda:0")
    with pytest.raises(SettingsError, match="'cuda:2' is not on this machine; there is cuda:0, cuda:1, cpu"):
        choose_device("cuda:2")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for hardware, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(runtime, "cpu_multiplies_bf16", lambda answer=hardware: answer)
        assert choose_precision("auto", CPU) == expected
    for hardware, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=hardware: answer)
        assert choose_precision("auto", cuda) == expected
    assert choose_precision("fp16", cuda) == "fp16"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(SettingsError, match=r"train\.precision = 'fp16' needs a CUDA device, this is cpu; use bf16"):
        choose_precision("fp16", CPU)


def test_micro_batches_fit_the_cache_and_divide_the_batch() -> None:
    assert choose_micro_batch("auto", 256, 256, 192, CPU) == 16  # ViT-T on CIFAR, as measured
    assert choose_micro_batch("auto", 24, 256, 192, CPU) == 8
    assert choose_micro_batch("auto", 7, 256, 192, CPU) == 1
    assert choose_micro_batch("auto", 8, 16, 32, CPU) == 8
    assert choose_micro_batch("auto", 256, 4096, 4096, CPU) == 1
    assert choose_micro_batch("auto", 2048, 256, 192, torch.device("cuda")) == 2048
    assert choose_micro_batch(100, 64, 16, 32, CPU) == 64
    assert choose_micro_batch(5, 64, 16, 32, CPU) == 5


def test_plain_attention_only_on_a_cpu_in_bf16() -> None:
    method = build_method(resolve(settings("digits").settings))
    flags = {name: part.fused_attn for name, part in method.named_modules() if hasattr(part, "fused_attn")}
    assert flags
    for precision in ("fp32", "bf16"):
        runtime.choose_attention(method, Runtime(CPU, precision, False, 8))
        now = {name: part.fused_attn for name, part in method.named_modules() if hasattr(part, "fused_attn")}
        assert now == (flags if precision == "fp32" else dict.fromkeys(flags, False))
