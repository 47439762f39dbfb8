"""AnnotationSet: what a labelling tool's export holds, whatever its format."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import unquote

from notan.data.layouts import PART_NAMES, SUFFIXES, WHOLE
from notan.data.samples import Pair
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from notan.data.annotations.shapes import Shape
    from notan.types import Size

Kind = TypeVar("Kind")
ClassValue: TypeAlias = int | str
"""A number in the format or in mask files, a colour such as ``#804080``, or else the name again."""

MOST_BYTES = 2**31
"""Of one annotation file; COCO's largest has 450 MB."""

NAMED = 3
HEAD, TAIL = 65536, 4096
"""Bytes of either end by which a file's kind is told."""


@dataclass(frozen=True, eq=False)
class Region:
    """An annotated object, or a piece of one.

    Attributes:
        label: The name of its class.
        shape: Where it lies.
        crowd: Whether it marks a crowd of objects, not each of them.
    """

    label: str
    shape: Shape
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class Annotation:
    """What is annotated in one image.

    Attributes:
        image: The image's file.
        regions: Its objects; none: the image is known to be empty.
        size: (height, width) of the image as the annotation says; None: it says none.
    """

    image: Path
    regions: tuple[Region, ...]
    size: Size | None = None


@dataclass(frozen=True, eq=False)
class AnnotationSet:
    """What an export of a labelling tool holds.

    Attributes:
        pairs: Image and mask by split: ``train``, ``validation``, ``test``; ``all``: no splits.
            A mask is a file, or what a file says of one image: then its path is that of the file,
            with the image's name behind it where the file is about several.
        annotations: By the path of the mask; empty where masks are image files.
        classes: The names of the classes and their values, background and void aside.
        void: Values of mask files that are neither, unless the owner says otherwise.
        ignored: Classes that are neither, likewise.
        groups: Of images that belong together.
        faults: What is wrong with the files, a line each; a training ends at the first.
        notes: What was passed over, in words.
        number: Tells it from every other set of the process.
    """

    pairs: Mapping[str, tuple[Pair, ...]]
    annotations: Mapping[Path, Annotation] = field(default_factory=dict)
    classes: Mapping[str, ClassValue] = field(default_factory=dict)
    void: tuple[ClassValue, ...] = ()
    ignored: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def everything(self) -> list[Pair]:
        """The pairs of all splits."""
        return [pair for pairs in self.pairs.values() for pair in pairs]


