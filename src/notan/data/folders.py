"""Data folders: which layout one has, and the source of each of its splits.

Known are folders of images and masks, alone or in parts (``notan.data.layouts``); what labelling
tools write (``notan.data.annotations``); and the Oxford-IIIT Pet dataset (``notan.data.pets``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from notan.config import Data, Masks
from notan.data.annotations import labels
from notan.data.annotations.formats import FORMATS, find, read_annotations, recognise
from notan.data.annotations.table import find_lists
from notan.data.dividing import choose_by_content, say_once
from notan.data.dividing import groups_of as groups_of
from notan.data.layouts import PART_NAMES as PART_NAMES
from notan.data.layouts import SUFFIXES as SUFFIXES
from notan.data.layouts import (
    WHOLE,
    FolderPart,
    find_parts,
    refuse_other_kinds,
    require_different_stems,
    require_partners,
    whole_part,
)
from notan.data.layouts import image_files as image_files
from notan.data.pets import has_list, looks_like_pets, pets_source, trimap_labels
from notan.data.samples import FileSource, ImageReading, Labels, Pair
from notan.data.shards import packed_labels, packed_layout, packed_source, packed_splits
from notan.errors import ConfigError, DataError, nearest
from notan.io.images import FULL_DEPTH, RGB_CHANNELS
from notan.io.packed import find_pack, is_shard
from notan.io.remote import is_remote, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from notan.config import Layout, TrimapBorder
    from notan.data.annotations.sets import AnnotationSet
    from notan.modelfile.card import Card, DataCard


def looks_like_folder(folder: Path, mask_folder: Path | None = None) -> bool:
    """Say whether a folder holds images and masks, directly or in a part."""
    return folder.is_dir() and any(part.is_whole for part in find_parts(folder, mask_folder))


def folder_source(folder: Path) -> FileSource:
    """Return the pairs of a folder without parts, in the order of their names.

    Raises:
        DataError: There are no pairs, an image has no mask, a mask no image, or it is unclear which
            belong together.
    """
    return _source_of(whole_part(folder))


def _source_of(part: FolderPart) -> FileSource:
    images, masks = part.files
    if not images:
        raise DataError(
            f"{part.images}: no images here; files ending in {', '.join(sorted(SUFFIXES))} were "
            "wanted"
        )
    for files in (images, masks):
        require_different_stems(files)
    for path, several in part.matching.unclear.items():
        names = " and ".join(each.name for each in several)
        raise DataError(
            f"{path}: {names} may both belong to it; take away, or rename, those that do not"
        )
    require_partners(part.matching.images_alone, masks, part.masks, "mask")
    require_partners(part.matching.masks_alone, images, part.images, "image")
    return FileSource(part.pairs(), labels.mask_labels)


def loose_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, or else of the ``images/`` in it, by name.

    Raises:
        DataError: There are none.
    """
    for place in (folder, folder / "images"):
        if place.is_dir() and (files := image_files(place)):
            return files
    raise DataError(
        f"{folder}: no images here; files ending in {', '.join(sorted(SUFFIXES))} were wanted, "
        "in the folder itself or in images/"
    )


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
    if find_layout(data) == "pets" and (data.division is None or split in ("test", "all")):
        source = _pets(folder, split, data)
    else:
        source = _folder_split(folder, split, data, seed, validation_names)
    return source.first(data.limit) if split == "train" else source


def _pets(folder: Path, split: str, data: Data) -> FileSource:
    if pack := find_pack(folder):
        return packed_source(pack, split, data, image_reading(data))
    return pets_source(folder, split, data.trimap_border).with_images(image_reading(data))


def image_reading(data: Data) -> ImageReading:
    """Return how the settings say that image files are read."""
    return ImageReading(
        white=data.white or FULL_DEPTH,
        upright=data.exif_orientation == "apply",
        channels=data.channels or RGB_CHANNELS,
    )


