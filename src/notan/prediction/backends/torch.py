"""The backend on PyTorch, which is imported only where it is made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from notan.errors import CheckpointError
from notan.prediction.backends.base import check_logits

if TYPE_CHECKING:
    import torch

    from notan.modelfile.card import Card, Checkpoint
    from notan.prediction.backends.base import Array, Precision


class TorchBackend:
    """A PyTorch module in evaluation mode.

    Attributes:
        device: Where it runs.
        model: The module that runs: in float32 the one that was given, in bfloat16 a copy.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "fp32",
    ) -> None:
        """Move a module to a device; it is used as it is, so train it no further meanwhile.

        Args:
            model: From (n, 3, h, w) to logits (n, 1, h, w).
            device: Where to run.
            precision: ``bf16`` rounds a copy of the weights to bfloat16 and computes in it. That
                is as quick as autocast, which rounds them again for every image, and needs half
                the memory.
        """
        import torch

        self.device = torch.device(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if precision == "bf16":
            model = copy.deepcopy(model).to(torch.bfloat16)
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
            images = torch.from_numpy(inputs).to(
                self.device, self._dtype, memory_format=torch.channels_last
            )
            logits = self.model(images)
        self.model.train(was_training)
        check_logits(tuple(logits.shape), inputs.shape, type(self.model).__name__)
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