class Collector:
    """Gathers the images of an annotation set, under names that are each taken once."""

    def __init__(self, folder: Path) -> None:
        """Begin with none.

        Args:
            folder: The data folder, outside of which no image is looked for.
        """
        self.images = ImageIndex(folder)
        self.faults: list[str] = []
        self.notes: Counter[str] = Counter()
        self._found: dict[Path, tuple[str, Pair, Annotation | None]] = {}

    def find(self, reference: str, where: Path, *near: Path) -> Path | None:
        """Return the file of an image that an annotation names; note where it is not there.

        Args:
            reference: As the tool wrote it: a path, an address or a name.
            where: The annotation file.
            near: Folders that the path may be seen from; the annotation file's own comes last.
        """
        try:
            return self.images.find(reference, where, *near)
        except DataError as error:
            self.faults.append(str(error))
            return None

    def find_stem(self, stem: str, where: Path, *near: Path) -> Path | None:
        """Return the image of a name before the dot; note where it is not there.

        Args:
            stem: The name.
            where: The mask or annotation file of it.
            near: Folders in which it is looked for first.
        """
        try:
            return self.images.find_stem(stem, where, *near)
        except DataError as error:
            self.faults.append(str(error))
            return None

    def add_from(self, path: Path, split: str, annotation: Annotation) -> None:
        """Take what a file that is about several images says of one of them."""
        image = annotation.image
        self.add(split, path / image.relative_to(self.images.folder), image, annotation)

    def add(
        self,
        split: str,
        mask: Path,
        image: Path,
        annotation: Annotation | None,
        *,
        name: str | None = None,
        channels: tuple[Path, ...] = (),
    ) -> None:
        """Take an image with its mask; of an image that comes twice, note it.

        Args:
            split: Which it belongs to.
            mask: The mask's file, or where it stands.
            image: The image's file.
            annotation: What is said of it; None: the mask is an image file.
            name: What the image is called; None: as its file, without the suffix.
            channels: Files of its further channels.
        """
        if image in self._found:
            self.faults.append(f"{mask}: the image {image.name} is annotated a second time")
            return
        pair = Pair(name or image.stem, image, mask, channels)
        self._found[image] = (split, pair, annotation)

    def count(self, note: str) -> None:
        """Count something that is passed over, such as ``"polylines, which have no area"``."""
        self.notes[note] += 1

    def labels(self) -> set[str]:
        """Return the classes of the objects that were added so far."""
        added = (each for _, _, each in self._found.values() if each is not None)
        return {region.label for each in added for region in each.regions}

    def pass_over_images(self, note: str) -> None:
        """Count the images of the folder that were not added."""
        self.notes[note] += len(set(self.images.files()) - set(self._found))

    def result(
        self,
        classes: Mapping[str, ClassValue] | None = None,
        *,
        void: tuple[ClassValue, ...] = (),
        ignored: frozenset[str] = frozenset(),
        background: str = "",
        groups: Mapping[Path, str] | None = None,
    ) -> AnnotationSet:
        """Return the set.

        Args:
            classes: Their values; None: the format has names only, and those in use count.
            void: See ``AnnotationSet``.
            ignored: See there.
            background: The class that means none, where the format has one.
            groups: Of the images' files.
        """
        if classes is None:
            classes = {name: name for name in sorted(self.labels() - ignored - {background})}
        names = self._names()
        splits = Counter(split for split, _, _ in self._found.values())
        if len(splits) > 1 and splits[WHOLE]:
            lone = next(image for image, (split, *_) in self._found.items() if split == WHOLE)
            self.faults.append(
                f"{lone}: belongs to no split, nor do {splits[WHOLE] - 1} others, though "
                f"{splits.total() - splits[WHOLE]} images do; give each a split, or none"
            )
        pairs: dict[str, list[Pair]] = defaultdict(list)
        for image, (split, pair, _) in self._found.items():
            pairs[split].append(replace(pair, name=names[image]))
        return AnnotationSet(
            {split: tuple(each) for split, each in pairs.items()},
            {pair.mask: each for _, pair, each in self._found.values() if each is not None},
            classes,
            void,
            ignored,
            {names[image]: group for image, group in (groups or {}).items() if image in names},
            tuple(self.faults),
            tuple(f"{count} {note}" for note, count in self.notes.items() if count),
        )

    def _names(self) -> dict[Path, str]:
        """Name images by their folders too where several are called the same.

        Those of a table may lie anywhere, and are counted.
        """
        same = Counter(pair.name for _, pair, _ in self._found.values())
        outside: Counter[str] = Counter()
        names = {}
        for image, (_, pair, _) in self._found.items():
            names[image] = pair.name
            if same[pair.name] > 1 and image.is_relative_to(self.images.folder):
                inside = image.relative_to(self.images.folder)
                names[image] = "_".join(inside.with_suffix("").parts)
            elif same[pair.name] > 1:
                outside[pair.name] += 1
                names[image] = f"{pair.name}-{outside[pair.name]}"
        return names


