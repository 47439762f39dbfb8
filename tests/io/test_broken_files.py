from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from image_files import (
    photo,
    png,
)
from notan.errors import DataError
from notan.io.headers import MAX_PIXELS, read_size
from notan.io.images import decode_image, read_image
from notan.io.masks import read_mask

READERS = (read_image, read_size, read_mask)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, read: Any) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image\nat all")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    words = {
        "missing.png": "there is no such file; wanted an image or mask; check the path",
        "empty.png": r"is empty \(0 bytes\); wanted an image as PNG",
        "text.png": "begins with b'not an image.*; wanted an image as PNG",
        "folder.png": "is a folder; wanted one image or mask; name a file in it",
        "script.png": "is PostScript; export it as PNG; or leave it out",
    }
    for name, pattern in words.items():
        with pytest.raises(DataError, match=f"{name}: {pattern}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: str) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"p\.png: could not be opened \(Permission denied\)"):
        read_image(tmp_path / "p.png")


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(DataError, match="could not be opened"):
        read_image(Path("a\0b.png"))


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    options: dict[str, Any] = {}
    image = Image.fromarray(photo(40, 50))
    if kind == "TIFF-LZW":
        options["compression"] = "tiff_lzw"
    if kind in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[274] = 6
        options["exif"] = exif
    image.save(content, kind.split("-")[0], **options)
    return content.getvalue()


KINDS = ["PNG", "JPEG", "GIF", "TIFF", "TIFF-LZW", "WEBP", "BMP", "PPM", "JPEG2000"]


def read_or_refuse(path: Path) -> int:
    """Return how many readers refuse a file, each with one line that names it."""
    messages: list[str] = []
    for read in READERS:
        try:
            read(path)
        except DataError as error:
            messages.append(str(error))
    assert all(path.name in message and "\n" not in message for message in messages)
    return len(messages)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut.bin"
    places = sorted({*range(24), *np.linspace(24, len(whole) - 1, 30).astype(int).tolist()})
    for place in places:
        path.write_bytes(whole[:place])
        refusals = read_or_refuse(path)
        assert refusals or place >= 24, "less than a header passes for an image"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_flipped_bytes_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "flipped.bin"
    chance = random.Random(3)
    refusals = 0
    for attempt in range(150):
        content = bytearray(whole)
        reach = len(whole) if attempt % 2 else min(300, len(whole))
        for _ in range(chance.choice((1, 3, 10))):
            content[chance.randrange(reach)] = chance.randrange(256)
        path.write_bytes(content)
        refusals += read_or_refuse(path)
    assert refusals, "nothing was damaged"


@pytest.mark.parametrize("read", READERS)
def test_a_small_file_that_claims_a_huge_size_is_refused_undecoded(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(_: object) -> None:
        pytest.fail("the pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    path = tmp_path / "bomb.png"
    row = b"\0" * (30_000 // 8 + 1)
    path.write_bytes(png(30_000, 30_000, depth=1, data=zlib.compress(row * 30_000, 9)))
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"bomb\.png: .* 30000x30000 .* 900,000,000 .* 89,478,485"):
        read(path)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_too_large_a_size_never_warns(tmp_path: Path, factor: int) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(10_000, MAX_PIXELS // 10_000 * factor + 10, depth=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match="cut it up, or, to predict it"):
            read_size(path)
    assert not caught


def test_the_largest_size_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(5, MAX_PIXELS // 5, depth=1))
    assert read_size(path) == (5, MAX_PIXELS // 5)


def test_a_webp_that_claims_a_huge_size_is_refused(tmp_path: Path) -> None:
    frame = struct.pack("<I", 16_383 | 16_383 << 14)
    body = b"WEBPVP8L" + struct.pack("<I", 6) + b"\x2f" + frame + b"\0"
    path = tmp_path / "large.webp"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(DataError, match=r"large\.webp"):
        read_size(path)


def test_an_image_without_pixels_is_refused() -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 0, 0, 0) + b"\x02\x00;"
    with pytest.raises(DataError, match="upload"):
        decode_image(gif, "upload")
