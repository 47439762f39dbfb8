"""Run and its sections: every setting of a training, with its type, bounds and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

TrimapBorder: TypeAlias = Literal["foreground", "background", "ignore"]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Weight: TypeAlias = Annotated[float, Field(ge=0.0)]
PerChannel: TypeAlias = Annotated[tuple[float, ...], Field(min_length=1)]


def _square(value: object) -> object:
    return (value, value) if isinstance(value, int | str) else value


Side: TypeAlias = Annotated[int, Field(ge=1, le=8192)]
ImageSize: TypeAlias = Annotated[tuple[Side, Side], BeforeValidator(_square)]


_ESCAPED = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


def _as_named(given: object) -> object:
    """Return the path that a file of settings tells of, as the system knows it."""
    if not isinstance(given, str) or not _ESCAPED.search(given):
        return given
    return Path(_ESCAPED.sub(lambda found: chr(int(found[0][2:], 16)), given))


def _as_written(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()


SystemPath: TypeAlias = Annotated[
    Path, BeforeValidator(_as_named), PlainSerializer(_as_written, when_used="json")
]
"""A path, which need not be text to the system; settings hold what ``io.write`` makes of it."""


def _is_empty(value: object) -> bool:
    """Say whether there is nothing to write into a file."""
    return not value


class Section(BaseModel):
    """A group of settings that cannot change and knows no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _split(value: object) -> object:
    """Take ``17,19`` or ``#804080`` from a command line as the values that it lists."""
    listed = value.split(",") if isinstance(value, str) else value
    if isinstance(listed, int):
        return (listed,)
    if not isinstance(listed, list | tuple):
        return listed
    words = [word.strip() if isinstance(word, str) else word for word in listed]
    return tuple(
        int(word) if isinstance(word, str) and word.isdecimal() else word for word in words
    )


ClassWord: TypeAlias = Annotated[str, Field(pattern=r"^(#[0-9a-fA-F]{6}|[^#].*)$")]
"""A colour, or a name."""
ClassValues: TypeAlias = Annotated[tuple[int | ClassWord, ...], BeforeValidator(_split)]


Layout: TypeAlias = Literal[
    "auto", "pets", "folder", "coco", "labelme", "yolo", "voc", "cvat", "label-studio", "nnunet",
    "table", "geojson",
]  # fmt: skip


class Masks(Section):
    """What the owner says of masks that can be read in several ways."""

    foreground: ClassValues = ()
    """Names of classes, or grey values, palette indices or colours (``cat,dog``, ``17,19`` or
    ``#804080``) that are foreground; empty: there are two classes, which the masks themselves
    tell."""
    ignore: ClassValues = ()
    """Likewise, what is left out of loss and score, such as 255 beside 0 and 1."""
    channel: Annotated[int, Field(ge=0)] | None = None
    """Which channel or page of a file, from 0, is the mask; None: refuse files with several."""
    white_is_zero: Literal["stored", "shown"] | None = None
    """What counts in a TIFF that is marked WhiteIsZero; None: what its writer must have meant, or
    refuse it."""
    crowd: Literal["ignore", "foreground"] | None = None
    """What COCO's annotations marked ``iscrowd`` are; None: ignored, or refused where most are
    marked so."""
    folder: SystemPath | None = None
    """The name of the folders that hold the masks, where several could; None: the usual names."""


MOST_CHANNELS = 1000


Cache: TypeAlias = Literal["auto", "memory", "disk", "off"]


