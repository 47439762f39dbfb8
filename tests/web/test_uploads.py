"""Images that somebody sends are refused by what their headers claim."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from damaged_files import bombs
from notan.errors import DataError
from notan.prediction.pixels import encode_png
from notan.web.answers import RefusedError, status_of
from notan.web.uploads import read_upload, upload_size

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def test_an_image_is_read_as_files_are() -> None:
    assert upload_size(encode_png(IMAGE)) == (20, 30)
    assert (read_upload(encode_png(IMAGE)) == IMAGE).all()


def test_a_size_is_told_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(file, "JPEG", exif=exif)
    assert upload_size(file.getvalue()) == (30, 20)
    assert read_upload(file.getvalue()).shape == (30, 20, 3)


@pytest.mark.parametrize("read", [upload_size, read_upload])
def test_too_many_pixels_are_refused_before_one_is_decoded(read: object) -> None:
    assert callable(read)
    for name, content in bombs():
        tracemalloc.start()
        status = 200
        try:
            read(content, most_pixels=10_000)
        except (RefusedError, DataError) as error:
            status = status_of(error)
        assert status in (200, 413, 415, 422), name
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80_000_000, name


def test_a_limit_is_named_with_what_was_found() -> None:
    assert upload_size(encode_png(IMAGE), 600) == (20, 30)
    with pytest.raises(RefusedError, match=r"claims 20x30 pixels .* at most 599 are taken"):
        upload_size(encode_png(IMAGE), 599)
    with pytest.raises(RefusedError, match="the body is empty"):
        upload_size(b"")


def test_of_an_animation_the_first_frame_is_taken_and_no_other_is_looked_at() -> None:
    file = io.BytesIO()
    frames = [Image.new("L", (30, 20), level) for level in range(200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    cut_short = file.getvalue()[: len(file.getvalue()) // 2]
    assert upload_size(cut_short) == (20, 30)
    assert not read_upload(cut_short).any()