class ImageIndex:
    """The image files below a folder, by path and by name."""

    def __init__(self, folder: Path) -> None:
        """List the files once; hidden folders are left out, and links to folders not followed."""
        self.folder = folder
        self._named: dict[str, list[Path]] = defaultdict(list)
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(files):
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                    self._named[name].append(Path(place) / name)

    def find(self, reference: str, where: Path, *near: Path) -> Path:
        """Return the file that a reference means.

        Raises:
            DataError: It leaves the data folder, is not there, or could be one of several files.
        """
        plain = unquote(reference) if "://" in reference else reference
        path = PurePosixPath(plain.replace("\\", "/"))
        root = _plain(self.folder)
        for place in (*near, where.parent):
            try:
                found = _plain(place / path)
                is_there = found.is_file()
            except (OSError, ValueError):  # a name that no system takes
                continue
            if is_there and found.is_relative_to(root) and not path.is_absolute():
                return self.folder / found.relative_to(root)
        if ".." in path.parts:
            outside = _plain(where.parent / path)
            if not outside.is_relative_to(root):
                raise DataError(
                    f"{where}: names the image {reference}, which lies outside of {self.folder}; "
                    "images are looked for in the data folder only: copy it there, or give the "
                    "folder that holds both"
                )
        named = self._named.get(path.name, [])
        if len(named) > 1:
            tail = [each for each in named if each.as_posix().endswith(f"/{path}")]
            named = tail if len(tail) == 1 else named
        if len(named) == 1:
            return named[0]
        if named:
            several = " and ".join(str(each.relative_to(self.folder)) for each in named[:2])
            raise DataError(
                f"{where}: names the image {reference}, which could be {several}; give each image "
                "a name of its own"
            )
        raise DataError(
            f"{where}: names the image {reference}, which is not in {self.folder}; put the images "
            "into this folder, or into one inside it"
        )

    def has(self, name: str) -> bool:
        """Say whether there is an image of this name, in whatever folder."""
        return name in self._named

    def find_stem(self, stem: str, where: Path, *near: Path) -> Path:
        """Return the image of a name before the dot.

        Args:
            stem: The name.
            where: The mask or annotation file of it; other masks are no images.
            near: Folders in which it is looked for first.

        Raises:
            DataError: There is none, or several.
        """
        found = self._stems.get(stem, [])
        if where.suffix.lower() in SUFFIXES:
            found = [path for path in found if path.parent != where.parent]
        close = [path for path in found if path.parent in near]
        found = close or found
        if len(found) == 1:
            return found[0]
        if found:
            several = " and ".join(str(each.relative_to(self.folder)) for each in found[:2])
            raise DataError(
                f"{where}: {several} could both be its image; give each image a name of its own"
            )
        raise DataError(
            f"{where}: there is no image {stem}.* in {self.folder}; image and annotation must have "
            "the same name before the dot"
        )

    @cached_property
    def _stems(self) -> Mapping[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for path in self.files():
            found[path.stem].append(path)
        return found

    def files(self) -> list[Path]:
        """Return all image files."""
        return [path for files in self._named.values() for path in files]


def _plain(path: Path) -> Path:
    """Return a path without ``..``; links are kept, since images may lie on another disk."""
    return Path(os.path.normpath(path.absolute()))


def read_text(path: Path) -> str:
    """Read an annotation file as text, in UTF-8 or with the mark of UTF-16.

    Raises:
        DataError: It cannot be read, is too large, or is no text.
    """
    content = read_whole(path)
    is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is no text in UTF-8 ({error}); export it again") from error


def ends_of(path: Path) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file, by which its kind is told."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, file.seek(0, 2) - TAIL))
            return head, file.read()
    except OSError:
        return b"", b""


def read_whole(path: Path) -> bytes:
    """Read an annotation file.

    Raises:
        DataError: It cannot be read, or is too large.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path}: {size / 2**30:.1f} GB of annotations in one file; at most "
                f"{MOST_BYTES / 2**30:.0f} GB are read: divide it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a JSON file.

    Raises:
        DataError: It cannot be read, or is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: this is no JSON, or only a part of it ({error}); export it again"
        ) from error


def get(record: object, key: str, kind: type[Kind] | tuple[type[Kind], ...], where: object) -> Kind:
    """Return an entry of a JSON object.

    Args:
        record: The object.
        key: The entry's name.
        kind: What it has to be.
        where: The file, or the place in it, for the message.

    Raises:
        DataError: The record is no object, lacks the entry, or holds something else there.
    """
    found = record.get(key) if isinstance(record, dict) else None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_WORDS.get(each, each.__name__) for each in kinds)
        shown = _WORDS.get(type(found), "nothing") if found is not None else "nothing"
        raise DataError(f"{where}: wanted {wanted} as '{key}', found {shown}")
    return found


_WORDS: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def names_of(items: Iterable[object]) -> str:
    """Name the first few of several things, and say how many there are."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def split_of(words: Sequence[str]) -> str | None:
    """Return the split that one of some words names, such as a folder's or the stem of a file."""
    plain = [word.lower() for word in words]
    found = [split for split, names in PART_NAMES.items() if any(name in plain for name in names)]
    return found[0] if len(found) == 1 else None
