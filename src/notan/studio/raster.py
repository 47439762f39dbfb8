"""A mask that is being corrected: its raster, the tiles that a stroke changes, and their bytes.

A raster is uint8, (height, width): bit 0 is the foreground, bit 1 says that a person decided this
pixel. The page holds the same bytes. What a stroke changed travels as the exclusive or of before
and after, so undoing it is doing it again.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from notan.types import Mask, Size

MaskRaster: TypeAlias = npt.NDArray[np.uint8]

FOREGROUND, BY_HAND = 1, 2

TILE = 256
"""Side of the tiles; the page's is the same."""

PLANE_BYTES = TILE * TILE // 8
TILE_BYTES = 2 * PLANE_BYTES
"""Of one tile: a bit for each pixel of either plane, also beyond the image's edge."""


def raster_of(mask: Mask) -> MaskRaster:
    """Return a mask as the raster that a correction begins with: no pixel is by hand."""
    return mask.astype(np.uint8)


def mask_of(raster: MaskRaster) -> Mask:
    """Return the foreground of a raster, bool, (height, width)."""
    return (raster & FOREGROUND).astype(np.bool_)


def count_tiles(size: Size) -> int:
    """Return how many tiles cover an image, row by row."""
    return -(-size[0] // TILE) * -(-size[1] // TILE)


def checksum(raster: MaskRaster) -> int:
    """Return the CRC-32 of the foreground's bits, by which page and disk know they agree."""
    return zlib.crc32(np.packbits(raster & FOREGROUND).tobytes())


def pack_raster(raster: MaskRaster) -> bytes:
    """Return both planes as bits, row by row without gaps, compressed."""
    planes = (raster & FOREGROUND, (raster & BY_HAND) >> 1)
    return zlib.compress(b"".join(np.packbits(plane).tobytes() for plane in planes), 3)


def unpack_raster(packed: bytes, size: Size) -> MaskRaster:
    """Return the raster of ``pack_raster``.

    Raises:
        DataError: It holds something else, or a raster of another size.
    """
    pixels = size[0] * size[1]
    length = -(-pixels // 8)
    bits = np.frombuffer(inflate(packed, 2 * length), np.uint8)
    foreground, by_hand = (
        np.unpackbits(plane, count=pixels) for plane in (bits[:length], bits[length:])
    )
    return (foreground | np.left_shift(by_hand, 1, dtype=np.uint8)).reshape(size)


def difference(before: MaskRaster, after: MaskRaster) -> tuple[list[int], bytes]:
    """Return the tiles in which two rasters of one size differ, and what a stroke says of them."""
    changed = before ^ after
    across = -(-changed.shape[1] // TILE)
    tiles, parts = [], []
    for tile in range(count_tiles((changed.shape[0], changed.shape[1]))):
        top, left = tile // across * TILE, tile % across * TILE
        part = changed[top : top + TILE, left : left + TILE]
        if not part.any():
            continue
        whole = np.zeros((TILE, TILE), np.uint8)
        whole[: part.shape[0], : part.shape[1]] = part
        tiles.append(tile)
        parts += [np.packbits(whole & FOREGROUND), np.packbits(whole >> 1)]
    return tiles, zlib.compress(b"".join(each.tobytes() for each in parts), 3)


def apply(raster: MaskRaster, tiles: Sequence[int], bits: bytes) -> None:
    """Change a raster by what a stroke says; once more changes it back.

    Raises:
        DataError: A tile or a pixel lies outside of the image, or the bits are none.
    """
    size = (raster.shape[0], raster.shape[1])
    known = range(count_tiles(size))
    if list(tiles) != sorted(set(tiles)) or not all(each in known for each in tiles):
        raise DataError(
            f"a stroke names the tiles {list(tiles)[:5]}; wanted ascending ones of "
            f"0 to {count_tiles(size) - 1}"
        )
    planes = np.frombuffer(inflate(bits, len(tiles) * TILE_BYTES), np.uint8)
    unpacked = np.unpackbits(planes).reshape(len(tiles), 2, TILE, TILE)
    across = -(-size[1] // TILE)
    places = [(each // across * TILE, each % across * TILE) for each in tiles]
    for (top, left), (foreground, by_hand) in zip(places, unpacked, strict=True):
        part = raster[top : top + TILE, left : left + TILE]
        changed = foreground | by_hand << 1
        height, width = part.shape
        if changed[height:].any() or changed[:, width:].any():
            raise DataError("a stroke changes pixels outside of the image")
    for (top, left), (foreground, by_hand) in zip(places, unpacked, strict=True):
        part = raster[top : top + TILE, left : left + TILE]
        part ^= (foreground | by_hand << 1)[: part.shape[0], : part.shape[1]]


def inflate(packed: bytes, length: int) -> bytes:
    """Return compressed bytes, of which there are so many.

    Raises:
        DataError: There are more or fewer, or it is something else.
    """
    inflator = zlib.decompressobj()
    try:
        content = inflator.decompress(packed, length + 1)
    except zlib.error as error:
        raise DataError(f"these are no compressed bits ({error})") from error
    if len(content) != length or not inflator.eof:
        raise DataError(f"the bits are {len(content)} bytes or cut short; {length} were wanted")
    return content


def as_text(content: bytes) -> str:
    """Return bytes as base64, which JSON holds."""
    return base64.b64encode(content).decode()


def from_text(text: str) -> bytes:
    """Return the bytes of ``as_text``.

    Raises:
        DataError: It is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"this is no base64 ({error})") from error


def encode_mask(mask: Mask) -> bytes:
    """Return a mask as a PNG of one bit a pixel: 0 is black, foreground is white.

    Raises:
        StorageError: PNG cannot hold it.
    """
    fine, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    if not fine:
        raise StorageError(f"a mask of {mask.shape} pixels could not be encoded as PNG")
    return encoded.tobytes()


def replay(base: MaskRaster, strokes: Iterable[tuple[Sequence[int], bytes]]) -> MaskRaster:
    """Return what a raster is after some strokes."""
    raster = base.copy()
    for tiles, bits in strokes:
        apply(raster, tiles, bits)
    return raster