def open_as_trained(
    card: Card, split: str, path: Path, *, trimap_border: TrimapBorder | None = None
) -> tuple[FileSource, Data]:
    """Open a part of a data folder as a model knows it: layout, masks, bits, validation split.

    Args:
        card: Of the model.
        split: As for ``open_split``.
        path: The data folder.
        trimap_border: Another rule for the trimap's border than the model's own.

    Returns:
        The part, and the settings that it was opened with.

    Raises:
        ConfigError: There is no such split.
        DataError: The folder is missing, has no pairs, or lacks this part.
    """
    known = card.run.data
    border = trimap_border or card.trimap_border
    masks = _masks_here(known.masks, path)
    layout = find_layout(Data(path=path, layout=known.layout, masks=Masks(folder=masks.folder)))
    data = Data(
        path=path,
        layout=layout,
        masks=_masks_as_trained(card, masks, layout, path),
        exif_orientation=known.exif_orientation,
        white=card.preprocess.white,
        channels=card.preprocess.channels,
        fold=known.fold,
        **({"trimap_border": border} if border else {}),
    )
    names = _names_set_aside(card.data, split, data)
    source = open_split(data, split, seed=card.run.seed, validation_names=names)
    reading = replace(card.preprocess.reading, upright=source.images.upright)
    return source.with_images(reading), data


def _names_set_aside(known: DataCard, split: str, data: Data) -> frozenset[str] | None:
    """Return the validation images that a model's training set aside, for the splits made of them.

    A file that was given away does not name them: they are found by their content.
    """
    if known.validation_names != ():
        return frozenset(known.validation_names or ()) or None
    if SPLITS.get(split, split) in ("test", "all") or not makes_validation(data):
        return None
    folder = _existing(data.path)
    whole = _undivided(folder, data)
    wanted = {*known.validation_hashes} - {*known.training_hashes}
    hashes = zip(whole.names, whole.hashes(), strict=True)
    names = frozenset(name for name, each in hashes if each in wanted)
    if len(names) != known.validation_images:
        raise DataError(
            f"{folder}: of the {known.validation_images} images that were set aside for validation "
            f"when the model was trained, {len(names)} are in this folder; give the folder it was "
            "trained on, or --split all"
        )
    return names


def _masks_here(known: Masks, path: Path) -> Masks:
    """Return what was said of masks; another folder of data may hold them by another name."""
    if known.folder and path.is_dir():
        try:
            find_parts(path, known.folder)
        except DataError:
            return known.model_copy(update={"folder": None})
    return known


def _masks_as_trained(card: Card, masks: Masks, layout: str, path: Path) -> Masks:
    """Return what the owner said of masks, as far as it can be said of this layout.

    Raises:
        ConfigError: It is by values, and the model was trained on another kind of masks.
    """
    trained = card.data.layout
    chosen = (*masks.foreground, *masks.ignore)
    if layout == trained or not chosen:
        return masks
    if layout == "folder" and not any(map(labels.is_value, chosen)):
        # names of classes say nothing of mask files, and two classes need no names
        return masks.model_copy(update={"foreground": (), "ignore": ()})
    if any(isinstance(each, int) for each in chosen) and {layout, trained} & REGIONS:
        raise ConfigError(
            f"{path}: the model's foreground is {', '.join(map(str, masks.foreground))} of the "
            f"layout '{trained}', which is another thing in the layout '{layout}'; give data of "
            "the layout that it was trained on"
        )
    return masks


REGIONS = frozenset(FORMATS) - {"voc", "nnunet", "table"}
"""Layouts whose classes have numbers of their own, not the values of mask files."""


def find_layout(data: Data) -> Layout:
    """Return ``pets``, ``folder`` or the name of a labelling tool's format.

    Raises:
        DataError: The folder is missing or is none of these, or not what is said.
    """
    folder = _existing(data.path)
    mask_folder = data.masks.folder
    if pack := find_pack(folder):
        return packed_layout(pack, data)
    if data.layout in ("auto", "pets") and looks_like_pets(folder) and not mask_folder:
        return "pets"
    if data.layout == "auto" and folder.is_dir() and not mask_folder and find_lists(folder):
        return "table"  # says more than the folders beside it
    if data.layout in ("auto", "folder") and looks_like_folder(folder, mask_folder):
        return "folder"
    if data.layout in FORMATS and find(folder, data.layout):
        return data.layout
    if data.layout == "auto" and (found := recognise(folder)):
        return cast("Layout", found)
    wanted = {
        "pets": "images/ and annotations/trimaps/",
        "folder": "images/ and masks/ (alone, or inside train/, val/ and test/)",
        **{name: each.title for name, each in FORMATS.items()},
    }
    if folder.is_file():
        raise DataError(
            f"{folder}: this file is {wanted.get(data.layout, 'none of the kinds that are read')}"
            if data.layout == "auto"
            else f"{folder}: this file is not {wanted[data.layout]}"
        )
    refuse_other_kinds(folder)
    layouts = wanted if data.layout == "auto" else {data.layout: wanted[data.layout]}
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{folder}: no images with masks here; wanted {' or '.join(layouts.values())}, "
        f"found {inside}"
    )


