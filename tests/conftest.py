"""Fixtures that several rooms' tests share: real images, a drawn folder, a small checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

from comparison_runs import train_small
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.exporting import export
from notan.training import train
from runs import Drawn, Server
from test_house import House

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.config import Run
    from notan.data.samples import Source

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = {
    "model.width": 4,
    "preprocess.image_size": 32,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.learning_rate": 3e-3,
    "train.tensorboard": False,
}
"""Flags of a training that takes about a second."""


def pytest_configure(config: pytest.Config) -> None:
    """Use one core and no GPU, and in CI the same examples each time.

    On a busy machine, threads that wait for each other cost seconds a step. GPUs round otherwise
    than the CPU, so they are hidden, from subprocesses too, unless their tests were asked for.
    """
    if "gpu" not in config.getoption("markexpr", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        hypothesis.settings.load_profile("ci")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the house after the tests."""
    terminalreporter.write_line(str(House.measured()))


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
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images in train/ (24), val/ (6) and test/ (6), each with images/ and masks/."""
    folder = tmp_path_factory.mktemp("drawn")
    first = 0
    for part, count in (("train", 24), ("val", 6), ("test", 6)):
        write_folder(DrawnSource(count, size=(40, 48), seed=1, first=first), folder / part)
        first += count
    return folder


@pytest.fixture(scope="session")
def small_run(drawn_folder: Path) -> Run:
    """Settings of a training on the drawn folder that takes about a second."""
    return load_run(flags={**SMALL, "data.path": drawn_folder})


@pytest.fixture(scope="session")
def small_checkpoint(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of that training; not to be changed."""
    return train(small_run, out=tmp_path_factory.mktemp("run") / "small").checkpoint


@pytest.fixture(scope="session")
def portable(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as an ONNX model; not to be changed."""
    return export(small_checkpoint, tmp_path_factory.mktemp("portable") / "small.onnx")[0]


@pytest.fixture(scope="session")
def seeded_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders: trained-s0, trained-s1, raw-s0, raw-s1; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    learned: dict[str, Any] = {"train__epochs": 15, "train__learning_rate": 0.01}
    raw: dict[str, Any] = {"train__epochs": 1, "train__learning_rate": 1e-7}
    return {
        f"{name}-s{seed}": train_small(folder / f"{name}-s{seed}", seed=seed, **settings)
        for name, settings in (("trained", learned), ("raw", raw))
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
