"""The report of a run: gathered, put into words, written.

What a report calls things: metrics, rules, numbers.

What a report says of a run: its state, what was trained on what, how to do it again.

How an image becomes part of a page.

The worst, middling and best images of a score, each with truth, prediction and errors.

Gather what a report shows: the run folder, a score, and images predicted again.

Write a report: one page that needs nothing else, its figures as PNG, and all of it as JSON.

Pages: Jinja2 templates, escaped, that share one style and need nothing from outside.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from notan.config import UNLIMITED_EPOCHS
from notan.data.folders import SPLITS
from notan.errors import NotanError
from notan.evaluation.evaluate import SPOILT, evaluate, open_subject
from notan.io.write import storage_errors, write_bytes
from notan.metrics import Counts
from notan.metrics.score import BORDER_WORDS
from notan.prediction.formats import PREDICTION, TRUTH, mask_image, write_png
from notan.prediction.predictor import Predictor
from notan.report.charts import CAPTIONS, caption_of, score_charts, to_png, to_svg, training_charts
from notan.report.run_folder import RunFolder, read_run_folder
from notan.report.score_file import Mean, StoredScore, parse_score
from notan.run_folder import CHARTS, CONTENT, PAGE
from notan.runtime import find_device
from notan.training.recovery import ACTIONS
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from notan.config import Run, Train
    from notan.data.samples import Sample, Source
    from notan.modelfile.card import Card
    from notan.report.score_file import Image as ScoredImage
    from notan.report.score_file import ScoreFile
    from notan.types import Mask, RGBImage

METRICS = {
    "dice": ("Dice", "overlap: twice the shared foreground over the sum of both"),
    "plain_dice": ("Dice at threshold 0.5", "before validation chose how to cut"),
    "iou": ("IoU", "overlap: the shared foreground over the joint one"),
    "precision": ("Precision", "the share of the predicted foreground that is right"),
    "recall": ("Recall", "the share of the true foreground that is found"),
    "specificity": ("Specificity", "the share of the true background that is left alone"),
    "accuracy": (
        "Accuracy",
        "the share of all pixels that are right; high on mostly-background data",
    ),
    "boundary_f": ("Boundary F", "how much of both outlines lies within the tolerance"),
    "surface_dice": ("Surface Dice", "the share of both outlines within the tolerance"),
    "hausdorff95": (
        "Hausdorff 95",
        "pixels within which 95 % of the outlines lie; low is good",
    ),
    "average_precision": ("Average precision", "over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probabilities; low is good"),
    "ece": ("Calibration error", "how far probabilities are from what happens; low is good"),
}
"""What each metric is called, and what it says."""

IN_PIXELS = frozenset({"hausdorff95"})
"""Metrics that are not in 0..1."""

RULES = {
    "split": "Split",
    "seen": "Seen before",
    "size": "Compared at",
    "trimap_border": "TrimapBorder",
    "trained_trimap_border": "Border in training",
    "postprocessing": "Mask",
    "threshold": "Threshold",
    "augment": "Test-time augmentation",
    "tolerance": "Tolerance",
    "weights": "Began",
    "empty": "Empty images",
}


def name_of(metric: str) -> str:
    """Return what a metric is called; an unknown one's own name serves as well."""
    return METRICS.get(metric, (metric.replace("_", " ").capitalize(), ""))[0]


def meaning_of(metric: str) -> str:
    """Return what a metric says, or nothing where it is unknown."""
    return METRICS.get(metric, ("", ""))[1]


def rules_in_words(score: ScoreFile) -> dict[str, str]:
    """Return a score's rules, the known ones first and in the words of ``evaluate``."""
    rules = score.rules
    borders = {
        name: BORDER_WORDS.get(str(rules.get(name)), rules.get(name))
        for name in ("trimap_border", "trained_trimap_border")
    }
    known = {label: {**rules, **borders}.get(name) for name, label in RULES.items()}
    others = {
        name.replace("_", " ").capitalize(): value
        for name, value in rules.items()
        if name not in RULES
    }
    told = {label: plain(each) for label, each in {**known, **others}.items() if each is not None}
    told["Images without foreground"] = f"{score.empty_images} of {len(score.images)}"
    return told


