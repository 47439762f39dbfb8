"""CVAT's two formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import datumaro
import numpy as np

from annotations.drawings import COLOURS, DAY, Thing, Work, rings
from annotations.pixels import check_voc
from annotations.tool_datasets import as_either, as_mask, datumaro_dataset, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_cvat_mask(work: Work) -> None:
    """Write "Segmentation mask 1.1", which CVAT has datumaro write, in the colours of a task."""
    colours = {"background": (0, 0, 0)} | COLOURS
    dataset = datumaro_dataset(work, as_mask, subsets=False)
    dataset.export(
        str(work.out),
        "voc_segmentation",
        save_media=True,
        label_map={label: [colour, [], []] for label, colour in colours.items()},
    )
    check_voc(work)


def as_cvat(thing: Thing, number: int) -> list[Any]:
    """Return datumaro's box, mask or polygons of an object."""
    if thing.box:
        left, top, right, bottom = thing.box
        box = datumaro.Bbox(left, top, right - left, bottom - top, label=thing.value - 1)
        return [box.wrap(group=number, z_order=number)]
    return [each.wrap(z_order=number) for each in as_either(thing, number)]


def check_cvat(work: Work) -> None:
    """Read "CVAT for images" with datumaro."""
    dataset = datumaro.Dataset.import_from(str(work.out), "cvat")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    for item in dataset:
        ordered = sorted(item.annotations, key=lambda each: each.z_order)
        work.same(item.id, drawn(ordered, work.drawings[item.id].size, labels))
    if {item.id for item in dataset} != set(work.drawings):
        raise ValueError(f"{work.out.name}: images were lost")


def write_cvat_datumaro(work: Work) -> None:
    """Write "CVAT for images 1.1" as datumaro does: default.xml, masks of the image's size."""
    datumaro_dataset(work, as_cvat, subsets=False).export(str(work.out), "cvat", save_media=True)
    check_cvat(work)


def cvat_element(thing: Thing, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return elements as CVAT's ``dump_as_cvat_annotation`` writes them."""
    common = {"label": thing.label, "source": "manual", "occluded": 0}
    order = {"z_order": number}
    if thing.box:
        edges = zip(("xtl", "ytl", "xbr", "ybr"), thing.box, strict=True)
        yield "box", common | {key: f"{edge:.2f}" for key, edge in edges} | order
    elif len(rings(thing.mask)) == 1:
        pairs = np.reshape(rings(thing.mask)[0], (-1, 2))
        yield "polygon", common | {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs)} | order
    else:  # run lengths row by row within the box, background first
        rows, columns = np.nonzero(thing.mask)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        flat = np.concatenate([[False], thing.mask[top:bottom, left:right].ravel(), [False]])
        starts = np.flatnonzero(np.diff(flat.astype(np.int8)))
        counts = np.diff(starts, prepend=0, append=(bottom - top) * (right - left))
        counts = counts[:-1] if counts[-1] == 0 else counts
        place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        yield "mask", common | {"rle": ", ".join(map(str, counts))} | place | order


def write_cvat_images(work: Work) -> None:
    """Write "CVAT for images 1.1" by the schema: annotations.xml, masks as large as their boxes."""
    work.copy("images")
    label = (
        "        <label>\n          <name>{}</name>\n          <color>{}</color>\n"
        "          <type>any</type>\n          <attributes>\n          </attributes>\n"
        "        </label>\n"
    )
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        "  <meta>\n    <task>\n      <id>1</id>\n      <name>cells</name>\n"
        f"      <size>{len(work.drawings)}</size>\n      <mode>annotation</mode>\n"
        "      <overlap>0</overlap>\n      <bugtracker></bugtracker>\n"
        f"      <created>{DAY}</created>\n      <updated>{DAY}</updated>\n"
        "      <subset>default</subset>\n      <start_frame>0</start_frame>\n"
        f"      <stop_frame>{len(work.drawings) - 1}</stop_frame>\n"
        "      <frame_filter></frame_filter>\n      <labels>\n",
        *(label.format(name, f"#{bytes(colour).hex()}") for name, colour in COLOURS.items()),
        f"      </labels>\n    </task>\n    <dumped>{DAY}</dumped>\n  </meta>\n",
    ]
    for frame, (name, drawing) in enumerate(work.drawings.items()):
        height, width = drawing.size
        lines.append(
            f'  <image id="{frame}" name="{name}.png" width="{width}" height="{height}">\n'
        )
        for number, thing in enumerate(drawing.things):
            for tag, values in cvat_element(thing, number):
                each = " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items())
                lines.append(f"    <{tag} {each}>\n    </{tag}>\n")
        lines.append("  </image>\n")
    work.write("annotations.xml", "".join([*lines, "</annotations>\n"]))
    check_cvat(work)
