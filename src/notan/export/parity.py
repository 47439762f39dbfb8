"""Parity: how far an ONNX model's masks agree with those of its checkpoint, on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from notan.checkpoint import Parity
from notan.errors import ExportError

if TYPE_CHECKING:
    from notan.export.images import ImageSet
    from notan.predict.predictor import Prediction, Predictor
    from notan.types import Mask

LEAST_IOU = {"fp32": 0.9999, "half": 0.999, "int8": 0.995}
"""What the masks of each precision must agree by.

Of ``half``: float16 keeps eleven bits of each weight, so a logit moves by a thousandth or so, and
with it the pixels that lie on the threshold. Of ``int8``: eight bits move a logit by hundredths.
"""

ADVICE = {
    "fp32": "the runtime computes something else; please report it with the model's card",
    "half": "export without --half",
    "int8": "export without --int8 (OpenVINO is quicker with --precision bf16, too), or train a "
    "wider network (model.width): it bears int8 better",
}
"""What to do where they do not."""


def measure_parity(
    reference: Predictor, exported: Predictor, images: ImageSet, *, runtime: str
) -> Parity:
    """Compare the masks of two predictors at the images' own size.

    Args:
        reference: On PyTorch in float32.
        exported: The ONNX model.
        images: At least one.
        runtime: What runs the ONNX model.
    """
    common = either = 0
    worst, largest = 1.0, 0.0
    words = f"comparing under {runtime}"
    for image in tqdm(images.images, desc=words, unit="image", leave=False, disable=None):
        one, other = reference(image), exported(image)
        both, any_of_them = _overlap(one.mask, other.mask)
        common, either = common + both, either + any_of_them
        worst = min(worst, _iou(both, any_of_them))
        largest = max(largest, _difference(one, other))
    return Parity(
        runtime=runtime,
        images=images.words,
        mask_iou=_iou(common, either),
        worst_iou=worst,
        largest_difference=largest,
    )


def agrees(parity: Parity, precision: str) -> bool:
    """Say whether the masks are near enough for an ONNX model of this precision."""
    return parity.mask_iou >= LEAST_IOU[precision]


def check_parity(parity: Parity, precision: str) -> None:
    """Refuse an ONNX model whose masks differ too much.

    Raises:
        ExportError: They do; the message says by how much.
    """
    if not agrees(parity, precision):
        raise ExportError(
            f"{precision} under {parity.runtime} gives other masks than the checkpoint: IoU "
            f"{parity.mask_iou:.5f} on {parity.images} (worst {parity.worst_iou:.5f}), at least "
            f"{LEAST_IOU[precision]} is wanted; nothing was written: {ADVICE[precision]}"
        )


def _overlap(one: Mask, other: Mask) -> tuple[int, int]:
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one | other))


def _iou(common: int, either: int) -> float:
    """Return intersection over union; two empty masks agree."""
    return common / either if either else 1.0


def _difference(one: Prediction, other: Prediction) -> float:
    return float(np.abs(one.probability - other.probability).max())