def plain(value: object) -> str:
    """Write a setting as a reader would."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value)
    if isinstance(value, dict):
        return "; ".join(f"{name}: {plain(each)}" for name, each in value.items())
    return str(value)


def epochs(number: int) -> str:
    """Count epochs."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, the two largest of them."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


State = Literal["clean", "note", "warning", "error"]


def state_of(run: RunFolder) -> tuple[State, str]:
    """Say whether a run is finished, still going or was stopped."""
    done, spent = run.epochs, run.time_limit_is_reached
    of = _of(run)
    if run.in_use:
        return "note", f"Still going: {done} {of} are done."
    patience, best = run.run.train.patience, run.card.epoch if run.card else 0
    if done >= run.run.train.epochs or spent:
        return "clean", f"Finished: {epochs(done)} in {duration(run.seconds)}."
    if patience and best and done - best >= patience:
        return "clean", (
            f"Finished early, after {done} {of} in {duration(run.seconds)}: no better "
            f"Dice for {patience}."
        )
    if run.incidents and run.incidents[-1].get("action") == "stop":
        return "error", f"Stopped by the guard after {done} {of}."
    words = f"Stopped after {done} {of}" if done else "Stopped before its first epoch"
    return "warning", f"{words}; notan train --resume {shlex.quote(str(run.path))} goes on with it."


def facts_of(report: Report) -> dict[str, str]:
    """Return what was trained on what, as labels and words."""
    run, card = report.run.run, report.run.card
    train = run.train
    name = card.model_class if card else run.model.name
    weights = f", {card.parameters:,} parameters" if card and card.parameters else ""
    facts = {
        "Model": f"{name}{f', width {run.model.width}' if not card or card.model else ''}{weights}",
        **({"Began": card.beginning} if card else {}),
        "Input": _input(run),
        "Data": f"{run.data.path or 'a source of its own'}",
        **_split_facts(report),
        "Loss": " + ".join(f"{weight:g} {term}" for term, weight in _terms(run)),
        "Optimizer": f"AdamW, learning rate {train.learning_rate:g} ({train.schedule}), "
        f"batches of {train.batch_size}, {_at_most(train)}",
        "Weight average": f"decay {train.ema_decay:g}" if train.ema_decay else "none",
        "Augmentation": ", ".join(_augmentation(run)) or "none",
        "Seed": str(run.seed),
    }
    if card and card.precision:
        facts["Precision"] = card.precision
    if card and card.hardware:
        facts["Hardware"] = card.hardware
    return facts


def _input(run: Run) -> str:
    size = f" {TIMES} ".join(map(str, run.preprocess.image_size))
    if run.preprocess.keep_aspect_ratio:
        return f"shrunk to fit into {size} pixels, proportions kept"
    return f"{size} pixels"


def kept_of(run: RunFolder) -> dict[str, str]:
    """Return what the training kept, and what it took."""
    facts = {"Epochs done": f"{run.epochs} {_of(run)}".removesuffix(" epochs")}
    if run.card:
        facts["Best epoch"] = str(run.card.epoch)
        facts["Mask"] = run.card.postprocessing.in_words()
        for metric, value in run.card.scores.items():
            facts[f"Validation {name_of(metric)}"] = f"{value:.4f}"
    facts["Training time"] = duration(run.seconds)
    if run.history:
        facts["Per epoch"] = duration(run.seconds / len(run.history))
    return facts


def _of(run: RunFolder) -> str:
    """Say how many epochs there may be; a time limit knows no number."""
    train = run.run.train
    return "epochs" if train.time_limit_seconds else f"of {train.epochs} epochs"


def _at_most(train: Train) -> str:
    """Say what ends a training."""
    most = [epochs(train.epochs)] if train.epochs < UNLIMITED_EPOCHS else []
    if train.time_limit_seconds:
        most.append(f"{duration(train.time_limit_seconds)} with start and end")
    return f"at most {' or '.join(most)}"


