"""Teaching: a training on all corrections, from the base each time, whose model is tried and taken.

One training at a time, in a process of its own. When it ends, its model is tried against the one in
use; nothing is swapped before a person says so.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from notan.errors import DataError, NotanError, StorageError
from notan.run_process import TrainingProcess
from notan.studio.lessons import BASE, Lesson
from notan.studio.trial import try_model
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notan.studio.lessons import Lessons
    from notan.studio.shelf import Shelf
    from notan.studio.store import Corrections

logger = logging.getLogger("notan")

LEAST = 5
"""Accepted masks, drawn images aside, with which a training begins: four and one to validate on."""

LEAST_SECONDS, MOST_SECONDS = 5, 86_400
MOST_NUMBER = 10**9
SECONDS_TO_TRY = 10.0
"""That the trial of a model may go on when the studio ends."""


class EndedError(NotanError):
    """The studio ends."""


class Teaching:
    """Begins, watches and stops trainings, and tries what they leave."""

    def __init__(
        self, store: Corrections, lessons: Lessons, shelf: Shelf, reading: Sequence[str] = ()
    ) -> None:
        """Make ready; nothing is trained unasked.

        Args:
            store: The corrections.
            lessons: What was taught before.
            shelf: The models.
            reading: Words for ``notan train`` that say how images are read.
        """
        self.store, self.lessons, self.shelf = store, lessons, shelf
        self._reading = tuple(reading)
        self._guard = threading.Lock()
        self._process: TrainingProcess | None = None
        self._thread: threading.Thread | None = None
        self._number: int | None = None  # of the lesson that is trained or tried
        self._is_stopping = False
        self._ends = threading.Event()
        self._began, self._spent_before = 0.0, 0.0
        self.deeds: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "begin": lambda asked: self.begin(_seconds(asked)),
            "resume": lambda asked: self.resume(_number(asked), _seconds(asked)),
            "stop": lambda _: self.stop(),
            "try": lambda asked: self.try_again(_number(asked)),
            "use": lambda asked: self.shelf.use(_number(asked)),
        }
        """What the page may ask for, by name."""

    def why_not(self) -> str:
        """Return why no training can begin, in one line; nothing: one can."""
        if importlib.util.find_spec("torch") is None:
            return "Teaching needs PyTorch: pip install 'notan[train]', and start the studio again."
        if self.shelf.is_of_own_class:
            return (
                "A network of your own is trained on the command line: notan train --model-class "
                f"... --data-path {self.store.folder}"
            )
        counts = self.store.counts()
        there = counts["train"] + counts["val"]
        if there >= LEAST and not counts["val"]:
            return (
                "All accepted masks are of images that the model was trained on; accept one of "
                "another image, to validate on."
            )
        if there >= LEAST:
            return ""
        return (
            f"{LEAST - there} more accepted mask{'s' * (LEAST - there != 1)} wanted: a training "
            f"needs {LEAST} beside the test images, and there {'is' if there == 1 else 'are'} "
            f"{there}."
        )

    def begin(self, seconds: int) -> None:
        """Begin a training on what was accepted until now.

        Raises:
            RefusedError: One is under way, or something is wanting.
            DataError: Images or masks of the corrections are gone.
            StorageError: It could not be written down.
        """
        with self._guard:
            self._require_ready()
            lesson = Lesson(
                number=self.lessons.next_number(),
                base=self.shelf.sha256,
                begins=self._begins(),
                seconds=seconds,
                images=self.store.counts(),
                began_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            )
            self._start(lesson, self._words_to_begin(lesson))

    def resume(self, number: int, seconds: int) -> None:
        """Go on with a training that was stopped, or that failed.

        Args:
            number: Of the lesson.
            seconds: The time limit, what was spent before included.

        Raises:
            RefusedError: One is under way, or this one cannot go on.
            DataError: Images or masks of the corrections are gone.
            StorageError: It could not be written down.
        """
        with self._guard:
            self._require_ready()
            lesson = self.lessons.find(number)
            if lesson is None or lesson.state not in ("stopped", "failed"):
                raise RefusedError(409, f"training {number} is none that was stopped")
            lesson = lesson.changed(state="running", error="", seconds=seconds)
            words = ["train", "--resume", str(self.lessons.run(number)), "--allow-changes"]
            again = [*words, "--time-limit", f"{seconds}s"]
            can_go_on = self.lessons.can_go_on(number)
            self._start(lesson, again if can_go_on else self._words_to_begin(lesson))

    def stop(self) -> None:
        """Stop the training that is under way; it can be resumed."""
        with self._guard:
            if self._process is not None:
                self._is_stopping = True
                self._process.stop()

    def try_again(self, number: int) -> None:
        """Try a lesson's model on the masks that have been accepted by now.

        Raises:
            RefusedError: A training is under way, or there is no such model.
        """
        with self._guard:
            self._require_idle()
            lesson = self.lessons.find(number)
            if lesson is None or self.lessons.model(number) is None:
                raise RefusedError(409, f"training {number} left no model")
            self._number = number
            self._run(self._try, lesson)

    def status(self) -> dict[str, Any]:
        """Return what the page shows."""
        using, base = self.shelf.using, self.shelf.given.path
        # the newest is what a person wants to know of
        told = [self._told(lesson) for lesson in reversed([*self.lessons])]
        latest = told[0]["number"] if told else None
        curve = self.lessons.curve(latest) if latest else []
        spent = next((each["seconds"] for each in reversed(curve) if each["seconds"]), 0.0) or 0.0
        if self._process is not None:
            spent = self._spent_before + time.monotonic() - self._began
        return {
            "why_not": self.why_not(),
            "counts": self.store.counts(),
            "drawn": len(self.store.draw.drawn),
            "folder": str(self.lessons.folder),
            "base": base.name if base else "the default model",
            "begins": self._begins(),
            "phase": self._phase(),
            "busy": self._number,
            "using": using.number,
            "previous": using.previous,
            "spent": round(spent, 1),
            "curve": curve,
            "lessons": told,
        }

    def close(self) -> None:
        """End what is under way; a training saves its state first."""
        self._ends.set()
        with self._guard:
            process, thread = self._process, self._thread
            self._is_stopping = True
        if process is not None:
            process.end()
        if thread is not None:
            thread.join(SECONDS_TO_TRY)

    def _told(self, lesson: Lesson) -> dict[str, Any]:
        has_model = self.lessons.model(lesson.number) is not None
        return {**lesson.model_dump(exclude={"base"}), "has_model": has_model}

    def _begins(self) -> Literal["weights", "anew"]:
        return "weights" if self.shelf.weights else "anew"

    def _phase(self) -> str:
        if self._process is not None:
            return "stopping" if self._is_stopping else "training"
        return "idle" if self._number is None else "trying"

    def _require_idle(self) -> None:
        if self._number is not None:
            raise RefusedError(409, "a training is under way; stop it, or wait for it")

    def _require_ready(self) -> None:
        self._require_idle()
        if why_not := self.why_not():
            raise RefusedError(409, why_not)
        if lost := self.store.lost():
            raise DataError(
                f"{len(lost)} of the corrected images and masks are no longer there ({lost[0]}); "
                "put them back where they were, beside the corrections"
            )

    def _words_to_begin(self, lesson: Lesson) -> list[str]:
        weights = ["--weights", str(self.shelf.weights)] if self.shelf.weights else []
        # --overwrite: what is here was killed before it wrote its settings, or is not there
        place = ["--out", str(self.lessons.run(lesson.number)), "--overwrite"]
        limit = ["--time-limit", f"{lesson.seconds}s", "--device", self.shelf.given.device]
        data = ["--data-path", str(self.lessons.folder), *self._reading]
        return ["train", "--auto", *data, *weights, *place, *limit, "train.trackers=[]"]

    def _start(self, lesson: Lesson, words: Sequence[str]) -> None:
        self.lessons.keep(lesson)
        curve = self.lessons.curve(lesson.number)
        self._spent_before = (curve[-1]["seconds"] if curve else None) or 0.0
        self._began, self._is_stopping = time.monotonic(), False
        try:
            process = TrainingProcess(words, self.lessons.log(lesson.number))
        except StorageError as error:
            self._note(lesson.changed(state="failed", error=str(error)))
            raise
        self._process, self._number = process, lesson.number
        self._run(self._watch, lesson, process)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        self._thread = threading.Thread(target=work, args=arguments, name="teaching", daemon=True)
        self._thread.start()

    def _watch(self, lesson: Lesson, process: TrainingProcess) -> None:
        """Wait for a training, write down how it ended, and try what it left."""
        code = process.wait()
        if code == 0:
            lesson = lesson.changed(state="done")
        elif self._is_stopping:
            lesson = lesson.changed(state="stopped")
        else:
            lesson = lesson.changed(state="failed", error=_why_failed(code, process))
        self._note(lesson)
        left_a_model = self.lessons.model(lesson.number) is not None
        with self._guard:
            self._process = None
            if not left_a_model:
                self._number = None
        if left_a_model:
            self._try(lesson)

    def _try(self, lesson: Lesson) -> None:
        """Try a lesson's model, unless the studio ends."""
        shelf = self.shelf
        try:
            self._go_on()
            trial = try_model(
                shelf.predictions,
                shelf.predictions_of(lesson.number),
                self.store,
                against=shelf.using.number,
                between=self._go_on,
            )
            self._note(lesson.changed(trial=trial))
        except EndedError:
            pass  # the page can ask for it again
        except NotanError as error:
            logger.warning("training %d: %s", lesson.number, error)
            self._note(lesson.changed(error=str(error)))
        except Exception:
            logger.exception("the model of training %d could not be tried", lesson.number)
            self._note(lesson.changed(error="its model could not be tried; the log says why"))
        finally:
            with self._guard:
                self._number = None

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise EndedError

    def _note(self, lesson: Lesson) -> None:
        """Write a lesson down; where the disk is full it is known until the studio ends."""
        try:
            self.lessons.keep(lesson)
        except StorageError as error:
            logger.warning("%s", error)
            self.lessons.hold(lesson)


def _why_failed(code: int, process: TrainingProcess) -> str:
    if code >= 0:
        return process.fault()
    name = signal.Signals(-code).name
    hint = ", as where the memory runs out" if name == "SIGKILL" else ""
    return f"the training was ended from outside by {name}{hint}; it can be resumed"


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RefusedError(400, f"{name}: a whole number of {least} to {most} is wanted")
    return value


def _seconds(asked: Mapping[str, Any]) -> int:
    return _whole(asked, "seconds", LEAST_SECONDS, MOST_SECONDS)


def _number(asked: Mapping[str, Any]) -> int:
    return _whole(asked, "number", BASE, MOST_NUMBER)
