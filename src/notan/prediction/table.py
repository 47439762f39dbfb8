"""The tables beside written masks: what the model thinks of each of them, and what failed."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from notan.prediction.predictor import Prediction

TABLE, FAILED = "predictions.csv", "failed.csv"
MOST_NAMED = 5


@dataclass(frozen=True)
class Row:
    """What is said of one mask.

    Attributes:
        name: Of its files.
        image: The file that it was made from.
        height: In pixels.
        width: In pixels.
        foreground_fraction: The foreground's share of the image, 0..1.
        expected_dice: The Dice that the model expects of it, 0..1.
        needs_review: Whether a person should look at it; None: the model was never told how sure
            is usual.
    """

    name: str
    image: str
    height: int
    width: int
    foreground_fraction: float
    expected_dice: float
    needs_review: bool | None

    @classmethod
    def of(cls, name: str, image: Path, prediction: Prediction) -> Row:
        """Note what a prediction says of itself."""
        height, width = prediction.mask.shape
        fraction = round(float(prediction.mask.mean()), 6)
        expected = round(prediction.expected_dice, 4)
        return cls(name, str(image), height, width, fraction, expected, prediction.needs_review)


@dataclass(frozen=True)
class Failure:
    """An image that could not be read.

    Attributes:
        name: What its outputs would have been called.
        image: The file.
        reason: In words.
    """

    name: str
    image: str
    reason: str


class PredictionTable:
    """Holds a row for each mask, in the order in which they were put in."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = {row.name: row for row in rows}

    @classmethod
    def read(cls, folder: Path) -> PredictionTable:
        """Read the predictions.csv of a folder, if there is one.

        Raises:
            DataError: It is not as it was written.
        """
        path = folder / TABLE
        if not path.exists():
            return cls()
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != [field.name for field in fields(Row)]:
                    raise ValueError(f"its columns are {reader.fieldnames}")
                return cls([_row(cells) for cells in reader])
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise DataError(
                f"{path}: cannot be read as the table that an earlier run wrote "
                f"({type(error).__name__}: {error}); remove it, or leave out --resume"
            ) from error

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return list(self._rows.values())

    def add(self, name: str, image: Path, prediction: Prediction) -> None:
        """Note what a prediction says of itself, at the end."""
        self.put(Row.of(name, image, prediction))

    def put(self, row: Row) -> None:
        """Put a row at the end, instead of one of the same name."""
        self._rows.pop(row.name, None)
        self._rows[row.name] = row

    def keep(self, name: str) -> None:
        """Move a row to the end, so that a resumed table has the order of an uninterrupted one."""
        self._rows[name] = self._rows.pop(name)

    def has(self, name: str, image: Path) -> bool:
        """Say whether there is a row of this name, made from this file."""
        row = self._rows.get(name)
        return row is not None and row.image == str(image)

    def write(self, folder: Path) -> None:
        """Write predictions.csv, if there is any row.

        Raises:
            StorageError: The file could not be written.
        """
        if self._rows:
            _write(folder / TABLE, self.rows)

    def summary(self) -> str:
        """Name the images that a person should check, the least sure first; may be empty."""
        unsure = sorted((r for r in self.rows if r.needs_review), key=lambda row: row.expected_dice)
        if not unsure:
            return ""
        names = ", ".join(f"{row.name} ({row.expected_dice:.2f})" for row in unsure[:MOST_NAMED])
        more = f" and {len(unsure) - MOST_NAMED} more" if len(unsure) > MOST_NAMED else ""
        return f"please check, by expected Dice: {names}{more}; all in {TABLE}"


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Write failed.csv; without failures, remove that of an earlier run.

    Raises:
        StorageError: The file could not be written.
    """
    path = folder / FAILED
    if failures:
        _write(path, failures)
    else:
        with storage_errors(path):
            path.unlink(missing_ok=True)


def _write(path: Path, rows: Sequence[Row | Failure]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(rows[0])])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    # file names are bytes to the system, and need not be text: what is none is kept, escaped
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _row(cells: dict[str, str]) -> Row:
    return Row(
        name=cells["name"],
        image=cells["image"],
        height=int(cells["height"]),
        width=int(cells["width"]),
        foreground_fraction=float(cells["foreground_fraction"]),
        expected_dice=float(cells["expected_dice"]),
        needs_review={"True": True, "False": False, "": None}[cells["needs_review"]],
    )
