"""The two ways to start a training: from nothing, and from the state of a run that was stopped."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notan.config import load_run
from notan.data.folders import makes_validation, undivided_names
from notan.errors import ConfigError, DataError
from notan.io.write import fresh_folder, write_bytes
from notan.models.own import short_name
from notan.run_folder import RECIPE, SPLIT, STATES, RunFolder, refuse_changes
from notan.training.build import prepare
from notan.training.own import OwnParts
from notan.training.ranks import joined
from notan.training.state import StateFolder, changed_contents
from notan.training.time_limit import Overhead
from notan.training.trainer import Trainer, TrainResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notan.config import Run
    from notan.data.samples import Source
    from notan.models.own import Network
    from notan.training.build import TrainingSetup
    from notan.training.own import OwnLogger, OwnLoss, OwnOptimizer, OwnSchedule, OwnTransform
    from notan.training.trackers import Tracker
    from notan.types import ProgressCallback

log = logging.getLogger("notan")

HARMLESS = {
    "device",
    "data.path",
    "data.cache",
    "data.workers",
    "train.compile",
    "train.patience",
    "train.time_limit_seconds",
    "train.checkpoint_every_seconds",
    "train.checkpoint_every_steps",
    "train.detect_anomaly",
    "train.log_images",
    "train.trackers",
    "train.loss_guard",
    "train.max_rollbacks",
}
"""Settings that may differ when a run goes on: they decide where and how long, not what."""

MOVED = {"train.teacher", "train.unlabelled"}
"""Files that may lie elsewhere by then; the state says whether they are the same."""


def train(
    run: Run,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    recipe: str | None = None,
    training: Source | None = None,
    validation: Source | None = None,
    model: Network | None = None,
    transform: OwnTransform | None = None,
    loss: OwnLoss | None = None,
    optimizer: OwnOptimizer | None = None,
    schedule: OwnSchedule | None = None,
    logger: OwnLogger | Tracker | None = None,
    overhead: Overhead | None = None,
    progress: ProgressCallback | None = None,
    profile: bool = False,
) -> TrainResult:
    """Train a model and keep the best checkpoint by validation Dice; no test image is read.

    Args:
        run: All settings.
        out: The run folder; None takes a fresh one under ``runs/``.
        overwrite: Replace a run that is already in ``out``.
        recipe: The text that the settings came from, with its comments; kept beside them as
            auto.toml.
        training: Images of your own instead of those of ``run.data``.
        validation: Likewise; both or neither.
        model: A network of your own instead of ``run.model``: (n, 3, h, w) to logits
            (n, 1, h, w), with an attribute ``stride``; a module, its class, or ``package:Class``.
            A class is built with ``run.model.arguments``.
        transform: An augmentation of your own instead of ``run.augment``, called as
            ``transform(image=, mask=)`` and returning a mapping with both.
        loss: Of your own instead of ``run.loss``: ``loss(logits, mask, ignore)``, see ``OwnLoss``.
        optimizer: Of your own instead of AdamW: ``optimizer(weights)`` makes it.
        schedule: Of your own instead of ``run.train.schedule``: ``schedule(step, steps)`` is the
            learning rate's factor.
        logger: Called after every epoch with the line that history.jsonl gets; or a ``Tracker`` of
            your own, which is told more.
        overhead: What surrounds the call and is paid for by ``train.time_limit_seconds`` too; None:
            nothing, and the time limit is this call's.
        progress: Called after each epoch with the number of those that are done, and of all; a
            time limit or ``train.patience`` may end the training before.
        profile: Measure first what the steps wait for, and write it into the run folder as
            profile.md and profile.json; the training is the same with it and without it.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: An image or mask is missing, unreadable or ambiguous.
        DivergedError: The loss is NaN or infinite, or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    overhead = overhead or Overhead()
    own = OwnParts(
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        logger=logger,
        transform=transform,
    )
    run = own.noted_in(run)
    name = run.model.name if model is None else short_name(model)
    with joined() as ranks:
        place = ranks.first_does(lambda: out or fresh_folder(Path("runs") / name))
        folder = RunFolder(place)
        ranks.first_does(partial(folder.claim, overwrite=overwrite))
        setup = prepare(run, training=training, validation=validation, own=own, ranks=ranks)
        with folder.locked() if ranks.is_first else nullcontext():
            if ranks.is_first:
                folder.clear()  # only now: a wrong setting must not cost the earlier run
            if ranks.is_first and recipe is not None:
                write_bytes(folder.path / RECIPE, recipe.encode())
            trainer = Trainer(
                setup, folder.path, overhead=overhead, on_epoch=progress, profile=profile
            )
            return trainer.train()


