"""A leaderboard's list: how it is read, and which images it means."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from notan.errors import ConfigError, DataError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor
from notan.prediction.submission import (
    NameList,
    check_submission,
    find_images,
    read_list,
    write_submission,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


class Nothing:
    """A backend that sees no foreground anywhere."""

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.full((len(inputs), 1, *inputs.shape[2:]), -9, np.float32)


def names_of(tmp_path: Path, text: str | bytes) -> NameList:
    path = tmp_path / "test.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(path)


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        saved(folder / name, Image.fromarray(np.roll(photo(12, 9), number, axis=0)))
    return folder


def test_the_first_word_of_a_line_is_the_name_and_comments_are_none(tmp_path: Path) -> None:
    text = "\ufeff#Image CLASS-ID\r\nAbyssinian_1 1 1 1\r\n\r\n  # aside\r\nbeagle_2.jpg\r\n"
    assert dict(names_of(tmp_path, text).lines) == {"Abyssinian_1": 2, "beagle_2.jpg": 5}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the list is empty"),
        (b"# nothing\n\n", "the list is empty"),
        (b"a\nb\na 2\n", r"test.txt, line 3: 'a' stands on line 1 already"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", r"test.txt: the list cannot be read .*UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "test.txt: the list is no text"),
    ],
    ids=["empty", "comments", "twice", "image", "utf-16"],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        names_of(tmp_path, content)


def test_a_missing_list_or_a_folder_for_one_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: the list cannot be read"):
            read_list(path)


def test_images_are_found_in_the_order_of_the_list_wherever_they_lie(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "z.png", "images/y.jpg", "test/images/x.v2.png")
    images(folder, "val/images/w.png", "train/images/v.png", "test/masks/z.png")
    names = names_of(tmp_path, "x.v2\nz\ny.jpg\nv.jpg\nw\n")
    assert {name: str(path.relative_to(folder)) for name, path in names_found(names, folder)} == {
        "x.v2": "test/images/x.v2.png",
        "z": "z.png",
        "y.jpg": "images/y.jpg",
        "v.jpg": "train/images/v.png",
        "w": "val/images/w.png",
    }
    assert list(find_images(names, folder)) == list(names.lines)


def names_found(names: NameList, folder: Path) -> list[tuple[str, Path]]:
    return list(find_images(names, folder).items())


def test_a_whole_file_name_tells_apart_what_shares_a_stem(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a.png", "a.jpg")
    found = find_images(names_of(tmp_path, "a.jpg\na.png\n"), folder)
    assert [path.name for path in found.values()] == ["a.jpg", "a.png"]
    with pytest.raises(DataError, match=r"line 1: 'a' may be .*a.jpg or .*a.png; name the folder"):
        find_images(names_of(tmp_path, "a\n"), folder)


def test_a_name_in_two_parts_is_not_guessed(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "test/images/1.png", "train/images/1.png")
    names = names_of(tmp_path, "1\n")
    with pytest.raises(DataError, match=r"'1' may be .*train.* or .*test.*--data-path"):
        find_images(names, folder)
    assert find_images(names, folder / "test") == {"1": folder / "test/images/1.png"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat_1\ncat_3\ndog\n", r"line 2: 'cat_3': there is no image.*cat_1.png\), nor of 1 oth"),
        ("cat_1.v2\n", r"line 1: 'cat_1.v2': there is no image"),
        ("cat_1,\n", r"line 1: 'cat_1,': there is no image.*without commas"),
        ("../d/cat_1.png\n", r"line 1: .*there is no image.*without folders"),
        ("cat_1\ncat_1.jpg\n", r"line 2: 'cat_1.jpg' means .*cat_1.png, as 'cat_1' on line 1"),
    ],
    ids=["absent", "another suffix", "comma", "folder", "two names"],
)
def test_a_name_that_means_no_image_of_its_own_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    folder = images(tmp_path / "d", "cat_1.png")
    with pytest.raises(DataError, match=words):
        find_images(names_of(tmp_path, text), folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    names = names_of(tmp_path, "a\n")
    for path in (tmp_path / "absent", tmp_path / "test.txt"):
        with pytest.raises(DataError, match="there is no such folder"):
            find_images(names, path)


def test_an_empty_mask_is_an_empty_cell_and_names_are_kept_to_the_letter(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", 'b"1.png', "a,2.png")
    names = names_of(tmp_path, 'b"1.png\na,2\n')
    out = tmp_path / "new" / "s.csv"
    done: list[None] = []
    write_submission(
        Predictor(Nothing(), Preprocessor()),
        find_images(names, folder),
        out,
        progress=lambda: done.append(None),
    )
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image_id", "encoded_mask"],
            ['b"1.png', ""],
            ["a,2", ""],
        ]
    assert len(done) == 2
    assert not check_submission(out, names).count


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_damaged_image_leaves_the_earlier_file(tmp_path: Path, part: str) -> None:
    folder = images(tmp_path / "d", "a.png", "b.png")
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"no image" if part == "header" else content[:60])
    found = find_images(names_of(tmp_path, "a\nb\n"), folder)
    out = tmp_path / "s" / "s.csv"
    out.parent.mkdir()
    out.write_text("earlier")
    with pytest.raises(DataError, match=r"b\.png"):
        write_submission(Predictor(Nothing(), Preprocessor()), found, out)
    assert [path.read_text() for path in out.parent.iterdir()] == ["earlier"]


def test_inputs_and_folders_are_not_replaced(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a.png")
    found = find_images(names_of(tmp_path, "a\n"), folder)
    predictor = Predictor(Nothing(), Preprocessor())
    with pytest.raises(ConfigError, match="is an input"):
        write_submission(predictor, found, folder / "a.png")
    with pytest.raises(ConfigError, match="is a folder"):
        write_submission(predictor, found, folder)
