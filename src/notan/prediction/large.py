"""One image that does not fit into the memory: predicted and postprocessed band by band.

A first pass predicts. Where the mask depends on the whole image, by a threshold of its own or by
its components, or where probabilities are wanted too, the map goes to a temporary file; later
passes read it. It is kept as float32, so that the mask is the very same that a machine with enough
memory would give.

A component inside one band is settled there. One that reaches a seam gets a number, the numbers
that meet across a seam are joined, and it is settled when all bands have been seen. So only what
lies at seams is kept, and the bands are labelled twice: to measure, and to change them.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from notan.io.write import storage_errors
from notan.modelfile.postprocess import LevelSums, MaskSums, label_components
from notan.prediction.pixels import TILE
from notan.prediction.predictor import LargePrediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Self

    import numpy.typing as npt

    from notan.modelfile.postprocess import Postprocessing
    from notan.prediction.predictor import Predictor
    from notan.prediction.tiles import Pixels
    from notan.types import Mask, Probability

    Integers = npt.NDArray[np.int64]
    Keep = Callable[[Iterable[Mask]], Iterable[Mask]]
    Chosen = Callable[[Integers, npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]

ROWS = TILE
"""Rows of a band. Even, so that OpenCV, which labels in blocks of 2x2 pixels, meets the components
of bands in the order in which it would meet those of the whole image."""


class BandFile:
    """Rows of one image on the disk, without a name, gone with the process.

    Read and written as files are, not mapped into memory, so that the system need not count them
    as the program's own. Going through it gives bands of ``ROWS`` rows from the top, the last one
    shorter; several may do so in turns.
    """

    def __init__(self, folder: Path, width: int, dtype: npt.DTypeLike) -> None:
        """Make an empty file in a folder that has space for the whole image.

        Args:
            folder: Made where it is missing.
            width: Of a row, in pixels.
            dtype: Of a pixel; bool takes a bit.

        Raises:
            StorageError: It could not be made.
        """
        self._place, self._width = folder / "temporary file", width
        self._is_mask = np.dtype(dtype) == np.bool_
        self._stored = np.dtype(np.uint8 if self._is_mask else dtype)
        with storage_errors(self._place):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def extend(self, bands: Iterable[npt.NDArray[Any]]) -> Self:
        """Write the next rows, in bands (rows, width) of any height.

        Raises:
            StorageError: The disk is full.
        """
        for band in bands:
            stored = np.packbits(band, axis=1) if self._is_mask else band
            with storage_errors(self._place):
                self._file.write(np.ascontiguousarray(stored, self._stored).data)
        return self

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        columns = -(-self._width // 8) if self._is_mask else self._width
        for place in itertools.count(0, ROWS * columns * self._stored.itemsize):
            self._file.seek(place)
            content = self._file.read(ROWS * columns * self._stored.itemsize)
            if not content:
                return
            stored = np.frombuffer(content, self._stored).reshape(-1, columns)
            if self._is_mask:
                yield np.unpackbits(stored, axis=1, count=self._width).view(np.bool_)
            else:
                yield stored


@contextlib.contextmanager
def predict_large(
    predictor: Predictor,
    pixels: Pixels,
    folder: Path,
    *,
    with_probability: bool = False,
    batch_size: int = 1,
) -> Iterator[LargePrediction]:
    """Segment an image that is never in memory as a whole.

    Args:
        predictor: The network, its tiling and its postprocessing.
        pixels: The image, of which any part can be read.
        folder: Where temporary files go: 1 bit a pixel, and mostly 32 more.
        with_probability: Keep the probabilities too.
        batch_size: At most so many tiles at once.

    Yields:
        The prediction, whose files are gone afterwards.

    Raises:
        ConfigError: The scale makes a single tile too large.
        DataError: The image is damaged.
        StorageError: The disk is full.
        DivergedError: The network returned NaN or infinity.
    """
    size = pixels.size
    rule = predictor.postprocessing_in_tiles(size)
    sums = MaskSums(rule.min_foreground_fraction)
    with contextlib.ExitStack() as files:

        def keep(bands: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike = np.bool_) -> BandFile:
            """Put bands where they can be gone through again."""
            return files.enter_context(BandFile(folder, size[1], dtype)).extend(bands)

        maps: Iterable[Probability] = predictor.predict_bands(pixels, batch_size=batch_size)
        whole_image = rule.threshold_rule == "dice" or rule.looks_at_other_pixels
        if whole_image or with_probability:
            maps = keep(maps, np.float32)
            threshold = _dice_threshold(maps) if rule.threshold_rule == "dice" else rule.threshold
            plain = keep(band >= threshold for band in maps)
            mask = keep(postprocess_bands(rule, size[0] * size[1], plain, keep))
            for probability, band in zip(maps, mask, strict=True):
                sums.add(probability, band)
        else:  # a pixel's class depends on that pixel alone, so that one pass does
            mask = keep(sums.add(band, band >= rule.threshold) for band in maps)
        expected = rule.temper(sums.foretold_dice())
        yield LargePrediction(
            size,
            mask,
            maps if with_probability else None,
            foreground_fraction=sums.size / sums.pixels,
            expected_dice=expected,
            needs_review=rule.needs_review(expected),
        )


def _dice_threshold(maps: Iterable[Probability]) -> float:
    levels = LevelSums()
    for band in maps:
        levels.add(band)
    return levels.threshold()


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
        The changed mask, to be gone through once.
    """
    if postprocessing.keep_largest or postprocessing.min_component_fraction:
        foreground, least = Components(bands, 8), postprocessing.min_component_fraction * pixels
        if postprocessing.keep_largest:
            least = max(least, foreground.largest)
        bands = foreground.select(
            bands, lambda areas, _: areas >= least, first_only=postprocessing.keep_largest
        )
        if postprocessing.fill_holes_fraction:
            bands = keep(bands)
    if postprocessing.fill_holes_fraction:
        bands = _without_holes(bands, postprocessing.fill_holes_fraction * pixels)
    if not postprocessing.min_foreground_fraction:
        return bands
    bands = keep(bands)
    covered = sum(int(np.count_nonzero(band)) for band in bands)
    is_enough = covered >= postprocessing.min_foreground_fraction * pixels
    return (band & is_enough for band in bands)


