"""Trainings side by side: where there are several GPUs, each takes one in a process of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from notan.config import changed_settings, load_run
from notan.errors import DivergedError, NotanError
from notan.modelfile.card import read_card
from notan.run_folder import BEST, SETTINGS
from notan.run_process import TrainingProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.config import Run

logger = logging.getLogger("notan")

VISIBLE = "CUDA_VISIBLE_DEVICES"


def devices_at_hand(device: str) -> Sequence[str]:
    """Return the GPUs that trainings can be given, as ``CUDA_VISIBLE_DEVICES`` calls them.

    Args:
        device: The setting; one that names a single device leaves no choice.
    """
    import torch

    if device not in ("auto", "cuda"):
        return ()
    named = [each.strip() for each in os.environ.get(VISIBLE, "").split(",") if each.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(number) for number in range(count)]


def train_side_by_side(
    runs: Mapping[str, Callable[[], Run]],
    recipe: Path,
    devices: Sequence[str],
    note: Callable[[str, dict[str, Any]], None],
    *,
    anew: Collection[str],
) -> None:
    """Train several runs, one on each device at a time; each writes its report.

    Args:
        runs: Gives the settings of each run when it begins, by its folder's name.
        recipe: The file of the settings that they share. Beside it lie their folders and, as
            ``fold-1.log``, what they say.
        devices: As ``devices_at_hand`` names them.
        note: Called with a run's name, and how it ended.
        anew: Those to be begun again, whatever their folders hold.

    Raises:
        NotanError: A training failed; the others are stopped and saved, as when a signal comes.
    """
    waiting, free = list(runs), list(devices)
    running: dict[str, tuple[str, TrainingProcess, float]] = {}
    over: SimpleQueue[tuple[str, int]] = SimpleQueue()

    def wait_for(name: str, process: TrainingProcess) -> None:
        over.put((name, process.wait()))

    try:
        while waiting or running:
            while waiting and free:
                name, device = waiting.pop(0), free.pop(0)
                folder = recipe.parent / name
                process = _begin(runs[name](), folder, recipe, device, anew=name in anew)
                running[name] = device, process, time.monotonic()
                threading.Thread(target=wait_for, args=(name, process), daemon=True).start()
            name, code = over.get()
            device, process, began = running.pop(name)
            free.append(device)
            end = _end_of(recipe.parent / name, code, process)
            note(name, end | {"seconds": time.monotonic() - began})
    except BaseException:
        _stop([process for _, process, _ in running.values()])
        raise


def _stop(processes: Sequence[TrainingProcess]) -> None:
    for process in processes:
        process.stop()
    for process in processes:
        process.end()


def _begin(run: Run, folder: Path, recipe: Path, device: str, *, anew: bool) -> TrainingProcess:
    """Begin a run, or go on with it, in a process that sees one device."""
    stored = folder / SETTINGS
    if stored.is_file() and not anew:
        words = ["train", "--resume", str(folder), *_changes(load_run(stored), run)]
    else:
        words = ["train", "--recipe", str(recipe), "--out", str(folder)]
        words += [*(["--overwrite"] if anew else []), *_changes(load_run(recipe), run)]
    log = folder.with_suffix(".log")
    logger.info("%s: on GPU %s; what it says goes to %s", folder.name, device, log)
    return TrainingProcess(words, log, chosen_by="--out", variables={VISIBLE: device})


def _changes(stored: Run, run: Run) -> Iterator[str]:
    """Say as overrides in what a run's settings differ from stored ones."""
    for name, (_, value) in changed_settings(stored, run).items():
        is_switch = isinstance(value, bool)
        yield f"{name}={str(value).lower() if is_switch or value is None else value}"


def _end_of(folder: Path, code: int, process: TrainingProcess) -> dict[str, Any]:
    """Say how a process ended that did so of itself.

    Raises:
        NotanError: It failed.
    """
    if code == DivergedError.exit_code:
        logger.warning("%s", process.fault())
        return {"diverged": process.fault()}
    if code:
        log = folder.with_suffix(".log")
        raise NotanError(f"{folder.name} ended with an error: {process.fault()} (see {log})")
    card = read_card(folder / BEST)
    logger.info("%s: validation Dice %.4f", folder.name, card.scores["dice"])
    return {"dice": card.scores["dice"], "epoch": card.epoch}
