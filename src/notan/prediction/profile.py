"""Profiles: what a work waits for, in a table and one sentence; and the profile of a prediction.

The stages of a prediction are measured each by itself on a sample of the files, and then all
together as the command runs them. Nothing is written but in a temporary folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from notan.errors import DataError
from notan.io.write import write_bytes
from notan.prediction.formats import Writers
from notan.prediction.items import items_of_all
from notan.prediction.pipeline import Pipeline
from notan.prediction.predictor import Prediction, Predictor
from notan.prediction.table import PredictionTable
from notan.run_folder import PROFILE, PROFILE_PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from notan.prediction.backends import Array, Backend
    from notan.prediction.inputs import Found
    from notan.prediction.items import Item
    from notan.types import Image8

CHUNKS = 5
"""Measurements of which the median is taken."""

SECONDS = 1.5
"""Time for each of the things that are measured."""

SAMPLE = 64
"""Files, or fewer, that a prediction is profiled on; those of a small sample differ too much."""


class Repeated(NamedTuple):
    """Seconds that one thing takes, measured several times.

    Attributes:
        seconds: The median.
        least: Of them.
        most: Of them.
    """

    seconds: float
    least: float
    most: float

    def divided(self, by: float) -> Repeated:
        """Return the share of one of so many things done at once."""
        return Repeated(self.seconds / by, self.least / by, self.most / by)

    def beside(self, other: Repeated) -> Repeated:
        """Return what it was on average at both times that it was measured."""
        middle = (self.seconds + other.seconds) / 2
        return Repeated(middle, min(self.least, other.least), max(self.most, other.most))


def repeat(
    action: Callable[[], object], seconds: float, settle: Callable[[], object] = lambda: None
) -> Repeated:
    """Measure an action again and again, after one call that does not count.

    Args:
        action: What to measure.
        seconds: About so long; an action that takes longer is measured once.
        settle: Waits until all that was begun is done. It is called between groups of actions and
            not after each, for a GPU works on one while the host prepares the next.
    """
    action()
    settle()
    times: list[float] = []
    count = 1
    began = time.perf_counter()
    while len(times) <= CHUNKS and (not times or time.perf_counter() - began < seconds):
        moment = time.perf_counter()
        for _ in range(count):
            action()
        settle()
        times.append((time.perf_counter() - moment) / count)
        if len(times) == 1:
            count = max(1, int(seconds / CHUNKS / max(times[0], 1e-6)))
    times = times[1:] or times  # the first, alone, was for choosing how many at once
    return Repeated(median(times), min(times), max(times))


@dataclass(frozen=True)
class Profile:
    """What a work takes and waits for.

    Attributes:
        title: What was profiled.
        unit: What the times are of: ``step`` or ``image``.
        images: In a unit, on average.
        timings: Of a unit, by what was measured.
        shares: Of the time of a unit, 0..1, by kind of work.
        notes: More that is worth knowing, in sentences.
        bottleneck: The sentence that names it, and what to do.
        facts: Numbers for other programs.
    """

    title: str
    unit: str
    images: float
    timings: Mapping[str, Repeated]
    shares: Mapping[str, float]
    bottleneck: str
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def in_words(self) -> str:
        """Return a page in Markdown."""
        a = "an" if self.unit == "image" else "a"
        lines = [
            f"# {self.title}\n",
            f"{self.bottleneck}\n",
            f"| measured | ms {a} {self.unit} | images a second |",
            "| --- | ---: | ---: |",
        ]
        for name, (seconds, least, most) in self.timings.items():
            took = f"{1e3 * seconds:.4g} ({1e3 * least:.4g} .. {1e3 * most:.4g})"
            lines.append(f"| {name} | {took} | {self.images / max(seconds, 1e-9):,.4g} |")
        lines += [f"\n| where the time of {a} {self.unit} goes | share |", "| --- | ---: |"]
        lines += [
            f"| {name} | {share:.1%} |"
            for name, share in sorted(self.shares.items(), key=lambda each: -each[1])
        ]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def save(self, folder: Path) -> None:
        """Write profile.md and profile.json.

        Raises:
            StorageError: They could not be written.
        """
        timings = {name: timing._asdict() for name, timing in self.timings.items()}
        content = json.dumps({**asdict(self), "timings": timings}, indent=1)
        write_bytes(folder / PROFILE, (content + "\n").encode())
        write_bytes(folder / PROFILE_PAGE, self.in_words().encode())


READING, PREPARING, NETWORK, RESTORING, WRITING = (
    "finding and decoding",
    "preparing",
    "the network",
    "masks at the image's own size",
    "encoding and writing",
)
FILES = "files to files, as the command runs them"
TRIED_BATCH, WORTH = 8, 1.1
"""Images at once that are tried on a network that gets them one by one, and the gain from which
that is worth a word."""


class _Watched:
    """A backend that notes how long it takes, and keeps the largest batch that it was given."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds = 0.0
        self.batch: Array = np.zeros((0, 0, 0, 0), np.float32)

    def __call__(self, inputs: Array) -> Array:
        began = time.perf_counter()
        logits = self.backend(inputs)
        self.seconds += time.perf_counter() - began
        self.batch = max(self.batch, inputs, key=lambda each: each.size)
        return logits


