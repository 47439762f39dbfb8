"""Measure how well a model knows what its masks are worth, on images unlike those that it knows.

Run by hand: python benchmarks/expected_dice.py DATA [MODEL]
Spoils the test images in ways that no training has shown (blur, noise, darkness, other colours, a
turned camera, close-ups), and compares with the true Dice what the probabilities foretell and what
the model expects after validation has tempered that. Writes ``benchmarks/results/expected_dice``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from close_ups import close_up
from notan.config import load_run
from notan.data.folders import open_split
from notan.metrics.counts import Counts
from notan.modelfile.default import DEFAULT_MODEL
from notan.modelfile.postprocess import foretold_dice
from notan.prediction.predictor import Predictor
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from notan.data.samples import Sample
    from notan.types import Mask, RGBImage

    Spoiling = Callable[[RGBImage, Mask], tuple[RGBImage, Mask]]

GENERATOR = np.random.default_rng(0)


def blurred(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return an image out of focus by a sixtieth of its longer side."""
    return cv2.GaussianBlur(image, (0, 0), max(mask.shape) / 60).astype(np.uint8), mask


def noisy(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return an image with noise of a standard deviation of 50 of 255."""
    return np.clip(image + GENERATOR.normal(0, 50, image.shape), 0, 255).astype(np.uint8), mask


def dark(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return an image taken with far too little light."""
    return (127 * (image / 255.0) ** 2.5).astype(np.uint8), mask


def negative(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return the negative of an image."""
    return 255 - image, mask


def other_colours(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return an image whose red and blue have changed places."""
    return np.ascontiguousarray(image[..., ::-1]), mask


def turned(image: RGBImage, mask: Mask) -> tuple[RGBImage, Mask]:
    """Return an image that lies on its side."""
    return np.ascontiguousarray(np.rot90(image)), np.ascontiguousarray(np.rot90(mask))


SPOILINGS: dict[str, Spoiling] = {
    "as they are": lambda image, mask: (image, mask),
    "close-ups, 0.8": lambda image, mask: close_up(image, mask, 0.8),
    "close-ups, 0.55": lambda image, mask: close_up(image, mask, 0.55),
    "dark": dark,
    "negative": negative,
    "red and blue changed": other_colours,
    "on the side": turned,
    "blurred": blurred,
    "noisy": noisy,
}


def judge(predictor: Predictor, samples: list[Sample], spoil: Spoiling) -> npt.NDArray[np.float64]:
    """Return for each image what is foretold, what is expected, and the Dice: (images, 3)."""
    rows = []
    for sample in samples:
        image, mask = spoil(sample.image, sample.mask)
        found = predictor(image)
        foretold = foretold_dice(found.probability, found.mask)
        rows.append((foretold, found.expected_dice, Counts.of(found.mask, mask).dice))
    return np.array(rows)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path, nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--name", default="expected_dice", help="of the files of results")
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.model)
    card = predictor.card
    if card is None:
        parser.error(f"{arguments.model}: has no card, which says what its border rule is")
    border = {"data.trimap_border": card.trimap_border} if card.trimap_border else {}
    run = load_run(flags={"data.path": arguments.data, **border})
    samples = list(open_split(run.data, "test", seed=0))
    rows = []
    for name, spoil in tqdm(SPOILINGS.items(), desc="judging", unit="spoiling"):
        foretold, expected, true = judge(predictor, samples, spoil).T
        rows.append(
            {
                "test images": name,
                "foretold": round(float(foretold.mean()), 3),
                "expected": round(float(expected.mean()), 3),
                "true": round(float(true.mean()), 3),
                "foretold is off by": round(float(abs(foretold - true).mean()), 3),
                "expected is off by": round(float(abs(expected - true).mean()), 3),
            }
        )
    rule = predictor.postprocessing
    notes = [
        f"{len(samples)} test images of {arguments.data.name}, Dice of {arguments.model.name}",
        "foretold: by the probabilities, as if pixels were wrong independently of each other; "
        f"expected: its logit times {rule.expectation_scale:g}, plus {rule.expectation_bias:g}, as "
        "validation images (none of them spoiled) taught; off by: mean absolute difference",
    ]
    write_results(arguments.name, "What a model expects of its masks", rows, notes=notes)


if __name__ == "__main__":
    main()
