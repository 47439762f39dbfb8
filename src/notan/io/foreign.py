"""TIFF files that Pillow reads wrongly or not at all, as tifffile knows them."""

from __future__ import annotations

import itertools
import logging
from typing import IO, NamedTuple

import tifffile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs, it also raises, or we do

MOST_PAGES = 10_000
"""Pages that are looked for: a small file can claim millions, and each takes time to find."""

COPY, TRANSPARENCY = 1, 4
"""Bits of NewSubfileType: a reduced copy of another page (as in a pyramid), a mask of one."""

RGB = 2
"""A value of PhotometricInterpretation."""

ALPHAS = (1, 2)
"""Values of ExtraSamples that stand for transparency, multiplied into the colours or not."""


class ForeignTiff(NamedTuple):
    """A healthy TIFF that Pillow reads wrongly or not at all, as tifffile knows it.

    Attributes:
        file: It, open.
        pages: The number of each page that is an image of its own, and its (width, height).
        samples: Numbers for each pixel of the first page.
        colours: Whether the first three of them are red, green and blue.
        transparent: Whether the last of them is the transparency.
    """

    file: IO[bytes]
    pages: tuple[tuple[int, tuple[int, int]], ...]
    samples: int
    colours: bool
    transparent: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first page, as Pillow's images have it."""
        return self.pages[0][1]

    @property
    def format(self) -> str:
        """As Pillow's images have it."""
        return "TIFF"

    @property
    def info(self) -> dict[str, str]:
        """As Pillow's images have it."""
        return {}


def as_foreign(file: IO[bytes]) -> ForeignTiff:
    """Read the header of a TIFF by tifffile, whether or not Pillow could."""
    file.seek(0)
    pages = []
    with tifffile.TiffFile(file) as tiff:
        for number, each in enumerate(itertools.islice(tiff.pages, MOST_PAGES)):
            page = each.aspage()
            if not page.subfiletype & (COPY | TRANSPARENCY) or not number:
                pages.append((number, (page.imagewidth, page.imagelength)))
        start = tiff.pages.first
        extra = tuple(int(each) for each in start.extrasamples or ())
        colours = start.photometric == RGB and start.samplesperpixel >= 3
    transparent = bool(extra) and extra[-1] in ALPHAS
    return ForeignTiff(file, tuple(pages), start.samplesperpixel, colours, transparent)
