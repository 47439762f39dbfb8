"""The survey of a source: every mask read once, every image's header, and what was decided."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tqdm import tqdm

from notan.data.samples import FileSource, Labels, Pair, require_same_size
from notan.errors import DataError
from notan.io.headers import Contents, read_contents
from notan.io.images import FULL_DEPTH, read_peak
from notan.io.masks import CHOSEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.types import Size

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
        choices: How many images were read by each choice among several readings.
        turned: How many images are turned by their EXIF orientation.
        peak: The largest value in images of 16 bits; 0 where there are none.
    """

    encodings: Mapping[str, int]
    choices: Mapping[str, int]
    turned: int
    peak: int

    def lines(self, split: str) -> Iterator[str]:
        """Say how masks and images were read, a line for each thing that was decided."""
        readings = ", ".join(f"{encoding} ({count})" for encoding, count in self.encodings.items())
        yield f"{split} masks read as: {readings}"
        for choice, count in self.choices.items():
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
        source: Pairs of files; images are decoded only where they have 16 bits, to see how many
            of these are in use.

    Raises:
        DataError: A file is unreadable or ambiguous, or a pair differs in size, or two masks
            mean different values by foreground, or no mask holds what the owner calls foreground.
    """

    def read(pair: Pair) -> tuple[str, bool, Contents, int]:
        mask = survey_mask(pair.mask, source.read_labels)
        contents = read_contents(pair.image, upright=source.images.upright)
        require_same_size(pair, contents.size, mask.size)
        peak = read_peak(pair.image) if contents.deep else 0
        return mask.encoding, mask.has_foreground, contents, peak

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
    return Survey(
        Counter(encodings),
        Counter(choice for _, _, contents, _ in found for choice in contents.choices),
        sum(contents.orientation > 1 and source.images.upright for _, _, contents, _ in found),
        max((peak for *_, peak in found), default=0),
    )


def white_of(peak: int) -> int:
    """Return the value that is white in a data set: the largest of as many bits as it uses."""
    return next((2**bits - 1 for bits in (8, 10, 12, 14) if 0 < peak < 2**bits), FULL_DEPTH)


class MaskSurvey(NamedTuple):
    """What is kept of a mask: how it was read, its (height, width), whether it has foreground."""

    encoding: str
    size: Size
    has_foreground: bool


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
    return MaskSurvey(labels.encoding, (height, width), bool(labels.mask.any()))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does; None where it is missing."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Do the same with each of many files, several at once, and show how far it is.

    Args:
        work: Is called for each item; what it raises ends it all.
        items: For example paths.
        what: Names the work on the bar, which shows after a second.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(work, items)
        return list(tqdm(results, total=len(items), desc=what, leave=False, delay=1, disable=None))


def odd_encodings(encodings: Iterable[str]) -> frozenset[str]:
    """Return the readings of the kind 0/k whose k disagrees with other masks of one folder.

    Args:
        encodings: How each mask was read, as ``MaskReading`` names it.
    """
    plain = {encoding for encoding in encodings if encoding.startswith("0/")}
    return frozenset(plain - USUAL_ENCODINGS) if len(plain) > 1 else frozenset()
