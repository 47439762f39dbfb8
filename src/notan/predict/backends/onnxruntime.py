"""The backend on ONNX Runtime, which is imported only where it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.errors import CheckpointError
from notan.predict.backends.base import check_logits

if TYPE_CHECKING:
    from pathlib import Path

    from notan.predict.backends.base import Array

ERRORS_ONLY = 3
"""Of ONNX Runtime's levels of log: its warnings are of nodes and machines, not of the image."""


class OnnxRuntimeBackend:
    """An ONNX model on ONNX Runtime, on the processor, in float32 (int8 where the file is)."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load an ONNX model.

        Args:
            path: The ``.onnx`` file.
            threads: At most so many; None: one for each core.

        Raises:
            CheckpointError: ONNX Runtime cannot run the file.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Threads that spin while they wait slow everything else on a busy machine down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class but this
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: ONNX Runtime cannot run it: {reason}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w).

        Raises:
            ShapeError: The network returned another shape.
        """
        logits: Array = self._session.run(None, {self._input: inputs})[0]
        check_logits(logits.shape, inputs.shape, "the network")
        return logits
