"""One Predictor, many threads: each gets the bytes that calls in turn would give it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from needs import RUNTIMES
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.backends import TorchBackend
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.types import RGBImage

CALLS = 80
OWN_SIZE = Preprocessor(image_size=None, mean=(0.5,) * 3, std=(0.25,) * 3, stride=1)


@pytest.fixture(autouse=True)
def _the_threads_of_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def noise(count: int) -> list[RGBImage]:
    """Return images of several sizes, so that the network's inputs differ in shape too."""
    random = np.random.default_rng(7)
    sizes = [(20, 30), (33, 17), (40, 48), (9, 9)]
    return [
        random.integers(0, 256, (*sizes[number % len(sizes)], 3), dtype=np.uint8)
        for number in range(count)
    ]


def answers(predictor: Predictor, images: Sequence[RGBImage], threads: int) -> list[bytes]:
    """Return the probabilities of every image, as bytes; all threads begin at one moment."""
    barrier = threading.Barrier(threads)

    def work(first: int) -> list[tuple[int, bytes]]:
        barrier.wait(30)
        return [
            (number, predictor(images[number]).probability.tobytes())
            for number in range(first, len(images), threads)
        ]

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, range(threads)))
    return [answer for _, answer in sorted(pair for part in parts for pair in part)]


def state(model: nn.Module) -> str:
    """Return a hash of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("limit", [None, 1, 2])
@pytest.mark.parametrize("runtime", ["torch", *RUNTIMES])
def test_many_threads_get_the_bytes_of_one(
    runtime: str, limit: int | None, portable: Path, small_checkpoint: Path
) -> None:
    model = small_checkpoint if runtime == "torch" else portable
    predictor = Predictor.load(model, backend=runtime, threads=limit)
    images = noise(20) * (CALLS // 20)
    expected = [predictor(image).probability.tobytes() for image in images[:20]] * (CALLS // 20)
    for threads in (1, 2, 8):
        assert answers(predictor, images, threads) == expected


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1))


@pytest.mark.parametrize("training", [True, False])
def test_many_threads_leave_weights_statistics_and_mode_as_they_were(*, training: bool) -> None:
    model = network().train(training)
    before = state(model)
    predictor = Predictor(TorchBackend(model), OWN_SIZE)
    images = noise(20) * (CALLS // 20)
    expected = [predictor(image).probability.tobytes() for image in images]
    assert answers(predictor, images, 8) == expected
    assert state(model) == before
    assert model.training == training


def test_the_limit_on_threads_holds_in_a_thread_that_computed_before(
    small_checkpoint: Path,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 3).result()
        predictor = Predictor.load(small_checkpoint, threads=2)
        seen: list[int] = []
        forward: Any = predictor.backend
        forward.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        pool.submit(predictor, noise(1)[0]).result()
    assert seen == [2]


FIRST_USE = """
import os, sys, threading
import numpy as np
from notan.modelfile.default import DEFAULT_MODEL
from notan.prediction.predictor import Predictor

sys.setswitchinterval(1e-6)
predictor = Predictor.load(DEFAULT_MODEL, threads=1, backend=sys.argv[1])
image, barrier = np.zeros((64, 64, 3), np.uint8), threading.Barrier(4)

def work():
    barrier.wait()
    predictor(image)

threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
os._exit(sum(thread.is_alive() for thread in threads))
"""
"""Where this went wrong, two processes in three hung: no call before had met NumPy's arrays."""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_very_first_calls_may_come_at_once(runtime: str) -> None:
    for _ in range(3):
        words = [sys.executable, "-c", FIRST_USE, runtime]
        assert subprocess.run(words, check=False, timeout=120).returncode == 0
