"""Files of weights: an encoder's own, and those of others; whatever is no weights is refused.

Ours is a safetensors file of ``encoder.state_dict()`` whose metadata name the encoder. Of others, a
state dict that PyTorch saved is read too, with ``weights_only=True``: nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from notan.errors import CheckpointError
from notan.io.write import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from notan.models.base import Encoder

NAME = "notan-encoder"
ORIGIN = "notan-encoder-origin"
IMAGES = "notan-encoder-images"
LONGEST_HEADER = 100_000_000
"""safetensors' own limit."""
DAMAGED = "the file is damaged or cut short; use another copy"


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: The file.
        weights: Tensors under the file's own names.
        metadata: What a safetensors file says of itself; empty in a state dict of PyTorch.
        sha256: Of the whole file.
    """

    path: Path
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str

    @property
    def encoder(self) -> str | None:
        """The encoder that it was written for; None where it does not say."""
        return self.metadata.get(NAME)

    @property
    def origin(self) -> str:
        """What the weights were learned from, in words; empty where it does not say."""
        return self.metadata.get(ORIGIN, "")

    @property
    def images(self) -> dict[str, tuple[str, ...]]:
        """Hashes of the images that the weights know, by how; empty where it does not say.

        Raises:
            CheckpointError: What it says cannot be read.
        """
        try:
            found = json.loads(self.metadata.get(IMAGES, "{}"))
            return {str(how): tuple(map(str, hashes)) for how, hashes in found.items()}
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: what the file says of its images cannot be read "
                f"({str(error).splitlines()[0]}); {DAMAGED}"
            ) from error


def save_encoder(
    path: Path,
    name: str,
    encoder: Encoder,
    *,
    origin: str = "",
    images: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write an encoder's weights, for ``train.encoder_weights``, whole or not at all.

    Args:
        path: The file, ``.safetensors`` by custom.
        name: What ``model.encoder`` calls the encoder.
        encoder: Its weights, on any device.
        origin: What they were learned from, in words for the card of models that start from them.
        images: Hashes of those, by what a card calls them (``unlabelled_hashes``), so that a
            score on them can say so.

    Raises:
        StorageError: The file could not be written; an older one is left as it was.
    """
    weights = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in encoder.state_dict().items()
    }
    told = {NAME: name, ORIGIN: origin, IMAGES: json.dumps(images or {}), "format": "pt"}
    write_bytes(path, save(weights, metadata=told))


def read_weights(path: Path) -> WeightsFile:
    """Read a file of weights, of either kind, by its content and not by its name.

    Raises:
        CheckpointError: It is missing, damaged, no file of weights, or more than weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file of weights") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if _begins_as_safetensors(start):
        weights, metadata = _read_safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        weights, metadata = _read_state_dict(path), {}
    else:
        raise CheckpointError(
            f"{path}: not a file of weights (it begins with {start!r}); give a .safetensors file, "
            "or a .pth file with a state dict that PyTorch saved"
        )
    return WeightsFile(path, weights, metadata, digest)


def _begins_as_safetensors(start: bytes) -> bool:
    """Eight bytes of length, then JSON."""
    return (
        len(start) > 8
        and start[8:9] == b"{"
        and struct.unpack("<Q", start[:8])[0] <= LONGEST_HEADER
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return weights, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({error}); {DAMAGED}") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle raises anything
        _refuse_pickle(path, error)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path}: holds a {type(found).__name__}, and a state dict is wanted; save one with "
            "torch.save(network.state_dict(), FILE)"
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(tensor).__name__}, and a state dict of tensors alone "
                "is wanted; save it with torch.save(network.state_dict(), FILE)"
            )
    return dict(found)


def _refuse_pickle(path: Path, error: Exception) -> NoReturn:
    """Say of a file that PyTorch did not read whether it is unsafe or damaged."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign or isinstance(error, pickle.UnpicklingError):
        named = (
            f"more than weights ({foreign[1]})" if foreign else "no weights alone, or is damaged"
        )
        raise CheckpointError(
            f"{path}: holds {named}; such a file could run any code when opened, so it is not "
            "opened; where you trust it, save its weights with "
            "torch.save(network.state_dict(), FILE)"
        ) from error
    reason = " ".join(str(error).split(". ")[0].split())[:120] or type(error).__name__
    raise CheckpointError(f"{path}: cannot be read as weights ({reason}); {DAMAGED}") from error
