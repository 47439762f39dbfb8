"""The report of a run: gathered from its folder, put into words, written as one page."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import to_json, to_jsonable_python

from notan.config import UNLIMITED_EPOCHS, Own
from notan.data.folders import SPLITS
from notan.errors import NotanError
from notan.evaluation.evaluate import SPOILT, evaluate, open_data
from notan.evaluation.evaluate import content_of as score_content
from notan.io.write import as_written, encoded, storage_errors, write_bytes
from notan.metrics.score import TRIMAP_BORDER_WORDS
from notan.prediction.formats import write_png
from notan.prediction.predictor import Predictor
from notan.report.charts import CAPTIONS, caption_of, score_charts, to_png, training_charts
from notan.report.examples import find_examples
from notan.report.page import TIMES, fill
from notan.report.record import read_run
from notan.run_folder import CHARTS, CONTENT, PAGE
from notan.runtime import find_device
from notan.training.guard import ACTIONS
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from notan.config import Run, Train, TrimapBorder
    from notan.metrics import Score, ScoreRules
    from notan.modelfile.card import Card
    from notan.report.examples import Example
    from notan.report.record import RunRecord

DEFAULT_SPLIT = "val"
BATCH_SIZE = 8
SAME_DICE = 0.01
"""Dice may differ by this much between devices; more comes of other weights or rules."""

OURS = re.compile("|".join((*CAPTIONS, r"groups-\d+", r"image-\d+-\w+")))
"""Names of the charts and images that a report writes."""

MOST_INCIDENTS = 50
"""Incidents that the page shows; report.json has all."""


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        run: What the run folder holds.
        split: The split whose score and images are shown: validation or test.
        data_path: Where its images are; None where the run does not say.
        score: None where there is none.
        score_path: The file that it is from; None where it was taken just now.
        examples: The worst, median and best images.
        notices: What is missing, in sentences.
    """

    run: RunRecord
    split: str
    data_path: Path | None
    score: Score | None
    score_path: Path | None
    examples: tuple[Example, ...]
    notices: tuple[str, ...]


def gather(
    folder: Path,
    *,
    split: str = DEFAULT_SPLIT,
    data_path: Path | None = None,
    device: str = "auto",
    network: str | None = None,
) -> Report:
    """Read a run folder, score it where no score of it is kept, and predict a few images.

    What the run remembers may be gone, and is then a notice; what the caller asks for by name
    must be there.

    Args:
        folder: A run folder.
        split: ``val`` or ``test``; no other part of the data is read.
        data_path: Where the images are; None: where the run found them.
        device: Where to predict.
        network: ``package:Class``, where the run is of a class of the user's own.

    Raises:
        ConfigError: There is no run, no such split, no such device, or the class does not work.
        DataError: The data folder or the split that was asked for is not there.
    """
    where = find_device(device)
    run = read_run(folder)
    part = SPLITS[split]
    kept = ((path, each) for path, each in run.scores.items() if each.rules.split in (part, split))
    score_path, score = next(kept, (None, None))
    notices = list(run.notices)
    examples: list[Example] = []
    path = data_path or run.run.data.path
    try:
        if run.card:
            predictor = Predictor.load(run.best, device=where, model=network)
            if score is None or run.is_outdated(score_path):
                score, score_path = _score(predictor, run.card, path, part), None
            border = score.rules.trimap_border
            rule = None if border == "none" else cast("TrimapBorder", border)
            shown = open_data(run.card, part, data_path=path, trimap_border=rule)
            if score.content not in (None, score_content(shown.source)):
                notices.append(
                    f"Images or masks have changed since that score was taken ({score_path}); "
                    "where this page shows another, it was taken anew."
                )
                score, score_path = _score(predictor, run.card, path, part), None
            examples = find_examples(score.images, shown.source, predictor)
    except NotanError as error:
        if data_path or network is not None or (score is None and split != DEFAULT_SPLIT):
            raise
        what = "images" if score else "scores and no images"
        notices.append(f"There are no {what} here: {error}.")
    if run.is_outdated(score_path):
        notices.append(
            f"The score ({score_path}) is older than the checkpoint, so it may be of earlier "
            "weights; evaluate again."
        )
    notices += _doubts(score, examples)
    return Report(run, part, path, score, score_path, tuple(examples), tuple(notices))


def _score(predictor: Predictor, card: Card, path: Path | None, split: str) -> Score:
    data = open_data(card, split, data_path=path)
    return evaluate(
        predictor,
        data.source,
        split=split,
        trimap_border=data.trimap_border,
        batch_size=BATCH_SIZE,
        groupings=data.groupings,
        allow_training_images=True,  # said on the page, better than a page without a score
    )


