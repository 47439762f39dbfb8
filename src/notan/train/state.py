"""Training state: everything that an exact resume needs, in files that survive a crash.

A state is a tree of tensors and plain values, written as safetensors with the plain part as JSON in
the metadata and a SHA-256 over both; never a pickle. The newest two are kept, each written whole or
not at all, so that one intact state is always there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from notan.checkpoint import hash_weights
from notan.errors import CheckpointError
from notan.files import storage_errors, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

logger = logging.getLogger("notan")

KEPT = 2
TENSOR = "$tensor"
FORMAT = "2"


class StateFolder:
    """The states of a run, newest first; ``last/`` in the run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Write a state and drop all but the newest two.

        Args:
            step: Optimizer steps since the start of the run; orders the files.
            tree: Nested dicts and lists of tensors and JSON's plain values.

        Raises:
            StorageError: The state could not be written; the ones before are left as they were.
        """
        tensors: dict[str, torch.Tensor] = {}
        plain = json.dumps(_take_out(tree, "", tensors))
        metadata = {"format": FORMAT, "plain": plain, "sha256": _digest(plain, tensors)}
        write_bytes(self.folder / f"{step:09d}.safetensors", save(tensors, metadata))
        with storage_errors(self.folder):
            for old in self.files()[KEPT:]:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Read the newest intact state; None where there is none.

        One that is damaged or of another version is named in a warning, and the one before taken.
        """
        for path in self.files():
            try:
                return _read(path)
            except CheckpointError as error:
                logger.warning("%s; going back to the state before it", error)
        return None

    def files(self) -> list[Path]:
        """Return the states' files, newest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)

    def clear(self) -> None:
        """Remove all states.

        Raises:
            StorageError: One could not be removed.
        """
        with storage_errors(self.folder):
            for path in self.files():
                path.unlink()


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's random generators."""
    kind, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - see seed_everything
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(numbers).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the random generators to what ``random_states`` returned, perhaps through JSON."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's moments, each in its weight's own memory layout; settings stay.

    The layout decides in which order vector instructions run over the numbers, and so the last
    bit of the result.
    """
    moments_of = {int(key): value for key, value in state["state"].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments_of})
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value):
                same = value.shape == weight.shape
                moments[name] = torch.empty_like(weight if same else value).copy_(value)


def clone_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _take_out(node: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    """Return a tree without its tensors, which are put aside under the paths to them."""
    if torch.is_tensor(node):
        tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(node, dict):
        return {str(key): _take_out(value, f"{name}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_take_out(value, f"{name}/{number}", tensors) for number, value in enumerate(node)]
    return node


def _put_back(node: Any, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        if TENSOR in node:
            return tensors[node[TENSOR]]
        return {key: _put_back(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_put_back(value, tensors) for value in node]
    return node


def _read(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format"] != FORMAT:
            raise CheckpointError(f"{path}: the state was written by another version of notan")
        plain = metadata["plain"]
        if metadata["sha256"] != _digest(plain, tensors):
            raise CheckpointError(f"{path}: the state is damaged (SHA-256 differs)")
        tree: dict[str, Any] = _put_back(json.loads(plain), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the state is damaged ({error})") from error
    return tree


def _digest(plain: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{hash_weights(tensors)} {plain}".encode()).hexdigest()
