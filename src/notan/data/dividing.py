"""Which images of an undivided folder validate: chosen by what its masks and images show."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

from notan.config import Data
from notan.data.copies import all_copies, look_at
from notan.data.splits import choose_folds, choose_validation, join_groups, name_groups
from notan.data.survey import (
    MOST_REMEMBERED,
    choose_reading,
    in_threads,
    look_into,
    stamp_of,
    survey_mask,
)
from notan.errors import DataError
from notan.io.images import FULL_DEPTH, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from notan.data.copies import ImageLook
    from notan.data.samples import FileSource, Labels, Pair

logger = logging.getLogger("notan")


def choose_by_content(
    folder: Path,
    whole: FileSource,
    data: Data,
    seed: int,
    *,
    told: Mapping[str, str],
) -> frozenset[str]:
    """Choose the validation images: those of a fold, or some of a folder that has none.

    Every image is decoded once for it, and every mask, which ``survey`` then knows.

    Args:
        folder: Where they lie, for what is said.
        whole: All images to divide.
        data: How they are divided.
        seed: Decides it, unless ``data.split_seed`` does.
        told: Groups that the data themselves tell.

    Raises:
        DataError: There are fewer groups than parts to divide them into.
    """
    seed = seed if data.split_seed is None else data.split_seed
    looks = in_threads(
        partial(_glance, read_labels=whole.read_labels), whole.pairs, "reading masks"
    )
    empty = {pair.name for pair, look in zip(whole.pairs, looks, strict=True) if look is False}
    groups, copies = groups_of(whole, data.group_by, told=told)
    names = whole.names
    count = len({groups.get(name, name) for name in names})
    _require_enough_groups(folder, whole, data, count)
    if data.division:
        number, folds = data.division
        parts = choose_folds(names, folds, seed=seed, groups=groups, empty=empty)
        chosen = parts[number - 1]
        how = f"fold {number} of {folds}: {len(chosen)} of {len(names)} images validate"
    else:
        chosen = choose_validation(
            names, fraction=data.validation_fraction, seed=seed, groups=groups, empty=empty
        )
        how = f"{len(chosen)} of {len(names)} images set aside for validation"
    how += f", from {count} groups"
    if copies:
        how += f"; {copies} are copies of each other, or nearly so"
    if empty:
        how += f"; {len(empty & chosen)} without foreground there, {len(empty - chosen)} elsewhere"
    say_once(f"{folder}: {how}")
    if count == 1:
        _warn_once(f"{folder}: all images are copies of one, so validation sees what training saw")
    elif len(names) - len(empty) == 1:
        _warn_once(f"{folder}: only one mask has foreground, so that validation has none")
    return chosen


def _require_enough_groups(folder: Path, whole: FileSource, data: Data, count: int) -> None:
    """Refuse images that cannot be divided without tearing what belongs together."""
    by = f" by data.group_by = '{data.group_by}'" if data.group_by else ""
    if data.division and count < data.division[1]:
        raise DataError(
            f"{folder}: {len(whole)} images in {count} groups{by} for {data.division[1]} folds; "
            "copies and groups stay together, so give at most as many --folds as there are groups"
        )
    if count == 1 and data.group_by:
        raise DataError(
            f"{folder}: all {len(whole)} images are of one group{by}; at least two groups are "
            "wanted, one of them to validate on"
        )


def groups_of(
    source: FileSource, group_by: str | None, *, told: Mapping[str, str] | None = None
) -> tuple[dict[str, str], int]:
    """Return which images have to stay on one side of a split, and how many of them are copies.

    Args:
        source: Its images are decoded once, to tell copies; one that cannot be is taken for none.
        group_by: As for ``name_groups``.
        told: Groups that are known already.

    Raises:
        ConfigError: It is no regular expression, or found in no name.
        DataError: It is a table that cannot be read, or that lacks an image.
    """
    names = source.names
    looks = in_threads(_look_at, [pair.image for pair in source.pairs], "looking for copies")
    linked = ((names[one], names[other]) for one, other in all_copies(looks))
    own = frozenset(names)
    known = {name: group for name, group in (told or {}).items() if name in own}
    return join_groups({**known, **name_groups(names, group_by)}, linked)


def _look_at(path: Path) -> ImageLook | None:
    try:
        return _looked_at(path, stamp_of(path))
    except DataError:  # whoever trains on it hears of it
        return None


@lru_cache(MOST_REMEMBERED)
def _looked_at(path: Path, stamp: tuple[int, int] | None) -> ImageLook:
    del stamp
    found = look_into(path)
    reading = choose_reading(Data(), [found])
    return look_at(read_image(path, replace(reading, white=FULL_DEPTH)))


def _glance(pair: Pair, *, read_labels: Callable[[Path], Labels]) -> bool | None:
    """Say whether a mask has foreground; None where it cannot be read, as the survey will say."""
    try:
        return survey_mask(pair.mask, read_labels).foreground > 0
    except DataError:
        return None


@cache
def say_once(words: str) -> None:
    """Write into the log what was recognised, however often a folder is opened."""
    logger.info("%s", words)


@cache
def _warn_once(words: str) -> None:
    logger.warning("%s", words)
