"""Which images are drawn at random to score models on: every fifth, once and for all.

What the model is least sure of is corrected first, so a score on what was corrected says nothing of
the rest. An image of the draw is never trained on, and the drawn ones are offered in an order of
their own that no model has a say in: the first so many of them are a fair sample of all images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from notan.config.sections import Section
from notan.errors import DataError
from notan.io.digest import sha256
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

EVERY = 5
"""One image in so many is drawn."""

SEED = "notan studio draws 1"
"""Decides the draw with the images' ids alone: a folder that lost its draw gets the same again."""


class Draw(Section):
    """The images that were drawn, and those that were not.

    Attributes:
        drawn: Ids, in the order in which they are offered.
        rest: Ids of all others that have been here.
    """

    drawn: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()

    def extended(self, images: Sequence[str], *, is_seen: Callable[[str], bool]) -> Draw:
        """Return the draw with images that are new to it; what was decided stays.

        Args:
            images: Ids of all images there are now.
            is_seen: Whether a model was, or may be, trained on an image; it is not drawn then.
        """
        known = {*self.drawn, *self.rest}
        new = [each for each in images if each not in known]
        free = sorted((each for each in new if not is_seen(each)), key=_lot)
        missing = (len(known) + len(new)) // EVERY - len(self.drawn)
        chosen = free[: max(0, missing)]
        rest = sorted({*new} - {*chosen})
        return Draw(drawn=(*self.drawn, *chosen), rest=(*self.rest, *rest))


def _lot(image: str) -> str:
    return sha256(SEED, image)


def open_draw(path: Path, images: Sequence[str], *, is_seen: Callable[[str], bool]) -> Draw:
    """Read the draw of a folder, add images that came since, and keep it.

    Args:
        path: Its file; none yet: it is made.
        images: As for ``Draw.extended``.
        is_seen: Likewise.

    Raises:
        DataError: The file is damaged.
        StorageError: It cannot be read or written.
    """
    before = Draw()
    if path.exists():
        with storage_errors(path, chosen_by="--corrections"):
            content = path.read_bytes()
        try:
            before = Draw.model_validate_json(content)
        except ValidationError as error:
            raise DataError(
                f"{path}: this says which images were drawn at random, and cannot be read; take it "
                "away, and they are drawn again: the same ones, where no image was added since"
            ) from error
    draw = before.extended(images, is_seen=is_seen)
    if draw != before:
        write_bytes(path, draw.model_dump_json().encode())
    return draw
