"""From a PyTorch network to ONNX: traced, stored in half, quantized to int8.

In int8 are the convolutions, but for the few that the masks need in float32.

Source: Jacob et al. 2018, arXiv:1712.05877 (a scale and a zero point for each tensor) and
    Krishnamoorthi 2018, arXiv:1806.08342 (a scale for each channel of the weights), as ONNX
    Runtime's quantizer writes them: QuantizeLinear and DequantizeLinear around each layer. Inputs
    are unsigned and not symmetric, weights signed and symmetric: what OpenVINO and ONNX Runtime
    read alike. What differs here: only the inputs of layers are rounded, not their outputs too,
    and which layers stay in float32 is measured, not guessed.

Weights use seven of their eight bits. Processors without VNNI add two products in sixteen bits, and
255 * 127 twice does not fit: the sum is cut off, and the masks were others there. 255 * 64 fits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from notan.errors import ExportError
from notan.modelfile.card import Quantized
from notan.prediction.backends import onnx_backend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    import torch

    from notan.prediction.backends import Array

OPSET = 18
"""Old enough for every runtime of the last years, new enough for all that our networks do."""

GRAPHS = (5, 10)
"""Types of an attribute that holds a graph, or several: ONNX's GRAPH and GRAPHS."""

INPUT, OUTPUT = "images", "logits"
TRACED = 2
"""Images in the batch that is traced: PyTorch takes a batch of one for a constant."""


def to_onnx(network: torch.nn.Module, stride: int, channels: int = 3) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Trace a network; batch and size stay free, weights are inside, batch norms are folded.

    Args:
        network: From (n, channels, h, w) to logits (n, 1, h, w).
        stride: Of the network.
        channels: Of its images.

    Returns:
        An ``onnx.ModelProto`` that says nothing of this machine.

    Raises:
        ExportError: PyTorch cannot trace the network.
    """
    import torch

    side = 4 * stride
    example = torch.zeros(TRACED, channels, side, side)
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
    for part in (model, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
    for function in model.functions:
        _forget_nodes(function.node)
    _forget_graph(model.graph)
    return model


def _forget_graph(graph: Any) -> None:  # noqa: ANN401 - onnx.GraphProto
    for part in (graph, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]  # shapes of the traced example's kind; the runtimes infer their own
    _forget_nodes(graph.node)


def _forget_nodes(nodes: Any) -> None:  # noqa: ANN401 - of onnx.NodeProto
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:  # the branches of an If, the body of a Loop
            for graph in (attribute.g, *attribute.graphs) if attribute.type in GRAPHS else ():
                _forget_graph(graph)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on itself away: of torchvision, of its progress, of its future."""
    with contextlib.ExitStack() as stack:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            log = logging.getLogger(name)
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.ERROR)
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        warnings.simplefilter("ignore")
        yield


LAYERS = ("Conv", "ConvTranspose")
"""The operators that are quantized: all else in our networks costs next to nothing."""

CHEAP = 0.02
"""Share of the multiplications that stay in float32 from the start.

It is worth it: the first layer, which reads the image's own colours, makes more than half of the
error, with two percent of a U-Net's multiplications at width 8 and two thousandths at width 64.
"""

LEAST_INT8 = 0.5
"""Share of the multiplications below which int8 is no more worth its name."""

WEIGHED = 8
"""Most images that the error of each single layer is measured on."""


class Layer(NamedTuple):
    """A layer that can be quantized.

    Attributes:
        name: Of its node.
        share: Of the network's multiplications, 0..1.
        error: Mean squared change of the logits when it alone is quantized.
    """

    name: str
    share: float
    error: float