class Data(Section):
    """Which images, and how their masks are read."""

    path: SystemPath | None = None
    """The data folder."""
    layout: Layout = "auto"
    """``pets``: the Oxford-IIIT Pet layout; ``folder``: images/ and masks/; the others: as these
    tools write annotations; ``auto``: whichever the folder has."""
    trimap_border: TrimapBorder = "foreground"
    """What the trimap border (value 3) counts as; masks other than trimaps have none."""
    masks: Masks = Masks()
    """How masks other than trimaps are read."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """Whether images are turned upright by their EXIF orientation; ``ignore``: the masks were
    drawn on the pixels as they are stored."""
    white: Annotated[int, Field(ge=255, le=65535)] | None = None
    """The value of 16-bit images that is read as white; None: the largest value of as many bits
    (8, 10, 12, 14 or 16) as the images use."""
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | None = None
    """Channels of the images. 3: colours, grey is widened to them; 1: grey alone; 4 takes the
    transparency of RGBA as one. None: 3, unless all images have another number, transparency
    aside."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the training images set aside for validation, where the data have no
    validation part."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of that split; None: the run's seed."""
    group_by: str | None = None
    """Images of one group stay on one side of that split: a regular expression whose first
    brackets, or whose whole match, in an image's name is its group, or ``FILE.csv:COLUMN``; None:
    only copies of one image stay together."""
    fold: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    """Cross-validation: ``2/5`` divides all images but the test part into five, a validation part
    of the data's own among them, validates on the second and trains on the others. None: the
    data's own validation part, or ``validation_fraction``."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Train on the first so many training images only; None: on all."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read and augment images; None: none on a CPU, up to 8 beside a GPU."""
    cache: Cache = "auto"
    """Where images and masks stay once they are decoded. ``memory``: while they take at most three
    quarters of what is free; ``disk``: in the cache folder, for later trainings too; ``auto``: in
    memory while they take at most a quarter of it, else on disk; ``off``, or where they do not
    fit: nowhere, each epoch decodes them."""

    @property
    def division(self) -> tuple[int, int] | None:
        """Which of how many folds validates, from 1; None: there are none."""
        if self.fold is None:
            return None
        number, _, count = self.fold.partition("/")
        return int(number), int(count)

    @model_validator(mode="after")
    def _is_a_fold(self) -> Data:
        if self.fold is not None:
            is_one = re.fullmatch(r"[1-9]\d*/[1-9]\d*", self.fold, re.ASCII)
            number, count = (self.division or (1, 1)) if is_one else (1, 1)
            if not number <= count > 1:
                raise ValueError(f"fold {self.fold}: one of two or more is wanted, such as 2/5")
        return self


class Preprocess(Section):
    """How an image becomes a model's input."""

    image_size: ImageSize = (256, 256)
    """(height, width) that every image is resized to; one number means a square."""
    keep_aspect_ratio: bool = False
    """Shrink images larger than ``image_size`` until they fit, both sides by the same factor, and
    leave smaller ones as they are."""
    mean: PerChannel | None = None
    """Mean of each channel (0..1) to subtract; None: of red, green and blue that of the data the
    encoder's published weights were trained on, ImageNet's for most; of other channels that of
    the training images."""
    std: PerChannel | None = None
    """Standard deviation of each channel to divide by; None: as for ``mean``."""

    @model_validator(mode="after")
    def _divisible(self) -> Preprocess:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("every channel's std must be above 0")
        return self


class Augment(Section):
    """Augmentation of the training images; the defaults are the reference recipe's."""

    enabled: bool = True
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Zoom in or out by up to this fraction."""
    scale_probability: Fraction = 0.5
    flip_probability: Fraction = 0.5
    """Mirror left to right."""
    quarter_turn_probability: Fraction = 0.0
    """Turn by 90, 180 or 270 degrees, which changes no pixel; by 180 what is not square."""
    affine_scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Zoom of the affine transform, which every image goes through."""
    translate: Fraction = 0.1
    """Shift by up to this fraction of the height and of the width."""
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 30.0
    """Rotate by up to so many degrees, either way."""
    crop_area: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """The random resized crop keeps at least this fraction of the area."""
    crop_probability: Fraction = 0.5
    brightness: Fraction = 0.2
    """Add up to this fraction of full scale to every pixel, or subtract it."""
    contrast: Fraction = 0.2
    """Multiply every pixel by 1, give or take up to this fraction."""
    brightness_contrast_probability: Fraction = 0.5
    grid_dropout_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Side of each hole of the grid dropout, as a fraction of the grid's unit."""
    grid_dropout_probability: Fraction = 0.5


_Plain: TypeAlias = bool | int | float | str | None
Argument: TypeAlias = _Plain | list[_Plain]

