"""The model files that are compared: which are seeds of one run, and what each does on images."""

from __future__ import annotations

import copy
import re
import time
import zlib
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from notan.config import SystemPath, changed_settings
from notan.data.survey import require_readable
from notan.errors import CheckpointError, ConfigError, DataError
from notan.evaluation.evaluate import find_seen
from notan.io.write import as_written
from notan.modelfile.card import Card, read_card
from notan.models.own import name_own, short_name
from notan.prediction.backends import TorchBackend
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST
from notan.training.start import HARMLESS
from notan.types import Size  # noqa: TC001 - pydantic looks for it

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from notan.config import TrimapBorder
    from notan.data.samples import Sample, Source
    from notan.metrics import Score
    from notan.models.own import Network
    from notan.prediction.predictor import Prediction
    from notan.types import Mask, RGBImage

FEWEST = 2
HOW_LONG = {"train.patience", "train.time_limit_seconds", "train.loss_guard", "train.max_rollbacks"}
BESIDE_THE_RECIPE = (HARMLESS - HOW_LONG) | {"seed"}
"""Settings in which two runs may differ and still be seeds of one: none decides what is learned."""

SEED_TAIL = re.compile(r"[-_. ]+(seed|s)?\d+$")


@dataclass(frozen=True)
class Candidate:
    """A model file that takes part.

    Attributes:
        name: Short, and its own among the candidates.
        path: The file.
        card: What it says of itself.
        network: Its class, where that is the user's own.
    """

    name: str
    path: Path
    card: Card
    network: Network | None = None

    def load(self, device: torch.device) -> Predictor:
        """Open the model; an ONNX model runs on the processor, whatever the others run on.

        Raises:
            CheckpointError: The weights are damaged, or the class was not given or does not fit.
            ConfigError: The class cannot be built.
        """
        if self.card.exported is None:
            network = copy.deepcopy(self.network) if self.network is not None else None
            return Predictor.load(self.path, device=device, model=network)
        import torch

        # speeds stand side by side, under one line that says how many threads there were: PyTorch's
        return Predictor.load(self.path, threads=torch.get_num_threads())


def open_candidates(models: Sequence[Path], networks: Sequence[Network] = ()) -> list[Candidate]:
    """Read the cards of run folders and model files.

    Args:
        models: Run folders or model files.
        networks: Of the user's own: one for all that need one, or one for each class by its name.

    Raises:
        ConfigError: Fewer than two were given, or a network that none of them is of.
        CheckpointError: One is missing, damaged, a pickle, or a folder without a model.
    """
    files = named_files(models, "a comparison", "notan compare runs/unet runs/attention_unet")
    candidates = []
    for name, path in files.items():
        card = read_card(path)
        is_own = not (card.model or card.members or card.exported)
        candidates.append(Candidate(name, path, card, _own(card, networks) if is_own else None))
    unused = [each for each in networks if all(each is not it.network for it in candidates)]
    if unused:
        raise ConfigError(
            f"{name_own(unused[0])}: none of these models is of this class; leave it out, or give "
            "the class by the name it was trained under"
        )
    return candidates


def _own(card: Card, networks: Sequence[Network]) -> Network | None:
    """Choose the network that a card of the user's own class is of."""
    if len(networks) == 1:
        return networks[0]
    noted = card.run.model.class_path
    names = {card.model_class, short_name(noted) if noted else card.model_class}
    return next((each for each in networks if short_name(each) in names), None)


def require_comparable(
    candidates: Sequence[Candidate],
    source: Source,
    *,
    device: torch.device,
    allow_training_images: bool,
) -> None:
    """Refuse whatever would be refused after hours: each model is opened once, and let go.

    Args:
        candidates: What will be compared.
        source: The images.
        device: Where it will be computed.
        allow_training_images: Score images that a model was trained on.

    Raises:
        CheckpointError: A model's weights are damaged, or its class was not given or does not fit.
        ConfigError: Its class cannot be built.
        DataError: An image cannot be read, there is none, or a model was trained on some.
    """
    if not len(source):
        raise DataError("there are no images to compare models on")
    for candidate in candidates:
        candidate.load(device)
        seen = find_seen(candidate.card, source)
        if seen.trained and not allow_training_images:
            raise DataError(f"{candidate.name}: {seen.refusal()}")
    require_readable(source)


