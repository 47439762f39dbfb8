"""Backends: the same network on PyTorch, ONNX Runtime or OpenVINO.

Each runtime is imported only where its backend is made.
"""

from __future__ import annotations

from notan.prediction.backends.base import Array, Backend, Precision
from notan.prediction.backends.torch import TorchBackend, rebuild

__all__ = ["Array", "Backend", "Precision", "TorchBackend", "rebuild"]