WIDTH_ON_AN_ENCODER = 16
DECAY_BESIDE_UNLABELLED = 0.99


class Model(Section):
    """Which network."""

    name: str = "unet"
    """``unet``, ``resnet34_unet`` or ``attention_unet``."""
    encoder: str | None = None
    """Encoder of ``unet`` and ``attention_unet``: ``resnet34``, ``efficientnet_lite0``,
    ``efficientnet_lite1``, ``efficientnet_lite2``, or one of timm, ``timm:NAME``; None: their
    own."""
    width: Annotated[int, Field(ge=1, le=512)] = 64
    """Channels of the finest level; the other levels have multiples of it. Default 16 where an
    encoder is named, as only the decoder has them then."""
    residual: Literal["standard", "report"] = "standard"
    """The residual block of ``resnet34_unet``: He et al.'s, or the reference report's."""
    class_path: str | None = None
    """``package:Class`` or ``file.py:Class`` of a network of your own in place of all the above.
    Noted here by ``--model-class``, which every command needs anew: no file makes notan import
    code. None: one of notan's."""
    arguments: dict[str, Argument] = Field({}, exclude_if=_is_empty)
    """What the class of your own is built with: ``model.arguments.depth=3``."""

    @model_validator(mode="before")
    @classmethod
    def _narrower_on_an_encoder(cls, settings: object) -> object:
        if isinstance(settings, dict) and settings.get("encoder") is not None:
            return {"width": WIDTH_ON_AN_ENCODER, **settings}
        return settings


class LossTerms(Section):
    """Weight of each term of the loss, and the terms' own settings."""

    bce: Weight = 1.0
    dice: Weight = 1.0
    focal: Weight = 0.0
    tversky: Weight = 0.0
    lovasz: Weight = 0.0
    cldice: Weight = 0.0
    """For thin structures, beside another term; 0.5 is what its authors give it at most."""
    boundary: Weight = 0.0
    """Errors by their distance to the boundary in pixels, beside another term; begin with 0.01."""
    teacher: Weight = 1.0
    """Weight of the teacher's probabilities, where ``train.teacher`` names one."""
    consistency: Weight = 1.0
    """Weight of the agreement with the EMA of the weights on images without masks, where
    ``train.unlabelled`` names some."""
    focal_gamma: Weight = 2.0
    tversky_alpha: Weight = 0.3
    tversky_beta: Weight = 0.7
    cldice_iterations: Annotated[int, Field(ge=1)] = 3
    """Half as many as the widest structure is pixels wide at the size that is trained at; what is
    wider than twice that and 2 has no skeleton, and clDice says nothing of it."""

    @property
    def weights(self) -> dict[str, float]:
        """The terms whose weight is above 0, with their weights."""
        names = ("bce", "dice", "focal", "tversky", "lovasz", "cldice", "boundary")
        return {name: weight for name in names if (weight := float(getattr(self, name))) > 0}


TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]


def with_trackers(train: dict[str, Any]) -> dict[str, Any]:
    """Return settings of ``train`` that say by ``trackers`` what ``tensorboard`` said earlier.

    Recipes, runs and cards of earlier versions have it: true, where it is installed, or false.
    """
    if not isinstance(train.get("tensorboard"), bool):
        return train
    others = {name: value for name, value in train.items() if name != "tensorboard"}
    return others if train["tensorboard"] else {"trackers": (), **others}


UNLIMITED_EPOCHS = 100_000
"""Epochs that no time limit gets through."""


