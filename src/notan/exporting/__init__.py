"""From a checkpoint to an ONNX model, which runs without PyTorch."""

from notan.exporting.make import export

__all__ = ["export"]