def _terms(run: Run) -> Iterator[tuple[str, float]]:
    yield from run.loss.weights.items()
    if run.train.teacher:
        yield f"teacher ({run.train.teacher})", run.loss.teacher
    if run.train.unlabelled:
        yield f"consistency ({run.train.unlabelled})", run.loss.consistency


def _split_facts(report: Report) -> dict[str, str]:
    card = report.run.card
    if card is None:
        return {"TrimapBorder": f"{report.run.run.data.trimap_border}, where the masks have one"}
    chosen = " (set aside by the seed)" if card.data.validation_names else ""
    more = card.data.unlabelled_images
    return {
        "Split": f"{card.data.training_images} to train on, "
        f"{card.data.validation_images} to validate on{chosen}"
        f"{f', {more} without masks' if more else ''}",
        "TrimapBorder": BORDER_WORDS[card.trimap_border or "none"],
    }


def _augmentation(run: Run) -> Iterator[str]:
    """Name what varies the training images and how far."""
    augment = run.augment
    if not augment.enabled:
        return
    if augment.flip_probability:
        yield "flip"
    if augment.rotate_degrees:
        yield f"turn ± {augment.rotate_degrees:g}°"
    if augment.translate:
        yield f"shift ± {augment.translate:.0%}"
    if augment.affine_scale or (augment.scale and augment.scale_probability):
        yield "zoom"
    if augment.crop_probability:
        yield f"crop to {augment.crop_area:.0%} or more"
    if augment.brightness_contrast_probability:
        yield "brightness and contrast"
    if augment.grid_dropout_probability:
        yield "grid dropout"


def commands_of(report: Report) -> dict[str, str]:
    """Return the command lines that make the run, its score and this page again."""
    run = report.run
    place, split = shlex.quote(str(run.path)), "val" if report.split == "validation" else "test"
    data = f" --data-path {shlex.quote(str(report.data_path))}" if report.data_path else ""
    commands = {}
    if run.card is None or run.card.model is not None:
        commands["train again"] = f"notan train --recipe {place}/run.toml{data} --out {place}-again"
    if run.card:
        model = f"{place}/best.safetensors"
        commands["evaluate"] = f"notan evaluate --model {model}{data} --split {split}"
    commands["this page"] = f"notan report {place}{data} --split {split}"
    return commands


def incident_row(incident: Mapping[str, Any]) -> dict[str, str]:
    """Say when, why, and what was done; an incident may lack anything but its epoch."""
    images = incident.get("images")
    action = str(incident.get("action", ""))
    epoch, batch = incident["epoch"], incident.get("batch")
    return {
        "when": f"end of epoch {epoch}" if batch is None else f"epoch {epoch}, batch {batch}",
        "why": str(incident.get("reason", "not said")),
        "loss": plain(incident.get("loss")),
        "done": ACTIONS.get(action, action),
        "images": ", ".join(map(str, images)) if isinstance(images, list) else "",
    }


QUALITY = 82


def fitted(image: RGBImage, *, side: int, least_side: int) -> RGBImage:
    """Shrink an image so that its longer side is ``side``, or magnify what is tiny.

    Args:
        image: uint8, (height, width) or (height, width, 3).
        side: The most pixels of the longer side.
        least_side: Smaller ones are magnified to this, pixel by pixel.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(1.0, side / longest) if longest >= least_side else least_side / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)


def as_jpeg(image: RGBImage) -> str:
    """Return an RGB image as a JPEG in base64, ready for a ``data:image/jpeg`` address."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(encoded.tobytes()).decode("ascii")


Place = Literal["worst", "median", "best"]

OF_EACH = 3
SIDE = 400
"""The longer side of a panel in pixels: sharp at the size that a page shows it in."""

LEAST_SIDE = 160
"""Smaller images are magnified to this, pixel by pixel."""

GAP = 8
DIMMED = 0.45
"""How bright the image stands behind its errors, beside white."""


