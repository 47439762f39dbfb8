"""The part of the data doctor's page about masks that cross-validated networks doubt."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from notan.data.formats import read_picture
from notan.predict.formats import overlay_picture
from notan.report.check_thumbnails import encode_jpeg, fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.labels.search import LabelSearch
    from notan.labels.suspicion import Suspect
    from notan.types import Picture

MOST_ROWS = 12

INTRODUCTION = (
    "{folds} networks were trained with the settings of {model}, each without a part of the "
    "pictures, and predicted the part that they had not seen ({epochs} epochs, typical Dice "
    "{dice:.2f}). The most suspicious masks come first; scores from {cut:.2f} on are reported "
    "above. Left the picture, then the given mask (blue), then the network's (orange)."
)


def label_section(search: LabelSearch) -> str:
    """Return HTML that shows the most suspicious masks beside held-out predictions.

    Args:
        search: What was found. The files of the first 12 are read again.
    """
    plan, ranking = search.plan, search.ranking
    text = INTRODUCTION.format(
        folds=plan.folds,
        model=plan.model,
        epochs=plan.run.train.epochs,
        dice=ranking.typical.dice,
        cut=ranking.typical.cut,
    )
    rows = "".join(_rows(search))
    return f'<h2 id="labels">Masks by suspicion</h2><p class="legend">{escape(text)}</p>{rows}'


def _rows(search: LabelSearch) -> Iterator[str]:
    ranking = search.ranking
    for place, suspect in enumerate(ranking.suspects[:MOST_ROWS], start=1):
        reported = "warning" if suspect.explanation else "note"
        state = reported if ranking.is_beyond_cut(suspect) else "none"
        images = "".join(
            f'<figure><img src="data:image/jpeg;base64,{encode_jpeg(picture)}" alt=""></figure>'
            for picture in _pictures(search, suspect)
        )
        yield (
            f'<article class="{state}"><h3>{place}. {escape(suspect.judgement.name)} '
            f'<span class="count">{suspect.score:.2f}</span></h3>'
            f'<p>{escape(suspect.in_words())}</p><div class="triple">{images}</div></article>'
        )


def _pictures(search: LabelSearch, suspect: Suspect) -> Iterator[Picture]:
    """Give the picture alone, with the given mask's outline, and with the prediction's."""
    name = suspect.judgement.name
    sample = search.sample(name)
    predicted = read_picture(search.predictions / f"{name}.png")[..., 0] > 127
    small = fit(sample.image)
    nothing = np.zeros(small.shape[:2], bool)
    mask, prediction = (
        fit(np.asarray(each, np.uint8) * np.uint8(255)) > 127 for each in (sample.mask, predicted)
    )
    yield small
    yield overlay_picture(small, nothing, truth=mask)
    yield overlay_picture(small, prediction)