@dataclass(frozen=True)
class Stages:
    """What was measured of a prediction, in seconds of an image.

    Attributes:
        work: By stage, what it takes by itself.
        writing: By format, what encoding and writing it takes.
        network: One pass of the network over a batch that is there, for each of its images.
        together: Likewise of TRIED_BATCH copies at once; None: batches were larger already.
        files: From files to files, all stages beside each other.
        images: How many it was measured on.
    """

    work: Mapping[str, float]
    writing: Mapping[str, float]
    network: Repeated
    together: Repeated | None
    files: Repeated
    images: int


def profile_prediction(
    predictor: Predictor,
    found: Sequence[Found],
    formats: Sequence[str],
    *,
    batch_size: int = 1,
    frame_step: int = 1,
) -> Profile:
    """Profile the prediction of files on a sample of them; nothing of it is kept.

    Args:
        predictor: What predicts.
        found: The files.
        formats: What is written of each image.
        batch_size: Images predicted at once.
        frame_step: Of a video, the first frame and every so-many-th after it.

    Raises:
        DataError: None of the sample can be decoded whole.
        DivergedError: The network returned NaN or infinity.
        StorageError: The temporary folder cannot be written.
    """
    reading = predictor.preprocessor.reading
    few = found[:: -(-len(found) // SAMPLE)]

    def items() -> Iterator[Item]:
        each = items_of_all(few, frame_step=frame_step, reading=reading)
        return itertools.islice((item for item in each if item.open_parts is None), SAMPLE)

    with tempfile.TemporaryDirectory() as folder:
        stages = _measure(predictor, items, formats, batch_size, Path(folder))
    return _report(predictor, stages, batch_size)


def _measure(
    predictor: Predictor,
    items: Callable[[], Iterator[Item]],
    formats: Sequence[str],
    batch_size: int,
    folder: Path,
) -> Stages:
    images, reading = _read(items)
    count, watched = len(images), _Watched(predictor.backend)
    began = time.perf_counter()
    for image in images:
        predictor.preprocessor(image)
    preparing = time.perf_counter() - began
    probe = Predictor(
        watched,
        predictor.preprocessor,
        postprocessing=predictor.postprocessing,
        card=predictor.card,
        tiling=predictor.tiling,
    )
    next(probe.predict_many(images[:1]))  # the first takes longer than all that follow
    watched.seconds, began = 0.0, time.perf_counter()
    predictions = list(probe.predict_many(images, batch_size=batch_size))
    for prediction in predictions:
        _ = prediction.mask  # made when it is asked for
    predicting = time.perf_counter() - began
    writing = {
        name: _seconds_of_writing(Writers([name], folder / name), images, predictions) / count
        for name in formats
    }
    batch = watched.batch
    network = repeat(lambda: watched.backend(batch), SECONDS).divided(len(batch))
    more, together = np.repeat(batch[:1], TRIED_BATCH, axis=0), None
    if len(batch) < TRIED_BATCH:
        together = repeat(lambda: watched.backend(more), SECONDS).divided(TRIED_BATCH)
    work = {
        READING: reading / count,
        PREPARING: preparing / count,
        NETWORK: watched.seconds / count,
        RESTORING: max(0.0, predicting - preparing - watched.seconds) / count,
        WRITING: sum(writing.values()),
    }
    files = _files_to_files(predictor, items, formats, batch_size, folder / "all")
    return Stages(work, writing, network, together, files.divided(count), count)


def _read(items: Callable[[], Iterator[Item]]) -> tuple[list[Image8], float]:
    """Decode a sample in this thread; what cannot be decoded is none of it.

    Returns:
        The images, and the seconds that they took.

    Raises:
        DataError: There are none.
    """
    next(_decoded(items()), None)  # the first loads the decoder
    images: list[Image8] = []
    began = time.perf_counter()
    for image in _decoded(items()):
        images.append(image)
        if time.perf_counter() - began > 2 * SECONDS:
            break
    if not images:
        raise DataError(
            f"--profile: none of the first {SAMPLE} images can be decoded whole, so there is "
            "nothing to measure; leave --profile out, and see what is said of each"
        )
    return images, time.perf_counter() - began


def _decoded(items: Iterator[Item]) -> Iterator[Image8]:
    for item in items:
        with contextlib.suppress(DataError):
            yield item.read()


def _seconds_of_writing(
    writers: Writers, images: Sequence[Image8], predictions: Sequence[Prediction]
) -> float:
    began = time.perf_counter()
    for number, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        writers.add(str(number), Path(str(number)), image, prediction)
    writers.close()
    return time.perf_counter() - began


def _files_to_files(
    predictor: Predictor,
    items: Callable[[], Iterator[Item]],
    formats: Sequence[str],
    batch_size: int,
    folder: Path,
) -> Repeated:
    """Measure the command's own way over the sample, twice."""
    times = []
    for turn in ("first", "second"):
        out = folder / turn
        writers = Writers(formats, out)
        table = PredictionTable.begin(out, {}, resume=False)
        began = time.perf_counter()
        Pipeline(predictor, writers, table, batch_size=batch_size).run(items())
        writers.close()
        times.append(time.perf_counter() - began)
    return Repeated(median(times), min(times), max(times))


def _report(predictor: Predictor, stages: Stages, batch_size: int) -> Profile:
    once = {name: Repeated(each, each, each) for name, each in stages.work.items()}
    whole = sum(stages.work.values())
    timings = {
        FILES: stages.files,
        f"the network alone, {batch_size} at once": stages.network,
        **(
            {f"the network alone, {TRIED_BATCH} at once": stages.together}
            if stages.together
            else {}
        ),
        **{name: once[name] for name in (READING, PREPARING, RESTORING, WRITING)},
    }
    formats = ", ".join(f"{name} {1e3 * each:.3g} ms" for name, each in stages.writing.items())
    notes = [
        f"Repeated on {stages.images} images; each stage by itself in one thread, and files to "
        "files with all of them beside each other.",
        f"Encoding and writing an image: {formats}.",
        f"Files to files it takes {stages.files.seconds / max(stages.network.seconds, 1e-9):.3g} "
        "times what the network alone does.",
    ]
    name = type(predictor.backend).__name__
    facts = {"work": dict(stages.work), "writing": dict(stages.writing), "images": stages.images}
    return Profile(
        f"Profile of a prediction: {name}",
        "image",
        1.0,
        timings,
        {kind: each / whole for kind, each in stages.work.items()},
        _bottleneck(stages),
        notes,
        facts,
    )


def _bottleneck(stages: Stages) -> str:
    """Name the stage with the most work, and what to do about it."""
    kind = max(stages.work, key=lambda each: stages.work[each])
    share = stages.work[kind] / sum(stages.work.values())
    heaviest = max(stages.writing, key=lambda each: stages.writing[each])
    one = "one file for all images, rle, is quicker than one for each"
    gain = stages.network.seconds / stages.together.seconds if stages.together else 1.0
    remedies = {
        READING: "store the images smaller, or give it more cores: files are decoded beside each "
        "other",
        PREPARING: "it is resizing: store the images no larger than the network sees them",
        NETWORK: f"--batch-size {TRIED_BATCH} makes it {gain:.2g} times as quick"
        if gain >= WORTH
        else "a smaller model or --image-size in training, notan export --int8, or a GPU",
        RESTORING: "store the images smaller: masks are made at their own size",
        WRITING: f"{heaviest} takes the most of it: leave it out of --format"
        if len(stages.writing) > 1
        else f"{heaviest} alone is written; {one}",
    }
    return (
        f"Bottleneck: {kind}, {share:.0%} of the work on an image; {remedies[kind]}. Files to "
        f"files {1 / stages.files.seconds:,.4g} images a second, the network alone "
        f"{1 / stages.network.seconds:,.4g}."
    )
