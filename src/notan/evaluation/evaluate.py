"""Evaluate a predictor against the true masks, at each image's own size."""

from __future__ import annotations

import contextlib
import csv
import io
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError
from tqdm import tqdm

from notan.data.folders import find_layout, open_as_trained
from notan.errors import ConfigError, DataError
from notan.io.digest import sha256
from notan.io.write import encoded, write_bytes
from notan.metrics import ImageScore, Score, ScoreRules, Tally, Tolerance
from notan.metrics.groups import by_breed, read_groupings
from notan.metrics.score import NOT_KNOWN
from notan.prediction.flow import BUDGET, Flow, Job, bytes_ahead
from notan.prediction.predictor import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notan.config import TrimapBorder
    from notan.data.samples import Sample, Source
    from notan.metrics import Grouping, Measured
    from notan.modelfile.card import Card
    from notan.prediction.predictor import Prediction, Predictor
    from notan.types import Image8, ProgressCallback

    _Scored: TypeAlias = tuple[Measured, tuple[Sample, Prediction] | None]

TABLE = "images.csv"
SUMMARY = "score.json"
BATCH_SIZE = 8
"""Images predicted at once, on a processor, where nobody says another number."""

SPOILT = "NOT A TEST"
"""How a score begins to say that the model was trained on the images."""


@dataclass(frozen=True)
class EvaluationData:
    """Images to score a model on.

    Attributes:
        source: Images with their true masks.
        trimap_border: What the trimap's border counts as; None: there is none.
        groupings: Ways to divide the images: by breed, and those of the user's table.
    """

    source: Source
    trimap_border: TrimapBorder | None
    groupings: tuple[Grouping, ...]


def evaluate(
    predictor: Predictor,
    source: Source,
    *,
    split: str,
    trimap_border: TrimapBorder | None = None,
    batch_size: int = 1,
    on_prediction: Callable[[Sample, Prediction], None] | None = None,
    write: Callable[[Sample, Prediction], None] | None = None,
    tolerance: Tolerance | None = None,
    groupings: tuple[Grouping, ...] = (),
    allow_training_images: bool = False,
    progress: ProgressCallback | None = None,
) -> Score:
    """Score every image of a source.

    Args:
        predictor: Makes the masks, by its postprocessing.
        source: Images with their true masks, read in several threads.
        split: What the score says it is of.
        trimap_border: What the score says the trimap's border counted as; None: there is none.
        batch_size: Images to predict at once.
        on_prediction: Called with each sample and its prediction, in order.
        write: Likewise, in several threads and any order: to write images.
        tolerance: How far a boundary may lie off; None: ``Tolerance``'s own.
        groupings: Ways to divide the images, beside the one by the foreground's size.
        allow_training_images: Score images that the model was trained on, and mark the score.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The scores of each image at its own size, with the rules.

    Raises:
        DataError: An image or mask cannot be read, there is none, or the model was trained on it.
    """
    seen = find_seen(predictor.card, source)
    if seen.trained and not allow_training_images:
        raise DataError(seen.refusal())
    card = predictor.card
    rules = ScoreRules(
        trimap_border=trimap_border or "none",
        threshold=predictor.postprocessing.threshold,
        split=split,
        postprocessing=predictor.postprocessing.in_words(),
        tolerance=tolerance or Tolerance(),
        seen=seen.in_words(),
        trained_trimap_border=card.trimap_border if card else None,
        weights=card.beginning if card else "from scratch",
        augment=predictor.augment,
        precision=predictor.precision,
    )
    tally = Tally(rules)
    scored = _score_ahead(
        predictor, source, tally, batch_size, write, keeps=on_prediction is not None
    )
    pairs = counted(scored, progress, len(source))
    for measured, pair in tqdm(
        pairs, total=len(source), desc="evaluating", unit="image", leave=False, disable=None
    ):
        tally.add(measured)
        if on_prediction and pair:
            on_prediction(*pair)
    return tally.score(groupings).model_copy(update={"content": content_of(source)})


def _score_ahead(
    predictor: Predictor,
    source: Source,
    tally: Tally,
    batch_size: int,
    write: Callable[[Sample, Prediction], None] | None,
    *,
    keeps: bool,
) -> Iterator[_Scored]:
    """Measure all samples in their order, read ahead of the network and measured behind it.

    Args:
        predictor: Makes the masks.
        source: The samples.
        tally: Measures them.
        batch_size: Images to predict at once.
        write: Called with each sample and its prediction.
        keeps: Yield these too; else they go as soon as they are measured.
    """
    flow: Flow[int, _Scored] = Flow(
        predictor, batch_size=batch_size, budget=BUDGET, images=len(source)
    )
    # how large a sample is shows when it is read: until one is, the next must wait
    largest = [BUDGET]
    lock = threading.Lock()

    def start(index: int) -> Job[_Scored]:
        samples: list[Sample] = []

        def read() -> Image8:
            sample = source[index]
            samples.append(sample)
            with lock:
                weight = bytes_ahead(predictor, sample.size)
                largest[0] = weight if largest[0] == BUDGET else max(weight, largest[0])
            return sample.image

        def measure(_: Image8, prediction: Prediction) -> _Scored:
            sample = samples.pop()
            if write:
                write(sample, prediction)
            measured = tally.measure(
                sample.name,
                prediction.mask,
                prediction.probability,
                sample.mask,
                sample.ignore,
                expected_dice=prediction.expected_dice,
                needs_review=prediction.needs_review,
            )
            return measured, (sample, prediction) if keeps else None

        return Job(read, measure, largest[0])

    with contextlib.closing(flow.run(range(len(source)), start)) as found:
        for _, scored in found:
            if isinstance(scored, DataError):
                raise scored
            yield scored


