"""Several models on the same images, and which differences are more than noise.

``compare`` measures every model by the same rules and tests each pair on the paired images. Its
``Comparison`` is what ``compare.json`` holds; ``text_of`` and the page read it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation

from notan.comparison.candidates import (
    SeedResult,
    common_trimap_border,
    common_validation,
    group_seeds,
    measure,
    notes_on,
    open_candidates,
    require_comparable,
)
from notan.data.folders import find_layout, open_as_trained
from notan.errors import ConfigError
from notan.evaluation.evaluate import evaluate
from notan.metrics import EMPTY_RULE, Counts
from notan.metrics.score import TRIMAP_BORDER_WORDS
from notan.metrics.statistics import PairedComparison, compare_paired, holm, mean_interval
from notan.runtime import describe_hardware, find_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.comparison.candidates import Candidate
    from notan.config import TrimapBorder
    from notan.data.samples import Source
    from notan.models.own import Network

logger = logging.getLogger("notan")

SIGNIFICANCE = 0.05
"""How often two models that are alike are called different."""

FEWEST = 6
"""Images without which the rank test cannot be significant: with 5 it gives 2 / 32 at best."""

Outcome = Literal["first", "second", "none", "unclear"]


def decide(compared: PairedComparison, p_value: float) -> Outcome:
    """Say which of two is better.

    A model is better where the rank test says that chance alone would not do this, and the interval
    of the mean difference leaves out zero. Where only the test does, the two differ, but which is
    better depends on what counts: many images a little, or few a lot.

    Args:
        compared: Second against first.
        p_value: Of the rank test, corrected where several pairs are compared.
    """
    if p_value >= SIGNIFICANCE:
        return "none"
    if compared.difference.low > 0:
        return "second"
    return "first" if compared.difference.high < 0 else "unclear"


def in_words(compared: PairedComparison, p_value: float, first: str, second: str) -> str:
    """Say in a sentence which of two is better and by how much.

    Args:
        compared: Second against first.
        p_value: Of the rank test, corrected where several pairs are compared.
        first: What to call the first.
        second: What to call the second.
    """
    difference, number = compared.difference, compared.difference.images
    if compared.ties == number:
        images = "the one image" if number == 1 else f"each of these {number} images"
        return f"no difference: {first} and {second} score the same on {images}"
    if number < FEWEST:
        return f"too few images to tell: {number}, where {FEWEST} are the least"
    outcome = decide(compared, p_value)
    if outcome == "none":
        return f"no difference beyond noise on these {number} images"
    mean, low, high = difference.mean, difference.low, difference.high
    if outcome == "second":
        return f"{second} is better by {mean:.3f} [{low:.3f}, {high:.3f}]"
    if outcome == "first":
        return f"{first} is better by {-mean:.3f} [{-high:.3f}, {-low:.3f}]"
    return (
        f"{first} and {second} differ, but neither is better in the mean: {second} scores higher "
        f"on {compared.wins} and lower on {compared.losses} of these {number} images, on average "
        f"{mean:+.3f} [{low:.3f}, {high:.3f}]"
    )


MOST_DIFFERENT = 5
"""Images of a pair that are named."""

Finite: TypeAlias = Annotated[
    float | None,
    BeforeValidator(lambda value: value if value is not None and math.isfinite(value) else None),
]
"""A number that JSON has; None for NaN and infinity."""


class ModelResult(BaseModel):
    """A model, or the seeds of one run together.

    Attributes:
        name: Its own among the models.
        mean_dice: Over images and seeds, with its interval over images.
        low: Lower end of the interval; None where there are too few images for one.
        high: Upper end, likewise.
        mean_iou: Over images and seeds.
        seed_spread: Standard deviation of the mean Dice over the seeds; None for one seed.
        images_per_second: Mean over the seeds, which are networks of one kind.
        parameters: Of the first seed.
        file_bytes: Of the first seed.
        seeds: One result for each seed.
        dice: Of every image, the mean over the seeds; not in the JSON.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    mean_dice: float
    low: Finite
    high: Finite
    mean_iou: float
    seed_spread: float | None
    images_per_second: float
    parameters: int
    file_bytes: int
    seeds: tuple[SeedResult, ...]
    dice: tuple[float, ...] = Field((), exclude=True)

    @classmethod
    def of(cls, name: str, seeds: Sequence[SeedResult]) -> ModelResult:
        """Join the results of one run's seeds."""
        dice = tuple(fmean(scores) for scores in zip(*(each.dice for each in seeds), strict=True))
        interval = mean_interval(dice)
        return cls(
            name=name,
            mean_dice=interval.mean,
            low=interval.low,
            high=interval.high,
            mean_iou=fmean(each.mean_iou for each in seeds),
            seed_spread=stdev(each.mean_dice for each in seeds) if len(seeds) > 1 else None,
            images_per_second=fmean(each.images_per_second for each in seeds),
            parameters=seeds[0].parameters,
            file_bytes=seeds[0].file_bytes,
            seeds=tuple(seeds),
            dice=dice,
        )

    @property
    def title(self) -> str:
        """The name, with the number of seeds where there are several."""
        return f"{self.name} ({len(self.seeds)} seeds)" if len(self.seeds) > 1 else self.name

    def nearest(self, image: int) -> SeedResult:
        """Return the seed whose score of an image is nearest to the mean of all."""
        mean = self.dice[image]
        return min(self.seeds, key=lambda seed: abs(seed.dice[image] - mean))


