"""Data folders: which layout one has, and the source of each of its splits.

Known are folders of images and masks, alone or in parts (``notan.data.layouts``); what labelling
tools write (``notan.data.annotations``); and the Oxford-IIIT Pet dataset (``notan.data.pets``).
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, cast

from notan.config import Data, Masks
from notan.data.annotations.formats import FORMATS, find, read_annotations, recognise
from notan.data.annotations.labels import (
    AnnotationReader,
    choose,
    is_value,
    mask_rule,
    require_values,
    without_void,
)
from notan.data.annotations.table import find_lists
from notan.data.copies import all_copies, look_at
from notan.data.layouts import PART_NAMES as PART_NAMES
from notan.data.layouts import SUFFIXES as SUFFIXES
from notan.data.layouts import (
    WHOLE,
    FolderPart,
    find_parts,
    refuse_other_kinds,
    unread_partner,
    whole_part,
)
from notan.data.layouts import image_files as image_files
from notan.data.pets import has_list, looks_like_pets, pets_source
from notan.data.samples import FileSource, ImageReading, Labels, Pair
from notan.data.splits import choose_validation, join_groups, name_groups
from notan.data.survey import (
    MOST_REMEMBERED,
    choose_reading,
    in_threads,
    look_into,
    stamp_of,
    survey_mask,
)
from notan.errors import ConfigError, DataError, nearest
from notan.io.images import FULL_DEPTH, RGB_CHANNELS, read_image
from notan.io.masks import AS_IT_STANDS, read_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from notan.config import TrimapBorder
    from notan.config.sections import Layout
    from notan.data.annotations.sets import AnnotationSet
    from notan.data.copies import ImageLook
    from notan.modelfile.card import Card, DataCard

logger = logging.getLogger("notan")


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
        _require_different_stems(files)
    for path, several in part.matching.unclear.items():
        names = " and ".join(each.name for each in several)
        raise DataError(
            f"{path}: {names} may both belong to it; take away, or rename, those that do not"
        )
    _require_partners(part.matching.images_alone, masks, part.masks, "mask")
    _require_partners(part.matching.masks_alone, images, part.images, "image")
    return FileSource(part.pairs(), mask_labels)


def mask_labels(path: Path, *, rule: Masks = AS_IT_STANDS) -> Labels:
    """Read a two-class mask by the one rule of ``notan.io.masks``, and what the owner says.

    Raises:
        DataError: The file is unreadable or its values are ambiguous.
    """
    reading = read_mask(path, rule)
    return Labels(reading.mask, reading.ignore, reading.encoding)


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


def _require_different_stems(files: Sequence[Path]) -> None:
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise DataError(
                f"{path}: {found[path.stem].name} has the same stem, so its partner is unclear; "
                "rename or remove one of them"
            )
        found[path.stem] = path


def _require_partners(
    alone: Sequence[Path], partners: Sequence[Path], where: Path, wanted: str
) -> None:
    if not alone:
        return
    stem = alone[0].stem
    near = {path.stem: path for path in partners}
    closest = difflib.get_close_matches(stem, near, n=1, cutoff=0.4)
    hint = f" (the nearest is {near[closest[0]].name})" if closest else ""
    if other := unread_partner(alone[0], where):
        hint = f" ({other.name} is of a kind that is not read)"
    others = f", nor for {len(alone) - 1} others" if len(alone) > 1 else ""
    raise DataError(
        f"{alone[0]}: there is no {wanted} {stem}.* in {where}{hint}{others}; "
        "image and mask must have the same name before the dot"
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
    if find_layout(data) == "pets":
        source = pets_source(folder, split, data.trimap_border).with_images(image_reading(data))
    else:
        source = _folder_split(folder, split, data, seed, validation_names)
    return source.first(data.limit) if split == "train" else source


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
    if layout == "folder" and not any(map(is_value, chosen)):
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


def open_annotated(data: Data) -> list[FileSource]:
    """Open all parts of a data set that is no plain folder of images and masks.

    Raises:
        DataError: The folder is missing, or its annotations are faulty.
    """
    folder = _existing(data.path)
    if find_layout(data) == "pets":
        source = pets_source(folder, "all", data.trimap_border)
        return [source.with_images(image_reading(data))]
    return [open_part() for open_part in _parts_of(folder, data).values()]


def makes_validation(data: Data) -> bool:
    """Say whether the validation split is made by us, for want of one in the data."""
    folder = _existing(data.path)
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
    if find_layout(data) == "pets":
        return has_list(folder, "test")
    return "test" in _parts_of(folder, data)


def _parts_of(folder: Path, data: Data) -> dict[str, Callable[[], FileSource]]:
    """Return what opens each of the parts that have images and masks."""
    layout = find_layout(data)
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
    require_values(data.masks, folder)
    pairs = _source_of(part).pairs
    _say_once(f"{folder}: {part.in_words(folder)}")
    return FileSource(pairs, partial(mask_labels, rule=data.masks), image_reading(data))


def _open_annotated(
    folder: Path, found: AnnotationSet, layout: str, data: Data, pairs: Sequence[Pair]
) -> FileSource:
    _say_once(f"{folder}: {annotations_in_words(found, layout)}")
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
        return partial(mask_labels, rule=mask_rule(found, data.masks, folder))
    return AnnotationReader(
        found.annotations,
        choose(found, without_void(found, data.masks), folder),
        mask_rule(found, data.masks, folder),
        data.exif_orientation == "apply",
        f"{folder}, {layout}, {found.number}",
    )


def _existing(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; check --data-path")
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
    if data.split_seed is not None:
        seed = data.split_seed
    chosen = validation_names or _set_aside(folder, whole, data, seed)
    missing = sorted(chosen - set(whole.names))
    if missing:
        raise DataError(
            f"{folder}: {missing[0]} was set aside for validation when the model was trained, "
            "but is not in this folder; give the folder it was trained on, or --split all"
        )
    held_back = chosen if split == "validation" else frozenset(whole.names) - chosen
    return whole.only(held_back)


def _set_aside(folder: Path, whole: FileSource, data: Data, seed: int) -> frozenset[str]:
    """Choose the validation images of a folder that has none, by what masks and images show.

    Every image is decoded once for it, and every mask, which ``survey`` then knows.
    """
    looks = in_threads(
        partial(_glance, read_labels=whole.read_labels), whole.pairs, "reading masks"
    )
    empty = {pair.name for pair, look in zip(whole.pairs, looks, strict=True) if look is False}
    groups, copies = groups_of(whole, data.group_by, told=_told_groups(folder, data))
    names = whole.names
    count = len({groups.get(name, name) for name in names})
    if count == 1 and data.group_by:
        raise DataError(
            f"{folder}: all {len(names)} images are of one group by data.group_by = "
            f"'{data.group_by}'; at least two groups are wanted, one of them to validate on"
        )
    chosen = choose_validation(
        names, fraction=data.validation_fraction, seed=seed, groups=groups, empty=empty
    )
    how = f"{len(chosen)} of {len(names)} images set aside for validation, from {count} groups"
    if copies:
        how += f"; {copies} are copies of each other, or nearly so"
    if empty:
        how += f"; {len(empty & chosen)} without foreground there, {len(empty - chosen)} elsewhere"
    _say_once(f"{folder}: {how}")
    if count == 1:
        _warn_once(f"{folder}: all images are copies of one, so validation sees what training saw")
    elif len(names) - len(empty) == 1:
        _warn_once(f"{folder}: only one mask has foreground, so that validation has none")
    return chosen


def _told_groups(folder: Path, data: Data) -> Mapping[str, str]:
    """Return the groups that the data themselves tell, where the owner names none."""
    layout = find_layout(data)
    is_told = layout in FORMATS and data.group_by is None
    return read_annotations(folder, layout).groups if is_told else {}


def groups_of(
    source: FileSource, group_by: str | None, *, told: Mapping[str, str] | None = None
) -> tuple[dict[str, str], int]:
    """Return which images have to stay on one side of a split, and how many of them are copies.

    Args:
        source: Its images are decoded once, to tell copies; one that cannot be is taken for none.
        group_by: As for ``name_groups``.
        told: Groups that are known already.

    Raises:
        ConfigError: It is no regular expression, or found in no name.
        DataError: It is a table that cannot be read, or that lacks an image.
    """
    names = source.names
    looks = in_threads(_look_at, [pair.image for pair in source.pairs], "looking for copies")
    linked = ((names[one], names[other]) for one, other in all_copies(looks))
    own = frozenset(names)
    known = {name: group for name, group in (told or {}).items() if name in own}
    return join_groups({**known, **name_groups(names, group_by)}, linked)


def _look_at(path: Path) -> ImageLook | None:
    try:
        return _looked_at(path, stamp_of(path))
    except DataError:  # whoever trains on it hears of it
        return None


@lru_cache(MOST_REMEMBERED)
def _looked_at(path: Path, stamp: tuple[int, int] | None) -> ImageLook:
    del stamp
    found = look_into(path)
    reading = choose_reading(Data(), [found])
    return look_at(read_image(path, replace(reading, white=FULL_DEPTH)))


def _glance(pair: Pair, *, read_labels: Callable[[Path], Labels]) -> bool | None:
    """Say whether a mask has foreground; None where it cannot be read, as the survey will say."""
    try:
        return survey_mask(pair.mask, read_labels).foreground > 0
    except DataError:
        return None


def undivided_names(data: Data) -> Sequence[str]:
    """Return the images of a folder whose validation split is made by us, before it is made."""
    return _undivided(_existing(data.path), data).names


def _undivided(folder: Path, data: Data) -> FileSource:
    return _own_part(folder, WHOLE if WHOLE in _parts_of(folder, data) else "train", data)


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


@cache
def _say_once(words: str) -> None:
    """Write into the log what was recognised, however often a folder is opened."""
    logger.info("%s", words)


@cache
def _warn_once(words: str) -> None:
    logger.warning("%s", words)
