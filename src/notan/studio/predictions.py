"""What the model says of each image: computed in the background, kept on the disk.

Memory holds a few numbers of each image. The mask and the probability lie in a file of their own,
named by what they depend on: the model and how it is asked, and the image's content.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from notan.config.sections import Section
from notan.data.samples import hash_ends, stored_in
from notan.data.survey import MOST_REMEMBERED, stamp_of
from notan.errors import DataError, NotanError
from notan.io.digest import hash_content, sha256
from notan.io.images import read_image
from notan.io.write import write_bytes
from notan.metrics.counts import Counts
from notan.prediction.pixels import probability_image
from notan.studio.raster import mask_of, pack_raster, raster_of, unpack_raster

if TYPE_CHECKING:
    from pathlib import Path

    from notan.io.images import ImageReading
    from notan.prediction.predictor import Predictor
    from notan.studio.gallery import Gallery, ListedImage
    from notan.types import Mask, Size

logger = logging.getLogger("notan")

MOST_CACHE_BYTES = 2**32
SUFFIX = ".prediction"
_LENGTHS = struct.Struct(">4sIII")
_MARK = b"NTP1"
CALM_SECONDS, MOST_CALM_SECONDS = 0.5, 3.0
"""The background rests so long after a page asked for something, and at most so long at once."""

START_SECONDS = 2.0
"""For which it rests at first: somebody is about to open the page."""

BACKGROUND_NICENESS = 10
SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class Outlook:
    """What is known of an image at a glance.

    Attributes:
        size: (height, width) in pixels; None: not known yet.
        expected_dice: What the model expects of its mask, 0..1; None: not predicted yet.
        true_dice: Of the model's mask against the one in the data; None: there is none, or not yet.
        needs_review: Whether a person should look; None: validation has not said how sure is usual.
        fault: Why the image or its mask cannot be used; nothing: it can.
        revision: Grows whenever any image's outlook changes.
    """

    size: Size | None = None
    expected_dice: float | None = None
    true_dice: float | None = None
    needs_review: bool | None = None
    fault: str = ""
    revision: int = 0


UNKNOWN = Outlook()


class Glance(Section):
    """What is known of a prediction without its pixels.

    Attributes:
        height: Of the image, in pixels.
        width: Likewise.
        expected_dice: What the model expects of its mask, 0..1.
        needs_review: Whether a person should look; None: validation has not said how sure is usual.
        threshold: Probability from which a pixel is foreground.
        true_dice: Of the mask against the one in the data; None: there was none.
        truth: A digest of that one.
    """

    height: int
    width: int
    expected_dice: float
    needs_review: bool | None
    threshold: float
    true_dice: float | None
    truth: str

    @property
    def size(self) -> Size:
        """(height, width) of the image in pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class KeptPrediction:
    """A prediction as its file holds it.

    Attributes:
        header: Size, expected Dice, true Dice and for which mask, and the threshold.
        raster: The mask, as ``pack_raster`` makes it.
        probability: uint8 of every pixel, row by row, compressed.
    """

    header: Glance
    raster: bytes
    probability: bytes

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        header = self.header.model_dump_json().encode()
        lengths = _LENGTHS.pack(_MARK, len(header), len(self.raster), len(self.probability))
        return lengths + header + self.raster + self.probability


def read_kept(path: Path, *, whole: bool = True) -> KeptPrediction | None:
    """Read a kept prediction; None: there is none, or a damaged one.

    Args:
        path: Its file.
        whole: False: the header alone.
    """
    try:
        with path.open("rb") as file:
            mark, *lengths = _LENGTHS.unpack(file.read(_LENGTHS.size))
            header = Glance.model_validate_json(file.read(lengths[0]))
            if mark != _MARK:
                return None
            if not whole:
                return KeptPrediction(header, b"", b"")
            raster, probability = file.read(lengths[1]), file.read(lengths[2])
            if len(probability) != lengths[2]:
                return None
            return KeptPrediction(header, raster, probability)
    except (OSError, ValueError, struct.error):
        return None