def holds_masks(folder: Path) -> bool:
    """Say whether a folder holds images with masks or annotations."""
    try:
        find_layout(Data(path=folder))
    except DataError:
        return False
    return True


def open_divided(data: Data) -> list[tuple[FileSource, Sequence[str]]]:
    """Open all parts of a data set, with the split of each sample.

    Raises:
        DataError: The folder is missing, or what is in it is faulty.
    """
    folder = _existing(data.path)
    if find_layout(data) != "pets":
        parts = ((split, open_part()) for split, open_part in _parts_of(folder, data).items())
        return [(part, [split] * len(part)) for split, part in parts]
    source = _pets(folder, "all", data)
    known = {
        name: split
        for split in ("train", "validation", "test")
        for name in _pets(folder, split, data).names
    }
    return [(source, [known[name] for name in source.names])]


def makes_validation(data: Data) -> bool:
    """Say whether the validation split is made by us: a fold, or for want of one in the data."""
    folder = _existing(data.path)
    if data.division:
        return True
    if find_layout(data) == "pets":
        return False
    parts = _parts_of(folder, data)
    return WHOLE in parts or "validation" not in parts


def has_test(data: Data) -> bool:
    """Say whether the data have a test split.

    Raises:
        DataError: The folder is missing or holds no images with masks.
    """
    folder = _existing(data.path)
    if find_layout(data) == "pets" and not find_pack(folder):
        return has_list(folder, "test")
    return "test" in _parts_of(folder, data)


def _parts_of(folder: Path, data: Data) -> dict[str, Callable[[], FileSource]]:
    """Return what opens each of the parts that have images and masks."""
    layout = find_layout(data)
    if pack := find_pack(folder):
        say_once(f"{folder}: {pack.in_words()}")
        return {
            split: partial(packed_source, pack, split, data, image_reading(data))
            for split in packed_splits(pack)
        }
    if layout in FORMATS:
        found = read_annotations(folder, layout)
        if found.faults:
            others = len(found.faults) - 1
            more = f" (and {others} more; see: notan check --data-path {folder})" if others else ""
            raise DataError(f"{found.faults[0]}{more}")
        if not found.pairs:
            words = annotations_in_words(found, layout)
            raise DataError(f"{folder}: no image with its annotation here ({words})")
        opened = partial(_open_annotated, folder, found, layout, data)
        return {split: partial(opened, pairs) for split, pairs in found.pairs.items()}
    return {
        part.split: partial(_open_folder, folder, part, data)
        for part in find_parts(folder, data.masks.folder)
        if part.is_whole
    }


def _open_folder(folder: Path, part: FolderPart, data: Data) -> FileSource:
    labels.require_values(data.masks, folder)
    pairs = _source_of(part).pairs
    say_once(f"{folder}: {part.in_words(folder)}")
    return FileSource(pairs, partial(labels.mask_labels, rule=data.masks), image_reading(data))


def _open_annotated(
    folder: Path, found: AnnotationSet, layout: str, data: Data, pairs: Sequence[Pair]
) -> FileSource:
    say_once(f"{folder}: {annotations_in_words(found, layout)}")
    return FileSource(pairs, annotation_reader(folder, layout, data), image_reading(data))


def annotations_in_words(found: AnnotationSet, layout: str) -> str:
    """Say what was recognised, and what is passed over."""
    counts = ", ".join(f"{split} {len(pairs)}" for split, pairs in found.pairs.items())
    words = f"recognised as {FORMATS[layout].title}: {counts or 'no'} images"
    if found.classes:
        words += f", classes {', '.join(found.classes)}"
    return "; ".join([words, *(f"passed over: {note}" for note in found.notes)])


def annotation_reader(folder: Path, layout: str, data: Data) -> Callable[[Path], Labels]:
    """Return what reads the masks of a labelling tool's export, under the owner's choice.

    Raises:
        ConfigError: A class is named that is not there.
        DataError: There are several classes and the owner says nothing.
    """
    found = read_annotations(folder, layout)
    if not found.annotations:
        return partial(labels.mask_labels, rule=labels.mask_rule(found, data.masks, folder))
    return labels.AnnotationReader(
        found.annotations,
        labels.choose(found, labels.without_void(found, data.masks), folder),
        labels.mask_rule(found, data.masks, folder),
        data.exif_orientation == "apply",
        f"{folder}, {layout}, {found.number}",
    )


