"""Measure what losses for thin structures are worth: drawn cracks, against a plain recipe.

Run by hand: python benchmarks/cracks.py --work FOLDER --python-of-yardstick PYTHON
Draws cracks of 1 to 4 pixels, trains the yardstick (``../shared/yardstick/peer_smp.py``, a plain
U-Net in sixty lines) and ``notan train --auto`` with other losses on one core for the same time,
and compares Dice and clDice of each test image. The yardstick's limit is of its steps alone,
notan's of the whole command. Finished runs are kept: give the command again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from skimage.morphology import skeletonize

from notan.data.synthetic import DrawnSource, write_folder
from notan.io.images import read_image
from notan.io.write import write_bytes
from notan.metrics import Counts
from notan.metrics.statistics import compare_paired
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST
from notan.runtime import has_quick_bf16
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from notan.data.samples import Sample
    from notan.types import Mask

YARDSTICK, CHOSEN = "yardstick", "as chosen"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    YARDSTICK: (),
    CHOSEN: (),
    "resampled": (
        "augment.quarter_turn_probability=0",
        "augment.rotate_degrees=180",
        "augment.scale_probability=0.5",
        "augment.affine_scale=0.2",
        "augment.translate=0.1",
        "augment.crop_probability=0.5",
        "augment.crop_area=0.5",
    ),
    "cldice 0.5": ("loss.cldice=0.5",),
    "boundary 0.01": ("loss.boundary=0.01",),
}
"""What is trained, and what it changes in the choice of ``--auto``."""

SCRIPT = Path(__file__).resolve().parents[2] / "shared" / "yardstick" / "peer_smp.py"
PREDICTING_SCRIPT = """
import contextlib, runpy, sys
from pathlib import Path
import cv2, torch
script, out, seed, bf16, *words = sys.argv[1:]
fixed = torch.manual_seed
torch.manual_seed = lambda _: fixed(int(seed))
if bf16 == "without":
    torch.autocast = lambda *_, **__: contextlib.nullcontext()
sys.path.insert(0, str(Path(script).parent))
sys.argv = [script, *words]
left = runpy.run_path(script, run_name="__main__")
side = (left["a"].size,) * 2
with torch.inference_mode():
    for path, _ in left["pairs"](left["a"].data, "test"):
        image = left["read"](path)
        small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        answer = left["net"](left["normal"](small)[None]).sigmoid()[0, 0].numpy()
        whole = cv2.resize(answer, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(Path(out) / (path.stem + ".png")), (whole > 0.5).astype("uint8") * 255)
"""
"""Runs the yardstick as it is, then writes the masks that it scored; it prints means alone.

bf16 is switched off where a processor can only imitate it, which would slow the yardstick down.
"""


@dataclass(frozen=True)
class Bench:
    """Where everything lies and what is measured.

    Attributes:
        work: Data and runs.
        seconds: The limit of each training.
        python: The yardstick's interpreter.
        test: The images that are scored.
    """

    work: Path
    seconds: float
    python: str
    test: Sequence[Sample]

    def scores(self, variant: str, seed: int) -> dict[str, dict[str, float]]:
        """Train and score one, or read what was scored: image -> score -> value."""
        name = f"{variant.replace(' ', '-')}-{self.seconds:g}s-s{seed}"
        folder = self.work / name
        kept = folder / "scores.json"
        if kept.exists():
            found: dict[str, dict[str, float]] = json.loads(kept.read_bytes())
            return found
        began = time.monotonic()
        if variant == YARDSTICK:
            masks = self.yardstick(folder, seed)
        else:
            masks = self.ours(folder, seed, VARIANTS[variant])
        found = {sample.name: score(masks[sample.name], sample.mask) for sample in self.test}
        write_bytes(kept, (json.dumps(found, indent=1) + "\n").encode())
        print(f"{name}: {means(found)}, {time.monotonic() - began:.0f} s with scoring", flush=True)
        return found

    def yardstick(self, folder: Path, seed: int) -> dict[str, Mask]:
        """Train the yardstick; return its masks by name."""
        out = folder / "masks"
        out.mkdir(parents=True, exist_ok=True)
        bf16 = "without" if has_quick_bf16() is False else "with"
        head = [self.python, "-c", PREDICTING_SCRIPT, str(SCRIPT), str(out), str(seed), bf16]
        words = ["--encoder", "lite0-imagenet", "--seconds", f"{self.seconds:g}"]
        spend([*head, str(self.work / "data"), *words], folder / "log.txt")
        paths = {sample.name: out / f"{sample.name}.png" for sample in self.test}
        return {name: read_image(path)[..., 0] > 127 for name, path in paths.items()}

    def ours(self, folder: Path, seed: int, settings: Iterable[str]) -> dict[str, Mask]:
        """Train notan with some settings; return its masks by name."""
        command = [sys.executable, "-m", "notan", "train", "--auto", "--seed", str(seed)]
        command += ["--data-path", str(self.work / "data"), "--out", str(folder / "run")]
        command += ["--time-limit", f"{self.seconds:g}s", "--overwrite", *settings]
        folder.mkdir(parents=True, exist_ok=True)
        spend(command, folder / "log.txt")
        predictor = Predictor.load(folder / "run" / BEST, device="cpu")
        return {sample.name: predictor(sample.image).mask for sample in self.test}


def spend(command: Sequence[str], log: Path) -> None:
    """Run a command on one thread, its words to a file; leave with the last of them if it fails."""
    try:
        with log.open("wb") as out:
            done = subprocess.run(  # noqa: S603 - our own words
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
    except OSError as error:
        sys.exit(f"cracks: {command[0]} cannot be run ({error}); see --python-of-yardstick")
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        sys.exit(f"cracks: {lines[-1] if lines else 'not a word'} ({log})")


def score(mask: Mask, truth: Mask) -> dict[str, float]:
    """Return Dice and clDice of one mask."""
    return {"Dice": Counts.of(mask, truth, None).dice, "clDice": hard_cldice(mask, truth)}


def hard_cldice(mask: Mask, truth: Mask) -> float:
    """Return the harmonic mean of each skeleton's share within the other mask.

    Where both masks are empty it is 1, and where one of them is, 0.

    Source: Shit et al. 2021, arXiv 2003.07311, equation 1.
    """
    if not mask.any() or not truth.any():
        return float(mask.any() == truth.any())
    found, true = (skeletonize(each) for each in (mask, truth))  # type: ignore[no-untyped-call]
    precision, sensitivity = float(np.mean(truth[found])), float(np.mean(mask[true]))
    both = precision + sensitivity
    return 2 * precision * sensitivity / both if both else 0.0


def means(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the mean of each score in words."""
    names = next(iter(found.values()))
    return ", ".join(f"{name} {fmean(one[name] for one in found.values()):.4f}" for name in names)


