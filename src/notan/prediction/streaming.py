"""Images that do not fit into the memory: predicted and written band by band.

Bands: whole rows of an image, from the top, all of one height but the last.

One huge image: predicted band by band, decided as any other, written as tiled TIFF.

A first pass predicts. Where the mask depends on the whole image, by a cut of its own or by its
components, or where probabilities are written too, the map goes to a temporary file beside the
outputs; later passes read it. It is kept as float32, so that the mask is the very same that a
machine with enough memory would give.

Tiled TIFF files of any size, written band by band.

Which of the files to predict are too large for the memory, and what is done with these.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from notan.errors import ConfigError, DataError
from notan.io.tiff import TIFF_SIGNATURES, TiffParts, is_large_tiff
from notan.io.write import replacing, storage_errors
from notan.modelfile.postprocess import LevelSums, MaskSums
from notan.prediction.components import postprocess_bands
from notan.prediction.formats.images import probability_image
from notan.prediction.table import Failure, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    import numpy.typing as npt

    from notan.prediction.inputs import Found
    from notan.prediction.predictor import Predictor
    from notan.prediction.table import PredictionTable
    from notan.prediction.tiles import Pixels
    from notan.types import Mask, Probability, Size

ROWS = 256
"""Rows of a band. Even, so that OpenCV, which labels in blocks of 2x2 pixels, meets the components
of bands in the order in which it would meet those of the whole image."""


def even_bands(parts: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut parts of any height, (rows, width), into bands of ``ROWS`` rows; the last is shorter."""
    waiting: list[npt.NDArray[Any]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count < ROWS:
            continue
        joined = np.concatenate(waiting)
        whole = count // ROWS * ROWS
        for start in range(0, whole, ROWS):
            yield joined[start : start + ROWS]
        waiting, count = [joined[whole:].copy()], count - whole
    if count:
        yield np.concatenate(waiting)


class BandFile:
    """Bands of one image on the disk, without a name, gone with the process.

    Read and written as files are, not mapped into memory, so that the system need not count them
    as the program's own.
    """

    def __init__(self, folder: Path, width: int, dtype: npt.DTypeLike) -> None:
        """Make an empty file in a folder that has space for the whole image.

        Raises:
            StorageError: It could not be made.
        """
        self._place, self._width, self._dtype = folder / "temporary file", width, np.dtype(dtype)
        self._rows: list[int] = []
        with storage_errors(self._place):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, band: npt.NDArray[Any]) -> None:
        """Write the next band; a mask takes a bit for each pixel.

        Raises:
            StorageError: The disk is full.
        """
        stored = np.packbits(band, axis=1) if self._dtype == np.bool_ else band
        with storage_errors(self._place):
            self._file.write(np.ascontiguousarray(stored, self._stored_type).data)
        self._rows.append(len(band))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Read all bands from the top; several may do so in turns, each at a place of its own."""
        place = 0
        is_mask = self._dtype == np.bool_
        columns = -(-self._width // 8) if is_mask else self._width
        for rows in self._rows:
            size = rows * columns * self._stored_type.itemsize
            self._file.seek(place)
            place += size
            stored = np.frombuffer(self._file.read(size), self._stored_type).reshape(rows, columns)
            yield (
                np.unpackbits(stored, axis=1, count=self._width).astype(np.bool_)
                if is_mask
                else stored
            )

    @property
    def _stored_type(self) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self._dtype == np.bool_ else self._dtype


DTYPES: dict[str, type[np.generic]] = {
    "mask": np.uint8,
    "probability": np.uint8,
    "probability16": np.uint16,
    "probability-float": np.float32,
}
"""The formats that can be written band by band."""


@dataclass(frozen=True)
class LargePrediction:
    """What is known of an image whose mask is on the disk.

    Attributes:
        size: (height, width) in pixels.
        foreground_fraction: The foreground's share of the image, 0..1.
        expected_dice: The Dice that the mask has if the probabilities are right, 0..1.
        needs_review: Whether a person should look at it; None: validation did not say how sure is
            usual.
    """

    size: Size
    foreground_fraction: float
    expected_dice: float
    needs_review: bool | None


def predict_large(
    predictor: Predictor, pixels: Pixels, outputs: Mapping[str, Path], *, batch_size: int = 1
) -> LargePrediction:
    """Segment an image that is never in memory as a whole, and write what comes of it.

    Args:
        predictor: The network, its tiling and its postprocessing.
        pixels: The image, of which any part can be read.
        outputs: Files by format: ``mask`` (0 / 255), ``probability`` (0..255), ``probability16``
            (0..65535), ``probability-float`` (0..1); tiled TIFF. At least one.
        batch_size: At most so many tiles at once.

    Raises:
        ConfigError: Another format, or none.
        DataError: The image is damaged.
        StorageError: The disk is full; no output is left half written.
        DivergedError: The network returned NaN or infinity.
    """
    if not outputs or not DTYPES.keys() >= outputs.keys():
        raise ConfigError(
            f"{', '.join(outputs) or 'nothing'} was asked for; of an image this large only "
            f"{', '.join(DTYPES)} can be written"
        )
    with contextlib.ExitStack() as files:
        return _Large(predictor, pixels, outputs, files).run(batch_size)


class _Large:
    """One image on its way."""

    def __init__(
        self,
        predictor: Predictor,
        pixels: Pixels,
        outputs: Mapping[str, Path],
        files: contextlib.ExitStack,
    ) -> None:
        self.predictor, self.pixels, self.outputs, self.files = predictor, pixels, outputs, files
        self.postprocessing = predictor.postprocessing
        self.size = pixels.size
        self.folder = next(iter(outputs.values())).parent

    def run(self, batch_size: int) -> LargePrediction:
        """Predict, decide, write."""
        bands = even_bands(self.predictor.predict_bands(self.pixels, batch_size=batch_size))
        levels, sums = LevelSums(), MaskSums()
        if self._is_soon_decided():
            self._write("mask", self._masks(bands, sums))
            return self._result(sums)
        maps = self._keep(self._counted(bands, levels), np.float32)
        threshold = (
            levels.threshold()
            if self.postprocessing.threshold_rule == "dice"
            else self.postprocessing.threshold
        )
        cut = self._keep((band >= threshold for band in maps), np.bool_)
        tidied = postprocess_bands(
            self.postprocessing,
            self.size[0] * self.size[1],
            cut,
            lambda masks: self._keep(masks, np.bool_),
        )
        final = self._keep(self._summed(maps, tidied, sums), np.bool_)
        for name in self.outputs:
            self._write(name, final if name == "mask" else maps)
        return self._result(sums)

    def _is_soon_decided(self) -> bool:
        """Say whether a band's mask depends on this band alone, and nothing else is written."""
        postprocessing = self.postprocessing
        tidies = (
            postprocessing.keep_largest
            or postprocessing.min_component_fraction
            or postprocessing.fill_holes_fraction
        )
        return (
            set(self.outputs) == {"mask"}
            and postprocessing.threshold_rule == "threshold"
            and not tidies
        )

    def _masks(self, bands: Iterable[Probability], sums: MaskSums) -> Iterator[Mask]:
        for band in bands:
            mask = band >= self.postprocessing.threshold
            sums.add(band, mask)
            yield mask

    def _counted(self, bands: Iterable[Probability], levels: LevelSums) -> Iterator[Probability]:
        for band in bands:
            if self.postprocessing.threshold_rule == "dice":
                levels.add(band)
            yield band

    def _summed(
        self, maps: Iterable[Probability], masks: Iterable[Mask], sums: MaskSums
    ) -> Iterator[Mask]:
        for probability, mask in zip(maps, masks, strict=True):
            sums.add(probability, mask)
            yield mask

    def _keep(self, bands: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike) -> BandFile:
        """Put bands where they can be gone through again."""
        file = self.files.enter_context(BandFile(self.folder, self.size[1], dtype))
        for band in bands:
            file.add(band)
        return file

    def _write(self, name: str, bands: Iterable[npt.NDArray[Any]]) -> None:
        dtype = DTYPES[name]
        write_tiff(self.outputs[name], self.size, dtype, (_as(band, dtype) for band in bands))

    def _result(self, sums: MaskSums) -> LargePrediction:
        expected, bound = sums.expected_dice(), self.postprocessing.review_below
        check = None if bound is None else expected < bound
        return LargePrediction(self.size, sums.size / sums.pixels, expected, check)


