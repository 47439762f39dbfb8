"""One huge image: predicted band by band, decided as any other, written as tiled TIFF.

A first pass predicts. Where the mask depends on the whole image, by a cut of its own or by its
components, or where probabilities are written too, the map goes to a temporary file beside the
outputs; later passes read it. It is kept as float32, so that the mask is the very same that a
machine with enough memory would give.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from notan.errors import ConfigError
from notan.postprocessing import LevelSums, MaskSums
from notan.predict.formats.images import probability_image
from notan.predict.large.bands import BandFile, even_bands
from notan.predict.large.components import postprocess_bands
from notan.predict.large.write import write_tiff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from notan.predict.predictor import Predictor
    from notan.predict.tiles import Pixels
    from notan.types import Mask, Probability, Size

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
