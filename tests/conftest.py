"""Fixtures that several rooms' tests share: real images, a drawn folder, a small checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import onnx
import pytest
import torch
from filelock import FileLock

from comparison_runs import LEARNED, train_small
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.exporting import export
from notan.modelfile.default import DEFAULT_MODEL
from notan.training import train
from runs import Drawn, Server, add_little, compute_in_float32, no_report
from test_house import House

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from notan.config import Run
    from notan.data.samples import Source

    MakesOnce = Callable[[str, Callable[[Path], object]], Path]

pytest_plugins = ("serving",)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = {
    "model.width": 4,
    "preprocess.image_size": 32,
    "train.epochs": 14,
    "train.batch_size": 8,
    "train.learning_rate": 0.01,
    "augment.enabled": False,
    "train.trackers": (),
}
"""Flags of a training that takes about a second and whose masks have both classes in them."""


def pytest_configure(config: pytest.Config) -> None:
    """Use one core, float32 and no GPU, and in CI the same examples each time.

    On a busy machine, threads that wait for each other cost seconds a step. GPUs round otherwise
    than the CPU, so they are hidden, from subprocesses too, unless their tests were asked for.
    """
    compute_in_float32()
    if "gpu" not in config.getoption("markexpr", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        hypothesis.settings.load_profile("ci")


LONGEST_FILES = ("test_golden_facts.py", "test_readme.py", "test_resume.py", "test_killed.py")
"""They begin first, so that no worker has one of them left alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test print names that are no UTF-8: what it printed is sent between processes."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the house after the tests."""
    terminalreporter.write_line(str(House.measured()))


# a shell that runs the tests in its background has them ignore Ctrl-C, and what they start too
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _little_network() -> None:
    """Add it once the tests are collected: those of every network shall not know of it."""
    add_little()


@pytest.fixture(autouse=True, scope="session")
def _small_trials() -> Iterator[None]:
    """Let --auto time its steps on small images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notan.auto.measure.USUAL_SIDE", 64)
        yield


@pytest.fixture
def without_reports() -> Iterator[None]:
    """Draw no page at a command's end: it takes seconds, and tests/cli/test_report.py does."""
    with pytest.MonkeyPatch.context() as patch:  # its own, which no test undoes
        patch.setattr("notan.cli.train._report", no_report)
        yield


def real_folder(name: str) -> Path:
    """Return a folder of real images, or skip the test where they are absent."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real images are absent: ../shared/data/{name}")
    return folder


@pytest.fixture(scope="session")
def pets_folder() -> Path:
    """Three breeds of the Oxford-IIIT Pet dataset."""
    return real_folder("oxford-iiit-pet")


@pytest.fixture(scope="session")
def nuclei_folder() -> Path:
    """Cell nuclei under the microscope, train/ and test/."""
    return real_folder("nuclei")


@pytest.fixture(scope="session")
def road_folder() -> Path:
    """Street scenes with the road as foreground, train/ and test/."""
    return real_folder("camvid-road")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakesOnce:
    """Makes what many tests only read: one worker makes it, the others find it made."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure has left
                make(folder)
                made.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def drawn_folder(made_once: MakesOnce) -> Path:
    """Drawn images in train/ (24), val/ (6) and test/ (6), each with images/ and masks/."""

    def draw(folder: Path) -> None:
        first = 0
        for part, count in (("train", 24), ("val", 6), ("test", 6)):
            write_folder(DrawnSource(count, size=(40, 48), seed=1, first=first), folder / part)
            first += count

    return made_once("drawn", draw)


@pytest.fixture(scope="session")
def small_run(drawn_folder: Path) -> Run:
    """Settings of a training on the drawn folder that takes about a second."""
    return load_run(flags={**SMALL, "data.path": drawn_folder})


@pytest.fixture(scope="session")
def small_checkpoint(small_run: Run, made_once: MakesOnce) -> Path:
    """The best checkpoint of that training; not to be changed."""
    return made_once("small", lambda folder: train(small_run, out=folder)) / "best.safetensors"


@pytest.fixture(scope="session")
def portable(small_checkpoint: Path, made_once: MakesOnce) -> Path:
    """The same network as an ONNX model; not to be changed."""
    folder = made_once("portable", lambda folder: export(small_checkpoint, folder / "small.onnx"))
    return folder / "small.onnx"


@pytest.fixture
def traced(portable: Path, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """Let an export take the small network as it was traced before, which takes seconds."""
    model = onnx.load(portable)
    del model.metadata_props[:]
    monkeypatch.setattr("notan.exporting.make.to_onnx", lambda *_: model)
    return model


@pytest.fixture(scope="session")
def seeded_runs(made_once: MakesOnce) -> dict[str, Path]:
    """Run folders: trained-s0, trained-s1, raw-s0, raw-s1; not to be changed."""
    raw: dict[str, Any] = {**LEARNED, "train__epochs": 1, "train__learning_rate": 1e-7}
    return {
        f"{name}-s{seed}": made_once(f"{name}-s{seed}", partial(train_small, seed=seed, **settings))
        for name, settings in (("trained", LEARNED), ("raw", raw))
        for seed in (0, 1)
    }


@pytest.fixture(scope="session")
def unseen() -> Source:
    """Drawn images of the same kind that none of those runs has seen."""
    return Drawn(40, size=(24, 30), first=100)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A warm process that starts commands in forks of itself."""
    server = Server(tmp_path_factory.mktemp("children"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The model that comes with notan."""
    return DEFAULT_MODEL
