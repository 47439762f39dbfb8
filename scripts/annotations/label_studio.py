"""Label Studio's exports."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from label_studio_sdk.converter import Converter, brush
from PIL import Image

from annotations.drawings import CLASSES, DAY, Array, Drawing, Thing, Work, filled, rings
from annotations.tool_datasets import corners

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = "".join(f'<Label value="{label}"/>' for label in CLASSES)
CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{LABELS}</BrushLabels>
  <PolygonLabels name="polygon" toName="image">{LABELS}</PolygonLabels>
  <RectangleLabels name="rectangle" toName="image">{LABELS}</RectangleLabels>
</View>
"""


def brush_rle(mask: Array) -> list[int]:
    """Return Label Studio's run lengths of a mask in all four channels, as its SDK writes them."""
    return brush.mask2rle(mask.astype(np.uint8) * 255)


def painted_rle(mask: Array) -> list[int]:
    """Return them as the editor's canvas has them: a colour where it is painted, and alpha."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = (0, 50, 83, 255)
    return brush.encode_rle(pixels.ravel())


def studio_region(thing: Thing, number: int, *, only_brush: bool) -> Iterator[dict[str, Any]]:
    """Return the regions of an object: percent of the image for vertices."""
    height, width = thing.mask.shape
    percent = np.array([width, height]) / 100
    regions: list[tuple[str, dict[str, Any]]]
    if thing.box and not only_brush:
        left, top, right, bottom = thing.box
        x, y = (np.array([left, top]) / percent).tolist()
        wide, high = (np.array([right - left, bottom - top]) / percent).tolist()
        regions = [("rectangle", {"x": x, "y": y, "width": wide, "height": high, "rotation": 0})]
    elif len(rings(thing.mask)) == 1 and thing.mask.size > 1000 and not only_brush:
        vertices = np.reshape(rings(thing.mask)[0], (-1, 2)) / percent
        regions = [("polygon", {"points": vertices.tolist(), "closed": True})]
    else:
        encode = painted_rle if number % 2 else brush_rle
        regions = [("brush", {"format": "rle", "rle": encode(thing.mask)})]
    for kind, value in regions:
        yield {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value | {f"{kind}labels": [thing.label]},
            "id": f"region{number:04}",
            "from_name": kind,
            "to_name": "image",
            "type": f"{kind}labels",
            "origin": "manual",
        }


def studio_annotation(number: int, result: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one person's annotation of a task, as in an export."""
    return {
        "id": number,
        "completed_by": 1,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": DAY,
        "updated_at": DAY,
        "draft_created_at": None,
        "lead_time": 12.5,
        "prediction": {},
        "result_count": len(result),
        "task": number,
        "parent_prediction": None,
        "parent_annotation": None,
    }


def studio_tasks(work: Work, *, only_brush: bool = False) -> list[dict[str, Any]]:
    """Return the tasks of an export as JSON (by the schema: a server writes it).

    The first images were uploaded (and got a prefix), the others are served from a folder. Task 2
    has a skipped annotation too, wrong everywhere, which the SDK's converter leaves out.
    """
    tasks = []
    for number, (name, drawing) in enumerate(work.drawings.items(), start=1):
        result = [
            region
            for place, thing in enumerate(drawing.things)
            for region in studio_region(thing, place, only_brush=only_brush)
        ]
        upload = f"{0xA1B2C3D4 + number:08x}-{name}.png"
        image = f"/data/upload/1/{upload}"
        if number > len(work.drawings) // 2:
            image = f"/data/local-files/?d=images/{name}.png"
        annotations = [studio_annotation(number, result)]
        if name == "two":
            everything = Drawing(drawing.size)
            everything.rectangle("nucleus", 0, 0, drawing.size[1], drawing.size[0])
            wrong = list(studio_region(everything.things[0], 98, only_brush=only_brush))
            skipped = studio_annotation(100, wrong) | {"was_cancelled": True, "task": number}
            annotations.insert(0, skipped)
        tasks.append(
            {
                "id": number,
                "annotations": annotations,
                "file_upload": upload if "upload" in image else None,
                "drafts": [],
                "predictions": [],
                "data": {"image": image},
                "meta": {},
                "created_at": DAY,
                "updated_at": DAY,
                "inner_id": number,
                "total_annotations": 1,
                "cancelled_annotations": len(annotations) - 1,
                "total_predictions": 0,
                "comment_count": 0,
                "unresolved_comment_count": 0,
                "last_comment_updated_at": None,
                "project": 1,
                "updated_by": 1,
                "comment_authors": [],
            }
        )
    return tasks


