"""Which files are predicted, and what their outputs are called."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from notan.errors import ConfigError, DataError
from notan.prediction import inputs as inputs_module
from notan.prediction.inputs import find_inputs, refuse_outputs_over_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(inputs: Iterable[Path]) -> list[str]:
    return [found.name for found in find_inputs(inputs)]


def test_outputs_are_called_by_the_stem(tmp_path: Path) -> None:
    touch(tmp_path / "cat.jpg", tmp_path / "dogs" / "b.png", tmp_path / "dogs" / "a.JPEG")
    found = find_inputs([tmp_path / "cat.jpg", tmp_path / "dogs"])
    assert [file.name for file in found] == ["cat", "a", "b"]
    assert found[1].path == tmp_path / "dogs" / "a.JPEG"


def test_images_of_one_stem_keep_their_file_names(tmp_path: Path) -> None:
    touch(tmp_path / "cat.jpg", tmp_path / "cat.png", tmp_path / "dog.png")
    assert names([tmp_path]) == ["cat.jpg", "cat.png", "dog"]


def test_images_of_one_file_name_keep_their_folders(tmp_path: Path) -> None:
    days = [tmp_path / "week" / day for day in ("monday", "tuesday")]
    touch(*[day / name for day in days for name in ("cat.jpg", "dog.jpg")], days[0] / "owl.jpg")
    assert names(days) == ["monday/cat", "monday/dog", "owl", "tuesday/cat", "tuesday/dog"]


def test_the_stem_of_one_file_may_be_the_name_of_another(tmp_path: Path) -> None:
    touch(tmp_path / "cat.jpg", tmp_path / "cat.png", tmp_path / "cat.jpg.bmp")
    found = names([tmp_path])
    assert len(set(found)) == 3
    assert "cat.jpg.bmp" in found


def test_upper_and_lower_case_alone_do_not_tell_outputs_apart(tmp_path: Path) -> None:
    """A disk of Windows or macOS would write both to one file."""
    touch(tmp_path / "Cat.jpg", tmp_path / "cat.png")
    assert names([tmp_path]) == ["Cat.jpg", "cat.png"]
    touch(tmp_path / "x" / "Owl.jpg", tmp_path / "x" / "owl.jpg")
    if len(list((tmp_path / "x").iterdir())) == 2:
        with pytest.raises(DataError, match=r"wl\.jpg: .*rename one file"):
            names([tmp_path / "x"])


@pytest.mark.parametrize(
    ("sequence", "single"), [("clip.mp4", "clip-000001.png"), ("scan.tif", "Scan-p0002.png")]
)
def test_an_image_called_like_a_frame_keeps_its_whole_name(
    tmp_path: Path, sequence: str, single: str
) -> None:
    touch(tmp_path / sequence, tmp_path / single)
    assert sorted(names([tmp_path])) == sorted([Path(sequence).stem, single])


def test_names_do_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a" / "cat.jpg", tmp_path / "b" / "cat.jpg")
    away = names([tmp_path / "a", tmp_path / "b"])
    monkeypatch.chdir(tmp_path / "a")
    assert names([Path("cat.jpg"), Path("../b/cat.jpg")]) == away == ["a/cat", "b/cat"]


def test_a_folder_gives_its_images_and_videos_only(tmp_path: Path) -> None:
    touch(
        tmp_path / "cat.jpg",
        tmp_path / "film.MP4",
        tmp_path / "notes.txt",
        tmp_path / "._cat.jpg",
        tmp_path / "x" / "y.png",
    )
    assert names([tmp_path]) == ["cat", "film"]


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path / "download")
    assert names([tmp_path / "download"]) == ["download"]


def test_an_image_given_twice_is_predicted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "x" / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    given = [Path("x/cat.jpg"), Path("x"), Path("x/../x/cat.jpg"), tmp_path / "x" / "*.jpg"]
    assert [found.path for found in find_inputs(given)] == [Path("x/cat.jpg")]


def test_a_pattern_is_expanded_through_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a.tif", tmp_path / "x" / "b.tif", tmp_path / "x" / "y" / "c.tif")
    touch(tmp_path / "x" / "d.png", tmp_path / "[e].tif")
    assert names([tmp_path / "**" / "*.tif"]) == ["[e]", "a", "b", "c"]
    assert names([tmp_path / "?.tif"]) == ["a"]
    assert names([tmp_path / "x*"]) == ["b", "d"]  # a folder gives what is in it


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path / "cell[1].png", tmp_path / "cell1.png")
    assert names([tmp_path / "cell[1].png"]) == ["cell[1]"]


def test_a_dash_is_the_image_on_standard_input(tmp_path: Path) -> None:
    touch(tmp_path / "cat.jpg")
    given = [Path("-"), tmp_path / "cat.jpg"]
    found = find_inputs(given, standard_input=io.BytesIO(b"some bytes"))
    assert [(file.name, file.content) for file in found] == [
        ("stdin", b"some bytes"),
        ("cat", None),
    ]


class Keyboard(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (io.BytesIO(), "standard input was empty"),
        (io.BytesIO(b"x" * 11), "more than 10 bytes on standard input; name a file"),
        (Keyboard(b"x"), r"is the keyboard; .*notan predict - --model FILE < photo\.jpg"),
    ],
)
def test_standard_input_without_an_image_is_refused(
    stream: io.BytesIO, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=words):
        find_inputs([Path("-")], standard_input=stream)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no images were given"),
        (["gone.jpg"], r"gone\.jpg: there is no such image or folder"),
        (["empty"], "empty: there are no images in this folder"),
        (["gone*.jpg"], r"gone\*\.jpg: no file matches this pattern"),
    ],
)
def test_nothing_to_predict_is_an_error(tmp_path: Path, given: list[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        find_inputs([tmp_path / name for name in given])


def masks(folder: Path, name: str) -> list[Path]:
    return [folder / "masks" / f"{name}.png"]


@pytest.mark.parametrize("given", ["cat.png", "clip.mp4"])
def test_an_output_never_takes_the_place_of_an_input(tmp_path: Path, given: str) -> None:
    there = {"cat.png": "cat.png", "clip.mp4": "clip-000001.png"}[given]
    touch(tmp_path / "masks" / there, tmp_path / given, tmp_path / "masks" / "other.png")
    (tmp_path / "link").symlink_to(tmp_path)
    found = find_inputs([tmp_path / "masks" / there, tmp_path / given])
    for out in (tmp_path, tmp_path / "link"):

        def outputs(_: str, out: Path = out) -> list[Path]:
            return masks(out, Path(given).stem)

        with pytest.raises(ConfigError, match=rf"{there}: is an input, .*choose another --out"):
            refuse_outputs_over_inputs(found, outputs)
    refuse_outputs_over_inputs(found, lambda name: masks(tmp_path / "elsewhere", name))


def test_outputs_may_go_beside_the_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "cat.png", tmp_path / "dog.png")
    found = find_inputs([tmp_path])
    refuse_outputs_over_inputs(found, lambda name: masks(tmp_path, name))
    outputs = {path for each in found for path in masks(tmp_path, each.name)}
    assert outputs
    assert outputs.isdisjoint(each.path for each in found)
