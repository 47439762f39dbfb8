"""Measure memory (over the idle program) and time of predicting a huge image, files included.

Run by hand: python benchmarks/large_image.py
Draws an image of --side x --side pixels as a compressed tiled TIFF in a temporary folder, and
runs ``notan predict`` on it in a process of its own. Idle is that process once the model is
loaded; the peak is the system's own high-water mark of resident memory (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tifffile import TiffWriter

from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.training import train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.types import RGBImage

TILE, DRAWN = 512, 24
PREDICT = """
import sys, time
from pathlib import Path
import notan.prediction.predictor as module
from notan.cli.main import main

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

load = module.Predictor.load.__func__
def loaded(*arguments, **named):
    predictor = load(*arguments, **named)
    loaded.idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    return predictor
module.Predictor.load = classmethod(loaded)
begun = time.monotonic()
main(sys.argv[1:])
print(f"MEASURED {loaded.idle:.0f} {resident('VmHWM'):.0f} {time.monotonic() - begun:.0f}")
"""


def tiles(side: int) -> Iterator[RGBImage]:
    """Yield drawn images in a changing order, as the tiles of a large one."""
    drawn = [sample.image for sample in DrawnSource(DRAWN, size=(TILE, TILE), first=500)]
    random = np.random.default_rng(0)
    for _ in range((-(-side // TILE)) ** 2):
        yield drawn[int(random.integers(DRAWN))]


def make_model(folder: Path) -> Path:
    """Train a U-Net of width 8 for a moment."""
    run = load_run(
        flags={
            "model.width": 8,
            "preprocess.image_size": 256,
            "train.epochs": 1,
            "train.batch_size": 4,
            "train.trackers": (),
        }
    )
    training = DrawnSource(16, size=(256, 256))
    validation = DrawnSource(8, size=(256, 256), first=100)
    return train(run, out=folder / "run", training=training, validation=validation).checkpoint


def main() -> None:
    """Make the image, predict it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--format", default="mask")
    parser.add_argument("--batch-size", type=int, default=4)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = wanted.model or make_model(folder)
        image = folder / "large.tif"
        with TiffWriter(image, bigtiff=True) as file:
            file.write(
                tiles(wanted.side),
                shape=(wanted.side, wanted.side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
            )
        flags = ["--model", str(model), "--out", str(folder / "out"), "--format", wanted.format]
        flags += ["--batch-size", str(wanted.batch_size)]
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", PREDICT, "predict", str(image), *flags],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        measured = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED"))
        idle, peak, seconds = (int(word) for word in measured.split()[1:])
        written = sum(path.stat().st_size for path in (folder / "out").rglob("*.tif"))
        print(
            f"{wanted.side}x{wanted.side} pixels, {image.stat().st_size / 1e6:,.0f} MB on disk, "
            f"{wanted.format} of {written / 1e6:,.1f} MB written\n"
            f"idle {idle:,} MiB, peak {peak:,} MiB, {peak - idle:,} MiB over idle; {seconds:,} s"
        )


if __name__ == "__main__":
    main()
