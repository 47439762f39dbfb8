"""Export: from a checkpoint to a portable file whose masks were compared before it was written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from notan.checkpoint import KEY, Exported, load_checkpoint
from notan.errors import ConfigError
from notan.export.onnx import OPSET, store_half, to_onnx
from notan.export.parity import check_parity, measure_parity
from notan.export.pictures import pictures_to_compare
from notan.extras import explaining_extras
from notan.portable import SUFFIX, hash_model, is_portable, write_portable
from notan.predict.backends import TorchBackend, rebuild
from notan.predict.backends.choose import installed_runtimes, portable_backend
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    import torch

    from notan.checkpoint import Card, Checkpoint, Parity

Kind = Literal["fp32", "half"]


def export(
    model: Path,
    out: Path | None = None,
    *,
    precision: Kind = "fp32",
    data_path: Path | None = None,
    own_model: torch.nn.Module | None = None,
) -> tuple[Path, Card]:
    """Write a portable file of a checkpoint, with its card.

    Args:
        model: The checkpoint.
        out: The file to write; None: beside the checkpoint, ``best.onnx`` or ``best-half.onnx``.
        precision: ``fp32``; ``half`` stores the weights in float16, a file half as large.
        data_path: Where pictures to compare on are; None: where the training found
            them. Where they are not, pictures are drawn, and the card says so.
        own_model: A fresh instance, where the checkpoint is of a class of the user's own.

    Returns:
        The file, and its card.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of a network that was not given.
        ConfigError: The file to write is not called ``.onnx``.
        DataError: The pictures cannot be read.
        ExportError: The network cannot be exported, or its masks would be others; nothing is
            written.
        MissingExtraError: A package for it is not installed.
        StorageError: The file could not be written.
    """
    out = out or model.with_name(
        f"{model.stem}{'' if precision == 'fp32' else f'-{precision}'}.onnx"
    )
    if not is_portable(out):
        raise ConfigError(f"{out}: a portable file is called .onnx, say {out.with_suffix(SUFFIX)}")
    with explaining_extras():
        import onnx  # noqa: F401 - before the work, not after it

        runtimes = installed_runtimes()
        checkpoint = load_checkpoint(model)
        content = _convert(checkpoint, precision, own_model)
        parity = _compare(checkpoint, content, precision, data_path, own_model, runtimes)
    card = checkpoint.card
    exported = Exported(
        checkpoint=card.sha256,
        precision=precision,
        opset=OPSET,
        parity=parity,
    )
    card = card.model_copy(update={"exported": exported, "sha256": hash_model(content)})
    write_portable(out, content, {KEY: card.model_dump_json()})
    return out, card


def _convert(checkpoint: Checkpoint, precision: Kind, own_model: torch.nn.Module | None) -> bytes:
    """Return the serialized model."""
    model = to_onnx(rebuild(checkpoint, own_model), checkpoint.card.preprocess.stride)
    if precision == "half":
        model = store_half(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _compare(
    checkpoint: Checkpoint,
    content: bytes,
    precision: Kind,
    data_path: Path | None,
    own_model: torch.nn.Module | None,
    runtimes: tuple[str, ...],
) -> tuple[Parity, ...]:
    """Measure and check the agreement under every runtime that is installed."""
    card = checkpoint.card
    pictures = pictures_to_compare(card, data_path)
    network = TorchBackend(rebuild(checkpoint, own_model))
    reference = Predictor(network, card.preprocess, decision=card.decision, card=card)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        for runtime in runtimes:
            backend = portable_backend(file, runtime)
            exported = Predictor(backend, card.preprocess, decision=card.decision, card=card)
            parity = measure_parity(reference, exported, pictures, runtime=runtime)
            check_parity(parity, precision)
            found.append(parity)
    return tuple(found)
