"""A widget for napari: an image layer and a model in, a Labels layer out.

Annotations are read at run time: magicgui makes the widget of them.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from magicgui import magic_factory
from napari.layers import Image, Labels, Points
from napari.utils.notifications import show_info

import notan
from notan.errors import NotanError
from notan.prediction.predictor import Predictor
from notan.serve.prompts import Prompts, prompted


@lru_cache(maxsize=2)
def opened(model: str, changed: float) -> Predictor:
    """Open a model once; ``changed`` is when its file was written, so a new one is opened anew."""
    del changed
    return notan.load(model or None)


def segment(image: Image, model: Path | None = None, points: Points | None = None) -> Labels:
    """Return the mask of an image layer as a Labels layer.

    Args:
        image: A layer of two dimensions, grey or RGB, of 8 or 16 bits.
        model: A model file or a run folder; None: the default model, for cats and dogs.
        points: A layer of points in it: the regions around them are the foreground.

    Raises:
        NotanError: The layer or the model is none that notan can work with.
    """
    pixels = pixels_of(image)
    given = "" if model is None or str(model) == "." else str(model)
    changed = Path(given).stat().st_mtime if given and Path(given).exists() else 0.0
    prediction = opened(given, changed)(pixels)
    mask = prediction.mask
    if points is not None and len(points.data):
        places = [image.world_to_data(points.data_to_world(each)) for each in points.data]
        asked = Prompts(points=tuple((float(x) + 0.5, float(y) + 0.5) for y, x in places))
        _, mask = prompted(prediction.probability, prediction.postprocessing, asked)
    show_info(f"{image.name}: expected Dice {prediction.expected_dice:.2f}")
    return Labels(
        mask.astype(np.uint8), name=f"{image.name} mask", scale=image.scale,
        translate=image.translate, rotate=image.rotate, shear=image.shear,
    )  # fmt: skip


def pixels_of(image: Image) -> npt.NDArray[np.uint8 | np.uint16]:
    """Return what a layer shows as notan takes it.

    Raises:
        NotanError: It has more than two dimensions, or is of another kind of number.
    """
    values = np.asarray(image.data)
    if values.ndim != 2 + image.rgb or image.multiscale:
        raise NotanError(
            f"{image.name}: a layer of {values.ndim} dimensions; wanted one image, (height, width) "
            "or RGB; split a stack first"
        )
    if values.dtype not in (np.uint8, np.uint16):
        raise NotanError(
            f"{image.name}: pixels of {values.dtype}; wanted uint8 or uint16, as the files have "
            "them: napari can convert a layer (right click, Convert data type)"
        )
    return values[..., :3] if image.rgb else values


@magic_factory(call_button="Segment", model={"mode": "r", "label": "model", "nullable": True})
def segmenter(
    image: Image, points: Points | None = None, model: Path | None = None
) -> Labels | None:
    """Segment an image layer; what goes wrong is shown in one line."""
    try:
        return segment(image, model, points)
    except NotanError as error:
        show_info(str(error))
        return None
