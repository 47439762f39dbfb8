"""Small image files for the tests: how each kind is written."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]

VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
FOREGROUND = np.array([[True, False, False], [True, True, False]])


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def grey(path: Path, values: Any, dtype: Any = np.uint8, **options: Any) -> Path:
    return saved(path, Image.fromarray(np.asarray(values, dtype=dtype)), **options)


def indexed(path: Path, indices: Any, colours: list[int]) -> Path:
    grey_image = Image.fromarray(np.asarray(indices, dtype=np.uint8))
    image = Image.frombytes("P", grey_image.size, grey_image.tobytes())
    image.putpalette(colours)
    return saved(path, image)


def coloured(path: Path, mask: Array, colour: tuple[int, int, int]) -> Path:
    return saved(path, Image.fromarray(mask[..., None] * np.array(colour, dtype=np.uint8)))


def photo(height: int = 20, width: int = 30) -> Array:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(size: int = 64) -> Array:
    rows, columns = np.mgrid[:size, :size]
    return np.asarray((rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2)


def blurred(mask: Array) -> Array:
    large = Image.fromarray(mask).convert("L").resize((mask.shape[1] * 4, mask.shape[0] * 4))
    return np.asarray(large.resize((mask.shape[1] * 2, mask.shape[0] * 2), Image.Resampling.BOX))


def png(height: int, width: int, *, depth: int = 8, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
