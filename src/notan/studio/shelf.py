"""The models of a studio: the one it was started with, the taught ones, and which is in use."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.api import load
from notan.errors import DataError, NotanError
from notan.modelfile.onnx import is_onnx
from notan.studio.lessons import BASE, Using

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.prediction.predictor import Predictor
    from notan.studio.lessons import Lessons
    from notan.studio.predictions import Predictions

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class GivenModel:
    """The model that a studio is started with, beside what it says of images.

    Attributes:
        path: The model's file; None: the default model.
        load: Opens another model file as the command line asked for that one.
        device: Where to train, as ``notan train`` takes it.
    """

    path: Path | None = None
    load: Callable[[Path], Predictor] = load
    device: str = "auto"


class Shelf:
    """Has one model in use, and changes it."""

    def __init__(
        self,
        base: Predictor,
        given: GivenModel,
        lessons: Lessons,
        predict: Callable[[Predictor, int], Predictions],
    ) -> None:
        """Take the model that was in use when the studio ended, or the one it is started with.

        Args:
            base: What it is started with.
            given: Where it came from.
            lessons: The taught ones.
            predict: Makes the predictions of a model, from a revision on.

        Raises:
            DataError: The file that says which is in use is damaged.
        """
        self.base, self.given, self.lessons, self._predict = base, given, lessons, predict
        self.sha256 = base.card.sha256 if base.card else ""
        self._changing = threading.Lock()
        self.using = lessons.using(self.sha256)
        try:
            predictor = self._open(self.using.number)
        except NotanError as error:
            logger.warning("the taught model cannot be used, so the one given is: %s", error)
            self.using = Using(base=self.sha256)
            predictor = base
        self.predictions = predict(predictor, 0)

    @property
    def is_of_own_class(self) -> bool:
        """Whether the base's network is a class of the user's own."""
        card = self.base.card
        return card is not None and card.run.model.class_path is not None

    @property
    def weights(self) -> Path | None:
        """The base's file where a training can go on from it; None: it is none that can."""
        path, card = self.given.path, self.base.card
        if path is None or card is None or card.model is None or is_onnx(path):
            return None
        return path.resolve()

    def predictions_of(self, number: int) -> Predictions:
        """Return what a lesson's model says of the images; nothing is predicted unasked.

        Raises:
            DataError: There is no such model.
            NotanError: It cannot be opened.
        """
        return self._predict(self._open(number), 0)

    def use(self, number: int) -> None:
        """Take a model into use; all images are predicted anew by it.

        Raises:
            DataError: There is no such model.
            NotanError: It cannot be opened.
            StorageError: It could not be written down; the other one stays in use.
        """
        with self._changing:
            if number == self.using.number:
                return
            predictor = self._open(number)
            using = Using(base=self.sha256, number=number, previous=self.using.number)
            self.lessons.keep_using(using)
            before = self.predictions
            self.using = using
            self.predictions = self._predict(predictor, before.revision + 1)
            self.predictions.start()
        before.stop()

    def _open(self, number: int) -> Predictor:
        if number == BASE:
            return self.base
        path = self.lessons.model(number)
        if path is None:
            raise DataError(f"there is no model {number} in {self.lessons.folder}")
        return self.given.load(path)
