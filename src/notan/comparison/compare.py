"""Compare run folders or model files: every model on the same images, by the same rules."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from notan.comparison.candidates import (
    common_trimap_border,
    common_validation,
    group_seeds,
    notes_on,
    open_candidates,
)
from notan.comparison.comparison import Comparison, Contender
from notan.comparison.measure import measure
from notan.config import load_run
from notan.data.build import find_layout, open_split
from notan.runtime import describe_hardware, find_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.comparison.candidates import Candidate
    from notan.config import TrimapBorder
    from notan.data.sample import Source

logger = logging.getLogger("notan")

ONE_SEED = (
    "Each model is one training. With another seed its mean may move as far as the differences "
    "here, so this says which of these files is better, not which kind of model."
)


def compare(
    models: Sequence[Path],
    *,
    data_path: Path | None = None,
    split: str = "test",
    trimap_border: TrimapBorder | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_training_images: bool = False,
) -> Comparison:
    """Compare two or more models on one split of a data folder.

    Args:
        models: Run folders, or model files. Those that differ in the seed only are taken together.
        data_path: The data folder; None takes the one that the first model was trained on.
        split: ``test``, ``val``, ``train`` or ``all``.
        trimap_border: What the trimap's border counts as; None takes the models' own rule.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.
        allow_training_images: Score images that a model was trained on, and say so.

    Raises:
        ConfigError: Fewer than two models, no data folder, or rules that do not fit each other.
        CheckpointError: A model is missing, damaged, foreign, or a network of the user's own.
        DataError: The folder lacks the split, an image cannot be read, or a model was trained on
            it.
    """
    candidates = open_candidates(models)
    first = candidates[0].card.run
    flags = {
        "data.path": data_path or first.data.path,
        "data.layout": first.data.layout,
        "data.trimap_border": common_trimap_border(candidates, trimap_border),
    }
    data = load_run(flags=flags).data
    names = common_validation(candidates, split)
    source = open_split(data, split, seed=first.seed, validation_names=names)
    rule = data.trimap_border if find_layout(data) == "pets" else None
    return compare_on(
        candidates,
        source,
        split=split,
        trimap_border=rule,
        device=device,
        batch_size=batch_size,
        allow_training_images=allow_training_images,
    )


def compare_on(
    candidates: Sequence[Candidate],
    source: Source,
    *,
    split: str,
    trimap_border: TrimapBorder | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_training_images: bool = False,
) -> Comparison:
    """Compare opened models on images of any source.

    Args:
        candidates: From ``open_candidates``.
        source: Images with their true masks.
        split: What the comparison says they are.
        trimap_border: What it says the trimap's border counted as; None: there is none.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.
        allow_training_images: Score images that a model was trained on, and say so.

    Raises:
        CheckpointError: A file is damaged, or of a network of the user's own.
        DataError: An image or mask cannot be read, there is none, or a model was trained on it.
    """
    place = find_device(device)
    groups = group_seeds(candidates)
    contenders = []
    for group in groups:
        results = []
        for member in group.members:
            logger.info("evaluating %s on %d images", member.name, len(source))
            results.append(
                measure(
                    member,
                    source,
                    split=split,
                    trimap_border=trimap_border,
                    device=place,
                    batch_size=batch_size,
                    allow_training_images=allow_training_images,
                )
            )
        contenders.append(Contender.of(group.name, results))
    notes = [*notes_on(candidates, trimap_border), *_seen(contenders)]
    if all(len(group.members) == 1 for group in groups):
        notes.append(ONE_SEED)
    return Comparison.of(contenders, source, describe_hardware(place), notes)


def _seen(contenders: Sequence[Contender]) -> list[str]:
    """Say what the models have seen of the images, once where it is the same for all."""
    names: dict[str, list[str]] = {}
    for result in (result for contender in contenders for result in contender.results):
        names.setdefault(result.score.rules.seen, []).append(result.candidate.name)
    if len(names) == 1:
        return [f"Of each model: {words}." for words in names]
    return [f"Of {', '.join(models)}: {words}." for words, models in names.items()]
