"""The studio from its start to its end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from notan.errors import ConfigError
from notan.io.download import cache_folder
from notan.studio.brought import MOST_BYTES, Brought
from notan.studio.comparing import SideBySide
from notan.studio.exchange import BRING, Exchange
from notan.studio.findings import Doctor
from notan.studio.gallery import Gallery
from notan.studio.journal import MOST_ENTRY_BYTES
from notan.studio.lessons import BASE, Lessons
from notan.studio.predictions import Predictions
from notan.studio.server import Studio
from notan.studio.shelf import GivenModel, Shelf
from notan.studio.store import OWN, Corrections, default_folder
from notan.studio.teaching import Teaching
from notan.web.addresses import LOOPBACK, listen
from notan.web.guard import BodyLimits, Guard
from notan.web.keys import Keys
from notan.web.running import WebServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from notan.config import Data
    from notan.prediction.predictor import Predictor
    from notan.web.addresses import Address


def serve_studio(
    predictor: Predictor,
    data: Data,
    corrections: Path | None,
    *,
    given: GivenModel | None = None,
    ports: Iterable[int],
    compare: Predictor | None = None,
    report: Path | None = None,
    on_ready: Callable[[str], object] | None = None,
    say: Callable[[str], object],
) -> None:
    """Serve the studio on this machine until it is told to stop.

    Args:
        predictor: The model.
        data: The images, and how masks are read.
        corrections: Where corrections go; None: beside the data.
        given: Where the model came from; None: it is the default model.
        ports: Of these the first that is free.
        compare: Another model, to be seen beside it.
        report: A check.json of these data; None: the data doctor looks at them meanwhile.
        on_ready: Called with the address once it answers.
        say: Called with lines for a person.

    Raises:
        ConfigError: No port is free, or the corrections folder is somebody else's.
        DataError: There are no images, or the masks or the table of corrections are faulty.
        StorageError: The corrections folder cannot be written.
    """
    listener, address = _listen(ports)
    with (
        listener,
        opened(predictor, data, corrections, given, compare=compare, report=report) as studio,
    ):
        keys = Keys()
        server = WebServer(guarded(studio, address, keys))
        link = f"{address.url}/?t={keys.one_time()}"
        count = len(studio.gallery)
        say(f"{count} image{'s' * (count != 1)}; corrections: {studio.corrections.folder}")
        if studio.gallery.passed_over:
            say(f"passed over: {studio.gallery.passed_over}")
        if (number := studio.teaching.shelf.using.number) != BASE:
            place = studio.teaching.lessons.run(number)
            say(f"in use: the model that was taught last time, {place} (Teach in the page: back)")
        say(f"open {link}\n(the address is good for one opening; Ctrl-C ends the studio)")
        if on_ready is not None:
            on_ready(link)
        server.run_on(listener)


@contextlib.contextmanager
def opened(
    predictor: Predictor,
    data: Data,
    corrections: Path | None,
    given: GivenModel | None = None,
    *,
    compare: Predictor | None = None,
    report: Path | None = None,
) -> Iterator[Studio]:
    """Open gallery, corrections, models and predictions, and close them whatever happens.

    Args:
        predictor: The model.
        data: The images, and how masks are read.
        corrections: Where corrections go; None: beside the data.
        given: Where the model came from; None: it is the default model.
        compare: Another model, to be seen beside it.
        report: A check.json of these data; None: the data doctor looks at them meanwhile.

    Yields:
        What answers the page.
    """
    gallery = Gallery.open(data)
    if data.path is None:
        raise ConfigError("no data folder was given")
    folder = corrections or default_folder(data.path)
    _refuse_inside(folder, data.path)
    brought = Brought(folder, gallery)
    known = predictor.card.data if predictor.card else None
    seen = {*known.training_hashes, *known.validation_hashes} if known else frozenset[str]()
    store = Corrections(folder, gallery, seen)
    upright, cache = data.exif_orientation == "apply", cache_folder() / "studio"

    def predict(model: Predictor, revision: int) -> Predictions:
        return Predictions(model, gallery, cache, upright=upright, revision=revision)

    try:
        brought.tidy()
        lessons = Lessons(folder, folder / OWN)
        shelf = Shelf(predictor, given or GivenModel(), lessons, predict)
        reading = ("--exif-orientation", data.exif_orientation)
        teaching = Teaching(store, lessons, shelf, reading)
        studio = Studio(gallery, teaching, store, title=data.path.resolve().name)
        comparison = SideBySide(studio, predict(compare, 0) if compare else None)
        findings = Doctor(gallery, data, cache / "findings", report)
        studio.parts += [Exchange(studio, brought), comparison, findings]
        shelf.predictions.start()
        comparison.start()
        findings.start()
        try:
            yield studio
        finally:
            findings.stop()
            comparison.stop()
            teaching.close()
            shelf.predictions.stop()
    finally:
        store.close()


def guarded(studio: Studio, address: Address, keys: Keys) -> Guard:
    """Return the studio's application with everything before it that keeps strangers out."""
    limits = BodyLimits(most_bytes=MOST_ENTRY_BYTES)
    larger = {BRING: MOST_BYTES}
    return Guard(studio.app(), address, keys=keys, limits=limits, larger_bodies=larger)


def _listen(ports: Iterable[int]) -> tuple[socket.socket, Address]:
    error: ConfigError | None = None
    for port in ports:
        try:
            return listen(LOOPBACK, port)
        except ConfigError as found:
            error = found
    raise error or ConfigError("no port was given")


def _refuse_inside(folder: Path, data: Path) -> None:
    """Refuse to write among the images and masks of the data."""
    whole, root = folder.resolve(), data.resolve()
    root = root if root.is_dir() else root.parent
    if whole == root or (whole.is_relative_to(root) and data.is_dir()):
        raise ConfigError(
            f"{folder}: lies in the data folder, where nothing is written; choose a place beside "
            f"it with --corrections, such as {default_folder(data)}"
        )
