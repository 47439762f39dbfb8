"""The table beside written masks: what the model itself thinks of each of them."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from notan.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from notan.predict.predictor import Prediction

TABLE = "predictions.csv"
MOST_NAMED = 5


@dataclass(frozen=True)
class Row:
    """What is said of one mask.

    Attributes:
        name: Of its files.
        picture: The file that it was made from.
        height: In pixels.
        width: In pixels.
        figure_fraction: The figure's share of the picture, 0..1.
        expected_dice: The Dice that the model expects of it, 0..1.
        please_check: Whether a person should look at it; None: the model was never told how sure
            is usual.
    """

    name: str
    picture: str
    height: int
    width: int
    figure_fraction: float
    expected_dice: float
    please_check: bool | None


class PredictionTable:
    """Collects a row for each mask."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, name: str, picture: Path, prediction: Prediction) -> None:
        """Note what a prediction says of itself."""
        height, width = prediction.mask.shape
        fraction = round(float(prediction.mask.mean()), 6)
        expected = round(prediction.expected_dice, 4)
        row = Row(name, str(picture), height, width, fraction, expected, prediction.please_check)
        self.rows.append(row)

    def write(self, folder: Path) -> None:
        """Write predictions.csv, if there is any row.

        Raises:
            StorageError: The file could not be written.
        """
        if not self.rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(asdict(self.rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        write_bytes(folder / TABLE, text.getvalue().encode())

    def summary(self) -> str:
        """Name the pictures that a person should check, the least sure first; may be empty."""
        unsure = sorted((r for r in self.rows if r.please_check), key=lambda row: row.expected_dice)
        if not unsure:
            return ""
        names = ", ".join(f"{row.name} ({row.expected_dice:.2f})" for row in unsure[:MOST_NAMED])
        more = f" and {len(unsure) - MOST_NAMED} more" if len(unsure) > MOST_NAMED else ""
        return f"please check, by expected Dice: {names}{more}; all in {TABLE}"