def named_files(models: Sequence[Path], what: str, example: str) -> dict[str, Path]:
    """Give the model files of two or more run folders short names.

    Args:
        models: Run folders or model files.
        what: What they are wanted for, for the message.
        example: A command that gives enough of them, likewise.

    Raises:
        ConfigError: Fewer than two were given.
        CheckpointError: A folder without a model.
    """
    if len(models) < FEWEST:
        given = f"only {models[0]} was" if models else "none was"
        raise ConfigError(f"{what} wants two or more runs or model files; {given} given: {example}")
    paths = [model_file(model) for model in models]
    names = distinct_names([path.parent if path.name == BEST else path for path in paths])
    return dict(zip(names, paths, strict=True))


def model_file(model: Path) -> Path:
    """Return the model file of a run folder; any other path is one itself.

    Raises:
        CheckpointError: A folder without a model.
    """
    if not model.is_dir():
        return model  # reading its card says what is wrong with it
    if not (model / BEST).is_file():
        raise CheckpointError(
            f"{model}: there is no {BEST} here; a run folder has one when its first epoch is over"
        )
    return model / BEST


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by as few of their last parts as tell them apart; number what is twice there."""
    parts = [
        path.resolve().with_suffix("").parts if path.is_file() else path.resolve().parts
        for path in paths
    ]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = [as_written("/".join(each[-depth:])) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [
        f"{name} ({names[:number].count(name) + 1})" if name in names[:number] else name
        for number, name in enumerate(names)
    ]


def group_seeds(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Put candidates together, under a name, that were trained alike but for the seed.

    A seed that is there twice begins another group, so that two trainings with one seed can be
    compared; and where all would be one group, its seeds are compared with each other.
    """
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        for group in groups:
            if all(_differ_in_seed_only(candidate, member) for member in group):
                group.append(candidate)
                break
        else:
            groups.append([candidate])
    if len(groups) == 1:
        groups = [[candidate] for candidate in candidates]
    names = [_group_name(group) for group in groups]
    return {
        name if names.count(name) == 1 else group[0].name: group
        for name, group in zip(names, groups, strict=True)
    }


def _differ_in_seed_only(one: Candidate, other: Candidate) -> bool:
    changed = changed_settings(one.card.run, other.card.run).keys()
    return (
        one.card.run.seed != other.card.run.seed
        and changed <= BESIDE_THE_RECIPE
        and one.card.model_class == other.card.model_class
        and one.card.parameters == other.card.parameters  # an own class may be built otherwise
        and not one.card.members  # what each was joined of is not told by the settings
        and _images(one) == _images(other)
    )


def _images(candidate: Candidate) -> object:
    """Return what tells training images apart, but for a split that the seed decided."""
    data = candidate.card.data
    by_seed = data.validation_names is not None and candidate.card.run.data.split_seed is None
    return data.training_images if by_seed else data.training_fingerprint


def _group_name(group: Sequence[Candidate]) -> str:
    if len(group) == 1:
        return group[0].name
    names = {SEED_TAIL.sub("", member.name) for member in group}
    card = group[0].card
    return (
        names.pop() if len(names) == 1 else card.run.model.name if card.model else card.model_class
    )


def common_trimap_border(
    candidates: Sequence[Candidate], trimap_border: TrimapBorder | None
) -> TrimapBorder | None:
    """Return the border rule that all are scored by.

    Args:
        candidates: Each with the rule it was trained by.
        trimap_border: A rule that overrides theirs.

    Raises:
        ConfigError: Theirs differ and none was given.
    """
    rules = {candidate.card.trimap_border for candidate in candidates}
    if trimap_border or len(rules) == 1:
        return trimap_border or rules.pop()
    listed = ", ".join(f"{each.name} {each.card.trimap_border or 'none'}" for each in candidates)
    raise ConfigError(
        f"the models were trained by different rules for the trimap's border ({listed}); choose "
        "the one to score all of them by: --trimap-border foreground, --trimap-border background "
        "or --trimap-border ignore"
    )


def common_validation(candidates: Sequence[Candidate], split: str) -> frozenset[str] | None:
    """Return the validation images that notan set aside, None where the data have their own.

    Raises:
        ConfigError: The models set aside different ones, and the split is made of them.
    """
    # by their fingerprint: an exported model does not tell the names
    cards = [candidate.card.data for candidate in candidates]
    choices = {
        None if data.validation_names is None else data.validation_fingerprint for data in cards
    }
    if len(choices) > 1 and split not in ("test", "all"):
        raise ConfigError(
            f"--split {split}: the models set different images aside for validation, so some "
            "were trained on what others are scored on; compare them on --split test"
        )
    names = candidates[0].card.data.validation_names
    return frozenset(names) if names is not None else None


