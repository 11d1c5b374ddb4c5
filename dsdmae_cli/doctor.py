"""What `dsdmae doctor` looks at: the program, its libraries, the machine, plugins and extras, each with what to do.

Nothing heavy is imported at the top: a torch that cannot be imported is one of the things to be found.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli import __version__

State = Literal["ok", "note", "warning", "wrong"]
_GIB = 2**30
# Below these a common run does not fit: ViT-Tiny on small images takes 1 GiB, a checkpoint of ViT-Base 1.3 GB and there
# are three at a time, eight workers pass some 100 MB of decoded images through shared memory.
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_SHM = 2 * _GIB, 5 * _GIB, 512 * 2**20
_OF_DEVELOPERS = frozenset({"dev", "test"})
_SIDE = 1024


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        state: ok; note: could be better or is worth knowing; warning: will trouble some runs; wrong: must be mended.
        todo: what to do; empty where there is nothing.
    """

    name: str
    state: State
    found: str
    todo: str = ""

    def json(self) -> dict[str, str]:
        """Fit for JSON."""
        return asdict(self)


def checks() -> Iterator[Check]:
    """One after the other, as they are made; what cannot be looked at is wrong too, and hides none of the others."""
    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("program", _program),
        ("libraries", _libraries),
        ("devices", _devices),
        ("precision", _precision),
        ("threads", _threads),
        ("memory", _memory),
        ("disk", _disk),
        ("/dev/shm", _shm),
        ("plugins", _plugins),
        ("extras", _extras),
        ("environment", _environment),
    )
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            yield Check(
                name,
                "wrong",
                f"it could not be looked at ({type(error).__name__}: {reason})",
                f"install the program again: {install()}",
            )


def install(extra: str = "") -> str:
    """The command that installs the program, or an extra of it, the way it is installed here."""
    what = f"'dsdmae[{extra}]'" if extra else "dsdmae"
    parts = Path(sys.prefix).parts
    if "pipx" in parts:
        return f"pipx install --force {what}"
    if "uv" in parts and "tools" in parts:
        return f"uv tool install --force {what}"
    if (root := _clone()) is not None:
        what = f"'.[{extra}]'" if extra else "."
        return f"pip install -e {what}  (in {root})"
    return f"pip install {what}" if extra else f"pip install --force-reinstall {what}"


def _clone() -> Path | None:
    """The clone that the program runs from, where it does."""
    root = Path(__file__).parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def _program() -> Iterator[Check]:
    yield Check("dsdmae", "ok", f"{__version__} in {Path(__file__).parent}")
    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}, {platform.platform(terse=True)}")


def _libraries() -> Iterator[Check]:
    """Every library that the program needs, by the versions that its own metadata asks for; torch by importing it."""
    from packaging.requirements import Requirement

    try:
        asked = metadata.requires("dsdmae") or []
    except metadata.PackageNotFoundError:
        yield Check(
            "libraries",
            "wrong",
            "the program is not installed here: it has no metadata, so no plugins",
            f"install it: {install()}",
        )
        return
    there, problems = [], []
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
        there.append(f"{requirement.name} {version}")
    if problems:
        yield Check("libraries", "wrong", "; ".join(problems), f"install them: {install()}")
    else:
        yield Check("libraries", "ok", f"all {len(there)}, {', '.join(t for t in there if _told(t))}")
    yield _imported("torch")
    yield _imported("torchvision")


def _told(library: str) -> bool:
    return library.split()[0] in ("numpy", "pillow", "timm", "torch", "torchvision")


def _imported(name: str) -> Check:
    try:
        module = __import__(name)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return Check(
            name,
            "wrong",
            f"it cannot be imported ({type(error).__name__}: {reason})",
            f"torch and torchvision must be of one release and one build; {install()}",
        )
    built = getattr(getattr(module, "version", None), "cuda", None)
    return Check(name, "ok", f"{module.__version__}" + (f", built for CUDA {built}" if isinstance(built, str) else ""))


def _devices() -> Iterator[Check]:
    import torch

    yield Check("cpu", "ok", f"{_cpu_name()}, {usable_cores()} of {os.cpu_count()} cores for this process")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = f"{torch.cuda.get_device_name(index)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        few = free < _LITTLE_MEMORY
        yield Check(
            f"cuda:{index}",
            "warning" if few else "ok",
            name,
            "something else uses it; --device takes another one" if few else "",
        )
    if not torch.cuda.is_available():
        if _driver():
            build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            yield Check(
                "cuda",
                "warning",
                f"a driver of NVIDIA's is here, but torch ({build}) cannot use a GPU",
                "see what `nvidia-smi` says; a newer driver, or the build of torch that fits it"
                " (https://pytorch.org/get-started/locally)",
            )
        else:
            yield Check("cuda", "note", "none", "training is on the CPU; large networks want a GPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple's GPU")


def _driver() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def _cpu_name() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def _precision() -> Iterator[Check]:
    from dsdmae_cli.runtime import choose_device, choose_precision, cpu_multiplies_bf16

    device = choose_device("auto")
    chosen = choose_precision("auto", device)
    if device.type != "cpu":
        yield Check("precision", "ok", f"{chosen} on {device} (--precision auto)")
        return
    times = _faster_in_bf16()
    measured = (
        f"a matrix product in bf16 is {times:.3g} times as fast as in fp32"
        if times >= 1
        else (f"a matrix product in bf16 takes {1 / times:.3g} times as long as in fp32")
    )
    if cpu_multiplies_bf16():
        slow = times < 1
        yield Check(
            "precision",
            "warning" if slow else "ok",
            f"{chosen} (--precision auto): this CPU multiplies bf16, {measured}",
            "try --precision fp32, or free the CPU of other work and look again" if slow else "",
        )
    else:
        yield Check(
            "precision",
            "note",
            f"{chosen} (--precision auto): this CPU has neither AMX nor AVX512_BF16 ({measured})",
            "leave --precision at auto; a CPU that has them trains several times faster",
        )


