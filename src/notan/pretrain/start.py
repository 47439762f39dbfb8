"""The two ways to start a pretraining: from nothing, and from the state of one that was stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from notan.config import Pretraining, changed_settings, load_settings
from notan.errors import CheckpointError, ConfigError, DataError
from notan.files import fresh_folder
from notan.pretrain.parts import prepare
from notan.pretrain.pretrainer import ENCODER, IMAGE, SETTINGS, Pretrainer
from notan.train.folder import STATES, claim_folder, clear_folder, locked
from notan.train.log import HISTORY
from notan.train.recovery import INCIDENTS
from notan.train.state import StateFolder

if TYPE_CHECKING:
    from notan.config import Pretrain
    from notan.pretrain.pretrainer import PretrainResult

logger = logging.getLogger("notan")

FILES = (ENCODER, IMAGE, SETTINGS, HISTORY, INCIDENTS)
HARMLESS = {
    "device",
    "path",
    "workers",
    "encoder_weights",
    "checkpoint_every_seconds",
    "checkpoint_every_steps",
    "loss_guard",
    "max_rollbacks",
}
"""Settings that may differ when a run goes on: they decide where and how long, not what."""


def pretrain(
    settings: Pretrain, *, out: Path | None = None, overwrite: bool = False
) -> PretrainResult:
    """Pretrain an encoder on images without masks, and keep the one that fills in best.

    Args:
        settings: All of them.
        out: The run folder; None takes a fresh one under ``runs/``.
        overwrite: Replace a pretraining that is already in ``out``.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: An image is missing or unreadable, or there are too few.
        CheckpointError: The weights to go on from cannot be read, or are another network's.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    folder = out or fresh_folder(Path("runs") / f"pretrain-{settings.encoder}")
    claim_folder(folder, overwrite=overwrite)
    parts = prepare(settings)
    with locked(folder, FILES):
        clear_folder(folder, FILES)  # only now: a wrong setting must not cost the earlier run
        return Pretrainer(parts, folder).train()


def stored_settings(folder: Path) -> Path:
    """Return the file with a pretraining's settings.

    Raises:
        ConfigError: There is no pretraining in the folder.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise ConfigError(
            f"{folder}: there is no pretraining here to go on with ({SETTINGS} is missing)"
        )
    return path


def resume(folder: Path, *, settings: Pretrain | None = None) -> PretrainResult:
    """Go on with a pretraining that was stopped, at the very step where its last state was written.

    On a CPU, and on a GPU with ``deterministic``, the weights are bit for bit those of a run that
    was never stopped. A run that was stopped before its first state begins again.

    Args:
        folder: The run folder.
        settings: Settings to go on with; None takes the folder's own.

    Raises:
        ConfigError: There is no pretraining, or other settings make it another one.
        DataError: The images are not those of the run.
        CheckpointError: Every saved state is damaged; the folder is left as it is.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    stored = load_settings(Pretraining, stored_settings(folder)).pretrain
    settings = settings or stored
    changed = changed_settings(stored, settings)
    other = [
        f"pretrain.{name} ({before} -> {now})"
        for name, (before, now) in changed.items()
        if name not in HARMLESS
    ]
    if other:
        raise ConfigError(f"{', '.join(other)} would make it another run; start a new one")
    with locked(folder, FILES):
        states = StateFolder(folder / STATES)
        tree = states.load()
        parts = prepare(settings, state=tree)
        if tree is None:
            _require_no_states(folder, states)
            logger.info("%s was stopped before its first state: beginning again", folder)
            clear_folder(folder, FILES)
        elif tree["images"] != parts.fingerprints:
            raise DataError(
                f"{settings.path}: these are not the images that the run learned from; give "
                "their folder with --data-path, or start a new run"
            )
        return Pretrainer(parts, folder).train(tree)


def _require_no_states(folder: Path, states: StateFolder) -> None:
    """Refuse to begin a run again whose states are all damaged: its encoder may be of worth."""
    if states.files():
        raise CheckpointError(
            f"{folder}: no saved state in {STATES}/ can be read, so the run cannot go on; what is "
            f"in {ENCODER} can still be used; begin anew with: notan pretrain --overwrite "
            f"--out {folder}"
        )
