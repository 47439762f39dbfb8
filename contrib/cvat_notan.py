"""A model of notan's for CVAT: automatic annotation, and interaction with points and a box.

CVAT's own programs load this file and send what it finds to CVAT; no port is opened here. It needs
``pip install 'notan[serve]' cvat-cli`` in one environment.

    cvat-cli task auto-annotate 12 --function-file contrib/cvat_notan.py
        -p model=str:runs/cells/best.safetensors -p label=str:cell
    cvat-cli function create-native notan --function-file contrib/cvat_notan.py
        -p model=str:runs/cells/best.safetensors -p kind=str:interaction

Source: the protocols of cvat_sdk/auto_annotation/interface.py (MIT), version 2.80.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cvat_sdk.auto_annotation as cvat
import numpy as np
from cvat_sdk.masks import encode_mask

import notan
from notan.prediction.formats.shapes import coco_polygons
from notan.serve.prompts import BACKGROUND, FOREGROUND, Prompts, prompted
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    import numpy.typing as npt
    from cvat_sdk.models import LabeledShapeRequest
    from PIL.Image import Image

    from notan.prediction.predictor import Predictor

KINDS = ("detection", "interaction")


def create(
    model: str | None = None, label: str = "foreground", kind: str = "detection"
) -> Detection | Interaction:
    """Make what CVAT's programs call.

    Args:
        model: A model file or a run folder; None: the default model, for cats and dogs.
        label: The label in CVAT that means foreground.
        kind: ``detection`` annotates whole tasks, ``interaction`` follows points and a box.

    Raises:
        ValueError: There is no such kind.
    """
    predictor = notan.load(model)
    if kind == "detection":
        return Detection(predictor, label)
    if kind == "interaction":
        return Interaction(predictor)
    raise ValueError(f"kind '{kind}': wanted one of {' and '.join(KINDS)}")


class Detection:
    """Annotates the foreground of each frame."""

    def __init__(self, predictor: Predictor, label: str) -> None:
        self.predictor = predictor
        self.spec = cvat.DetectionFunctionSpec(labels=[cvat.label_spec(label, 0, type="any")])

    def detect(
        self, context: cvat.DetectionFunctionContext, image: Image
    ) -> list[LabeledShapeRequest]:
        """Return the mask of a frame, or its polygons; none where nothing is foreground.

        A model says how sure it is of pixels: a threshold of confidence is one of probability.
        """
        prediction = self.predictor(_pixels(image))
        mask = prediction.mask
        if context.conf_threshold is not None:
            mask = mask & (prediction.probability >= context.conf_threshold)
        if not mask.any():
            return []
        if context.conv_mask_to_poly and (outlined := coco_polygons(mask)) is not None:
            return [cvat.polygon(0, points) for points in outlined["segmentation"]]
        return [cvat.mask(0, encode_mask(mask))]


class Interaction:
    """Follows points and a box; the network runs once for an image, not once for a click."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.spec = cvat.InteractionFunctionSpec(
            min_pos_points=0, min_neg_points=0, min_bounding_boxes=0
        )

    def preprocess_image(
        self, context: cvat.InteractionFunctionContext, image: Image
    ) -> notan.Prediction:
        """Predict an image."""
        del context
        return self.predictor(_pixels(image))

    def detect(
        self,
        context: cvat.InteractionFunctionContext,
        pp_image: notan.Prediction,
        prompts: cvat.InteractionPrompts,
    ) -> list[cvat.InteractionResultShape]:
        """Return the mask that points and a box ask for; none where it would be empty."""
        del context
        size = pp_image.probability.shape
        wanted, unwanted = list(prompts.pos_points), list(prompts.neg_points)
        box = prompts.bounding_box
        asked = Prompts(
            points=tuple(_inside(x, y, size) for x, y in (*wanted, *unwanted)),
            labels=(FOREGROUND,) * len(wanted) + (BACKGROUND,) * len(unwanted),
            box=None if box is None else (*_inside(*box[0], size), *box[1]),
        )
        try:
            _, mask = prompted(pp_image.probability, pp_image.postprocessing, asked)
        except RefusedError as error:
            raise cvat.BadFunctionError(str(error)) from error
        if not mask.any():
            return []
        return [cvat.InteractionResultShape(type="mask", points=encode_mask(mask))]


def _pixels(image: Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def _inside(x: float, y: float, size: tuple[int, ...]) -> tuple[float, float]:
    """Return a point in the image; CVAT lets one be set on its very edge."""
    right, lower = np.nextafter(size[1], 0), np.nextafter(size[0], 0)
    return float(np.clip(x, 0, right)), float(np.clip(y, 0, lower))
