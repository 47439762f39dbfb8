"""Write eight tiny images with their annotations as the annotation tools themselves write them.

The results lie in ``tests/annotations`` and are committed: the tests hold notan's readers against
them without any of the tools. Each folder is read back by its format's own reference reader before
it is kept, and the script fails where the masks of ``truth/`` do not come out pixel by pixel.

The tools are no dependencies of notan. They go into an environment of their own, with the versions
that wrote the committed files and without the PyTorch that some of them ask for::

    python -m venv tools
    tools/bin/pip install --no-deps --requirement scripts/annotations/requirements.txt
    PYTHONPATH=src tools/bin/python scripts/write_annotations.py

Four writers could not be installed, since they live in a server, a desktop program or a service:
CVAT's own (``cvat-sdk`` only downloads what the server writes), Label Studio's export of tasks,
QuPath's and Roboflow's. Ultralytics and the COCO API read their formats, and write none. What these
would write is written by the documented schema, and says so: "by the schema".

Objects of different classes never overlap here: formats without an order of drawing (COCO) or with
another one (YOLO, where Ultralytics draws small over large) could not express it.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from annotations.drawings import Work, draw, png

from annotations import coco, cvat, label_studio, pixels, polygons

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Format:
    """A folder of the output.

    Attributes:
        write: Writes it and reads it back; its docstring says what is in it.
        tools: The packages that wrote it, or those that its writer's parts come from.
        expresses: What its files can say.
    """

    write: Callable[[Work], None]
    tools: str
    expresses: str


RINGS = "holes, pieces"
CUT = "pieces; a ring as halves"
PIXELS = "everything but overlap"
FORMATS = {
    "coco-polygons": Format(coco.write_coco_polygons, "datumaro", CUT),
    "coco-rle": Format(coco.write_coco_rle, "pycocotools", RINGS),
    "coco-uncompressed": Format(coco.write_coco_uncompressed, "datumaro", RINGS),
    "coco-crowd": Format(coco.write_coco_crowd, "pycocotools", f"{CUT}; a crowd"),
    "coco-roboflow": Format(coco.write_coco_roboflow, "pycocotools", CUT),
    "coco-supervision": Format(coco.write_coco_supervision, "supervision", RINGS),
    "coco-datumaro": Format(coco.write_coco_datumaro, "datumaro", RINGS),
    "labelme": Format(polygons.write_labelme, "labelme", f"{RINGS} as masks"),
    "labelme-windows": Format(polygons.write_labelme_windows, "labelme", f"{RINGS} as masks"),
    "yolo": Format(polygons.write_yolo, "supervision", "holes by a seam; each piece an object"),
    "yolo-roboflow": Format(polygons.write_yolo_roboflow, "supervision", "the same"),
    "yolo-supervision": Format(polygons.write_yolo_supervision, "supervision", "the same"),
    "voc": Format(pixels.write_voc, "imgviz", PIXELS),
    "voc-datumaro": Format(pixels.write_voc_datumaro, "datumaro", PIXELS),
    "voc-void": Format(pixels.write_voc_void, "pillow imgviz", f"{PIXELS}; void"),
    "cvat-mask": Format(cvat.write_cvat_mask, "datumaro", PIXELS),
    "cvat-images": Format(cvat.write_cvat_images, "", f"{RINGS} as masks"),
    "cvat-datumaro": Format(cvat.write_cvat_datumaro, "datumaro", f"{RINGS} as masks"),
    "label-studio": Format(label_studio.write_studio, "label-studio-sdk", f"{RINGS} as brush"),
    "label-studio-min": Format(
        label_studio.write_studio_min, "label-studio-sdk", f"{RINGS} as brush"
    ),
    "label-studio-png": Format(label_studio.write_studio_png, "label-studio-sdk", RINGS),
    "nnunet": Format(pixels.write_nnunet, "nnunetv2", PIXELS),
    "nnunet-channels": Format(pixels.write_nnunet_channels, "nnunetv2", PIXELS),
    "csv": Format(pixels.write_csv, "pandas", PIXELS),
    "parquet": Format(pixels.write_parquet, "datasets pyarrow", PIXELS),
    "parquet-hub": Format(pixels.write_parquet_hub, "datasets pyarrow", PIXELS),
    "geojson": Format(polygons.write_geojson, "geojson shapely", RINGS),
    "geojson-qubalab": Format(polygons.write_geojson_qubalab, "qubalab", RINGS),
    "geojson-notan": Format(polygons.write_geojson_notan, "notan", f"{RINGS}; no classes"),
}
README = """# Annotations as other tools write them

Eight tiny images and their annotations, written by `scripts/write_annotations.py`, which reads each
folder back with the format's own reader. `truth/` says what must come out: 0 background, 1 `cell`,
2 `nucleus`. `truth-crowd/` belongs to `coco-crowd`, `truth-void/` to `voc-void` (255: neither);
`geojson-notan` gives both classes as one. `coco-supervision` gives the truth in its own reader
alone: the COCO API takes the last row and column off each of its polygons.

`one` has an object with a hole and another class within it; `two` touching objects of one class;
`three` of two; `four` and `eight` nothing; `five` objects at edges and corners; `six` odd sizes and
lines of one and two pixels; `seven` an object in three pieces, and two of one class that overlap.
`one` to `six` are for training where a format knows subsets, the others for validation.

"By the schema": no tool that writes the format could be installed, and the script writes what the
documentation says, with the parts that the tools named have for it. Dates are 2024-01-01.

| folder | what the script does | written with | can express |
| --- | --- | --- | --- |
"""


def readme() -> str:
    """Return the README of the output, with the versions of the tools."""
    rows = []
    for name, each in FORMATS.items():
        what = (each.write.__doc__ or "").split("\n")[0]
        tools = ", ".join(
            f"{tool} {version(tool)}" for tool in each.tools.split() if tool != "notan"
        )
        rows.append(f"| `{name}` | {what} | {tools} | {each.expresses} |\n")
    return README + "".join(rows)


def main() -> None:
    """Write all formats, or some, and the table of them."""
    parser = argparse.ArgumentParser(description="Write the test data of tests/annotations.")
    root = Path(__file__).resolve().parents[1] / "tests" / "annotations"
    parser.add_argument("formats", nargs="*", help=f"of {', '.join(FORMATS)}; all by default")
    parser.add_argument("--out", type=Path, default=root)
    given = parser.parse_args()
    drawings = draw()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        for name, drawing in drawings.items():
            (images / f"{name}.png").write_bytes(png(drawing.image()))
        (given.out / "truth").mkdir(parents=True, exist_ok=True)
        for name, drawing in drawings.items():
            (given.out / "truth" / f"{name}.png").write_bytes(png(drawing.truth()))
        for name in given.formats or FORMATS:
            logging.warning("writing %s", name)
            shutil.rmtree(given.out / name, ignore_errors=True)
            (given.out / name).mkdir(parents=True)
            FORMATS[name].write(Work(drawings, images, given.out / name))
    (given.out / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
