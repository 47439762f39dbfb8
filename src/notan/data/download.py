"""The Oxford-IIIT Pet dataset from its publisher: downloaded, checked, and unpacked safely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.io.download import check_url, download_archive

if TYPE_CHECKING:
    from pathlib import Path

OXFORD_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

PETS = {
    "images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
}
"""Archive -> its published hash."""


def download_pets(out: Path, *, base_url: str = OXFORD_URL, progress: bool = True) -> Path:
    """Download the Oxford-IIIT Pet images and masks (about 0.8 GB) from their own site.

    Calling it again fetches only what is missing, and does nothing after a complete download.

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
    base, folder = check_url(base_url), out / "oxford-iiit-pet"
    for name, known_hash in PETS.items():
        download_archive(base + name, folder, known_hash, progress=progress)
    return folder
