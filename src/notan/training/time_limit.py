"""The time limit: the time in which a training ends, with all that comes before it and after it.

A time limit pays for the start of the command, for steps with validations between them, and for the
end: the last validation, the choice of threshold and the report. What the end will take is timed
before the first step, on an image or two, and corrected by every validation; what is left is for
the steps. How fast those go is noted again and again, and the learning rate between two notes is a
function of the steps alone, so that a training which is stopped goes on with the same rates. Where
the end takes longer than it should, because the machine got busy, the report is left out first,
and then the choice.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from notan.runtime import how_busy
from notan.training.optim import SHORTEST, Throughput
from notan.training.ranks import ALONE

if TYPE_CHECKING:
    from notan.training.optim import Schedule
    from notan.training.ranks import Ranks
    from notan.training.state import Progress

logger = logging.getLogger("notan")

MARGIN = 1.2
"""Times what the end is expected to take: what is kept for it."""

APART = 12.0
"""Time of steps between two validations, over what one takes: they take a thirteenth of the time
at most."""

FIRST_APART = 4.0
"""Likewise before the first: it leaves a model early, and tells what a validation really takes."""

STRETCHES = 32
"""Notes of the speed in a training, or a few more."""

FIRST_STEPS = 4
"""Steps after which their speed is known well enough to say how many fit."""

REPORTING = 0.6
"""Time that a report takes to score images, over the time that the choice on them takes."""

MOST_FOR_REPORT, MOST_FOR_CHOICE = 0.2, 0.75
"""Shares of the time left after the start: an end that takes more goes without the report, which
can be written later, or without the choice of threshold too."""


@dataclass(frozen=True)
class Overhead:
    """What surrounds a training, which its time limit pays for too.

    Attributes:
        began: The moment at which the command began, by ``time.monotonic()``.
        report_seconds: What a report will take after the training, beside scoring the validation
            images, on a machine that does nothing else; 0: there will be none.
        leaving_seconds: What the process takes to end, likewise.
    """

    began: float = field(default_factory=lambda: time.monotonic())
    report_seconds: float = 0.0
    leaving_seconds: float = 0.0


class Rehearsal(NamedTuple):
    """What the end of a training was found to take, before the first step.

    Attributes:
        predicting: Seconds to read and predict all validation images.
        choosing: Seconds of the choice of threshold, with that.
    """

    predicting: float
    choosing: float


@dataclass
class Spent:
    """What a time limit has been spent on; saved in the state.

    Attributes:
        time_limit: The whole time limit that ``report`` and ``choice`` were decided for.
        total: Seconds, those of earlier calls of the command included.
        trained: Seconds of it on steps.
        validated: What ``trained`` was at the last validation.
        validating: Seconds that a validation takes: expected, then measured.
        predicting: Seconds of it for each model, and of ``choosing``.
        choosing: Seconds that the choice of threshold is expected to take; None: not yet timed.
        report: Whether time is kept for the report.
        choice: Whether time is kept for the choice of threshold.
        rate: The learning rate with which the present epoch began.
    """

    time_limit: float = 0.0
    total: float = 0.0
    trained: float = 0.0
    validated: float = 0.0
    validating: float = 0.0
    predicting: float = 0.0
    choosing: float | None = None
    report: bool = True
    choice: bool = True
    rate: float = 0.0


class TimeLimit:
    """Divides a time among steps, validations and the end of a training."""

    def __init__(
        self, seconds: float, overhead: Overhead, schedule: Schedule, ranks: Ranks = ALONE
    ) -> None:
        """Take what there is to divide.

        Args:
            seconds: From the beginning of the command to its end.
            overhead: What goes on before and after the training.
            schedule: Of the learning rate; gets the pace of the training at every note.
            ranks: Whose time it is: they all go by the first one's clock.
        """
        self.ranks = ranks
        self.seconds = seconds
        self.overhead = overhead
        self.schedule = schedule
        self.spent = Spent()
        self._busy = 1.0
        self._before = 0.0
        self._moment = 0.0
        self._told = False

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` takes up."""
        pace = self.schedule.pace
        return {"spent": asdict(self.spent) | {"total": self.total}, "pace": pace and asdict(pace)}

    def restore(self, state: dict[str, Any] | None, progress: Progress) -> None:
        """Take up what an earlier call of the command has spent.

        Args:
            state: What ``state`` returned; None: that call had no time limit.
            progress: Where it stood; what its epochs took counts then.
        """
        if state:
            self.spent = Spent(**state["spent"])
            self.schedule.pace = state["pace"] and Throughput(**state["pace"])
            self.schedule.apply()
        else:
            earlier = progress.earlier_seconds
            trained = earlier + progress.seconds
            rate = self.schedule.present_rate
            self.spent = Spent(total=trained, trained=trained, validated=earlier, rate=rate)
        self._before = self.spent.total

    @property
    def total(self) -> float:
        """Seconds that are spent."""
        return self._before + self.ranks.now() - self.overhead.began

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 where the time limit was too small."""
        return self.seconds - self.total

    def expect(self, rehearsal: Rehearsal, models: int) -> None:
        """Take in what was rehearsed for an end in which so many models are validated."""
        spent = self.spent
        spent.predicting, spent.choosing = rehearsal
        spent.validating = models * spent.predicting

    def plan(self) -> None:
        """Decide what the end consists of, once for each time limit."""
        self._busy = self.ranks.of_first(how_busy())
        if self.spent.time_limit == self.seconds:
            return
        spent = self.spent
        spent.time_limit, spent.report, spent.choice = self.seconds, True, True
        spent.report = self.end <= MOST_FOR_REPORT * self.left
        spent.choice = spent.report or self.end <= MOST_FOR_CHOICE * self.left

    @property
    def end(self) -> float:
        """Seconds to keep for what comes after the last step."""
        spent = self.spent
        end = spent.validating + self._leaving
        if spent.choice:
            end += spent.choosing or 0.0
        if spent.report:
            end += self._reporting
        return MARGIN * end

    @property
    def _reporting(self) -> float:
        report = self._busy * self.overhead.report_seconds
        return report + REPORTING * (self.spent.choosing or 0.0) if report > 0 else 0.0

    @property
    def _leaving(self) -> float:
        return self._busy * self.overhead.leaving_seconds

    @property
    def fits_choice(self) -> bool:
        """Whether a choice of threshold that begins now ends within the time limit."""
        choosing = self.spent.choosing or 0.0
        return self.spent.choice and self.left >= choosing + self._leaving

    def fits_report(self) -> bool:
        """Whether a report that begins now ends within the time limit."""
        self._busy = how_busy()
        return self.left >= MARGIN * (self._reporting + self._leaving)

    def require_time(self) -> None:
        """Let what is not needed end where the time limit does.

        Raises:
            TimeoutError: There is only time to leave.
        """
        if self.left < self._leaving:
            raise TimeoutError("the time limit is over")

    def begin_steps(self, *, anew: bool) -> None:
        """Begin an epoch's steps, or the rest of them: from here on time counts as theirs.

        Args:
            anew: Whether the epoch begins; the speed is noted then, as there was a validation or
                a stop before it.
        """
        self._moment = self.ranks.now()
        if anew:
            self.note()
            self.spent.rate = self.schedule.present_rate

    def history(self) -> dict[str, float]:
        """Return what belongs into an epoch's line of the history."""
        pace = self.schedule.pace
        speed = {"time_limit/step_seconds": pace.step_seconds} if pace else {}
        return {**speed, "time_limit/seconds": self.total, "time_limit/steps_left": self.steps_left}

    def after_step(self) -> bool:
        """Count a step's time, and note the speed when it is time to.

        Returns:
            Whether it is known now, and was not before, how many steps fit: True once.
        """
        now = self.ranks.now()
        self.spent.trained += now - self._moment
        self._moment = now
        pace, steps = self.schedule.pace, self.schedule.steps
        if pace is None or steps - pace.step >= min(pace.step, pace.steps / STRETCHES):
            self.note()
            if steps >= FIRST_STEPS and not self._told:
                self._told = True
                return True
        return False

    def after_validation(self, models: int) -> None:
        """Count what has been done since the last step as a validation of so many models."""
        spent = self.spent
        spent.validating = self.ranks.now() - self._moment
        spent.validated = spent.trained
        if spent.choosing is not None:
            before, spent.predicting = spent.predicting, spent.validating / models
            spent.choosing += spent.predicting - before

    def note(self) -> None:
        """Note how fast the steps go and how many are left: the learning rate follows."""
        schedule, trained = self.schedule, self.spent.trained
        before, steps = schedule.pace, schedule.steps
        since = (before.step, before.trained) if before else (0, 0.0)
        if steps > since[0]:
            step_seconds = max((trained - since[1]) / (steps - since[0]), SHORTEST)
        elif before:
            step_seconds = before.step_seconds
        else:
            return
        most = schedule.settings.epochs * schedule.steps_per_epoch - steps
        left = max(0.0, min(self._for_steps(step_seconds), most * step_seconds))
        schedule.pace = Throughput(steps, trained, left, step_seconds)
        schedule.apply()

    def _for_steps(self, step_seconds: float) -> float:
        """Return the seconds that are left for steps, beside the validations between them."""
        time_left = self.left - self.end
        validating = self.spent.validating
        epoch = step_seconds * self.schedule.steps_per_epoch
        since = self.spent.trained - self.spent.validated
        after_next = since + time_left - epoch * self._epochs_between(epoch, self._apart)
        between = epoch * self._epochs_between(epoch, APART)
        validations = 0
        if after_next >= validating:
            validations = 1 + int((after_next - validating) // (between + validating))
        return time_left - validations * validating

    def _epochs_between(self, epoch: float, apart: float) -> int:
        """Return how many epochs of so many seconds lie between two validations."""
        return max(1, math.ceil(apart * self.spent.validating / epoch))

    @property
    def _apart(self) -> float:
        return APART if self.spent.validated else FIRST_APART

    @property
    def is_over(self) -> bool:
        """Whether the time for steps is over: one more would be too much. Never before the first.

        Read before a step, or before an epoch.
        """
        pace = self.schedule.pace
        return pace is not None and self.left - self.end < pace.step_seconds

    @property
    def wants_validation(self) -> bool:
        """Whether validations would not take too much of the time if one were made now."""
        spent = self.spent
        return spent.trained - spent.validated >= self._apart * spent.validating

    @property
    def has_validated(self) -> bool:
        """Whether no step was taken since the last validation."""
        return self.spent.validated == self.spent.trained

    @property
    def steps_left(self) -> int:
        """Steps that still fit; 0: the training is over."""
        pace = self.schedule.pace
        if pace is None:
            return 1
        return 0 if self.is_over else max(1, int(pace.left / pace.step_seconds))

    def warn_if_too_small(self) -> None:
        """Say what fits into the time limit, or that not even the end does."""
        if self.left >= self.end:
            logger.info("%s", self.in_words())
            return
        logger.warning(
            "a time limit of %g s is too small and will not be kept: %.0f s are spent before the "
            "first step, and the end takes about %.0f s; give --time-limit %.0fs or more",
            *(self.seconds, self.total, self.end, 2 * (self.total + self.end)),
        )

    def in_words(self) -> str:
        """Say how much is in the time limit, what it has been spent on and what fits."""
        start = (
            f"a time limit of {self.seconds:g} s: {self.total:.0f} s are spent, about "
            f"{self.end:.0f} s are kept for the end"
        )
        pace = self.schedule.pace
        if pace is None:
            return start
        fits = f"about {pace.steps:.0f} steps fit between them, {self.epochs:.1f} epochs"
        most = ", at most, as images of the whole size take longer" if self.schedule.halves else ""
        return f"{start}; {fits}{most}"

    def validations_in_words(self) -> str:
        """Say how often there is a validation, once the speed is known."""
        if self.schedule.pace is None:
            return ""
        epoch = self.schedule.pace.step_seconds * self.schedule.steps_per_epoch
        every, validating = self._epochs_between(epoch, APART), self.spent.validating
        share = validating / (every * epoch + validating)
        epochs = f"{every} epochs" if every > 1 else "epoch"
        return (
            f"a validation takes {validating:.1f} s: one after every {epochs}, {share:.0%} of the "
            "time, and at the end"
        )

    @property
    def epochs(self) -> float:
        """Epochs that fit, as far as the speed is known; 0 before that."""
        pace = self.schedule.pace
        return pace.steps / self.schedule.steps_per_epoch if pace else 0.0
