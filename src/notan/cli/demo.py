"""``notan demo``: the whole path on drawn images, in a minute or two, without any data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from notan.cli.flags import flag
from notan.cli.parse import parse

Kind: TypeAlias = Literal["shapes", "cracks"]


@dataclass(frozen=True)
class Show:
    """What is drawn and how it is trained on.

    Attributes:
        parts: Drawn images in each part.
        drawn_side: Of an image, in pixels.
        image_size: That is trained at; the masks come back at the drawn size all the same.
        epochs: Of the training.
        settings: What else it changes.
    """

    parts: Mapping[str, int]
    drawn_side: int
    image_size: int
    epochs: int
    settings: tuple[str, ...]


SETTINGS = (
    "model.width=16",
    "train.schedule=cosine",
    "train.ema_decay=0.98",
    "augment.scale_probability=0",
    "augment.crop_probability=0",
    "augment.grid_dropout_probability=0",
)
SHOWS: Mapping[Kind, Show] = {
    # trained small, to be quick
    "shapes": Show({"train": 500, "val": 40, "test": 60}, 160, 64, 22, SETTINGS),
    # a line of one pixel would not outlive being shrunk
    "cracks": Show(
        {"train": 150, "val": 20, "test": 40}, 128, 128, 18, (*SETTINGS, "loss.cldice=0.5")
    ),
}
SHOWN = 12


def demo(
    *,
    out: Annotated[Path | None, flag("FOLDER", "a fresh folder, runs/demo")] = None,
    kind: Kind = "shapes",
    seed: int = 0,
) -> None:
    """Show the whole path on drawn images, in minutes.

    Draws images, trains on them, evaluates, predicts, and says where to look. Every step is an
    ordinary command on ordinary files and is printed before it runs, so that you can give the same
    commands with a folder of your own.

    Args:
        out: Where everything goes.
        kind: What is drawn; cracks are 1 to 4 pixels wide and learned with clDice.
        seed: Draws other images and starts from other weights.
    """
    import notan.training  # noqa: F401 - a missing PyTorch is said before the work, not after it
    from notan.io.write import fresh_folder

    folder = out or fresh_folder(Path("runs") / "demo")
    data, run = folder / "data", folder / "run"
    model = run / "best.safetensors"
    show = SHOWS[kind]
    _draw(data, kind, seed)
    _run(
        "train",
        *("--data-path", data, "--out", run, "--image-size", show.image_size),
        *("--epochs", show.epochs, "--batch-size", 16, "--learning-rate", 0.003, "--seed", seed),
        *show.settings,
    )
    _run("inference", "--model", model, "--data-path", data, "--out", folder / "test")
    photos = data / "test" / "images"
    _run("predict", photos, "--model", model, "--out", folder / "predictions")
    _show(folder)
    print(f"\nImages to look at: {folder / 'overview.png'} and {folder / 'test' / 'overlays'}")
    print("Orange is the model's foreground, the blue line is the truth.")


def _draw(data: Path, kind: Kind, seed: int) -> None:
    from notan.data.synthetic import DrawnSource, write_folder

    first, show = 0, SHOWS[kind]
    side = (show.drawn_side, show.drawn_side)
    for part, count in show.parts.items():
        source = DrawnSource(count, size=side, seed=seed, first=first, kind=kind)
        write_folder(source, data / part)
        first += count
    print(f"Drew {first} images with exact masks: {data}")


def _run(*words: object) -> None:
    """Print a command, and do it."""
    from notan.cli.evaluate import inference
    from notan.cli.predict import predict
    from notan.cli.train import train

    given = [str(word) for word in words]
    print(f"\n$ notan {shlex.join(given)}", flush=True)
    parse(given, {"train": train, "inference": inference, "predict": predict})()


def _show(folder: Path) -> None:
    """Put the first test images with their overlays onto one sheet."""
    from notan.data.folders import image_files
    from notan.io.images import read_image
    from notan.prediction.formats import contact_sheet, write_png

    overlays = image_files(folder / "test" / "overlays")[:SHOWN]
    sheet = contact_sheet([read_image(path) for path in overlays], columns=SHOWN // 2)
    write_png(folder / "overview.png", sheet)
