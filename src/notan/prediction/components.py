"""Connected components of a mask that is there band by band.

A component inside one band is settled there. One that reaches a seam gets a number, the numbers
that meet across a seam are joined, and it is settled when all bands have been seen. So only what
lies at seams is kept, and the bands are labelled twice: to measure, and to change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from notan.modelfile.postprocess import label_components

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from notan.modelfile.postprocess import Postprocessing
    from notan.types import Mask

    Keep = Callable[[Iterable[Mask]], Iterable[Mask]]
    Chosen = Callable[[npt.NDArray[np.int64], npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class _Band:
    """The components of one band: labels as OpenCV gives them, 0 is outside.

    Attributes:
        labels: int32, (rows, width).
        areas: Of each label.
        touching: Whether a label touches the image's edge.
        open: Labels that reach the first or the last row, in order.
    """

    labels: npt.NDArray[np.int32]
    areas: npt.NDArray[np.int64]
    touching: npt.NDArray[np.bool_]
    open: npt.NDArray[np.int64]


class Components:
    """The components of one mask; ``measure`` first, then ``select``, on the same bands."""

    def __init__(self, connectivity: Literal[4, 8]) -> None:
        self._connectivity: Literal[4, 8] = connectivity
        self._parents: list[int] = []
        self._places: list[tuple[int, int]] = []
        self._areas: list[int] = []
        self._touching: list[bool] = []
        self._largest = (0, 0, 0)
        """Area of the largest settled component, its band and its label."""

    def measure(self, bands: Iterable[Mask]) -> None:
        """Look over all bands, from the top."""
        above: npt.NDArray[np.int64] | None = None
        for number, (mask, first, last) in enumerate(_with_ends(bands)):
            band = self._label(mask, first=first, last=last)
            numbers = np.full(len(band.areas), -1)
            for label in band.open:
                numbers[label] = len(self._parents)
                self._parents.append(len(self._parents))
                self._places.append((number, int(label)))
                self._areas.append(int(band.areas[label]))
                self._touching.append(bool(band.touching[label]))
            settled = np.where(numbers < 0, band.areas, 0)
            best = int(np.argmax(settled))
            if settled[best] > self._largest[0]:
                self._largest = (int(settled[best]), number, best)
            if above is not None:
                self._join(above, numbers[band.labels[0]])
            above = numbers[band.labels[-1]]
        self._sum_up()

    def select(self, bands: Iterable[Mask], chosen: Chosen) -> Iterator[Mask]:
        """Give back, band by band, the pixels of the components that are chosen.

        Args:
            bands: The same as were measured.
            chosen: From areas, and whether components touch the image's edge, to whether they
                are chosen.
        """
        kept = chosen(np.array(self._areas, np.int64), np.array(self._touching, np.bool_))
        begun = 0
        for mask, first, last in _with_ends(bands):
            band = self._label(mask, first=first, last=last)
            wanted = chosen(band.areas, band.touching)
            wanted[band.open] = kept[begun : begun + len(band.open)]
            wanted[0] = False
            begun += len(band.open)
            yield wanted[band.labels]

    def largest(self, bands: Iterable[Mask], *, least: float) -> Iterator[Mask]:
        """Give back, band by band, the largest component alone, if it has the least area.

        Of components of equal area the first one counts.
        """
        area, band_of, label_of = self._largest
        best = int(np.argmax(self._areas)) if self._areas else None
        across = best is not None and (-self._areas[best], *self._places[best]) < (
            -area,
            band_of,
            label_of,
        )
        root = self._parents[best] if best is not None and across else -1
        enough = max(area, max(self._areas, default=0)) >= least
        begun = 0
        for number, (mask, first, last) in enumerate(_with_ends(bands)):
            band = self._label(mask, first=first, last=last)
            wanted = np.zeros(len(band.areas), np.bool_)
            if across:
                roots = self._parents[begun : begun + len(band.open)]
                wanted[band.open] = np.array(roots, np.int64) == root
            elif area and number == band_of:
                wanted[label_of] = True
            begun += len(band.open)
            yield wanted[band.labels] & enough

    def _label(self, mask: Mask, *, first: bool, last: bool) -> _Band:
        labels, areas, left_or_right, top, bottom = label_components(mask, self._connectivity)
        touching = left_or_right | (top if first else False) | (bottom if last else False)
        reaches = (top & (not first)) | (bottom & (not last))
        reaches[0], touching[0] = False, True
        return _Band(labels, areas, touching, np.flatnonzero(reaches))

    def _join(self, above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> None:
        """Join the numbers that meet at a seam; -1 is outside."""
        shifts = (-1, 0, 1) if self._connectivity == 8 else (0,)
        for shift in shifts:
            left = above[max(0, -shift) : len(above) - max(0, shift)]
            right = below[max(0, shift) : len(below) - max(0, -shift)]
            both = (left >= 0) & (right >= 0)
            for one, other in np.unique(np.stack([left[both], right[both]]), axis=1).T.tolist():
                first, second = sorted((self._root(one), self._root(other)))
                self._parents[second] = first

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _sum_up(self) -> None:
        """Give every number the area and the edges of its whole component."""
        count = len(self._parents)
        self._parents = [self._root(number) for number in range(count)]
        roots = np.array(self._parents, np.int64)
        areas = np.bincount(roots, self._areas, minlength=count).astype(np.int64)
        edges = np.bincount(roots, self._touching, minlength=count) > 0
        self._areas, self._touching = areas[roots].tolist(), edges[roots].tolist()


def postprocess_bands(
    postprocessing: Postprocessing, pixels: int, bands: Iterable[Mask], keep: Keep
) -> Iterable[Mask]:
    """Do what ``Postprocessing.postprocess`` does, on a mask of which only a band is in memory.

    Args:
        postprocessing: Says what is removed and filled.
        pixels: Of the whole image.
        bands: The mask; it can be gone through several times.
        keep: Writes bands to where they can be gone through several times.

    Returns:
        The tidied mask, to be gone through once.
    """
    if postprocessing.keep_largest or postprocessing.min_component_fraction:
        foreground, least = Components(8), postprocessing.min_component_fraction * pixels
        foreground.measure(bands)
        kept = (
            foreground.largest(bands, least=least)
            if postprocessing.keep_largest
            else foreground.select(bands, lambda areas, _: areas >= least)
        )
        if not postprocessing.fill_holes_fraction:
            return kept
        bands = keep(kept)
    if not postprocessing.fill_holes_fraction:
        return bands
    holes, most = Components(4), postprocessing.fill_holes_fraction * pixels
    holes.measure(~band for band in bands)
    filled = holes.select((~band for band in bands), lambda areas, edge: (areas < most) & ~edge)
    return (band | hole for band, hole in zip(bands, filled, strict=True))


def _with_ends(bands: Iterable[Mask]) -> Iterator[tuple[Mask, bool, bool]]:
    """Say of each band whether it is the first and whether it is the last."""
    iterator = iter(bands)
    current, first = next(iterator, None), True
    while current is not None:
        following = next(iterator, None)
        yield current, first, following is None
        current, first = following, False
