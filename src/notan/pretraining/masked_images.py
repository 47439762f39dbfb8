"""Images without masks, of which patches are hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from notan.config import Data
from notan.data.batches import Batch, SampleDataset, find_unlabelled
from notan.data.folders import holds_masks, open_split
from notan.data.pets import looks_like_pets
from notan.data.samples import without_masks
from notan.data.survey import read_as_a_whole
from notan.errors import ConfigError, DataError, NotanError
from notan.io.images import RGB_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.config import Pretrain
    from notan.data.batches import Key
    from notan.data.samples import FileSource, Source
    from notan.data.transforms import Transform
    from notan.modelfile.preprocess import Preprocessor
    from notan.types import Mask, Size

HIDING = 1
"""Keeps the random numbers that hide patches apart from those that crop."""


def find_images(settings: Pretrain) -> tuple[FileSource, str]:
    """Return the images to learn from, and which they are in words.

    Of a data folder it is the training split, the very one that ``notan train`` takes with the same
    seed: images that will choose or judge a model must not shape its encoder. Of a mere folder of
    images, every file is read once, and those that cannot be are left out with a warning.

    Raises:
        ConfigError: No folder was given.
        DataError: It is missing, holds no images, or mixes in test images.
    """
    folder = _existing(settings.path)
    if holds_masks(folder):
        data = Data(path=folder, split_seed=settings.split_seed)
        source = open_split(data, "train", seed=settings.seed)
        words = "its training split; the images that validate and test are left out"
        return _as_a_whole([pair.image for pair in source.pairs], folder), words
    if folder.name == "images" and looks_like_pets(folder.absolute().parent):
        raise DataError(
            f"{folder}: holds the test images too; give {folder.parent}, whose training split "
            "alone is taken"
        )
    files = [file.path for file in find_unlabelled(folder)]
    return _as_a_whole(files, folder), "every image in it"


def _as_a_whole(paths: Sequence[Path], folder: Path) -> FileSource:
    """Return images as a source that reads them as all of them together tell.

    A file that is no image shall not be found after minutes.

    Raises:
        DataError: One is none, or they have other channels than grey or colours.
    """
    source = read_as_a_whole(without_masks(paths), Data())
    if source.images.channels != RGB_CHANNELS:
        raise DataError(
            f"{folder}: the images have {source.images.channels} channels; an encoder learns "
            "without masks from grey or RGB images only; train it with masks: notan train"
        )
    return source


def _existing(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no images were given; name their folder with --data-path FOLDER")
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; check --data-path")
    if not path.is_dir():
        raise DataError(f"{path}: this is a file; --data-path wants the folder of images")
    return path


class MaskedImages(SampleDataset):
    """Images as batches of one, of which patches are hidden.

    The batch's images are what is seen, its targets the whole image, (n, 3, h, w) likewise
    normalised, and its valid pixels those that are hidden.
    """

    def __init__(
        self,
        source: Source,
        preprocessor: Preprocessor,
        settings: Pretrain,
        *,
        transforms: Sequence[Transform[Any]] = (),
    ) -> None:
        super().__init__(source, preprocessor, transforms=transforms, seed=settings.seed)
        self.patch = settings.patch
        self.hidden_share = settings.hidden_share

    def __getitem__(self, key: Key) -> Batch | NotanError:
        """Read, crop and normalise one image, and hide patches of it."""
        batch = super().__getitem__(key)
        if isinstance(batch, NotanError):
            return batch
        rng = np.random.default_rng((self.seed, *key, HIDING))
        height, width = batch.images.shape[2:]
        hidden = draw_hidden(rng, (height, width), patch=self.patch, share=self.hidden_share)
        counted = torch.from_numpy(hidden.astype(np.float32)) * batch.valid
        seen = batch.images * (1 - torch.from_numpy(hidden.astype(np.float32)))
        return batch._replace(images=seen, targets=batch.images, valid=counted)


def draw_hidden(rng: np.random.Generator, size: Size, *, patch: int, share: float) -> Mask:
    """Draw which squares of a grid are hidden: that share of them, at least one, never all.

    What is hidden is filled with the mean colour, which is 0 after normalising.

    Source: Xie et al. 2022, SimMIM, arXiv:2111.09886, section 3.2; there a learned token stands in
        the hidden places, which a convolutional encoder has no place for.

    Args:
        rng: Where the randomness comes from.
        size: (height, width) in pixels.
        patch: Side of a square; the last row and column are cut where they do not fit.
        share: 0..1.

    Returns:
        bool, (height, width), True = hidden.
    """
    rows, columns = (-(-side // patch) for side in size)
    count = min(max(1, round(share * rows * columns)), rows * columns - 1)
    grid = np.zeros(rows * columns, bool)
    grid[rng.permutation(grid.size)[:count]] = True
    squares = grid.reshape(rows, columns).repeat(patch, axis=0).repeat(patch, axis=1)
    return squares[: size[0], : size[1]]