class Predictions:
    """Predicts the images of a gallery, those first that somebody looks at."""

    def __init__(
        self,
        predictor: Predictor,
        gallery: Gallery,
        cache: Path,
        *,
        upright: bool = True,
        revision: int = 0,
    ) -> None:
        """Make ready; nothing is predicted before ``start``.

        Args:
            predictor: The model.
            gallery: The images.
            cache: A folder for what is predicted; older content is removed where it grows large.
            upright: Whether images are turned by their EXIF orientation.
            revision: From which its revisions count: beyond those of a model whose place it takes.
        """
        self.predictor, self.gallery = predictor, gallery
        self.reading: ImageReading = replace(predictor.preprocessor.reading, upright=upright)
        self.folder = cache / "predictions" / _key(predictor, upright=upright)
        self.cache = cache
        self.model = predictor.card.sha256 if predictor.card else ""
        nothing = Outlook(revision=revision)
        self._outlooks: dict[str, Outlook] = {image.id: nothing for image in gallery.images}
        self._revision = revision
        self._guard = threading.Lock()
        self._computing = threading.Lock()
        self._waiting = 0
        self._seen: deque[ListedImage] = deque(maxlen=256)
        self._left: deque[ListedImage] = deque()
        self._came = threading.Event()
        self._stopped = threading.Event()
        self._calm_until = 0.0
        self._thread = threading.Thread(target=self._stay, name="predictions", daemon=True)

    def start(self) -> None:
        """Begin to predict, in a thread of its own."""
        prune(self.cache, MOST_CACHE_BYTES)
        self._calm_until = time.monotonic() + START_SECONDS
        self._thread.start()

    def stop(self) -> None:
        """End after the image that is being predicted, or without it where it takes long."""
        self._stopped.set()
        self._came.set()
        if self._thread.ident is not None:
            self._thread.join(SECONDS_TO_END)

    def add(self, image: ListedImage) -> None:
        """Predict an image that came later, when its turn comes."""
        with self._guard:
            self._revision += 1
            self._outlooks[image.id] = Outlook(revision=self._revision)
        self._left.append(image)
        self._came.set()

    def outlook(self, image: ListedImage) -> Outlook:
        """Return what is known of an image now."""
        return self._outlooks.get(image.id, UNKNOWN)

    @property
    def revision(self) -> int:
        """How often anything has changed."""
        return self._revision

    def saw(self, image: ListedImage) -> None:
        """Note that an image is on somebody's screen: it comes before those that are not."""
        outlook = self.outlook(image)
        if outlook.expected_dice is None and not outlook.fault:
            self._seen.append(image)

    def stay_calm(self) -> None:
        """Leave the machine to the page for a moment: somebody waits for it."""
        self._calm_until = time.monotonic() + CALM_SECONDS

    def get(self, image: ListedImage) -> KeptPrediction:
        """Return the prediction of an image, computed now if need be.

        Raises:
            DataError: The image cannot be read, or is too large for the page.
            DivergedError: The network returned NaN or infinity.
        """
        with self._guard:
            self._waiting += 1
        try:
            return self._find(image)
        finally:
            with self._guard:
                self._waiting -= 1

    def _find(self, image: ListedImage) -> KeptPrediction:
        path = self._path(image)
        if (kept := read_kept(path)) is None:
            with self._computing:
                if (kept := read_kept(path)) is None:
                    kept = self._predict(image)
                    _keep(path, kept)
        kept = _judged_anew(image, kept, path)
        self._note_kept(image, kept)
        return kept

    def _predict(self, image: ListedImage) -> KeptPrediction:
        image.require_small_enough(upright=self.reading.upright)
        prediction = self.predictor(read_image(image.path, self.reading))
        probability = probability_image(prediction.probability)
        rule = prediction.postprocessing
        header = Glance(
            height=prediction.size[0],
            width=prediction.size[1],
            expected_dice=prediction.expected_dice,
            needs_review=prediction.needs_review,
            threshold=rule.threshold,
            true_dice=_true_dice(image, prediction.mask),
            truth=_truth_digest(image),
        )
        return KeptPrediction(
            header, pack_raster(raster_of(prediction.mask)), zlib.compress(probability.tobytes(), 3)
        )

    def _note_kept(self, image: ListedImage, kept: KeptPrediction) -> None:
        header = kept.header
        outlook = Outlook(
            size=header.size,
            expected_dice=header.expected_dice,
            true_dice=header.true_dice,
            needs_review=header.needs_review,
        )
        self._note(image, outlook)

    def _note(self, image: ListedImage, outlook: Outlook) -> None:
        with self._guard:
            if replace(self.outlook(image), revision=0) != outlook:
                self._revision += 1
                self._outlooks[image.id] = replace(outlook, revision=self._revision)

    def _path(self, image: ListedImage) -> Path:
        return self.folder / f"{hash_ends(image.path)}{SUFFIX}"

    def _stay(self) -> None:
        """Predict what is there, and then what comes."""
        self._run()
        while self._came.wait() and not self._stopped.is_set():
            self._came.clear()
            self._predict_left()

    def _run(self) -> None:
        """Predict until all are done: first what is known already, then what is to be computed."""
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
        for image in self.gallery.images:
            if self._stopped.is_set():
                return
            self.rest()
            with contextlib.suppress(DataError):
                path = self._path(image)
                if (kept := read_kept(path, whole=False)) is not None:
                    self._note_kept(image, _judged_anew(image, kept, path))
        self._left.extend(spread(self.gallery.images))
        self._predict_left()

    def _predict_left(self) -> None:
        while not self._stopped.is_set() and (self._left or self._seen):
            self.rest()
            image = self._seen.pop() if self._seen else self._left.popleft()
            outlook = self.outlook(image)
            if outlook.expected_dice is not None or outlook.fault:
                continue
            self._try(image)

    def rest(self) -> None:
        """Wait while somebody else needs the machine, but not for ever."""
        until = time.monotonic() + MOST_CALM_SECONDS
        while time.monotonic() < until and not self._stopped.is_set():
            if not self._waiting and time.monotonic() >= self._calm_until:
                return
            self._stopped.wait(0.02)

    def _try(self, image: ListedImage) -> None:
        try:
            self._find(image)
        except NotanError as error:
            self._note(image, Outlook(fault=str(error)))
        except Exception as error:
            logger.exception("%s could not be predicted", image.path)
            self._note(image, Outlook(fault=f"could not be predicted ({type(error).__name__})"))


