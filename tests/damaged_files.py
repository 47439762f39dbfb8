"""Some hundred damaged and malicious image files, the same each time; and a program to read them.

As a program it reads every file of a folder as ``notan predict`` does, under a limit of memory, and
prints as JSON what came of each: read, refused, or broken in some other way.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {},
    "GIF": {},
    "TIFF": {},
    "TIFF-LZW": {"compression": "tiff_lzw"},
    "TIFF-DEFLATE": {"compression": "tiff_adobe_deflate"},
    "TIFF-PAGES": {"save_all": True},
    "WEBP": {},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {},
    "AVIF": {},
}
CUTS, FLIPS = 12, 20
"""Of each kind: how often it is cut short, and how often some of its bits are flipped."""

MEMORY = 2**30
"""Bytes of address space that reading may take beyond the idle program."""


def damaged() -> Iterator[tuple[str, bytes]]:
    """Yield names and contents."""
    chance = random.Random(20)
    for kind, options in KINDS.items():
        whole = _whole(kind, options)
        yield f"{kind}-whole", whole
        for place in sorted(chance.sample(range(1, len(whole)), CUTS)):
            yield f"{kind}-cut-{place}", whole[:place]
        for number in range(FLIPS):
            content = bytearray(whole)
            reach = min(len(whole), 80 if number % 2 else len(whole))
            for _ in range(chance.choice((1, 4, 16))):
                content[chance.randrange(reach)] ^= 1 << chance.randrange(8)
            yield f"{kind}-flipped-{number}", bytes(content)
        yield f"{kind}-of-{len(whole)}-zeros", whole[:8] + bytes(len(whole) - 8)
        yield f"{kind}-twice", whole[: len(whole) // 2] + whole
    yield from foreign()
    yield from bombs()


def foreign() -> Iterator[tuple[str, bytes]]:
    """Yield what is no image, though it may be called one."""
    yield "nothing", b""
    yield "one-byte", b"\x89"
    yield "zeros", bytes(5000)
    yield "text", b"This is no image.\n" * 40
    yield "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    yield "script", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    yield "pdf", b"%PDF-1.7\n1 0 obj<<>>endobj\n"
    yield "zip", b"PK\x03\x04" + bytes(200)
    yield "pickle", b"\x80\x04\x95" + bytes(60)
    yield "elf", b"\x7fELF" + bytes(200)
    yield "concat", b"ffconcat version 1.0\nfile whole.png\n"
    yield "heic", struct.pack(">I", 24) + b"ftypheic" + bytes(300)
    yield "mp4", struct.pack(">I", 24) + b"ftypisom" + bytes(300)
    yield "matroska", b"\x1a\x45\xdf\xa3" + bytes(300)
    yield "avi", b"RIFF" + struct.pack("<I", 300) + b"AVI " + bytes(300)
    for kind, signature in {
        "PNG": b"\x89PNG\r\n\x1a\n",
        "JPEG": b"\xff\xd8\xff\xe0",
        "GIF": b"GIF89a",
        "TIFF": b"II*\0",
        "BIGTIFF": b"II+\0\x08\0\0\0",
        "WEBP": b"RIFF\x10\0\0\0WEBPVP8 ",
        "BMP": b"BM",
        "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "PPM": b"P6 ",
    }.items():
        noise = random.Random(kind).randbytes(600)
        yield f"{kind}-then-noise", signature + noise
        yield f"{kind}-then-text", signature + b"and then a text" * 20


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small files that claim, or unpack to, very much."""
    yield "png-65535", _png(65_535, 65_535)
    yield "png-largest", _png(2**31 - 1, 2**31 - 1)
    yield "png-no-pixels", _png(0, 5)
    much = zlib.compress(bytes(100_000_000))
    yield "png-ztxt", _png(4, 4, (b"zTXt", b"Comment\0\0" + much))
    yield "png-itxt", _png(4, 4, (b"iTXt", b"Comment\0\x01\0\0\0" + much))
    yield "png-iccp", _png(4, 4, (b"iCCP", b"profile\0\0" + much))
    yield "png-idat", _png(4, 4, (b"IDAT", much))
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))
    yield "png-many-texts", _png(4, 4, *[text] * 70)
    yield "gif-frame", b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + _gif_frame(65_535)
    yield "gif-screen", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + _gif_frame(4)
    yield (
        "bmp-65535",
        b"BM" + struct.pack("<IIIIiiHHI", 70, 0, 54, 40, 65_535, 65_535, 1, 24, 0).ljust(70, b"\0"),
    )
    yield "ppm-99999", b"P6 99999 99999 255 " + bytes(99)
    yield "ppm-digits", b"P6 " + b"9" * 100_000
    frame = struct.pack(">HBHHB", 17, 8, 65_500, 65_500, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    yield "jpeg-65500", b"\xff\xd8\xff\xc0" + frame + b"\xff\xd9"
    size = struct.pack("<I", 16_383 | 16_383 << 14)
    yield "webp-16383", b"RIFF\x1e\0\0\0WEBPVP8L\x12\0\0\0\x2f" + size + bytes(13)
    jp2 = bytearray(_whole("JPEG2000", {}))
    for at in (jp2.index(b"ihdr") + 4, jp2.index(b"\xff\x51") + 6):
        jp2[at : at + 8] = struct.pack(">II", 65_535, 65_535)
    yield "jpeg2000-65535", bytes(jp2)
    yield from _tiffs(much)


def _tiffs(much: bytes) -> Iterator[tuple[str, bytes]]:
    yield "tiff-65535", _tiff({256: 65_535, 257: 65_535})
    yield "tiff-strip", _tiff({256: 4000, 257: 4000, 259: 8, 279: len(much)}, much)
    yield "tiff-unpacks-to-more", _tiff({256: 9, 257: 9, 259: 8, 279: len(much)}, much)
    yield "tiff-itself-again", _tiff({256: 9, 257: 9}, next_page=8)
    yield "tiff-pages-everywhere", _tiff({256: 9, 257: 9}, next_page=2)
    yield "tiff-no-size", _tiff({})
    yield "tiff-samples", _tiff({256: 9, 257: 9, 277: 60_000})
    yield "tiff-entries", b"II*\0\x08\0\0\0\xff\xff" + bytes(4000)
    yield "tiff-strip-count", _tiff({256: 9, 257: 9, 278: 1}, counts=2**31 - 1)
    page = _tiff({256: 9, 257: 9})[8 : 8 + 2 + 12 * 9 + 4]  # nine tags, and where the next page is
    chain = b"".join(
        page[:-4] + struct.pack("<I", 8 + len(page) * (number + 1)) for number in range(10_100)
    )
    yield "tiff-10100-pages", b"II*\0\x08\0\0\0" + chain


def _whole(kind: str, options: dict[str, Any]) -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if kind == "TIFF-PAGES":
        options = {**options, "append_images": [image.rotate(90), image.resize((9, 7))]}
    content = io.BytesIO()
    image.save(content, kind.split("-")[0], **options)
    return content.getvalue()


def _png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = (b"IDAT", zlib.compress(bytes(5 * 4)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *extra, rows, (b"IEND", b""))
    )


def _gif_frame(side: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"


def _tiff(
    tags: dict[int, int], strip: bytes = b"\0" * 81, *, next_page: int = 0, counts: int = 1
) -> bytes:
    """Return a grey TIFF with one strip behind its tags."""
    defaults = {258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: tags.get(257, 9), 279: len(strip)}
    entries = dict(sorted({**defaults, **tags}.items()))
    page = struct.pack("<H", len(entries))
    for tag, value in entries.items():
        page += struct.pack("<HHII", tag, 4, counts if tag in (273, 279) else 1, value)
    head = b"II*\0\x08\0\0\0" + page + struct.pack("<I", next_page)
    return head.ljust(200, b"\0") + strip


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_all(folder: Path) -> dict[str, list[str]]:
    """Read every file; per file, a line for each image: read, refused and why, or broken."""
    from notan.errors import DataError
    from notan.prediction.inputs import Found
    from notan.prediction.items import items_of

    said: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        lines = said[path.name] = []
        try:
            for item in items_of(Found(path.name, path)):
                try:
                    image = item.read()
                    fine = image.dtype == np.uint8 and image.shape == (*(item.size or ()), 3)
                    lines.append("read" if fine else f"broken: {image.shape} of {item.size}")
                except DataError as error:
                    lines.append(f"refused: {error}")
        except Exception as error:  # noqa: BLE001 - anything else is what the test looks for
            lines.append(f"broken: {type(error).__name__}: {error}")
    return said


if __name__ == "__main__":
    import cv2

    from notan.prediction import inputs as items  # noqa: F401 - what is imported belongs to the idle program

    cv2.setNumThreads(1)
    _limit_memory()
    print(json.dumps(read_all(Path(sys.argv[1]))))  # noqa: T201 - the program's answer
