"""Export: from a checkpoint to an ONNX model, whose masks are compared before it is written."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from notan.data.folders import open_as_trained
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError, ExportError, explaining_extras
from notan.exporting.onnx import OPSET, Quantizer, store_half, to_onnx
from notan.modelfile.card import KEY, Exported, Parity, load_checkpoint
from notan.modelfile.onnx import SUFFIX, hash_model, is_onnx, write_onnx
from notan.modelfile.preprocess import resize
from notan.prediction.backends import TorchBackend, installed_runtimes, onnx_backend, rebuild
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from notan.data.samples import Source
    from notan.modelfile.card import Card, Quantized
    from notan.models.own import Network
    from notan.prediction.backends import Array, Backend, OnnxBackend
    from notan.prediction.predictor import Prediction
    from notan.types import Image8, Mask, Probability

logger = logging.getLogger("notan")

Kind = Literal["fp32", "half", "int8"]

MOST_IMAGES = 32
"""Most images that masks are compared on, and that an int8 network is calibrated on."""

FEWEST = 16
"""Validation images below which training images are calibrated on."""

DRAWN_SIZE = (120, 152)
"""Of images that are drawn for want of real ones; no multiple of any stride."""

LEAST_IOU = {"fp32": 0.9999, "half": 0.999, "int8": 0.995}
"""What the masks of each precision must agree by.

Of ``half``: float16 keeps eleven bits of each weight, so a logit moves by a thousandth or so, and
with it the pixels that lie on the threshold. Of ``int8``: eight bits move a logit by hundredths.
"""

LEAST_IOU_END_TO_END = 0.999
"""The same of a graph that resizes images itself, whatever its precision.

Now and then a grey level is one off (``notan.exporting.end_to_end`` says where), and with it the
pixels that lie on the threshold.
"""

MOST_DIFFERENCE_END_TO_END = 0.1
"""Most that a pixel's probability may be off there, int8 aside: masks that are empty agree always.

Measured: 1e-6 on cell nuclei, 0.002 on drawn images at the default model's own size, and 0.014
where noise is shrunk, whose means often lie on the half between two grey levels.
"""

ADVICE = {
    "fp32": "the runtime computes something else; please report it with the model's card",
    "half": "export without --half",
    "int8": "export without --int8 (OpenVINO is quicker with --precision bf16, too), or train a "
    "wider network (model.width): it bears int8 better",
}
"""What to do where they do not."""


class Answer(NamedTuple):
    """What a graph says of an image that does all by itself; of the image's own size."""

    probability: Probability
    mask: Mask


class ImageSet(NamedTuple):
    """Images of an export, and in words how many there are and where they are from."""

    images: tuple[Image8, ...]
    words: str


def export(
    model: Path,
    out: Path | None = None,
    *,
    precision: Kind = "fp32",
    data_path: Path | None = None,
    own_model: Network | None = None,
    end_to_end: bool = False,
) -> tuple[Path, Card]:
    """Write an ONNX model of a checkpoint, with its card, less the names of folders and images.

    Args:
        model: The checkpoint.
        out: The file to write; None: beside the checkpoint, ``best.onnx``, ``best-half.onnx``,
            ``best-int8.onnx``, or the like with ``-end-to-end``.
        precision: ``fp32``; ``half`` stores the weights in float16, a file half as large; ``int8``
            computes in eight bits, calibrated on validation images.
        data_path: Where images to compare on are; None: where the training found them. Where they
            are not, images are drawn, and the card says so; int8 wants them.
        own_model: Where the checkpoint is of a class of the user's own: a fresh instance, the
            class, or ``package:Class``.
        end_to_end: Put all into the graph that lies between an image's pixels and its mask.

    Returns:
        The file, and its card.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of a network that was not given.
        ConfigError: The file to write is not called ``.onnx``.
        DataError: The images cannot be read.
        ExportError: The network or, end to end, its postprocessing cannot be exported, or its
            masks would be others, or int8 has no images to be calibrated on; nothing is written.
        MissingExtraError: A package for it is not installed.
        StorageError: The file could not be written.
    """
    kind = ("" if precision == "fp32" else f"-{precision}") + ("-end-to-end" if end_to_end else "")
    out = out or model.with_name(f"{model.stem}{kind}.onnx")
    if not is_onnx(out):
        raise ConfigError(f"{out}: an ONNX model is called .onnx, say {out.with_suffix(SUFFIX)}")
    with explaining_extras("export"):
        from notan.exporting.end_to_end import around, refuse_what_is_no_graph  # imports onnx

        checkpoint = load_checkpoint(model)
        card = checkpoint.card
        if end_to_end:
            refuse_what_is_no_graph(card.postprocessing)
        build = functools.partial(rebuild, checkpoint, own_model, path=model)
        network = build()  # before images are read
        images = images_to_compare(card, data_path)
        images = with_other_sizes(card, images) if end_to_end else images
        for graph, quantized in _networks(card, precision, network, data_path):
            content = _serialized(around(graph, card) if end_to_end else graph)
            parity = _compare(card, content, precision, images, build(), end_to_end=end_to_end)
            if all(agrees(each, precision, end_to_end=end_to_end) for each in parity):
                break
            if quantized:
                logger.info(
                    "%d convolutions in int8, %d in float32: mask IoU %.5f under %s, which is too "
                    "little",
                    *(quantized.layers, len(quantized.float_layers)),
                    *(parity[-1].mask_iou, parity[-1].runtime),
                )
    for each in parity:
        check_parity(each, precision, end_to_end=end_to_end)
    card = card.without_places()
    exported = Exported(
        checkpoint=card.sha256,
        precision=precision,
        opset=OPSET,
        parity=parity,
        quantized=quantized,
        end_to_end=end_to_end,
    )
    card = card.model_copy(update={"exported": exported, "sha256": hash_model(content)})
    write_onnx(out, content, {KEY: card.model_dump_json()})
    return out, card


