"""How training images are varied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.auto.case import ChosenSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case

UPRIGHT_DEGREES, ANY_DEGREES = 15.0, 180.0
CROP_AREA = 0.5


def turning(case: Case) -> Iterator[ChosenSetting]:
    """Turn images all the way round only where they have no top."""
    if case.images.upright:
        yield ChosenSetting(
            "augment.rotate_degrees",
            UPRIGHT_DEGREES,
            "the images have a top and a bottom, or are too few to say: turned a little only",
        )
    else:
        yield ChosenSetting(
            "augment.rotate_degrees",
            ANY_DEGREES,
            "neither foregrounds nor light lie higher or lower than chance would put them, so "
            "images "
            "are turned all the way round; if yours have a top, 15 is better",
        )


def parts(case: Case) -> Iterator[ChosenSetting]:
    """Show parts of images too, down to half; leave out what takes hundreds of epochs."""
    del case
    yield ChosenSetting("augment.crop_area", CROP_AREA, "a part of an image is one more image")
    yield ChosenSetting(
        "augment.grid_dropout_probability", 0.0, "holes help over hundreds of epochs only"
    )


AUGMENT_RULES = (turning, parts)
