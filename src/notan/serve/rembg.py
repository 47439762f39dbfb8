"""rembg's ``POST /api/remove``: its clients only change the address.

Source: rembg (MIT), rembg/commands/s_command.py and rembg/bg.py: a form with the field ``file``,
    and ``om``, ``ppm``, ``bgc``, ``model``, ``a``, ``af``, ``ab``, ``ae``, ``dc``, ``vm`` in the
    form or the query (of version 2.0.86).
    Differs: the cut-out keeps its colours and its edge is soft for two pixels, where rembg lets the
    network's doubt shine through anywhere; there is no matting; and no request names an
    address (``url``) or a model file (``extras``), by which rembg's server could be made to read
    what it should not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from notan.prediction.pixels import encode_png, mask_image
from notan.serve.jobs import Reply
from notan.serve.outputs import PNG

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from notan.prediction.predictor import Prediction

Level = Annotated[int, Field(ge=0, le=255)]

SOFT = (5, 5)
"""Kernel of the blur that makes an edge soft: rembg's own, of two pixels to each side."""

SIGMA, MIDDLE = 2.0, 127


class RemoveOptions(BaseModel):
    """What rembg's clients may ask for.

    Attributes:
        om: Only the mask, as grey levels.
        ppm: Smooth the mask as rembg does, and leave its edge hard.
        bgc: Colour behind the foreground: red, green, blue and opacity, 0..255 each.
        model: The one that is served, by its name.
        a: Alpha matting, which is not offered.
        dc: Decontaminated edges, which are not offered.
        vm: Edges by ViTMatte, which are not offered.
        af: Of alpha matting; nothing without it, as in rembg.
        ab: Likewise.
        ae: Likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    om: bool = False
    ppm: bool = False
    bgc: tuple[Level, Level, Level, Level] | None = None
    model: str | None = None
    a: Literal[False] = False
    dc: Literal[False] = False
    vm: Literal[False] = False
    af: Level = 240
    ab: Level = 10
    ae: Annotated[int, Field(ge=0)] = 10

    @field_validator("bgc", mode="before")
    @classmethod
    def _parts(cls, given: Any) -> Any:  # noqa: ANN401 - what a client sends
        return given.split(",") if isinstance(given, str) and given else given or None

    @field_validator("a", "dc", "vm", mode="before")
    @classmethod
    def _not_offered(cls, given: Any) -> Any:  # noqa: ANN401
        if str(given).lower() not in ("false", "0", "no", "off", "f", "n"):
            raise ValueError("this is not offered; leave it out, or send false")
        return False

    def encode(self, prediction: Prediction) -> Reply:
        """Return what rembg would send of a prediction: a PNG file."""
        alpha = self._alpha(mask_image(prediction.mask))
        if self.om:
            return Reply(encode_png(alpha), PNG)
        cutout = prediction.cutout()
        cutout[..., 3] = alpha
        return Reply(encode_png(cutout if self.bgc is None else over(cutout, self.bgc)), PNG)

    def _alpha(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.ppm:
            round_kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
            mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, round_kernel), np.uint8)
        soft = np.asarray(cv2.GaussianBlur(mask, SOFT, SIGMA), np.uint8)
        return np.where(soft < MIDDLE, 0, 255).astype(np.uint8) if self.ppm else soft


def over(cutout: npt.NDArray[np.uint8], colour: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """Return a cut-out laid over a colour, RGBA; both may be transparent."""
    from PIL import Image

    image = Image.fromarray(cutout, "RGBA")
    behind = Image.new("RGBA", image.size, colour)
    return np.asarray(Image.alpha_composite(behind, image))
