"""Images without masks: which a folder holds, and how a training sees each of them twice."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from notan.data.files import hash_file
from notan.data.folder import loose_images
from notan.data.formats import read_image
from notan.data.padding import join_padded
from notan.data.sample import Sample, short_hash
from notan.data.transforms import augment
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from notan.data.transforms import Transform
    from notan.preprocess import Preprocessor
    from notan.types import Images, Masks, Probabilities, Size

logger = logging.getLogger("notan")

THREADS = 4
SALT = 0x0ABE1
"""Keeps the random numbers of images without masks apart from those of images with masks."""


@dataclass(frozen=True)
class UnlabelledFile:
    """An image without a mask.

    Attributes:
        path: The file.
        file_hash: As ``FileSource.hashes`` makes it.
        image_hash: As ``Source.hashes`` makes it of images that are in no file.
    """

    path: Path
    file_hash: str
    image_hash: str

    def is_among(self, hashes: Collection[str]) -> bool:
        """Say whether it is one of the images that have these hashes."""
        return self.file_hash in hashes or self.image_hash in hashes


class UnlabelledKey(NamedTuple):
    """Which image without a mask, and how often all of them were seen before."""

    turn: int
    number: int


class Unlabelled(NamedTuple):
    """The images without masks of one step, each in two views of the same geometry.

    Attributes:
        names: Their files' names.
        plain: float32, (n, 3, h, w), normalised: what is answered.
        varied: Likewise, in another light and with parts gone: what has to come to that answer.
        inside: float32, (n, 1, h, w), 0 = padding.
        answers: float32, (n, 1, h, w), 0..1: what the plain views were answered with; None: they
            were not yet.
        weight: Of the agreement with them in the loss of the step.
    """

    names: tuple[str, ...]
    plain: Images
    varied: Images
    inside: Masks
    answers: Probabilities | None = None
    weight: float = 0.0


def find_unlabelled(folder: Path) -> list[UnlabelledFile]:
    """Read every image of a folder once, in the order of their names.

    A file that cannot be read is left out, with a warning: in a folder of thousands there often is
    one, and here no mask is lost with it.

    Args:
        folder: Of images, whatever else lies there, or with a folder ``images`` of them.

    Raises:
        DataError: There is no such folder, it holds no images, or none of them can be read.
    """
    paths = _listed(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(_read, paths)
        name = "looking over images without masks"
        results = list(tqdm(work, total=len(paths), desc=name, leave=False, delay=1, disable=None))
    files = [each for each in results if isinstance(each, UnlabelledFile)]
    faults = [each for each in results if isinstance(each, DataError)]
    if not files:
        raise DataError(f"{folder}: none of the {len(paths)} images can be read; {faults[0]}")
    if faults:
        what = "image" if len(faults) == 1 else "images"
        logger.warning("%d %s cannot be read and left out: %s", len(faults), what, faults[0])
    return files


def _listed(folder: Path) -> list[Path]:
    if folder.is_file():
        raise DataError(f"{folder}: this is a file; --unlabelled wants a folder of images")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check --unlabelled")
    return loose_images(folder)


def _read(path: Path) -> UnlabelledFile | DataError:
    try:
        image = read_image(path)
        return UnlabelledFile(path, hash_file(path), short_hash(image.tobytes()))
    except DataError as error:
        return error


def fingerprint_unlabelled(files: Sequence[UnlabelledFile]) -> str:
    """Return a short SHA-256 of the images in their order, wherever they lie."""
    told = "\n".join(file.file_hash for file in files)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class UnlabelledImages(Dataset["Unlabelled | DataError"]):
    """Images without masks as sets of one, in two views; an error is handed on as a value."""

    def __init__(
        self,
        files: Sequence[UnlabelledFile],
        preprocessor: Preprocessor,
        *,
        geometry: Transform[Any],
        light: Sequence[Transform[Any]],
        seed: int,
    ) -> None:
        """Prepare to read.

        Args:
            files: At least one.
            preprocessor: The training's.
            geometry: Drawn once for both views, so that one's answer fits the other.
            light: What the varied view goes through beyond that.
            seed: Decides all of it, with the turn and the number.
        """
        self.files = tuple(files)
        self.preprocessor = preprocessor
        self.geometry = geometry
        self.light = tuple(light)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: UnlabelledKey) -> Unlabelled | DataError:
        """Read one image and make its two views."""
        path = self.files[key.number].path
        rng = np.random.default_rng((self.seed, SALT, *key))
        try:
            image = read_image(path)
        except DataError as error:
            return error
        nothing = np.zeros(image.shape[:2], bool)
        plain = augment(Sample(path.name, image, nothing), (self.geometry,), rng)
        varied = augment(plain, self.light, rng)
        inside = self.preprocessor.mask(np.ones(plain.size, bool)).astype(np.float32)
        return Unlabelled(
            (path.name,),
            torch.from_numpy(self.preprocessor(plain.image)[0])[None],
            torch.from_numpy(self.preprocessor(varied.image)[0])[None],
            torch.from_numpy(inside)[None, None],
        )

    def keys(self, step: int, size: int) -> list[UnlabelledKey]:
        """Return which images a step sees: all in a new order, then all again in another.

        Args:
            step: Batches since the start of the run.
            size: Images in each.
        """
        count = len(self.files)
        size = min(size, count)
        places = range(step * size, (step + 1) * size)
        return [
            UnlabelledKey(place // count, _order(self.seed, place // count, count)[place % count])
            for place in places
        ]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> tuple[int, ...]:
    order = np.random.default_rng((seed, SALT, turn)).permutation(count)
    return tuple(int(index) for index in order)


def join_unlabelled(items: Sequence[Unlabelled], size: Size) -> Unlabelled:
    """Put the images of a step together, padded to a (height, width)."""
    return Unlabelled(
        tuple(name for item in items for name in item.names),
        join_padded([item.plain for item in items], size, "edge"),
        join_padded([item.varied for item in items], size, "edge"),
        join_padded([item.inside for item in items], size, "zero"),
    )
