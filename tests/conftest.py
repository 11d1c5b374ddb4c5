"""What all tests share: shape checks, a clean environment, and small parts of the real data sets.

Shapes in annotations are checked while testing and only then: the import hook below must stand before
anything imports the program. Data that tests make up themselves is made in the tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

# As in the programs that tests start: sums by another number of threads differ in the last bit. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

jaxtyping.install_import_hook(
    [
        "dsdmae_cli.backbone",
        "dsdmae_cli.corruption",
        "dsdmae_cli.data.arrays",
        "dsdmae_cli.data.augment",
        "dsdmae_cli.data.files",
        "dsdmae_cli.data.splits",
        "dsdmae_cli.masking",
        "dsdmae_cli.methods",
        "dsdmae_cli.views",
        "dsdmae_builtin",
    ],
    # An int is welcome where a float is asked for, as in mypy.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# How fast inputs are drawn says how busy the machine is, and nothing of the program; the other checks stay.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")

# A distribution of its own with tests of its own; test_third_party.py installs it and runs them.
collect_ignore = ["plugins/example_plugin"]

TEST_DATA = "DSDMAE_TEST_DATA"
ARCHIVES = ("cifar10.tar.xz", "photos.tar", "kodak24.tar", "real-noise.tar", "camvid.tar")


def _isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No settings from the developer's shell, and no cache but an empty one."""
    for variable in [name for name in os.environ if name.startswith("DSDMAE_") and name != TEST_DATA]:
        monkeypatch.delenv(variable)
    # platformdirs reads these on Linux; programs that tests start inherit them.
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "share"))


@pytest.fixture(scope="session", autouse=True)
def _isolated_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Session fixtures run before any test's own isolation.
    with pytest.MonkeyPatch.context() as monkeypatch:
        _isolate(monkeypatch, tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def _isolated_test(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Not under tmp_path: a test may check exactly what it left there.
    _isolate(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shape checks off, for tests that compile: dynamo cannot trace a check of a type."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of the archives that tests need; tests are skipped where none is named, a named one must be whole."""
    if TEST_DATA not in os.environ:
        pytest.skip(f"{TEST_DATA} is not set to the folder of {' and '.join(ARCHIVES)}")
    folder = Path(os.environ[TEST_DATA])
    missing = [name for name in ARCHIVES if not (folder / name).is_file()]
    if missing:
        pytest.fail(f"{TEST_DATA} is {folder}, which lacks {' and '.join(missing)}; unset it to skip what needs them")
    return folder


@pytest.fixture(scope="session")
def cifar_folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class>/NNNN.jpg with 20 images of each of ten classes, test/ with 10: real CIFAR-10 as JPEG."""
    folder = tmp_path_factory.mktemp("cifar")
    _unpack_first(test_data / "cifar10.tar.xz", folder, {"train": 20, "test": 10}, num_folders=20)
    return folder / "cifar10"


@pytest.fixture(scope="session")
def photos_folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 24 photographs of various shapes, val/ with 8; no classes."""
    folder = tmp_path_factory.mktemp("photos")
    _unpack_first(test_data / "photos.tar", folder, {"train": 24, "val": 8}, num_folders=2)
    return folder / "photos"


@pytest.fixture(scope="session")
def kodak_folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 24 Kodak pictures as PNG: measured on, never trained on."""
    return _unpacked(test_data / "kodak24.tar", tmp_path_factory.mktemp("kodak"))


@pytest.fixture(scope="session")
def real_noise_folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """noisy/ and clean/: 20 pairs of the PolyU set, real camera noise and the mean of many exposures."""
    return _unpacked(test_data / "real-noise.tar", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real digits that one test file has to itself: 42 images to train, 10 to test."""
    from helpers import digit_folder  # which imports the program, and must not do so before the hook above

    return digit_folder(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where a test's configuration file goes."""
    return tmp_path / "mine.toml"


@pytest.fixture(scope="session")
def encoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run of two epochs of five steps on real digits; look at it, or copy it."""
    from helpers import digit_folder, train  # which import the program, and must not do so before the hook above

    folder = tmp_path_factory.mktemp("encoder")
    train(digit_folder(folder / "digits"), folder / "run", "train.knn_every=1", "train.checkpoint_every=1")
    return folder / "run"


@pytest.fixture(scope="session")
def tuned_run(encoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run on the same digits, which began with `encoder_run`; look at it, or copy it."""
    from small_runs import tune

    folder = tmp_path_factory.mktemp("tuned") / "run"
    tune(encoder_run, folder, "train.epochs=4")
    return folder


def _unpacked(archive: Path, target: Path) -> Path:
    """The archive's folder, which has its name."""
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / archive.stem


def _unpack_first(archive: Path, target: Path, per_folder: dict[str, int], num_folders: int) -> None:
    """Unpack the first files of each folder, as many as `per_folder` says for its split.

    One pass over the stream, since an xz archive has no way back; it ends as soon as all folders are full.
    """
    taken: Counter[PurePosixPath] = Counter()
    full = 0
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or taken[path.parent] == (wanted := per_folder[path.parts[1]]):
                continue
            content = tar.extractfile(member)
            assert content is not None
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            with content, destination.open("wb") as file:
                shutil.copyfileobj(content, file)
            taken[path.parent] += 1
            full += taken[path.parent] == wanted
            if full == num_folders:
                break
    assert full == num_folders, f"{archive} has fewer images than expected: {dict(taken)}"


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder, and a process without root's eye for locked files."""
    if sys.platform == "win32":
        pytest.skip("no POSIX permissions")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


@pytest.fixture
def encoder_alone(encoder_run: Path, tmp_path: Path) -> Path:
    """A folder with the encoder of a run and nothing else."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(encoder_run / "encoder.safetensors", alone)
    return alone


@pytest.fixture
def drawn() -> None:
    """Asked for by tests of the figures that probe and finetune leave, in files that use `undrawn`."""


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of a small run's time."""
    if "drawn" not in request.fixturenames:
        for place in (
            "recipes.probe.draw",
            "recipes.probe.draw_choice",
            "evaluation.classifying.draw",
            "segmentation.tuning.draw_scores",
            "segmentation.probing._draw",
        ):
            monkeypatch.setattr(f"dsdmae_cli.{place}", lambda *given: None)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test for every method some are run each time, and the others by .ci/long."""
    for item in items:
        marker = item.get_closest_marker("long_but")
        if marker is not None and isinstance(item, pytest.Function) and item.callspec.params["name"] not in marker.args:
            item.add_marker(pytest.mark.long)
