"""Lessons on the disk: what was taught, how it went, and which model is in use.

A lesson is one ``notan train`` on the corrections. Its run is kept for good in the corrections
folder, ``models/001`` and so on; what the studio knows of it lies in ``.studio/lessons``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError

from notan.config.sections import Section
from notan.errors import DataError
from notan.io.write import storage_errors, write_bytes
from notan.run_folder import BEST, HISTORY, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODELS, LESSONS = "models", "lessons"
BASE = 0
"""The number of the model that the studio was started with."""

Kept = TypeVar("Kept", bound=Section)

MOST_POINTS = 240
"""Of a curve that the page is told."""


class PartTrial(Section):
    """Two models on the accepted masks of one part.

    Attributes:
        images: How many there are.
        before: Mean Dice of the model in use.
        after: Mean Dice of the taught one.
        verdict: Which is better and by how much, or that it cannot be told, in a sentence.
        favoured: Masks that began as the mask of the model in use, which that favours.
        seen: Images that either model was trained on.
    """

    images: int
    before: float
    after: float
    verdict: str
    favoured: int
    seen: int


class ModelTrial(Section):
    """A taught model against the one in use, before anybody takes it.

    Attributes:
        against: Number of the lesson whose model was in use; ``BASE``: none's.
        test: On the drawn images; None: no mask of one was accepted.
        val: On those that chose the epoch, which flatters the taught model.
        fault: Why there is none; nothing: there is.
    """

    against: int
    test: PartTrial | None = None
    val: PartTrial | None = None
    fault: str = ""


class Lesson(Section):
    """One training on the corrections.

    Attributes:
        number: From 1.
        base: SHA-256 of the model that the studio was started with.
        begins: ``weights``: from that model's; ``anew``: from none of ours, by ``--auto``.
        seconds: The time limit.
        images: How many it was given, by part.
        began_at: When, in UTC.
        state: How far it came. One that says it is running, and has no process, was left by a
            studio that was killed.
        error: Why it failed, in one line.
        trial: Its model against the one that was in use.
    """

    number: int
    base: str
    begins: Literal["weights", "anew"]
    seconds: int
    images: dict[str, int]
    began_at: str
    state: Literal["running", "stopped", "failed", "done"] = "running"
    error: str = ""
    trial: ModelTrial | None = None

    def changed(self, **news: Any) -> Lesson:  # noqa: ANN401 - checked when it is read again
        """Return the lesson with other values."""
        return self.model_copy(update=news)


class Using(Section):
    """Which model is in use.

    Attributes:
        base: SHA-256 of the model that the studio was started with then.
        number: Of the lesson; ``BASE``: that model itself.
        previous: What was in use before, to go back to; None: nothing was.
    """

    base: str
    number: int = BASE
    previous: int | None = None


class Lessons:
    """The lessons of a corrections folder."""

    def __init__(self, folder: Path, own: Path) -> None:
        """Read what is there; what a killed studio left running was stopped.

        Args:
            folder: The corrections folder.
            own: The studio's own folder in it.

        Raises:
            DataError: A file of it is damaged.
            StorageError: It cannot be read or written.
        """
        self.folder, self._own = folder.resolve(), own.resolve()
        self._lessons: dict[int, Lesson] = {}
        for path in sorted((self._own / LESSONS).glob("[0-9]*.json")):
            lesson = _read(path, Lesson)
            self._lessons[lesson.number] = lesson
        for lesson in self:
            if lesson.state == "running":
                self.keep(lesson.changed(state="stopped"))

    def __iter__(self) -> Iterator[Lesson]:
        """Give the lessons, the latest last."""
        return iter([self._lessons[number] for number in sorted(self._lessons)])

    def find(self, number: int) -> Lesson | None:
        """Return a lesson; None: there is no such."""
        return self._lessons.get(number)

    def next_number(self) -> int:
        """Return a number that no lesson and no run has."""
        taken = [path.name for path in (self.folder / MODELS).glob("[0-9]*")]
        numbers = [int(name) for name in taken if re.fullmatch("[0-9]{1,9}", name)]
        return max([BASE, *self._lessons, *numbers]) + 1

    def keep(self, lesson: Lesson) -> None:
        """Write a lesson down.

        Raises:
            StorageError: It could not be written; what was known before stands.
        """
        path = self._own / LESSONS / f"{lesson.number:03d}.json"
        write_bytes(path, lesson.model_dump_json().encode())
        self.hold(lesson)

    def hold(self, lesson: Lesson) -> None:
        """Know a lesson for as long as the studio runs."""
        self._lessons[lesson.number] = lesson

    def run(self, number: int) -> Path:
        """Return the run folder of a lesson."""
        return self.folder / MODELS / f"{number:03d}"

    def log(self, number: int) -> Path:
        """Return where the process of a lesson writes what it says."""
        return self._own / LESSONS / f"{number:03d}.log"

    def model(self, number: int) -> Path | None:
        """Return the model file of a lesson; None: it left none."""
        path = self.run(number) / BEST
        return path if path.is_file() else None

    def can_go_on(self, number: int) -> bool:
        """Say whether the run of a lesson was begun, so that it can be resumed."""
        return (self.run(number) / SETTINGS).is_file()

    def curve(self, number: int) -> list[dict[str, float | None]]:
        """Return how a lesson's training went: epoch, loss, validation Dice and seconds so far.

        An epoch that was not validated has no Dice; of many only some are told.
        """
        found = []
        try:
            lines = (self.run(number) / HISTORY).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        for line in lines:
            try:
                epoch = json.loads(line, parse_constant=lambda _: None)  # NaN is no JSON
                names = ("epoch", "train/loss", "validation/dice", "time_limit/seconds")
                found.append({name.rpartition("/")[2]: epoch.get(name) for name in names})
            except (ValueError, AttributeError):  # the line that is being written
                continue
        if len(found) <= MOST_POINTS:
            return found
        told = [each for each in found if each["dice"] is not None] or found
        return [*told[:: -(-len(told) // MOST_POINTS)], found[-1]]

    def using(self, base: str) -> Using:
        """Return what is in use beside a model that the studio is started with.

        Raises:
            DataError: The file that says so is damaged.
        """
        path = self._own / "using.json"
        if not path.is_file():
            return Using(base=base)
        found = _read(path, Using)
        return found if found.base == base else Using(base=base)

    def keep_using(self, using: Using) -> None:
        """Write down what is in use.

        Raises:
            StorageError: It could not be written; what was in use before stands.
        """
        write_bytes(self._own / "using.json", using.model_dump_json().encode())


def _read(path: Path, kind: type[Kept]) -> Kept:
    """Return what a file holds, or refuse it."""
    with storage_errors(path, chosen_by="--corrections"):
        content = path.read_bytes()
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path}: cannot be read; take it away: the models in {MODELS}/ stay"
        ) from error
