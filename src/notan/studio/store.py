"""The corrections folder: masks that people made, what made them, and the strokes in progress.

``corrections.csv`` names each image with its mask, so the folder is an ordinary data folder::

    cells-corrections/
        corrections.csv      image,mask,origin,model,strokes,seconds,accepted_at,split
        masks/NAME.png
        models/001/          the run of a training on them, and so on (``notan.studio.teaching``)
        .studio/journals/    one for each image that was touched

Neither an image nor a mask of the data is ever written. What a person accepts stands in the journal
first, then the mask is written, then the table; a process that was killed in between is made up for
at the next start.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from notan.data.samples import hash_ends
from notan.errors import ConfigError, DataError
from notan.io.write import holds_something, storage_errors, write_bytes
from notan.studio.draw import EVERY, open_draw
from notan.studio.journal import CHOSEN_BY, Acceptance, Beginning, Journal
from notan.studio.raster import as_text, encode_mask, mask_of, pack_raster

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from notan.studio.draw import Draw
    from notan.studio.gallery import Gallery, ListedImage
    from notan.studio.journal import Entry, Origin
    from notan.studio.raster import MaskRaster

logger = logging.getLogger("notan")

TABLE = "corrections.csv"
MASKS = "masks"
OWN = ".studio"
JOURNALS = "journals"
DRAW = "draw.json"

OPEN_JOURNALS = 8
"""Kept in memory; others are read anew."""


@dataclass(frozen=True)
class Correction:
    """A row of the table: a mask that a person accepted.

    Attributes:
        image: The image's file, seen from the folder.
        mask: The mask's, likewise.
        origin: What it began as and whether a person changed it: ``model+hand``, ``mask``, ...
        model: SHA-256 of the model whose mask it began as; nothing where none had a part in it.
        strokes: How many changes a person made.
        seconds: How long these took.
        accepted_at: When, in UTC.
        split: ``test`` of an image that was drawn at random, which no model is trained on; ``val``
            of every fifth of the others, and ``train``.
    """

    image: str
    mask: str
    origin: str
    model: str
    strokes: str
    seconds: str
    accepted_at: str
    split: str


COLUMNS = tuple(each.name for each in fields(Correction))
PARTS = ("train", "val", "test")


def default_folder(data: Path) -> Path:
    """Return where the corrections of a data folder go unless told otherwise: beside it."""
    whole = data.resolve()
    folder = whole if whole.is_dir() else whole.parent
    return folder.with_name(f"{folder.name}-corrections")


class Corrections:
    """The corrections folder of a gallery, which one studio at a time writes into."""

    def __init__(self, folder: Path, gallery: Gallery, seen: Collection[str] = frozenset()) -> None:
        """Open a folder, or make it, and make up for what a killed process left undone.

        Args:
            folder: Which.
            gallery: The images.
            seen: Hashes of the images that the model has learned from; none of them is drawn, and
                none validates a model that goes on from it.

        Raises:
            ConfigError: It is not the studio's, or another studio works in it.
            DataError: Its table is damaged.
            StorageError: It cannot be written.
        """
        self.folder, self.gallery, self._seen = folder, gallery, seen
        _refuse_foreign(folder)
        with storage_errors(folder, chosen_by=CHOSEN_BY):
            (folder / OWN / JOURNALS).mkdir(parents=True, exist_ok=True)
            (folder / MASKS).mkdir(exist_ok=True)
            self._lock = FileLock(folder / OWN / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(
                    f"{folder}: another studio works in this folder; end it, or choose another "
                    "with --corrections"
                ) from error
        self._guard = threading.RLock()
        self._journals: OrderedDict[str, Journal] = OrderedDict()
        try:
            self._rows = self._read_table()
            self._names = {image.id: self._mask_name(image) for image in gallery.images}
            self.draw = self._open_draw()
            self._make_up()
        except BaseException:
            self._lock.release()
            raise

    def add(self, image: ListedImage) -> None:
        """Make ready for an image that came later; it may be drawn as any other."""
        with self._guard:
            self._names[image.id] = self._mask_name(image)
            self.draw = self._open_draw()

    def close(self) -> None:
        """Let another studio work in the folder."""
        self._lock.release()

    def has_journal(self, image: ListedImage) -> bool:
        """Say whether the correction of an image was begun."""
        return self._journal_path(image).is_file()

    def row(self, image: ListedImage) -> Correction | None:
        """Return what the table says of an image; None: no mask of it was accepted."""
        return self._rows.get(self._seen_from_here(image.path))

    def accepted(self) -> list[tuple[ListedImage, Correction]]:
        """Return the images whose mask was accepted, with what the table says of them."""
        found = ((image, self.row(image)) for image in self.gallery.images)
        return [(image, row) for image, row in found if row is not None]

    def counts(self) -> dict[str, int]:
        """Return how many accepted masks each part has; of images that are gone too."""
        parts = [row.split for row in self._rows.values()]
        return {part: parts.count(part) for part in PARTS}

    def lost(self) -> list[str]:
        """Return the images and masks of the table that are no longer there."""
        files = [name for row in self._rows.values() for name in (row.image, row.mask)]
        return [name for name in files if not (self.folder / name).is_file()]

    def mask_path(self, image: ListedImage) -> Path:
        """Return where the accepted mask of an image is, or would be."""
        return self.folder / MASKS / self._names[image.id]

    def open(self, image: ListedImage) -> Journal:
        """Return the journal of an image whose correction was begun.

        Raises:
            DataError: It is damaged, or of another image than the file now holds.
            StorageError: It cannot be read.
        """
        with self._guard:
            return self._open(image)

    def _open(self, image: ListedImage) -> Journal:
        journal = self._journals.pop(image.id, None)
        if journal is None:
            journal = Journal.open(self._journal_path(image)).folded()
            if journal.beginning.image != hash_ends(image.path):
                raise DataError(
                    f"{image.name}: the image's file is another one than when its correction was "
                    f"begun; take {journal.path} away to begin anew"
                )
        self._journals[image.id] = journal
        while len(self._journals) > OPEN_JOURNALS:
            self._journals.popitem(last=False)
        return journal

    def begin(
        self, image: ListedImage, raster: MaskRaster, origin: Origin, model: str = ""
    ) -> Journal:
        """Begin the correction of an image, or return what was begun.

        Args:
            image: Which.
            raster: The first mask, (height, width) of the image.
            origin: What it is.
            model: SHA-256 of the model that made it.

        Raises:
            DataError: The image cannot be read.
            StorageError: The journal could not be written.
        """
        with self._guard:
            if self.has_journal(image):
                return self._open(image)
            beginning = Beginning(
                image=hash_ends(image.path),
                height=raster.shape[0],
                width=raster.shape[1],
                origin=origin,
                model=model,
                raster=as_text(pack_raster(raster)),
            )
            journal = Journal.begin(self._journal_path(image), beginning)
            self._journals[image.id] = journal
            return journal

    def append(self, image: ListedImage, entry: Entry, *, version: int) -> Journal:
        """Write an entry into the journal of an image; one that accepts the mask is carried out.

        Raises:
            ConflictError: Another page changed it, or the page holds another mask.
            DataError: The entry does not fit the image.
            StorageError: It could not be written; send it again.
        """
        with self._guard:
            journal = self._open(image)
            if isinstance(entry, Acceptance):
                now = dt.datetime.now(dt.UTC)
                entry = entry.model_copy(update={"at": now.isoformat(timespec="milliseconds")})
            journal.append(entry, version=version)
            if isinstance(entry, Acceptance):
                self._carry_out(image, journal)
            return journal

    def begin_anew(self, image: ListedImage) -> None:
        """Set the strokes of an image aside; its accepted mask stays.

        Raises:
            StorageError: The journal could not be moved.
        """
        with self._guard:
            self._journals.pop(image.id, None)
            path = self._journal_path(image)
            with storage_errors(path, chosen_by=CHOSEN_BY):
                if path.exists():
                    path.replace(path.with_suffix(".set-aside"))

    def _carry_out(self, image: ListedImage, journal: Journal) -> None:
        """Write the mask that was accepted last, and its row."""
        acceptance = journal.acceptance
        if acceptance is None:
            return
        write_bytes(self.mask_path(image), encode_mask(mask_of(journal.accepted_raster())))
        origin = journal.beginning.origin
        row = Correction(
            image=self._seen_from_here(image.path),
            mask=f"{MASKS}/{self._names[image.id]}",
            origin=f"{origin}+hand" if journal.strokes else origin,
            model=journal.beginning.model,
            strokes=str(journal.strokes),
            seconds=f"{journal.seconds:.1f}",
            accepted_at=acceptance.at,
            split=self._part(image),
        )
        rows = {**self._rows, row.image: row}
        self._write_table(rows)
        self._rows = rows

    def _open_draw(self) -> Draw:
        images = [image.id for image in self.gallery.images]
        return open_draw(self.folder / OWN / DRAW, images, is_seen=self._is_seen)

    def _is_seen(self, image_id: str) -> bool:
        """Say whether a model was trained on an image, or may have been."""
        image = self.gallery.find(image_id)
        row = image and self.row(image)
        if image is None or (row and row.split != "test"):
            return True
        try:
            return bool(self._seen) and hash_ends(image.path) in self._seen
        except DataError:  # it scores nothing either
            return True

    def _part(self, image: ListedImage) -> str:
        """Return the part that an accepted mask belongs to; once it has one, it keeps it."""
        row = self.row(image)
        if row is not None:
            return row.split
        if image.id in self.draw.drawn:
            return "test"
        counts = self.counts()
        held_back = (counts["train"] + counts["val"] + EVERY - 2) // EVERY  # the third is the first
        is_val = counts["val"] < held_back and not self._is_seen(image.id)
        return "val" if is_val else "train"

    def _make_up(self) -> None:
        """Carry out what was accepted in a journal and did not reach the table."""
        for image in filter(self.has_journal, self.gallery.images):
            try:
                journal = Journal.open(self._journal_path(image))
                row, acceptance = self.row(image), journal.acceptance
                is_known = row is not None and acceptance and row.accepted_at >= acceptance.at
                if acceptance and not is_known and journal.beginning.image == hash_ends(image.path):
                    self._carry_out(image, journal)
            except DataError as error:  # of one image; whoever opens it is told again
                logger.warning("%s", error)

    def _journal_path(self, image: ListedImage) -> Path:
        return self.folder / OWN / JOURNALS / f"{image.id}.journal"

    def _seen_from_here(self, path: Path) -> str:
        try:
            return os.path.relpath(path.absolute(), self.folder.absolute()).replace(os.sep, "/")
        except ValueError:  # on another drive
            return str(path.absolute())

    def _mask_name(self, image: ListedImage) -> str:
        """Return the name of an image's mask: the one in the table, else one that nobody has."""
        row = self._rows.get(self._seen_from_here(image.path))
        if row is not None:
            return row.mask.removeprefix(f"{MASKS}/")
        taken = {each.mask.casefold() for each in self._rows.values()}
        name = f"{image.name}.png"
        return f"{image.name}-{image.id}.png" if f"{MASKS}/{name}".casefold() in taken else name

    def _read_table(self) -> dict[str, Correction]:
        path = self.folder / TABLE
        if not path.exists():
            return {}
        with storage_errors(path, chosen_by=CHOSEN_BY):
            content = path.read_bytes()
        try:
            reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: this table cannot be read ({error})") from error
        names = tuple(reader.fieldnames or ())
        if names == COLUMNS[:-1]:  # as it was written before there were parts
            for place, row in enumerate(rows):
                row["split"] = "val" if place % EVERY == EVERY // 2 else "train"
        elif names != COLUMNS:
            raise DataError(
                f"{path}: has the columns {', '.join(reader.fieldnames or ()) or 'none'}; wanted "
                f"{', '.join(COLUMNS)}, as the studio writes them: choose another folder with "
                "--corrections"
            )
        return {each["image"]: self._checked(each, path) for each in rows}

    def _checked(self, row: Mapping[str, str | None], path: Path) -> Correction:
        """Return a row, or refuse one that would have the studio write outside of its folder."""
        cells = {name: row.get(name) or "" for name in COLUMNS}
        folder, _, name = cells["mask"].partition("/")
        if folder != MASKS or not name.endswith(".png") or {"/", "\\", "\0"} & {*name}:
            raise DataError(
                f"{path}: names the mask {cells['mask']}; wanted {MASKS}/NAME.png, as the studio "
                "writes it"
            )
        if cells["split"] not in PARTS:
            raise DataError(
                f"{path}: '{cells['split']}' is no part of {cells['image']}; wanted train, val or "
                "test (which a drawn image is), as the studio writes it"
            )
        return Correction(**cells)

    def _write_table(self, rows: Mapping[str, Correction]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rows[image]) for image in sorted(rows))
        write_bytes(self.folder / TABLE, text.getvalue().encode())


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something else: nothing of it shall be written over."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: this is a file; --corrections wants a folder")
    if holds_something(folder) and not (folder / OWN).is_dir():
        raise ConfigError(
            f"{folder}: this folder holds something else than the studio's corrections; choose an "
            "empty or new one with --corrections"
        )
