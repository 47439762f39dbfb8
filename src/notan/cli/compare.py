"""``notan compare``: several models on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from notan.cli.flags import Device, Split, TrimapBorderFlag, shows

if TYPE_CHECKING:
    from notan.comparison import Comparison

JSON, PAGE = "compare.json", "compare.html"

Models = Positional[Annotated[tuple[Path, ...], arg(metavar="RUN RUN ...")]]


def compare(
    models: Models,
    *,
    data_path: Annotated[Path | None, shows("the first run's own", "FOLDER")] = None,
    split: Split = "test",
    trimap_border: TrimapBorderFlag = None,
    allow_training_images: bool = False,
    batch_size: int = 8,
    device: Device = "auto",
    out: Annotated[Path | None, shows("a fresh folder, runs/compare", "FOLDER")] = None,
) -> None:
    """Compare models on the same images, and say which differences are more than noise.

    Prints each model's mean Dice with its interval, IoU, speed and size, and for each pair the
    difference with its interval, a test on the paired images and a verdict in words. Runs that
    differ in the seed only are taken together. Writes compare.json and compare.html, a page with
    the images on which the models differ most.

    Args:
        models: Run folders or model files; two or more.
        data_path: The folder with the images and masks.
        split: Which images; all takes every image of a folder that has no parts.
        trimap_border: What the border of Oxford's trimaps counts as; needed where the models
            differ in it.
        allow_training_images: Score images that a model was trained on too, and say so.
        batch_size: Images predicted at once; changes neither score nor speed that is reported.
        device: Where to compute.
        out: Where compare.json and compare.html go.
    """
    from notan.comparison import compare as compare_models
    from notan.io.write import fresh_folder

    comparison = compare_models(
        models,
        data_path=data_path,
        split=split,
        trimap_border=trimap_border,
        device=device,
        batch_size=batch_size,
        allow_training_images=allow_training_images,
    )
    show(comparison, out or fresh_folder(Path("runs") / "compare"))


def show(comparison: Comparison, folder: Path) -> None:
    """Print a comparison, and write it as JSON and as a page.

    Raises:
        StorageError: A file could not be written.
    """
    from notan.comparison.comparison import text_of
    from notan.io.write import write_bytes
    from notan.report.compare import compare_page

    write_bytes(folder / JSON, (comparison.model_dump_json(indent=2) + "\n").encode())
    write_bytes(folder / PAGE, compare_page(comparison).encode())
    print(text_of(comparison))
    print(folder / PAGE)
