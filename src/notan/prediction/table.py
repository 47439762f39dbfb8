"""The tables beside written masks: what the model thinks of each of them, and what failed.

They are what ``--resume`` goes by: ``predict.json`` says how a folder of predictions is made, and
``predictions.csv`` which images are done.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Literal

from notan.config.sections import Section
from notan.errors import ConfigError, DataError
from notan.io.destinations import destination_of
from notan.io.remote import shown
from notan.io.write import as_written, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from notan.prediction.predictor import LargePrediction, Prediction, Predictor

SETTINGS, TABLE, FAILED = "predict.json", "predictions.csv", "failed.csv"
MOST_NAMED = 5


def image_of(path: Path) -> str:
    """Return what the tables call the file of an image: its path, or its address."""
    return as_written(shown(path))


class Row(Section):
    """What is said of one mask.

    Attributes:
        name: Of its files.
        image: The file that it was made from.
        height: In pixels.
        width: In pixels.
        foreground_fraction: The foreground's share of the image, 0..1.
        expected_dice: The Dice that the model expects of it, 0..1.
        needs_review: Whether a person should look at it, ``yes`` or ``no``; empty: the model was
            never told how sure is usual.
        digest: Of the file's content; empty in tables of earlier versions.
    """

    name: str
    image: str
    height: int
    width: int
    foreground_fraction: float
    expected_dice: float
    needs_review: Literal["yes", "no", ""]
    digest: str = ""

    @classmethod
    def of(
        cls, name: str, image: Path, prediction: Prediction | LargePrediction, digest: str = ""
    ) -> Row:
        """Note what a prediction says of itself."""
        height, width = prediction.size
        review: dict[bool | None, Literal["yes", "no", ""]] = {True: "yes", False: "no", None: ""}
        return cls(
            name=as_written(name),
            image=image_of(image),
            height=height,
            width=width,
            foreground_fraction=round(prediction.foreground_fraction, 6),
            expected_dice=round(prediction.expected_dice, 4),
            needs_review=review[prediction.needs_review],
            digest=digest,
        )


class Failure(Section):
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
    """What is done in a folder of predictions, in the order of the images, and what failed.

    Attributes:
        folder: Where the tables go.
        failures: What could not be read in this run, and why.
        predicted: How many images' outputs were written in this run.
        kept: How many were left out, because all of theirs was there.
        changed: Files whose content is another than an earlier run's rows tell of.
    """

    def __init__(self, folder: Path, rows: Iterable[Row] = ()) -> None:
        self.folder = folder
        self.failures: list[Failure] = []
        self.predicted = self.kept = self.changed = 0
        self._rows = {row.name: row for row in rows}
        self._earlier = {row.image: row.digest for row in self._rows.values()}
        self._digests: dict[str, str] = {}

    @classmethod
    def begin(cls, folder: Path, settings: Mapping[str, str], *, resume: bool) -> PredictionTable:
        """Begin a folder of predictions, or go on with one.

        Args:
            folder: Where the outputs go.
            settings: Everything beside the images that decides what the outputs are.
            resume: Keep what is done. Without it, the tables of an earlier run are removed; outputs
                are replaced one by one as their images are predicted again.

        Raises:
            ConfigError: The folder was begun with other settings.
            DataError: What an earlier run left cannot be read.
            StorageError: The folder cannot be written.
        """
        place, path = destination_of(folder), folder / SETTINGS
        if resume and place.existing([path]):
            _refuse_others(path, settings)
            return cls.read(folder)
        # before the settings change, lest rows of other settings pass for these
        for name in (TABLE, FAILED):
            place.remove(folder / name)
        place.write(path, (json.dumps(dict(settings), indent=2) + "\n").encode())
        return cls(folder)

    @classmethod
    def read(cls, folder: Path) -> PredictionTable:
        """Read the predictions.csv of a folder, if there is one.

        Raises:
            DataError: It is not as it was written.
        """
        path = folder / TABLE
        try:
            content = destination_of(folder).read(path)
            if content is None:
                return cls(folder)
            reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
            columns = list(Row.model_fields)
            if reader.fieldnames not in (columns, columns[:-1]):  # earlier ones had no digest
                raise ValueError(f"its columns are {reader.fieldnames}")
            return cls(folder, [Row.model_validate(cells) for cells in reader])
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(
                f"{shown(path)}: cannot be read as the table that an earlier run wrote "
                f"({type(error).__name__}: {error}); remove it, or leave out --resume"
            ) from error

    @property
    def rows(self) -> list[Row]:
        """All rows, in order, but for those of files that are no longer what they were."""
        digests = self._digests
        return [row for row in self._rows.values() if digests.get(row.image) in (None, row.digest)]

    @property
    def place(self) -> str:
        """The folder in words."""
        return shown(self.folder)

    @property
    def total(self) -> int:
        """Every image that was asked for in this run."""
        return self.predicted + self.kept + len(self.failures)

    def has(self, name: str, image: Path, digest: str = "") -> bool:
        """Say whether there is a row of this name, made from this file with this content.

        The rows of a file that has changed are dropped, those of its other pages with them.
        """
        path = image_of(image)
        if path not in self._digests:
            self._digests[path] = digest
            self.changed += self._earlier.get(path, digest) != digest
        row = self._rows.get(as_written(name))
        return row is not None and row.image == path and row.digest == digest

    def put(self, row: Row) -> None:
        """Count an image, and put its row at the end, instead of one of the same name."""
        self._rows.pop(row.name, None)
        self._rows[row.name] = row
        self.predicted += 1

    def keep(self, name: str) -> None:
        """Count an image that is done, and move its row to the end.

        So a resumed table has the order of an uninterrupted one.
        """
        self._rows[as_written(name)] = self._rows.pop(as_written(name))
        self.kept += 1

    def fail(self, name: str, image: Path, error: DataError) -> None:
        """Note that an image could not be read."""
        told = map(as_written, (name, image_of(image), str(error)))
        self.failures.append(Failure(**dict(zip(Failure.model_fields, told, strict=True))))

    def save(self) -> None:
        """Write predictions.csv and failed.csv; of what there is none, remove an earlier run's.

        Raises:
            StorageError: A file could not be written.
        """
        for name, rows in ((TABLE, self.rows), (FAILED, self.failures)):
            place, path = destination_of(self.folder), self.folder / name
            if rows:
                place.write(path, _csv_of(rows))
            else:
                place.remove(path)

    def summary(self) -> str:
        """Name the images that a person should check, the least sure first; may be empty."""
        unsure = [row for row in self.rows if row.needs_review == "yes"]
        unsure.sort(key=lambda row: row.expected_dice)
        if not unsure:
            return ""
        names = ", ".join(f"{row.name} ({row.expected_dice:.2f})" for row in unsure[:MOST_NAMED])
        more = f" and {len(unsure) - MOST_NAMED} more" if len(unsure) > MOST_NAMED else ""
        return f"please check, by expected Dice: {names}{more}; all in {TABLE}"


def output_settings(predictor: Predictor) -> dict[str, str]:
    """Name what decides how a mask comes out, beside its image."""
    card = predictor.card
    return {
        "model": card.sha256 if card else "not known",
        "postprocessing": predictor.postprocessing.model_dump_json(),
        "tta": predictor.augment or "none",
        "tiling": predictor.tiling.model_dump_json(),
        "precision": predictor.precision,
    }


def _refuse_others(path: Path, settings: Mapping[str, str]) -> None:
    """Refuse a folder that was begun with other settings."""
    try:
        before = json.loads(destination_of(path).read(path) or b"")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{shown(path)}: cannot be read ({error}), so nobody knows how this folder was made; "
            "choose another --out, or leave out --resume"
        ) from error
    if before == dict(settings):
        return
    there = before if isinstance(before, dict) else {}
    other = [
        f"{name} was {there.get(name, 'not said')}, is now {settings.get(name, 'not said')}"
        for name in sorted(settings.keys() | there.keys())
        if there.get(name) != settings.get(name)
    ]
    raise ConfigError(
        f"{shown(path)}: this folder was begun otherwise: {'; '.join(other)}; give the same "
        "settings, choose another --out, or leave out --resume to begin anew"
    )


def _csv_of(rows: Sequence[Row | Failure]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(type(rows[0]).model_fields))
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return encoded(text.getvalue())
