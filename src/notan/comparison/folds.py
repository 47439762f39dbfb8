"""Cross-validation: a training for each fold of the images, then one model of all of them.

The folder's ``folds.toml`` holds the settings of the first fold, and ``folds.json`` how each fold
ended, so that what was stopped goes on: folds that are done are kept.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeAlias

from notan.comparison.benchmark import is_over, train_or_resume
from notan.comparison.ensemble import make_ensemble
from notan.comparison.side_by_side import devices_at_hand, train_side_by_side
from notan.config import load_run, run_to_toml
from notan.data.folders import open_split
from notan.errors import ConfigError, DivergedError, StoppedBySignal
from notan.io.write import encoded, write_bytes
from notan.modelfile.card import read_card
from notan.run_folder import FOLD_SETTINGS, RECIPE, SETTINGS, RunFolder, refuse_changes
from notan.training.start import HARMLESS, MOVED
from notan.training.time_limit import Overhead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from notan.config import Run
    from notan.training import TrainResult

    OnTrained: TypeAlias = Callable[[TrainResult], object]

logger = logging.getLogger("notan")

SUMMARY, TABLE = "folds.json", "folds.md"
ENSEMBLE = "ensemble.safetensors"

FOR_ENSEMBLE = 0.5
"""Of a time limit, as a share of what a fold gets: what is kept to put the folds together."""

FEWEST = 2
"""Folds that an ensemble can be made of."""

LEAST_SECONDS = 1.0
"""A fold's share of a time limit that is spent; it ends with a model all the same."""


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation left.

    Attributes:
        ensemble: The model file of all folds.
        dice: The validation Dice of each fold that ended, by its folder's name; each flatters
            somewhat, for the fold's best epoch and threshold were chosen on the same images.
        all_dice: Mean Dice over the images of all of them, each as the fold that had not seen it
            predicted it, with the rule that the ensemble makes its masks by.
        images: How many these are.
        notes: What else is to be said.
    """

    ensemble: Path
    dice: Mapping[str, float]
    all_dice: float
    images: int
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean validation Dice over the folds."""
        return fmean(self.dice.values())

    @property
    def spread(self) -> float:
        """Standard deviation of it, from fold to fold."""
        return stdev(self.dice.values())

    def summary(self) -> str:
        """Say it in a few lines."""
        return "\n".join(
            (
                *(f"{name}: validation Dice {dice:.4f}" for name, dice in self.dice.items()),
                f"over {len(self.dice)} folds: {self.mean:.4f}, standard deviation "
                f"{self.spread:.4f}",
                f"over {self.images} images, each by the fold that had not seen it: "
                f"{self.all_dice:.4f}",
                *self.notes,
            )
        )


