"""The survey of a source: every mask read once, every image's header, and what was decided.

How images are read, their channels and depth, is decided once for a whole data set: a single image
does not tell what of its range another one uses.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from notan.data.samples import FileSource, Labels, Pair, Sample, Source, require_same_size
from notan.errors import DataError
from notan.io.headers import Contents, read_contents
from notan.io.images import (
    FULL_DEPTH,
    RGB_CHANNELS,
    Held,
    ImageReading,
    is_full_scale,
    other_channels,
    read_held,
)
from notan.io.masks import CHOSEN
from notan.io.packed import stamp_of as stamp_of
from notan.modelfile.postprocess import label_components

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from notan.config import Data
    from notan.types import Mask, Size

OBJECT_FRACTION = 0.05
"""Of the largest component: what is smaller is a speck, or a part that something hides."""

MOST_LOOKED_AT = 100

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 4
"""That read files at once; decoding leaves Python's lock, more would wait for the disk."""

MOST_REMEMBERED = 50_000
"""Files of which is known what is in them, a kilobyte each: nothing is read twice for a split."""

SILENT_ENCODINGS = ("empty", "full")
"""Readings that fit every other one, since such a mask holds a single value."""

USUAL_ENCODINGS = frozenset({"0/1", "0/255", "0/65535"})
"""Readings of the kind 0/k that may stand side by side."""


@dataclass(frozen=True)
class Survey:
    """What reading every mask and every image's header of a source showed.

    Attributes:
        encodings: How many masks were read by each encoding, such as ``{"0/255": 92}``.
        turned: How many images are turned by their EXIF orientation.
        images: What each image file holds.
    """

    encodings: Mapping[str, int]
    turned: int
    images: tuple[ImageValues, ...]

    def lines(self, split: str, channels: int = RGB_CHANNELS) -> Iterator[str]:
        """Say how masks and images were read, a line for each thing that was decided.

        Args:
            split: Which part of the data it is, in words.
            channels: How many are taken from the images.
        """
        choices = Counter(
            choice for each in self.images for choice in each.contents.choices_for(channels)
        )
        readings = ", ".join(f"{encoding} ({count})" for encoding, count in self.encodings.items())
        yield f"{split} masks read as: {readings}"
        for choice, count in choices.items():
            yield f"{split} images: {choice} ({count})"
        if self.turned:
            yield (
                f"{split} images: turned by their EXIF orientation ({self.turned}), their masks as "
                "stored; if the masks were drawn on unturned images, add "
                "--exif-orientation ignore"
            )


def survey(source: FileSource) -> Survey:
    """Read every mask of a source once, and every image's header.

    A mask that cannot be read, or can be read in two ways, ends a run in its first seconds instead
    of in its third hour. What is decided for an image is said.

    Args:
        source: Pairs of files; images are decoded only where they have more than 8 bits, to see
            how many of these are in use.

    Raises:
        DataError: A file is unreadable or ambiguous, or a pair differs in size, or two masks
            mean different values by foreground, or no mask holds what the owner calls foreground.
    """

    def read(pair: Pair) -> tuple[str, bool, ImageValues]:
        mask = survey_mask(pair.mask, source.read_labels)
        image = look_into_channels(pair.files, upright=source.images.upright)
        require_same_size(pair, image.contents.size, mask.size)
        return mask.encoding, mask.foreground > 0, image

    found = in_threads(read, source.pairs, "reading masks")
    encodings = [encoding for encoding, *_ in found]
    odd = odd_encodings(encodings)
    for pair, encoding in zip(source.pairs, encodings, strict=True):
        if encoding in odd:
            others = sorted({e for e in encodings if e not in (*SILENT_ENCODINGS, encoding)})
            raise DataError(
                f"{pair.mask}: its values are {encoding}, other masks of the folder have "
                f"{', '.join(others)}; foreground must be one value throughout (more classes than "
                "two?)"
            )
    if found and encodings[0].startswith(CHOSEN) and not any(any_true for _, any_true, *_ in found):
        raise DataError(
            f"{source.pairs[0].mask.parent}: none of {len(found)} masks holds {encodings[0]}, so "
            "all would be empty; look up what they hold with: notan check"
        )
    images = tuple(image for *_, image in found)
    turned = sum(each.contents.orientation > 1 and source.images.upright for each in images)
    return Survey(Counter(encodings), turned, images)


class ImageValues(NamedTuple):
    """What is known of an image file.

    Attributes:
        path: The file.
        contents: What its header says.
        held: Between what its values lie; None where they have 8 bits.
    """

    path: Path
    contents: Contents
    held: Held | None


