"""The pages of a TIFF, each an image of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from PIL import TiffImagePlugin

from notan.data.decode import guarded, guarded_image, identified, refuse_size, rgb
from notan.errors import DataError

if TYPE_CHECKING:
    from notan.types import RGBImage, Size

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PAGES = 10_000
"""Pages that are looked for: a small file can claim millions, and each takes time to find."""

_KIND = 254
_COPY, _TRANSPARENCY = 1, 4
"""Bits of NewSubfileType: a reduced copy of another page (as in a pyramid), a mask of one."""


class TiffPages:
    """Reads the pages of an open TIFF; going through them in their order is quickest.

    Reduced copies and transparency masks are left out, so that a pyramid is one image.

    Attributes:
        name: What the file is called in messages.
        numbers: Of the pages, within the file, from 0.
        fault: Why no further page was found, where the file is damaged after some good ones.

    Source: TIFF 6.0, Adobe 1992, page 36 (NewSubfileType). A chain of pages that leads back into
        itself ends where it would begin again.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Find the pages; no pixel is decoded.

        Args:
            file: Must stay open for as long as pages are read.
            name: What to call it in messages.

        Raises:
            DataError: It is no TIFF, its first page is damaged, or it has too many.
        """
        self.name = name
        self.numbers: list[int] = []
        self.fault: DataError | None = None
        image = guarded(identified, file, name)
        if not isinstance(image, TiffImagePlugin.TiffImageFile):
            raise DataError(f"{name}: is a {image.format} image; wanted a TIFF with its pages")
        self._image = image
        self._find()

    def size(self, number: int) -> Size:
        """Return a page's (height, width), from its header.

        Raises:
            DataError: Damaged, or a size that must not be decoded.
        """
        self._go_to(number)
        width, height = self._image.size
        refuse_size((height, width), self._called(number))
        return height, width

    def read(self, number: int) -> RGBImage:
        """Decode a page as uint8, (height, width, 3), RGB, upright.

        Raises:
            DataError: Damaged, too large, or of values out of range.
        """
        self.size(number)

        def decode() -> RGBImage:
            self._image.load()
            return rgb(self._image, self._called(number))

        return guarded_image(decode, self._called(number))

    def _find(self) -> None:
        number = 0
        numbers: list[int] = []
        while number <= MOST_PAGES:
            try:
                there = self._go_to(number)
            except DataError as error:
                # Of a lone page, the rest is mere rubbish behind its end, which programs do leave
                self.fault = error if len(numbers) > 1 else None
                break
            if not there:
                break
            if not int(self._image.tag_v2.get(_KIND, 0) or 0) & (_COPY | _TRANSPARENCY):
                numbers.append(number)
            number += 1
        else:
            raise DataError(
                f"{self.name}: has more than {MOST_PAGES:,} pages; split it into several files"
            )
        self.numbers = numbers or [0]

    def _go_to(self, number: int) -> bool:
        """Make a page the current one; False where the file ends before it."""

        def seek() -> bool:
            try:
                self._image.seek(number)
            except EOFError:
                return False
            return True

        # A warning that became an error would leave Pillow's list of pages longer than the file's
        return guarded_image(seek, self._called(number), once=True)

    def _called(self, number: int) -> str:
        return f"{self.name}, page {number + 1}"
