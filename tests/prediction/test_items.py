"""From a file to the images in it: videos, pages, and what is damaged."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from image_files import photo, saved
from notan.errors import DataError
from notan.io import headers as pages_module
from notan.io.video import Video
from notan.prediction import items as items_module
from notan.prediction.inputs import Found
from notan.prediction.items import Item, items_of
from video_files import FRAMES, write_video

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.types import RGBImage


def opened(path: Path, *, frame_step: int = 1) -> dict[str, RGBImage | str]:
    """Read every item of a file: its image, or what was wrong."""
    found: dict[str, RGBImage | str] = {}
    for item in items_of(Found(path.stem, path), frame_step=frame_step):
        found[item.name] = read(item)
    return found


def read(item: Item) -> RGBImage | str:
    try:
        image = item.read()
    except DataError as error:
        return str(error)
    assert item.size == image.shape[:2]
    return image


def pages_tiff(path: Path, count: int, **options: Any) -> Path:
    pages = [Image.new("RGB", (8 + number, 6), (40 * number, 0, 0)) for number in range(count)]
    return saved(path, pages[0], save_all=True, append_images=pages[1:], **options)


def test_an_image_is_one_item(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    (item,) = items_of(Found("a", path))
    assert (item.name, item.path, item.size) == ("a", path, (20, 30))
    np.testing.assert_array_equal(item.read(), photo())


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_every_frame_of_a_video_is_an_item(tmp_path: Path, suffix: str) -> None:
    frames = opened(write_video(tmp_path / f"clip{suffix}"))
    assert list(frames) == [f"clip-{number:06d}" for number in range(1, FRAMES + 1)]
    for number, frame in enumerate(frames.values(), start=1):
        assert isinstance(frame, np.ndarray)
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame.astype(int) - 20 * number).max() < 6


@pytest.mark.parametrize(("every", "wanted"), [(1, range(1, 8)), (3, (1, 4, 7)), (100, (1,))])
def test_every_nth_frame_has_the_number_that_it_has_in_the_video(
    tmp_path: Path, every: int, wanted: Any
) -> None:
    frames = opened(write_video(tmp_path / "clip.mp4"), frame_step=every)
    assert list(frames) == [f"clip-{number:06d}" for number in wanted]
    for number, frame in zip(wanted, frames.values(), strict=True):
        assert isinstance(frame, np.ndarray)
        assert abs(int(frame[9, 9, 0]) - 20 * number) < 6


def test_frames_that_nobody_reads_are_passed_over(tmp_path: Path) -> None:
    """As a resumed run does: the third frame is the third, though the second was never decoded."""
    items = items_of(Found("clip", write_video(tmp_path / "clip.mp4")))
    first, third = [item.read() for item in items if item.name.endswith(("1", "3"))]
    assert abs(int(first[9, 9, 1]) - 20) < 6
    assert abs(int(third[9, 9, 1]) - 60) < 6


def test_a_video_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4").rename(tmp_path / "download.jpg")
    assert len(opened(path)) == FRAMES
    path = saved(tmp_path / "a.jpg", Image.fromarray(photo())).rename(tmp_path / "a.mp4")
    (image,) = opened(path).values()
    assert isinstance(image, np.ndarray)


def cut(share: float) -> Any:
    return lambda content: content[: int(len(content) * share)]


@pytest.mark.parametrize(
    ("suffix", "spoil", "words"),
    [
        (
            ".mp4",
            lambda _: b"hello, I am a text\n" * 9,
            "begins with b'hello.*wanted a video as MP4",
        ),
        (".mp4", lambda _: b"", r"is empty \(0 bytes\); wanted a video"),
        (".mp4", lambda _: bytes(4000), "wanted a video as MP4"),
        (".mp4", lambda _: b"<!DOCTYPE html><html>404</html>", "begins with b'<!DOCTYPE"),
        (".mp4", cut(0.5), "cannot be opened: it is damaged or cut short"),
        (".mp4", cut(0.02), "cannot be opened: it is damaged or cut short"),
        (".avi", cut(0.1), "cannot be opened: it is damaged or cut short"),
        (".mkv", cut(0.05), "video can"),
    ],
)
def test_a_broken_video_is_named(tmp_path: Path, suffix: str, spoil: Any, words: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    path.write_bytes(spoil(path.read_bytes()))
    found = opened(path)
    assert list(found) == ["clip"]
    with pytest.raises(DataError, match=rf"clip\{suffix}.*{words}"):
        next(items_of(Found("clip", path))).read()


def test_ffmpeg_says_nothing_itself(tmp_path: Path) -> None:
    """Its complaints would break up the progress bar; they are read once, when it is first used."""
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:300])
    script = (
        "import pathlib, sys\n"
        "from notan.io.video import Video\nfrom notan.errors import DataError\n"
        "try:\n    Video(pathlib.Path(sys.argv[1]))\nexcept DataError as error:\n    print(error)"
    )
    words = [sys.executable, "-c", script, str(path)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "cannot be opened" in answer.stdout
    assert answer.stderr == ""


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", frames=40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    *frames, last = opened(path).values()
    assert 2 < len(frames) < 36
    assert all(isinstance(frame, np.ndarray) for frame in frames)
    assert "claims 40 frames and ends after" in str(last)


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile {there}\n", "#EXTM3U\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n"],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, text: str) -> None:
    there = write_video(tmp_path / "private.mp4")
    (tmp_path / "list.mp4").write_text(text.format(there=there))
    (said,) = opened(tmp_path / "list.mp4").values()
    assert "wanted a video as MP4" in str(said)


def test_a_video_of_too_large_frames_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr("notan.io.headers.MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(DataError, match=r"clip\.mp4: .* 48x64"):
        Video(path)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}])
def test_every_page_of_a_tiff_is_an_item(tmp_path: Path, options: dict[str, Any]) -> None:
    pages = opened(pages_tiff(tmp_path / "scan.tif", 4, **options))
    assert list(pages) == [f"scan-p000{number}" for number in (1, 2, 3, 4)]
    for number, page in enumerate(pages.values()):
        assert isinstance(page, np.ndarray)
        assert page.shape == (6, 8 + number, 3)
        assert np.abs(page.astype(int) - [40 * number, 0, 0]).max() < 6


def test_a_tiff_of_one_page_keeps_its_name(tmp_path: Path) -> None:
    assert list(opened(pages_tiff(tmp_path / "scan.tif", 1))) == ["scan"]


def write_kinds(path: Path, kinds: dict[int, int]) -> None:
    """Write three pages, 0, 30 and 60 bright, some of them with a NewSubfileType."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as file:
        for number in range(3):
            page = Image.new("L", (9, 7), 30 * number)
            page.save(file, "TIFF", tiffinfo={254: kinds.get(number, 0)})
            file.newFrame()


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ({1: 1, 2: 1}, ["scan"]),
        ({0: 1, 2: 1}, ["scan"]),
        ({1: 4}, ["scan-p0001", "scan-p0003"]),
        ({0: 1, 1: 1, 2: 1}, ["scan"]),
    ],
)
def test_reduced_copies_and_masks_are_no_pages(
    tmp_path: Path, kinds: dict[int, int], names: list[str]
) -> None:
    write_kinds(tmp_path / "scan.tif", kinds)
    pages = opened(tmp_path / "scan.tif")
    assert list(pages) == names
    wanted = 1 if kinds == {0: 1, 2: 1} else 0
    first = next(iter(pages.values()))
    assert isinstance(first, np.ndarray)
    assert first[0, 0, 0] == 30 * wanted


