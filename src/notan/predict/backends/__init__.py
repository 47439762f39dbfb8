"""Backends: the same network on PyTorch, ONNX Runtime or OpenVINO.

Each runtime is imported only where its backend is made.
"""

from notan.predict.backends.base import Array, Backend, Precision
from notan.predict.backends.torch import TorchBackend, rebuild

__all__ = ["Array", "Backend", "Precision", "TorchBackend", "rebuild"]