def spread(images: tuple[ListedImage, ...]) -> list[ListedImage]:
    """Return images in an order that has seen a little of everything at any time."""
    step = max(1, round(math.sqrt(len(images))))
    return [image for start in range(step) for image in images[start::step]]


def _keep(path: Path, kept: KeptPrediction) -> None:
    """Write a prediction into its file; where the disk is full it is computed again, not lost."""
    try:
        write_bytes(path, kept.to_bytes())
    except NotanError as error:
        logger.warning("%s", error)


def _judged_anew(image: ListedImage, kept: KeptPrediction, path: Path) -> KeptPrediction:
    """Return a prediction with the Dice against the mask that the data hold now."""
    truth = _truth_digest(image)
    if kept.header.truth == truth or (whole := read_kept(path)) is None:
        return kept
    mask = mask_of(unpack_raster(whole.raster, whole.header.size))
    news = {"true_dice": _true_dice(image, mask), "truth": truth}
    judged = replace(whole, header=whole.header.model_copy(update=news))
    _keep(path, judged)
    return judged


def _true_dice(image: ListedImage, mask: Mask) -> float | None:
    """Return the Dice of a mask against the one in the data; None: there is none of its size."""
    try:
        labels = image.labels()
    except DataError as error:
        logger.warning("%s", error)
        return None
    if labels is None or labels.mask.shape != mask.shape:
        return None
    return Counts.of(mask, labels.mask, labels.ignore).dice


def _truth_digest(image: ListedImage) -> str:
    """Return a digest of the mask in the data and of how it is read; nothing: there is none."""
    if image.mask is None:
        return ""
    path = stored_in(image.mask)
    try:
        return sha256(_hash_unchanged(path, stamp_of(path)), str(image.mask), image.rule)
    except DataError:
        return ""


@lru_cache(MOST_REMEMBERED)
def _hash_unchanged(path: Path, stamp: tuple[int, int] | None) -> str:
    """Return a hash of a file's content; of a file of annotations for all its images at once."""
    del stamp
    return hash_content(path)


def _key(predictor: Predictor, *, upright: bool) -> str:
    """Return a name for all that decides what a model says of an image."""
    card = predictor.card
    return sha256(
        card.sha256 if card else "",
        predictor.postprocessing.model_dump_json(),
        predictor.tiling.model_dump_json(),
        predictor.augment or "",
        predictor.precision,
        str(upright),
    )[:16]


def prune(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files below a folder until the rest is no larger than so many bytes."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            entry = path.stat()
            if path.is_file():
                found.append((entry.st_mtime, entry.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
