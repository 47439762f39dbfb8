"""From a data folder to its splits: the pets' own layout, folders of pairs, and what is wrong."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from notan.config import Data
from notan.data.folders import find_layout, makes_validation, open_split
from notan.data.samples import choose_validation, fingerprint
from notan.data.survey import survey
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from notan.data.samples import FileSource
    from notan.types import Size

SIZE = (6, 8)
TRIMAP = np.full(SIZE, 2, np.uint8)
TRIMAP[1:5, 1:7] = 3
TRIMAP[2:4, 2:6] = 1


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_pair(folder: Path, name: str, *, size: Size = SIZE, foreground: int = 255) -> None:
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = foreground
    save(folder / "images" / f"{name}.png", np.full((*size, 3), 90, np.uint8))
    save(folder / "masks" / f"{name}.png", mask)


def pairs(folder: Path, *names: str) -> Path:
    for name in names:
        save_pair(folder, name)
    return folder


def pets(folder: Path, *, training: int = 23, test: int = 4) -> Path:
    """Make a dataset in the layout of the Oxford-IIIT pets."""
    lists = {
        "trainval": [f"Bengal_{number}" for number in range(training)],
        "test": [f"Sphynx_{number}" for number in range(test)],
    }
    for part, names in lists.items():
        for name in names:
            save(folder / "images" / f"{name}.jpg", np.full((*SIZE, 3), 90, np.uint8))
            save(folder / "annotations" / "trimaps" / f"{name}.png", TRIMAP)
        text = "#Image CLASS-ID SPECIES BREED\n" + "".join(f"{name} 1 1 1\n" for name in names)
        (folder / "annotations" / f"{part}.txt").write_text(text)
    return folder


def split(folder: Path, part: str, *, seed: int = 0, **settings: Any) -> FileSource:
    return open_split(Data(path=folder, **settings), part, seed=seed)


def counts(folder: Path, parts: Iterable[str] = ("train", "val", "test")) -> list[int]:
    return [len(split(folder, part)) for part in parts]


def test_the_real_pets_are_divided_by_their_lists(pets_folder: Path) -> None:
    assert find_layout(Data(path=pets_folder)) == "pets"
    assert counts(pets_folder) == [270, 30, 149]
    names = [set(split(pets_folder, part).names) for part in ("train", "val", "test")]
    assert len(set.union(*names)) == 449
    sample = split(pets_folder, "val")[0]
    assert sample.image.shape == (*sample.mask.shape, 3)
    assert 0 < sample.mask.mean() < 1


def test_every_tenth_line_of_the_pets_list_is_validation(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    assert split(folder, "validation").names == ["Bengal_0", "Bengal_10", "Bengal_20"]
    training = split(folder, "train").names
    assert training == [f"Bengal_{number}" for number in range(23) if number % 10]
    assert split(folder, "all").names[-4:] == split(folder, "test").names
    assert len(split(folder, "all")) == 27
    assert not makes_validation(Data(path=folder))


def test_the_pets_test_list_is_not_opened_for_training(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    (folder / "annotations" / "test.txt").unlink()
    for path in (folder / "images").glob("Sphynx*"):
        path.unlink()
    assert counts(folder, ["train", "val"]) == [20, 3]
    with pytest.raises(DataError, match=r"test\.txt: the dataset's list cannot be read"):
        split(folder, "test")


@pytest.mark.parametrize(
    ("trimap_border", "foreground"), [("foreground", 24), ("background", 8), ("ignore", 8)]
)
def test_the_trimaps_border_follows_the_rule(
    tmp_path: Path, trimap_border: str, foreground: int
) -> None:
    source = split(pets(tmp_path, training=2), "train", trimap_border=trimap_border)
    sample = source[0]
    assert sample.mask.sum() == foreground
    assert sample.mask[2:4, 2:6].all()
    if trimap_border == "ignore":
        np.testing.assert_array_equal(sample.ignore, TRIMAP == 3)
    else:
        assert sample.ignore is None
    assert survey(source).encodings == {f"trimap, trimap_border = {trimap_border}": 1}


def test_a_listed_image_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    (folder / "images" / "Bengal_7.jpg").unlink()
    with pytest.raises(DataError, match=r"Bengal_7\.jpg: the list names Bengal_7, but this file"):
        split(folder, "train")
    (folder / "annotations" / "trimaps" / "Sphynx_1.png").unlink()
    with pytest.raises(DataError, match=r"Sphynx_1\.png: the list names .*notan download"):
        split(folder, "test")


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    (folder / "annotations" / "trainval.txt").write_text("# a comment only\n\n")
    with pytest.raises(DataError, match=r"trainval\.txt: the list is empty"):
        split(folder, "val")


def test_a_folder_alone_gets_a_validation_split_of_its_own(tmp_path: Path) -> None:
    folder = pairs(tmp_path, *(f"cat{number}" for number in range(20)))
    assert find_layout(Data(path=folder)) == "folder"
    assert makes_validation(Data(path=folder))
    training, validation = split(folder, "train"), split(folder, "val")
    assert (len(training), len(validation)) == (18, 2)
    assert not set(training.names) & set(validation.names)
    whole = split(folder, "all").names
    assert sorted([*training.names, *validation.names]) == whole == sorted(whole)
    assert len(split(folder, "val", validation_fraction=0.5)) == 10
    with pytest.raises(DataError, match="there is no test part"):
        split(folder, "test")


def test_a_folder_with_all_its_parts_keeps_them(drawn_folder: Path) -> None:
    assert counts(drawn_folder) == [24, 6, 6]
    assert not makes_validation(Data(path=drawn_folder))
    with pytest.raises(DataError, match=r"divided into parts; choose one with --split, or point"):
        split(drawn_folder, "all")


@pytest.mark.parametrize("word", ["val", "validation", "valid"])
def test_the_validation_folder_goes_by_three_names(tmp_path: Path, word: str) -> None:
    for part in ("train", word):
        pairs(tmp_path / part, f"{part}-cat")
    assert split(tmp_path, "val").names == [f"{word}-cat"]
    assert split(tmp_path, "train").names == ["train-cat"]


def test_real_nuclei_are_divided_within_their_training_part(nuclei_folder: Path) -> None:
    assert counts(nuclei_folder) == [63, 7, 30]
    assert makes_validation(Data(path=nuclei_folder))


def test_real_streets_are_divided_within_their_training_part(road_folder: Path) -> None:
    assert counts(road_folder) == [83, 9, 30]
    assert not set(split(road_folder, "train").names) & set(split(road_folder, "val").names)


def test_the_split_depends_on_the_names_and_the_seed_only(tmp_path: Path) -> None:
    names = [f"cat{number}" for number in range(30)]
    one, other = pairs(tmp_path / "one", *names), pairs(tmp_path / "other", *names[::-1])
    assert split(one, "val").names == split(other, "val").names
    assert fingerprint(split(one, "train")) == fingerprint(split(other, "train"))
    assert split(one, "val").names != split(one, "val", seed=1).names


@settings(max_examples=100, deadline=None)
@given(
    names=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=60, unique=True),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_a_split_sets_at_least_one_aside_and_not_all(
    names: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    chosen = choose_validation(names, fraction=fraction, seed=seed)
    assert 1 <= len(chosen) < len(names)
    assert chosen < set(names)
    assert len(chosen) == pytest.approx(len(names) * fraction, abs=1.0)
    shuffled = data.draw(st.permutations(names))
    assert choose_validation(shuffled, fraction=fraction, seed=seed) == chosen


def test_another_image_hardly_moves_the_split() -> None:
    names = [f"cat{number}" for number in range(100)]
    before = choose_validation(names, fraction=0.1, seed=0)
    after = choose_validation([*names, "newcomer"], fraction=0.1, seed=0)
    assert len(before - after) <= 1


def test_the_stored_validation_split_wins(tmp_path: Path) -> None:
    data = Data(path=pairs(tmp_path, *"abcdefghij"))
    kept = frozenset("bdf")
    validation = open_split(data, "val", seed=0, validation_names=kept)
    training = open_split(data, "train", seed=0, validation_names=kept)
    assert list(validation.names) == ["b", "d", "f"]
    assert list(training.names) == list("aceghij")
    with pytest.raises(DataError, match="zebra was set aside for validation when the model"):
        open_split(data, "val", seed=0, validation_names=frozenset(["b", "zebra"]))


@pytest.mark.parametrize("layout", ["pets", "folder"])
def test_a_limit_shortens_the_training_images_only(tmp_path: Path, layout: str) -> None:
    folder = pets(tmp_path) if layout == "pets" else pairs(tmp_path, *map(str, range(20)))
    for part in ("train", "val", "all"):
        whole = split(folder, part).names
        limited = split(folder, part, limit=2).names
        assert limited == (whole[:2] if part == "train" else whole)


def test_image_and_mask_may_be_of_different_types(tmp_path: Path) -> None:
    save(tmp_path / "images" / "cat.JPG", np.full((*SIZE, 3), 90, np.uint8))
    save(tmp_path / "masks" / "cat.bmp", np.eye(*SIZE, dtype=np.uint8) * 255)
    for name in ("._cat.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    source = split(tmp_path, "all")
    assert source.names == ["cat"]
    np.testing.assert_array_equal(source[0].mask, np.eye(*SIZE, dtype=np.bool_))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "absent: there is no such folder; check --data-path"),
        (lambda folder: folder.write_text(""), "absent: this is a file; --data-path wants"),
        (lambda folder: folder.mkdir(), "no images with masks here; .* found nothing"),
        (
            lambda folder: pairs(folder / "data" / "train", "cat"),
            r"wanted images/ and annotations/trimaps/ or images/ and masks/ .*found data",
        ),
        (
            lambda folder: [(folder / part).mkdir(parents=True) for part in ("images", "masks")],
            r"images: no images here; files ending in .*\.png",
        ),
        (lambda folder: pairs(folder, "only"), "only one pair of image and mask; at least two"),
    ],
)
def test_a_folder_without_data_is_refused_with_what_was_wanted(
    tmp_path: Path, make: Any, words: str
) -> None:
    folder = tmp_path / "absent"
    make(folder)
    with pytest.raises(DataError, match=words):
        split(folder, "train")


def test_no_folder_at_all_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="no data folder was given; name one with --data-path"):
        open_split(Data(), "train", seed=0)


def test_a_layout_that_was_asked_for_and_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "a", "b")
    with pytest.raises(DataError, match=r"wanted images/ and annotations/trimaps/, found images"):
        split(folder, "train", layout="pets")
    assert len(split(folder, "all", layout="folder")) == 2


def test_an_image_without_a_mask_is_named_with_the_nearest(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee", "dog")
    (folder / "masks" / "bee.png").rename(folder / "masks" / "bee_old.png")
    with pytest.raises(
        DataError, match=r"bee\.png: there is no mask bee\.\* in .*the nearest is bee_old\.png"
    ):
        split(folder, "train")


def test_images_without_masks_are_counted(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee", "dog", "elk")
    for name in ("bee", "dog", "elk"):
        (folder / "masks" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"bee\.png: there is no mask .*, nor for 2 others;"):
        split(folder, "train")


def test_a_mask_without_an_image_is_named(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    (folder / "images" / "bee.png").unlink()
    with pytest.raises(DataError, match=r"masks/bee\.png: there is no image bee\.\* in"):
        split(folder, "train")


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    save(folder / "images" / "bee.bmp", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError, match=r"bee\.png: bee\.bmp has the same stem"):
        split(folder, "train")


def test_an_unknown_split_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    with pytest.raises(ConfigError, match="'tset': there is no such split; did you mean 'test'"):
        split(folder, "tset")


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant")
    save(folder / "masks" / "ant.png", np.zeros((5, 9), np.uint8))
    source = split(folder, "all")
    words = r"ant\.png: the mask is 5x9 .*, its image ant\.png is 6x8; both must be of one size$"
    for read in (lambda: source[0], lambda: survey(source)):
        with pytest.raises(DataError, match=words):
            read()


def test_an_image_turned_by_its_exif_tag_is_suspected(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    (folder / "images" / "ant.png").unlink()
    image.save(folder / "images" / "ant.jpg", exif=exif)
    source = split(folder, "all")
    words = r"mask is 6x8 .*ant\.jpg is 8x6; .*turned by 90 degrees: .*--exif-orientation ignore"
    for read in (lambda: source[0], lambda: survey(source)):
        with pytest.raises(DataError, match=words):
            read()


def test_looking_over_says_how_masks_were_read(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    save_pair(folder, "cow", foreground=1)
    save_pair(folder, "dog", foreground=0)
    assert survey(split(folder, "all")).encodings == {"0/255": 2, "0/1": 1, "empty": 1}


def test_masks_that_mean_different_values_by_foreground_are_refused(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    save_pair(folder, "cow", foreground=128)
    with pytest.raises(DataError, match=r"cow\.png: its values are 0/128, other masks .*0/255"):
        survey(split(folder, "all"))
    for name in ("ant", "bee", "cow"):
        save_pair(folder, name, foreground=128)
    assert survey(split(folder, "all")).encodings == {"0/128": 3}


def test_an_ambiguous_mask_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "ant", "bee")
    save(folder / "masks" / "bee.png", TRIMAP)
    with pytest.raises(DataError, match=r"bee\.png: not a mask of two classes.*trimap"):
        survey(split(folder, "all"))


def test_a_drawn_folder_is_read_as_it_was_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = DrawnSource(3, size=(20, 24))
    write_folder(drawn, tmp_path)
    with caplog.at_level(logging.WARNING):
        source = split(tmp_path, "all")
        assert source.names == drawn.names
        for ours, theirs in zip(source, drawn, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert not caplog.records
    assert fingerprint(source) == fingerprint(drawn)