def look_into(path: Path, *, upright: bool = True) -> ImageValues:
    """Return what is known of an image file; it is read only if it was not, or has changed since.

    Raises:
        DataError: It cannot be read, or holds NaN.
    """
    return _looked_into(path, stamp_of(path), upright=upright)


def look_into_channels(paths: Sequence[Path], *, upright: bool = True) -> ImageValues:
    """Return what is known of an image whose channels lie in a file each.

    Args:
        paths: As for ``notan.io.images.read_channels``.
        upright: As for ``look_into``.

    Raises:
        DataError: As for ``look_into``; or a file holds several channels, or channels hold
            different types of numbers.
    """
    files = [look_into(path, upright=upright) for path in paths]
    if len(files) == 1:
        return files[0]
    for each in files:
        if 1 not in each.contents.channels:
            raise other_channels(str(each.path), each.contents.channels[0], 1)
    held = [each.held or EIGHT_BITS for each in files]
    if any(each.floats != held[0].floats for each in held):
        raise _no_common_scale(files[0].path, files[1].path, "another type of numbers")
    whole = Held(
        held[0].floats,
        tuple(each.lows[0] for each in held),
        tuple(each.highs[0] for each in held),
        tuple(each.usual[0] for each in held),
    )
    deep = any(each.held for each in files)
    contents = files[0].contents._replace(channels=(len(files),), deep=deep)
    return ImageValues(files[0].path, contents, whole if deep else None)


EIGHT_BITS = Held(floats=False, lows=(0.0,), highs=(255.0,), usual=((0.0, 255.0),))


def choose_reading(data: Data, images: Sequence[ImageValues]) -> ImageReading:
    """Decide how the image files of a data set are read.

    Args:
        data: What the owner says of it.
        images: All that the model will learn from or be chosen on.

    Raises:
        DataError: They have different numbers of channels, or another one than the owner says, or
            values that no common scale fits; the message names a file.
    """
    channels = _choose_channels(data.channels, images)
    held = [(each.path, each.held) for each in images if each.held]
    integers = [(path, each) for path, each in held if not each.floats]
    floats = [(path, each) for path, each in held if each.floats]
    is_rgb = channels == RGB_CHANNELS
    if integers and floats and not is_rgb:
        raise _no_common_scale(floats[0][0], integers[0][0], "integers of more than 8 bits")
    peak = max((max(each.highs[:RGB_CHANNELS]) for _, each in integers), default=0)
    ranges = _ranges([each for _, each in (floats or integers)], channels)
    if is_rgb and not floats:
        ranges = ()
    elif data.white and not floats and integers:
        ranges = ((0.0, float(data.white)),) * channels
    small = next((path for path, each in floats if 0 < max(each.highs) <= 1), None)
    if is_rgb and small and (0, 255) in ranges:
        raise DataError(
            f"{small}: its floats lie within 0..1, and those of other images of the data set "
            "within 0..255; bring them to one scale, or save all as 8-bit PNG"
        )
    if not all(map(is_full_scale, ranges)):
        scaled = {path for path, _ in (floats or integers)}
        other = next((each.path for each in images if each.path not in scaled), None)
        if other:
            raise _no_common_scale(next(iter(scaled)), other, "8 or 16 bits")
    return ImageReading(
        white=data.white or white_of(int(peak)),
        upright=data.exif_orientation == "apply",
        channels=channels,
        ranges=ranges,
        floats=bool(ranges and floats),
    )


def read_as_a_whole(source: FileSource, data: Data) -> FileSource:
    """Return a source whose images are read as they as a whole tell; masks are left alone.

    Raises:
        DataError: As for ``look_into`` and ``choose_reading``.
    """

    def look(pair: Pair) -> ImageValues:
        return look_into_channels(pair.files, upright=data.exif_orientation == "apply")

    images = in_threads(look, source.pairs, "reading images")
    return source.with_images(choose_reading(data, images))


def _choose_channels(wanted: int | None, images: Sequence[ImageValues]) -> int:
    stated = [each.contents.channels for each in images]
    if wanted is None:
        numbers = {each[0] for each in stated}
        if numbers <= {1, RGB_CHANNELS} or (
            len(numbers) > 1 and all(RGB_CHANNELS in each for each in stated)
        ):
            return RGB_CHANNELS
        if len(numbers) > 1:
            most = Counter(each[0] for each in stated).most_common(1)[0][0]
            odd, usual = (
                next(each for each in images if (each.contents.channels[0] == most) is same)
                for same in (False, True)
            )
            raise DataError(
                f"{odd.path}: has {odd.contents.channels[0]} channels, {usual.path.name} and "
                f"others have {most}; the images of a data set must have one number: leave out "
                "those that do not, or say which with data.channels"
            )
        return numbers.pop()
    for each in images:
        if wanted not in each.contents.channels:
            counts = " or ".join(map(str, each.contents.channels))
            raise DataError(
                f"{each.path}: can be read as {counts} channels; data.channels = {wanted} was "
                "asked for; convert it, leave it out, or set another number"
            )
    return wanted


