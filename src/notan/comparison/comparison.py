"""Several models on the same images, and which differences are more than noise.

Verdict: what a paired comparison lets one say, in plain words.

Comparison: what several models scored on the same images, each alone and each pair.

What one model scores on the images: its Dice, its masks, its speed, its size.

A comparison as text: a table of the models, then a paragraph for each pair.

Compare run folders or model files: every model on the same images, by the same rules.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Literal

import numpy as np

from notan.comparison.candidates import (
    check_validation,
    common_trimap_border,
    group_seeds,
    notes_on,
    open_candidates,
)
from notan.evaluation.evaluate import evaluate, open_data
from notan.metrics import EMPTY_RULE, Counts
from notan.metrics.score import BORDER_WORDS
from notan.metrics.statistics import Interval, PairedComparison, compare_paired, holm, mean_interval
from notan.modelfile.onnx import is_onnx
from notan.prediction.backends import TorchBackend
from notan.prediction.predictor import Predictor
from notan.runtime import describe_hardware, find_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

    from notan.comparison.candidates import Candidate
    from notan.config import TrimapBorder
    from notan.data.samples import Sample, Source
    from notan.metrics import Score
    from notan.prediction.predictor import Prediction
    from notan.types import Mask, RGBImage, Size

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


@dataclass(frozen=True)
class Contender:
    """A model, or the seeds of one run together.

    Attributes:
        name: Its own among the contenders.
        results: One for each seed.
        dice: Of every image, the mean over the seeds.
        mean: Of these, with its interval over images.
    """

    name: str
    results: tuple[Result, ...]
    dice: tuple[float, ...]
    mean: Interval

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> Contender:
        """Join the results of one run's seeds."""
        dice = [fmean(scores) for scores in zip(*(each.dice for each in results), strict=True)]
        return cls(name, tuple(results), tuple(dice), mean_interval(dice))

    @property
    def iou(self) -> float:
        """Mean over images and seeds."""
        return fmean(result.score.mean_iou for result in self.results)

    @property
    def seed_spread(self) -> float | None:
        """Standard deviation of the mean Dice over the seeds; None for one seed."""
        means = [result.score.mean_dice for result in self.results]
        return stdev(means) if len(means) > 1 else None

    @property
    def images_per_second(self) -> float:
        """Mean over the seeds, which are networks of one kind."""
        return fmean(result.images_per_second for result in self.results)

    @property
    def title(self) -> str:
        """The name, with the number of seeds where there are several."""
        seeds = len(self.results)
        return f"{self.name} ({seeds} seeds)" if seeds > 1 else self.name

    def nearest(self, image: int) -> Result:
        """Return the seed whose score of an image is nearest to the mean of all."""
        mean = self.dice[image]
        return min(self.results, key=lambda result: abs(result.dice[image] - mean))

    def to_json(self) -> dict[str, object]:
        """Return the means, and every seed's result."""
        return {
            "name": self.name,
            "mean_dice": self.mean.mean,
            "low": finite(self.mean.low),
            "high": finite(self.mean.high),
            "mean_iou": self.iou,
            "seed_spread": self.seed_spread,
            "images_per_second": self.images_per_second,
            "parameters": self.results[0].parameters,
            "file_bytes": self.results[0].file_bytes,
            "seeds": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True)
