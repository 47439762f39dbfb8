"""The page of a comparison: table, chart, verdicts, and the images on which the models differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from notan.comparison.comparison import SPEED, difference_of, headline, method, table
from notan.prediction.formats import overlay_image
from notan.report.charts import compare_chart
from notan.report.run import as_jpeg, fill, fitted

if TYPE_CHECKING:
    from notan.comparison import Comparison
    from notan.comparison.comparison import Contender, Pair
    from notan.data.samples import Sample

SHOWN = 3
"""Images of a pair that are shown."""

MOST_SHOWN = 24
"""Images on the whole page; of more pairs than this none are shown, so that it still opens."""


SIDE, LEAST_SIDE = 340, 170
"""Pixels of the longer side: twice what is shown, for sharp screens; tiny ones are magnified."""


@dataclass(frozen=True)
class Overlay:
    """One model's mask on an image.

    Attributes:
        title: The model.
        dice: Its score of this image.
        image: JPEG as base64 text.
    """

    title: str
    dice: float
    image: str


@dataclass(frozen=True)
class Shown:
    """An image with the masks of two models."""

    name: str
    overlays: tuple[Overlay, Overlay]


@dataclass(frozen=True)
class PairPart:
    """What the page shows of a pair."""

    title: str
    verdict: str
    different: bool
    difference: str
    images: tuple[Shown, ...]


def compare_page(comparison: Comparison) -> str:
    """Return the page: one HTML text with its images and its style inside.

    Args:
        comparison: Of its images, up to three of each pair are read again to be shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    each = min(SHOWN, MOST_SHOWN // len(comparison.pairs))
    parts = [_part(comparison, pair, each) for pair in comparison.pairs]
    headings, *rows = table(comparison)
    return fill(
        "compare.html",
        headline=headline(comparison),
        headings=headings,
        rows=rows,
        speed=f"{comparison.hardware}; {SPEED}",
        chart=Markup(compare_chart(comparison)),  # noqa: S704 - drawn by matplotlib, which escapes
        pairs=parts,
        method=method(comparison),
        notes=comparison.notes,
    )


def _part(comparison: Comparison, pair: Pair, most: int) -> PairPart:
    return PairPart(
        title=f"{pair.first.title} and {pair.second.title}",
        verdict=pair.verdict,
        different=pair.different,
        difference=difference_of(pair),
        images=tuple(_shown(comparison, pair, each) for each in pair.most_different[:most]),
    )


def _shown(comparison: Comparison, pair: Pair, number: int) -> Shown:
    sample = comparison.source[number]
    return Shown(
        sample.name,
        (_overlay(sample, pair.first, number), _overlay(sample, pair.second, number)),
    )


def _overlay(sample: Sample, contender: Contender, number: int) -> Overlay:
    """Show a model's mask; of several seeds, the one that is nearest to their mean."""
    result = contender.nearest(number)
    image = overlay_image(sample.image, result.masks[number].unpack(), sample.mask)
    shown = fitted(image, side=SIDE, least_side=LEAST_SIDE)
    return Overlay(result.candidate.name, result.dice[number], as_jpeg(shown))
