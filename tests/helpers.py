"""What several test files share: tiny settings, a folder of real digits, runs in this process and in others."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from dsdmae_cli import plugins
from dsdmae_cli.__main__ import main
from dsdmae_cli.checkpoint import DIGEST
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.presets import presets_by_kind
from dsdmae_cli.config.schema import PRETRAIN, Loaded, Schema
from dsdmae_cli.recipes.pretrain import pretrain

# One block of width 32 on 16 tokens, on this machine's CPU and in float32 alike everywhere.
_SMALL = (
    "data.image_size=16",
    "optim.lr=1e-3",
    "optim.warmup_epochs=0.5",
    "train.device=cpu",
    "train.precision=fp32",
    "train.epochs=2",
    "train.batch_size=8",
    "train.log_every=1",
    "train.knn_every=none",
)
_VIT = ("backbone.patch_size=4", "backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2")
# For the methods that have them.
_PARTS = {"decoder_depth": 1, "regressor_depth": 1, "hidden_dim": 24, "out_dim": 12, "tokenizer_epochs": 1}

# What colours, moves the cursor or clears a line on a terminal.
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# A run whose steps take a twentieth of a second more, so that a signal finds it at work on any machine.
SLOW_DRIVER = """
import sys, time
from dsdmae_cli.__main__ import main
from dsdmae_cli.checkpoint import DIGEST
from dsdmae_cli.engine import Trainer
step = Trainer._step
def slowly(self, micro_batches):
    step(self, micro_batches)
    time.sleep(0.05)
Trainer._step = slowly
main(sys.argv[1:])
"""


def digit_folder(folder: Path, train: int = 42, test: int = 10) -> Path:
    """train/<digit>/NNN.png and test/<digit>/NNN.png: scikit-learn's digits as 16x16 images in files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(train + test):
        part = folder / ("train" if index < train else "test") / str(digits.target[index])
        part.mkdir(parents=True, exist_ok=True)
        grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC).save(part / f"{index:03d}.png")
    return folder


def assignments(dataset: str | Path, *more: str, method: str = "dsdmae") -> list[str]:
    """--set texts of a tiny run on a dataset's name or a folder; `more` stands above them."""
    name = f"folder:{dataset}" if isinstance(dataset, Path) else dataset
    has = plugins.find("method", method).spec.settings.model_fields
    own = [f"method.{key}={value}" for key, value in _PARTS.items() if key in has]
    net = () if any(text.startswith("backbone.name=timm:") for text in more) else _VIT
    return [f"data.dataset={name}", f"method.name={method}", *_SMALL, *net, *own, *more]


def settings(dataset: str | Path, *more: str, method: str = "dsdmae") -> Loaded:
    """The settings of a tiny run."""
    return load(assignments=assignments(dataset, *more, method=method), environ={})


def train(
    dataset: str | Path,
    out: Path,
    *more: str,
    method: str = "dsdmae",
    resume: bool = False,
    overridden: bool = False,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """A tiny run in this process; what result.json holds."""
    loaded = settings(dataset, *more, method=method)
    return pretrain(loaded, out=out, resume=resume, overridden=overridden, accept_changes=accept_changes, as_json=True)


def preset_names(schema: Schema[Any] = PRETRAIN) -> list[str]:
    """All of a command's packaged presets."""
    return [name for names in presets_by_kind(schema).values() for name in names]


def words(given: list[str]) -> list[str]:
    """Assignments as a command line."""
    return [word for text in given for word in ("--set", text)]


def identity_onnx(path: Path, metadata: Mapping[str, str], ports: tuple[str, str] = ("images", "restored")) -> None:
    """An ONNX file in which what goes in comes out: made at once, where torch's exporter takes ten seconds."""
    import onnx
    from onnx import TensorProto, helper

    given, got = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, "h", "w"]) for name in ports)
    graph = helper.make_graph([helper.make_node("Identity", [ports[0]], [ports[1]])], "identity", [given], [got])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def undigested(path: Path) -> dict[str, str]:
    """Metadata of a file of weights, for other tensors than those that the digest in it is of."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: value for key, value in file.metadata().items() if key != DIGEST}


class Done(NamedTuple):
    """What a command left: its exit code, and all of what it wrote."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


def cli(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """`dsdmae ARGUMENTS`, run in this process."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, captured.out, captured.err)


def process(*words: str) -> list[str]:
    """`dsdmae WORDS` as the command line of a process of its own."""
    return [sys.executable, "-m", "dsdmae_cli", *words]


def one_line(err: str) -> str:
    """The message of an error for people: a single line on stderr."""
    [line] = [line for line in err.splitlines() if line.startswith("dsdmae: error:")]
    assert "Traceback" not in err, err
    return line


def look(source: Path | bytes) -> Image.Image:
    """An image whose file is closed again."""
    image = Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))
    image.load()
    return image


def start(*command: str | Path, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Python with these arguments, in a process group of its own, with one thread and no settings of the user's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DSDMAE_")}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**clean, "OMP_NUM_THREADS": "1", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something that a running process does."""
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()[1]}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"nothing happened in {seconds} s: {process.communicate()[1]}")
        time.sleep(0.02)


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, which must be JSON to the letter: no NaN, no Infinity."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def untimed(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records(run)]


def steps_done(run: Path) -> int:
    """The last step in metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def listing(folder: Path) -> set[str]:
    """Everything below a folder, by relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Recorder(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def assert_never_waits(work: Callable[[int], object]) -> None:
    """No operator of work(batch) reads a value back or has a shape that depends on values, and none runs per image."""
    runs = []
    for batch in (3, 30):
        with Recorder() as recorder:
            work(batch)
        runs.append(recorder.operators)
    assert runs[0]
    assert runs[0] == runs[1]
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "index", "equal", "unique", "_unique2"}
    assert waiting.isdisjoint(runs[0])


def masked_folder(folder: Path, train: int = 12, test: int = 5) -> Path:
    """images/SPLIT/NNN.png, masks/SPLIT/NNN.png and classes.txt: scikit-learn's digits as 32x24 pictures of ink on
    paper, shade (half-inked) a class of its own, and a void frame of 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits().images
    for index in range(train + test):
        part = "train" if index < train else "test"
        grey = Image.fromarray((digits[index] * (255 / 16)).astype(np.uint8)).resize((32, 24), Image.Resampling.BICUBIC)
        values = np.asarray(grey)
        mask = np.digitize(values, [60, 160]).astype(np.uint8)
        mask[0] = mask[:, 0] = 255
        for kind, picture in (("images", grey.convert("RGB")), ("masks", Image.fromarray(mask))):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / part / f"{index:03d}.png")
    (folder / "classes.txt").write_text("paper\nshade\nink\n", encoding="utf-8")
    return folder
