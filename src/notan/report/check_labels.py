"""The part of the data doctor's page about masks that cross-validated networks doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.data.formats import read_image
from notan.predict.formats import overlay_image
from notan.report.check_thumbnails import fit
from notan.report.images import as_jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.labels.search import LabelSearch
    from notan.labels.suspicion import Suspect
    from notan.types import RGBImage

MOST_ROWS = 12


@dataclass(frozen=True)
class LabelRow:
    """One doubted mask, as the page shows it.

    Attributes:
        suspect: What is held against it.
        state: warning or note where it is reported, else none.
        images: JPEGs of the image, of the given mask on it and of the prediction.
    """

    suspect: Suspect
    state: str
    images: tuple[str, ...]


def label_rows(search: LabelSearch) -> list[LabelRow]:
    """Return the most suspicious masks beside held-out predictions.

    Args:
        search: What was found. The files of the first 12 are read again.
    """
    ranking = search.ranking
    return [
        LabelRow(
            suspect,
            ("warning" if suspect.explanation else "note")
            if ranking.is_beyond_cut(suspect)
            else "none",
            tuple(as_jpeg(image) for image in _images(search, suspect)),
        )
        for suspect in ranking.suspects[:MOST_ROWS]
    ]


def _images(search: LabelSearch, suspect: Suspect) -> Iterator[RGBImage]:
    """Give the image alone, with the given mask's outline, and with the prediction's."""
    name = suspect.judgement.name
    sample = search.sample(name)
    predicted = read_image(search.predictions / f"{name}.png")[..., 0] > 127
    small = fit(sample.image)
    nothing = np.zeros(small.shape[:2], bool)
    mask, prediction = (
        fit(np.asarray(each, np.uint8) * np.uint8(255)) > 127 for each in (sample.mask, predicted)
    )
    yield small
    yield overlay_image(small, nothing, truth=mask)
    yield overlay_image(small, prediction)
