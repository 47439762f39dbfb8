"""Pascal VOC's layout: masks in palette or colours, lists of images, a map of labels.

CVAT's "Segmentation mask 1.1" is the same with colours of its own.

Source: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010; void, 255,
lies round the objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.data.annotations.sets import (
    Annotation,
    AnnotationSet,
    Collector,
    read_text,
    split_of,
)
from notan.data.layouts import WHOLE, image_files
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.data.annotations.sets import ClassValue

MASKS = "SegmentationClass"
LABELS = "labelmap.txt"

OBJECTS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The classes of VOC 2012, from 1 on; its files name them nowhere."""

VOID = 255
NAMES = "class_names.txt"
IGNORED = "__ignore__"
BACKGROUND = ("background", "_background_")


def find(path: Path) -> Sequence[Path]:
    """Return the folder of masks, of the set itself or of the one year in a VOCdevkit."""
    places = [path, *sorted(path.glob("VOC*"))] if path.is_dir() else []
    return [place / MASKS for place in places if (place / MASKS).is_dir()][:1]


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read a folder of VOC's layout; an image in no list has no split of its own.

    Raises:
        DataError: A list or the map of labels cannot be read.
    """
    masks = files[0]
    root = masks.parent
    collector = Collector(folder)
    classes, void = _labels(root / LABELS)
    listed = dict(_lists(root))
    for mask in image_files(masks):
        split = listed.pop(mask.stem, None)
        if split is None and listed:
            collector.count("masks in none of the lists")
            continue
        image = collector.find_stem(mask.stem, mask, root / "JPEGImages", root / "images")
        if image:
            collector.add(split or WHOLE, mask, image, None)
    lost = list(listed)
    if lost and (root / LABELS).is_file():
        # datumaro, and CVAT by it, write no mask of an image without objects
        for name in lost:
            image = collector.find_stem(name, masks / f"{name}.png", root / "JPEGImages")
            if image:
                collector.add_from(root / LABELS, listed[name], Annotation(image, ()))
                collector.count("listed images without a mask, read as empty")
    elif lost:
        collector.faults.append(
            f"{masks / lost[0]}.png: named in the lists but not there, nor are {len(lost) - 1} "
            "others; take them out of ImageSets/Segmentation"
        )
    return collector.result(classes, void=void)


def _names(path: Path) -> Mapping[str, int]:
    """Return the classes by index: those of a list of names, as labelme writes, or VOC's own."""
    if not path.is_file():
        return {name: place for place, name in enumerate(OBJECTS, start=1)}
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    first = -1 if names[:1] == [IGNORED] else 0
    return {name: place for place, name in enumerate(names, first) if place > 0}


def colour_of(index: int) -> tuple[int, int, int]:
    """Return VOC's colour of an index: its bits, dealt out in turn from the highest down.

    Example:
        >>> colour_of(15)
        (192, 128, 128)
    """
    bits = [(index >> place) & 1 for place in range(24)]
    red, green, blue = (
        sum(bit << (7 - place) for place, bit in enumerate(bits[channel::3]))
        for channel in range(3)
    )
    return red, green, blue


def _lists(root: Path) -> Iterator[tuple[str, str]]:
    """Give each listed image with its split; ``trainval`` and CVAT's ``default`` are no split."""
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    lists.sort(key=lambda path: split_of([path.stem]) is not None)
    for path in lists:
        split = split_of([path.stem]) or WHOLE
        for line in read_text(path).splitlines():
            if line.strip():
                yield line.strip().rpartition("/")[2], split


def _labels(path: Path) -> tuple[Mapping[str, ClassValue], tuple[ClassValue, ...]]:
    """Return the classes with their values in the masks, and which value is void."""
    if not path.is_file():
        return _names(path.parent / NAMES), (VOID,)
    classes: dict[str, ClassValue] = {}
    void: list[ClassValue] = []
    count = 0
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        name, _, rest = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        try:
            told = rest.split(":")[0]
            colour = tuple(int(part) for part in told.split(",")) if told else colour_of(count)
            count += 1
            red, green, blue = colour
        except ValueError as error:
            raise DataError(
                f"{path}: line {place}: wanted name:red,green,blue::, found {line[:60]}"
            ) from error
        value = f"#{red:02x}{green:02x}{blue:02x}"
        if name.lower() in ("void", "ignore", "ignored"):
            void.append(value)
        elif name.lower() not in BACKGROUND:
            classes[name] = value
    return classes, tuple(void) or ("#e0e0c0",)
