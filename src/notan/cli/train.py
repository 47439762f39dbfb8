"""``notan train``."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import DEFAULT, DataPath, Overrides, shows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notan.train import TrainResult

logger = logging.getLogger("notan")


def train(
    overrides: Overrides = (),
    *,
    data_path: DataPath = None,
    model: Annotated[str | None, shows(DEFAULT.model.name, "NAME")] = None,
    encoder: Annotated[str | None, shows("the model's own", "NAME")] = None,
    pretrained: bool = False,
    recipe: Annotated[Path | None, shows("none", "FILE")] = None,
    out: Annotated[Path | None, shows("a fresh folder under runs/", "FOLDER")] = None,
    overwrite: bool = False,
    resume: Annotated[Path | None, shows("none", "FOLDER")] = None,
    allow_changes: bool = False,
    device: Annotated[str | None, shows(DEFAULT.device, "auto|cpu|cuda|cuda:1|mps")] = None,
    epochs: Annotated[int | None, shows(DEFAULT.train.epochs, "N")] = None,
    batch_size: Annotated[int | None, shows(DEFAULT.train.batch_size, "N")] = None,
    learning_rate: Annotated[float | None, shows(DEFAULT.train.learning_rate, "RATE")] = None,
    image_size: Annotated[int | None, shows(DEFAULT.preprocess.image_size[0], "PIXELS")] = None,
    border: Annotated[
        Literal["figure", "ground", "ignore"] | None,
        shows(DEFAULT.data.border, "figure|ground|ignore"),
    ] = None,
    patience: Annotated[int | None, shows("never stop early", "EPOCHS")] = None,
    teacher: Annotated[Path | None, shows("none", "FILE")] = None,
    unlabelled: Annotated[Path | None, shows("none", "FOLDER")] = None,
    seed: Annotated[int | None, shows(DEFAULT.seed, "N")] = None,
    deterministic: bool = False,
    detect_anomaly: Annotated[bool, arg(help_behavior_hint="(slow)")] = False,
) -> None:
    """Train a model on pictures and masks, and keep the best by validation Dice.

    The data folder is the Oxford-IIIT Pet dataset in its own layout, or any folder with images/
    and masks/ (matched by name), alone or inside train/, val/ and test/. No test picture is
    read. The run folder receives best.safetensors, run.toml, history.jsonl, curves, and at the end
    report.html.

    Args:
        overrides: Any other setting: model.width=16 train.precision=bf16 data.limit=40
            train.schedule=cosine loss.focal=1 augment.enabled=false. The last word on a setting
            wins: defaults, then the recipe, then flags, then these.
        data_path: The folder with the pictures and masks.
        model: unet, resnet34_unet or attention_unet.
        encoder: resnet34 or efficientnet_lite0, for unet and attention_unet to go down with.
        pretrained: Start the encoder from its published weights, learned on ImageNet.
        recipe: A .toml file of settings, such as recipes/oxford-unet.toml.
        out: Where the run is kept.
        overwrite: Replace the run that is already in --out.
        resume: Go on with the run in this folder where it was stopped, with its own settings;
            other flags change them.
        allow_changes: Go on with --resume even if changed settings or pictures make it another
            run.
        device: Where to compute.
        epochs: Passes over the training pictures.
        batch_size: Pictures in a step.
        learning_rate: Of AdamW, at its highest.
        image_size: Side of the square that pictures are resized to, in pixels.
        border: What the border of Oxford's trimaps counts as; other masks have none.
        patience: Stop after so many epochs without a better validation Dice.
        teacher: A model file, an ensemble's for example, to learn from beside the masks;
            loss.teacher=1 is its weight.
        unlabelled: A folder of more pictures of the same kind, without masks, to learn from too:
            what the model's moving average says of them with confidence is taken as true, more
            and more. Pictures of the validation and test parts are left out.
            loss.consistency=1 is its weight.
        seed: Decides weights, order, augmentation and split.
        deterministic: Repeatable arithmetic on a GPU too, slower; on a CPU it always is.
        detect_anomaly: Stop at the very operation that made a NaN.
    """
    flags = {
        "data.path": data_path,
        "data.border": border,
        "model.name": model,
        "model.encoder": encoder,
        "train.pretrained": pretrained or None,
        "preprocess.image_size": image_size,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.patience": patience,
        "train.detect_anomaly": detect_anomaly or None,
        "train.teacher": teacher,
        "train.unlabelled": unlabelled,
        "train.deterministic": deterministic or None,
        "seed": seed,
        "device": device,
    }
    _refuse_mixed(resume, starting=bool(recipe or out or overwrite), allow_changes=allow_changes)
    result = (
        _start(recipe, flags, overrides, out, overwrite=overwrite)
        if resume is None
        else _go_on(resume, flags, overrides, allow_changes=allow_changes)
    )
    print(f"Best validation Dice: {result.dice:.4f} (epoch {result.epoch})\n{result.checkpoint}")
    _report(result.checkpoint.parent)


def _refuse_mixed(resume: Path | None, *, starting: bool, allow_changes: bool) -> None:
    """Refuse flags of a new run beside one that goes on, and the other way round."""
    from notan.errors import ConfigError

    if resume is None and allow_changes:
        raise ConfigError("--allow-changes goes with --resume FOLDER; there is no run to change")
    if resume is not None and starting:
        raise ConfigError(
            "--resume takes settings and folder from the run: leave --recipe, --out and --overwrite"
        )


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
    recipe: Path | None,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    out: Path | None,
    *,
    overwrite: bool,
) -> TrainResult:
    from notan.config import load_run
    from notan.train import train as run_training

    run = load_run(recipe, flags=flags, overrides=overrides)
    return run_training(run, out=out, overwrite=overwrite)


def _go_on(
    folder: Path,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    *,
    allow_changes: bool,
) -> TrainResult:
    from notan.config import load_run
    from notan.train import resume as resume_training

    settings = folder / "run.toml"
    run = load_run(settings, flags=flags, overrides=overrides) if settings.is_file() else None
    return resume_training(folder, run=run, allow_changes=allow_changes)
