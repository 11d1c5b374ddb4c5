"""A seeded random walk over the faults that a run must outlive: kill -9, SIGTERM, SIGHUP, a full disk, a damaged newest
checkpoint. Each walk has each of them once, in an order and at moments that its seed draws; then the run is resumed to
its end, which must be bitwise that of a run that nothing happened to: encoder, weights, moments and metrics (all but
what a clock measured). What is damaged is the newest of two checkpoints, which the walk waits for before kill -9; the
next start must pass it over.

    python -m bench.faults_walk --walks 50 --rows /tmp/walks.jsonl --log docs/results/faults-walk.md

Walks that stand in the file of --rows are not walked again: the same command goes on, and several, each with seeds of
its own (--seed), may share the file.

Each start is a fork of one process that has imported everything, so that a start takes a second. Full disks need root
on Linux (a small tmpfs is mounted for each walk); elsewhere they are left out, and the log says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from dsdmae_cli import checkpoint
from dsdmae_cli.__main__ import main as dsdmae
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.runs.rundir import RunDir

CHOSEN = (
    "data.dataset=digits", "data.image_size=16", "backbone.name=vit-tiny", "backbone.patch_size=4",
    "backbone.embed_dim=32", "backbone.depth=1", "backbone.num_heads=2", "method.name=dsdmae", "method.decoder_depth=1",
    "optim.lr=1e-3", "train.device=cpu", "train.precision=fp32", "train.epochs=12", "train.batch_size=512",
    "train.log_every=1", "train.knn_every=none", "train.checkpoint_every=1",
)  # fmt: skip
SIZE = "24m"  # of the disk: room for the run, and soon filled
STEP_SECONDS = 0.05  # added to each step, so that a fault finds the run at work


def begin(arguments: list[str], log: Path) -> int:
    """Fork a `dsdmae ARGUMENTS`; its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 99
    try:
        dsdmae(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 98
    except BaseException:  # os._exit would take it along unsaid
        traceback.print_exc()
    finally:
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
        os._exit(code)


def start(run: Path, log: Path) -> int:
    """The same command again, or --resume where there is something to go on with: what a person would do."""
    if (run / "settings.toml").exists():
        return begin(["pretrain", "--resume", "--out", str(run)], log)
    return begin(["pretrain", *(word for text in CHOSEN for word in ("--set", text)), "--out", str(run)], log)


def ended(child: int, seconds: float = 300) -> int:
    """Its exit code, negative for a signal."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"it did not end in {seconds:.0f} s")


def over(child: int) -> bool:
    """Whether it has ended; `ended` can still ask how."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def steps(run: Path, ran: bool) -> int:
    """The last step that was saved, or that ran, of those before too: a resumed run has forgotten them when it runs."""
    if not ran:
        found = checkpoint.newest_first(run / "checkpoints")
        return int(found[0].name.removeprefix("step-")) if found else 0
    with suppress(OSError, ValueError, IndexError):  # none yet, or a line that is being written
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def reached(run: Path, step: int) -> bool:
    """Whether it has come that far."""
    return steps(run, ran=True) >= step


def wait(child: int, until: Callable[[], bool]) -> None:
    """Until that is so, or the run is over."""
    while not until() and not over(child):
        time.sleep(0.01)


def digest(run: Path) -> str:
    """Of all that a run computed."""
    newest = checkpoint.newest_first(run / "checkpoints")[0]
    found = hashlib.sha256()
    for path in (run / "encoder.safetensors", newest / "model.safetensors", newest / "training.safetensors"):
        found.update(path.read_bytes())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("images_per_second", None)
        found.update(json.dumps(record, sort_keys=True).encode())
    return found.hexdigest()


def damage(run: Path, draw: random.Random) -> str | None:
    """Flip a bit of, or cut, a file of the newest checkpoint where the one before it is whole; what was done."""
    if not two_whole(run):
        return None
    newest = checkpoint.newest_first(run / "checkpoints")[0]
    path = draw.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        path.write_bytes(content[: draw.randrange(len(content))])
        return f"{path.name} cut"
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"a bit of {path.name} flipped"


def two_whole(run: Path) -> bool:
    """Whether there is a checkpoint to damage, and a whole one before it."""
    try:
        checkpoint.load(checkpoint.newest_first(run / "checkpoints")[1])
    except (IndexError, CheckpointError):
        return False
    return True


def fill(run: Path) -> Path:
    """Take all the room that its disk has."""
    filler = run.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def walk(seed: int, folder: Path, longest: float, expected: str, disks: bool) -> tuple[list[str], bool]:
    """One walk: what happened, and whether the end is the expected one."""
    draw = random.Random(seed)
    run, log = folder / "run", folder.parent / f"walk-{seed}.log"
    kinds = ["kill -9", "SIGTERM", "SIGHUP", "damaged checkpoint", *(["full disk"] if disks else [])]
    told = []
    passed_over = 0
    for kind in draw.sample(kinds, len(kinds)):
        began, saved = time.monotonic(), steps(run, ran=False)
        child = start(run, log)
        if kind == "damaged checkpoint":
            wait(child, lambda: two_whole(run))
        elif draw.random() < 0.7:  # amid the training; few steps, so that the later ones find work left
            more = draw.randint(1, 5)
            wait(child, partial(reached, run, saved + more))
        else:  # before it, as a rule
            time.sleep(draw.uniform(0, longest / 4))
        time.sleep(draw.uniform(0, 4 * STEP_SECONDS))
        moment = time.monotonic() - began
        filler = None
        if kind == "full disk":
            filler = fill(folder / "run")
        else:
            number = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}.get(kind, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(child, number)
        code = ended(child)
        if filler is not None:
            filler.unlink()
        if kind == "damaged checkpoint":
            # Of a run that has finished no checkpoint is read again.
            done = damage(run, draw) if code and RunDir(run).finished() is None else None
            passed_over += done is not None
            kind = f"kill -9, {done or 'no two checkpoints of a run at work to damage one of'}"
        told.append(f"{kind} after {moment:.2f} s ({code})")
        if code not in (0, 1, -9, -15, -1, 129, 143) or (code == 1 and filler is None):
            return [*told, f"exit code {code}"], False
    code = ended(start(run, log))
    same = code == 0 and digest(run) == expected
    if log.read_text().count("going back to the one before") < passed_over:
        return [*told, "the damaged checkpoint was not passed over"], False
    left = [path.name for path in run.rglob(".*.partial")]
    return [*told, *([f"exit code {code}"] if code else []), *([f"left: {left}"] if left else [])], same and not left


def main() -> None:
    """Walk, and write the log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first walk; the others count on")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further walk after this")
    parser.add_argument(
        "--rows", type=Path, default=None, help="file of JSON lines, a walk each, kept and gone on with"
    )
    parser.add_argument("--log", type=Path, default=None, help="Markdown, of all walks in --rows")
    given = parser.parse_args()
    step = Trainer._step

    def slowly(self: Trainer, micro_batches: object) -> None:
        step(self, micro_batches)  # type: ignore[arg-type]
        time.sleep(STEP_SECONDS)

    Trainer._step = slowly  # type: ignore[method-assign]
    import torch  # noqa: F401  (what a start would import; forks have it then)

    import dsdmae_cli.recipes.pretrain  # noqa: F401

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-walk-") as name:
        base = Path(name)
        longest, expected = uninterrupted(base)
        kept = given.rows or base / "rows.jsonl"
        for seed in range(given.seed, given.seed + given.walks):
            if seed in {row["seed"] for row in rows_of(kept, expected)}:
                continue
            if time.monotonic() - began > 60 * given.minutes:
                break
            row = walked(seed, base / f"walk-{seed}", longest, expected)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{seed}: {'equal' if row['same'] else 'NOT EQUAL'}: {'; '.join(row['told'])}", flush=True)
            if not row["same"]:
                print((base / f"walk-{seed}.log").read_text()[-3000:], flush=True)
        rows = rows_of(kept, expected)
        if given.log is not None:
            given.log.write_text(report(rows, expected))
    if not all(row["same"] for row in rows):
        sys.exit(1)


def uninterrupted(base: Path) -> tuple[float, str]:
    """Seconds that the run takes when nothing happens to it, and the digest of what it leaves."""
    reference, log = base / "reference" / "run", base / "reference.log"
    reference.parent.mkdir()
    seconds = 0.0
    for _ in range(2):  # what the first one imported, the others find imported
        shutil.rmtree(reference, ignore_errors=True)
        began = time.monotonic()
        assert ended(start(reference, log)) == 0, log.read_text()
        seconds = time.monotonic() - began
        for module in (base / "reference.modules").read_text().splitlines():
            with suppress(Exception):
                import_module(module)
    return seconds, digest(reference)


def walked(seed: int, folder: Path, longest: float, expected: str) -> dict[str, Any]:
    """The row of a walk, in a new folder on a small disk of its own where one can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        told, same = walk(seed, folder, longest, expected, mounted)
    except AssertionError as error:
        told, same = [str(error)], False
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
    return {"seed": seed, "told": told, "same": same, "disk": mounted, "seconds": longest, "digest": expected}


def rows_of(path: Path, expected: str) -> list[dict[str, Any]]:
    """The walks of a file of rows, by seed. Those of another program or machine are none of ours."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if any(row["digest"] != expected for row in rows):
        sys.exit(f"{path} holds walks whose uninterrupted run was another one; name another file")
    return sorted(rows, key=lambda row: row["seed"])


def report(rows: list[dict[str, Any]], expected: str) -> str:
    """The log."""
    equal = sum(row["same"] for row in rows)
    kinds = Counter(text.split(",")[0].split(" after")[0] for row in rows for text in row["told"])
    damaged = sum(text.startswith("kill -9, ") and "no two" not in text for row in rows for text in row["told"])
    disks = all(row["disk"] for row in rows)
    without = "" if disks else " Full disks were left out: no small disk could be mounted here."
    shortest, longest = (f(row["seconds"] for row in rows) for f in (min, max))
    counted = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    lines = [
        "# A random walk over faults",
        "",
        "Made by `python -m bench.faults_walk`, which says what it does. A small run on digits",
        f"({shortest:.1f} to {longest:.1f} s",
        "undisturbed, on a core that others share) is hit by each kind of fault once, in an order and at moments drawn",
        "from the seed, resumed or begun again after each, and at last let go to its end.",
        "",
        f"**{equal} of {len(rows)} walks ended bitwise equal** to the run that nothing happened to, with no partial",
        f"file left (SHA-256 of encoder, weights, moments and metrics: {expected[:16]}…).",
        f"Faults: {counted}; in {damaged} of {len(rows)} walks the newest checkpoint was damaged after a kill -9, and",
        f"passed over by the next start. Python {platform.python_version()}, {platform.system()}.{without}",
        "",
        "| seed | what happened (exit code) | end |",
        "|---|---|---|",
        *(f"| {r['seed']} | {'; '.join(r['told'])} | {'equal' if r['same'] else '**not equal**'} |" for r in rows),
        "",
        "Exit code 0: the run had ended before the fault came; 1: a full disk; 129 and 143: SIGHUP and SIGTERM, saved",
        "or cleared up; negative: ended by the system at once. A checkpoint is damaged after a kill -9.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
