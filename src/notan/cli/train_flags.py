"""The flags of ``notan train`` in groups, each flag with the setting that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from notan.cli.flags import DEFAULT, DataPath, TimeLimitFlag, seconds_of, shows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
