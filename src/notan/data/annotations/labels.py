"""Two classes out of many: which are foreground, and the masks that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.config import Masks
from notan.data.samples import Labels
from notan.errors import ConfigError, DataError, nearest
from notan.io.headers import read_size
from notan.io.masks import AS_IT_STANDS, CHOSEN, read_mask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.data.annotations.sets import Annotation, AnnotationSet, ClassValue
    from notan.types import Mask

MOST_MEASURED = 200
"""Masks that are read to say how large the classes are, evenly spread."""

MOST_LISTED = 12


@dataclass(frozen=True)
class ClassChoice:
    """Which classes count as what.

    Attributes:
        foreground: Names of classes.
        ignored: Names of classes that are left out of loss and score.
        crowd: What a region that marks a crowd of foreground objects is.
    """

    foreground: tuple[str, ...]
    ignored: frozenset[str]
    crowd: str


def choose(found: AnnotationSet, masks: Masks, where: Path) -> ClassChoice:
    """Return which classes are foreground, as the owner says, or as there is only one.

    Args:
        found: Its classes are known by name and value.
        masks: What the owner says.
        where: The data folder, for messages.

    Raises:
        ConfigError: A class is named that is not there.
        DataError: There are several and the owner says nothing, or it is open what crowds are.
    """
    names = tuple(dict.fromkeys(_name(each, found, where) for each in masks.foreground))
    ignored = frozenset(_name(each, found, where) for each in masks.ignore) or found.ignored
    if not names:
        left = [name for name in found.classes if name not in ignored]
        if len(left) > 1:
            raise DataError(_question(found, left, where))
        if not left:
            raise DataError(f"{where}: no object is annotated in {len(found.everything)} images")
        names = tuple(left)
    return ClassChoice(names, ignored - {*names}, _crowds(found, names, masks, where))


def mask_rule(found: AnnotationSet, masks: Masks, where: Path) -> Masks:
    """Return how mask files are read whose classes are known by name.

    Args:
        found: Its classes have the values of the files; none: the files alone tell.
        masks: What the owner says, with names or values.
        where: The data folder, for messages.

    Raises:
        ConfigError: A class is named that is not there.
        DataError: There are several and the owner says nothing.
    """
    if not found.classes:
        require_values(masks, where)
        return masks
    void = [each for each in masks.ignore if each in found.void] if masks.ignore else found.void
    choice = choose(found, without_void(found, masks), where)
    return masks.model_copy(
        update={
            "foreground": tuple(_values(found, choice.foreground)),
            "ignore": (*_values(found, sorted(choice.ignored)), *void),
        }
    )


def _values(found: AnnotationSet, names: Sequence[str]) -> list[ClassValue]:
    return [found.classes[name] for name in names if name in found.classes]


def without_void(found: AnnotationSet, masks: Masks) -> Masks:
    """Return what the owner says of classes, values of void aside."""
    others = tuple(each for each in masks.ignore if each not in found.void)
    return masks.model_copy(update={"ignore": others})


def require_values(masks: Masks, where: Path) -> None:
    """Refuse names of classes where masks are files of values.

    Raises:
        ConfigError: A name is among them.
    """
    names = [each for each in (*masks.foreground, *masks.ignore) if not is_value(each)]
    if names:
        raise ConfigError(
            f"{where}: the masks here hold values, not names such as '{names[0]}'; give the value "
            "of the class, such as --foreground 17, or a colour, --foreground '#804080'"
        )


def mask_labels(path: Path, *, rule: Masks = AS_IT_STANDS) -> Labels:
    """Read a two-class mask by the one rule of ``notan.io.masks``, and what the owner says.

    Raises:
        DataError: The file is unreadable or its values are ambiguous.
    """
    reading = read_mask(path, rule)
    return Labels(reading.mask, reading.ignore, reading.encoding)


def is_value(wanted: ClassValue) -> bool:
    """Say whether a class is given by its value in mask files, not by its name."""
    return isinstance(wanted, int) or wanted.startswith("#")


def _name(wanted: ClassValue, found: AnnotationSet, where: Path) -> str:
    by_value = {value: name for name, value in found.classes.items()}
    if wanted in by_value:
        return by_value[wanted]
    names = [*found.classes, *found.ignored]
    same = [name for name in names if name.lower() == str(wanted).lower()]
    if wanted in names or len(same) == 1:
        return str(wanted) if wanted in names else same[0]
    raise ConfigError(f"{where}: there is no class '{wanted}'{nearest(str(wanted), names)}")


def _question(found: AnnotationSet, names: Sequence[str], where: Path) -> str:
    shares, count = measure(found)
    largest = sorted(names, key=lambda name: -shares.get(name, 0.0))
    listed = ", ".join(f"{name} {shares.get(name, 0.0):.2%}" for name in largest[:MOST_LISTED])
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (
        f"{where}: {len(names)} classes, by their share of the pixels of {count} images: "
        f"{listed}{more}; say which are the foreground, such as --foreground '{largest[0]}' or "
        f"--foreground '{','.join(largest[:2])}'"
    )


def measure(found: AnnotationSet) -> tuple[Mapping[str, float], int]:
    """Return the share of pixels of each class, 0 to 1, and of how many images."""
    pairs = found.everything[:: -(-len(found.everything) // MOST_MEASURED)]
    shares = dict.fromkeys(found.classes, 0.0)
    for pair in pairs:
        for name, mask in _masks_of(pair.mask, found):
            shares[name] = shares.get(name, 0.0) + float(mask.mean()) / len(pairs)
    return shares, len(pairs)


def _masks_of(path: Path, found: AnnotationSet) -> Iterator[tuple[str, Mask]]:
    """Give a mask for each class; one that cannot be read is told of when it is used."""
    annotation = found.annotations.get(path)
    try:
        if annotation is None:
            for name, value in found.classes.items():
                yield name, read_mask(path, Masks(foreground=(value,))).mask
            return
        size = annotation.size or read_size(annotation.image)
        for name in {region.label for region in annotation.regions}:
            shown = [each.shape.paint(size) for each in annotation.regions if each.label == name]
            yield name, np.logical_or.reduce(shown)
    except DataError:
        return


def _crowds(found: AnnotationSet, names: Collection[str], masks: Masks, where: Path) -> str:
    """Return what crowds are; refuse to guess where most regions are marked so.

    COCO's own have one in a hundred. Datumaro and supervision mark every object that they store
    as runs.
    """
    regions = [
        region.crowd
        for each in found.annotations.values()
        for region in each.regions
        if region.label in names
    ]
    if masks.crowd is None and 2 * sum(regions) > len(regions):
        raise DataError(
            f"{where}: {sum(regions)} of {len(regions)} annotations are marked iscrowd, and some "
            "tools mark every object so that they store as runs; say what they are: "
            "data.masks.crowd=foreground, or =ignore where they mark crowds"
        )
    return masks.crowd or "ignore"


@dataclass(frozen=True, eq=False, repr=False)
class AnnotationReader:
    """Reads the masks of an annotation set under a choice of classes.

    Attributes:
        annotations: By the path of the mask.
        choice: Which classes are what.
        rule: How masks are read that are image files, beside images that are known to be empty.
        upright: Whether images are turned by their EXIF orientation.
        known_as: Tells this reader from others.
    """

    annotations: Mapping[Path, Annotation]
    choice: ClassChoice
    rule: Masks
    upright: bool
    known_as: str

    def __repr__(self) -> str:
        return f"AnnotationReader({self.known_as}, {self.choice}, upright={self.upright})"

    def __call__(self, path: Path) -> Labels:
        """Paint the mask that stands under a path.

        Raises:
            DataError: A shape cannot be one of this image, or the image's header cannot be read.
        """
        annotation = self.annotations.get(path)
        if annotation is None:
            reading = read_mask(path, self.rule)
            return Labels(reading.mask, reading.ignore, reading.encoding)
        size = annotation.size or read_size(annotation.image, upright=self.upright)
        mask, ignored, crowds = (np.zeros(size, np.bool_) for _ in range(3))
        chosen = self.choice
        try:
            for region in annotation.regions:
                if region.label in chosen.ignored:
                    ignored |= region.shape.paint(size)
                elif region.label not in chosen.foreground:
                    continue
                elif region.crowd and chosen.crowd == "ignore":
                    crowds |= region.shape.paint(size)
                else:
                    mask |= region.shape.paint(size)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        # what is marked as one object is known, also where a crowd stands round it
        ignored |= crowds & ~mask
        words = ", ".join(chosen.foreground)
        return Labels(mask & ~ignored, ignored if ignored.any() else None, f"{CHOSEN}{words}")
