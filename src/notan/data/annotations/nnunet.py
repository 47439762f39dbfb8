"""nnU-Net's raw data sets, of two dimensions: imagesTr, labelsTr and dataset.json.

Source: Isensee et al., "nnU-Net", Nature Methods 2021; documentation/dataset_format.md of its
repository. An image may lie in several files, ``case_0000.png``, ``case_0001.png``: its channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.data.annotations.sets import AnnotationSet, Collector, get, read_json
from notan.data.layouts import SUFFIXES
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DESCRIPTION = "dataset.json"
PARTS = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def find(path: Path) -> Sequence[Path]:
    """Return the description of a data set."""
    file = path if path.name == DESCRIPTION else path / DESCRIPTION
    return [file] if file.is_file() and (file.parent / "labelsTr").is_dir() else []


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read a data set; its training cases have no validation part.

    Raises:
        DataError: The description is none, or of volumes.
    """
    told = read_json(files[0])
    ending = get(told, "file_ending", str, files[0])
    if ending.lower() not in SUFFIXES:
        raise DataError(
            f"{files[0]}: its images are {ending} files; images of two dimensions are read, such "
            "as .png and .tif: write each slice as one"
        )
    labels = get(told, "labels", dict, files[0])
    channels = get(told, "channel_names", dict, files[0])
    collector = Collector(folder)
    for split, (images, masks) in PARTS.items():
        for mask in sorted((folder / masks).glob(f"*{ending}")):
            _add_case(mask, folder / images, ending, len(channels), split, collector)
        if not (folder / masks).is_dir() and (folder / images).is_dir():
            collector.count(f"folder {images} without masks")
    classes, void = {}, []
    for name, value in labels.items():
        if not isinstance(value, int):
            raise DataError(f"{files[0]}: the label '{name}' is {value}: regions are not read")
        if name == "ignore":
            void.append(value)
        elif value:
            classes[name] = value
    return collector.result(classes, void=tuple(void))


def _add_case(
    mask: Path, images: Path, ending: str, channels: int, split: str, collector: Collector
) -> None:
    """Take a case whose channels lie in a file each, or, of a photograph, all in one."""
    case = mask.name.removesuffix(ending)
    first, *more = [images / f"{case}_{place:04d}{ending}" for place in range(channels)]
    if not any(path.is_file() for path in more):
        more = []
        if channels not in (1, 3):
            collector.faults.append(
                f"{first}: stands alone, though the description names {channels} channels"
            )
            return
    lost = [path for path in (first, *more) if not path.is_file()]
    if lost:
        collector.faults.append(f"{lost[0]}: not there, but its mask {mask.name} is")
        return
    collector.add(split, mask, first, None, name=case, channels=tuple(more))