def train_folds(
    run: Run,
    out: Path,
    *,
    overwrite: bool = False,
    recipe: str | None = None,
    overhead: Overhead | None = None,
    on_trained: OnTrained = lambda _: None,
) -> CrossValidation:
    """Train on all folds but one in turn, and make one model of the networks.

    No test image is read.

    Args:
        run: All settings; ``data.fold`` says how many folds, ``train.time_limit_seconds`` is the
            time for all of them and the model.
        out: Where the runs (``fold-1`` and so on) and the model are kept.
        overwrite: Replace what is already there.
        recipe: The text that the settings came from, kept beside them as auto.toml.
        overhead: As for ``notan.training.train``.
        on_trained: Called with what each fold's training left, such as to write its report.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: An image or mask is missing, unreadable or ambiguous, or there are fewer images,
            or groups of them, than folds.
        DivergedError: Fewer than two folds came to an end.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    folder = _folder(out)
    folder.claim(overwrite=overwrite)
    _require_folds(run)
    with folder.locked():
        folder.clear()
        for path in out.glob("fold-*/" + SETTINGS):
            RunFolder(path.parent).clear()
        if recipe is not None:
            write_bytes(out / RECIPE, recipe.encode())
        return _finish(run, out, {}, overhead or Overhead(), on_trained, anew=overwrite)


def resume_folds(
    out: Path,
    *,
    run: Run | None = None,
    overhead: Overhead | None = None,
    on_trained: OnTrained = lambda _: None,
) -> CrossValidation:
    """Finish what a cross-validation lacks: folds that are done are kept, a stopped one goes on.

    Args:
        out: Its folder.
        run: Settings to go on with; None takes its own.
        overhead: As for ``train_folds``; see there for the errors too.
        on_trained: Likewise.
    """
    folder = _folder(out)
    stored = load_run(folder.find_settings())
    run = run or stored
    refuse_changes(stored, run, harmless=HARMLESS | MOVED)
    _require_folds(run)
    with folder.locked():
        return _finish(run, out, _read_ended(out), overhead or Overhead(), on_trained)


def _folder(out: Path) -> RunFolder:
    files = (FOLD_SETTINGS, SUMMARY, TABLE, ENSEMBLE, RECIPE)
    return RunFolder(
        out, noun="cross-validation", settings=FOLD_SETTINGS, result=ENSEMBLE, files=files
    )


def _require_folds(run: Run) -> None:
    """Refuse what no ensemble could be made of, and images that cannot be divided so."""
    if run.model.class_path:
        raise ConfigError(
            f"model.class_path = {run.model.class_path}: the model of all folds can only hold "
            "notan's own networks; train the folds one by one: data.fold=1/5, data.fold=2/5 ..."
        )
    open_split(run.data, "validation", seed=run.seed)


def _finish(
    run: Run,
    out: Path,
    ended: dict[str, Any],
    overhead: Overhead,
    on_trained: OnTrained,
    *,
    anew: bool = False,
) -> CrossValidation:
    """Train what is not trained yet, and make the model of all folds if it is not there."""
    write_bytes(out / FOLD_SETTINGS, run_to_toml(run).encode())
    _write(out, {"folds": ended})
    try:
        _train_missing(run, out, ended, overhead, on_trained, anew=anew)
        return _put_together(run, out, ended)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT
        again = f"notan train --resume {shlex.quote(str(out))}"
        raise StoppedBySignal(f"stopped and saved; go on with: {again}", number) from stop


def _train_missing(
    run: Run,
    out: Path,
    ended: dict[str, Any],
    overhead: Overhead,
    on_trained: OnTrained,
    *,
    anew: bool,
) -> None:
    """Train the folds that are not trained yet, and note in ``ended`` how they ended."""
    runs = fold_runs(run)
    missing = [name for name in runs if not is_over(ended, out / name)]
    for name in runs:
        if name not in missing:
            logger.info("%s has ended before", name)
    if missing:
        (out / ENSEMBLE).unlink(missing_ok=True)  # it is of other networks
    lost = {name for name in missing if anew or ended.pop(name, None)}
    devices = devices_at_hand(run.device)
    if len(devices) > 1 and len(missing) > 1:

        def note(name: str, end: dict[str, Any]) -> None:
            ended[name] = end
            _write(out, {"folds": ended})

        shares = {name: partial(_with_share, runs[name], ended, len(devices)) for name in missing}
        train_side_by_side(shares, out / FOLD_SETTINGS, devices, note, anew=lost)
        return
    for name in missing:
        share = _with_share(runs[name], ended)
        ended[name] = _train(share, out / name, overhead, on_trained, anew=name in lost)
        overhead = replace(Overhead(), report_seconds=overhead.report_seconds)
        _write(out, {"folds": ended})


def _write(out: Path, summary: Mapping[str, Any]) -> None:
    write_bytes(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def _read_ended(out: Path) -> dict[str, Any]:
    """Return how each fold ended that did, as an earlier call wrote it."""
    path = out / SUMMARY
    try:
        ended = json.loads(path.read_bytes())["folds"]
        if all({"seconds"} < {*end} for end in ended.values()):
            return dict(ended)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        logger.debug("%s", path, exc_info=True)
    raise ConfigError(
        f"{path}: it does not say how the folds ended; remove it, and the folds that are done "
        "are looked at once more"
    )


def fold_runs(run: Run) -> dict[str, Run]:
    """Return the settings of each fold's training, by its folder's name."""
    _, count = run.data.division or (1, 1)
    return {
        f"fold-{number}": run.model_copy(
            update={"data": run.data.model_copy(update={"fold": f"{number}/{count}"})}
        )
        for number in range(1, count + 1)
    }


def _with_share(run: Run, ended: Mapping[str, Any], devices: int = 1) -> Run:
    """Give a fold its share of the time that is left, where there is a time limit."""
    limit, division = run.train.time_limit_seconds, run.data.division
    if limit is None or division is None:
        return run
    left = limit - sum(end["seconds"] for end in ended.values()) / devices
    rounds = ceil((division[1] - len(ended)) / devices)
    share = max(LEAST_SECONDS, left / (rounds + FOR_ENSEMBLE))
    settings = run.train.model_copy(update={"time_limit_seconds": share})
    return run.model_copy(update={"train": settings})


def _train(
    run: Run,
    folder: Path,
    overhead: Overhead,
    on_trained: OnTrained,
    *,
    anew: bool,
) -> dict[str, Any]:
    """Train a fold, or go on with it; say how it ended."""
    began, limit = time.monotonic(), run.train.time_limit_seconds
    try:
        result = train_or_resume(run, folder, anew=anew, overhead=overhead)
    except DivergedError as error:
        logger.warning("%s", error)
        return {"diverged": str(error), "seconds": time.monotonic() - began}
    before = 0.0
    if limit and result.seconds_left is not None:  # what earlier calls took is in it
        before = limit - result.seconds_left - (time.monotonic() - began)
    on_trained(result)
    seconds = before + time.monotonic() - began
    return {"dice": result.dice, "epoch": result.epoch, "seconds": seconds}


def _put_together(run: Run, out: Path, ended: Mapping[str, Any]) -> CrossValidation:
    """Make the model of the folds that ended, unless it is there, and write down what it is."""
    ended = {name: ended[name] for name in fold_runs(run)}  # they may have ended in another order
    dice = {name: end["dice"] for name, end in ended.items() if "dice" in end}
    notes = tuple(_notes(ended))
    if len(dice) < FEWEST:
        raise DivergedError(f"{out}: fewer than two folds came to an end. {' '.join(notes)}")
    path = out / ENSEMBLE
    if path.exists():
        card = read_card(path)
    else:
        members = [out / name for name in dice]
        device, data_path = run.device, run.data.path
        card = make_ensemble(members, path, data_path=data_path, device=device).card
    images = card.data.validation_images
    found = CrossValidation(path, dice, card.scores["dice"], images, notes)
    summary = {
        "folds": ended,
        "mean_dice": found.mean,
        "standard_deviation": found.spread,
        "out_of_fold": {"dice": found.all_dice, "images": found.images},
        "ensemble": path.name,
    }
    _write(out, summary)
    write_bytes(out / TABLE, encoded("\n".join(_table(found, ended)) + "\n"))
    return found


def _table(found: CrossValidation, ended: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines of a page of Markdown."""
    yield f"# Cross-validation, {len(ended)} folds"
    yield from ("", "| fold | best epoch | validation Dice |", "| --- | --- | --- |")
    for name, dice in found.dice.items():
        yield f"| {name} | {ended[name]['epoch']} | {dice:.4f} |"
    yield f"| mean | | {found.mean:.4f} |"
    yield f"| standard deviation | | {found.spread:.4f} |"
    yield from ("", "A fold's Dice flatters somewhat: its best epoch and threshold were chosen on")
    yield f"the same images. Over all {found.images} images, each as the fold that had not seen it"
    yield f"predicted it, by the rule of `{found.ensemble.name}`: **{found.all_dice:.4f}**."
    for note in found.notes:
        yield from ("", note)


def _notes(ended: Mapping[str, Any]) -> Iterator[str]:
    for name, end in ended.items():
        if "diverged" in end:
            yield f"{name} diverged and is left out: {end['diverged']}"