def _doubts(score: Score | None, examples: Sequence[Example]) -> Iterator[str]:
    """Say what the reader must not believe."""
    if score and score.rules.seen.startswith(SPOILT):
        yield f"The score is {score.rules.seen}."
    others = [each.name for each in examples if abs(each.dice - each.dice_now) > SAME_DICE]
    if others:
        yield (
            f"{len(others)} of the images below, {others[0]} among them, come out otherwise "
            "than in the score: it was taken with other weights or rules; evaluate again."
        )


def write_report(
    folder: Path,
    *,
    split: str = DEFAULT_SPLIT,
    data_path: Path | None = None,
    device: str = "auto",
    out: Path | None = None,
    network: str | None = None,
    between: Callable[[], None] = lambda: None,
) -> Path:
    """Write ``report.html``, ``report/NAME.png`` and ``report.json`` for a run.

    Args:
        folder: A run folder, of a training that is finished, stopped or still going.
        split: ``val`` or ``test``: whose score and images to show.
        data_path: Where the images are; None: where the run found them.
        device: Where to predict.
        out: The folder to write into; None: the run folder.
        network: ``package:Class``, where the run is of a class of the user's own.
        between: Called between the parts; what it raises ends the report before its page is there.

    Returns:
        The page.

    Raises:
        ConfigError: There is no run, no such split, no such device, or the class does not work.
        DataError: The data folder or the split that was asked for is not there.
        StorageError: A file could not be written.
    """
    report = gather(folder, split=split, data_path=data_path, device=device, network=network)
    between()
    place = out or folder
    best = report.run.card.epoch if report.run.card else None
    training = dict(training_charts(report.run.history, best))
    scores: dict[str, Figure] = {}
    if report.score:
        cut = _threshold(report.run.card, report.score.rules)
        scores = dict(score_charts(report.score, cut))
    between()
    _write_charts(place / CHARTS, report, {**training, **scores}, between)
    page = place / PAGE
    write_bytes(page, encoded(page_of(report, training, scores)))
    write_bytes(place / CONTENT, content_of(report))
    return page


def page_of(report: Report, training: Mapping[str, Figure], scores: Mapping[str, Figure]) -> str:
    """Return the page.

    Args:
        report: What was gathered.
        training: Charts of the training by name.
        scores: Charts of the score by name.
    """
    state, words = state_of(report.run)
    score = report.score
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
        caption_of=caption_of,
        training=training,
        charts=scores,
        actions=ACTIONS,
        splits=SPLITS,
        incidents=report.run.incidents[:MOST_INCIDENTS],
        metrics=METRICS,
        rules=rules_in_words(score) if score else {},
        commands=commands_of(report),
    )


def content_of(report: Report) -> bytes:
    """Return all that the page shows as JSON; null stands for what is no number."""
    run = report.run
    content = {
        "notan": __version__,
        "run": run.path,
        "state": state_of(run)[1],
        "split": report.split,
        "notices": list(report.notices),
        "facts": {**facts_of(report), **kept_of(run)},
        "settings": run.run.model_dump(mode="json"),
        "card": _card(run.card) if run.card else None,
        "history": list(run.history),
        "seconds": run.seconds,
        "incidents": list(run.incidents),
        "score": report.score,
        "score_file": report.score_path,
        "scores": [
            {"file": path, "split": SPLITS.get(each.rules.split, each.rules.split)}
            | {"mean_dice": each.mean_dice}
            for path, each in run.scores.items()
        ],
        "examples": [
            {"place": each.place, "name": each.name, "dice": each.dice} for each in report.examples
        ],
        "commands": commands_of(report),
    }
    told = _as_text(to_jsonable_python(content))
    return to_json(told, indent=2, inf_nan_mode="null") + b"\n"