def next_page(content: bytes | bytearray, page: int) -> int:
    """Return where the offset of the page after this one stands."""
    place = 4
    for _ in range(page):
        (offset,) = struct.unpack_from("<I", content, place)
        (entries,) = struct.unpack_from("<H", content, offset)
        place = offset + 2 + 12 * entries
    return place


def test_pages_in_a_circle_end(tmp_path: Path) -> None:
    path = pages_tiff(tmp_path / "scan.tif", 3)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    struct.pack_into("<I", content, next_page(content, 3), first)
    path.write_bytes(content)
    assert list(opened(path)) == ["scan-p0001", "scan-p0002", "scan-p0003"]


def test_damage_behind_some_pages_is_said_and_they_are_read(tmp_path: Path) -> None:
    path = pages_tiff(tmp_path / "scan.tif", 3)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, next_page(content, 2), len(content) + 99)
    path.write_bytes(content)
    found = opened(path)
    assert list(found) == ["scan-p0001", "scan-p0002", "scan"]
    assert "scan.tif, page 3: is damaged" in str(found["scan"])


def test_rubbish_behind_a_lone_page_is_no_matter(tmp_path: Path) -> None:
    path = pages_tiff(tmp_path / "scan.tif", 1)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, next_page(content, 1), len(content) + 99)
    path.write_bytes(content)
    (image,) = opened(path).values()
    assert isinstance(image, np.ndarray)


