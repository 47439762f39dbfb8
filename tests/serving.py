"""Fixtures: servers of the small network, and of one that the tests hold up."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor
from notan.serve import ServeSettings, make_app
from web_server import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp

    from notan.prediction.batches import Array
    from notan.web.addresses import Address
    from web_server import Running


class Gate:
    """A network that says of each pixel how bright it is, when the gate is open.

    Attributes:
        batches: How many images each of its calls had.
        waiting: Set while a call waits before the gate.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.opened = threading.Event()
        self.waiting = threading.Event()

    def __call__(self, inputs: Array) -> Array:
        self.batches.append(len(inputs))
        self.waiting.set()
        assert self.opened.wait(60)
        return np.asarray(inputs[:, :1] * 4, np.float32)

    def predictor(self, image_size: tuple[int, int] | None = (16, 16)) -> Predictor:
        preprocessor = Preprocessor(image_size=image_size, stride=1)
        return Predictor(self, preprocessor, postprocessing=Postprocessing(review_below=0.5))


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture(scope="session")
def predictor(portable: Path) -> Predictor:
    return Predictor.load(portable, backend="onnxruntime", threads=1)


@pytest.fixture(scope="session")
def served(predictor: Predictor) -> Iterator[Running]:
    """The small network, with limits that tests can reach."""
    settings = ServeSettings(most_pixels=100_000)

    def make(address: Address) -> ASGIApp:
        return make_app(predictor, address, name="small", settings=settings)

    with running(make) as server:
        yield server


@pytest.fixture
def serve_gate(gate: Gate) -> Iterator[Callable[..., Running]]:
    """Serves the network that the tests hold up, with other settings each time."""
    with contextlib.ExitStack() as stack:
        stack.callback(gate.opened.set)

        def serve(**settings: Any) -> Running:
            kept = ServeSettings(**settings)
            make = running(lambda address: make_app(gate.predictor(), address, settings=kept))
            server = stack.enter_context(make)
            stack.callback(gate.opened.set)  # before the server is stopped
            return server

        yield serve
