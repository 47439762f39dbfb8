"""How training pictures are varied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.auto.case import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case

UPRIGHT_DEGREES, ANY_DEGREES = 15.0, 180.0
CROP_AREA = 0.5


def turning(case: Case) -> Iterator[Decision]:
    """Turn pictures all the way round only where they have no top."""
    if case.pictures.upright:
        yield Decision(
            "augment.affine_degrees",
            UPRIGHT_DEGREES,
            "the pictures have a top and a bottom, or are too few to say: turned a little only",
        )
    else:
        yield Decision(
            "augment.affine_degrees",
            ANY_DEGREES,
            "neither figures nor light lie higher or lower than chance would put them, so pictures "
            "are turned all the way round; if yours have a top, 15 is better",
        )


def parts(case: Case) -> Iterator[Decision]:
    """Show parts of pictures too, down to half; leave out what takes hundreds of epochs."""
    del case
    yield Decision("augment.crop_area", CROP_AREA, "a part of a picture is one more picture")
    yield Decision("augment.dropout_probability", 0.0, "holes help over hundreds of epochs only")


AUGMENT_RULES = (turning, parts)
