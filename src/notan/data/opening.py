"""The images of a training: opened, looked over once, and kept as they are decoded."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from notan.data.folders import find_layout, image_reading, open_split
from notan.data.samples import FileSource
from notan.data.store import keep_decoded
from notan.data.survey import choose_reading, reading_lines, survey
from notan.data.survey import foreground_fraction as foreground_fraction
from notan.data.survey import measure_statistics as measure_statistics
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from notan.config import Data
    from notan.data.samples import ImageReading, Source

logger = logging.getLogger("notan")

OWN = "own source"
"""What a card calls the layout of images that lie in no folder."""


def open_sources(
    data: Data,
    seed: int,
    training: Source | None,
    validation: Source | None,
    names: frozenset[str] | None,
    workers: int,
) -> tuple[Source, Source, str, ImageReading]:
    """Open the images to train and to validate on, and look them over once.

    Args:
        data: Where they are, how they are read, and where they stay once decoded.
        seed: Decides the validation split where the folder has none.
        training: Images of the user's own instead, which are left as they are.
        validation: Likewise; both or neither.
        names: A validation split made earlier, to be kept instead of a new one.
        workers: Data workers that will read them.

    Returns:
        Both, how they lie in a folder, and how image files are read.

    Raises:
        ConfigError: Only one of both was given, or the settings do not fit the images.
        DataError: An image or mask is missing, unreadable or ambiguous.
    """
    if (training is None) != (validation is None):
        raise ConfigError("training and validation images of your own come together or not at all")
    layout, reading = OWN, image_reading(data)
    if training is None or validation is None:
        layout = find_layout(data)
        *parts, reading = _open_and_survey(data, seed, names)
        training, validation = keep_decoded(parts, data.cache, workers=workers)
    for part, images in (("train on", training), ("validate on", validation)):
        if len(images) == 0:
            raise DataError(f"there are no images to {part}")
    if layout == OWN:
        reading = _own_reading(data, training)
    return training, validation, layout, reading


def _own_reading(data: Data, training: Source) -> ImageReading:
    """Return how images of the user's own are read; their channels are counted in the first.

    Raises:
        ConfigError: They are not as many as the settings say.
    """
    reading = training.images if isinstance(training, FileSource) else image_reading(data)
    shape = training[0].image.shape
    channels = shape[2] if len(shape) > 2 else reading.channels
    if data.channels not in (None, channels):
        raise ConfigError(
            f"data.channels = {data.channels}, and the first of your images has {channels}; leave "
            "the setting out, or give images of that many"
        )
    return replace(reading, channels=channels)


PARTS = ("train", "validation")


NO_FOREGROUND = (
    "no validation image has foreground, so that validation cannot judge: a model that finds "
    "nothing scores 1 there, any other 0; give validation images with foreground"
)


def _open_and_survey(
    data: Data, seed: int, names: frozenset[str] | None
) -> tuple[FileSource, FileSource, ImageReading]:
    """Open both parts, read all masks once, and decide how the images are read."""
    parts = {split: open_split(data, split, seed=seed, validation_names=names) for split in PARTS}
    surveys = {split: survey(source) for split, source in parts.items()}
    images = [image for found in surveys.values() for image in found.images]
    reading = choose_reading(data, images)
    for split, found in surveys.items():
        for line in found.lines(split, reading.channels):
            logger.info("%s", line)
    if set(surveys["validation"].encodings) == {"empty"}:
        logger.warning(NO_FOREGROUND)
    for line in reading_lines(reading, images):
        logger.info("%s", line)
    training, validation = (source.with_images(reading) for source in parts.values())
    return training, validation, reading
