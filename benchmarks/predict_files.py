"""Measure prediction from files to files: batches, threads, and the network alone, in turns.

Run by hand: python benchmarks/predict_files.py --images 300
Takes the first of ../shared/data/pets-unlabelled/images and the default model (or --model), and
writes masks and overlays into a folder that goes again, as ``notan predict`` does. "No network"
answers at once, so it shows what this machine reads and writes: what a GPU can be fed with here.
Then it says whether the probabilities depend on the batch. Writes
benchmarks/results/predict_files.json and .md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import notan
from notan.io.images import read_image
from notan.prediction.batches import Batches
from notan.prediction.flow import choose_threads
from notan.prediction.formats import Writers
from notan.prediction.inputs import find_inputs
from notan.prediction.items import items_of
from notan.prediction.pipeline import Pipeline
from notan.prediction.predictor import Predictor
from notan.prediction.table import PredictionTable
from notan.runtime import count_cores
from results import spread, take_turns, timed, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.prediction.backends import Array
    from notan.prediction.inputs import Found
    from notan.types import ModelInput

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pets-unlabelled" / "images"
OLD_THREADS = 2
"""As many read and as many wrote on every machine before they were chosen by its cores."""

BATCHES = (1, 2, 4, 8)


def no_network(inputs: Array) -> Array:
    """Answer at once: nothing is foreground."""
    return np.full((len(inputs), 1, *inputs.shape[2:]), -1.0, np.float32)


def files_to_files(
    predictor: Predictor, found: Sequence[Found], batch_size: int, threads: int
) -> None:
    """Do what ``notan predict`` does between its start and its last line."""
    reading = predictor.preprocessor.reading
    with tempfile.TemporaryDirectory() as place:
        writers = Writers(["mask", "overlay"], Path(place))
        table = PredictionTable(Path(place))
        pipeline = Pipeline(predictor, writers, table, batch_size=batch_size, threads=threads)
        pipeline.run(
            itertools.chain.from_iterable(items_of(file, reading=reading) for file in found)
        )
        writers.close()
    if table.predicted != len(found):
        raise SystemExit(f"{len(table.failures)} images could not be read")


def network_alone(predictor: Predictor, inputs: Sequence[ModelInput], batch_size: int) -> None:
    """Run the network on images that are ready."""
    batches: Batches[None] = Batches(predictor.backend, batch_size)
    for start in range(0, len(inputs), batch_size):
        list(batches.put([(None, each) for each in inputs[start : start + batch_size]]))
    list(batches.rest())


def differences(predictor: Predictor, inputs: Sequence[ModelInput]) -> str:
    """Say how far the logits of a batch are from those of its images alone."""
    alone = predictor.backend(np.stack(inputs[:1]))
    most = 0.0
    for size in BATCHES[1:]:
        together = predictor.backend(np.stack([inputs[0], *inputs[1:size]]))
        most = max(most, float(np.abs(together[:1] - alone).max()))
    said = f"differ by at most {most:.1g}" if most else "are the same bit for bit"
    sizes = ", ".join(map(str, BATCHES[1:]))
    return f"Logits of an image in a batch of {sizes} and alone {said}."


def ways(
    predictor: Predictor, found: Sequence[Found], inputs: Sequence[ModelInput]
) -> dict[str, Callable[[], float]]:
    """Return what is measured, by its name."""
    chosen = predictor.choose_batch_size()
    free = Predictor(no_network, predictor.preprocessor)
    threads = choose_threads(count_cores(), leaves_processor_free=predictor.leaves_processor_free)
    all_cores = choose_threads(count_cores(), leaves_processor_free=True)
    alone = {
        f"network alone, batch {size}": functools.partial(network_alone, predictor, inputs, size)
        for size in sorted({*BATCHES, chosen})
    }
    files = {
        f"files to files, batch {size}, threads {threads}": functools.partial(
            files_to_files, predictor, found, size, threads
        )
        for size in sorted({*BATCHES, chosen})
    }
    old = {
        f"files to files, batch 1, threads {OLD_THREADS}": functools.partial(
            files_to_files, predictor, found, 1, OLD_THREADS
        )
    }
    without = {
        f"files to files, no network, threads {number}": functools.partial(
            files_to_files, free, found, 32, number
        )
        for number in sorted({1, OLD_THREADS, all_cores})
    }
    return {name: timed(each) for name, each in (alone | old | files | without).items()}


def main() -> None:
    """Measure all ways in turns and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=IMAGES)
    parser.add_argument("--images", type=int, default=300, help="the first so many")
    parser.add_argument("--model", type=Path, help="a model file; None: the default model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    predictor = notan.load(wanted.model, device=wanted.device)
    found = find_inputs(sorted(wanted.folder.iterdir())[: wanted.images])
    ready = (predictor.prepare(read_image(file.path)) for file in found)
    inputs = [each[1] for each in ready if each is not None]
    taken = take_turns(ways(predictor, found, inputs), rounds=wanted.rounds)
    rows = [
        {"what": name, "images a second": spread(seconds).per_second(len(found))}
        for name, seconds in taken.items()
    ]
    model = wanted.model.name if wanted.model else "the default model"
    write_results(
        "predict_files",
        f"Prediction of {len(found)} photographs, {model} in {predictor.precision}",
        rows,
        [
            differences(predictor, inputs),
            f"Chosen here: a batch of {predictor.choose_batch_size()}; {count_cores()} cores.",
        ],
    )


if __name__ == "__main__":
    main()