class Pair:
    """Two contenders against each other.

    Attributes:
        first: One of them.
        second: The other; differences are second minus first.
        compared: The statistics over images.
        p_value: The rank test's, corrected by Holm for the number of pairs.
        agreement: Mean Dice of one's masks against the other's, over images and seeds.
        most_different: Numbers of the images whose scores differ most, the most first.
    """

    first: Contender
    second: Contender
    compared: PairedComparison
    p_value: float
    agreement: float
    most_different: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """Which is better and by how much, in a sentence."""
        words = in_words(self.compared, self.p_value, self.first.title, self.second.title)
        spread = max(self.first.seed_spread or 0.0, self.second.seed_spread or 0.0)
        if self.different and abs(self.compared.difference.mean) < spread:
            words += f"; yet seeds of one model lie as far apart (± {spread:.3f})"
        return words

    @property
    def different(self) -> bool:
        """Whether the two differ beyond noise."""
        return decide(self.compared, self.p_value) != "none"

    def to_json(self, names: Sequence[str]) -> dict[str, object]:
        """Return the statistics, the verdict and the images that differ most."""
        compared, difference = self.compared, self.compared.difference
        return {
            "first": self.first.name,
            "second": self.second.name,
            "verdict": self.verdict,
            "better": decide(compared, self.p_value),
            "difference": difference.mean,
            "low": finite(difference.low),
            "high": finite(difference.high),
            "p_value": compared.p_value,
            "p_value_holm": self.p_value,
            "effect_size": finite(compared.effect_size),
            "wins": compared.wins,
            "ties": compared.ties,
            "losses": compared.losses,
            "agreement": self.agreement,
            "most_different": [
                {
                    "name": names[each],
                    "first": self.first.dice[each],
                    "second": self.second.dice[each],
                }
                for each in self.most_different
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """Several models on the same images.

    Attributes:
        contenders: In the order they were given.
        pairs: Each with each.
        source: The images.
        hardware: What the speeds were measured on.
        notes: What a reader must know besides, each a sentence.
    """

    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    source: Source
    hardware: str
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, contenders: Sequence[Contender], source: Source, hardware: str, notes: Sequence[str]
    ) -> Comparison:
        """Compare each contender with each other one."""
        couples = list(combinations(contenders, 2))
        compared = [compare_paired(first.dice, second.dice) for first, second in couples]
        corrected = holm([each.p_value for each in compared])
        pairs = [
            Pair(*couple, each, p_value, _agreement(*couple), _most_different(*couple))
            for couple, each, p_value in zip(couples, compared, corrected, strict=True)
        ]
        return cls(tuple(contenders), tuple(pairs), source, hardware, tuple(notes))

    def with_notes(self, notes: Sequence[str]) -> Comparison:
        """Return the same with further notes before its own."""
        return replace(self, notes=(*notes, *self.notes))

    @property
    def names(self) -> list[str]:
        """Of the images, in their order."""
        return [image.name for image in self.contenders[0].results[0].score.images]

    @property
    def over_seeds(self) -> bool:
        """Whether some contender is several seeds."""
        return any(len(contender.results) > 1 for contender in self.contenders)

    def to_json(self) -> dict[str, object]:
        """Return everything but the masks as plain dicts, lists and numbers; never NaN."""
        rules = self.contenders[0].results[0].score.rules
        return {
            "images": self.names,
            "rules": {
                "split": rules.split,
                "trimap_border": rules.trimap_border,
                "size": rules.size,
                "empty": EMPTY_RULE,
            },
            "hardware": self.hardware,
            "notes": list(self.notes),
            "models": [contender.to_json() for contender in self.contenders],
            "pairs": [pair.to_json(self.names) for pair in self.pairs],
        }


def finite(value: float) -> float | None:
    """Return a number that JSON has, None for one that it has not."""
    return value if math.isfinite(value) else None


def _agreement(first: Contender, second: Contender) -> float:
    """Return the mean Dice of masks against masks; every pixel counts, ignored ones too."""
    return fmean(
        Counts.of(mine.unpack(), theirs.unpack()).dice
        for one in first.results
        for other in second.results
        for mine, theirs in zip(one.masks, other.masks, strict=True)
    )


def _most_different(first: Contender, second: Contender) -> tuple[int, ...]:
    gaps = [abs(a - b) for a, b in zip(first.dice, second.dice, strict=True)]
    order = sorted(range(len(gaps)), key=lambda number: gaps[number], reverse=True)
    return tuple(number for number in order[:MOST_DIFFERENT] if gaps[number] > 0)


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


@dataclass(frozen=True)
class Result:
    """What one model did on the images.

    Attributes:
        candidate: The model.
        score: Of every image.
        masks: Of every image.
        images_per_second: One image at a time, from pixels to mask; reading not counted.
        parameters: Numbers that were learned; 0 where an ONNX model's card does not say.
        file_bytes: Of the model file.
    """

    candidate: Candidate
    score: Score
    masks: tuple[PackedMask, ...]
    images_per_second: float
    parameters: int
    file_bytes: int

    @property
    def dice(self) -> list[float]:
        """Of every image."""
        return [image.dice for image in self.score.images]

    def to_json(self) -> dict[str, object]:
        """Return what is said of this model alone."""
        return {
            "name": self.candidate.name,
            "file": str(self.candidate.path),
            "seed": self.candidate.card.run.seed,
            "epoch": self.candidate.card.epoch,
            "threshold": self.score.rules.threshold,
            "postprocessing": self.score.rules.postprocessing,
            "seen": self.score.rules.seen,
            "mean_dice": self.score.mean_dice,
            "mean_iou": self.score.mean_iou,
            "images_per_second": self.images_per_second,
            "parameters": self.parameters,
            "file_bytes": self.file_bytes,
            "dice": self.dice,
        }


def measure(
    candidate: Candidate,
    source: Source,
    *,
    split: str,
    trimap_border: TrimapBorder | None,
    device: torch.device,
    batch_size: int,
    allow_training_images: bool,
) -> Result:
    """Evaluate a model, keep its masks and measure its speed.

    Raises:
        CheckpointError: The file is damaged, or of a network of the user's own.
        DataError: An image or mask cannot be read, or the model was trained on it and
            ``allow_training_images`` is False.
    """
    predictor = _load(candidate, device)
    masks: list[PackedMask] = []
    first: list[RGBImage] = []

    def keep(sample: Sample, prediction: Prediction) -> None:
        masks.append(PackedMask.of(prediction.mask))
        if len(first) < TIMED:
            first.append(sample.image)

    score = evaluate(
        predictor,
        source,
        split=split,
        trimap_border=trimap_border,
        batch_size=batch_size,
        on_prediction=keep,
        allow_training_images=allow_training_images,
    )
    return Result(
        candidate,
        score,
        tuple(masks),
        _speed(predictor, first),
        _parameters(predictor),
        candidate.path.stat().st_size,
    )


def _load(candidate: Candidate, device: torch.device) -> Predictor:
    """Open a model; an ONNX model runs on the processor, whatever the others run on."""
    if not is_onnx(candidate.path):
        return Predictor.load(candidate.path, device=device)
    import torch

    # speeds stand side by side, under one line that says how many threads there were: PyTorch's
    return Predictor.load(candidate.path, threads=torch.get_num_threads())


def _speed(predictor: Predictor, images: Sequence[RGBImage]) -> float:
    """Return images per second, of the middle image's fastest try.

    Whatever else the machine does makes a try slower, never faster.
    """
    fastest = (min(_seconds(predictor, image) for _ in range(TRIES)) for image in images)
    return 1 / median(fastest)


def _seconds(predictor: Predictor, image: RGBImage) -> float:
    start = time.perf_counter()
    _ = predictor(image).mask
    return time.perf_counter() - start


def _parameters(predictor: Predictor) -> int:
    backend = predictor.backend
    if isinstance(backend, TorchBackend):
        return sum(parameter.numel() for parameter in backend.model.parameters())
    return (predictor.card.parameters if predictor.card else None) or 0


SMALLEST_P = 1e-4
HEADINGS = ("model", "Dice [95 % interval]", "over seeds", "IoU", "images/s", "weights", "MB")
SPEED = "one image at a time, the fastest of three tries, reading not counted"


def text_of(comparison: Comparison) -> str:
    """Return the lines that a person reads."""
    return "\n".join(
        (
            headline(comparison),
            "",
            *_lined_up(table(comparison)),
            f"speed: {comparison.hardware}; {SPEED}",
            *(line for pair in comparison.pairs for line in _paragraph(pair, comparison.names)),
            "",
            method(comparison),
            *comparison.notes,
        )
    )


def headline(comparison: Comparison) -> str:
    """Say what was compared on what, by which rules."""
    rules, number = comparison.contenders[0].results[0].score.rules, len(comparison.names)
    return (
        f"{len(comparison.contenders)} models on {number} image{'' if number == 1 else 's'} of "
        f"split {rules.split}, at {rules.size}, {BORDER_WORDS[rules.trimap_border]}, "
        "each by its own threshold and tidying"
    )


def method(comparison: Comparison) -> str:
    """Say how intervals and p-values came about."""
    pairs = len(comparison.pairs)
    seeds = (
        " Several seeds count as their mean on each image; how far they lie apart is not in the "
        "test, it stands beside the mean."
        if comparison.over_seeds
        else ""
    )
    correction = f", corrected by Holm for {pairs} pairs" if pairs > 1 else ""
    return (
        "Intervals: 95 % bootstrap over images; p: Wilcoxon's signed-rank test on the paired "
        f"images{correction}.{seeds}"
    )


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows of the models, headings first, without columns in which nothing stands."""
    rows = [HEADINGS, *(_row(each) for each in comparison.contenders)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return list(zip(*columns, strict=True))


def _row(contender: Contender) -> tuple[str, ...]:
    spread, result = contender.seed_spread, contender.results[0]
    return (
        contender.title,
        f"{contender.mean.mean:.4f}{ends_of(contender.mean)}",
        "" if spread is None else f"± {spread:.4f}",
        f"{contender.iou:.4f}",
        f"{contender.images_per_second:.1f}",
        f"{result.parameters:,}",
        f"{result.file_bytes / 1e6:.1f}",
    )


def ends_of(interval: Interval) -> str:
    """Return an interval in brackets, nothing where there were too few images for one."""
    return "" if math.isnan(interval.low) else f" [{interval.low:.4f}, {interval.high:.4f}]"


def p_in_words(p_value: float) -> str:
    """Return a p-value as it is written: tiny ones as a bound."""
    return f"p < {SMALLEST_P:g}" if p_value < SMALLEST_P else f"p = {p_value:.2g}"


def difference_of(pair: Pair) -> str:
    """Return a pair's statistics in a line."""
    compared, effect = pair.compared, pair.compared.effect_size
    size = f", effect size {effect:.2f}" if math.isfinite(effect) else ""
    return (
        f"difference {compared.difference.mean:+.4f}{ends_of(compared.difference)}, "
        f"{p_in_words(pair.p_value)}{size}; {pair.second.name} "
        f"wins {compared.wins}, ties {compared.ties}, loses {compared.losses}; "
        f"the masks agree to Dice {pair.agreement:.4f}"
    )


def _paragraph(pair: Pair, names: Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"{pair.first.title} -> {pair.second.title}: {pair.verdict}"
    yield f"  {difference_of(pair)}"
    if pair.most_different:
        worst = ", ".join(
            f"{names[each]} ({pair.first.dice[each]:.2f} -> {pair.second.dice[each]:.2f})"
            for each in pair.most_different
        )
        yield f"  differ most on {worst}"


def _lined_up(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join((first, *others))


logger = logging.getLogger("notan")

ONE_SEED = (
    "Each model is one training. With another seed its mean may move as far as the differences "
    "here, so this says which of these files is better, not which kind of model."
)


def compare(
    models: Sequence[Path],
    *,
    data_path: Path | None = None,
    split: str = "test",
    trimap_border: TrimapBorder | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_training_images: bool = False,
) -> Comparison:
    """Compare two or more models on one split of a data folder.

    Args:
        models: Run folders, or model files. Those that differ in the seed only are taken together.
        data_path: The data folder; None takes the one that the first model was trained on.
        split: ``test``, ``val``, ``train`` or ``all``.
        trimap_border: What the trimap's border counts as; None takes the models' own rule.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.
        allow_training_images: Score images that a model was trained on, and say so.

    Raises:
        ConfigError: Fewer than two models, no data folder, or rules that do not fit each other.
        CheckpointError: A model is missing, damaged, foreign, or a network of the user's own.
        DataError: The folder lacks the split, an image cannot be read, or a model was trained on
            it.
    """
    candidates = open_candidates(models)
    check_validation(candidates, split)
    card = candidates[0].card
    data = open_data(
        card,
        split,
        data_path=data_path or card.run.data.path,
        trimap_border=common_trimap_border(candidates, trimap_border),
    )
    return compare_on(
        candidates,
        data.source,
        split=split,
        trimap_border=data.trimap_border,
        device=device,
        batch_size=batch_size,
        allow_training_images=allow_training_images,
    )


def compare_on(
    candidates: Sequence[Candidate],
    source: Source,
    *,
    split: str,
    trimap_border: TrimapBorder | None = None,
    device: str = "auto",
    batch_size: int = 8,
    allow_training_images: bool = False,
) -> Comparison:
    """Compare opened models on images of any source.

    Args:
        candidates: From ``open_candidates``.
        source: Images with their true masks.
        split: What the comparison says they are.
        trimap_border: What it says the trimap's border counted as; None: there is none.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.
        allow_training_images: Score images that a model was trained on, and say so.

    Raises:
        CheckpointError: A file is damaged, or of a network of the user's own.
        DataError: An image or mask cannot be read, there is none, or a model was trained on it.
    """
    place = find_device(device)
    groups = group_seeds(candidates)
    contenders = []
    for group in groups:
        results = []
        for member in group.members:
            logger.info("evaluating %s on %d images", member.name, len(source))
            results.append(
                measure(
                    member,
                    source,
                    split=split,
                    trimap_border=trimap_border,
                    device=place,
                    batch_size=batch_size,
                    allow_training_images=allow_training_images,
                )
            )
        contenders.append(Contender.of(group.name, results))
    notes = [*notes_on(candidates, trimap_border), *_seen(contenders)]
    if all(len(group.members) == 1 for group in groups):
        notes.append(ONE_SEED)
    return Comparison.of(contenders, source, describe_hardware(place), notes)


def _seen(contenders: Sequence[Contender]) -> list[str]:
    """Say what the models have seen of the images, once where it is the same for all."""
    names: dict[str, list[str]] = {}
    for result in (result for contender in contenders for result in contender.results):
        names.setdefault(result.score.rules.seen, []).append(result.candidate.name)
    if len(names) == 1:
        return [f"Of each model: {words}." for words in names]
    return [f"Of {', '.join(models)}: {words}." for words, models in names.items()]