class ImagePair(BaseModel):
    """The scores of two models on one image.

    Attributes:
        name: The image's.
        first: Dice of the first model.
        second: Dice of the second.
        number: The image's place among all; not in the JSON.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    first: float
    second: float
    number: int = Field(exclude=True)


class ModelPair(BaseModel):
    """Two models against each other.

    Attributes:
        first: Name of one of them.
        second: Name of the other; differences are second minus first.
        verdict: Which is better and by how much, in a sentence.
        better: The same in a word.
        difference: Mean over images, with its bootstrap interval.
        low: Lower end of the interval; None where there are too few images for one.
        high: Upper end, likewise.
        p_value: Of Wilcoxon's signed-rank test.
        p_value_holm: The same, corrected by Holm for the number of pairs.
        effect_size: Mean difference in standard deviations; None where that is not finite.
        wins, ties, losses: Images on which the second is better, equal and worse.
        agreement: Mean Dice of one's masks against the other's, over images and seeds.
        most_different: The images whose scores differ most, the most first.
    """

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    verdict: str
    better: Outcome
    difference: float
    low: Finite
    high: Finite
    p_value: float
    p_value_holm: float
    effect_size: Finite
    wins: int
    ties: int
    losses: int
    agreement: float
    most_different: tuple[ImagePair, ...]

    @property
    def different(self) -> bool:
        """Whether the two differ beyond noise."""
        return self.better != "none"


class Comparison(BaseModel):
    """Several models on the same images: the content of ``compare.json``.

    Attributes:
        images: Names of the images, in their order.
        rules: Their split and the trimap border, size and empty-image rule of the scores.
        hardware: What the speeds were measured on.
        notes: What a reader must know besides, each a sentence.
        models: In the order they were given.
        pairs: Each with each.
        source: The images, to show some again; not in the JSON.
    """

    model_config = ConfigDict(frozen=True)

    images: tuple[str, ...]
    rules: Mapping[str, str]
    hardware: str
    notes: tuple[str, ...]
    models: tuple[ModelResult, ...]
    pairs: tuple[ModelPair, ...]
    source: SkipValidation[Any] = Field(None, exclude=True)

    def with_notes(self, notes: Sequence[str]) -> Comparison:
        """Return the same with further notes before its own."""
        return self.model_copy(update={"notes": (*notes, *self.notes)})

    def model(self, name: str) -> ModelResult:
        """Return the model of a name."""
        return next(model for model in self.models if model.name == name)


def _compare_all(images: Sequence[str], models: Sequence[ModelResult]) -> tuple[ModelPair, ...]:
    """Compare each model with each other one."""
    couples = list(combinations(models, 2))
    compared = [compare_paired(first.dice, second.dice) for first, second in couples]
    corrected = holm([each.p_value for each in compared])
    return tuple(
        _pair(images, *couple, each, p_value)
        for couple, each, p_value in zip(couples, compared, corrected, strict=True)
    )


def _pair(
    images: Sequence[str],
    first: ModelResult,
    second: ModelResult,
    compared: PairedComparison,
    p_value: float,
) -> ModelPair:
    better = decide(compared, p_value)
    verdict = in_words(compared, p_value, first.title, second.title)
    spread = max(first.seed_spread or 0.0, second.seed_spread or 0.0)
    if better != "none" and abs(compared.difference.mean) < spread:
        verdict += f"; yet seeds of one model lie as far apart (± {spread:.3f})"
    scores = [
        ImagePair(name=name, first=one, second=other, number=number)
        for number, (name, one, other) in enumerate(
            zip(images, first.dice, second.dice, strict=True)
        )
        if one != other
    ]
    scores.sort(key=lambda each: abs(each.first - each.second), reverse=True)
    # every pixel counts, ignored ones too: masks are compared with each other, not with the truth
    agreement = fmean(
        Counts.of(mine.unpack(), theirs.unpack()).dice
        for one in first.seeds
        for other in second.seeds
        for mine, theirs in zip(one.masks, other.masks, strict=True)
    )
    return ModelPair(
        first=first.name,
        second=second.name,
        verdict=verdict,
        better=better,
        difference=compared.difference.mean,
        low=compared.difference.low,
        high=compared.difference.high,
        p_value=compared.p_value,
        p_value_holm=p_value,
        effect_size=compared.effect_size,
        wins=compared.wins,
        ties=compared.ties,
        losses=compared.losses,
        agreement=agreement,
        most_different=tuple(scores[:MOST_DIFFERENT]),
    )


SMALLEST_P = 1e-4
HEADINGS = ("model", "Dice [95 % interval]", "over seeds", "IoU", "images/s", "weights", "MB")
SPEED = "one image at a time, the fastest of three tries, reading not counted"


def text_of(comparison: Comparison) -> str:
    """Return the lines that a person reads: a table, then a paragraph for each pair."""
    rows = table(comparison)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [headline(comparison), ""]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *cells)))
    lines.append(f"speed: {comparison.hardware}; {SPEED}")
    for pair in comparison.pairs:
        titles = (comparison.model(name).title for name in (pair.first, pair.second))
        lines += ["", f"{' -> '.join(titles)}: {pair.verdict}", f"  {difference_of(pair)}"]
        if pair.most_different:
            worst = ", ".join(
                f"{each.name} ({each.first:.2f} -> {each.second:.2f})"
                for each in pair.most_different
            )
            lines.append(f"  differ most on {worst}")
    return "\n".join([*lines, "", method(comparison), *comparison.notes])


def headline(comparison: Comparison) -> str:
    """Say what was compared on what, by which rules."""
    rules, number = comparison.rules, len(comparison.images)
    border = TRIMAP_BORDER_WORDS[rules["trimap_border"]]
    return (
        f"{len(comparison.models)} models on {number} image{'' if number == 1 else 's'} of "
        f"split {rules['split']}, at {rules['size']}, {border}, "
        "each by its own threshold and postprocessing"
    )


def method(comparison: Comparison) -> str:
    """Say how intervals and p-values came about."""
    pairs = len(comparison.pairs)
    seeds = (
        " Several seeds count as their mean on each image; how far they lie apart is not in the "
        "test, it stands beside the mean."
        if any(len(model.seeds) > 1 for model in comparison.models)
        else ""
    )
    correction = f", corrected by Holm for {pairs} pairs" if pairs > 1 else ""
    return (
        "Intervals: 95 % bootstrap over images; p: Wilcoxon's signed-rank test on the paired "
        f"images{correction}.{seeds}"
    )


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows of the models, headings first, without columns in which nothing stands."""
    rows = [HEADINGS]
    for model in comparison.models:
        row = (
            model.title,
            f"{model.mean_dice:.4f}{_ends(model.low, model.high)}",
            "" if model.seed_spread is None else f"± {model.seed_spread:.4f}",
            f"{model.mean_iou:.4f}",
            f"{model.images_per_second:.1f}",
            f"{model.parameters:,}",
            f"{model.file_bytes / 1e6:.1f}",
        )
        rows.append(row)
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return list(zip(*columns, strict=True))


