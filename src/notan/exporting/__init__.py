"""From a checkpoint to an ONNX model, which runs without PyTorch."""

from notan.exporting.make import Kind, export

__all__ = ["Kind", "export"]