def label_reader(layout: str, data: Data) -> Callable[[Path], Labels]:
    """Return how masks of a layout are read as two classes.

    Raises:
        ConfigError: The owner names a class that is not there.
        DataError: There are several classes, and the owner does not say which counts.
    """
    if data.path and (pack := find_pack(data.path)):
        return packed_labels(pack, data)
    if layout == "pets":
        return partial(trimap_labels, trimap_border=data.trimap_border)
    if layout in FORMATS and data.path:
        return annotation_reader(data.path, layout, data)
    return partial(labels.mask_labels, rule=data.masks)


def _existing(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    if is_remote(path):
        if find_pack(path):
            return path
        raise DataError(
            f"{shown(path)}: there is no index of packed data here; check the address; only what "
            "notan pack wrote is read from a store"
        )
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; check --data-path")
    if is_shard(path.name):
        raise DataError(f"{path}: this is one shard of packed data; give the folder that holds it")
    if path.suffix.lower() in PACKED:
        raise DataError(f"{path}: this is an archive; unpack it, and give the folder")
    if not path.is_dir() and path.suffix.lower() not in NAMED_FILES:
        raise DataError(
            f"{path}: this is a file; --data-path wants the folder that holds the data, or a file "
            f"of annotations ({', '.join(NAMED_FILES)})"
        )
    return path


PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
NAMED_FILES = (".json", ".geojson", ".xml", ".yaml", ".yml", ".csv", ".parquet")
"""Files of annotations that may be given in place of their folder."""


def _folder_split(
    folder: Path, split: str, data: Data, seed: int, validation_names: frozenset[str] | None
) -> FileSource:
    if split == "all" or split == "test" or not makes_validation(data):
        return _own_part(folder, split, data)
    whole = _undivided(folder, data)
    if len(whole) < 2:
        raise DataError(
            f"{folder}: only one pair of image and mask; at least two are wanted, "
            "one to train on and one to validate on"
        )
    told = told_groups(data)
    chosen = validation_names or choose_by_content(folder, whole, data, seed, told=told)
    missing = sorted(chosen - set(whole.names))
    if missing:
        raise DataError(
            f"{folder}: {missing[0]} was set aside for validation when the model was trained, "
            "but is not in this folder; give the folder it was trained on, or --split all"
        )
    held_back = chosen if split == "validation" else frozenset(whole.names) - chosen
    return whole.only(held_back)


def told_groups(data: Data) -> Mapping[str, str]:
    """Return the groups that the data themselves tell, where the owner names none."""
    folder, layout = _existing(data.path), find_layout(data)
    if data.group_by is not None:
        return {}
    if pack := find_pack(folder):
        return {each.name: each.group for each in pack.samples if each.group is not None}
    return read_annotations(folder, layout).groups if layout in FORMATS else {}


def undivided_names(data: Data) -> Sequence[str]:
    """Return the images of a folder whose validation split is made by us, before it is made."""
    return _undivided(_existing(data.path), data).names


def _undivided(folder: Path, data: Data) -> FileSource:
    """Return the images that we divide: of folds a validation part of the data's own too."""
    if find_layout(data) == "pets" and find_pack(folder):
        both = [_pets(folder, split, data) for split in ("train", "validation")]
        return FileSource([*both[0].pairs, *both[1].pairs], both[0].read_labels, both[0].images)
    if find_layout(data) == "pets":
        source = pets_source(folder, "trainval", data.trimap_border)
        return source.with_images(image_reading(data))
    parts = _parts_of(folder, data)
    training = _own_part(folder, WHOLE if WHOLE in parts else "train", data)
    if data.division is None or WHOLE in parts or "validation" not in parts:
        return training
    validation = _own_part(folder, "validation", data)
    twice = {*training.names} & {*validation.names}
    pairs = [
        replace(pair, name=f"{part}/{pair.name}") if pair.name in twice else pair
        for part, source in (("train", training), ("val", validation))
        for pair in source.pairs
    ]
    return FileSource(pairs, training.read_labels, training.images)


def _own_part(folder: Path, split: str, data: Data) -> FileSource:
    open_part = _parts_of(folder, data).get(split)
    if open_part is None and split == WHOLE:
        raise DataError(
            f"{folder}: this folder is divided into parts; choose one with --split, "
            f"or point --data-path at one of them, say {folder / 'train'}"
        )
    if open_part is None:
        raise DataError(
            f"{folder}: there is no {split} part ({split}/images and {split}/masks); "
            "choose another with --split train, --split val or --split all"
        )
    return open_part()