def _as_text(told: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """Give every path its written form, for it need not be text."""
    if isinstance(told, dict):
        return {name: _as_text(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_as_text(value) for value in told]
    return as_written(told) if isinstance(told, str) else told


def _write_charts(
    folder: Path, report: Report, charts: Mapping[str, Figure], between: Callable[[], None]
) -> None:
    """Write each chart as PNG, and remove those of an earlier report, which would deceive."""
    for path in folder.glob("*.png"):
        if OURS.fullmatch(path.stem):
            with storage_errors(path):
                path.unlink()
    for name, chart in charts.items():
        write_bytes(folder / f"{name}.png", to_png(chart))
        between()
    for number, example in enumerate(report.examples, start=1):
        write_png(folder / f"image-{number}-{example.place}.png", example.sheet())


def _card(card: Card) -> dict[str, Any]:
    """Leave out of a card what is there already, and the lists that are as long as the data."""
    long = {"training_hashes", "validation_hashes", "unlabelled_hashes", "validation_names"}
    return card.model_dump(mode="json", exclude={"run": True, "data": long})


def _threshold(card: Card | None, rules: ScoreRules) -> float | None:
    """Return the threshold that the masks were cut at; None where each image had its own."""
    if card and card.postprocessing.threshold_rule == "dice":
        by_card = rules.postprocessing in (None, card.postprocessing.in_words())
        return None if by_card else rules.threshold
    return rules.threshold


def _verdict(report: Report) -> str:
    """Say in a sentence what the model is worth."""
    score = report.score
    if score is None:
        return "There is no score yet."
    dice, number = score.means["dice"], len(score.images)
    interval = "" if math.isnan(dice.low) else f" ({dice.low:.3f} to {dice.high:.3f})"
    images = f"{number} {report.split} image{'' if number == 1 else 's'}"
    return f"Mean Dice {score.mean_dice:.3f}{interval} on {images}."


METRICS = {
    "dice": ("Dice", "overlap: twice the shared foreground over the sum of both"),
    "plain_dice": ("Dice at threshold 0.5", "before validation chose how to cut"),
    "held_out_dice": ("Dice held out", "each image cut as the others chose: what to expect"),
    "iou": ("IoU", "overlap: the shared foreground over the joint one"),
    "precision": ("Precision", "the share of the predicted foreground that is right"),
    "recall": ("Recall", "the share of the true foreground that is found"),
    "specificity": ("Specificity", "the share of the true background that is left alone"),
    "accuracy": ("Accuracy", "the share of right pixels; high on mostly-background data"),
    "boundary_f": ("Boundary F", "how much of both outlines lies within the tolerance"),
    "surface_dice": ("Surface Dice", "the share of both outlines within the tolerance"),
    "hausdorff95": ("Hausdorff 95", "pixels within which 95 % of the outlines lie; low is good"),
    "average_precision": ("Average precision", "over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probabilities; low is good"),
    "ece": ("Calibration error", "how far probabilities are from what happens; low is good"),
}
"""What each metric is called, and what it says."""


def rules_in_words(score: Score) -> dict[str, str]:
    """Return a score's rules as labels and words."""
    rules = score.rules
    told = {
        "Split": rules.split,
        "Seen before": rules.seen,
        "Compared at": rules.size,
        "Trimap border": TRIMAP_BORDER_WORDS[rules.trimap_border],
        "Border in training": TRIMAP_BORDER_WORDS.get(rules.trained_trimap_border or ""),
        "Mask": rules.postprocessing,
        "Threshold": f"{rules.threshold:g}",
        "Test-time augmentation": rules.augment,
        "Tolerance": str(rules.tolerance),
        "Began": rules.weights,
        "Empty images": rules.empty,
        "Groups": "; ".join(f"{name}: {rule}" for name, rule in rules.groups.items()),
        "Images without foreground": f"{score.empty_images} of {len(score.images)}",
    }
    return {label: words for label, words in told.items() if words}


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


def state_of(run: RunRecord) -> tuple[str, str]:
    """Say whether a run is finished, still going or was stopped.

    Returns:
        ``clean``, ``note``, ``warning`` or ``error``, and the words.
    """
    done, of = run.epochs, _of(run)
    if run.in_use:
        return "note", f"Still going: {done} {of} are done."
    patience, best = run.run.train.patience, run.card.epoch if run.card else 0
    if done >= run.run.train.epochs or run.time_limit_is_reached:
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
    name = card.model_class if card else run.model.class_path or run.model.name
    size = f" {TIMES} ".join(map(str, run.preprocess.image_size)) + " pixels"
    shrunk = f"shrunk to fit into {size}, proportions kept"
    weights = f", {card.parameters:,} parameters" if card and card.parameters else ""
    facts = {
        "Model": f"{name}{_built_with(run)}{weights}",
        **({"Began": card.beginning} if card else {}),
        "Input": shrunk if run.preprocess.keep_aspect_ratio else size,
        "Data": f"{run.data.path or 'a source of its own'}",
        **_split_facts(report),
        "Loss": _loss(run),
        "Optimizer": f"{_optimizer(run)}, batches of {train.batch_size}, {_at_most(train)}",
        "Weight average": f"decay {train.ema_decay:g}" if train.ema_decay else "none",
        "Augmentation": f"{run.own.transform}, of its own"
        if run.own.transform
        else _augmentation(run),
        "Seed": str(run.seed),
    }
    machine = {"Precision": card.precision, "Hardware": card.hardware} if card else {}
    return facts | {label: words for label, words in machine.items() if words}


def kept_of(run: RunRecord) -> dict[str, str]:
    """Return what the training kept, and what it took."""
    facts = {"Epochs done": f"{run.epochs} {_of(run)}".removesuffix(" epochs")}
    if run.card:
        facts["Best epoch"] = str(run.card.epoch)
        facts["Mask"] = run.card.postprocessing.in_words()
        for metric, value in run.card.scores.items():
            facts[f"Validation {METRICS.get(metric, (metric, ''))[0]}"] = f"{value:.4f}"
    facts["Training time"] = duration(run.seconds)
    if run.history:
        facts["Per epoch"] = duration(run.seconds / len(run.history))
    return facts


def _of(run: RunRecord) -> str:
    """Say how many epochs there may be; a time limit knows no number."""
    train = run.run.train
    return "epochs" if train.time_limit_seconds else f"of {train.epochs} epochs"


def _at_most(train: Train) -> str:
    """Say what ends a training."""
    most = [epochs(train.epochs)] if train.epochs < UNLIMITED_EPOCHS else []
    if train.time_limit_seconds:
        most.append(f"{duration(train.time_limit_seconds)} with start and end")
    return f"at most {' or '.join(most)}"


def _loss(run: Run) -> str:
    """Name the terms of the loss with their weights."""
    terms = {f"{run.own.loss}, of its own": 1.0} if run.own.loss else dict(run.loss.weights)
    if run.train.teacher:
        terms[f"teacher ({run.train.teacher})"] = run.loss.teacher
    if run.train.unlabelled:
        terms[f"consistency ({run.train.unlabelled})"] = run.loss.consistency
    return " + ".join(f"{weight:g} {term}" for term, weight in terms.items())


def _built_with(run: Run) -> str:
    """Say how the network was built."""
    if run.model.class_path is None:
        return f", width {run.model.width}"
    return "".join(f", {name} {value}" for name, value in run.model.arguments.items())


def _optimizer(run: Run) -> str:
    own, train = run.own, run.train
    name = f"{own.optimizer}, of its own" if own.optimizer else "AdamW"
    rate = "" if own.optimizer else f", learning rate {train.learning_rate:g}"
    return f"{name}{rate} ({f'{own.schedule}, of its own' if own.schedule else train.schedule})"


def _split_facts(report: Report) -> dict[str, str]:
    card = report.run.card
    if card is None:
        return {"Trimap border": f"{report.run.run.data.trimap_border}, where the masks have one"}
    chosen = " (set aside by the seed)" if card.data.validation_names is not None else ""
    more = card.data.unlabelled_images
    return {
        "Split": f"{card.data.training_images} to train on, "
        f"{card.data.validation_images} to validate on{chosen}"
        f"{f', {more} without masks' if more else ''}",
        "Trimap border": TRIMAP_BORDER_WORDS[card.trimap_border or "none"],
    }


def _augmentation(run: Run) -> str:
    """Name what varies the training images and how far."""
    augment = run.augment
    parts = {
        "flip": augment.flip_probability,
        "quarter turns": augment.quarter_turn_probability,
        f"turn ± {augment.rotate_degrees:g}°": augment.rotate_degrees,
        f"shift ± {augment.translate:.0%}": augment.translate,
        "zoom": augment.affine_scale or (augment.scale and augment.scale_probability),
        f"crop to {augment.crop_area:.0%} or more": augment.crop_probability,
        "brightness and contrast": augment.brightness_contrast_probability,
        "grid dropout": augment.grid_dropout_probability,
    }
    return ", ".join(part for part, used in parts.items() if used and augment.enabled) or "none"


def commands_of(report: Report) -> dict[str, str]:
    """Return the command lines that make the run, its score and this page again."""
    run = report.run
    place, split = shlex.quote(str(run.path)), "val" if report.split == "validation" else "test"
    data = f" --data-path {shlex.quote(str(report.data_path))}" if report.data_path else ""
    if path := run.run.model.class_path:
        data = f" --model-class {shlex.quote(path)}{data}"
    commands = {}
    if run.run.own == Own() and (path is None or run.run.data.path):
        commands["train again"] = f"notan train --recipe {place}/run.toml{data} --out {place}-again"
    if run.card:
        model = f"{place}/best.safetensors"
        commands["evaluate"] = f"notan evaluate --model {model}{data} --split {split}"
    commands["this page"] = f"notan report {place}{data} --split {split}"
    return commands