def _faster_in_bf16() -> float:
    """How many times as fast a matrix product is in bf16, with the threads of this process."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(_SIDE, _SIDE, dtype=dtype)
        taken = []
        for _ in range(4):  # the first one prepares
            began = time.perf_counter()
            a @ a
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _threads() -> Iterator[Check]:
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    by = f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    if threads > cores:
        yield Check(
            "threads",
            "warning",
            f"{threads} for {cores} cores{by}: they wait for each other",
            f"export OMP_NUM_THREADS={cores}",
        )
    elif threads < max(1, cores // 2):
        yield Check(
            "threads", "note", f"{threads} for {cores} cores{by}", f"export OMP_NUM_THREADS={cores} uses them all"
        )
    else:
        yield Check("threads", "ok", f"{threads} for {cores} cores{by}")


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    with suppress(OSError, ValueError):  # "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, max(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), 0))
        total = min(total, limit)
    few = free < _LITTLE_MEMORY
    yield Check(
        "memory",
        "warning" if few else "ok",
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free",
        "close other programs, or lower --batch-size and use --set data.placement=streaming" if few else "",
    )


def _disk() -> Iterator[Check]:
    from platformdirs import user_cache_path, user_data_path

    for name, path, instead in (
        (
            "runs",
            user_data_path("dsdmae") / "runs",
            "--out DIR puts a run elsewhere; `dsdmae runs rm` deletes old ones",
        ),
        ("cache", user_cache_path("dsdmae"), "`dsdmae cache clear` empties it; XDG_CACHE_HOME puts it elsewhere"),
        ("temporary", Path(tempfile.gettempdir()), "TMPDIR puts it elsewhere"),
    ):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        problem = _unwritable(there)
        if problem:
            yield Check(name, "wrong", f"{path} cannot be written ({problem})", instead)
        elif free < _LITTLE_DISK:
            yield Check(name, "warning", f"{path}: {free / _GIB:.1f} GiB free", f"make room; {instead}")
        else:
            yield Check(name, "ok", f"{path}: {free / _GIB:.0f} GiB free")


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"dsdmae")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _shm() -> Iterator[Check]:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        if sys.platform.startswith("linux"):
            yield Check(
                "/dev/shm",
                "warning",
                "missing: processes that decode images cannot pass them on",
                "mount it, or use --set data.workers=0",
            )
        return
    free = shutil.disk_usage(shm).free
    few = free < _LITTLE_SHM
    yield Check(
        "/dev/shm",
        "warning" if few else "ok",
        f"{free / _GIB:.2f} GiB free",
        "docker run --shm-size 8g, or --set data.workers=0 where images are streamed" if few else "",
    )


def _plugins() -> Iterator[Check]:
    from dsdmae_cli.plugins import KINDS, BrokenPlugin, discover

    found = list(chain.from_iterable(discover(kind) for kind in KINDS))
    packages = sorted({f"{plugin.distribution} {plugin.version}" for plugin in found})
    broken = [plugin for plugin in found if isinstance(plugin, BrokenPlugin)]
    if not found:
        yield Check(
            "plugins",
            "wrong",
            "none are found: the program's metadata is not that of its source",
            f"install it: {install()}",
        )
        return
    yield Check("plugins", "ok", f"{len(found) - len(broken)} of {', '.join(packages)}")
    for plugin in broken:
        yield Check(
            f"plugin {plugin.name}",
            "wrong",
            f"{plugin.kind} of {plugin.distribution}: {plugin.reason}",
            f"mend it, update {plugin.distribution}, or uninstall it",
        )


def _extras() -> Iterator[Check]:
    from packaging.requirements import Requirement

    about = metadata.metadata("dsdmae")
    asked = [Requirement(text) for text in metadata.requires("dsdmae") or []]
    for extra in sorted(set(about.get_all("Provides-Extra") or []) - _OF_DEVELOPERS):
        needed = [
            r.name
            for r in asked
            if r.marker is not None and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
        ]
        missing = [name for name in needed if not _installed(name)]
        if missing:
            yield Check(f"extra {extra}", "note", f"{', '.join(missing)} not installed", install(extra))
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in needed))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _environment() -> Iterator[Check]:
    """Settings in variables count in every run; a forgotten one is hard to find."""
    from dsdmae_cli.config.schema import PRETRAIN
    from dsdmae_cli.config.sources import environment_layer
    from dsdmae_cli.errors import SettingsError

    try:
        environment_layer(os.environ, PRETRAIN)
    except SettingsError as error:
        yield Check("environment", "wrong", str(error), "unset it, or mend its name: every command would refuse it")
        return
    names = sorted(name for name in os.environ if name.startswith("DSDMAE_") and name != "DSDMAE_TEST_DATA")
    if names:
        yield Check(
            "environment",
            "note",
            f"{', '.join(names)} set, above presets and files",
            "`dsdmae config show --sources` says what comes from them; unset them where that is not meant",
        )


def summary(found: list[Check]) -> dict[str, Any]:
    """All of it for scripts."""
    return {"ok": not any(check.state == "wrong" for check in found), "checks": [check.json() for check in found]}