def _networks(
    card: Card,
    precision: Kind,
    network: torch.nn.Module,
    data_path: Path | None,
) -> Iterator[tuple[Any, Quantized | None]]:
    """Yield the network, an ``onnx.ModelProto``; in int8 there are several, the quickest first."""
    calibration = images_to_calibrate(card, data_path) if precision == "int8" else None
    model = to_onnx(network, card.preprocess.stride, card.preprocess.channels)
    if calibration is None:
        yield store_half(model) if precision == "half" else model, None
        return
    inputs = network_inputs(card, calibration)
    yield from Quantizer(model, inputs, calibration.words).candidates()


def _serialized(model: Any) -> bytes:  # noqa: ANN401 - onnx.ModelProto
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def images_to_compare(card: Card, data_path: Path | None) -> ImageSet:
    """Return validation images, evenly spread; drawn ones where the data are not known here.

    Args:
        card: Of the model; says where its data were and which images were held back.
        data_path: The data folder; None: where the model's training found it, if it is there.

    Raises:
        DataError: The folder that was given is missing or does not fit.
    """
    source = _open(card, data_path, "val")
    if source is not None:
        return _some(source, "validation images")
    drawn = _some(DrawnSource(MOST_IMAGES, size=DRAWN_SIZE), "drawn images, for want of real ones")
    channels = np.arange(card.preprocess.channels) % drawn.images[0].shape[2]
    return drawn._replace(images=tuple(image[..., channels] for image in drawn.images))


