"""Backend, anything that maps model inputs to logits."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from notan.errors import ShapeError

Array: TypeAlias = npt.NDArray[np.float32]

Precision = Literal["fp32", "bf16"]
"""What a network computes in: float32, or bfloat16 where the processor is quicker in it."""


class Backend(Protocol):
    """A network on some runtime."""

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w)."""


def check_logits(logits: tuple[int, ...], inputs: tuple[int, ...], network: str) -> None:
    """Refuse what is not one logit for each pixel of the inputs.

    Args:
        logits: Shape that the network returned.
        inputs: (n, 3, h, w).
        network: Its name in the message.

    Raises:
        ShapeError: The network returned another shape.
    """
    wanted = (inputs[0], 1, inputs[2], inputs[3])
    if logits != wanted:
        raise ShapeError(
            f"{network} returned {logits} for an input of {inputs}; logits of {wanted} are wanted"
        )