def studio_values(drawing: Drawing, outputs: dict[str, list[dict[str, Any]]]) -> Array:
    """Draw what Label Studio's converter reads out of one task."""
    height, width = drawing.size
    percent = np.array([width, height]) / 100
    values = np.zeros(drawing.size, np.uint8)
    for kind, regions in outputs.items():
        for region in regions:
            value = CLASSES.index(region[f"{kind}labels"][0]) + 1
            if kind == "brush":
                pixels = brush.decode_rle(region["rle"]).reshape(height, width, 4)
                values[pixels[..., 3] > 0] = value
                continue
            if kind == "rectangle":
                left, top = region["x"], region["y"]
                box = (left, top, left + region["width"], top + region["height"])
                points = np.array(corners(box))
            else:
                points = np.array(region["points"])
            values[filled([(points * percent).ravel().tolist()], drawing.size)] = value
    return values


def check_studio(work: Work, path: str) -> None:
    """Read an export with Label Studio's converter."""
    converter = Converter(CONFIG, str(work.out))
    names = list(work.drawings)
    for item in converter.iter_from_json_file(str(work.out / path)):
        name = names[item["id"] - 1]
        work.same(name, studio_values(work.drawings[name], item["output"]))


def write_studio(work: Work) -> None:
    """Write the export as JSON (by the schema): brush, polygon and rectangle labels."""
    work.copy("images")
    work.write("project-1.json", json.dumps(studio_tasks(work)))
    check_studio(work, "project-1.json")


def write_studio_min(work: Work) -> None:
    """Write the export as JSON-MIN, by the SDK's converter."""
    work.copy("images")
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks.json"
        tasks.write_text(json.dumps(studio_tasks(work)), encoding="utf-8")
        Converter(CONFIG, folder).convert(str(tasks), str(work.out), "JSON_MIN", is_dir=False)
    names = list(work.drawings)
    for item in json.loads((work.out / "result.json").read_text(encoding="utf-8")):
        outputs = {kind: item.get(kind, []) for kind in ("brush", "polygon", "rectangle")}
        name = names[item["id"] - 1]
        work.same(name, studio_values(work.drawings[name], outputs))
    content = json.loads((work.out / "result.json").read_text(encoding="utf-8"))
    work.write("result.json", json.dumps(content))  # a number a line is ten times as long


def write_studio_png(work: Work) -> None:
    """Write the export of brush labels as PNG, by the SDK's converter, beside its JSON."""
    work.copy("images")
    work.write("project-1.json", json.dumps(studio_tasks(work, only_brush=True)))
    check_studio(work, "project-1.json")
    (work.out / "brush").mkdir()
    tasks = work.out / "project-1.json"
    Converter(CONFIG, str(work.out)).convert(
        str(tasks), str(work.out / "brush"), "BRUSH_TO_PNG", is_dir=False
    )
    for number, (name, drawing) in enumerate(work.drawings.items(), start=1):
        values = np.zeros(drawing.size, np.uint8)
        for path in (work.out / "brush").glob(f"task-{number}-*.png"):
            with Image.open(path) as mask:
                values[np.array(mask) > 0] = CLASSES.index(path.stem.split("-")[-2]) + 1
        work.same(name, values)
