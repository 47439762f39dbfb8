"""A taught model against the one in use, on masks that people accepted."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from notan.data.samples import hash_ends
from notan.errors import NotanError
from notan.io.masks import read_mask
from notan.metrics.counts import Counts
from notan.studio.lessons import ModelTrial, PartTrial
from notan.studio.raster import mask_of, unpack_raster

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.studio.predictions import Predictions
    from notan.studio.store import Corrections


def try_model(
    before: Predictions,
    after: Predictions,
    store: Corrections,
    *,
    against: int,
    between: Callable[[], None],
) -> ModelTrial:
    """Score two models on the drawn images and on validation.

    Args:
        before: What the model in use says of the images.
        after: What the taught one says.
        store: The accepted masks.
        against: Number of the model in use.
        between: Called before each image; what it raises ends the trial.
    """
    try:
        parts = {
            part: _try_on(part, before, after, store, between=between) for part in ("test", "val")
        }
    except NotanError as error:
        return ModelTrial(against=against, fault=str(error))
    return ModelTrial(against=against, test=parts["test"], val=parts["val"])


def _try_on(
    part: str,
    before: Predictions,
    after: Predictions,
    store: Corrections,
    *,
    between: Callable[[], None],
) -> PartTrial | None:
    from notan.comparison.comparison import in_words  # late: it brings PyTorch
    from notan.metrics.statistics import compare_paired

    scores: list[tuple[float, float]] = []
    favoured = seen = 0
    cards = [each.predictor.card for each in (before, after)]
    learned = {each for card in cards if card for each in card.data.training_hashes}
    for image, row in store.accepted():
        if row.split != part:
            continue
        between()
        truth = read_mask(store.mask_path(image)).mask
        kept = (each.get(image) for each in (before, after))
        masks = [mask_of(unpack_raster(each.raster, each.header.size)) for each in kept]
        first, second = (Counts.of(mask, truth).dice for mask in masks)
        scores.append((first, second))
        seen += hash_ends(image.path) in learned
        favoured += row.origin.startswith("model") and row.model == before.model
    if not scores:
        return None
    firsts, seconds = zip(*scores, strict=True)
    compared = compare_paired(firsts, seconds)
    return PartTrial(
        images=len(scores),
        before=fmean(firsts),
        after=fmean(seconds),
        verdict=in_words(compared, compared.p_value, "the model in use", "the taught one"),
        favoured=favoured,
        seen=seen,
    )
