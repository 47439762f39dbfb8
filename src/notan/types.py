"""Shape-annotated names for the arrays and tensors that pass between the rooms.

The tensor names are strings to the interpreter, so that this module never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Image8: TypeAlias = Annotated[npt.NDArray[np.uint8], "height width channels"]
RGBImage: TypeAlias = Annotated[npt.NDArray[np.uint8], "height width 3, RGB"]
Mask: TypeAlias = Annotated[npt.NDArray[np.bool_], "height width, True = foreground"]
Probability: TypeAlias = Annotated[npt.NDArray[np.float32], "height width, 0..1"]
ModelInput: TypeAlias = Annotated[npt.NDArray[np.float32], "channels height width, normalised"]

Images: TypeAlias = "Annotated[Tensor, 'n channels h w, float']"
ProgressCallback: TypeAlias = "Callable[[int, int | None], object]"
"""Called with what is done and of how much, where that is known."""

Logits: TypeAlias = "Annotated[Tensor, 'n 1 h w, float']"
Probabilities: TypeAlias = "Annotated[Tensor, 'n 1 h w, 0..1']"
Masks: TypeAlias = "Annotated[Tensor, 'n 1 h w, 0 or 1, float']"
