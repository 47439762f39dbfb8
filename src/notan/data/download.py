"""Data sets from their publishers: fetched, checked, and unpacked safely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.io.download import (
    Archive,
    Checksum,
    Place,
    checked_address,
    fetch,
    is_unpacked,
    refuse_foreign,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["OXFORD_URL", "PETS", "Archive", "download_archives", "download_pets"]

OXFORD_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

PETS: tuple[Archive, ...] = (
    Archive("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Archive("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
)


def download_pets(out: Path, *, base_url: str = OXFORD_URL, progress: bool = True) -> Path:
    """Fetch the Oxford-IIIT Pet images and masks (about 0.8 GB) from their own site.

    Calling it again continues a broken download, and does nothing after a complete one.

    Args:
        out: The folder to put ``oxford-iiit-pet/`` into.
        base_url: Where the two archives lie, such as a mirror in one's own network.
        progress: Show a bar on stderr.

    Returns:
        The folder that holds ``images/`` and ``annotations/``.

    Raises:
        ConfigError: The address is not an http or https one.
        DataError: The network fails for good, or what came is not what was published.
        StorageError: The disk is full, or the place cannot be written.

    Source:
        Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012,
        doi:10.1109/CVPR.2012.6248092. Images under CC BY-SA 4.0.
    """
    return download_archives(PETS, out / "oxford-iiit-pet", base_url=base_url, progress=progress)


def download_archives(
    archives: Sequence[Archive], folder: Path, *, base_url: str, progress: bool = True
) -> Path:
    """Fetch archives, check them against their checksums and unpack them into one folder.

    An archive that is on the disk already is checked and not fetched; one that was unpacked
    already is not even that. An archive is removed after unpacking.

    Args:
        archives: What to fetch, in this order.
        folder: Where their contents go; made if missing.
        base_url: The http or https address that all of them lie under.
        progress: Show a bar on stderr.

    Returns:
        The folder.

    Raises:
        ConfigError: The address is not an http or https one.
        DataError: The network fails for good, a checksum is wrong, or an archive is unsafe.
        StorageError: The disk is full, or the place cannot be written.
    """
    base = checked_address(base_url)
    missing = [archive for archive in archives if not is_unpacked(archive, folder)]
    for archive in missing:
        refuse_foreign(archive, folder)
    for archive in missing:
        unpack(archive, _fetch(archive, folder, base, progress=progress), folder)
    return folder


def _fetch(archive: Archive, folder: Path, base: str, *, progress: bool) -> Path:
    """Return the path of a verified archive, fetched unless it lies there already."""
    whole, checksum = folder / archive.name, Checksum("md5", archive.md5)
    if not whole.exists():
        return fetch(base + archive.name, Place(whole, unpacked=True), checksum, progress=progress)
    found = checksum.of(whole)
    if found != archive.md5:
        raise DataError(
            f"{whole}: its MD5 checksum is {found}, wanted {archive.md5}; "
            "delete it and run the same command again"
        )
    return whole
