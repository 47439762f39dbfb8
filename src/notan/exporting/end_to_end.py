"""One graph from pixels to the mask: what Preprocessor and Postprocessing do, around a network.

The functions below are no Python: onnxscript translates their text into ONNX operators. They
compute what OpenCV computes in ``notan.modelfile.preprocess.resize``:

- A side that shrinks is averaged over areas: a matrix product for each side, whose weights are
  made in the graph from the sizes. They are shares of whole numbers, so no rounding moves an edge.
- A side that grows is interpolated between two neighbours. Images are so in whole numbers, as
  OpenCV does it: weights of eleven bits, and low bits dropped between the two sides.

Source: OpenCV 5, modules/imgproc/src/resize.cpp (computeResizeAreaTab, ResizeAreaFastVec,
    VResizeLinearVec_32s8u). What differs: a grey level is one off where a mean lies on a half and
    its sum was formed in another order, in about one of 100,000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import helper, numpy_helper
from onnxscript import BOOL, DOUBLE, FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

from notan.errors import ExportError
from notan.exporting.onnx import INPUT, OUTPUT, without_traces
from notan.modelfile.postprocess import FLOAT32_EPSILON

if TYPE_CHECKING:
    from notan.modelfile.card import Card
    from notan.modelfile.postprocess import Postprocessing
    from notan.modelfile.preprocess import Preprocessor

IMAGE, PROBABILITY, MASK = "image", "probability", "mask"
own = Opset("notan", 1)


@script(own, default_opset=op)
def area_weights(before: INT64, after: INT64) -> FLOAT:
    """Return the share of each old pixel in each new one, (after, before)."""
    whole = before * after  # the side, in units of which pixels of both kinds hold a whole number
    top = op.Unsqueeze(op.Range(0, whole, before), 1)
    left = op.Range(0, whole, after)
    # OpenVINO has 32 bits for it: nothing below 0 may be multiplied
    overlap = op.Max(op.Min(top + before, left + after) - op.Max(top, left), 0)
    # OpenCV leaves out what is less than a thousandth of a pixel
    counted = op.Where(overlap * 1000 > after, overlap, 0)
    return op.Cast(counted, to=1) / op.Cast(before, to=1)


@script(own, default_opset=op)
def neighbours(before: INT64, after: INT64) -> tuple[INT64, INT64, FLOAT, FLOAT]:
    """Return the two old pixels that each new one lies between, and the weights of either."""
    numerator = (op.Range(0, after, 1) * 2 + 1) * before - after
    centre = op.Cast(numerator, to=1) / op.Cast(after * 2, to=1)
    floor = op.Floor(centre)
    far = centre - floor
    near = 1.0 - far
    first = op.Cast(floor, to=7)
    low = op.Clip(first, 0, before - 1)
    high = op.Clip(first + 1, 0, before - 1)
    return low, high, near, far


@script(own, default_opset=op)
def shrink(values: FLOAT, size: INT64, wanted: INT64) -> FLOAT:
    """Average the last two axes over areas, to the size wanted or less."""
    smaller = op.Min(size, wanted)
    down = area_weights(op.Gather(size, 0), op.Gather(smaller, 0))
    across = area_weights(op.Gather(size, 1), op.Gather(smaller, 1))
    return op.MatMul(down, op.MatMul(values, op.Transpose(across, perm=[1, 0])))


@script(own, default_opset=op)
def shrink_image(levels: FLOAT, size: INT64, wanted: INT64) -> FLOAT:
    """Shrink to grey levels: OpenCV rounds a half up where both sides are halved, else to even."""
    mean = shrink(levels, size, wanted)
    is_half = op.ReduceMin(op.Cast(op.Equal(size, wanted * 2), to=6), keepdims=0) > 0
    return op.Where(is_half, op.Floor(mean + 0.5), op.Round(mean))


@script(own, default_opset=op)
def grow_image(levels: FLOAT, size: INT64, wanted: INT64) -> FLOAT:
    """Interpolate grey levels (channels, height, width) that were shrunk to that or less."""
    smaller = op.Min(size, wanted)
    left, right, near, far = neighbours(op.Gather(smaller, 1), op.Gather(wanted, 1))
    top, bottom, above, below = neighbours(op.Gather(smaller, 0), op.Gather(wanted, 0))
    whole = op.Cast(levels, to=6)
    near_bits = op.Cast(op.Round(near * 2048.0), to=6)
    far_bits = op.Cast(op.Round(far * 2048.0), to=6)
    wide = op.Gather(whole, left, axis=2) * near_bits + op.Gather(whole, right, axis=2) * far_bits
    dropped = wide / 16
    above_bits = op.Unsqueeze(op.Cast(op.Round(above * 2048.0), to=6), 1)
    below_bits = op.Unsqueeze(op.Cast(op.Round(below * 2048.0), to=6), 1)
    upper = op.Gather(dropped, top, axis=1) * above_bits / 65536
    lower = op.Gather(dropped, bottom, axis=1) * below_bits / 65536
    return op.Cast((upper + lower + 2) / 4, to=1)


@script(own, default_opset=op)
def grow_map(values: FLOAT, size: INT64, wanted: INT64) -> FLOAT:
    """Interpolate a map (height, width) that was shrunk to the size wanted or less."""
    smaller = op.Min(size, wanted)
    left, right, near, far = neighbours(op.Gather(smaller, 1), op.Gather(wanted, 1))
    top, bottom, above, below = neighbours(op.Gather(smaller, 0), op.Gather(wanted, 0))
    wide = op.Gather(values, left, axis=1) * near + op.Gather(values, right, axis=1) * far
    upper = op.Gather(wide, top, axis=0) * op.Unsqueeze(above, 1)
    lower = op.Gather(wide, bottom, axis=0) * op.Unsqueeze(below, 1)
    return upper + lower


@script(own, default_opset=op)
def unpack(image: UINT8) -> FLOAT:
    """Return an image's grey levels, channels first."""
    return op.Cast(op.Transpose(image, perm=[2, 0, 1]), to=1)


