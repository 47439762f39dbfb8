"""Layouts: how people arrange images and masks in folders, and which file belongs to which.

Folders go by the names that public data sets use: CVC-ClinicDB's ``Original`` and ``Ground Truth``,
MMSegmentation's ``images/training`` and ``annotations/training``, Carvana's ``train_masks``,
CamVid's ``trainannot`` and so on. Files are matched by the name before the dot, then by what is
usually added to it: ``x_mask.png`` is the mask of ``x.jpg``. What could mean two things is refused.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from notan.data.samples import Pair
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm",
    ".ppm", ".pbm", ".tga", ".jp2", ".avif", ".heic", ".heif", ".npy",
))  # fmt: skip
"""File names that count as images; what is inside decides how they are decoded."""

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),  # several JPEGs in one file, from cameras
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".pgm", ".ppm", ".pbm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
    "NPY": (".npy",),
    "HEIF": (".heic", ".heif"),
}
"""The names that each format goes by."""

PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}

WHOLE = "all"
"""The split of a folder that has no parts."""

IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "original", "jpegimages", "sat"))
MASK_FOLDERS = frozenset(
    name.replace(" ", "")
    for name in (
        *("masks", "mask", "labels", "label", "lab", "gt", "gts", "ground truth", "map"),
        *("annotations", "annotation", "annot", "manual1", "1st manual", "2nd manual"),
    )
)
"""In lower case, without what may stand between words."""

_MASK_WORDS = "|".join((
    *("masks?", "gt", "seg", "segmentation", "labels?", "annotation", "anno", "manual\\d?"),
    *("ground truth".replace(" ", "[_ ]?"), "1stHO", "2ndHO"),
))  # fmt: skip
_ON_MASKS = re.compile(
    rf"(?P<before>.+)[_\-. ](?:{_MASK_WORDS})(?:_?\d+)?"
    rf"|(?:masks?|gt|seg|labels?)(?:[_\- ]|(?=\d))(?P<behind>.+)",
    re.IGNORECASE,
)
_ON_IMAGES = re.compile(
    r"(?P<before>.+)_(?:image|sat)|(?:image|img)(?:[_\- ]|(?=\d))(?P<behind>.+)", re.IGNORECASE
)
_LOSSY, _LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp", ".gif", ".tif", ".tiff")
_OTHER_KINDS = {".txt": "polygons as YOLO writes them", ".json": "polygons", ".xml": "boxes"}
"""What labelling tools leave where masks are looked for."""


def image_files(folder: Path) -> list[Path]:
    """Return a folder's image files by name; hidden files (``._x.jpg``) are none."""
    return sorted(path for path in folder.iterdir() if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def passed_over(folder: Path, kinds: Collection[str] = SUFFIXES) -> str:
    """Say what of a folder is not read, by reason; nothing where all of it is.

    Args:
        folder: Its own entries are counted; nothing below is opened.
        kinds: The suffixes that are read.

    Returns:
        For example ``"4 of kinds that are not read (.cr2 3, .svs 1), 1 hidden"``.
    """
    suffixes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            reasons["hidden"] += 1
        elif path.is_dir():
            reasons["folder inside"] += 1
        elif not path.is_file():
            reasons["broken link or pipe"] += 1
        elif path.suffix.lower() not in kinds:
            suffixes[path.suffix.lower() or "no suffix"] += 1
    kinds_found = sorted(suffixes.items(), key=lambda each: (-each[1], each[0]))
    unknown = ", ".join(f"{suffix} {count}" for suffix, count in kinds_found)
    parts = [f"{suffixes.total()} of kinds that are not read ({unknown})"] if suffixes else []
    return ", ".join([*parts, *(f"{count} {reason}" for reason, count in sorted(reasons.items()))])


def unread_partner(path: Path, where: Path) -> Path | None:
    """Return a file with the stem of another in a folder whose kind is not read, if there is one.

    Args:
        path: An image or mask that has no partner.
        where: Where its partner was looked for.
    """
    others = where.iterdir() if where.is_dir() else ()
    found = (each for each in others if each.stem == path.stem and each != path)
    return next((each for each in found if not _is_image(each)), None)


def require_different_stems(files: Sequence[Path]) -> None:
    """Refuse files of which two have the same name before the dot.

    Raises:
        DataError: Two have; the message names both.
    """
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise DataError(
                f"{path}: {found[path.stem].name} has the same stem, so its partner is unclear; "
                "rename or remove one of them"
            )
        found[path.stem] = path


def require_partners(
    alone: Sequence[Path], partners: Sequence[Path], where: Path, wanted: str
) -> None:
    """Refuse files that have no partner, and offer the nearest.

    Args:
        alone: Those, if there are any.
        partners: Where theirs would have been.
        where: The folder of these.
        wanted: What these are: ``image`` or ``mask``.

    Raises:
        DataError: There are such files.
    """
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


@dataclass(frozen=True)
class Matching:
    """Which mask belongs to which image.

    Attributes:
        partners: Each image that has a mask, in the order of the images.
        images_alone: Those without.
        masks_alone: Masks without an image.
        unclear: Why some are left alone though they have partners, by the file that has several.
    """

    partners: Mapping[Path, Path]
    images_alone: tuple[Path, ...]
    masks_alone: tuple[Path, ...]
    unclear: Mapping[Path, tuple[Path, ...]]


@dataclass(frozen=True)
class FolderPart:
    """Where the images and masks of a split lie.

    Attributes:
        split: ``train``, ``validation`` or ``test``; ``all``: the folder has no parts.
        images: The folder of the images.
        masks: The folder of the masks; the same where they lie beside their images.
    """

    split: str
    images: Path
    masks: Path

    @property
    def is_whole(self) -> bool:
        """Whether both folders are there."""
        return self.images.is_dir() and self.masks.is_dir()

    @cached_property
    def files(self) -> tuple[list[Path], list[Path]]:
        """The image files and the mask files, by name."""
        if self.images == self.masks:
            return _apart(image_files(self.images))
        images, masks = (
            image_files(each) if each.is_dir() else [] for each in (self.images, self.masks)
        )
        return images, masks

    @cached_property
    def matching(self) -> Matching:
        """Which of the files belong together."""
        return match(*self.files)

    def pairs(self) -> list[Pair]:
        """Return the images that have a mask; they are named as the images are."""
        return [Pair(image.stem, image, mask) for image, mask in self.matching.partners.items()]

    def in_words(self, folder: Path) -> str:
        """Say how the images and masks are taken, and what is passed over.

        Args:
            folder: The data folder, which paths are seen from.
        """
        images, masks = (_seen_from(folder, each) for each in (self.images, self.masks))
        count = len(self.matching.partners)
        words = f"masks in {masks} for images in {images}"
        if images == masks:
            words = f"masks beside their images in {images}"
        elif _plain(self.masks.name) != "masks":
            words = f"{masks} read as the masks of {images}"
        words += f": {count} pair{'' if count == 1 else 's'}"
        for where in dict.fromkeys((self.images, self.masks)):
            if others := passed_over(where):
                words += f"; passed over in {_seen_from(folder, where)}: {others}"
        return words


def find_parts(folder: Path, mask_folder: Path | None = None) -> list[FolderPart]:
    """Return the parts of a data folder; the whole of one without parts is one, ``all``.

    A part that has only images or only masks is among them, with a folder that is missing.

    Args:
        folder: The data folder.
        mask_folder: The name of the folders with the masks; None: the usual names.

    Raises:
        DataError: Several folders could hold the images or the masks, or there is none of the name.
    """
    below = _folders_in(folder)
    names_of_masks = frozenset({_plain(str(mask_folder))}) if mask_folder else MASK_FOLDERS
    images, masks = _kinds_in(folder, names_of_masks)
    parts = list(_below_kinds(images, masks))
    if images and masks and not (parts and not any(map(_holds_images, images))):
        parts = [FolderPart(WHOLE, _the_one(images, "images"), _the_one(masks, "masks"))]
    known = {part.split for part in parts}
    for split, names in PART_NAMES.items():
        found = [part for name in names for part in _named_part(below, split, name, names_of_masks)]
        if found and split not in known:
            parts.append(next((part for part in found if part.is_whole), found[0]))
    if mask_folder and not any(part.is_whole for part in parts):
        inside = ", ".join(f"{each.name}/" for each in below) or "no folder"
        raise DataError(
            f"{folder}: there are no images here with masks in {mask_folder}/, as --masks says; "
            f"found {inside}; give the bare name of the folder beside the images"
        )
    together = FolderPart(WHOLE, folder, folder)
    if not any(part.is_whole for part in parts) and together.matching.partners:
        return [together]
    return parts


def whole_part(folder: Path) -> FolderPart:
    """Return a folder's images and masks, parts aside; ``images/`` and ``masks/`` if it has none.

    Raises:
        DataError: Several folders could hold the images or the masks.
    """
    found = (part for part in find_parts(folder) if part.split == WHOLE)
    return next(found, FolderPart(WHOLE, folder / "images", folder / "masks"))


def _below_kinds(images: Sequence[Path], masks: Sequence[Path]) -> Iterator[FolderPart]:
    """Give ``images/train`` with ``masks/train``, and so on for the other parts."""
    for split, names in PART_NAMES.items():
        sides = [
            [each for kind in kinds for each in _named(kind, names) if _holds_images(each)]
            for kinds in (images, masks)
        ]
        if all(sides):
            yield FolderPart(split, _the_one(sides[0], "images"), _the_one(sides[1], "masks"))


def _named_part(
    below: Sequence[Path], split: str, name: str, names_of_masks: Collection[str]
) -> Iterator[FolderPart]:
    """Give ``train/images`` with ``train/masks``, or ``train`` with ``train_masks``."""
    for place in (each for each in below if _plain(each.name) == name):
        images, masks = _kinds_in(place, names_of_masks)
        if images or masks:
            yield FolderPart(
                split,
                _the_one(images, "images") if images else place / "images",
                _the_one(masks, "masks") if masks else place / "masks",
            )
        elif FolderPart(split, place, place).matching.partners:
            yield FolderPart(split, place, place)
    image_names = {name, *(name + kind for kind in IMAGE_FOLDERS)}
    mask_names = {name + kind for kind in names_of_masks}
    sides = [
        [each for each in below if _plain(each.name) in names and _holds_images(each)]
        for names in (image_names, mask_names)
    ]
    if all(sides):
        yield FolderPart(split, _the_one(sides[0], "images"), _the_one(sides[1], "masks"))


def _the_one(folders: Sequence[Path], what: str) -> Path:
    """Return the one of several folders that holds image files."""
    full = [each for each in folders if _holds_images(each)]
    if len(full) > 1:
        names = " and ".join(f"{each.name}/" for each in full)
        flag = f"name it with --masks {full[0].name}, or " if what == "masks" else ""
        raise DataError(
            f"{full[0].parent}: {names} could both hold the {what}; {flag}take the others out "
            "of this folder, or rename them, so that one is left"
        )
    return (full or folders)[0]


def _kinds_in(folder: Path, names_of_masks: Collection[str]) -> tuple[list[Path], list[Path]]:
    """Return the folders of images and those of masks in a folder, by their names.

    Beside ``images`` and ``masks`` only those with image files count, in them or in a part of them:
    ``labels`` and ``annotations`` often hold something else.
    """
    images, masks = (
        [
            path
            for path in _named(folder, names)
            if _plain(path.name) == usual
            or _holds_images(path)
            or any(map(_holds_images, _parts_in(path)))
        ]
        for names, usual in ((IMAGE_FOLDERS, "images"), (names_of_masks, "masks"))
    )
    return images, masks


def _parts_in(folder: Path) -> list[Path]:
    return _named(folder, [name for names in PART_NAMES.values() for name in names])


def _named(folder: Path, names: Collection[str]) -> list[Path]:
    return [path for path in _folders_in(folder) if _plain(path.name) in names]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _plain(name: str) -> str:
    return re.sub("[ _-]", "", name.lower())


def _holds_images(folder: Path) -> bool:
    return any(map(_is_image, folder.iterdir()))


def _seen_from(folder: Path, path: Path) -> str:
    if path == folder:
        return f"{folder.name}/"
    return f"{path.relative_to(folder)}/"


def refuse_other_kinds(folder: Path) -> None:
    """Refuse a folder in which a labelling tool's files lie where masks are looked for.

    Raises:
        DataError: They are named as the images are.
    """
    for place in (folder, *_parts_in(folder)):
        sides = [
            [
                path
                for kind in _named(place, names)
                for each in (kind, *_parts_in(kind))
                for path in each.iterdir()
            ]
            for names in (IMAGE_FOLDERS, MASK_FOLDERS)
        ]
        stems = {path.stem for path in sides[0] if _is_image(path)}
        files = [path for path in sides[1] if path.stem in stems]
        for suffix, meaning in _OTHER_KINDS.items():
            found = [path for path in files if path.suffix.lower() == suffix]
            if found and not any(map(_is_image, files)):
                raise DataError(
                    f"{found[0].parent}: no masks here but {len(found)} {suffix} files, which look "
                    f"like {meaning}; masks are wanted as image files, one for each image and of "
                    "its name: have the labelling tool export them so"
                )


def match(images: Sequence[Path], masks: Sequence[Path]) -> Matching:
    """Find the mask of each image: by the same name before the dot, else by the usual additions.

    Args:
        images: By name; of two with one stem the first is matched.
        masks: Likewise.
    """
    partners, left = _by_name(images, masks)
    unclear: dict[Path, tuple[Path, ...]] = {}
    wanted: dict[Path, list[Path]] = defaultdict(list)
    for image, candidates in _by_addition(images, left, partners):
        # two of one stem are not unclear here: that is said elsewhere
        if len({_key(mask.stem) for mask in candidates}) > 1:
            unclear[image] = candidates
        elif image not in partners:
            wanted[candidates[0]].append(image)
    for mask, claimants in wanted.items():
        if len(claimants) > 1:
            unclear[mask] = tuple(claimants)
        else:
            partners[claimants[0]] = mask
    sure = {each: partners[each] for each in images if each in partners and each not in unclear}
    taken = {*sure.values()}
    return Matching(
        sure,
        tuple(image for image in images if image not in sure),
        tuple(mask for mask in masks if mask not in taken),
        unclear,
    )


def _by_name(images: Sequence[Path], masks: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Pair files of one stem; return the masks that are left too."""
    waiting: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        waiting[_key(mask.stem)].append(mask)
    partners = {}
    for image in images:
        same = waiting.get(_key(image.stem))
        if same:
            partners[image] = same.pop(0)
    return partners, [mask for same in waiting.values() for mask in same]


def _by_addition(
    images: Sequence[Path], masks: Sequence[Path], partners: Mapping[Path, Path]
) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Give each image with the masks that may be its, the one of its own name among them."""
    by_base: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        for base in _bases(mask.stem, _ON_MASKS):
            by_base[base].append(mask)
    for image in images:
        own = [partners[image]] if image in partners else []
        bases = [_key(image.stem)] if own else _bases(image.stem, _ON_IMAGES)
        found = [*own, *(mask for base in bases for mask in by_base.get(base, ()))]
        if found:
            yield image, tuple(dict.fromkeys(found))


def _apart(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell the masks in a folder from the images beside them, if any of them belong together."""
    marked = [path for path in files if _ON_MASKS.fullmatch(path.stem)]
    bases = {base for path in marked for base in _bases(path.stem, _ON_MASKS)[1:]}
    masks = {path for path in marked if _key(path.stem) not in bases}
    images = [path for path in files if path not in masks]
    if masks and match(images, sorted(masks)).partners:
        return images, sorted(masks)
    # photographs are JPEGs, their masks beside them are not: MSRA10K, Crack500
    images = [path for path in files if path.suffix.lower() in _LOSSY]
    others = [path for path in files if path.suffix.lower() in _LOSSLESS]
    stems = [{_key(path.stem) for path in each} for each in (images, others)]
    if stems[0] == stems[1] and len(files) == 2 * len(stems[0]):
        return images, others
    return list(files), []


def _bases(stem: str, additions: re.Pattern[str]) -> list[str]:
    """Return a stem itself, and without what is usually added to it."""
    found = additions.fullmatch(stem)
    bare = [found["before"] or found["behind"]] if found else []
    return [_key(each) for each in (stem, *bare)]


def _key(stem: str) -> str:
    """Return a name as it is compared: Macs take accents apart, other systems do not."""
    return unicodedata.normalize("NFC", stem)
