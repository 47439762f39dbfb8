"""Look over files before a long run: every mask is read once, every image's size compared.

A mask that cannot be read, or can be read in two ways, ends the run in its first seconds instead
of in its third hour.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tqdm import tqdm

from notan.data.files import require_same_size
from notan.data.formats import read_size
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from notan.data.files import FileSource, Pair

THREADS = 4
SILENT_ENCODINGS = ("empty", "full")
"""Readings that fit every other one, since such a mask holds a single value."""

USUAL_ENCODINGS = frozenset({"0/1", "0/255", "0/65535"})
"""Readings of the kind 0/k that may stand side by side."""


def look_over(source: FileSource) -> Mapping[str, int]:
    """Read every mask of a source and say how often each encoding was found.

    Args:
        source: Pairs of files; images are opened for their size only.

    Returns:
        How many masks were read by each encoding, such as ``{"0/255": 92}``.

    Raises:
        DataError: A file is unreadable or ambiguous, or a pair differs in size, or two masks
            mean different values by foreground.
    """

    def encoding_of(pair: Pair) -> str:
        labels = source.read_labels(pair.mask)
        require_same_size(pair, read_size(pair.image), labels.mask.shape)
        return labels.encoding

    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(encoding_of, source.pairs)
        bar = tqdm(
            work, total=len(source), desc="looking over masks", leave=False, delay=1, disable=None
        )
        encodings = list(bar)
    _require_agreement(source, encodings)
    return Counter(encodings)


def odd_encodings(encodings: Iterable[str]) -> frozenset[str]:
    """Return the readings of the kind 0/k whose k disagrees with other masks of one folder.

    Args:
        encodings: How each mask was read, as ``MaskReading`` names it.
    """
    plain = {encoding for encoding in encodings if encoding.startswith("0/")}
    return frozenset(plain - USUAL_ENCODINGS) if len(plain) > 1 else frozenset()


def _require_agreement(source: FileSource, encodings: list[str]) -> None:
    """Refuse masks whose single foreground values differ: those are more than two classes."""
    odd = odd_encodings(encodings)
    for pair, encoding in zip(source.pairs, encodings, strict=True):
        if encoding in odd:
            others = sorted({e for e in encodings if e not in (*SILENT_ENCODINGS, encoding)})
            raise DataError(
                f"{pair.mask}: its values are {encoding}, other masks of the folder have "
                f"{', '.join(others)}; foreground must be one value throughout (more classes than "
                "two?)"
            )