def _without_holes(bands: Iterable[Mask], most: float) -> Iterable[Mask]:
    """Fill holes of less than so many pixels in bands that can be gone through several times."""
    holes = Components((~band for band in bands), 4).select(
        (~band for band in bands), lambda areas, at_edge: (areas < most) & ~at_edge
    )
    return (band | hole for band, hole in zip(bands, holes, strict=True))


class Components:
    """The connected components of a mask that is there band by band.

    Attributes:
        largest: The largest area, in pixels; 0 for an empty mask.
    """

    def __init__(self, bands: Iterable[Mask], connectivity: Literal[4, 8]) -> None:
        """Measure them, in one pass over bands of which all but the last are of even height."""
        self._connectivity: Literal[4, 8] = connectivity
        self.largest = 0
        areas, at_edge, meetings = [np.zeros(1, np.int64)], [np.zeros(1, np.bool_)], []
        count, above = 1, np.zeros(0, np.int64)  # number 0 is the outside
        for band in _label_bands(bands, connectivity):
            numbers = np.zeros(len(band.areas), np.int64)
            numbers[band.open] = count + np.arange(len(band.open))
            count += len(band.open)
            areas.append(band.areas[band.open])
            at_edge.append(band.at_edge[band.open])
            self.largest = max(self.largest, int(band.areas[numbers == 0].max()))
            meetings.append(_meetings(above, numbers[band.labels[0]], connectivity))
            above = numbers[band.labels[-1]]
        joined = np.concatenate([np.zeros((2, 0), np.int64), *meetings], axis=1)
        graph = coo_array((np.ones(joined.shape[1], np.bool_), tuple(joined)), (count, count))
        self._roots: Integers = connected_components(graph, directed=False)[1].astype(np.int64)
        whole = np.bincount(self._roots, np.concatenate(areas)).astype(np.int64)
        self._areas = whole[self._roots]
        self._at_edge = (np.bincount(self._roots, np.concatenate(at_edge)) > 0)[self._roots]
        self.largest = max(self.largest, int(whole.max()))

    def select(
        self, bands: Iterable[Mask], chosen: Chosen, *, first_only: bool = False
    ) -> Iterator[Mask]:
        """Give back, band by band, the pixels of the components that are chosen.

        Args:
            bands: The same as were measured.
            chosen: From areas, and whether components touch the image's edge, to whether they
                are chosen.
            first_only: Choose only the first one of these, from the top.
        """
        begun, settled, first = 1, len(self._roots), -1
        for band in _label_bands(bands, self._connectivity):
            numbers = slice(begun, begun + len(band.open))
            roots = settled + np.arange(len(band.areas))
            begun, settled = numbers.stop, settled + len(roots)
            for own, whole in (
                (band.areas, self._areas),
                (band.at_edge, self._at_edge),
                (roots, self._roots),
            ):
                own[band.open] = whole[numbers]
            wanted = chosen(band.areas, band.at_edge)
            wanted[0] = False
            if first_only:
                if first < 0 and wanted.any():
                    first = int(roots[np.argmax(wanted)])
                wanted = roots == first
            yield wanted[band.labels]


class _Band(NamedTuple):
    """The components of one band: labels as OpenCV gives them, 0 is outside.

    Attributes:
        labels: int32, (rows, width).
        areas: Of each label.
        at_edge: Whether a label touches the image's edge; the outside counts as if it did.
        open: Labels that reach a seam, in order.
    """

    labels: npt.NDArray[np.int32]
    areas: Integers
    at_edge: npt.NDArray[np.bool_]
    open: Integers


def _label_bands(bands: Iterable[Mask], connectivity: Literal[4, 8]) -> Iterator[_Band]:
    is_first = True
    for mask, below in itertools.pairwise(itertools.chain(bands, [np.zeros((0, 0), np.bool_)])):
        is_last = not below.size
        labels, areas, sides, top, bottom = label_components(mask, connectivity)
        at_edge = sides | (top & is_first) | (bottom & is_last)
        reaches = (top & (not is_first)) | (bottom & (not is_last))
        at_edge[0], reaches[0] = True, False
        yield _Band(labels, areas, at_edge, np.flatnonzero(reaches))
        is_first = False


def _meetings(above: Integers, below: Integers, connectivity: Literal[4, 8]) -> Integers:
    """Return the pairs of numbers that meet at a seam, (2, pairs); 0 is outside."""
    found = [np.zeros((2, 0), np.int64)]
    for shift in ((-1, 0, 1) if connectivity == 8 else (0,)) if above.size else ():
        left = above[max(0, -shift) : len(above) - max(0, shift)]
        right = below[max(0, shift) : len(below) - max(0, -shift)]
        both = (left > 0) & (right > 0)
        found.append(np.unique(np.stack([left[both], right[both]]), axis=1))
    return np.concatenate(found, axis=1)
