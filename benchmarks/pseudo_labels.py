"""Label images without masks by models, and write a data folder of them and of labelled images.

Run by hand: python benchmarks/pseudo_labels.py DATA IMAGES MODEL [MODEL ...] --out FOLDER
The mean of the models' probabilities, each over an image and its mirror image, is cut at one half;
an image stays where the models agree with that mask. Labelled training images are written several
times, so that they have a say beside so many others; the validation images stay what they are, and
none of them is learned from. recipes/pets-default.toml trains on such a folder.

Source: self-training as in Xie et al. 2020, "Noisy Student", arXiv:1911.04252; ours keeps images by
the agreement of several teachers instead of one's confidence.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from notan.config import load_run
from notan.data.folders import image_files, open_split
from notan.io.images import read_image
from notan.io.write import write_bytes
from notan.metrics.counts import Counts
from notan.modelfile.postprocess import Postprocessing
from notan.prediction.pixels import write_png
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Image8, Mask


TIDY = Postprocessing(min_component_fraction=0.01, fill_holes_fraction=0.02)
"""What no true mask of the pets has is not taught: specks, and small holes."""


def vote(predictors: Sequence[Predictor], image: Image8) -> tuple[Mask, float]:
    """Return the mask of the mean probability, and the lowest Dice of a model's mask with it."""
    found = [predictor(image) for predictor in predictors]
    mask = np.mean([each.probability for each in found], axis=0) >= 0.5
    return mask, min(Counts.of(each.mask, mask).dice for each in found)


def label(
    predictors: Sequence[Predictor],
    images: Path,
    folder: Path,
    agreement: float,
    most: int | None = None,
) -> tuple[int, int]:
    """Write what the models agree on into a folder; return how many images stayed, of how many.

    Where only some are wanted, the order is drawn at random, always the same.
    """
    files, kept = image_files(images), 0
    if most is not None:
        random.Random(0).shuffle(files)
    for asked, path in enumerate(tqdm(files, desc="labelling", unit="image")):
        if kept == most:
            return kept, asked
        mask, agreed = vote(predictors, read_image(path))
        if agreed >= agreement and mask.any():
            write(folder, path.stem, path, TIDY.postprocess(mask))
            kept += 1
    return kept, len(files)


def write(folder: Path, name: str, image: Path, mask: Mask) -> None:
    """Write an image as it is, with its mask."""
    write_bytes(folder / "images" / f"{name}{image.suffix}", image.read_bytes())
    write_png(folder / "masks" / f"{name}.png", np.where(mask, 255, 0).astype(np.uint8))


def main() -> None:
    """Write the folder and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="labelled images")
    parser.add_argument("images", type=Path, help="a folder of images without masks")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trimap-border", default="background")
    parser.add_argument("--agreement", type=float, default=0.9, help="Dice, 0..1")
    parser.add_argument("--repeat", type=int, default=3, help="of the labelled training images")
    parser.add_argument("--most", type=int, help="images without masks that stay; default: all")
    words = parser.parse_args()
    if words.most is not None and words.most < 1:
        sys.exit(f"--most {words.most}: at least 1 is wanted")
    if words.out.exists():
        sys.exit(f"{words.out}: something is here already")
    run = load_run(flags={"data.path": words.data, "data.trimap_border": words.trimap_border})
    parts = {part: open_split(run.data, part, seed=0) for part in ("train", "validation")}
    predictors = [Predictor.load(model, augment=("hflip",), threads=1) for model in words.models]
    for part, copies in (("train", words.repeat), ("validation", 1)):
        source = parts[part]
        for pair, sample in zip(source.pairs, source, strict=True):
            for copy in range(copies):
                write(words.out / part, f"{sample.name}-{copy}", pair.image, sample.mask)
    dice = [
        Counts.of(vote(predictors, sample.image)[0], sample.mask).dice
        for sample in parts["validation"]
    ]
    print(f"together the models have Dice {np.mean(dice):.4f} on the validation images")
    kept, of = label(predictors, words.images, words.out / "train", words.agreement, words.most)
    print(f"{kept} of {of} images stayed, beside {len(parts['train'])} x {words.repeat}")


if __name__ == "__main__":
    main()
