"""Hashes of images: the same image is known again, whatever its file is called."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from notan.config import Data
from notan.data.folders import folder_source, open_split
from notan.data.samples import HASHED, FileSource, Labels, Pair
from notan.data.synthetic import DrawnSource
from notan.errors import DataError
from notan.modelfile.card import read_card

if TYPE_CHECKING:
    from pathlib import Path


def of_files(*paths: Path) -> FileSource:
    pairs = [Pair(path.stem, path, path) for path in paths]
    return FileSource(pairs, lambda _: Labels(np.zeros((1, 1), np.bool_), None, "none"))


def test_a_copy_under_another_name_has_the_same_hash(drawn_folder: Path, tmp_path: Path) -> None:
    source = folder_source(drawn_folder / "train")
    for pair in source.pairs:
        shutil.copy(pair.image, tmp_path / f"copy-of-{pair.name}.png")
    copies = of_files(*(tmp_path / f"copy-of-{pair.name}.png" for pair in source.pairs))
    assert copies.hashes() == source.hashes()
    assert len(set(source.hashes())) == len(source)


@pytest.mark.parametrize("size", [1, HASHED - 1, HASHED, HASHED + 1, 3 * HASHED])
def test_a_byte_at_either_end_and_the_length_make_another_hash(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    variants = [content, b"x" + content[1:], content[:-1] + b"y", content + b"\0"]
    for number, variant in enumerate(variants):
        (tmp_path / f"{number}.png").write_bytes(variant)
    hashes = of_files(*(tmp_path / f"{number}.png" for number in range(len(variants)))).hashes()
    assert len(set(hashes)) == len(hashes)
    assert all(len(each) == 12 for each in hashes)


def test_an_empty_file_has_a_hash_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert len(of_files(tmp_path / "empty.png").hashes()[0]) == 12
    with pytest.raises(DataError, match=r"gone\.png: the image cannot be read"):
        of_files(tmp_path / "gone.png").hashes()


def test_images_that_lie_in_no_file_are_hashed_by_their_pixels() -> None:
    one, other = DrawnSource(3, size=(8, 9)), DrawnSource(2, size=(8, 9), first=1)
    assert one.hashes()[1:] == other.hashes()
    assert len(set(one.hashes())) == 3


def test_the_card_knows_the_images_of_its_training(
    small_checkpoint: Path, drawn_folder: Path
) -> None:
    data = Data(path=drawn_folder)
    card = read_card(small_checkpoint).data
    assert card.training_hashes == tuple(open_split(data, "train", seed=0).hashes())
    assert card.validation_hashes == tuple(open_split(data, "val", seed=0).hashes())
    assert not {*open_split(data, "test", seed=0).hashes()} & {*card.training_hashes}