def _ranges(held: Sequence[Held], channels: int) -> tuple[tuple[float, float], ...]:
    """Return what becomes 0 and 255 of each channel; the same for all of three colours."""
    if not held:
        return ()
    if channels == RGB_CHANNELS:
        places: list[Sequence[int]] = [range(RGB_CHANNELS)] * channels
    else:
        places = [[number] for number in range(channels)]
    return tuple(_range(held, place, is_rgb=channels == RGB_CHANNELS) for place in places)


def _range(held: Sequence[Held], places: Sequence[int], *, is_rgb: bool) -> tuple[float, float]:
    """Return the scale that values are on, or else between what nearly all of them lie."""
    lows = [low for each in held for low in _at(each.lows, places)]
    highs = [high for each in held for high in _at(each.highs, places)]
    tops = (1, 255) if held[0].floats else [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    top = next((float(top) for top in tops if max(highs) <= top), None)
    if min(lows) >= 0 and top and (is_rgb or max(highs) > LEAST_OF_SCALE * top):
        return 0.0, top
    usual = [values for each in held for values in _at(each.usual, places)]
    low, high = min(low for low, _ in usual), max(high for _, high in usual)
    return (low, high) if high > low else (low, low + 1)


def _at(values: Sequence[Item], places: Sequence[int]) -> list[Item]:
    return [values[place] for place in places if place < len(values)]


LEAST_OF_SCALE = 0.25
"""Of its scale, what channels must reach to be read on it: 64 of 256 grey levels."""


def _no_common_scale(path: Path, other: Path, kind: str) -> DataError:
    return DataError(
        f"{other}: holds {kind}, and {path.name} values that fit no common scale with them; save "
        "the images of a data set as one type of numbers"
    )


def reading_lines(reading: ImageReading, images: Sequence[ImageValues]) -> Iterator[str]:
    """Say how many channels are taken and how values are scaled, where that is not as usual."""
    if reading.channels != RGB_CHANNELS:
        yield (
            f"images of {reading.channels} channel{'s' if reading.channels > 1 else ''}: the "
            "network takes as many (data.channels)"
        )
    integers = [each.held for each in images if each.held and not each.held.floats]
    if integers and reading.channels == RGB_CHANNELS:
        peak = max(max(each.highs[:RGB_CHANNELS]) for each in integers)
        yield f"16-bit images reach {peak:.0f}: {reading.white} is read as white (data.white)"
    if reading.ranges:
        ranges = [f"{low:g} to {high:g}" for low, high in reading.ranges]
        said = ranges[0] if len({*ranges}) == 1 else f"{', '.join(ranges)} of each channel"
        beyond = "" if all(map(is_full_scale, reading.ranges)) else "; what lies beyond is cut off"
        kind = "floats" if reading.floats else "integers of more than 8 bits"
        yield f"{kind}: {said} become 256 levels{beyond}"


def require_readable(source: Source) -> None:
    """Read every image and mask of a source once.

    Raises:
        DataError: One cannot be read.
    """

    def read(index: int) -> None:
        source[index]

    if isinstance(source, FileSource):
        in_threads(read, range(len(source)), "reading all images once")
        return
    for index in range(len(source)):  # others may not be read by several threads
        read(index)


def white_of(peak: int) -> int:
    """Return the value that is white in a data set: the largest of as many bits as it uses."""
    return next((2**bits - 1 for bits in (8, 10, 12, 14) if 0 < peak < 2**bits), FULL_DEPTH)


MOST_MEASURED = 1000
"""Training images whose statistics are taken, spread over a larger data set."""


def measure_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels of images, 0..1.

    Args:
        source: The training images; each is decoded once, of many about a thousand.

    Raises:
        DataError: An image cannot be read.
    """
    step = max(1, len(source) // MOST_MEASURED)

    def sums(index: int) -> npt.NDArray[np.float64]:
        image = source[index].image
        levels = image.reshape(-1, image.shape[2]).astype(np.float64) / 255
        return np.stack([np.full(levels.shape[1], len(levels)), levels.sum(0), (levels**2).sum(0)])

    places = range(0, len(source), step)
    count, total, squares = np.sum(in_threads(sums, places, "measuring channels"), axis=0)
    mean = total / count
    # a channel of one value tells nothing; a level is the least that its deviation may be
    std = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 1 / 255)
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())


class MaskSurvey(NamedTuple):
    """What is kept of a mask.

    Attributes:
        encoding: How it was read.
        size: (height, width).
        foreground: The share of it that is foreground, 0..1, what is ignored left aside.
        has_several: Whether it holds several objects.
    """

    encoding: str
    size: Size
    foreground: float
    has_several: bool


_READERS: dict[str, Callable[[Path], Labels]] = {}
"""Those whose readings are remembered, by their representation."""


def survey_mask(path: Path, read_labels: Callable[[Path], Labels]) -> MaskSurvey:
    """Return what is known of a mask; it is read only if it was not, or has changed since."""
    # partials of the same function and settings are different objects
    reader = _READERS.setdefault(repr(read_labels), read_labels)
    return _surveyed(path, stamp_of(path), reader)


@lru_cache(MOST_REMEMBERED)
def _surveyed(
    path: Path, stamp: tuple[int, int] | None, read_labels: Callable[[Path], Labels]
) -> MaskSurvey:
    del stamp
    labels = read_labels(path)
    height, width = labels.mask.shape
    several = holds_several(labels.mask)
    return MaskSurvey(labels.encoding, (height, width), _foreground(labels), several)


def holds_several(mask: Mask) -> bool:
    """Say whether a mask holds several objects: components that are no specks beside the first."""
    _, areas, *_ = label_components(mask, 8)
    return int(np.count_nonzero(areas > OBJECT_FRACTION * areas.max())) > 1


def several_objects_fraction(source: Source) -> float:
    """Return the share of a source's masks that hold several objects, 0..1.

    Of files every mask counts, which the survey has read; of other sources some images are read.

    Raises:
        DataError: A file cannot be read.
    """
    several = _of_masks(
        source, lambda mask: mask.has_several, lambda sample: holds_several(sample.mask)
    )
    return sum(several) / len(several)


def foreground_fraction(source: Source) -> float:
    """Return the foreground's share of a mask, 0..1, the mean over a source's masks.

    Which masks count is as in ``several_objects_fraction``, and so is what is raised.
    """
    shares = _of_masks(source, lambda mask: mask.foreground, _foreground)
    return sum(shares) / len(shares)


def least_foreground(source: Source) -> float | None:
    """Return the foreground's share of the mask that has least of it, those without left aside.

    Which masks count is as in ``several_objects_fraction``, and so is what is raised.

    Returns:
        Above 0, up to 1; None where all masks have foreground, or none has.
    """
    shares = _of_masks(source, lambda mask: mask.foreground, _foreground)
    some = [share for share in shares if share]
    return min(some) if 0 < len(some) < len(shares) else None


def _foreground(labels: Labels | Sample) -> float:
    counted = labels.mask if labels.ignore is None else labels.mask[~labels.ignore]
    return float(counted.mean()) if counted.size else 0.0


def _of_masks(
    source: Source, surveyed: Callable[[MaskSurvey], float], measured: Callable[[Sample], float]
) -> list[float]:
    """Return what a survey knows of each mask, or what is measured of some without one."""
    if isinstance(source, FileSource):
        return [surveyed(survey_mask(pair.mask, source.read_labels)) for pair in source.pairs]
    step = -(-len(source) // MOST_LOOKED_AT)
    return [measured(source[place]) for place in range(0, len(source), step)]


@lru_cache(MOST_REMEMBERED)
def _looked_into(path: Path, stamp: tuple[int, int] | None, *, upright: bool) -> ImageValues:
    del stamp
    contents = read_contents(path, upright=upright)
    return ImageValues(path, contents, read_held(path) if contents.deep else None)


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, *, threads: int = THREADS
) -> list[Result]:
    """Do the same with each of many files, several at once, and show how far it is.

    Args:
        work: Is called for each item; what it raises ends it all.
        items: For example paths.
        what: Names the work on the bar, which shows after a second.
        threads: How many at once.
    """
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(work, items)
        return list(tqdm(results, total=len(items), desc=what, leave=False, delay=1, disable=None))


def odd_encodings(encodings: Iterable[str]) -> frozenset[str]:
    """Return the readings of the kind 0/k whose k disagrees with other masks of one folder.

    Args:
        encodings: How each mask was read, as ``MaskReading`` names it.
    """
    values = {each: each.partition(",")[0] for each in encodings if each.startswith("0/")}
    if len({*values.values()}) < 2:
        return frozenset()
    return frozenset(each for each, value in values.items() if value not in USUAL_ENCODINGS)
