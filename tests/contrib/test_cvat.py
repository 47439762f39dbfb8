"""The function file for CVAT, against the objects and validators of CVAT's own SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from shapely.geometry import Polygon

from notan.data.synthetic import DrawnSource
from notan.prediction.pixels import encode_png
from other_tools import ROOT, run_theirs

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.predictor import Predictor

IMAGE = DrawnSource(1, size=(40, 48), seed=9)[0].image

PROGRAM = """
import io, json, sys
from types import SimpleNamespace as Any
import numpy as np
from PIL import Image
import cvat_sdk.auto_annotation as cvat
from cvat_sdk.auto_annotation.driver import _AnnotationMapper
from cvat_sdk.masks import decode_mask
import cvat_notan

asked = json.load(sys.stdin)
image = Image.open(io.BytesIO(bytes.fromhex(asked["image"])))
blank = Image.new("L", image.size)
height, width = image.size[::-1]

def whole(points):
    return decode_mask(points, image_width=width, image_height=height).astype(int).tolist()

def context(threshold=None, polygons=False):
    return Any(frame_name="a", conf_threshold=threshold, conv_mask_to_poly=polygons)

detect = cvat_notan.create(asked["model"], label="cell")
labels = [Any(name="cell", id=7, type="any", attributes=[], sublabels=[])]
mapper = _AnnotationMapper(Any(warning=print), detect.spec.labels, labels,
                           allow_unmatched_labels=False, conv_mask_to_poly=False)
found = detect.detect(context(), image)
mapped = Any(tags=[], shapes=[])
mapper.validate_and_remap(list(found), 0)
said = {"mask": whole(found[0].points), "types": [each.type.value for each in found]}
said["polygons"] = [list(each.points) for each in detect.detect(context(polygons=True), image)]
said["sure"] = len(detect.detect(context(threshold=1.0), image))
follow = cvat_notan.create(asked["model"], kind="interaction")
prepared = follow.preprocess_image(Any(), image)

def click(wanted, unwanted=(), box=None):
    prompts = Any(pos_points=wanted, neg_points=unwanted, bounding_box=box)
    shapes = follow.detect(Any(), prepared, prompts)
    assert all(isinstance(each, cvat.InteractionResultShape) for each in shapes)
    return [whole(each.points) for each in shapes]

point = asked["point"]
said["click"] = click([point])
said["box"] = click([], box=((0, 0), (20, height)))
said["edge"] = len(click([(width, height)]))
said["nothing"] = click([], [], ((0, 0), (1, 1)))
for wrong in (lambda: click([point], [point]), lambda: cvat_notan.create(kind="x")):
    try:
        wrong()
    except Exception as error:
        said.setdefault("wrong", []).append([type(error).__name__, str(error)])
print(json.dumps(said))
"""


def test_cvats_sdk_takes_what_the_function_file_gives(portable: Path, predictor: Predictor) -> None:
    prediction = predictor(IMAGE)
    row, column = map(int, np.argwhere(prediction.mask)[prediction.mask.sum() // 2])
    asked = {"image": encode_png(IMAGE).hex(), "model": str(portable), "point": (column, row)}
    printed = run_theirs("cvat-sdk", PROGRAM, json.dumps(asked), ROOT / "src", ROOT / "contrib")
    said = json.loads(printed.splitlines()[-1])
    assert said["types"] == ["mask"]
    assert (np.array(said["mask"]) == prediction.mask).all()
    areas = [Polygon(np.reshape(each, (-1, 2))).area for each in said["polygons"]]
    assert sum(areas) > 0
    assert said["sure"] == 0
    (clicked,) = said["click"]
    assert clicked[row][column] == 1
    assert not (np.array(clicked, np.bool_) & ~prediction.mask).any()
    assert not np.array(said["box"])[..., 20:].any()
    assert said["edge"] in (0, 1)
    assert len(said["nothing"]) <= 1
    (kind, words), other = said["wrong"]
    assert (kind, "cannot be told" in words or "does not tell" in words) == (
        "BadFunctionError",
        True,
    )
    assert other == ["ValueError", "kind 'x': wanted one of detection and interaction"]
