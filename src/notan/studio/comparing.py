"""Two models side by side: the second one's masks, and how much they differ from the first one's.

The differences are computed in the background, each after the first model has predicted its image.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from notan.errors import NotanError
from notan.metrics.counts import Counts
from notan.studio.predictions import BACKGROUND_NICENESS, SECONDS_TO_END, spread
from notan.studio.raster import mask_of, unpack_raster
from notan.studio.server import BYTES, MOST_DIGITS, number_in
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

    from notan.studio.gallery import ListedImage
    from notan.studio.predictions import KeptPrediction, Predictions
    from notan.studio.server import Studio
    from notan.types import Mask

logger = logging.getLogger("notan")

PAUSE_SECONDS = 0.5
"""Between two looks at what the first model has predicted meanwhile."""


class Difference(NamedTuple):
    """How two models see an image.

    Attributes:
        model: SHA-256 of the first model, which another may have taken the place of.
        share: 1 less the Dice between both masks: 0 they are equal, 1 they have no pixel in common.
        expected_dice: What the second model expects of its own mask.
        true_dice: Of the second model's mask against the one in the data; None: there is none.
        fault: Why the second model has no mask of it; nothing: it has one.
        revision: Grows with each difference that becomes known.
    """

    model: str
    share: float | None
    expected_dice: float | None
    true_dice: float | None
    fault: str
    revision: int


class SideBySide:
    """Compares a second model with the studio's."""

    def __init__(self, studio: Studio, other: Predictions | None) -> None:
        """Make ready; nothing is compared before ``start``.

        Args:
            studio: Its model is the first.
            other: What the second model says of the images; None: there is no second one.
        """
        self.studio, self.other = studio, other
        self._known: dict[str, Difference] = {}
        self._revision = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(other,), name="comparison", daemon=True
        )

    def start(self) -> None:
        """Begin to compare, in a thread of its own."""
        if self.other is not None:
            self._thread.start()

    def stop(self) -> None:
        """End after the image that is being compared, or without it where it takes long."""
        self._stopped.set()
        if self.other is not None:
            self.other.stop()
        if self._thread.ident is not None:
            self._thread.join(SECONDS_TO_END)

    def routes(self) -> list[Route]:
        """Return what the page may ask for."""
        return [
            Route("/api/compare", self.compare, methods=["GET"]),
            Route("/api/images/{image}/other", self.mask, methods=["GET"]),
        ]

    def compare(self, request: Request) -> Response:
        """Return both models' names and the differences that became known since a revision."""
        if self.other is None:
            return JSONResponse({"names": None, "revision": 0, "images": []})
        since, now = number_in(request, "since"), self._revision
        names = [_name_of(each) for each in (self.studio.predictions, self.other)]
        rows = [
            [image, each.share, each.expected_dice, each.true_dice, each.fault]
            for image, each in self._known.copy().items()
            if each.revision > since
        ]
        return JSONResponse({"names": names, "revision": now, "images": rows})

    def mask(self, request: Request) -> Response:
        """Return the second model's mask as ``pack_raster`` makes it."""
        image = self.studio.find(request)
        if self.other is None:
            raise RefusedError(404, "there is no second model; start the studio with --compare")
        self.studio.predictions.stay_calm()
        return Response(self.other.get(image).raster, media_type=BYTES)

    def _run(self, other: Predictions) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
        while not self._stopped.is_set():
            for image in spread(self.studio.gallery.images):
                if self._stopped.is_set():
                    return
                if self._is_due(image):
                    self.studio.predictions.rest()
                    self._note(image, other)
            self._stopped.wait(PAUSE_SECONDS)

    def _is_due(self, image: ListedImage) -> bool:
        """Say whether the first model has predicted an image, and it is not compared yet."""
        first, known = self.studio.predictions, self._known.get(image.id)
        is_predicted = first.outlook(image).expected_dice is not None
        return is_predicted and (known is None or known.model != first.model)

    def _note(self, image: ListedImage, other: Predictions) -> None:
        first = self.studio.predictions
        known = Difference(first.model, None, None, None, "", self._revision + 1)
        try:
            second = other.get(image)
            dice = Counts.of(_mask(second), _mask(first.get(image))).dice
            known = known._replace(
                share=round(1 - dice, 4),
                expected_dice=second.header.expected_dice,
                true_dice=second.header.true_dice,
            )
        except NotanError as error:
            known = known._replace(fault=str(error))
        except Exception as error:
            logger.exception("%s could not be compared", image.path)
            known = known._replace(fault=f"could not be compared ({type(error).__name__})")
        self._known[image.id] = known
        self._revision = known.revision  # last: whoever reads it finds what it counts


def _mask(kept: KeptPrediction) -> Mask:
    return mask_of(unpack_raster(kept.raster, kept.header.size))


def _name_of(predictions: Predictions) -> str:
    """Return a network's name and the first digits of its file's hash."""
    card = predictions.predictor.card
    network = card.run.model.name if card else "a network"
    return f"{network} {predictions.model[:MOST_DIGITS]}".strip()
