"""From a PyTorch network to one ONNX model in bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

from notan.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

OPSET = 18
"""Old enough for every runtime of the last years, new enough for all that our networks do."""

INPUT, OUTPUT = "images", "logits"
TRACED = 2
"""Images in the batch that is traced: PyTorch takes a batch of one for a constant."""


def to_onnx(network: torch.nn.Module, stride: int) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Trace a network; batch and size stay free, weights are inside, batch norms are folded.

    Args:
        network: From (n, 3, h, w) to logits (n, 1, h, w).
        stride: Of the network.

    Returns:
        An ``onnx.ModelProto`` that says nothing of this machine.

    Raises:
        ExportError: PyTorch cannot trace the network.
    """
    import torch

    side = 4 * stride
    example = torch.zeros(TRACED, 3, side, side)
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    network = network.cpu().float().eval()
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors share no base class but this
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"{type(network).__name__} cannot be traced for ONNX: {reason}"
            ) from error
    if program is None:
        raise ExportError(f"{type(network).__name__}: PyTorch returned no ONNX program")
    return without_traces(program.model_proto)


def store_half(model: Any) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Store the weights in float16 and widen them when the file is loaded.

    The runtimes fold the widening into the weights once, and compute in float32: the file is half
    as large, speed and memory stay. Computing in float16 would gain nothing, for processors that
    are not of the newest kind widen each number anyway.

    Args:
        model: An ``onnx.ModelProto`` in float32; it is changed.

    Raises:
        ExportError: A weight is too large for float16.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    graph, casts = model.graph, []
    for weight in graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{weight.name}: a weight of {np.abs(values).max():g} does not fit into float16, "
                "which ends at 65504; export without --half"
            )
        stored, name = f"{weight.name}.half", weight.name
        weight.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return model


def without_traces(model: Any) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Remove what the exporter notes of source lines: it names folders of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]  # shapes of the traced example's kind; the runtimes infer their own
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on itself away: of torchvision, of its progress, of its future."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
