"""Which images without masks a training may see, and how: none that it is judged by."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from notan.data.build import has_test, open_split
from notan.data.strong import build_geometry, build_strong
from notan.data.unlabelled import UnlabelledImages, find_unlabelled, fingerprint_unlabelled
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from notan.checkpoint import DataCard
    from notan.config import Run
    from notan.preprocess import Preprocessor

logger = logging.getLogger("notan")


def open_unlabelled(
    run: Run, preprocessor: Preprocessor, card: DataCard
) -> UnlabelledImages | None:
    """Open the images without masks that a run names, less those that it is judged by.

    Left out are copies of validation images, or the best epoch would be chosen on what was
    learned, and of the data's test part, of which no image is decoded: its files are compared.
    Training images stay: Tarvainen and Valpola ask for agreement on all images, with masks and
    without.

    Args:
        run: ``train.unlabelled`` and the weight of the agreement.
        preprocessor: The training's.
        card: The hashes of the images with masks.

    Returns:
        None where the run names none.

    Raises:
        ConfigError: Agreement with their answers weighs nothing.
        DataError: There is no such folder, or no image is left in it.
    """
    folder = run.train.unlabelled
    if folder is None:
        return None
    if run.loss.consistency == 0:
        raise ConfigError(
            f"{folder}: images without masks teach nothing where loss.consistency is 0; raise it"
        )
    found = find_unlabelled(folder)
    left_out = {"test": _test_hashes(run, card), "validation": {*card.validation_hashes}}
    files, counts = found, []
    for part, hashes in left_out.items():
        others = [file for file in files if not file.is_among(hashes)]
        if len(others) < len(files):
            counts.append(f"{len(files) - len(others)} {part}")
        files = others
    what = f"copies of {' and '.join(counts)} images"
    if not files:
        raise DataError(f"{folder}: all {len(found)} images are {what}; give some others")
    if counts:
        logger.info("%s: left out %s", folder, what)
    return UnlabelledImages(
        files,
        preprocessor,
        geometry=build_geometry(run.augment, preprocessor.fit),
        light=build_strong(),
        seed=run.seed,
    )


def _test_hashes(run: Run, card: DataCard) -> set[str]:
    if card.layout == "own source" or not has_test(run.data):
        return set()
    return {*open_split(run.data, "test", seed=run.seed).hashes()}


def with_unlabelled(card: DataCard, images: UnlabelledImages | None) -> DataCard:
    """Write into a card which images without masks were seen."""
    if images is None:
        return card
    return card.model_copy(
        update={
            "unlabelled_images": len(images),
            "unlabelled_fingerprint": fingerprint_unlabelled(images.files),
            "unlabelled_hashes": tuple(file.file_hash for file in images.files),
        }
    )