def resume(
    folder: Path,
    *,
    run: Run | None = None,
    allow_changes: bool = False,
    training: Source | None = None,
    validation: Source | None = None,
    model: Network | None = None,
    transform: OwnTransform | None = None,
    loss: OwnLoss | None = None,
    optimizer: OwnOptimizer | None = None,
    schedule: OwnSchedule | None = None,
    logger: OwnLogger | Tracker | None = None,
    overhead: Overhead | None = None,
    progress: ProgressCallback | None = None,
    profile: bool = False,
) -> TrainResult:
    """Go on with a run that was stopped, at the very step where its last state was written.

    On a CPU, and on a GPU with ``train.deterministic``, the finished weights are bit for bit those
    of a run that was never stopped. A run that was stopped before its first state begins again.

    Args:
        folder: The run folder.
        run: Settings to go on with; None takes the folder's own.
        allow_changes: Go on even where ``run`` or the images make it another run.
        training: What the run was started with, where that were images of your own.
        validation: Likewise.
        model: Likewise, a fresh instance of a module of your own, or its class.
        transform: Likewise, an augmentation of your own.
        loss: Likewise.
        optimizer: Likewise; what it knew of the weights is in the state.
        schedule: Likewise.
        logger: Of your own, whether or not the run began with one.
        overhead: What surrounds the call and is paid for by ``train.time_limit_seconds`` too.
        progress: As for ``train``; epochs from before are done.
        profile: As for ``train``.

    Raises:
        ConfigError: There is no run, or other settings or another teacher make it another one.
        DataError: The images, with masks or without, are not those of the run, or have changed.
        CheckpointError: Every saved state is damaged; the folder is left as it is.
        DivergedError: The loss is NaN or infinite, or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    overhead = overhead or Overhead()
    kept = RunFolder(folder)
    stored = load_run(kept.find_settings())
    own = OwnParts(
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        logger=logger,
        transform=transform,
    )
    run = own.noted_in(run or stored)
    by_steps = run.train.schedule != "exponential" or schedule is not None
    lasts = set() if by_steps else {"train.epochs"}
    refuse_changes(
        stored,
        run,
        harmless=None if allow_changes else HARMLESS | MOVED | lasts,
        hint=", or go on all the same with --allow-changes",
    )
    with joined() as ranks, kept.locked() if ranks.is_first else nullcontext():
        tree = StateFolder(folder / STATES).load()
        ranks.require_same({"a saved state of step": tree and tree["progress"]["step"]})
        setup = prepare(
            run,
            training=training,
            validation=validation,
            own=own,
            state=tree,
            validation_names=None if training else _set_aside(kept.path, run),
            ranks=ranks,
        )
        if tree is None:
            ranks.first_does(kept.begin_again)
        elif allow_changes:
            for words in changed_contents(setup, tree, setup.run.data.path):
                log.warning("%s", words)
        else:
            _refuse_other_material(setup, tree)
        trainer = Trainer(setup, folder, overhead=overhead, on_epoch=progress, profile=profile)
        return trainer.train(tree)


def _set_aside(folder: Path, run: Run) -> frozenset[str] | None:
    """Return the images that a run set aside for validation, where the folder still has them."""
    path = folder / SPLIT
    if not path.is_file() or not makes_validation(run.data):
        return None
    names = frozenset(path.read_text("utf-8", "surrogateescape").splitlines())
    return names if names and names < frozenset(undivided_names(run.data)) else None


def _refuse_other_material(setup: TrainingSetup, tree: Mapping[str, Any]) -> None:
    """Refuse images, a teacher or images without masks that are not those of the state."""
    stored, now, run = tree, setup.identity(), setup.run
    again = "or go on all the same with --allow-changes"
    if stored["images"] != now["images"]:
        raise DataError(
            f"{run.data.path}: these are not the images that the run was trained on; "
            f"give their folder with --data-path, {again}"
        )
    for words in changed_contents(setup, tree, setup.run.data.path):
        raise DataError(f"{words}; put back what they held, start a new run, {again}")
    if stored["teacher"] != now["teacher"]:
        raise ConfigError(
            f"train.teacher = {run.train.teacher}: this is not the teacher that the run "
            f"began with; give that one, {again}"
        )
    if stored["unlabelled"] != now["unlabelled"]:
        raise DataError(
            f"train.unlabelled = {run.train.unlabelled}: these are not the images without "
            f"masks that the run began with; give their folder with --unlabelled, {again}"
        )