@script(own, default_opset=op)
def fit(size: INT64, image_size: INT64) -> INT64:
    """Return the size that keeps an image's proportions and fits, as ``Preprocessor.fit``."""
    sides = op.Cast(size, to=11)
    shrinking = op.ReduceMin(op.Cast(image_size, to=11) / sides, keepdims=0)
    fitting = op.Cast(op.Round(sides * op.Min(shrinking, op.Cast(1.0, to=11))), to=7)
    return op.Max(fitting, 1)


@script(own, default_opset=op)
def normalize(levels: FLOAT, size: INT64, stride: INT64, scale: FLOAT, shift: FLOAT) -> FLOAT:
    """Return the network's input: padded to its stride, scaled, in a batch of one."""
    missing = op.Mod(stride - op.Mod(size, stride), stride)
    pads = op.Concat(op.Constant(value_ints=[0, 0]), missing, axis=0)
    padded = op.Pad(levels, pads, None, op.Constant(value_ints=[1, 2]), mode="edge")
    return op.Unsqueeze(padded * scale + shift, 0)


@script(own, default_opset=op)
def sigmoid(logits: FLOAT) -> FLOAT:
    """Return probabilities."""
    return 1.0 / (1.0 + op.Exp(0.0 - op.Clip(logits, -80.0, 80.0)))


@script(own, default_opset=op)
def without_padding(logits: FLOAT, resized: INT64) -> FLOAT:
    """Return the network's probabilities, (height, width)."""
    plane = op.Constant(value_ints=[0, 1])
    cut = op.Slice(op.Squeeze(logits, plane), op.Constant(value_ints=[0, 0]), resized, plane)
    return sigmoid(cut)


@script(own, default_opset=op)
def restore(probability: FLOAT, resized: INT64, size: INT64) -> FLOAT:
    """Bring a map back to the image's own size."""
    return grow_map(shrink(probability, resized, size), resized, size)


@script(own, default_opset=op)
def calibrate(
    probability: FLOAT, temperature: FLOAT, bias: FLOAT, least: FLOAT, most: FLOAT
) -> FLOAT:
    """Return calibrated probabilities, as ``Postprocessing.calibrate``."""
    inside = op.Clip(probability, least, most)
    return sigmoid(op.Log(inside / (1.0 - inside)) / temperature + bias)


@script(own, default_opset=op)
def emptied(mask: BOOL, least: DOUBLE) -> BOOL:
    """Return a mask, or none of it where it covers less than a share of the image."""
    covered = op.Cast(op.ReduceSum(op.Cast(mask, to=7), keepdims=0), to=11)
    return op.And(mask, covered >= least * op.Cast(op.Size(mask), to=11))


FUNCTIONS = (
    *(area_weights, neighbours, shrink, shrink_image, grow_image, grow_map, unpack, fit),
    *(normalize, sigmoid, without_padding, restore, calibrate, emptied),
)