def test_a_damaged_page_among_good_ones_is_named(tmp_path: Path) -> None:
    path = pages_tiff(tmp_path / "scan.tif", 3, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", content, next_page(content, 1))
    (entries,) = struct.unpack_from("<H", content, offset)
    for entry in range(offset + 2, offset + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", content, entry)[0] == 273:  # where the pixels lie
            struct.pack_into("<I", content, entry + 8, 2**31)
    path.write_bytes(content)
    found = opened(path)
    assert list(found) == ["scan-p0001", "scan-p0002", "scan-p0003"]
    assert [isinstance(page, str) for page in found.values()] == [False, True, False]
    assert "scan.tif, page 2" in str(found["scan-p0002"])


def test_too_many_pages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "MOST_PAGES", 3)
    assert len(opened(pages_tiff(tmp_path / "three.tif", 3))) == 3
    (said,) = opened(pages_tiff(tmp_path / "four.tif", 4)).values()
    assert "four.tif: has more than 3 pages; split it into several files" in str(said)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    (image,) = opened(path).values()
    assert isinstance(image, np.ndarray)
    assert image[0, 0].tolist() == [255, 0, 0]


def test_bytes_on_standard_input_are_any_image(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    (item,) = items_of(Found("stdin", Path("-"), content.getvalue()))
    assert item.size == (20, 30)
    np.testing.assert_array_equal(item.read(), photo())
    tiff = pages_tiff(tmp_path / "scan.tif", 2).read_bytes()
    names = [item.name for item in items_of(Found("stdin", Path("-"), tiff))]
    assert names == ["stdin-p0001", "stdin-p0002"]


def test_what_is_no_image_on_standard_input_is_refused(tmp_path: Path) -> None:
    for content, words in (
        (b"no image at all", "-: begins with b'no image"),
        (write_video(tmp_path / "a.mp4").read_bytes(), "a video on standard input; name the file"),
    ):
        (item,) = items_of(Found("stdin", Path("-"), content))
        assert words in str(read(item))


def test_a_file_that_is_gone_by_its_turn_is_a_failure(tmp_path: Path) -> None:
    (said,) = opened(tmp_path / "gone.jpg").values()
    assert "gone.jpg: there is no such file" in str(said)


def test_a_file_is_opened_once_and_closed_when_it_was_read_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[BinaryIO] = []

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[BinaryIO]:
        with path.open("rb") as file:
            files.append(file)
            yield file

    monkeypatch.setattr(items_module, "opened", counted)
    still = saved(tmp_path / "a.png", Image.fromarray(photo()))
    one_page, pages = pages_tiff(tmp_path / "b.tif", 1), pages_tiff(tmp_path / "c.tif", 3)
    for path in (still, one_page, pages):
        assert all(isinstance(image, np.ndarray) for image in opened(path).values())
    assert [file.closed for file in files] == [True, True, True]
    (left_out,) = items_of(Found("a", still))
    assert not files[-1].closed
    left_out.close()
    assert files[-1].closed
