"""``notan train``.

The flags of ``notan train`` in groups, each flag with the setting that it stands for.

``notan train``.
"""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from notan.cli import BEGAN
from notan.cli.flags import DEFAULT, DataPath, Overrides, TimeLimitFlag, seconds_of, shows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notan.auto import Suggestion
    from notan.training import TrainResult
    from notan.training.time_limit import Overhead

SETTING, READ = "setting", "read"


def sets(
    setting: str, default: object = None, *, read: Callable[[Any], object] = lambda value: value
) -> Any:  # noqa: ANN401 - stands for any value
    """Give a flag its setting, by dotted name; one that is left at its default sets nothing.

    What was given is read by ``read``.
    """
    return field(default=default, metadata={SETTING: setting, READ: read})


def settings_of(*groups: object) -> Mapping[str, object]:
    """Return the settings that groups of flags ask for; None where a flag was not given."""
    return {
        flag.metadata[SETTING]: None
        if value is None or value is False
        else flag.metadata[READ](value)
        for group in groups
        for flag in fields(group)  # type: ignore[arg-type]
        for value in (getattr(group, flag.name),)
    }


@dataclass(frozen=True)
class DataFlags:
    """What is learned from.

    Attributes:
        data_path: The folder with the images and masks.
        unlabelled: A folder of more such images, without masks, to learn from too: what the
            moving average of the weights says of them is taken for true, after the first steps.
            Copies of validation and test images are left out.
            loss.consistency=1 is its weight.
        trimap_border: What the border of Oxford's trimaps counts as; other masks have none.
        image_size: Side of the square that images are resized to, in pixels.
    """

    data_path: DataPath = sets("data.path")
    unlabelled: Annotated[Path | None, shows("none", "FOLDER")] = sets("train.unlabelled")
    trimap_border: Annotated[
        Literal["foreground", "background", "ignore"] | None,
        shows(DEFAULT.data.trimap_border, "foreground|background|ignore"),
    ] = sets("data.trimap_border")
    image_size: Annotated[int | None, shows(DEFAULT.preprocess.image_size[0], "PIXELS")] = sets(
        "preprocess.image_size"
    )


@dataclass(frozen=True)
class ModelFlags:
    """What learns.

    Attributes:
        model: unet, resnet34_unet or attention_unet.
        encoder: resnet34 or efficientnet_lite0, for unet and attention_unet to go down with; or
            timm:NAME, smp:NAME, a convolutional network of that package where it is installed.
        pretrained: Start the encoder from its published weights, learned on ImageNet
            (of timm and smp: from what their packages fetch).
        encoder_weights: Start it from a file instead: a .pth of published weights, or a model of
            notan's with the same encoder.
        freeze_epochs: Epochs at the start in which the encoder stays as it came and the rest
            learns; then all of it does, the encoder at a lower rate with
            train.encoder_lr_multiplier=0.3.
        teacher: A model file, an ensemble's for example, to learn from beside the masks;
            loss.teacher=1 is its weight.
    """

    model: Annotated[str | None, shows(DEFAULT.model.name, "NAME")] = sets("model.name")
    encoder: Annotated[str | None, shows("the model's own", "NAME")] = sets("model.encoder")
    pretrained: bool = sets("train.pretrained", default=False)
    encoder_weights: Annotated[Path | None, shows("none", "FILE")] = sets("train.encoder_weights")
    freeze_epochs: Annotated[int | None, shows(DEFAULT.train.freeze_epochs, "N")] = sets(
        "train.freeze_epochs"
    )
    teacher: Annotated[Path | None, shows("none", "FILE")] = sets("train.teacher")


@dataclass(frozen=True)
class TrainFlags:
    """How it learns.

    Attributes:
        time_limit: The time in which everything ends, from here to the report, such as 90s, 10m or
            1.5h; the learning rate comes down by then, and --epochs is the most there may be.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        learning_rate: Of AdamW, at its highest.
        patience: Stop after so many epochs without a better validation Dice.
        seed: Decides weights, order, augmentation and split.
        device: Where to compute.
        deterministic: Repeatable arithmetic on a GPU too, slower; on a CPU it always is.
        detect_anomaly: Stop at the very operation that made a NaN.
    """

    time_limit: TimeLimitFlag = sets("train.time_limit_seconds", read=seconds_of)
    epochs: Annotated[int | None, shows(DEFAULT.train.epochs, "N")] = sets("train.epochs")
    batch_size: Annotated[int | None, shows(DEFAULT.train.batch_size, "N")] = sets(
        "train.batch_size"
    )
    learning_rate: Annotated[float | None, shows(DEFAULT.train.learning_rate, "RATE")] = sets(
        "train.learning_rate"
    )
    patience: Annotated[int | None, shows("never stop early", "EPOCHS")] = sets("train.patience")
    seed: Annotated[int | None, shows(DEFAULT.seed, "N")] = sets("seed")
    device: Annotated[str | None, shows(DEFAULT.device, "auto|cpu|cuda|cuda:1|mps")] = sets(
        "device"
    )
    deterministic: bool = sets("train.deterministic", default=False)
    detect_anomaly: Annotated[bool, arg(help_behavior_hint="(slow)")] = sets(
        "train.detect_anomaly", default=False
    )


@dataclass(frozen=True)
class RunFlags:
    """Where the run begins and where it is kept.

    Attributes:
        auto: Look at the training images and at this machine, choose the settings, say why, and
            keep them with the run as auto.toml; flags and settings given beside it stand.
        write_recipe: With --auto: write the recipe here and train nothing, to be looked at, changed
            and trained with --recipe.
        recipe: A .toml file of settings, such as recipes/oxford-unet.toml.
        out: Where the run is kept.
        overwrite: Replace the run that is already in --out.
        resume: Go on with the run in this folder where it was stopped, with its own settings; other
            flags change them.
        allow_changes: Go on with --resume even if changed settings or images make it another run.
    """

    auto: bool = False
    write_recipe: Annotated[Path | None, shows("none", "FILE")] = None
    recipe: Annotated[Path | None, shows("none", "FILE")] = None
    out: Annotated[Path | None, shows("a fresh folder under runs/", "FOLDER")] = None
    overwrite: bool = False
    resume: Annotated[Path | None, shows("none", "FOLDER")] = None
    allow_changes: bool = False


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
    from notan.training.time_limit import Overhead

    began = BEGAN.get()
    loading = time.monotonic() - began
    return Overhead(began, REPORT_OVER_LOADING * loading, LEAVING_OVER_LOADING * loading)


def _report(folder: Path) -> None:
    """Write the report; whatever hinders it, the training is done and stays so."""
    from notan.config import load_run
    from notan.report.run import write_report

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
    from notan.training import train as run_training

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
    from notan.io.write import write_bytes

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
    from notan.training import resume as resume_training

    settings = folder / "run.toml"
    run = load_run(settings, flags=flags, overrides=overrides) if settings.is_file() else None
    return resume_training(folder, run=run, allow_changes=allow_changes, overhead=overhead)
