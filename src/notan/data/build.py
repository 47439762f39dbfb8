"""From a data folder to the sources of a split, whatever layout the folder has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.data.folder import folder_source, has_pairs, looks_like_folder, part_folder
from notan.data.pets import has_list, looks_like_pets, pets_source
from notan.data.splits import choose_validation
from notan.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Data
    from notan.data.files import FileSource

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""The words for a split and what they mean; ``all`` is every image of the folder."""


def open_split(
    data: Data, split: str, *, seed: int, validation_names: frozenset[str] | None = None
) -> FileSource:
    """Open one part of a data folder; no other part is read.

    Args:
        data: Where the data are and how to read them. ``data.limit`` shortens ``train`` only.
        split: ``train``, ``val`` (or ``validation``), ``test`` or ``all``.
        seed: Decides the validation split where the folder has none, unless ``data.split_seed``
            does.
        validation_names: A validation split made earlier, to be kept instead of a new one.

    Raises:
        ConfigError: There is no such split, or no path was given.
        DataError: The folder is missing, has no pairs, or lacks this part.
    """
    folder = _existing(data.path)
    if split not in {*SPLITS, "all"}:
        raise ConfigError(f"'{split}': there is no such split{nearest(split, {*SPLITS, 'all'})}")
    split = SPLITS.get(split, split)
    if find_layout(data) == "pets":
        source = pets_source(folder, split, data.trimap_border)
    else:
        source = _folder_split(folder, split, data, seed, validation_names)
    return source.first(data.limit) if split == "train" else source


def find_layout(data: Data) -> str:
    """Return ``pets`` or ``folder``.

    Raises:
        DataError: The folder is missing or is neither.
    """
    folder = _existing(data.path)
    if data.layout in ("auto", "pets") and looks_like_pets(folder):
        return "pets"
    if data.layout in ("auto", "folder") and looks_like_folder(folder):
        return "folder"
    wanted = {
        "pets": "images/ and annotations/trimaps/",
        "folder": "images/ and masks/ (alone, or inside train/, val/ and test/)",
    }
    layouts = wanted if data.layout == "auto" else {data.layout: wanted[data.layout]}
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{folder}: no images with masks here; wanted {' or '.join(layouts.values())}, "
        f"found {inside}"
    )


def makes_validation(data: Data) -> bool:
    """Say whether the validation split is made by us, for want of one in the data."""
    folder = _existing(data.path)
    if find_layout(data) == "pets":
        return False
    return has_pairs(folder) or part_folder(folder, "validation") is None


def has_test(data: Data) -> bool:
    """Say whether the data have a test split.

    Raises:
        DataError: The folder is missing or holds no images with masks.
    """
    folder = _existing(data.path)
    if find_layout(data) == "pets":
        return has_list(folder, "test")
    return part_folder(folder, "test") is not None


def _existing(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; check --data-path")
    if not path.is_dir():
        raise DataError(f"{path}: this is a file; --data-path wants the folder that holds the data")
    return path


def _folder_split(
    folder: Path, split: str, data: Data, seed: int, validation_names: frozenset[str] | None
) -> FileSource:
    if split == "all":
        return _undivided(folder)
    if split == "test" or not makes_validation(data):
        return _own_part(folder, split)
    whole = folder_source(folder) if has_pairs(folder) else _own_part(folder, "train")
    if len(whole) < 2:
        raise DataError(
            f"{folder}: only one pair of image and mask; at least two are wanted, "
            "one to train on and one to validate on"
        )
    if data.split_seed is not None:
        seed = data.split_seed
    chosen = validation_names or choose_validation(
        whole.names, fraction=data.validation_fraction, seed=seed
    )
    missing = sorted(chosen - set(whole.names))
    if missing:
        raise DataError(
            f"{folder}: {missing[0]} was set aside for validation when the model was trained, "
            "but is not in this folder; give the folder it was trained on, or --split all"
        )
    held_back = chosen if split == "validation" else frozenset(whole.names) - chosen
    return whole.only(held_back)


def _undivided(folder: Path) -> FileSource:
    if not has_pairs(folder):
        raise DataError(
            f"{folder}: this folder is divided into parts; choose one with --split, "
            f"or point --data-path at one of them, say {folder / 'train'}"
        )
    return folder_source(folder)


def _own_part(folder: Path, split: str) -> FileSource:
    part = part_folder(folder, split)
    if part is None:
        raise DataError(
            f"{folder}: there is no {split} part ({split}/images and {split}/masks); "
            "choose another with --split train, --split val or --split all"
        )
    return folder_source(part)
