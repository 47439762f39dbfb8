"""A studio for the tests: drawn images, a network that finds red, strokes, and a server.

Run as a script it forks a painter for each line it reads, which paints until somebody kills it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from notan.config import Data
from notan.io.headers import read_size
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor
from notan.studio.gallery import Gallery
from notan.studio.journal import Acceptance, Stroke
from notan.studio.raster import as_text, checksum, difference, raster_of
from notan.studio.running import guarded, opened
from notan.studio.store import Corrections
from notan.web.keys import Keys
from web_server import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import httpx

    from notan.modelfile.card import Card
    from notan.prediction.backends import Array
    from notan.studio.gallery import ListedImage
    from notan.studio.journal import Journal, Tool
    from notan.studio.raster import MaskRaster
    from notan.studio.shelf import GivenModel
    from notan.studio.teaching import Teaching
    from notan.types import Size

SIZE = (300, 340)
"""Of the drawn images: two tiles each way, the second of them cut off."""


def disc(
    size: Size, y: float, x: float, radius: float
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    rows, columns = np.mgrid[: size[0], : size[1]]
    found: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
    found = (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2
    return found


def write_images(folder: Path, count: int, size: Size = SIZE, *, masks: int = 0) -> Path:
    """Write images of a red spot that fades out, and the masks of the first of them."""
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        y, x = size[0] * 0.45 + 3 * number, size[1] * 0.55
        rows, columns = np.mgrid[: size[0], : size[1]]
        distance = np.hypot(rows - y, columns - x) / (0.3 * min(size))
        red = np.clip(255 * (1.3 - 0.8 * distance), 0, 255)
        pixels = np.stack([red, np.full(size, 90), 40 + columns % 120], axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"spot-{number:04d}.png")
        if number < masks:
            (folder / "masks").mkdir(exist_ok=True)
            mask = disc(size, y, x, 0.3 * min(size))
            Image.fromarray(mask).save(folder / "masks" / f"spot-{number:04d}.png")
    return folder


def red_is_foreground(inputs: Array) -> Array:
    return inputs[:, :1] * 6 - 3


def red_finder(card: Card | None = None, *, threshold: float = 0.5) -> Predictor:
    own_size = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rule = Postprocessing(threshold=threshold)
    return Predictor(red_is_foreground, own_size, postprocessing=rule, card=card)


def stroke_between(
    before: MaskRaster, after: MaskRaster, number: int, tool: Tool = "brush"
) -> Stroke:
    tiles, bits = difference(before, after)
    return Stroke(id=f"stroke{number:06d}", tool=tool, tiles=tuple(tiles), bits=as_text(bits))


def painted(raster: MaskRaster, number: int) -> MaskRaster:
    """Return a raster with one more disc, of foreground or of background, as a hand paints it."""
    random = np.random.default_rng(number)
    height, width = raster.shape
    spot = disc((height, width), random.uniform(0, height), random.uniform(0, width), 25)
    after = raster.copy()
    after[spot] = 3 if number % 3 else 2
    if (after == raster).all():
        after[0, number % width] ^= 1
    return after


def open_store(data: Path, folder: Path) -> tuple[Corrections, ListedImage]:
    gallery = Gallery.open(Data(path=data))
    return Corrections(folder, gallery), gallery.images[0]


def begin_empty(store: Corrections, image: ListedImage) -> Journal:
    return store.begin(image, raster_of(np.zeros(SIZE, np.bool_)), "empty")


def little_model(folder: Path) -> Path:
    """Train a model for a moment, for a studio to begin with; it knows red spots by half."""
    import notan

    data = write_images(folder / "seen", 4, (48, 64), masks=4)
    result = notan.train(
        data,
        epochs=20,
        image_size=32,
        batch_size=2,
        learning_rate=3e-3,
        device="cpu",
        overrides=["model.width=2", "train.trackers=[]"],
        out=folder / "base",
    )
    return result.checkpoint


def accept_masks(store: Corrections, places: Iterable[int]) -> None:
    """Accept the masks that images are drawn with, as they are."""
    for place in places:
        image = store.gallery.images[place]
        size = read_size(image.path)
        mask = disc(size, size[0] * 0.45 + 3 * place, size[1] * 0.55, 0.3 * min(size))
        journal = store.begin(image, raster_of(mask), "mask")
        entry = Acceptance(id=f"accept{place:06d}", checksum=checksum(journal.raster()))
        store.append(image, entry, version=journal.version)


class Served(NamedTuple):
    """A studio that answers, and how to be let in."""

    url: str
    token: str
    one_time: str
    store: Corrections
    gallery: Gallery
    port: int
    teaching: Teaching

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def path(self, place: int, rest: str = "") -> str:
        return f"{self.url}/api/images/{self.gallery.images[place].id}{rest}"


@contextlib.contextmanager
def serving(
    folder: Path,
    corrections: Path,
    predictor: Predictor | None = None,
    *,
    data: Data | None = None,
    given: GivenModel | None = None,
    **more: Any,
) -> Iterator[Served]:
    keys = Keys()
    data, predictor = data or Data(path=folder), predictor or red_finder()
    with (
        opened(predictor, data, corrections, given, **more) as studio,
        running(lambda address: guarded(studio, address, keys)) as server,
    ):
        once = f"{server.url}/?t={keys.one_time()}"
        store, gallery, port = studio.corrections, studio.gallery, server.address.port
        yield Served(server.url, keys.token, once, store, gallery, port, studio.teaching)


def wait_until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that a thread or a process of the studio's does."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def error_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"])


def paint_until_killed(data: Path, folder: Path) -> None:
    """Paint, accept now and then, and say each stroke that is safe."""
    store, image = open_store(data, folder)
    journal = store.open(image) if store.has_journal(image) else begin_empty(store, image)
    raster = journal.raster()
    sys.stdout.write(f"begun {os.getpid()} {journal.version}\n")
    sys.stdout.flush()
    for number in itertools.count(journal.version):
        if number % 4 == 3:
            entry: Stroke | Acceptance = Acceptance(
                id=f"accept{number:06d}", checksum=checksum(raster)
            )
        else:
            after = painted(raster, number)
            entry, raster = stroke_between(raster, after, number), after
        store.append(image, entry, version=journal.version)
        sys.stdout.write(f"{journal.version} {checksum(raster)}\n")
        sys.stdout.flush()


def fork_painters(data: Path, folder: Path) -> None:
    """For each line of the input paint in a fork, and say when somebody has killed it."""
    for _ in sys.stdin:
        painter = os.fork()
        if not painter:
            paint_until_killed(data, folder)
        os.waitpid(painter, 0)
        sys.stdout.write("\nkilled\n")
        sys.stdout.flush()


if __name__ == "__main__":
    fork_painters(Path(sys.argv[1]), Path(sys.argv[2]))
