"""Which of the files to predict are too large for the memory, and what is done with these."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.pages import TIFF_SIGNATURES
from notan.data.tiff_parts import TiffParts, is_large_tiff
from notan.errors import DataError
from notan.predict.large.stream import DTYPES, predict_large
from notan.predict.table import Failure, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from notan.predict.inputs import Found
    from notan.predict.predictor import Predictor
    from notan.predict.table import PredictionTable

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
        return is_large_tiff(found.path)
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
