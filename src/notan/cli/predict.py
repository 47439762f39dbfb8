"""``notan predict``: masks for any pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from notan.cli.flags import Device, Inputs, ModelFile, Threshold, Tta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.errors import DataError
    from notan.types import Picture


def predict(
    inputs: Inputs,
    *,
    model: ModelFile,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("predictions"),
    threshold: Threshold = None,
    tta: Tta = None,
    batch_size: int = 1,
    device: Device = "auto",
) -> None:
    """Write the mask and the overlay of any picture, or of every picture in a folder.

    Writes masks/NAME.png (0 / 255) and overlays/NAME.png at the pictures' own size, and
    predictions.csv with the Dice that the model expects of each mask and whether a person should
    check it. A file that cannot be read does not stop the others: it is named at the end, and the
    exit code is 3.

    Args:
        inputs: Picture files, and folders of them.
        model: A best.safetensors that train wrote.
        out: Where masks and overlays go.
        threshold: Calibrated probability from which a pixel is figure; leaves out what else
            validation chose for the mask.
        tta: Ask the network several views of each picture and take the mean: mirror (left and
            right), flip (top and bottom too), turn, scale, or several: flip,turn. Slower by the
            number of views.
        batch_size: Pictures predicted at once.
        device: Where to compute.
    """
    from tqdm import tqdm

    from notan.errors import DataError
    from notan.predict.augment import parse_augment
    from notan.predict.formats import write_overlay_and_mask
    from notan.predict.inputs import find_pictures
    from notan.predict.predictor import Predictor
    from notan.predict.table import PredictionTable
    from notan.runtime import find_device

    pictures = find_pictures(inputs)
    augment = parse_augment(tta) if tta is not None else ()
    predictor = Predictor.load(
        model, device=find_device(device), threshold=threshold, augment=augment
    )
    reader, table = _Reader(pictures), PredictionTable()
    bar = tqdm(total=len(pictures), unit="picture", leave=False, disable=None)
    with bar:
        for prediction in predictor.predict_many(reader.read(), batch_size=batch_size):
            name, image = reader.waiting.pop(0)
            write_overlay_and_mask(out, name, image, prediction.mask)
            table.add(name, pictures[name], prediction)
            bar.update()
    table.write(out)
    if unsure := table.summary():
        print(unsure)
    print(f"{len(pictures) - len(reader.failed)} of {len(pictures)} pictures: {out}")
    if reader.failed:
        raise DataError(
            f"{len(reader.failed)} of {len(pictures)} pictures could not be read: "
            + "; ".join(str(error) for error in reader.failed)
        )


class _Reader:
    """Reads pictures one by one, and remembers which wait for a mask and which failed."""

    def __init__(self, pictures: dict[str, Path]) -> None:
        self.pictures = pictures
        self.waiting: list[tuple[str, Picture]] = []
        self.failed: list[DataError] = []

    def read(self) -> Iterator[Picture]:
        """Yield every picture that can be read."""
        from notan.data.formats import read_picture
        from notan.errors import DataError

        for name, path in self.pictures.items():
            try:
                image = read_picture(path)
            except DataError as error:
                self.failed.append(error)
                continue
            self.waiting.append((name, image))
            yield image
