"""Signatures: which format a file is, by its first bytes, and what it is where it is no image."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from notan.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.ImageFile import ImageFile

# Named one by one because Pillow also knows formats that run other programs (EPS starts
# Ghostscript) or have no signature, so that any file may pass for them (TGA).
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF")
WANTED = "PNG, JPEG, GIF, TIFF, WebP, BMP, PPM, JPEG 2000, AVIF, HEIC or NPY"
NPY = "NPY"

RAW = "a camera's raw file; develop it to TIFF or PNG with the camera's program or darktable"
HEIF = (
    "HEIC or HEIF, which pillow-heif decodes: pip install 'notan[heic]'; or save it as PNG or JPEG "
    "(on an iPhone: Settings, Camera, Formats, Most Compatible)"
)
_HEIF_BRANDS = (b"hei", b"hev", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
MEDICAL = "convert its slices to PNG or TIFF"
DISGUISES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (0, b"<!DOCTYPE", "a web page, as a failed download leaves one; download the file again"),
    (0, b"<!doctype", "a web page, as a failed download leaves one; download the file again"),
    (0, b"<html", "a web page, as a failed download leaves one; download the file again"),
    (0, b"<svg", "SVG, a drawing without pixels; export it as PNG"),
    (0, b"<?xml", "XML, perhaps an SVG drawing or annotations; wanted pixels, say as PNG"),
    (0, b"%PDF", "PDF; export its page as PNG"),
    (0, b"%!PS", "PostScript; export it as PNG"),
    (0, b"8BPS", "Photoshop's PSD; export it as PNG or TIFF"),
    (0, b"gimp xcf", "GIMP's XCF; export it as PNG or TIFF"),
    (0, b"v/1\x01", "OpenEXR; save it as a float TIFF"),
    (0, b"FUJIFILMCCD", RAW),
    (0, b"IIRO", RAW),
    (0, b"IIU\0", RAW),
    (8, b"CR\x02", RAW),
    (4, b"ftypcrx", RAW),
    (4, b"ftypavi", "AVIF, which this Pillow cannot decode; save it as PNG, or upgrade Pillow"),
    (0, b"\xff\x0a", "JPEG XL; save it as PNG"),
    (4, b"JXL ", "JPEG XL; save it as PNG"),
    (128, b"DICM", f"DICOM; {MEDICAL}"),
    (344, b"n+1\0", f"NIfTI; {MEDICAL}"),
    (0, b"\x89HDF", "HDF5; save its images as TIFF or PNG"),
    (0, b"MATLAB", "MATLAB's format; save its images as TIFF or PNG"),
    (0, b"ZISRAWFILE", "Zeiss CZI; export it as TIFF"),
    (0, b"\xda\xce\xbe\x0a", "Nikon ND2; export it as TIFF"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (0, b"Rar!", "a RAR archive; unpack it"),
)  # fmt: skip
"""Where, which bytes, and what a file is that begins so and is no image that is read."""

TEXT_CHUNKS = frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
HARMLESS_TEXT = 1000
"""Bytes of a compressed text that cannot unpack to more than Pillow allows, 1 MiB: zlib makes at
most 1032 bytes of one."""


def find_format(file: BinaryIO, name: str) -> str:
    """Return the format of an image, as Pillow calls it; ``NPY`` for a NumPy array.

    Args:
        file: Wherever it stands.
        name: What to call it in messages.

    Raises:
        DataError: It is no image.
        UnsupportedError: It is one of a kind that is not read, or another well-known kind of file.
    """
    Image.init()
    file.seek(0)
    start = file.read(512)
    if _is_heif(start):
        if heif_opener() is None:
            raise UnsupportedError(f"{name}: is {HEIF}; or leave it out")
        return "HEIF"
    for place, signature, what in DISGUISES:
        if start[place:].startswith(signature) and not _accepts("AVIF", start):
            raise UnsupportedError(f"{name}: is {what}; or leave it out")
    if start.startswith(b"\x93NUMPY"):
        return NPY
    for kind in FORMATS:
        if _accepts(kind, start):
            return kind
    found = f"begins with {start[:16]!r}" if start else "is empty (0 bytes)"
    raise DataError(
        f"{name}: {found}; wanted an image as {WANTED}; save it as one of these, or leave it out"
    )


def _is_heif(start: bytes) -> bool:
    """Say whether a file is a HEIF container of other images than AVIF, by its brands."""
    brands = start[8 : int.from_bytes(start[:4], "big")]
    return (
        start[4:8] == b"ftyp"
        and brands.startswith(_HEIF_BRANDS)
        and not any(brand in brands for brand in _AVIF_BRANDS)
    )


def heif_opener() -> Callable[[BinaryIO, str], ImageFile] | None:
    """Return what opens a HEIC file; None where pillow-heif is not installed.

    It is not registered with Pillow, whose list of formats belongs to the whole process.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    opener: Callable[[BinaryIO, str], ImageFile] = HeifImageFile
    return opener


def _accepts(kind: str, start: bytes) -> bool:
    _, accepts = Image.OPEN.get(kind, (None, None))
    return accepts is not None and accepts(start[:16]) is True


def without_texts(file: BinaryIO) -> BinaryIO:
    """Leave out the texts and colour profiles of a PNG that Pillow may refuse for their size.

    No pixel depends on them. Where none is large, the file itself is returned.
    """
    file.seek(8)
    kept, dropped, place = [(0, 8)], False, 8
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        following = place + 12 + length
        if kind in TEXT_CHUNKS and length > HARMLESS_TEXT:
            dropped = True
        else:
            kept.append((place, following))
        place = file.seek(following)
    if not dropped:
        return file
    parts = []
    for begin, end in kept:
        file.seek(begin)
        parts.append(file.read(end - begin))
    return io.BytesIO(b"".join(parts))