class Quantizer:
    """A network whose ranges are known, and how much each of its layers minds int8."""

    def __init__(self, model: Any, inputs: Sequence[Array], words: str) -> None:  # noqa: ANN401
        """Run the network on images: for the range of each layer's inputs, and for its error.

        Args:
            model: An ``onnx.ModelProto`` in float32; it is not changed.
            inputs: What the network sees of some images, each float32 (1, channels, h, w).
            words: Which images.

        Raises:
            ExportError: The network has no convolution with fixed weights.
        """
        import onnx

        self._model = onnx.shape_inference.infer_shapes(model)
        self._words = words
        sizes = _weight_sizes(self._model)
        if not sizes:
            raise ExportError(
                "the network has no convolution with fixed weights, so there is nothing that int8 "
                "would make quicker; export without --int8"
            )
        with tempfile.TemporaryDirectory() as folder:
            self._ranges = self._calibrate(inputs, Path(folder))
            self.layers = self._weigh(sizes, inputs, Path(folder) / "weighed.onnx")

    def candidates(self) -> Iterator[tuple[Any, Quantized]]:
        """Yield quantized networks, the quickest first; each keeps one more layer in float32.

        The first keeps what costs next to nothing. The layer that goes next is the one with the
        most error for each multiplication.
        """
        order = sorted(self.layers, key=lambda layer: -layer.error / layer.share)
        shares = np.cumsum([layer.share for layer in order])
        first = int(np.searchsorted(shares, CHEAP, side="right"))
        for count in range(first, len(order)):
            share = float(np.clip(1 - sum(layer.share for layer in order[:count]), 0, 1))
            if count > first and share < LEAST_INT8:
                return
            kept = {layer.name for layer in order[:count]}
            told = Quantized(
                images=self._words,
                layers=len(order) - count,
                float_layers=tuple(layer.name for layer in self.layers if layer.name in kept),
                share=share,
            )
            yield self._quantize({layer.name for layer in order[count:]}), told

    def _calibrate(self, inputs: Sequence[Array], folder: Path) -> Any:  # noqa: ANN401 - TensorsData
        """Return the least and the largest value of each layer's inputs."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, create_calibrator

        name = self._model.graph.input[0].name
        bar = tqdm(inputs, desc="calibrating", unit="image", leave=False, disable=None)
        rows = ({name: each} for each in bar)

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
            def get_next(self) -> dict[str, Array] | None:
                return next(rows, None)

        onnx.save(self._model, folder / "float.onnx")
        calibrator = create_calibrator(
            folder / "float.onnx", LAYERS, str(folder / "augmented.onnx")
        )
        calibrator.collect_data(Reader())
        return calibrator.compute_data()

    def _weigh(
        self, sizes: dict[str, int], inputs: Sequence[Array], file: Path
    ) -> tuple[Layer, ...]:
        """Measure each layer's cost and its error alone: errors of layers nearly add up."""
        taken = sorted({int(each) for each in np.linspace(0, len(inputs) - 1, WEIGHED)})
        few = [inputs[each] for each in taken]
        costs = self._multiplications(sizes, few[0])
        expected = _logits(self._model, few, file)
        bar = tqdm(sizes, desc="weighing layers", unit="layer", leave=False, disable=None)
        layers = []
        for name in bar:
            found = _logits(self._quantize({name}), few, file)
            error = np.mean([np.mean((a - b) ** 2) for a, b in zip(expected, found, strict=True)])
            layers.append(Layer(name, costs[name] / sum(costs.values()), float(error)))
        return tuple(layers)

    def _multiplications(self, sizes: dict[str, int], inputs: Array) -> dict[str, int]:
        """Count the multiplications of each layer: each weight, once for each pixel."""
        import onnx
        from onnx import helper
        from onnxruntime import InferenceSession

        # A convolution's weights meet each pixel of its output, a transposed one's of its input
        places = {
            node.name: node.output[0] if node.op_type == "Conv" else node.input[0]
            for node in self._model.graph.node
            if node.name in sizes
        }
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        fed = {model.graph.input[0].name: inputs}
        wanted = sorted(set(places.values()) - set(fed))
        given = {each.name for each in model.graph.output}
        model.graph.output.extend(
            helper.make_empty_tensor_value_info(each) for each in wanted if each not in given
        )
        session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        pixels = dict(zip(wanted, session.run(wanted, fed), strict=True)) | fed
        return {
            name: sizes[name] * int(np.prod(pixels[place].shape[2:]))
            for name, place in places.items()
        }

    def _quantize(self, names: Set[str]) -> Any:  # noqa: ANN401 - onnx.ModelProto
        """Return the network with these layers in int8."""
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=True,  # weights within -64..64, see above
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=sorted(names),
            nodes_to_exclude=[],
            op_types_to_quantize=list(LAYERS),
            extra_options={"OpTypesToExcludeOutputQuantization": list(LAYERS)},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # it appends its nodes at the end
        return without_traces(quantizer.model.model)


def _logits(model: Any, inputs: Sequence[Array], file: Path) -> list[Array]:  # noqa: ANN401
    file.write_bytes(model.SerializeToString())
    backend = onnx_backend(file, "onnxruntime")
    return [backend(each) for each in inputs]


def _weight_sizes(model: Any) -> dict[str, int]:  # noqa: ANN401 - onnx.ModelProto
    """Return how many weights each layer has, in the network's order."""
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    return {
        node.name: sizes[node.input[1]]
        for node in model.graph.node
        if node.op_type in LAYERS and node.input[1] in sizes
    }