def _ends(low: float | None, high: float | None) -> str:
    """Return an interval in brackets, nothing where there were too few images for one."""
    return "" if low is None else f" [{low:.4f}, {high:.4f}]"


def difference_of(pair: ModelPair) -> str:
    """Return a pair's statistics in a line."""
    p_value, effect = pair.p_value_holm, pair.effect_size
    p_words = f"p < {SMALLEST_P:g}" if p_value < SMALLEST_P else f"p = {p_value:.2g}"
    size = "" if effect is None else f", effect size {effect:.2f}"
    return (
        f"difference {pair.difference:+.4f}{_ends(pair.low, pair.high)}, {p_words}{size}; "
        f"{pair.second} wins {pair.wins}, ties {pair.ties}, loses {pair.losses}; "
        f"the masks agree to Dice {pair.agreement:.4f}"
    )


ONE_SEED = (
    "Each model is one training. With another seed its mean may move as far as the differences "
    "here, so this says which of these files is better, not which kind of model."
)


def compare(
    models: Sequence[Path],
    *,
    source: Source | None = None,
    data_path: Path | None = None,
    split: str = "test",
    trimap_border: TrimapBorder | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_training_images: bool = False,
    networks: Sequence[Network] = (),
) -> Comparison:
    """Compare two or more models on the same images.

    Args:
        models: Run folders, or model files. Those that differ in the seed only are taken together.
        source: Images with their true masks; None: one split of a data folder.
        data_path: The data folder; None takes the one that the first model was trained on.
        split: ``test``, ``val``, ``train`` or ``all``; of a ``source``, what it is called.
        trimap_border: What the trimap's border counts as; None takes the models' own rule, and of
            a ``source`` says that there is none.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.
        allow_training_images: Score images that a model was trained on, and say so.
        networks: Where models are of classes of the user's own: those.

    Raises:
        ConfigError: Fewer than two models, no data folder, or rules that do not fit each other.
        CheckpointError: A model is missing, damaged, foreign, or of a class that was not given.
        DataError: The folder lacks the split, an image cannot be read, or a model was trained on
            it.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; 1 or more is wanted")
    place = find_device(device)
    candidates = open_candidates(models, networks)
    if source is None:
        source, trimap_border = _open_images(candidates, data_path, split, trimap_border)
    require_comparable(
        candidates, source, device=place, allow_training_images=allow_training_images
    )
    score_of = partial(
        evaluate,
        source=source,
        split=split,
        trimap_border=trimap_border,
        batch_size=batch_size,
        allow_training_images=allow_training_images,
    )
    groups = group_seeds(candidates)
    results = []
    for name, members in groups.items():
        seeds = []
        for member in members:
            logger.info("evaluating %s on %d images", member.name, len(source))
            result, score = measure(member, place, score_of)
            seeds.append(result)
        results.append(ModelResult.of(name, seeds))
    notes = [*notes_on(candidates, trimap_border), *_seen(results)]
    if all(len(members) == 1 for members in groups.values()):
        notes.append(ONE_SEED)
    images = tuple(image.name for image in score.images)
    return Comparison(
        images=images,
        rules={
            "split": score.rules.split,
            "trimap_border": score.rules.trimap_border,
            "size": score.rules.size,
            "empty": EMPTY_RULE,
        },
        hardware=describe_hardware(place),
        notes=tuple(notes),
        models=tuple(results),
        pairs=_compare_all(images, results),
        source=source,
    )


def _open_images(
    candidates: Sequence[Candidate],
    data_path: Path | None,
    split: str,
    trimap_border: TrimapBorder | None,
) -> tuple[Source, TrimapBorder | None]:
    """Open a split, and say what its border counts as; None where there is no border."""
    first = candidates[0].card
    border = common_trimap_border(candidates, trimap_border)
    common_validation(candidates, split)
    readings = {(each.card.run.data.masks, each.card.preprocess.reading) for each in candidates}
    if len(readings) > 1:
        raise ConfigError(
            "the models were trained on other readings of the files (data.masks, data.white, "
            "data.channels), so no score is fair to all of them; evaluate each alone"
        )
    path = data_path or first.run.data.path
    if path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    source, data = open_as_trained(first, split, path, trimap_border=border)
    return source, data.trimap_border if find_layout(data) == "pets" else None


def _seen(models: Sequence[ModelResult]) -> list[str]:
    """Say what the models have seen of the images, once where it is the same for all."""
    names: dict[str, list[str]] = {}
    for seed in (seed for model in models for seed in model.seeds):
        names.setdefault(seed.seen, []).append(seed.name)
    if len(names) == 1:
        return [f"Of each model: {words}." for words in names]
    return [f"Of {', '.join(each)}: {words}." for words, each in names.items()]
