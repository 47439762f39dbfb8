"""What an image's own colours and edges say of a mask: GrabCut in a crop, and edges to snap to.

Both are asked for by the page and change nothing here: the page makes a stroke of what it is told.
"""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from notan.config.sections import Section
from notan.data.survey import stamp_of
from notan.errors import DataError
from notan.studio.raster import as_text, from_text, inflate
from notan.studio.shown import read_shown
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from notan.io.images import ImageReading
    from notan.studio.gallery import ListedImage
    from notan.types import Mask, RGBImage

MOST_CUT_PIXELS = 2**18
"""GrabCut takes some 0.3 s of one core for so many; a larger crop is made smaller first."""

ITERATIONS = 3
LAST_LABEL = 3
SECONDS_TO_WAIT = 20.0
"""For a cut that somebody else asked for."""

EDGE_BLUR = 0.8
LEAST_KNEE = 4.0
"""Steps of 8-bit colour that count as half an edge even where the whole image is flat."""

KNEE_SHARE = 90
"""Per cent of an image's places whose step is smaller than what counts as half an edge."""

LOOKED_AT = 2**18
"""Places of which that share is taken: of a large image every second, third, ... one."""

ROWS_AT_ONCE = 512
"""Of an image whose edges are computed in floats: the largest would take a gigabyte at once."""

Corner = Annotated[int, Field(ge=0, strict=True)]
Side = Annotated[int, Field(ge=1, strict=True)]


class CutRequest(Section):
    """A crop of an image, and what is known of each of its pixels.

    Attributes:
        left: Of the crop, in the image's pixels.
        top: Likewise.
        width: Likewise.
        height: Likewise.
        labels: A byte for each pixel, row by row, compressed, as base64: 0 background, 1
            foreground, 2 probably background, 3 probably foreground, as GrabCut counts.
    """

    left: Corner
    top: Corner
    width: Side
    height: Side
    labels: str

    def unpacked(self) -> npt.NDArray[np.uint8]:
        """Return the labels, (height, width).

        Raises:
            DataError: They are more or fewer than the crop has pixels, or no labels.
        """
        content = inflate(from_text(self.labels), self.width * self.height)
        labels = np.frombuffer(content, np.uint8).reshape(self.height, self.width)
        if labels.max() > LAST_LABEL:
            raise DataError(f"the labels reach {labels.max()}; wanted 0 to {LAST_LABEL}")
        return labels


def read_cut(content: bytes) -> CutRequest:
    """Read what a page asks to be cut.

    Raises:
        RefusedError: It is something else.
    """
    try:
        return CutRequest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(400, f"this is no crop to be cut ({where}: {first['msg']})") from error


class Cutter:
    """Cuts what a page scribbled on, one crop at a time; keeps the last image's pixels."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._known: tuple[Path, tuple[int, int] | None] | None = None
        self._pixels: RGBImage | None = None

    def cut(
        self, image: ListedImage, reading: ImageReading, request: CutRequest
    ) -> dict[str, str | int]:
        """Return which pixels of a crop are foreground, and at what size they were told apart.

        Args:
            image: Which.
            reading: How it becomes 8 bits a channel.
            request: The crop.

        Returns:
            For JSON: ``foreground``, a bit for each pixel, compressed, as base64; ``step``, how
            many pixels of the image were one for GrabCut.

        Raises:
            DataError: The crop does not lie in the image, or its labels are none.
            RefusedError: Others are cutting, and did not end.
        """
        if not self._turn.acquire(timeout=SECONDS_TO_WAIT):
            raise RefusedError(503, "another cut did not end; try again", {"retry-after": "5"})
        try:
            pixels = self._read(image, reading)
            right, bottom = request.left + request.width, request.top + request.height
            if right > pixels.shape[1] or bottom > pixels.shape[0]:
                raise DataError(
                    f"the crop reaches to {right}, {bottom}; the image to {pixels.shape[1]}, "
                    f"{pixels.shape[0]} (x, y)"
                )
            crop = pixels[request.top : bottom, request.left : right]
            found, step = grab(crop, request.unpacked())
        finally:
            self._turn.release()
        packed = zlib.compress(np.packbits(found).tobytes(), 1)
        return {"foreground": as_text(packed), "step": step}

    def _read(self, image: ListedImage, reading: ImageReading) -> RGBImage:
        known = image.path, stamp_of(image.path)
        if self._pixels is None or self._known != known:
            self._pixels = None  # never two at once
            self._pixels, self._known = read_shown(image, reading), known
        return self._pixels


def grab(pixels: RGBImage, labels: npt.NDArray[np.uint8]) -> tuple[Mask, int]:
    """Tell foreground from background by colour where labels leave it open.

    Args:
        pixels: uint8, (height, width, 3).
        labels: uint8, (height, width): 0 to 3, as GrabCut counts.

    Returns:
        bool, (height, width); and how many pixels were taken for one. What is labelled for certain
        stays; where nothing is foreground, or nothing background, all stays as it is labelled.

    Source: Rother, Kolmogorov and Blake 2004, doi:10.1145/1015706.1015720, by OpenCV; crops of
    more than ``MOST_CUT_PIXELS`` are told apart at a smaller size, which bounds the time.
    """
    marked = (labels & 1).astype(np.bool_)
    if marked.all() or not marked.any():
        return marked, 1
    height, width = labels.shape
    step = int(np.ceil(np.sqrt(labels.size / MOST_CUT_PIXELS)))
    size = (-(-width // step), -(-height // step))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    told = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    seeds = told & 1
    if not seeds.any() or seeds.all():  # as small as it is, one of the two is lost
        return marked, step
    cv2.setRNGSeed(0)  # the same scribble gives the same mask
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    whole_crop = (0, 0, *size)
    cv2.grabCut(small, told, whole_crop, background, foreground, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    share = (told & 1).astype(np.float32)
    whole = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(labels > 1, whole >= 0.5, marked), step


def edges_of(pixels: RGBImage) -> npt.NDArray[np.uint8]:
    """Return how much of an edge runs through each corner of an image's pixels.

    An outline that follows corners runs between pixels, so what it holds is exact.

    Args:
        pixels: uint8, (height, width, 3).

    Returns:
        uint8, (height + 1, width + 1): 0 is none; along the image's rim nothing is known and all
        is 0. Of strong edges none is much stronger than another: a weak outline near a strong one
        can be followed.
    """
    height, width = pixels.shape[:2]
    edges = np.zeros((height + 1, width + 1), np.uint8)
    if height < 2 or width < 2:
        return edges
    steps = np.zeros((height - 1, width - 1), np.float32)
    for channel in range(pixels.shape[2]):
        plane = cv2.GaussianBlur(pixels[..., channel], (3, 3), EDGE_BLUR)
        for top in range(0, height - 1, ROWS_AT_ONCE):
            rows = plane[top : top + ROWS_AT_ONCE + 1].astype(np.float32)
            across, down = rows[:, 1:] - rows[:, :-1], rows[1:] - rows[:-1]
            step = np.hypot(across[1:] + across[:-1], down[:, 1:] + down[:, :-1]) / 2
            known = steps[top : top + ROWS_AT_ONCE]
            np.maximum(known, step, out=known)
    sparse = steps.ravel()[:: max(1, steps.size // LOOKED_AT)]
    knee = max(LEAST_KNEE, float(np.percentile(sparse, KNEE_SHARE)))
    for top in range(0, height - 1, ROWS_AT_ONCE):
        rows = steps[top : top + ROWS_AT_ONCE]
        edges[top + 1 : top + 1 + len(rows), 1:-1] = np.rint(255 * rows / (rows + knee))
    return edges
