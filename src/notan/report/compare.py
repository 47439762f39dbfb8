"""The page of a comparison: table, chart, verdicts, and the images on which the models differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from notan.comparison.comparison import SPEED, difference_of, headline, method, table
from notan.prediction.formats import overlay_image
from notan.report.charts import compare_chart
from notan.report.page import fill, fitted

if TYPE_CHECKING:
    from notan.comparison import Comparison
    from notan.comparison.comparison import ImagePair, ModelResult
    from notan.data.samples import Sample
    from notan.types import RGBImage

    Overlay = tuple[str, float, RGBImage]

SHOWN = 3
"""Images of a pair that are shown."""

MOST_SHOWN = 24
"""Images on the whole page; of more pairs than this none are shown, so that it still opens."""


SIDE, LEAST_SIDE = 340, 170
"""Pixels of the longer side: twice what is shown, for sharp screens; tiny ones are magnified."""


def compare_page(comparison: Comparison) -> str:
    """Return the page: one HTML text with its images and its style inside.

    Args:
        comparison: Of its images, up to three of each pair are read again to be shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    each = min(SHOWN, MOST_SHOWN // len(comparison.pairs))
    headings, *rows = table(comparison)
    return fill(
        "compare.html",
        comparison=comparison,
        headline=headline(comparison),
        headings=headings,
        rows=rows,
        speed=f"{comparison.hardware}; {SPEED}",
        chart=Markup(compare_chart(comparison)),  # noqa: S704 - drawn by matplotlib, which escapes
        pairs=comparison.pairs,
        difference_of=difference_of,
        images=[
            [
                _overlays(comparison.source[image.number], image, models)
                for image in pair.most_different[:each]
            ]
            for pair in comparison.pairs
            for models in [(comparison.model(pair.first), comparison.model(pair.second))]
        ],
        method=method(comparison),
        notes=comparison.notes,
    )


def _overlays(
    sample: Sample, image: ImagePair, models: tuple[ModelResult, ModelResult]
) -> tuple[str, list[Overlay]]:
    """Return an image's name, and of each of two models its title, Dice and mask on the image.

    Of several seeds the one that is nearest to their mean is shown.
    """
    overlays = []
    for model in models:
        result = model.nearest(image.number)
        overlay = overlay_image(sample.image, result.masks[image.number].unpack(), sample.mask)
        shown = fitted(overlay, side=SIDE, least_side=LEAST_SIDE)
        overlays.append((result.name, result.dice[image.number], shown))
    return sample.name, overlays