def _as(band: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Scale chances, or a mask, as small images are; floats stay as they are."""
    return band if dtype is np.float32 else probability_image(band, dtype)


CLASSIC_BYTES = 2**32 - 2**26
"""What a TIFF of the classic kind holds at most; pixels that will not compress need BigTIFF."""


def write_tiff(
    path: Path, size: Size, dtype: npt.DTypeLike, bands: Iterable[npt.NDArray[Any]]
) -> None:
    """Write grey values as a tiled TIFF, compressed by Deflate; whole or not at all.

    Args:
        path: The file.
        size: (height, width) of the image.
        dtype: uint8, uint16 or float32.
        bands: The image from the top in bands of ``ROWS`` rows, each (rows, width).

    Raises:
        StorageError: The file could not be written.
    """
    from tifffile import FileHandle, TiffWriter

    large = size[0] * size[1] * np.dtype(dtype).itemsize > CLASSIC_BYTES
    with (
        replacing(path) as file,
        TiffWriter(FileHandle(file, name=path.name), bigtiff=large) as tiff,  # it wants a name
    ):
        tiff.write(
            _tiles(bands),
            shape=size,
            dtype=np.dtype(dtype),
            tile=(ROWS, ROWS),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            maxworkers=1,  # more would compress many tiles ahead, and hold them
        )


def _tiles(bands: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut bands into tiles, filled up with zeros at the right and below."""
    for band in bands:
        below, right = -len(band) % ROWS, -band.shape[1] % ROWS
        full = np.pad(band, ((0, below), (0, right)))
        for left in range(0, full.shape[1], ROWS):
            yield np.ascontiguousarray(full[:, left : left + ROWS])


logger = logging.getLogger("notan")

FOLDERS = {"mask": "masks"}
"""Where a format goes whose folder is not called as it is."""


def split_large(found: Iterable[Found]) -> tuple[list[Found], list[Found]]:
    """Part the files into those that are decoded at once and those that are streamed."""
    small: list[Found] = []
    large: list[Found] = []
    for file in found:
        (large if _is_large(file) else small).append(file)
    return small, large


def _is_large(found: Found) -> bool:
    """Say whether a file is a huge TIFF; what cannot be read is reported by who reads it."""
    if found.content is not None:
        return False
    try:
        with found.path.open("rb") as file:
            if file.read(4) not in TIFF_SIGNATURES:
                return False
            return is_large_tiff(file, str(found.path))
    except (OSError, ValueError, DataError):
        return False


@dataclass(frozen=True)
class LargeFiles:
    """Predicts huge TIFF files one after the other.

    Attributes:
        predictor: The network.
        formats: What was asked for; of it is written what can be written band by band.
        out: The folder of outputs.
        table: Has a row for every image that is done.
        batch_size: Tiles predicted at once.
    """

    predictor: Predictor
    formats: Sequence[str]
    out: Path
    table: PredictionTable
    batch_size: int = 1

    def paths(self, name: str) -> list[Path]:
        """Return where the outputs of a name go."""
        return list(self._outputs(name).values())

    def run(self, found: Sequence[Found]) -> tuple[int, int, list[Failure]]:
        """Predict every file that is not done yet; a damaged one does not stop the others.

        Returns:
            How many were predicted, how many were there already, and what failed.

        Raises:
            ConfigError: The scale makes a single tile too large.
            StorageError: Something could not be written.
            DivergedError: The network returned NaN or infinity.
        """
        predicted = kept = 0
        failures = []
        for file in found:
            if self.table.has(file.name, file.path) and all(
                path.exists() for path in self.paths(file.name)
            ):
                self.table.keep(file.name)
                kept += 1
                continue
            try:
                self.table.put(self._predict(file))
                predicted += 1
            except DataError as error:
                failures.append(Failure(file.name, str(file.path), str(error)))
            self.table.write(self.out)
        return predicted, kept, failures

    def _predict(self, found: Found) -> Row:
        outputs = self._outputs(found.name)
        left_out = [name for name in self.formats if name not in outputs]
        possible = f"an image this large is written as {', '.join(DTYPES)} only"
        if not outputs:
            raise DataError(f"{found.path}: {possible}; add --format mask")
        if left_out:
            logger.info("%s: no %s, %s", found.path, ", ".join(left_out), possible)
        with TiffParts(found.path) as parts:
            result = predict_large(self.predictor, parts, outputs, batch_size=self.batch_size)
        return Row(
            found.name,
            str(found.path),
            *result.size,
            round(result.foreground_fraction, 6),
            round(result.expected_dice, 4),
            result.needs_review,
        )

    def _outputs(self, name: str) -> dict[str, Path]:
        return {
            kind: self.out / FOLDERS.get(kind, kind) / f"{name}.tif"
            for kind in self.formats
            if kind in DTYPES
        }
