"""int8: weights and activations in eight bits, with ranges taken from pictures."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

from notan.errors import ExportError
from notan.export.onnx import INPUT
from notan.extras import stop_telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.preprocess import Preprocessor
    from notan.types import Picture


def quantize(
    model: Any,  # noqa: ANN401 - onnx.ModelProto
    pictures: Sequence[Picture],
    preprocessor: Preprocessor,
) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Quantize a float32 model after training, in a form that both runtimes compute in int8.

    Args:
        model: An ``onnx.ModelProto``.
        pictures: Calibrate the ranges of the activations; as the model will meet them.
        preprocessor: Of the model.

    Raises:
        ExportError: The network cannot be quantized.

    Source: NNCF's post-training quantization (github.com/openvinotoolkit/nncf): symmetric for
        weights, asymmetric for activations, with its correction of the biases.
    """
    stop_telemetry()
    import nncf

    data = nncf.Dataset(
        [preprocessor(picture)[0][None] for picture in pictures], lambda array: {INPUT: array}
    )
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            quantized = nncf.quantize(
                model,
                data,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(pictures),
            )
    except Exception as error:  # NNCF's errors share no base class but this
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"the network cannot be quantized to int8: {reason}") from error
    finally:
        log.setLevel(level)
    return quantized
