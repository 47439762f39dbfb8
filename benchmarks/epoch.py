"""Measure epochs end to end: the whole command, its first epoch, and each one after it.

Run by hand: python benchmarks/epoch.py oxford-iiit-pet
Runs ``notan train`` in a process of its own, as many epochs as --epochs says, and reads what each
took, with its validation, from the run's history; nothing is extrapolated. Caches of the system are
as they happen to be; notan's own cache folder is a fresh one, and so cold, unless --warm.

--images N repeats the data set's images under other names until there are N to train and validate
on: the time is then that of so many images, and the score is not the data set's. Two hundred epochs
of the Oxford-IIIT Pets' 3,312 + 368 images: --images 3680 --epochs 200 --recipe
recipes/oxford-unet.toml.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import best_device, spread, write_results

NETWORKS = {
    "U-Net, width 8": ("model.width=8",),
    "U-Net on EfficientNet-Lite0": ("model.encoder=efficientnet_lite0", "model.width=8"),
}


def repeated(data: Path, images: int, folder: Path) -> Path:
    """Make links to the images to train on, again and again under other names.

    Args:
        data: In the layout of the Oxford-IIIT Pets.
        images: How many.
        folder: Where to.
    """
    lines = (data / "annotations/trainval.txt").read_text().splitlines()
    names = [line.split()[0] for line in lines if line and not line.startswith("#")]
    for part in ("images", "annotations/trimaps"):
        (folder / part).mkdir(parents=True)
    listed = []
    for number, name in itertools.islice(enumerate(itertools.cycle(names)), images):
        new = f"{name}_{number // len(names) + 1}00{number}"
        image, trimap = f"images/{name}.jpg", f"annotations/trimaps/{name}.png"
        (folder / f"images/{new}.jpg").symlink_to((data / image).resolve())
        (folder / f"annotations/trimaps/{new}.png").symlink_to((data / trimap).resolve())
        listed.append(f"{new} 1 1 1\n")
    (folder / "annotations/trainval.txt").write_text("".join(listed))
    (folder / "annotations/test.txt").write_text("")
    return folder


def row_of(
    name: str, words: tuple[str, ...], asked: argparse.Namespace, data: Path
) -> dict[str, Any]:
    """Train once, and return the row of it."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        command = [sys.executable, "-m", "notan", "train", "--data-path", str(data)]
        command += ["--out", str(out), "--epochs", str(asked.epochs)]
        command += ["--recipe", str(asked.recipe)] if asked.recipe else []
        sizes = (("--image-size", asked.size), ("--batch-size", asked.batch))
        command += [word for flag, size in sizes if size for word in (flag, str(size))]
        cold = {} if asked.warm else {"NOTAN_CACHE": f"{place}/cache"}
        begun = time.perf_counter()
        subprocess.run(  # noqa: S603 - our own words
            [*command, "train.trackers=[]", *words], check=True, env={**os.environ, **cold}
        )
        whole = time.perf_counter() - begun
        lines = (out / "history.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in lines]
        trained = int((out / "report.json").exists())
    return {
        "network": name,
        "epochs": len(seconds),
        "whole command, s": whole,
        "first epoch, s": seconds[0],
        "later epochs, s": spread(seconds[1:]) if seconds[1:] else "",
        "outside the epochs, s": whole - sum(seconds),
        "report": "with it" if trained else "without",
    }


def main() -> None:
    """Train each network once; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder in the layout of the Oxford-IIIT Pets")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, help="to train and validate on; None: the folder's")
    parser.add_argument("--size", type=int, help="None: 64, or the recipe's")
    parser.add_argument("--batch", type=int, help="None: 8, or the recipe's")
    parser.add_argument("--recipe", type=Path, help="its network alone is measured")
    parser.add_argument("--warm", action="store_true", help="use notan's cache folder as it is")
    asked = parser.parse_args()
    networks = NETWORKS
    if asked.recipe:
        networks = {asked.recipe.stem: ()}
    else:
        asked.size, asked.batch = asked.size or 64, asked.batch or 8
    with tempfile.TemporaryDirectory() as place:
        data = repeated(asked.data, asked.images, Path(place)) if asked.images else asked.data
        rows = [row_of(name, words, asked, data) for name, words in networks.items()]
    images = f"{asked.images} images, repeated from" if asked.images else "The images of"
    name = f"-{asked.recipe.stem}" if asked.recipe else ""
    write_results(
        f"epoch{name}-{best_device().type}",
        "Epochs end to end: steps, validation, and what is around them",
        rows,
        [
            f"{images} {asked.data.name}, a tenth of them for validation"
            + (f", at {asked.size}x{asked.size}, batch {asked.batch}." if asked.size else "."),
            "The report is written after the training; the command includes it.",
            "notan's cache folder was " + ("as it was." if asked.warm else "empty before."),
        ],
    )


if __name__ == "__main__":
    main()
