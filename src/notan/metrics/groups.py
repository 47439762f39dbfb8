"""Grouping: images put into groups, so that a mean cannot hide who is served badly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from notan.metrics.image import ImageScore

FOREGROUND_SIZE = "foreground size"
FEWEST_FOREGROUNDS = 3
"""Images with a foreground without which there are no thirds."""

OXFORD_NAME = re.compile(r"(?P<breed>.+)_\d+")


@dataclass(frozen=True)
class Grouping:
    """One way to divide the images.

    Attributes:
        name: What the groups differ in, for example ``breed``.
        group_of: Each image's group, by the image's name, in the order to show them.
        rule: How the groups were made, in words.
    """

    name: str
    group_of: Mapping[str, str]
    rule: str


def by_breed(names: Iterable[str]) -> Grouping:
    """Group images of the Oxford pets by breed: ``great_pyrenees_12`` is a great_pyrenees.

    Args:
        names: The images' names; one that is no such name goes to the group ``other``.
    """
    found = ((name, OXFORD_NAME.fullmatch(name)) for name in sorted(names))
    groups = {name: match["breed"] if match else "other" for name, match in found}
    return Grouping("breed", groups, "the image's name without its number")


def by_foreground_size(images: Sequence[ImageScore]) -> Grouping | None:
    """Group images into thirds by the foreground's share of their counted pixels.

    Images of equal share are never parted, so that the thirds may differ in number. Images
    without foreground are a group of their own, ``no foreground``.

    Returns:
        The grouping; None where too few images have a foreground, or all shares are one.
    """
    shares = {each.name: each.foreground_share or 0.0 for each in images}
    present = [share for share in shares.values() if share]
    if len(present) < FEWEST_FOREGROUNDS or min(present) == max(present):
        return None
    first, second = (float(end) for end in np.quantile(present, [1 / 3, 2 / 3]))
    groups: dict[str, list[str]] = {"small": [], "medium": [], "large": [], "no foreground": []}
    for name, share in shares.items():
        size = "small" if share <= first else "medium" if share <= second else "large"
        groups[size if share else "no foreground"].append(name)
    rule = (
        "thirds of the images by the foreground's share of the counted pixels: "
        f"small up to {first:.3g}, medium up to {second:.3g}, large above"
    )
    ordered = {name: group for group, names in groups.items() for name in names}
    return Grouping(FOREGROUND_SIZE, ordered, rule)