@dataclass(frozen=True)
class Example:
    """An image with what was made of it.

    Attributes:
        place: Why it is shown.
        name: The sample's name.
        dice: Its Dice in the score.
        dice_now: Of the prediction that is shown; another where the weights have changed since.
        panels: By what they show: image, truth, prediction, errors; all of one size.
    """

    place: Place
    name: str
    dice: float
    dice_now: float
    panels: dict[str, RGBImage]

    def sheet(self) -> RGBImage:
        """Return the panels side by side, white between them."""
        first, *others = self.panels.values()
        gap = np.full((first.shape[0], GAP, 3), 255, np.uint8)
        return np.hstack([first, *(part for panel in others for part in (gap, panel))])


def choose(images: Sequence[ScoredImage]) -> list[tuple[Place, ScoredImage]]:
    """Choose three images of each place by Dice, none of them twice.

    Where there are fewer than nine, the best come before the median ones.
    """
    ranked = sorted(images, key=lambda image: (image.dice, image.name))
    worst, rest = ranked[:OF_EACH], ranked[OF_EACH:]
    best, rest = rest[-OF_EACH:][::-1], rest[:-OF_EACH]
    start = max(0, (len(rest) - OF_EACH + 1) // 2)
    median = rest[start : start + OF_EACH]
    return [
        *(("worst", image) for image in worst),
        *(("median", image) for image in median),
        *(("best", image) for image in best),
    ]


def show(place: Place, scored: ScoredImage, sample: Sample, predictor: Predictor) -> Example:
    """Predict a sample again and draw its panels."""
    mask = predictor(sample.image).mask
    panels = {
        "image": sample.image,
        "truth": _black_and_white(sample.mask, sample.ignore),
        "prediction": _black_and_white(mask, None),
        "errors": error_map(sample.image, mask, sample.mask, sample.ignore),
    }
    return Example(
        place,
        scored.name,
        scored.dice,
        Counts.of(mask, sample.mask, sample.ignore).dice,
        {name: fitted(panel, side=SIDE, least_side=LEAST_SIDE) for name, panel in panels.items()},
    )


def show_all(images: Sequence[ScoredImage], source: Source, predictor: Predictor) -> list[Example]:
    """Show the worst, median and best images that are in a source.

    Raises:
        DataError: An image or mask cannot be read.
    """
    places = {name: index for index, name in enumerate(source.names)}
    return [
        show(place, scored, source[places[scored.name]], predictor)
        for place, scored in choose(images)
        if scored.name in places
    ]


def error_map(image: RGBImage, mask: Mask, truth: Mask, ignore: Mask | None = None) -> RGBImage:
    """Colour the pixels that are wrong on a dimmed, grey image.

    Args:
        image: uint8, (height, width, 3), RGB.
        mask: The predicted foreground, of the same size.
        truth: The true foreground.
        ignore: Pixels that do not count.

    Returns:
        uint8, (height, width, 3), RGB: predicted only (false positive) in orange, missed (false
        negative) in sky blue, the two colours that every page gives to prediction and truth.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    result = (DIMMED * grey + (1 - DIMMED) * 255).astype(np.uint8)
    result[mask & truth] = (0.75 * result[mask & truth]).astype(np.uint8)
    counted = np.ones_like(truth) if ignore is None else ~ignore
    result[mask & ~truth & counted] = PREDICTION
    result[truth & ~mask & counted] = TRUTH
    return result


def _black_and_white(mask: Mask, ignore: Mask | None) -> RGBImage:
    grey = mask_image(mask)
    if ignore is not None:
        grey[ignore] = 128
    return grey[..., None].repeat(3, axis=2)


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


TIMES = "\N{MULTIPLICATION SIGN}"


def fill(template: str, **values: object) -> str:
    """Fill in a template of ``notan.report``.

    Args:
        template: Its file name.
        values: What it shows; all text is escaped but what is ``Markup`` already.
    """
    return _environment().get_template(template).render(values)


def breakable(text: object) -> Markup:
    """Escape, and let long paths and names break after slashes and underscores."""
    return escape(text).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("notan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment
