"""What a prediction is sent as: PNG or JSON, as the Accept header asks for it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np

from notan.prediction.formats.rows import coco_rle
from notan.prediction.formats.shapes import coco_polygons
from notan.prediction.pixels import encode_png, mask_image, probability_image
from notan.serve.jobs import Reply
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import numpy.typing as npt

    from notan.prediction.predictor import Prediction
    from notan.types import Mask, Probability

    Encoder = Callable[[Prediction, Probability, Mask], bytes]

PNG, JSON = "image/png", "application/json"

MOST_EDGES = 500_000
"""Pixels' sides between foreground and background. Outlines are drawn in Python: of noise, so many
take five seconds."""


def _cutout(prediction: Prediction, mask: Mask) -> npt.NDArray[np.uint8]:
    cutout = prediction.cutout()
    cutout[..., 3] = mask_image(mask)
    return cutout


def _json(prediction: Prediction, probability: Probability, mask: Mask) -> bytes:
    edges = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    if edges > MOST_EDGES:
        raise RefusedError(
            422,
            f"the mask's boundary is {edges:,} pixels long, and polygons are drawn of at most "
            f"{MOST_EDGES:,}; ask for Accept: {PNG}",
        )
    rule = prediction.postprocessing
    expected = rule.expected_dice(probability, mask)
    found: dict[str, Any] = {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "expected_dice": round(expected, 6),
        "needs_review": rule.needs_review(expected),
        "foreground_fraction": round(float(mask.mean()), 6),
        "rle": coco_rle(mask),
        "polygons": coco_polygons(mask),
    }
    return json.dumps(found, separators=(",", ":")).encode()


ENCODERS: dict[str, Encoder] = {
    "mask": lambda _, __, mask: encode_png(mask_image(mask)),
    "cutout": lambda prediction, _, mask: encode_png(_cutout(prediction, mask)),
    "probability": lambda _, probability, __: encode_png(probability_image(probability)),
    "json": _json,
}
OFFERED = {
    PNG: "mask",
    f"{PNG};output=mask": "mask",
    f"{PNG};output=cutout": "cutout",
    f"{PNG};output=probability": "probability",
    JSON: "json",
}
"""What can be asked for -> its encoder; the first that fits is taken."""

_PART = re.compile(r"\s*([\w*+.-]+/[\w*+.-]+)\s*((?:;\s*[\w-]+\s*=\s*\"?[\w.+-]*\"?\s*)*)")
_PARAMETER = re.compile(r";\s*([\w-]+)\s*=\s*\"?([\w.+-]*)\"?")


def choose_output(accept: str | None) -> str:
    """Return the encoder that an Accept header prefers; without one, the mask as PNG.

    Raises:
        RefusedError: It takes nothing of what there is.

    Source: RFC 9110, section 12.5.1; of two with one weight the first is taken.
    """
    best, most = None, 0.0
    for part in (accept or PNG).lower().split(","):
        if (found := _PART.fullmatch(part)) is None:
            continue
        values = dict(_PARAMETER.findall(found[2]))
        weight = _weight(values.pop("q", "1"))
        wanted = ";".join([found[1], *(f"{name}={value}" for name, value in values.items())])
        kind = OFFERED.get(wanted) or {
            "*/*": "mask",
            "image/*": "mask",
            "application/*": "json",
        }.get(wanted)
        if kind is not None and weight > most:
            best, most = kind, weight
    if best is None:
        raise RefusedError(406, f"nothing in the Accept header is offered: {', '.join(OFFERED)}")
    return best


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def encode(kind: str, prediction: Prediction, probability: Probability, mask: Mask) -> Reply:
    """Return the reply of one kind, a key of ``ENCODERS``.

    Raises:
        RefusedError: The mask is too ragged for polygons.
        StorageError: PNG cannot hold so wide an image.
    """
    content = ENCODERS[kind](prediction, probability, mask)
    return Reply(content, JSON if kind == "json" else PNG)