class Train(Section):
    """How long and how fast to train."""

    epochs: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    schedule: Literal["exponential", "cosine"] = "exponential"
    """``exponential``: the rate is multiplied by ``gamma`` after each epoch; ``cosine``: it rises
    during the warm-up, then falls to zero."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    """Epochs in which the cosine schedule rises to the peak learning rate."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better validation Dice; None: never."""
    time_limit_seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds that the whole training may take, from the start of the command to the report, time
    before a resume included. With a time limit, ``schedule`` is cosine by default, so that the
    learning rate has come down by then, and ``epochs`` is unlimited. None: no time limit."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; ``auto``: bf16 where a GPU has it, else fp32."""
    compile: Literal["auto", "off", "default", "tuned"] = "auto"
    """Whether the network is compiled (torch.compile) and, on a GPU, whole steps are replayed as
    CUDA graphs. ``auto``: on a GPU, and compiled where the steps that are left are worth the
    minute, not with ``deterministic``; ``tuned`` takes longer and searches for quicker programs, on
    a GPU only. What cannot be compiled is trained as it is, with a line that says so."""
    compress_gradients: bool = False
    """Have gradients travel between the processes of torchrun as bf16: half the bytes, for a slow
    network."""
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = 5.0
    """Largest norm of the gradient over all weights; None: no clipping."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average (EMA) of the weights; whichever scores better is
    saved. It never looks back on more than a tenth of the steps so far. Default 0.99 with
    ``unlabelled``, as the EMA labels those images; None: no EMA."""
    pretrained: bool = False
    """Start the encoder from its published weights; False: from scratch."""
    encoder_weights: SystemPath | None = None
    """A file that the encoder starts from in place of the published weights: a state dict of
    PyTorch, what ``save_encoder`` wrote, or a checkpoint of notan's with the same encoder."""
    weights: SystemPath | None = None
    """A checkpoint of notan's with the same network, whose weights all of it starts from; None: of
    the encoder at most."""
    half_size_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training, from its start, in which images have half their size: such a step
    takes about a quarter of the time. A share of the time for steps where there is a time limit,
    in the middle of an epoch too; else of all steps."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the start in which the encoder is frozen and only the decoder learns."""
    freeze_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Likewise, until this share of the training is over: of the time for steps where there is a
    time limit, in the middle of an epoch too; else of all steps."""
    frozen_stages: Annotated[int, Field(ge=0)] = 0
    """So many of the encoder's stages, the finest first, are frozen throughout. They detect edges
    and colours already, and their backward pass takes the most time."""
    encoder_lr_multiplier: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Learning rate of the encoder's coarsest stage, as a multiple of the decoder's."""
    layer_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each finer stage of the encoder learns at this multiple of the next coarser one's rate."""
    freeze_encoder_batchnorm: bool = False
    """Keep the batch norm statistics that came with the encoder's weights, as small batches are
    too noisy to replace them; False: use each batch's own."""
    teacher: SystemPath | None = None
    """A model file whose probabilities are learned beside the masks; None: the masks alone."""
    unlabelled: SystemPath | None = None
    """A folder of images without masks to learn from too; None: none."""
    consistency_steps: Annotated[int, Field(ge=0)] = 100
    """Steps in which the weight ``loss.consistency`` rises from near 0 to its value."""
    loss_guard: bool = True
    """Skip steps whose loss is NaN, infinite or jumps, and roll back if that persists."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 5
    """How often the loss guard may roll back to good weights, each time at a quarter of the
    learning rate."""
    checkpoint_every_seconds: Annotated[float, Field(ge=0.0)] = 60.0
    """Write the state for --resume every so many seconds, at the next step's end."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Also every so many steps; None: by the clock alone."""
    deterministic: bool = False
    """Repeatable arithmetic on a GPU too, which is slower; a CPU's always is."""
    detect_anomaly: bool = False
    """Stop at the operation that made a NaN (PyTorch's anomaly mode); slow."""
    log_images: Annotated[int, Field(ge=0)] = 4
    """Validation images shown to trackers."""
    trackers: Annotated[tuple[TrackerName, ...], BeforeValidator(_split)] | None = None
    """What follows the training beside history.jsonl: ``tensorboard``, ``mlflow``, ``wandb``, each
    offline unless its own environment variables say otherwise. None: TensorBoard, where it is
    installed; ``[]``: nothing."""

    @model_validator(mode="before")
    @classmethod
    def _reads_earlier_settings(cls, settings: object) -> object:
        return with_trackers(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="before")
    @classmethod
    def _as_long_as_the_time_limit(cls, settings: object) -> object:
        if isinstance(settings, dict) and settings.get("time_limit_seconds") is not None:
            return {"schedule": "cosine", "epochs": UNLIMITED_EPOCHS, **settings}
        return settings

    @model_validator(mode="after")
    def _has_one_start(self) -> Train:
        if self.weights and (self.pretrained or self.encoder_weights):
            raise ValueError(
                "weights brings the whole network's weights, and pretrained or encoder_weights "
                "the encoder's: give one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _averaged_beside_unlabelled(cls, settings: object) -> object:
        if isinstance(settings, dict) and settings.get("unlabelled") is not None:
            return {"ema_decay": DECAY_BESIDE_UNLABELLED, **settings}
        return settings


class Own(Section):
    """What was given in Python in place of notan's own: names, noted so that a resume knows.

    No setting brings a function: give the same ones to ``notan.training.resume``.
    """

    loss: str | None = None
    """In place of the section ``loss``."""
    optimizer: str | None = None
    """In place of AdamW, ``train.learning_rate`` and ``train.weight_decay``."""
    schedule: str | None = None
    """In place of ``train.schedule``."""
    transform: str | None = None
    """In place of the section ``augment``."""


class Run(Section):
    """All settings of one training."""

    data: Data = Data()
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    model: Model = Model()
    loss: LossTerms = LossTerms()
    train: Train = Train()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first weights, the order of the images, augmentation and split."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    own: Own = Field(Own(), exclude_if=lambda own: own == Own())


class PretrainTrain(Train):
    """How long and how fast an encoder learns without masks: ``train`` with other defaults.

    Settings that need masks, or that keep what an encoder came with, have no meaning here.
    """

    epochs: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    schedule: Literal["exponential", "cosine"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 5.0

    @model_validator(mode="after")
    def _has_meaning(self) -> PretrainTrain:
        for name in (
            *("patience", "time_limit_seconds", "ema_decay", "freeze_epochs", "freeze_fraction"),
            *(
                "half_size_fraction",
                "frozen_stages",
                "freeze_encoder_batchnorm",
                "weights",
                "teacher",
                "unlabelled",
                "consistency_steps",
            ),
            *("detect_anomaly", "log_images", "trackers"),
        ):
            if getattr(self, name) != Train.model_fields[name].default:
                raise ValueError(f"{name} has no meaning for a pretraining; leave it out")
        if self.pretrained and self.encoder_weights:
            raise ValueError(
                "--pretrained and --encoder-weights both say what to go on from; give one"
            )
        return self


class Pretrain(Section):
    """How an encoder learns to fill in what is hidden of images.

    Where nothing else is said, the values are SimMIM's (Xie et al. 2022, arXiv:2111.09886, section
    4.1), fitted to a convolutional encoder and to hundreds of images instead of a million.
    """

    path: SystemPath | None = None
    """The folder of images, or a data folder, of which the training split is taken."""
    encoder: str = "efficientnet_lite0"
    """What learns: a name that ``model.encoder`` knows."""
    width: Annotated[int, Field(ge=1, le=512)] = 8
    """Channels of the finest level of the decoder, which is thrown away in the end."""
    image_size: Annotated[int, Field(ge=64, le=2048)] = 192
    """Side of the square that images are cropped and resized to, in pixels."""
    patch: Annotated[int, Field(ge=1)] = 32
    """Side of the squares that are hidden, in pixels of that square."""
    hidden_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.6
    """How much of each image is hidden."""
    crop_area: Annotated[float, Field(gt=0.0, le=1.0)] = 0.67
    """Random crops keep at least this share of an image."""
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the images that are not learned from, and say which epoch was best."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of the training that will follow, where the data folder has no validation part; None: the
    seed."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images; None: none on a CPU, up to 8 beside a GPU."""
    train: PretrainTrain = PretrainTrain()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides weights, order, crops, what is hidden and which images are held out."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""

    @model_validator(mode="after")
    def _something_to_see(self) -> Pretrain:
        if 2 * self.patch > self.image_size:
            raise ValueError(
                f"patches of {self.patch} pixels in images of {self.image_size}: at least two "
                "must fit beside each other; lower pretrain.patch or raise --image-size"
            )
        return self


class Pretraining(Section):
    """All settings of one pretraining: the root of ``pretrain.key=value``."""

    pretrain: Pretrain = Pretrain()
