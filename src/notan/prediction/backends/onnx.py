"""ONNX models under ONNX Runtime and under OpenVINO.

The backend on ONNX Runtime, which is imported only where it is made.

The backend on OpenVINO, which is imported only where it is made.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from notan.errors import CheckpointError, stop_telemetry
from notan.prediction.backends.base import check_logits

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.backends.base import Array, Precision

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


ARITHMETIC = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend:
    """An ONNX model on OpenVINO, on the processor."""

    def __init__(
        self,
        path: Path,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> None:
        """Compile an ONNX model for this processor.

        OpenVINO can keep what it compiled in a folder. It is not told to: it reads it again
        unchecked, so that a byte that has flipped there gives another mask, and to check it by
        its hash takes as long as to compile it.

        Args:
            path: The ``.onnx`` file.
            precision: OpenVINO itself would choose bfloat16 wherever it is quicker, and so other
                masks on other machines; here float32 is the default.
            threads: At most so many; None: OpenVINO's choice.

        Raises:
            CheckpointError: OpenVINO cannot run the file.
        """
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": ARITHMETIC[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = _core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise CheckpointError(f"{path}: OpenVINO cannot run it: {reason}") from error
        self._request = self._compiled.create_infer_request()

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w).

        Raises:
            ShapeError: The network returned another shape.
        """
        # The request's own memory is written again by the next image, so the answer is copied
        logits: Array = self._request.infer({0: inputs})[0].copy()
        check_logits(logits.shape, inputs.shape, "the network")
        return logits


@functools.cache
def _core() -> Any:  # noqa: ANN401 - openvino.Core, without importing it above
    """Return the process's one OpenVINO, which lives as long as the process.

    It lends the thread its stack for signals, and takes that back when it goes: a later signal
    that has a handler (PyTorch's for data workers has one) would then end the process.
    """
    stop_telemetry()
    import openvino

    return openvino.Core()
