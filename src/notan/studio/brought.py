"""Images that people bring into the studio: kept beside the corrections, never among the data.

A file comes whole or not at all. Its name is made safe, its header is asked before a pixel is
decoded, it must decode, and what the gallery has already is passed over.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

from notan.data.layouts import SUFFIXES, image_files
from notan.io.digest import sha256
from notan.io.images import decode_image
from notan.io.write import as_written, is_text, portable_name, storage_errors, write_bytes
from notan.studio.gallery import ID_DIGITS, MOST_PIXELS, ListedImage
from notan.studio.journal import CHOSEN_BY
from notan.web.answers import RefusedError
from notan.web.uploads import upload_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.io.images import ImageReading
    from notan.studio.gallery import Gallery

logger = logging.getLogger("notan")

FOLDER = "brought"
MOST_BYTES = 100_000_000
"""Of one file."""

MOST_FILES, MOST_BYTES_TOGETHER = 20_000, 50_000_000_000


class Brought:
    """The folder of brought images, of the gallery that lists them."""

    def __init__(self, corrections: Path, gallery: Gallery) -> None:
        """List what was brought before.

        Args:
            corrections: The corrections folder.
            gallery: Lists the brought images after the others.

        Raises:
            StorageError: The folder cannot be read.
        """
        self.folder, self.gallery = corrections / FOLDER, gallery
        self._guard = threading.Lock()
        self._count = self._bytes = 0
        with storage_errors(self.folder, chosen_by=CHOSEN_BY):
            files = image_files(self.folder) if self.folder.is_dir() else []
            for path in filter(is_text, files):
                self._note(path)
                gallery.add(_listed(path))

    def tidy(self) -> None:
        """Remove what a killed process left of a file; only the studio of this folder may."""
        with storage_errors(self.folder, chosen_by=CHOSEN_BY):
            for path in self.folder.glob(".*") if self.folder.is_dir() else ():
                path.unlink()

    def take(self, name: str, content: bytes, reading: ImageReading) -> tuple[ListedImage, bool]:
        """Keep an image, unless it is there.

        Args:
            name: What its owner calls the file.
            content: Its bytes.
            reading: How it becomes 8 bits a channel for the model.

        Returns:
            The image, and whether it is new; it is then still to be added to the gallery.

        Raises:
            RefusedError: It is too large, or of no kind that is read, or there are too many.
            DataError: It is no image, damaged, or of channels that the model does not take.
            StorageError: It could not be written.
        """
        path = self.folder / portable_name(name)
        if path.suffix.lower() not in SUFFIXES:
            raise RefusedError(415, "its name does not end like an image's, such as .png or .jpg")
        upload_size(content, MOST_PIXELS)
        with self._guard:
            if (same := next(self._same(content), None)) is not None:
                return same, False
            self._require_room(len(content))
            decode_image(content, path.name, reading)
            path = self._free(path)
            write_bytes(path, content)
            self._note(path)
            image = _listed(path)
            self._by_size[len(content)].append(image)
            return image, True

    def _note(self, path: Path) -> None:
        self._count += 1
        self._bytes += path.stat().st_size

    def _require_room(self, size: int) -> None:
        if self._count >= MOST_FILES or self._bytes + size > MOST_BYTES_TOGETHER:
            raise RefusedError(
                413,
                f"{self._count:,} images of {self._bytes / 1e9:.1f} GB were brought, and at most "
                f"{MOST_FILES:,} of {MOST_BYTES_TOGETHER / 1e9:.0f} GB are kept; put the others "
                "into a folder, and start the studio on it",
            )

    def _free(self, path: Path) -> Path:
        """Return a name that no file has, upper and lower case alike."""
        taken = {each.name.casefold() for each in self.gallery.images}
        stem, number = path.stem, 1
        while path.stem.casefold() in taken or path.exists():
            number += 1
            path = path.with_name(f"{stem}-{number}{path.suffix}")
        return path

    @cached_property
    def _by_size(self) -> dict[int, list[ListedImage]]:
        """The images of the gallery by the size of their files in bytes."""
        found: dict[int, list[ListedImage]] = defaultdict(list)
        for image in self.gallery.images:
            try:
                found[image.path.stat().st_size].append(image)
            except OSError:  # whoever opens it hears of it
                continue
        return found

    def _same(self, content: bytes) -> Iterator[ListedImage]:
        """Give the images whose files hold the same bytes."""
        for image in self._by_size.get(len(content), ()):
            try:
                if image.path.read_bytes() == content:
                    yield image
            except OSError:
                continue


def _listed(path: Path) -> ListedImage:
    number = sha256(f"{FOLDER}\0{path.name}")[:ID_DIGITS]  # no path of the data holds a zero
    return ListedImage(number, as_written(path.stem), path)
