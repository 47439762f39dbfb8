"""The container of a checkpoint: weights as safetensors, with text in their metadata.

Never a pickle. The metadata are read without torch and without the weights.

Source: huggingface.co/docs/safetensors: 8 bytes with the length of a JSON header, the header, whose
    key ``__metadata__`` holds text by name, and the values.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from notan.errors import CheckpointError
from notan.io.digest import sha256
from notan.io.write import is_text, write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

LONGEST_HEADER = 100_000_000
"""safetensors' own limit; a longer claim is a damaged or foreign file."""


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text whole or not at all.

    Raises:
        StorageError: The file could not be written; an older one is left as it was.
    """
    from safetensors.torch import save  # imports torch, which reading metadata must not

    content = save(dict(weights), metadata={**metadata, "format": "pt"})
    write_bytes(path, _in_one_order(content))


def _in_one_order(content: bytes) -> bytes:
    """Sort the metadata, whose order safetensors leaves to chance: one model is one file."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, memoryview(content)[8 + length :]))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors by name.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    weights: dict[str, Tensor]
    try:
        # safetensors opens only what has a name that is text
        weights = load_file(path) if is_text(path) else load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error})") from error
    return weights


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and values, whatever the order."""
    import torch

    parts: list[str | memoryview] = []
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        parts += (
            f"{name} {tensor.dtype} {tuple(tensor.shape)}",
            tensor.flatten().view(torch.uint8).numpy().data,  # NumPy knows no bfloat16
        )
    return sha256(*parts)


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the text by name, from the header alone.

    Raises:
        CheckpointError: The file is missing, unreadable or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such model file; train writes one as RUN/best.safetensors"
        )
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER + 1
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else None
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error})") from error
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: {_foreign(start)}; a notan .safetensors file is wanted")
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _foreign(start: bytes) -> str:
    """Say what a file that is no safetensors file looks like."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            "this is a PyTorch pickle, which can run any code when opened, so it is not opened; if "
            "you trust it, load it into its own network with torch.load(weights_only=True), and "
            "predict from Python with Predictor(TorchBackend(network), Preprocessor())"
        )
    return "not a safetensors file, or a damaged one"
