"""What a report says of a run: its state, what was trained on what, how to do it again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Literal

from notan.config import UNLIMITED_EPOCHS
from notan.metrics.rules import BORDER_WORDS
from notan.report.page import TIMES
from notan.report.words import duration, epochs, name_of, plain
from notan.train.recovery import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from notan.config import Run, Train
    from notan.report.gather import Report
    from notan.report.run_folder import RunFolder

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
