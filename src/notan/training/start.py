"""The two ways to start a training: from nothing, and from the state of a run that was stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notan.config import changed_settings, load_run
from notan.errors import CheckpointError, ConfigError, DataError
from notan.io.write import fresh_folder
from notan.run_folder import BEST, SETTINGS, STATES, claim_folder, clear_folder, locked, put_recipe
from notan.training.build import prepare
from notan.training.state import StateFolder, fingerprints
from notan.training.time_limit import Overhead
from notan.training.trainer import Trainer, TrainResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from notan.config import Run
    from notan.data.samples import Source
    from notan.training.build import Parts

logger = logging.getLogger("notan")

HARMLESS = {
    "device",
    "data.path",
    "data.workers",
    "train.patience",
    "train.time_limit_seconds",
    "train.checkpoint_every_seconds",
    "train.checkpoint_every_steps",
    "train.detect_anomaly",
    "train.log_images",
    "train.tensorboard",
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
    model: nn.Module | None = None,
    transform: Callable[..., Mapping[str, Any]] | None = None,
    overhead: Overhead | None = None,
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
        model: A module of your own instead of ``run.model``: (n, 3, h, w) to logits
            (n, 1, h, w), with an attribute ``stride``.
        transform: An augmentation of your own instead of ``run.augment``, called as
            ``transform(image=, mask=)`` and returning a mapping with both.
        overhead: What surrounds the call and is paid for by ``train.time_limit_seconds`` too; None:
            nothing, and the time limit is this call's.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: An image or mask is missing, unreadable or ambiguous.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    overhead = overhead or Overhead()
    folder = out or fresh_folder(Path("runs") / _folder_name(run, model))
    claim_folder(folder, overwrite=overwrite)
    parts = prepare(run, training=training, validation=validation, model=model, transform=transform)
    with locked(folder):
        clear_folder(folder)  # only now: a wrong setting must not cost the earlier run
        put_recipe(folder, recipe)
        return Trainer(parts, folder, overhead=overhead).train()


def resume(
    folder: Path,
    *,
    run: Run | None = None,
    allow_changes: bool = False,
    training: Source | None = None,
    validation: Source | None = None,
    model: nn.Module | None = None,
    transform: Callable[..., Mapping[str, Any]] | None = None,
    overhead: Overhead | None = None,
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
        model: Likewise, a fresh instance of a module of your own.
        transform: Likewise, an augmentation of your own.
        overhead: What surrounds the call and is paid for by ``train.time_limit_seconds`` too.

    Raises:
        ConfigError: There is no run, or other settings or another teacher make it another one.
        DataError: The images, with masks or without, are not those of the run.
        CheckpointError: Every saved state is damaged; the folder is left as it is.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    overhead = overhead or Overhead()
    stored = load_run(_settings_of(folder))
    run = run or stored
    other = _changes(stored, run)
    if other and not allow_changes:
        raise ConfigError(
            f"{', '.join(other)} would make it another run; start a new one, "
            "or go on all the same with --allow-changes"
        )
    with locked(folder):
        states = StateFolder(folder / STATES)
        tree = states.load()
        parts = prepare(
            run,
            training=training,
            validation=validation,
            model=model,
            transform=transform,
            state=tree,
        )
        if tree is None:
            _require_no_states(folder, states)
            logger.info("%s was stopped before its first state: beginning again", folder)
            clear_folder(folder)
        elif not allow_changes:
            _refuse_other_images(parts, tree)
            _refuse_another_teacher(parts, tree)
            _refuse_other_unlabelled(parts, tree)
        return Trainer(parts, folder, overhead=overhead).train(tree)


def _settings_of(folder: Path) -> Path:
    path = folder / SETTINGS
    if not path.is_file():
        raise ConfigError(f"{folder}: there is no run here to go on with ({SETTINGS} is missing)")
    return path


def _require_no_states(folder: Path, states: StateFolder) -> None:
    """Refuse to begin a run again whose states are all damaged: its best may still be of worth."""
    if not states.files():
        return
    best = " best.safetensors is kept and can still be used;" if (folder / BEST).exists() else ""
    raise CheckpointError(
        f"{folder}: no saved state in {STATES}/ can be read, so the run cannot go on;{best} "
        f"train it anew with: notan train --recipe {folder / SETTINGS} --out {folder}-again"
    )


def _changes(stored: Run, run: Run) -> list[str]:
    """Say which settings have changed; return those that make it another run."""
    harmless = (
        HARMLESS | MOVED | ({"train.epochs"} if run.train.schedule == "exponential" else set())
    )
    changed = changed_settings(stored, run)
    for name, (before, now) in changed.items():
        logger.info("changed since the run began: %s, %s -> %s", name, before, now)
    return [
        f"{name} ({before} -> {now})"
        for name, (before, now) in changed.items()
        if name not in harmless
    ]


def _refuse_other_images(parts: Parts, tree: dict[str, Any]) -> None:
    if tree["images"] != fingerprints(parts):
        raise DataError(
            f"{parts.run.data.path}: these are not the images that the run was trained on; "
            "give their folder with --data-path, or go on all the same with --allow-changes"
        )


def _refuse_another_teacher(parts: Parts, tree: dict[str, Any]) -> None:
    teacher = parts.teacher and parts.teacher.identity
    if tree.get("teacher") != teacher:
        raise ConfigError(
            f"train.teacher = {parts.run.train.teacher}: this is not the teacher that the run "
            "began with; give that one, or go on all the same with --allow-changes"
        )


def _refuse_other_unlabelled(parts: Parts, tree: dict[str, Any]) -> None:
    if tree.get("unlabelled") != parts.data_card.unlabelled_fingerprint:
        raise DataError(
            f"train.unlabelled = {parts.run.train.unlabelled}: these are not the images without "
            "masks that the run began with; give their folder with --unlabelled, or go on all the "
            "same with --allow-changes"
        )


def _folder_name(run: Run, model: nn.Module | None) -> str:
    return run.model.name if model is None else type(model).__name__