def notes_on(candidates: Sequence[Candidate], trimap_border: TrimapBorder | None) -> list[str]:
    """Say what a reader must know of how the models came about, each in a sentence."""
    notes = []
    for number, candidate in enumerate(candidates):
        for earlier in candidates[:number]:
            if candidate.path.resolve() == earlier.path.resolve():
                notes.append(f"{earlier.path} was given twice: it is compared with itself.")
            elif candidate.card.sha256 == earlier.card.sha256:
                notes.append(f"{earlier.name} and {candidate.name} hold the same weights.")
    trained_on: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        trained_on.setdefault(candidate.card.data.training_fingerprint, []).append(candidate)
    if len(trained_on) > 1:
        listed = "; ".join(
            f"{', '.join(each.name for each in group)} on {group[0].card.data.training_images}"
            for group in trained_on.values()
        )
        notes.append(f"The models were trained on different images ({listed}).")
    for candidate in candidates:
        own = candidate.card.trimap_border
        if trimap_border and own and own != trimap_border:
            notes.append(
                f"{candidate.name} was trained with trimap_border = {own} and is scored by "
                f"trimap_border = {trimap_border}."
            )
    return notes


TIMED, TRIES = 10, 3
"""Images that the speed is measured on, and how often each is tried."""


@dataclass(frozen=True)
class PackedMask:
    """A mask as compressed bits, so that those of a whole test split fit into memory.

    Attributes:
        size: (height, width) in pixels.
        bits: One for each pixel, eight to a byte, compressed by zlib.
    """

    size: Size
    bits: bytes

    @classmethod
    def of(cls, mask: Mask) -> PackedMask:
        """Pack a mask: bool, (height, width)."""
        bits = zlib.compress(np.packbits(mask).tobytes(), level=1)
        return cls((mask.shape[0], mask.shape[1]), bits)

    def unpack(self) -> Mask:
        """Return the mask as it was."""
        height, width = self.size
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        return np.unpackbits(bits, count=height * width).reshape(self.size).astype(np.bool_)


class SeedResult(BaseModel):
    """What one model file did on the images.

    Attributes:
        name: Short, and its own among the files.
        file: The model file.
        seed: Of its training.
        epoch: The one that it was saved after.
        threshold: From which probability on a pixel is foreground.
        postprocessing: How probabilities became masks, in words; None: by the threshold alone.
        seen: What the model has seen of the images, in words.
        mean_dice: Over the images.
        mean_iou: Over the images.
        images_per_second: One image at a time, from pixels to mask; reading not counted.
        parameters: Numbers that were learned; 0 where an ONNX model's card does not say.
        file_bytes: Of the model file.
        dice: Of every image.
        masks: Of every image; not in the JSON.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    file: SystemPath
    seed: int
    epoch: int
    threshold: float
    postprocessing: str | None
    seen: str
    mean_dice: float
    mean_iou: float
    images_per_second: float
    parameters: int
    file_bytes: int
    dice: tuple[float, ...]
    masks: SkipValidation[tuple[PackedMask, ...]] = Field((), exclude=True)


def measure(
    candidate: Candidate, device: torch.device, score_of: Callable[..., Score]
) -> tuple[SeedResult, Score]:
    """Evaluate a model, keep its masks and measure its speed."""
    predictor = candidate.load(device)
    masks: list[PackedMask] = []
    first: list[RGBImage] = []

    def keep(sample: Sample, prediction: Prediction) -> None:
        masks.append(PackedMask.of(prediction.mask))
        if len(first) < TIMED:
            first.append(sample.image)

    score = score_of(predictor, on_prediction=keep)
    result = SeedResult(
        name=candidate.name,
        file=candidate.path,
        seed=candidate.card.run.seed,
        epoch=candidate.card.epoch,
        threshold=score.rules.threshold,
        postprocessing=score.rules.postprocessing,
        seen=score.rules.seen,
        mean_dice=score.mean_dice,
        mean_iou=score.mean_iou,
        images_per_second=_speed(predictor, first),
        parameters=_parameters(predictor),
        file_bytes=candidate.path.stat().st_size,
        dice=tuple(image.counts.dice for image in score.images),
        masks=tuple(masks),
    )
    return result, score


def _speed(predictor: Predictor, images: Sequence[RGBImage]) -> float:
    """Return images per second, of the middle image's fastest try.

    Whatever else the machine does makes a try slower, never faster.
    """

    def seconds(image: RGBImage) -> float:
        start = time.perf_counter()
        _ = predictor(image).mask
        return time.perf_counter() - start

    return 1 / median(min(seconds(image) for _ in range(TRIES)) for image in images)


def _parameters(predictor: Predictor) -> int:
    backend = predictor.backend
    if isinstance(backend, TorchBackend):
        return sum(parameter.numel() for parameter in backend.model.parameters())
    return (predictor.card.parameters if predictor.card else None) or 0
