"""``notan train``."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from notan.cli import BEGAN
from notan.cli.flags import Overrides
from notan.cli.train_flags import DataFlags, ModelFlags, RunFlags, TrainFlags, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notan.auto import Suggestion
    from notan.train import TrainResult
    from notan.train.time_limit import Overhead

logger = logging.getLogger("notan")

REPORT_OVER_LOADING, LEAVING_OVER_LOADING = 3.0, 0.3
"""Time that a report takes beside scoring images, and that the process takes to end, over the
time that loading PyTorch takes."""

IMAGES, NETWORK, LEARNING, PLACE = DataFlags(), ModelFlags(), TrainFlags(), RunFlags()
"""Groups of which no flag is given."""


def train(
    overrides: Overrides = (),
    *,
    images: OmitArgPrefixes[DataFlags] = IMAGES,
    network: OmitArgPrefixes[ModelFlags] = NETWORK,
    learning: OmitArgPrefixes[TrainFlags] = LEARNING,
    place: OmitArgPrefixes[RunFlags] = PLACE,
) -> None:
    """Train a model on images and masks, and keep the best by validation Dice.

    The data folder is the Oxford-IIIT Pet dataset in its own layout, or any folder with images/
    and masks/ (matched by name), alone or inside train/, val/ and test/. No test image is
    read. The run folder receives best.safetensors, run.toml, history.jsonl, curves, and at the end
    report.html.

    Args:
        overrides: Any other setting: model.width=16 train.precision=bf16 data.limit=40
            train.schedule=cosine loss.focal=1 augment.enabled=false. The last word on a setting
            wins: defaults, then the recipe, then flags, then these.
        images: What is learned from.
        network: What learns.
        learning: How it learns.
        place: Where the run begins and where it is kept.
    """
    flags = settings_of(images, network, learning)
    _refuse_mixed(place)
    if place.write_recipe is not None:
        _write_recipe(place.write_recipe, flags, overrides, overwrite=place.overwrite)
        return
    overhead = _overhead()
    result = (
        _start(place, flags, overrides, overhead)
        if place.resume is None
        else _go_on(place.resume, flags, overrides, overhead, allow_changes=place.allow_changes)
    )
    print(f"Best validation Dice: {result.dice:.4f} (epoch {result.epoch})\n{result.checkpoint}")
    folder, left = result.checkpoint.parent, result.seconds_left
    if left is not None and left < overhead.report_seconds / 2:
        again = f"notan report {shlex.quote(str(folder))}"
        logger.warning("the time limit left no time for the report; write it with: %s", again)
    else:
        _report(folder)


def _refuse_mixed(place: RunFlags) -> None:
    """Refuse flags of a new run beside one that goes on, and the other way round."""
    from notan.errors import ConfigError

    if place.auto and (place.recipe or place.resume):
        other = "--recipe" if place.recipe else "--resume"
        raise ConfigError(
            f"--auto chooses the settings and {other} brings them: leave one of the two"
        )
    if place.write_recipe and not place.auto:
        raise ConfigError("--write-recipe writes what --auto chooses: give --auto too")
    if place.resume is None and place.allow_changes:
        raise ConfigError("--allow-changes goes with --resume FOLDER; there is no run to change")
    if place.resume is not None and (place.recipe or place.out or place.overwrite):
        raise ConfigError(
            "--resume takes settings and folder from the run: leave --recipe, --out and --overwrite"
        )


def _overhead() -> Overhead:
    """Say when the command began and what its report will take, for a time limit.

    Until here the command has loaded PyTorch, and the report will load and draw about as much
    again, at the speed that the machine has just shown.
    """
    from notan.train.time_limit import Overhead

    began = BEGAN.get()
    loading = time.monotonic() - began
    return Overhead(began, REPORT_OVER_LOADING * loading, LEAVING_OVER_LOADING * loading)


def _report(folder: Path) -> None:
    """Write the report; whatever hinders it, the training is done and stays so."""
    from notan.config import load_run
    from notan.report.render import write_report

    try:
        page = write_report(folder, device=load_run(folder / "run.toml").device)
    except Exception as error:  # noqa: BLE001 - a page must not fail a training that went well
        again = f"notan report {shlex.quote(str(folder))}"
        logger.warning("there is no report (%s); try again with: %s", error, again)
    else:
        logger.info("report: %s", page)


def _start(
    place: RunFlags, flags: Mapping[str, object], overrides: Sequence[str], overhead: Overhead
) -> TrainResult:
    from notan.config import load_run
    from notan.train import train as run_training

    if place.auto:
        chosen = _suggest(flags, overrides)
        run, recipe = chosen.run, chosen.recipe
    else:
        run, recipe = load_run(place.recipe, flags=flags, overrides=overrides), None
    where, overwrite = place.out, place.overwrite
    return run_training(run, out=where, overwrite=overwrite, recipe=recipe, overhead=overhead)


def _suggest(flags: Mapping[str, object], overrides: Sequence[str]) -> Suggestion:
    from notan.auto import suggest

    chosen = suggest(flags=flags, overrides=overrides)
    print(chosen.sentences, flush=True)
    return chosen


def _write_recipe(
    path: Path, flags: Mapping[str, object], overrides: Sequence[str], *, overwrite: bool
) -> None:
    from notan.errors import ConfigError
    from notan.files import write_bytes

    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: something is here already; choose another, or --overwrite it")
    write_bytes(path, _suggest(flags, overrides).recipe.encode())
    print(f"Train it with: notan train --recipe {shlex.quote(str(path))}")


def _go_on(
    folder: Path,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    overhead: Overhead,
    *,
    allow_changes: bool,
) -> TrainResult:
    from notan.config import load_run
    from notan.train import resume as resume_training

    settings = folder / "run.toml"
    run = load_run(settings, flags=flags, overrides=overrides) if settings.is_file() else None
    return resume_training(folder, run=run, allow_changes=allow_changes, overhead=overhead)
