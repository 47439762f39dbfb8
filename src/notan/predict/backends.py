"""Backend, anything that maps model inputs to logits, and the one on PyTorch.

PyTorch is imported only where that backend is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from notan.errors import CheckpointError, ShapeError

if TYPE_CHECKING:
    import torch

    from notan.checkpoint import Card, Checkpoint

Array: TypeAlias = npt.NDArray[np.float32]


class Backend(Protocol):
    """A network on some runtime."""

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w)."""


class TorchBackend:
    """A PyTorch module in evaluation mode, in float32."""

    def __init__(self, model: torch.nn.Module, device: torch.device | str = "cpu") -> None:
        """Move a module to a device; it is used as it is, so train it no further meanwhile."""
        import torch

        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w).

        Raises:
            ShapeError: The module returned another shape.
        """
        import torch

        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            images = torch.from_numpy(inputs).to(self.device, memory_format=torch.channels_last)
            logits = self.model(images)
        self.model.train(was_training)
        n, _, h, w = inputs.shape
        if tuple(logits.shape) != (n, 1, h, w):
            raise ShapeError(
                f"{type(self.model).__name__} returned {tuple(logits.shape)} for an input of "
                f"{inputs.shape}; logits of {(n, 1, h, w)} are wanted"
            )
        result: Array = logits.float().cpu().numpy()
        return result


def rebuild(checkpoint: Checkpoint, own_model: torch.nn.Module | None) -> torch.nn.Module:
    """Return the checkpoint's network with its weights.

    Args:
        checkpoint: Card and weights.
        own_model: A fresh instance, where the checkpoint is of a class of the user's own.

    Raises:
        CheckpointError: The network is the user's own and was not given, or the weights belong
            to another network.
    """
    card = checkpoint.card
    model = _build(card) if own_model is None else own_model
    if model is None:
        raise CheckpointError(
            f"this checkpoint is of {card.model_class}, a class of your own; load it from "
            f"Python: Predictor.load(path, model={card.model_class}(...))"
        )
    try:
        model.load_state_dict(dict(checkpoint.weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the weights do not fit {type(model).__name__}: {reason}") from error
    return model


def _build(card: Card) -> torch.nn.Module | None:
    """Build a card's network, freshly initialised; None where it is the user's own."""
    from notan.models.build import build_model
    from notan.models.ensemble import Ensemble

    if card.members:
        return Ensemble(
            [build_model(member.model) for member in card.members],
            [member.weight for member in card.members],
            temperatures=[member.temperature for member in card.members],
            biases=[member.bias for member in card.members],
        )
    return build_model(card.model) if card.model else None
