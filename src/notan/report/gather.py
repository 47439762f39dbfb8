"""Gather what a report shows: the run folder, a score, and images predicted again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.build import SPLITS
from notan.errors import NotanError
from notan.evaluate import SPOILT, evaluate, open_subject
from notan.predict.predictor import Predictor
from notan.report.examples import Example, show_all
from notan.report.run_folder import RunFolder, read_run_folder
from notan.report.score_file import StoredScore, parse_score
from notan.runtime import find_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.checkpoint import Card

DEFAULT_SPLIT = "val"
BATCH_SIZE = 8
SAME_DICE = 0.01
"""Dice may differ by this much between devices; more comes of other weights or rules."""


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        run: What the run folder holds.
        split: The split whose score and images are shown: validation or test.
        data_path: Where its images are; None where the run does not say.
        stored: The score; None where there is none.
        examples: The worst, median and best images.
        notices: What is missing, in sentences.
    """

    run: RunFolder
    split: str
    data_path: Path | None
    stored: StoredScore | None
    examples: tuple[Example, ...]
    notices: tuple[str, ...]


def gather(
    folder: Path, *, split: str = DEFAULT_SPLIT, data_path: Path | None = None, device: str = "auto"
) -> Report:
    """Read a run folder, score it where no score of it is kept, and predict a few images.

    What the run remembers may be gone, and is then a notice; what the caller asks for by name
    must be there.

    Args:
        folder: A run folder.
        split: ``val`` or ``test``; no other part of the data is read.
        data_path: Where the images are; None: where the run found them.
        device: Where to predict.

    Raises:
        ConfigError: There is no run, no such split or no such device.
        DataError: The data folder or the split that was asked for is not there.
    """
    where = find_device(device)
    run = read_run_folder(folder)
    part = SPLITS[split]
    stored = next((score for score in run.scores if score.split == part), None)
    outdated = stored is not None and run.is_outdated(stored)
    notices = list(run.notices)
    examples: list[Example] = []
    path = data_path or run.run.data.path
    try:
        if run.card:
            predictor = Predictor.load(run.best, device=where)
            if stored is None or outdated:
                stored, outdated = _score(predictor, run.card, path, part), False
            shown = open_subject(run.card, part, data_path=path, trimap_border=stored.trimap_border)
            examples = show_all(stored.score.images, shown.source, predictor)
    except NotanError as error:
        if data_path or (stored is None and split != DEFAULT_SPLIT):
            raise
        what = "images" if stored else "scores and no images"
        notices.append(f"There are no {what} here: {error}.")
    notices += _doubts(stored, examples, outdated=outdated)
    return Report(run, part, path, stored, tuple(examples), tuple(notices))


def _score(predictor: Predictor, card: Card, path: Path | None, split: str) -> StoredScore:
    subject = open_subject(card, split, data_path=path)
    score = evaluate(
        predictor,
        subject.source,
        split=split,
        trimap_border=subject.trimap_border,
        batch_size=BATCH_SIZE,
        groupings=subject.groupings,
        allow_training_images=True,  # said on the page, better than a page without a score
    )
    return parse_score(json.loads(json.dumps(score.to_json())))


def _doubts(
    stored: StoredScore | None, examples: Sequence[Example], *, outdated: bool
) -> Iterator[str]:
    """Say what the reader must not believe."""
    if outdated and stored:
        yield (
            f"The score ({stored.path}) is older than the checkpoint, so it may be of earlier "
            "weights; evaluate again."
        )
    if stored and (seen := str(stored.score.rules.get("seen"))).startswith(SPOILT):
        yield f"The score is {seen}."
    others = [each.name for each in examples if abs(each.dice - each.dice_now) > SAME_DICE]
    if others:
        yield (
            f"{len(others)} of the images below, {others[0]} among them, come out otherwise "
            "than in the score: it was taken with other weights or rules; evaluate again."
        )