def content_of(source: Source) -> str:
    """Return what changes when an image or a mask of a source does, or the names.

    Raises:
        DataError: A file cannot be read.
    """
    return sha256("\n".join((*source.names, *source.content_hashes())))[:16]


@dataclass(frozen=True)
class Seen:
    """Which of the images to be scored a model has seen before.

    Attributes:
        images: How many there are.
        trained: The names of those that it was trained on, perhaps under other names.
        chosen: The names of those that its epoch, threshold and postprocessing were chosen on.
        known: Whether the model's card says what it has seen.
        unmasked: The names of those that it has learned from without their masks.
    """

    images: int
    trained: tuple[str, ...]
    chosen: tuple[str, ...]
    known: bool
    unmasked: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Say what that means for a score."""
        number = f"of {self.images} of these images"
        if self.trained:
            return f"{SPOILT}: the model was trained on {len(self.trained)} {number}"
        if self.chosen:
            return f"flattering: epoch and threshold were chosen on {len(self.chosen)} {number}"
        if self.unmasked:
            return (
                f"perhaps flattering: the model has learned from {len(self.unmasked)} {number}, "
                "without their masks"
            )
        return "the model has seen none of these images" if self.known else NOT_KNOWN

    def refusal(self) -> str:
        """Say why a score would mean nothing, and what to do."""
        names = ", ".join(self.trained[:3]) + (", ..." if len(self.trained) > 3 else "")
        return (
            f"the model was trained on {len(self.trained)} of these {self.images} images "
            f"({names}): a score on them says nothing of new images; choose others, such as "
            "--split test, or score them all the same, marked, with --allow-training-images"
        )


def find_seen(card: Card | None, source: Source) -> Seen:
    """Say which images of a source a model has seen, by their content.

    Args:
        card: Of the model; None: nothing is known.
        source: The images. They are read for it, except those of files, which are hashed.
    """
    if card is None or not card.data.training_hashes:
        return Seen(len(source), (), (), known=False)
    hashes = dict(zip(source.names, source.hashes(), strict=True))
    data = card.data
    trained, chosen, unmasked = (
        tuple(name for name, each in hashes.items() if each in known)
        for known in map(
            frozenset, (data.training_hashes, data.validation_hashes, data.unlabelled_hashes)
        )
    )
    return Seen(len(source), trained, chosen, known=True, unmasked=unmasked)


def open_data(
    card: Card,
    split: str,
    *,
    data_path: Path | None,
    trimap_border: TrimapBorder | None = None,
    groups: Path | None = None,
) -> EvaluationData:
    """Open a part of a data folder as the model knows it: border rule, layout, validation split.

    Args:
        card: Of the model.
        split: Which part.
        data_path: The data folder.
        trimap_border: Another rule for the trimap's border than the model's own.
        groups: A table that divides the images into groups.

    Raises:
        ConfigError: There is no such split, or no data folder was given.
        DataError: The folder or the table is missing, unreadable or does not fit.
    """
    if data_path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    source, data = open_as_trained(card, split, data_path, trimap_border=trimap_border)
    given = read_groupings(groups, source.names) if groups else ()
    if find_layout(data) == "pets":
        return EvaluationData(source, data.trimap_border, (by_breed(source.names), *given))
    return EvaluationData(source, None, given)


def write_score(folder: Path, score: Score) -> None:
    """Write the table of images as CSV, and everything as JSON.

    Raises:
        StorageError: A file could not be written.
    """
    write_bytes(folder / SUMMARY, (score.model_dump_json(indent=2) + "\n").encode())
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(ImageScore.model_fields))
    writer.writeheader()
    writer.writerows(image.model_dump() for image in score.images)
    write_bytes(folder / TABLE, encoded(table.getvalue()))


def read_score(path: Path) -> Score:
    """Read what ``write_score`` wrote.

    Raises:
        DataError: The file cannot be read, or is no score.
    """
    try:
        return Score.model_validate_json(path.read_bytes())
    except (OSError, ConfigError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from error
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise DataError(
            f"{path}: this is no score: {place}: {problem['msg']}; evaluate again"
        ) from error
