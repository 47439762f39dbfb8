"""YOLO's segmentation: a text file for each image, a class and an outline in each line.

Source: docs.ultralytics.com/datasets/segment; the outline is in fractions of width and height.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import yaml

from notan.data.annotations.sets import (
    NAMED,
    Annotation,
    AnnotationSet,
    Collector,
    Region,
    read_text,
)
from notan.data.annotations.shapes import PixelPolygon, as_points
from notan.data.layouts import PART_NAMES, WHOLE, image_files
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BOX = 5
"""Numbers in a line that holds a box: its class, middle, width and height."""


def find(path: Path) -> Sequence[Path]:
    """Return the .yaml file of a data set, or the text files of a folder without one."""
    if path.is_file():
        return [path] if path.suffix.lower() in (".yaml", ".yml") else []
    files = sorted(each for each in path.glob("*.y*ml") if each.suffix in (".yaml", ".yml"))
    told = [each for each in files if _describes(each)]
    labels = sorted(each for _, _, each in _labels(_folders(path)))
    told_of = [each for each in told if _describes(each, "train:", "val:")]
    return told_of or ([*told, *labels] if any(map(_holds_numbers, labels[:NAMED])) else [])


def _describes(path: Path, *starts: str) -> bool:
    try:
        lines = path.read_text().splitlines()
        return any(line.startswith(starts or ("names:", "nc:")) for line in lines)
    except (OSError, UnicodeDecodeError):
        return False


def _holds_numbers(path: Path) -> bool:
    """Say whether a text is YOLO's, not a caption."""
    try:
        words = path.read_text().split()
        return len([float(word) for word in words]) >= BOX
    except (OSError, ValueError):
        return False


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read YOLO's files as one set; an image without a text file is known to be empty.

    Raises:
        DataError: A file cannot be read, or holds boxes or something else than outlines.
    """
    collector = Collector(folder)
    told = [path for path in files if path.suffix in (".yaml", ".yml")]
    if len(told) > 1:
        raise DataError(
            f"{folder}: {told[0].name} and {told[1].name} could both be its description; give one "
            "of them as --data-path"
        )
    names, places = _described(told[0], folder) if told else ({}, _folders(folder))
    used: dict[str, int] = {}
    for split, image, path in _labels(places, everything=True):
        regions = []
        for number, region in _regions(path, names) if path.is_file() else ():
            used[region.label] = number
            regions.append(region)
        collector.add(split, path, image, Annotation(image, tuple(regions)))
    return collector.result(used)


def _described(path: Path, folder: Path) -> tuple[Mapping[int, str], list[tuple[str, Path]]]:
    """Return the names of the classes and the folders of images that a data.yaml tells of."""
    try:
        told = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: this is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(told, dict):
        raise DataError(f"{path}: wanted 'train', 'val' and 'names', found {type(told).__name__}")
    names = told.get("names") or {}
    named = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(named, dict):
        raise DataError(f"{path}: wanted a list of names as 'names'")
    places = []
    for split, words in PART_NAMES.items():
        for word in words:
            found = told.get(word) or ()
            root = str(told.get("path") or "")
            for each in [found] if isinstance(found, str) else found:
                place = _place(folder, root, str(each))
                # Roboflow names a folder of test images in every export, and makes none
                if place is None and split != "test":
                    raise DataError(_not_there(str(each), folder, path))
                places += [(split, place)] if place else []
    numbered = {int(number): str(name) for number, name in named.items()}
    return numbered, places or _folders(folder)


def _place(folder: Path, root: str, told: str) -> Path | None:
    """Return a folder of images, which Ultralytics, Roboflow and people tell in their own ways."""
    plain = told.replace("\\", "/")
    tail = plain.removeprefix("./").removeprefix("../")
    tries = [folder / root / plain, folder / plain, folder / tail, folder / tail / "images"]
    inside = folder.resolve()
    for each in tries:
        if each.is_dir() and each.resolve().is_relative_to(inside):
            return each
    return None


def _not_there(told: str, folder: Path, path: Path) -> str:
    if told.endswith(".txt"):
        return f"{path}: '{told}' is a list of images; name their folder instead"
    return (
        f"{path}: there is no folder '{told}' in {folder}; write the folders of images as they are "
        "seen from this file"
    )


def _folders(folder: Path) -> list[tuple[str, Path]]:
    """Return the folders of images by split, of a data set without a description."""
    places = [(WHOLE, folder / "images"), (WHOLE, folder)]
    for split, words in PART_NAMES.items():
        for word in words:
            places += [(split, folder / "images" / word), (split, folder / word / "images")]
    return [(split, place) for split, place in places if place.is_dir()]


def _labels(
    places: Sequence[tuple[str, Path]], *, everything: bool = False
) -> Iterator[tuple[str, Path, Path]]:
    """Give each image with its split and text file, those without one only where wanted."""
    for split, place in places:
        labels = _label_folder(place)
        for image in image_files(place):
            path = labels / f"{image.stem}.txt"
            if everything or path.is_file():
                yield split, image, path


def _label_folder(place: Path) -> Path:
    """Return where labels lie: the last ``images`` of the path is ``labels``, or beside them."""
    parts = list(place.parts)
    for at in reversed(range(len(parts))):
        if parts[at] == "images":
            labels = type(place)(*parts[:at], "labels", *parts[at + 1 :])
            return labels if labels.is_dir() else place
    return place


def _regions(path: Path, names: Mapping[int, str]) -> Iterator[tuple[int, Region]]:
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        where = f"{path}: line {place}"
        if not words:
            continue
        if len(words) == BOX:
            raise DataError(
                f"{where}: holds a box, not an outline; export the data set for segmentation"
            )
        try:
            number = int(words[0])
            points = as_points(np.array(words[1:], np.float64))
        except ValueError as error:
            raise DataError(f"{where}: wanted a class and fractions, found {line[:60]}") from error
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if points.min() < -1 or points.max() > 2:
            raise DataError(
                f"{where}: vertices from {points.min():.6g} to {points.max():.6g}; fractions of "
                "the image's width and height were wanted, from 0 to 1, not pixels"
            )
        if names and number not in names:
            raise DataError(f"{where}: class {number} is none of the {len(names)} named ones")
        yield number, Region(names.get(number, str(number)), PixelPolygon(points))
