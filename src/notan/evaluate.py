"""Evaluate a predictor against the true masks, at each picture's own size."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from notan.files import write_bytes
from notan.metrics import Counts, PictureScore, Score, ScoreRules

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Border
    from notan.data.sample import Sample, Source
    from notan.predict.predictor import Prediction, Predictor

TABLE = "pictures.csv"
SUMMARY = "score.json"


class Witness(Protocol):
    """Sees every sample with its prediction, for example to write pictures."""

    def __call__(self, sample: Sample, prediction: Prediction) -> None:
        """Look at one of them."""


def evaluate(
    predictor: Predictor,
    source: Source,
    *,
    split: str,
    border: Border | None = None,
    batch_size: int = 1,
    witness: Witness | None = None,
) -> Score:
    """Score every picture of a source.

    Args:
        predictor: Makes the masks; its threshold is used.
        source: Pictures with their true masks, read one after the other.
        split: What the score says it is of.
        border: What the score says the trimap's border counted as; None: there is none.
        batch_size: Pictures to predict at once.
        witness: Called with each sample and its prediction.

    Returns:
        The counts of each picture at its own size, with the rules.

    Raises:
        DataError: A picture or mask cannot be read, or there is none.
    """
    scores = []
    pairs = predictor.predict_samples(source, batch_size=batch_size)
    for sample, prediction in tqdm(
        pairs, total=len(source), desc="evaluating", unit="picture", leave=False, disable=None
    ):
        counts = Counts.of(prediction.mask, sample.mask, sample.ignore)
        scores.append(PictureScore(sample.name, counts, *sample.size))
        if witness:
            witness(sample, prediction)
    rules = ScoreRules(border=border or "none", threshold=predictor.decision.threshold, split=split)
    return Score(tuple(scores), rules)


def write_score(folder: Path, score: Score) -> None:
    """Write the table of pictures as CSV, and everything as JSON.

    Raises:
        StorageError: A file could not be written.
    """
    everything = score.to_json()
    rows = everything["pictures"]
    write_bytes(folder / SUMMARY, (json.dumps(everything, indent=2) + "\n").encode())
    if isinstance(rows, list):
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(folder / TABLE, table.getvalue().encode())