class _Graph:
    """Nodes and constants before or behind a network, whose own names have no slash."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.float32) -> str:
        """Add a constant; return its name."""
        name = f"notan/{name}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def call(self, function: Any, output: str, *inputs: str) -> str:  # noqa: ANN401 - onnxscript's
        """Add a call of one of the functions above; return the name of what it gives."""
        self.nodes.append(helper.make_node(function.name, inputs, [output], domain=own.domain))
        return output


def around(network: Any, card: Card) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Put a network between what makes its input of an image and what makes a mask of its answer.

    Args:
        network: An ``onnx.ModelProto`` from inputs (n, c, h, w) to logits (n, 1, h, w).
        card: Says how images become inputs, and logits masks.

    Returns:
        An ``onnx.ModelProto`` from ``image``, uint8 (height, width, c), to ``probability``, float32
        (height, width), and ``mask``, bool (height, width).

    Raises:
        ExportError: The mask depends on more than each pixel's own probability.
    """
    refuse_what_is_no_graph(card.postprocessing)
    before, after = _Graph(), _Graph()
    size, resized = _prepare(before, card.preprocess)
    _decide(after, card.postprocessing, size, resized)
    types, plane = onnx.TensorProto, ["height", "width"]
    graph = helper.make_graph(
        [*before.nodes, *network.graph.node, *after.nodes],
        "end-to-end",
        [helper.make_tensor_value_info(IMAGE, types.UINT8, [*plane, len(card.preprocess.mean)])],
        [
            helper.make_tensor_value_info(PROBABILITY, types.FLOAT, plane),
            helper.make_tensor_value_info(MASK, types.BOOL, plane),
        ],
        [*before.constants, *network.graph.initializer, *after.constants],
        value_info=network.graph.output,
    )
    model = helper.make_model(
        graph,
        functions=[each.to_function_proto() for each in FUNCTIONS],
        opset_imports=[*network.opset_import, helper.make_opsetid(own.domain, own.version)],
        ir_version=network.ir_version,
    )
    model = onnx.inliner.inline_local_functions(model)  # not every runtime knows functions
    del model.opset_import[:]
    model.opset_import.extend(network.opset_import)
    return without_traces(_with_plain_casts(model))


def _with_plain_casts(model: Any) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Name the type of each number that onnxscript casts "like" another tensor.

    ONNX Runtime would warn of each of them, in whosever program it runs.
    """
    known = onnx.shape_inference.infer_shapes(model).graph
    typed = (*known.value_info, *known.input, *known.output)
    types = {each.name: each.type.tensor_type.elem_type for each in typed}
    types |= {each.name: each.data_type for each in known.initializer}
    for node in model.graph.node:
        if node.op_type == "CastLike":
            value, like = node.input
            cast = helper.make_node("Cast", [value], node.output, node.name, to=types[like])
            node.CopyFrom(cast)
    return model


def _prepare(graph: _Graph, preprocess: Preprocessor) -> tuple[str, str]:
    """Add what makes the network's input; return the image's size and that of the resized one."""
    graph.nodes.append(helper.make_node("Shape", [IMAGE], ["notan/size"], start=0, end=2))
    size = resized = "notan/size"
    levels = graph.call(unpack, "notan/levels", IMAGE)
    if preprocess.image_size is not None:
        resized = graph.constant("image_size", preprocess.image_size, np.int64)
        if preprocess.keep_aspect_ratio:
            resized = graph.call(fit, "notan/resized", size, resized)
        levels = graph.call(shrink_image, "notan/shrunk", levels, size, resized)
        if not preprocess.keep_aspect_ratio:
            levels = graph.call(grow_image, "notan/grown", levels, size, resized)
    scale, shift = preprocess.scale_and_shift()
    constants = [
        graph.constant("stride", preprocess.stride, np.int64),
        graph.constant("scale", scale[:, None, None]),
        graph.constant("shift", shift[:, None, None]),
    ]
    graph.call(normalize, INPUT, levels, resized, *constants)
    return size, resized


def _decide(graph: _Graph, rule: Postprocessing, size: str, resized: str) -> None:
    """Add what makes probabilities and a mask of the network's logits."""
    probability = graph.call(without_padding, "notan/cut", OUTPUT, resized)
    if resized != size:
        probability = graph.call(restore, "notan/restored", probability, resized, size)
    if rule.is_calibrated:
        constants = [
            graph.constant("temperature", rule.temperature),
            graph.constant("bias", rule.bias),
            graph.constant("least", FLOAT32_EPSILON),
            graph.constant("most", 1 - FLOAT32_EPSILON),
        ]
        probability = graph.call(calibrate, "notan/calibrated", probability, *constants)
    graph.nodes.append(helper.make_node("Identity", [probability], [PROBABILITY]))
    threshold = graph.constant("threshold", rule.threshold)
    least = rule.min_foreground_fraction
    mask = "notan/mask" if least else MASK
    graph.nodes.append(helper.make_node("GreaterOrEqual", [PROBABILITY, threshold], [mask]))
    if least:
        graph.call(emptied, MASK, mask, graph.constant("least_covered", least, np.float64))


def refuse_what_is_no_graph(rule: Postprocessing) -> None:
    """Refuse a rule by which a pixel's class depends on other pixels.

    Raises:
        ExportError: It is such a rule; the message names it.
    """
    told = {
        "keep_largest": rule.keep_largest,
        "min_component_fraction": rule.min_component_fraction,
        "fill_holes_fraction": rule.fill_holes_fraction,
        "threshold_rule dice": rule.threshold_rule == "dice",
    }
    if found := [name for name, value in told.items() if value]:
        raise ExportError(
            f"--end-to-end: the model's masks are made by {rule.in_words()}, and what goes by "
            f"components or by the whole image ({', '.join(found)}) cannot be put into a graph; "
            "export without --end-to-end, and do the rest by hand: docs/how-to/without-notan.md"
        )