def rows(
    found: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]], empty: Collection[str] = ()
) -> list[dict[str, str]]:
    """Return a row for each variant: means over seeds, and what they are above the yardstick.

    Args:
        found: Variant -> for each seed what ``Bench.scores`` returned.
        empty: Images without a crack, of which each decides 1 or 0, by a single pixel.
    """
    table = []
    for variant, seeds in found.items():
        row = {"variant": variant}
        for name in ("Dice", "clDice"):
            mine, other = (
                [fmean(seed[image][name] for seed in each) for image in each[0]]
                for each in (seeds, found.get(YARDSTICK, seeds))
            )
            row[name] = f"{fmean(mine):.4f}"
            if variant != YARDSTICK and YARDSTICK in found:
                gain = compare_paired(other, mine).difference
                row[f"{name} minus {YARDSTICK}"] = (
                    f"{gain.mean:+.4f} ({gain.low:+.4f} .. {gain.high:+.4f})"
                )
            if empty:
                left = [seed[image][name] for seed in seeds for image in seed.keys() - {*empty}]
                row[f"{name} of images with cracks"] = f"{fmean(left):.4f}"
        if empty:
            right = fmean(seed[image]["Dice"] for seed in seeds for image in empty)
            row[f"right of {len(empty)} without"] = f"{right:.0%}"
        table.append(row)
    return table


def draw(folder: Path, counts: Mapping[str, int], side: int) -> dict[str, DrawnSource]:
    """Draw the cracks of each part into its folder."""
    sources, first = {}, 0
    for part, count in counts.items():
        source = DrawnSource(count, size=(side, side), first=first, kind="cracks")
        write_folder(source, folder / part)
        sources[part], first = source, first + count
    return sources


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train what is not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where data and runs are kept")
    parser.add_argument("--python-of-yardstick", default=sys.executable)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--minutes", type=float, default=5, help="the limit of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", nargs=2, type=int, default=[60, 200], help="train, test")
    parser.add_argument("--side", type=int, default=256, help="of an image, in pixels")
    parser.add_argument("--name", default="cracks", help="of the files of results")
    words = parser.parse_args(arguments)
    if words.minutes <= 0 or min(words.images) < 2 or words.side < 32 or min(words.seeds) < 0:
        sys.exit("cracks: wants minutes above 0, 2 images or more, a side from 32, seeds from 0")
    work = words.work.resolve() / f"{words.images[0]}-{words.images[1]}-{words.side}"
    sources = draw(
        work / "data", dict(zip(("train", "test"), words.images, strict=True)), words.side
    )
    bench = Bench(work, words.minutes * 60, words.python_of_yardstick, list(sources["test"]))
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in words.variants}
    for seed in words.seeds:
        for variant in words.variants:
            found[variant].append(bench.scores(variant, seed))
    write_results(
        words.name,
        f"Drawn cracks: Dice and clDice after {words.minutes:g} minutes on one core",
        rows(found, [sample.name for sample in bench.test if not sample.mask.any()]),
        [
            f"{words.images[0]} training and {words.images[1]} test images of {words.side} pixels; "
            f"seeds {', '.join(map(str, words.seeds))}",
            "means over test images; 95 % bootstrap intervals over images of the paired "
            "differences, which do not hold what another training would change",
            "the yardstick's limit is of its steps, notan's of the whole command"
            + ("; the yardstick in float32, as bf16 is slow here" * (has_quick_bf16() is False)),
        ],
    )


if __name__ == "__main__":
    main()
