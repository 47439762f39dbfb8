"""The plugin of napari, without a screen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from notan.data.synthetic import DrawnSource
from notan.prediction.pixels import encode_png
from other_tools import ROOT, run_theirs

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.predictor import Predictor

IMAGE = DrawnSource(1, size=(40, 48), seed=9)[0].image
PLUGIN = ROOT / "contrib" / "napari-notan"

PROGRAM = """
import io, json, sys
import numpy as np
from npe2 import PluginManifest
from PIL import Image as Pixels
from qtpy.QtWidgets import QApplication
from napari.components import ViewerModel
from napari.layers import Image, Labels, Points
import napari_notan

asked = json.load(sys.stdin)
manifest = PluginManifest.from_file(asked["manifest"])
commands = {each.id: each for each in manifest.contributions.commands}
(widget,) = manifest.contributions.widgets
app = QApplication([])
made = commands[widget.command].python_name.import_string if False else None
module, name = commands[widget.command].python_name.split(":")
panel = getattr(__import__(module), name)()
viewer = ViewerModel()
pixels = np.array(Pixels.open(io.BytesIO(bytes.fromhex(asked["image"]))))
layer = viewer.add_image(pixels, name="cells", rgb=True, scale=(2, 3))
panel.image.choices = panel.image.choices or [layer]
said = {"fields": [each.name for each in panel], "native": type(panel.native).__name__}
labels = panel(image=layer, model=asked["model"])
assert isinstance(labels, Labels)
said["mask"], said["scale"] = labels.data.tolist(), labels.scale.tolist()
viewer.add_layer(labels)
row, column = asked["point"]
points = Points([(row * 2, column * 3)])
said["clicked"] = napari_notan.segment(layer, asked["model"], points).data.tolist()
said["refused"] = []
for wrong in (Image(np.zeros((3, 4, 5), np.uint8)), Image(np.zeros((4, 5)))):
    try:
        napari_notan.segment(wrong)
    except Exception as error:
        said["refused"].append([type(error).__name__, str(error)])
assert panel(image=layer, model="absent.onnx") is None
print(json.dumps(said))
"""


def test_the_widget_makes_a_labels_layer_of_an_image_layer(
    portable: Path, predictor: Predictor
) -> None:
    prediction = predictor(IMAGE)
    row, column = map(int, np.argwhere(prediction.mask)[prediction.mask.sum() // 2])
    asked = {
        "image": encode_png(IMAGE).hex(),
        "model": str(portable),
        "manifest": str(PLUGIN / "napari_notan" / "napari.yaml"),
        "point": (row, column),
    }
    printed = run_theirs("napari", PROGRAM, json.dumps(asked), ROOT / "src", PLUGIN)
    said = json.loads(printed.splitlines()[-1])
    assert said["fields"][:3] == ["image", "points", "model"]
    assert (np.array(said["mask"], np.bool_) == prediction.mask).all()
    assert said["scale"] == [2, 3]
    assert said["clicked"][row][column] == 1
    (kind, words), other = said["refused"]
    assert kind == other[0] == "NotanError"
    assert "wanted one image" in words
    assert "wanted uint8 or uint16" in other[1]