def with_other_sizes(card: Card, images: ImageSet) -> ImageSet:
    """Add images of the sizes that resizing could get wrong, and drop those that tiles are for.

    Args:
        card: Of the model.
        images: As they are.
    """
    tiling = Tiling()
    whole = [each for each in images.images if not tiling.cuts(each.shape[:2], card.preprocess)]
    height, width = card.preprocess.image_size or (64, 64)
    sizes = (
        *((1, 1), (1, width), (2 * height, 2 * width), (3 * height + 1, width // 3 + 1)),
        *((height // 3 + 1, 3 * width + 1), (height + 7, width + 9)),
        (height // 2 + 1, width // 2 + 1),
    )
    others = [resize(images.images[n % len(images.images)], size) for n, size in enumerate(sizes)]
    return ImageSet((*whole, *others), f"{images.words} and {len(others)} of them in other sizes")


def images_to_calibrate(card: Card, data_path: Path | None) -> ImageSet:
    """Return images that show an int8 network what it will see: never drawn ones.

    They are of the validation split, or, where that holds fewer than 16, of the training split.

    Args:
        card: Of the model.
        data_path: The data folder; None: where the model's training found it.

    Raises:
        DataError: The folder that was given is missing or does not fit.
        ExportError: The data are not known here.
    """
    source = _open(card, data_path, "val")
    if source is None:
        place = card.run.data.path
        raise ExportError(
            "int8 is calibrated on images like those that the model was trained on, and "
            f"{f'{place} is not on this machine' if place else 'the model names no folder'}; say "
            "where they are with --data-path FOLDER"
        )
    if len(source) < FEWEST:
        training = _open(card, data_path, "train")
        if training is not None and len(training) > len(source):
            words = f"training images, for the validation split holds {len(source)} only"
            return _some(training, words)
    return _some(source, "validation images")


def _open(card: Card, data_path: Path | None, split: str) -> Source | None:
    """Open a split of the data that a model was trained on; None where they are not known here."""
    path = data_path or card.run.data.path
    if path is None or (data_path is None and not path.is_dir()):
        return None
    return open_as_trained(card, split, path)[0]


def _some(source: Source, words: str) -> ImageSet:
    """Take images that are evenly spread over a source."""
    count = len(source)
    taken = sorted({int(each) for each in np.linspace(0, count - 1, min(count, MOST_IMAGES))})
    return ImageSet(tuple(source[each].image for each in taken), f"{len(taken)} {words}")


def network_inputs(card: Card, images: ImageSet) -> list[Array]:
    """Return what the network sees of images, one input (1, channels, h, w) of each.

    Of an image that goes through in tiles it is the middle one.
    """
    seen: list[Array] = []

    def listen(inputs: Array) -> Array:
        seen.append(inputs)
        return np.zeros((len(inputs), 1, *inputs.shape[2:]), np.float32)

    predictor = Predictor(listen, card.preprocess, card=card)
    inputs = []
    for image in images.images:
        predictor(image)
        inputs.append(seen[len(seen) // 2])
        seen.clear()
    return inputs


def _compare(
    card: Card,
    content: bytes,
    precision: Kind,
    images: ImageSet,
    network: torch.nn.Module,
    *,
    end_to_end: bool,
) -> tuple[Parity, ...]:
    """Measure the agreement under every runtime that is installed, up to one that disagrees."""

    def predictor(backend: Backend) -> Predictor:
        return Predictor(backend, card.preprocess, postprocessing=card.postprocessing, card=card)

    reference = predictor(TorchBackend(network))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        for runtime in installed_runtimes():
            backend = onnx_backend(file, runtime)
            exported = functools.partial(_answer, backend) if end_to_end else predictor(backend)
            found.append(measure_parity(reference, exported, images, runtime=runtime))
            if not agrees(found[-1], precision, end_to_end=end_to_end):
                break
    return tuple(found)


def _answer(backend: OnnxBackend, image: Image8) -> Answer:
    return Answer(*backend.run(image))


def measure_parity(
    reference: Predictor,
    exported: Callable[[Image8], Prediction | Answer],
    images: ImageSet,
    *,
    runtime: str,
) -> Parity:
    """Compare the masks of two predictors at the images' own size.

    Args:
        reference: On PyTorch in float32.
        exported: The ONNX model.
        images: At least one.
        runtime: What runs the ONNX model.
    """
    overlaps, largest = [], 0.0
    words = f"comparing under {runtime}"
    for image in tqdm(images.images, desc=words, unit="image", leave=False, disable=None):
        one, other = reference(image), exported(image)
        both, either = one.mask & other.mask, one.mask | other.mask
        overlaps.append((int(np.count_nonzero(both)), int(np.count_nonzero(either))))
        largest = max(largest, float(np.abs(one.probability - other.probability).max()))
    return Parity(
        runtime=runtime,
        images=images.words,
        mask_iou=_iou(*(sum(counts) for counts in zip(*overlaps, strict=True))),
        worst_iou=min(_iou(*each) for each in overlaps),
        largest_difference=largest,
    )


def _iou(common: int, either: int) -> float:
    """Return intersection over union; two empty masks agree."""
    return common / either if either else 1.0


def agrees(parity: Parity, precision: str, *, end_to_end: bool) -> bool:
    """Say whether an ONNX model's masks are near enough to its checkpoint's."""
    if not end_to_end:
        return parity.mask_iou >= LEAST_IOU[precision]
    most = 1.0 if precision == "int8" else MOST_DIFFERENCE_END_TO_END
    least = min(LEAST_IOU[precision], LEAST_IOU_END_TO_END)
    return parity.mask_iou >= least and parity.largest_difference <= most


def check_parity(parity: Parity, precision: str, *, end_to_end: bool = False) -> None:
    """Refuse an ONNX model whose masks differ too much.

    Raises:
        ExportError: They do; the message says by how much.
    """
    if agrees(parity, precision, end_to_end=end_to_end):
        return
    least, advice, others = LEAST_IOU[precision], ADVICE[precision], ""
    if end_to_end:
        least = min(least, LEAST_IOU_END_TO_END)
        advice = f"export without --end-to-end, or {advice}"
        others = (
            f", and probabilities that differ by at most {MOST_DIFFERENCE_END_TO_END} where "
            f"{parity.largest_difference:.2g} was found"
        )
    raise ExportError(
        f"{precision} under {parity.runtime} gives other masks than the checkpoint: IoU "
        f"{parity.mask_iou:.5f} on {parity.images} (worst {parity.worst_iou:.5f}), at least "
        f"{least} is wanted{others}; nothing was written: {advice}"
    )
