"""Write a report: one page that needs nothing else, its figures as PNG, and all of it as JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from notan.files import storage_errors, write_bytes
from notan.predict.formats import write_png
from notan.report.facts import commands_of, facts_of, incident_row, kept_of, state_of
from notan.report.figures import CAPTIONS, caption_of, score_charts, training_charts
from notan.report.gather import DEFAULT_SPLIT, Report, gather
from notan.report.images import as_jpeg
from notan.report.page import fill
from notan.report.score_file import Mean
from notan.report.svg import to_png, to_svg
from notan.report.words import IN_PIXELS, meaning_of, name_of, rules_in_words
from notan.train.log import CHARTS, CONTENT, PAGE
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from notan.checkpoint import Card
    from notan.report.examples import Example
    from notan.report.score_file import ScoreFile

OURS = re.compile("|".join((*CAPTIONS, r"groups-\d+", r"image-\d+-\w+")))
"""Names of the figures that a report writes."""
MOST_INCIDENTS = 50
"""Incidents that the page shows; report.json has all."""


def write_report(
    folder: Path,
    *,
    split: str = DEFAULT_SPLIT,
    data_path: Path | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> Path:
    """Write ``report.html``, ``report/NAME.png`` and ``report.json`` for a run.

    Args:
        folder: A run folder, of a training that is finished, stopped or still going.
        split: ``val`` or ``test``: whose score and images to show.
        data_path: Where the images are; None: where the run found them.
        device: Where to predict.
        out: The folder to write into; None: the run folder.

    Returns:
        The page.

    Raises:
        ConfigError: There is no run, no such split or no such device.
        DataError: The data folder or the split that was asked for is not there.
        StorageError: A file could not be written.
    """
    report = gather(folder, split=split, data_path=data_path, device=device)
    place = out or folder
    best = report.run.card.epoch if report.run.card else None
    training = dict(training_charts(report.run.history, best))
    scores = dict(score_charts(report.stored.score, _threshold(report))) if report.stored else {}
    _write_figures(place / CHARTS, report, {**training, **scores})
    page = place / PAGE
    write_bytes(page, page_of(report, training, scores).encode())
    content = json.dumps(content_of(report), indent=2, allow_nan=False)
    write_bytes(place / CONTENT, (content + "\n").encode())
    return page


def page_of(report: Report, training: Mapping[str, Figure], scores: Mapping[str, Figure]) -> str:
    """Return the page.

    Args:
        report: What was gathered.
        training: Charts of the training by name.
        scores: Charts of the score by name.
    """
    state, words = state_of(report.run)
    score = report.stored.score if report.stored else None
    return fill(
        "report.html",
        report=report,
        run=report.run,
        score=score,
        version=__version__,
        state=state,
        words=words,
        verdict=_verdict(report),
        facts=facts_of(report),
        kept=kept_of(report.run),
        training=[_drawn(name, chart) for name, chart in training.items()],
        charts=[_drawn(name, chart) for name, chart in scores.items()],
        incidents=[incident_row(each) for each in report.run.incidents[:MOST_INCIDENTS]],
        rows=list(score_rows(score)) if score else [],
        rules=rules_in_words(score) if score else {},
        examples=[_example(each) for each in report.examples],
        commands=commands_of(report),
    )


def content_of(report: Report) -> dict[str, Any]:
    """Return all that the page shows, as values that JSON knows."""
    run, stored = report.run, report.stored
    content = {
        "notan": __version__,
        "run": str(run.path),
        "state": state_of(run)[1],
        "split": report.split,
        "notices": list(report.notices),
        "facts": {**facts_of(report), **kept_of(run)},
        "settings": run.run.model_dump(mode="json"),
        "card": _card(run.card) if run.card else None,
        "history": list(run.history),
        "seconds": run.seconds,
        "incidents": list(run.incidents),
        "score": stored.content if stored else None,
        "score_file": str(stored.path) if stored and stored.path else None,
        "scores": [
            {"file": str(each.path), "split": each.split, "mean_dice": each.score.mean_dice}
            for each in run.scores
        ],
        "examples": [
            {"place": each.place, "name": each.name, "dice": each.dice} for each in report.examples
        ],
        "commands": commands_of(report),
    }
    return {name: _finite(value) for name, value in content.items()}


@dataclass(frozen=True)
class ScoreRow:
    """A metric's line in the score card.

    Attributes:
        name: What it is called.
        meaning: What it says.
        mean: Over images; None where it is not defined.
        low: Lower end of its interval.
        high: Upper end.
        pooled: Over the pixels of all images.
        bar: Whether it is in 0..1, so that a bar can show it.
    """

    name: str
    meaning: str
    mean: float | None
    low: float | None
    high: float | None
    pooled: float | None
    bar: bool


def score_rows(score: ScoreFile) -> Iterator[ScoreRow]:
    """Put a score into lines: all its metrics, or Dice and IoU where it has no others."""
    plain = {"dice": Mean(mean=score.mean_dice), "iou": Mean(mean=score.mean_iou)}
    means = {**plain, **score.means}
    pooled = {"dice": score.pooled_dice, "iou": score.pooled_iou, **score.pooled}
    for metric in dict.fromkeys((*means, *pooled)):
        mean = means.get(metric, Mean())
        yield ScoreRow(
            name_of(metric),
            meaning_of(metric),
            mean.mean,
            mean.low,
            mean.high,
            pooled.get(metric),
            metric not in IN_PIXELS,
        )


def _threshold(report: Report) -> object:
    """Return the threshold that the masks were cut at; None where each image had its own."""
    card, rules = report.run.card, report.stored.score.rules if report.stored else {}
    if card and card.postprocessing.threshold_rule == "dice":
        by_card = rules.get("postprocessing") in (None, card.postprocessing.in_words())
        return None if by_card else rules.get("threshold")
    return rules.get("threshold")


def _verdict(report: Report) -> str:
    """Say in a sentence what the model is worth."""
    if report.stored is None:
        return "There is no score yet."
    score = report.stored.score
    mean = score.means.get("dice", Mean(mean=score.mean_dice))
    interval = ""
    if mean.low is not None and mean.high is not None:
        interval = f" ({mean.low:.3f} to {mean.high:.3f})"
    number = len(score.images)
    return (
        f"Mean Dice {score.mean_dice:.3f}{interval} "
        f"on {number} {report.split} image{'' if number == 1 else 's'}."
    )


def _drawn(name: str, chart: Figure) -> dict[str, object]:
    title, caption = caption_of(name)
    return {"name": name, "title": title, "caption": caption, "svg": Markup(to_svg(chart, name))}  # noqa: S704 - drawn by matplotlib, which escapes its texts


def _example(example: Example) -> dict[str, object]:
    panels = {name: as_jpeg(panel) for name, panel in example.panels.items()}
    return {"place": example.place, "name": example.name, "dice": example.dice, "panels": panels}


def _write_figures(folder: Path, report: Report, charts: Mapping[str, Figure]) -> None:
    """Write each figure as PNG, and remove those of an earlier report, which would deceive."""
    for path in folder.glob("*.png"):
        if OURS.fullmatch(path.stem):
            with storage_errors(path):
                path.unlink()
    for name, chart in charts.items():
        write_bytes(folder / f"{name}.png", to_png(chart))
    for number, example in enumerate(report.examples, start=1):
        write_png(folder / f"image-{number}-{example.place}.png", example.sheet())


def _card(card: Card) -> dict[str, Any]:
    """Leave out of a card what is there already, and the lists that are as long as the data."""
    long = {"training_hashes", "validation_hashes", "unlabelled_hashes", "validation_names"}
    return card.model_dump(mode="json", exclude={"run": True, "data": long})


def _finite(node: Any) -> Any:  # noqa: ANN401 - a tree as json has them
    """Put None in the place of numbers that JSON does not know."""
    if isinstance(node, dict):
        return {name: _finite(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
