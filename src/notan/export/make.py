"""Export: from a checkpoint to an ONNX model whose masks were compared before it was written."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from notan.checkpoint import KEY, Exported, load_checkpoint
from notan.errors import ConfigError
from notan.export.images import images_to_calibrate, images_to_compare, network_inputs
from notan.export.onnx import OPSET, store_half, to_onnx
from notan.export.parity import agrees, check_parity, measure_parity
from notan.export.quantize import Quantizer
from notan.extras import explaining_extras
from notan.portable import SUFFIX, hash_model, is_onnx, write_onnx
from notan.predict.backends import TorchBackend, rebuild
from notan.predict.backends.choose import installed_runtimes, portable_backend
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from notan.checkpoint import Card, Checkpoint, Parity, Quantized
    from notan.export.images import ImageSet

logger = logging.getLogger("notan")

Kind = Literal["fp32", "half", "int8"]


def export(
    model: Path,
    out: Path | None = None,
    *,
    precision: Kind = "fp32",
    data_path: Path | None = None,
    own_model: torch.nn.Module | None = None,
) -> tuple[Path, Card]:
    """Write an ONNX model of a checkpoint, with its card.

    Args:
        model: The checkpoint.
        out: The file to write; None: beside the checkpoint, ``best.onnx``, ``best-half.onnx`` or
            ``best-int8.onnx``.
        precision: ``fp32``; ``half`` stores the weights in float16, a file half as large; ``int8``
            computes in eight bits, calibrated on validation images.
        data_path: Where images to compare on are; None: where the training found
            them. Where they are not, images are drawn, and the card says so; int8 wants them.
        own_model: A fresh instance, where the checkpoint is of a class of the user's own.

    Returns:
        The file, and its card.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of a network that was not given.
        ConfigError: The file to write is not called ``.onnx``.
        DataError: The images cannot be read.
        ExportError: The network cannot be exported, or its masks would be others, or int8 has no
            images to be calibrated on; nothing is written.
        MissingExtraError: A package for it is not installed.
        StorageError: The file could not be written.
    """
    out = out or model.with_name(
        f"{model.stem}{'' if precision == 'fp32' else f'-{precision}'}.onnx"
    )
    if not is_onnx(out):
        raise ConfigError(f"{out}: an ONNX model is called .onnx, say {out.with_suffix(SUFFIX)}")
    with explaining_extras():
        import onnx  # noqa: F401 - before the work, not after it

        runtimes = installed_runtimes()
        checkpoint = load_checkpoint(model)
        images = images_to_compare(checkpoint.card, data_path)
        for content, quantized in _networks(checkpoint, precision, own_model, data_path):
            parity = _compare(checkpoint, content, precision, images, own_model, runtimes)
            if all(agrees(each, precision) for each in parity):
                break
            if quantized:
                logger.info("%s", _in_words(quantized, parity[-1]))
    for each in parity:
        check_parity(each, precision)
    card = checkpoint.card
    exported = Exported(
        checkpoint=card.sha256,
        precision=precision,
        opset=OPSET,
        parity=parity,
        quantized=quantized,
    )
    card = card.model_copy(update={"exported": exported, "sha256": hash_model(content)})
    write_onnx(out, content, {KEY: card.model_dump_json()})
    return out, card


def _networks(
    checkpoint: Checkpoint,
    precision: Kind,
    own_model: torch.nn.Module | None,
    data_path: Path | None,
) -> Iterator[tuple[bytes, Quantized | None]]:
    """Yield the serialized network; in int8 there are several, the quickest first."""
    calibration = images_to_calibrate(checkpoint.card, data_path) if precision == "int8" else None
    model = to_onnx(rebuild(checkpoint, own_model), checkpoint.card.preprocess.stride)
    if calibration is None:
        yield _serialize(store_half(model) if precision == "half" else model), None
        return
    inputs = network_inputs(checkpoint.card, calibration)
    for candidate, told in Quantizer(model, inputs, calibration.words).candidates():
        yield _serialize(candidate), told


def _compare(
    checkpoint: Checkpoint,
    content: bytes,
    precision: Kind,
    images: ImageSet,
    own_model: torch.nn.Module | None,
    runtimes: tuple[str, ...],
) -> tuple[Parity, ...]:
    """Measure the agreement under every runtime that is installed, up to one that disagrees."""
    card = checkpoint.card
    network = TorchBackend(rebuild(checkpoint, own_model))
    reference = Predictor(network, card.preprocess, postprocessing=card.postprocessing, card=card)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        for runtime in runtimes:
            backend = portable_backend(file, runtime)
            exported = Predictor(
                backend, card.preprocess, postprocessing=card.postprocessing, card=card
            )
            found.append(measure_parity(reference, exported, images, runtime=runtime))
            if not agrees(found[-1], precision):
                break
    return tuple(found)


def _serialize(model: Any) -> bytes:  # noqa: ANN401 - onnx.ModelProto
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _in_words(quantized: Quantized, parity: Parity) -> str:
    return (
        f"{quantized.layers} convolutions in int8, {len(quantized.float_layers)} in float32: mask "
        f"IoU {parity.mask_iou:.5f} under {parity.runtime}, which is too little"
    )
