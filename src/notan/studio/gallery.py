"""The images of a data folder as the studio lists them, each by an opaque id, with or without mask.

A request names an image by its id and by nothing else: no path, no name ever comes from outside.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from notan.data.annotations.labels import mask_labels
from notan.data.folders import find_layout, holds_masks, open_divided
from notan.data.layouts import find_parts, image_files
from notan.errors import DataError
from notan.io.digest import sha256
from notan.io.headers import read_size
from notan.io.packed import find_pack
from notan.io.write import as_written, is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.config import Data
    from notan.data.samples import Labels

ID_DIGITS = 16
"""Of hexadecimal: two of a million images share an id by 1 in 30 million."""

MOST_PIXELS = 40_000_000
"""Of an image that the page can hold; a larger one is listed and not opened."""


@dataclass(frozen=True)
class ListedImage:
    """An image of the gallery.

    Attributes:
        id: What a request names it by.
        name: What a person calls it, and files that are made of it; each is there once.
        path: Its file.
        mask: Its mask in the data, or the annotations that hold it; None: it has none.
        read_labels: What reads the mask.
        rule: How it reads it, in words that differ where masks may.
    """

    id: str
    name: str
    path: Path
    mask: Path | None = None
    read_labels: Callable[[Path], Labels] | None = None
    rule: str = ""

    def require_small_enough(self, *, upright: bool) -> None:
        """Refuse an image that the page cannot hold, by its header alone.

        Args:
            upright: Whether it is turned by its EXIF orientation.

        Raises:
            DataError: It has too many pixels, or cannot be read.
        """
        height, width = read_size(self.path, upright=upright)
        if height * width > MOST_PIXELS:
            raise DataError(
                f"{self.name}: {height}x{width} pixels (height x width) are more than the page "
                f"holds; at most {MOST_PIXELS:,}: cut it into pieces"
            )

    def labels(self) -> Labels | None:
        """Read the mask that the data have of it.

        Raises:
            DataError: It is unreadable or ambiguous.
        """
        if self.mask is None or self.read_labels is None:
            return None
        return self.read_labels(self.mask)


class Gallery:
    """The images of a data folder, in the order of their names."""

    def __init__(self, images: Sequence[ListedImage], passed_over: str = "") -> None:
        self.images = tuple(images)
        self.passed_over = passed_over
        self._by_id = {image.id: image for image in images}
        self._taken = {image.name.casefold() for image in images}

    def add(self, image: ListedImage) -> ListedImage:
        """List one more image, by a name of its own where its own is taken; return it as listed."""
        if image.name.casefold() in self._taken:
            image = replace(image, name=f"{image.name}-{image.id[:6]}")
        self._by_id[image.id] = image
        self._taken.add(image.name.casefold())
        self.images += (image,)
        return image

    def __len__(self) -> int:
        return len(self.images)

    def find(self, image_id: str) -> ListedImage | None:
        """Return the image of an id; None: there is no such image."""
        return self._by_id.get(image_id)

    @classmethod
    def open(cls, data: Data) -> Gallery:
        """List the images of a data folder; masks may be there for all, some or none.

        Raises:
            ConfigError: No folder was given.
            DataError: It is missing, holds no images, or its annotations are faulty.
        """
        path = data.path
        if path is None or not path.exists():
            raise DataError(f"{path}: there is no such folder; give one with images")
        found = sorted(_listed(data, path), key=lambda image: (image.name, str(image.path)))
        rule = data.model_dump_json(include={"masks", "trimap_border", "exif_orientation"})
        kept = [replace(image, rule=rule) for image in found if is_text(image.path)]
        if not kept:
            raise DataError(
                f"{path}: no images here; wanted image files, in the folder itself or in images/, "
                "with or without masks/ beside them"
            )
        lost = len(found) - len(kept)
        said = f"{lost} whose names are no text; rename them" if lost else ""
        return cls(list(_named_once(kept)), said)


def _listed(data: Data, path: Path) -> Iterator[ListedImage]:
    root = path if path.is_dir() else path.parent
    make = partial(_image, root)
    if path.is_dir() and not holds_masks(path) and not data.masks.folder:
        for place in _image_folders(path):
            yield from map(make, image_files(place))
        return
    if find_layout(data) != "folder" or find_pack(path):
        for source, _ in open_divided(data):
            for pair in source.pairs:
                yield make(pair.image, pair.mask, source.read_labels)
        return
    read = partial(mask_labels, rule=data.masks)
    for part in find_parts(path, data.masks.folder):
        if not part.images.is_dir():
            continue
        matching = part.matching
        for image in part.files[0]:
            mask = matching.partners.get(image)
            yield make(image, mask, read if mask else None)


def _image_folders(path: Path) -> Iterator[Path]:
    """Give where the images of a folder without masks lie."""
    places = (path, path / "images", *(each.images for each in find_parts(path)))
    seen = set()
    for place in places:
        if place.is_dir() and place not in seen:
            seen.add(place)
            yield place


def _image(
    root: Path,
    path: Path,
    mask: Path | None = None,
    read_labels: Callable[[Path], Labels] | None = None,
) -> ListedImage:
    place = os.path.relpath(path, root).replace(os.sep, "/")
    return ListedImage(
        sha256(os.fsencode(place))[:ID_DIGITS], as_written(path.stem), path, mask, read_labels
    )


def _named_once(images: Sequence[ListedImage]) -> Iterator[ListedImage]:
    """Give images of one name a name each, also where a disk takes upper and lower case alike."""
    same = Counter(image.name.casefold() for image in images)
    for image in images:
        if same[image.name.casefold()] > 1:
            yield replace(image, name=f"{image.name}-{image.id[:6]}")
        else:
            yield image
