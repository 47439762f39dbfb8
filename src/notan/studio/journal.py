"""The journal of one image's mask: where the correction began, and every stroke since.

One file, a line for each entry with its CRC-32 in front. An entry is on the disk before it counts:
a process that is killed leaves at most a torn last line, which the next reader takes away. Undo and
redo are entries too, so both survive whatever happens to page and server.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from notan.config.sections import Section
from notan.errors import DataError
from notan.io.write import storage_errors, write_bytes
from notan.studio.raster import (
    apply,
    as_text,
    checksum,
    count_tiles,
    from_text,
    pack_raster,
    replay,
    unpack_raster,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.studio.raster import MaskRaster
    from notan.types import Size

KEPT_STROKES = 200
"""So many can be undone after the image is opened anew; older ones become part of the beginning."""

MOST_BYTES = 2**28
"""Of one journal; a stroke over all of 4096 x 4096 pixels has some 50 KB."""

MOST_ENTRY_BYTES = 2**25

CHOSEN_BY = "--corrections"

EntryId: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-z]{8,32}$")]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
Tool: TypeAlias = Literal[
    "brush",
    "eraser",
    "polygon",
    "snap",
    "wand",
    "cut",
    "threshold",
    "fill-holes",
    "keep-largest",
]
Origin: TypeAlias = Literal["model", "mask", "empty"]


class ConflictError(DataError):
    """What the page knows and what the disk holds are not the same."""


class Beginning(Section):
    """What the correction of an image began with.

    Attributes:
        op: Tells it from the other entries.
        image: A digest of the image's file: another image has no use for these strokes.
        height: Of the image, in pixels.
        width: Likewise.
        origin: What the first mask was: the model's, the one in the data, or nothing.
        model: SHA-256 of the model's weights; nothing where no model had a part in it.
        version: Entries that were folded into the raster.
        strokes: Strokes that were folded into it.
        seconds: Time that they took.
        raster: The first mask and what of it is by hand, compressed, as base64.
    """

    op: Literal["begin"] = "begin"
    image: Digest
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    origin: Origin
    model: Digest
    version: Annotated[int, Field(ge=0)] = 0
    strokes: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    raster: str

    @property
    def size(self) -> Size:
        """(height, width) of the image in pixels."""
        return self.height, self.width


class Stroke(Section):
    """One change of the mask.

    Attributes:
        op: Tells it from the other entries.
        id: The page's own, for the same entry sent twice counts once.
        tool: What made it.
        tiles: Which tiles it changes, ascending.
        bits: What it changes in them, compressed, as base64.
        seconds: From the first touch to the last.
        goes_on: Whether it is a further part of the stroke before it: a long one reaches the disk
            in parts, and is taken back as one.
    """

    op: Literal["stroke"] = "stroke"
    id: EntryId
    tool: Tool
    tiles: tuple[int, ...]
    bits: str
    seconds: Annotated[float, Field(ge=0, le=86400)] = 0.0
    goes_on: bool = False

    def change(self, raster: MaskRaster) -> None:
        """Change a raster by it; once more changes it back."""
        apply(raster, self.tiles, from_text(self.bits))


class Step(Section):
    """A step back or forth among the strokes."""

    op: Literal["undo", "redo"]
    id: EntryId


class Acceptance(Section):
    """A person said that the mask is right as it stands.

    Attributes:
        op: Tells it from the other entries.
        id: As of a stroke.
        checksum: Of the mask as the page holds it; the disk's must be the same.
        at: When, as the server's clock says, in UTC.
    """

    op: Literal["accept"] = "accept"
    id: EntryId
    checksum: int
    at: str = ""


Entry: TypeAlias = Annotated[Stroke | Step | Acceptance, Field(discriminator="op")]
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def read_entry(content: bytes) -> Entry:
    """Read an entry as the page sends it.

    Raises:
        DataError: It is none.
    """
    try:
        return ENTRY.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"this is no entry of a journal ({where}: {first['msg']})") from error


class Journal:
    """The beginning and the entries of one image, in memory and on the disk alike."""

    def __init__(self, path: Path, beginning: Beginning, entries: Sequence[Entry] = ()) -> None:
        self.path = path
        self.beginning = beginning
        self.entries = list(entries)
        self.applied: list[Stroke] = []
        self.undone: list[Stroke] = []
        for entry in self.entries:
            self._follow(entry)

    @classmethod
    def begin(cls, path: Path, beginning: Beginning) -> Journal:
        """Write a new journal, whole.

        Raises:
            StorageError: It could not be written.
        """
        write_bytes(path, _line(beginning))
        return cls(path, beginning)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Read a journal, and take away what a killed process left of its last line.

        Raises:
            DataError: It is damaged before its last line.
            StorageError: It cannot be read, or the torn line cannot be taken away.
        """
        with storage_errors(path, chosen_by=CHOSEN_BY):
            content = path.read_bytes()
        lines = content.split(b"\n")
        whole, torn = lines[:-1], lines[-1]
        texts = [_checked(line) for line in whole]
        if texts and texts[-1] is None:  # written in part, and the next line began in it
            texts.pop()
            torn = whole[-1]
        if not texts or None in texts:
            raise DataError(
                f"{path}: this journal is damaged; take it away to correct the image from the start"
            )
        try:
            beginning = Beginning.model_validate_json(texts[0] or b"")
            entries = [read_entry(text or b"") for text in texts[1:]]
            journal = cls(path, beginning, entries)
        except (ValidationError, ConflictError) as error:
            raise DataError(f"{path}: this is no journal of the studio ({error})") from error
        if torn:
            kept = sum(len(line) + 1 for line in whole[: len(texts)])
            with storage_errors(path, chosen_by=CHOSEN_BY):
                os.truncate(path, kept)
        return journal

    @property
    def version(self) -> int:
        """How many entries there have been."""
        return self.beginning.version + len(self.entries)

    @property
    def is_changed(self) -> bool:
        """Whether the mask is another than when it was accepted, or than at the beginning."""
        accepted = next(
            (place for place, each in enumerate(reversed(self.entries)) if each.op == "accept"),
            len(self.entries),
        )
        return any(each.op != "accept" for each in self.entries[len(self.entries) - accepted :])

    @property
    def acceptance(self) -> Acceptance | None:
        """The last time that the mask was accepted."""
        found = (each for each in reversed(self.entries) if isinstance(each, Acceptance))
        return next(found, None)

    @property
    def strokes(self) -> int:
        """How many strokes made the mask."""
        return self.beginning.strokes + _count(self.applied)

    @property
    def seconds(self) -> float:
        """How long these took."""
        return self.beginning.seconds + sum(each.seconds for each in self.applied)

    def base(self) -> MaskRaster:
        """Return the raster that it begins with."""
        return unpack_raster(from_text(self.beginning.raster), self.beginning.size)

    def raster(self) -> MaskRaster:
        """Return the raster as it stands."""
        return replay(self.base(), ((each.tiles, from_text(each.bits)) for each in self.applied))

    def accepted_raster(self) -> MaskRaster:
        """Return the raster as it stood when it was last accepted.

        Raises:
            ConflictError: It never was.
        """
        places = [place for place, each in enumerate(self.entries) if each.op == "accept"]
        if not places:
            raise ConflictError("the mask was not accepted yet")
        return Journal(self.path, self.beginning, self.entries[: places[-1]]).raster()

    def append(self, entry: Entry, *, version: int) -> int:
        """Write an entry to the disk, and count it then.

        Args:
            entry: What happened.
            version: How many entries the page knows of.

        Returns:
            How many there are now.

        Raises:
            ConflictError: Another page wrote an entry, or there is nothing to undo or redo.
            DataError: The entry does not fit the image.
            StorageError: It could not be written; it does not count.
        """
        if version == self.version - 1 and self.entries and self.entries[-1].id == entry.id:
            return self.version  # its answer was lost
        if version != self.version:
            raise ConflictError(
                f"the page knows {version} entries of this image's journal and the disk holds "
                f"{self.version}: another tab changed it; reload the page"
            )
        self._require_fits(entry)
        line = _line(entry)
        with storage_errors(self.path, chosen_by=CHOSEN_BY):
            _append(self.path, line)
        self.entries.append(entry)
        self._follow(entry)
        return self.version

    def folded(self, keep: int = KEPT_STROKES) -> Journal:
        """Return the same with its oldest strokes in the beginning; itself where there are few.

        Where it was accepted, that has been carried out, and only what can be undone is kept.

        Raises:
            StorageError: It could not be written; the old one is whole.
        """
        if len(self.entries) - sum(map(_goes_on, self.entries)) <= 2 * keep:
            return self
        # a stroke begins with the part that goes on with none, and lies upside down where undone
        begins = [0, *(place for place, each in enumerate(self.applied) if not each.goes_on)]
        ends = [0, *(place + 1 for place, each in enumerate(self.undone) if not each.goes_on)]
        first, last = begins[-keep:][0], ends[-keep - 1 :][0]
        old, kept = self.applied[:first], self.applied[first:]
        raster = replay(self.base(), ((each.tiles, from_text(each.bits)) for each in old))
        undone = list(reversed(self.undone[last:]))
        steps = [Step(op="undo", id=each.id) for each in undone if not each.goes_on]
        accepted = self.acceptance if not self.is_changed else None
        entries: list[Entry] = [*kept, *undone, *steps, *([accepted] if accepted else [])]
        beginning = self.beginning.model_copy(
            update={
                "version": self.version - len(entries),
                "raster": as_text(pack_raster(raster)),
                "strokes": self.beginning.strokes + _count(old),
                "seconds": self.beginning.seconds + sum(each.seconds for each in old),
            }
        )
        write_bytes(self.path, b"".join(map(_line, [beginning, *entries])))
        return Journal(self.path, beginning, entries)

    def _require_fits(self, entry: Entry) -> None:
        if isinstance(entry, Stroke):
            if not entry.tiles or len(entry.tiles) > count_tiles(self.beginning.size):
                raise DataError("a stroke changes at least one tile, and none twice")
            entry.change(np.zeros(self.beginning.size, np.uint8))
        elif isinstance(entry, Step) and not (self.applied if entry.op == "undo" else self.undone):
            raise ConflictError(f"there is nothing to {entry.op}")
        elif isinstance(entry, Acceptance) and entry.checksum != checksum(self.raster()):
            raise ConflictError(
                "the mask in the page is not the one that its strokes make: nothing was accepted; "
                "reload the page, and look at the mask again"
            )
        if self.path.stat().st_size > MOST_BYTES:
            raise DataError(
                f"the journal of this image has reached {MOST_BYTES >> 20} MB; accept the mask and "
                "open the image anew"
            )

    def _follow(self, entry: Entry) -> None:
        if isinstance(entry, Stroke):
            self.applied.append(entry)
            self.undone.clear()
        elif isinstance(entry, Step):
            source, target = self.applied, self.undone
            if entry.op == "redo":
                source, target = target, source
            if not source:
                raise ConflictError(f"there is nothing to {entry.op}")
            target.append(source.pop())
            # the later parts of a stroke lie on the first one here, and under it there
            while source and (target if entry.op == "undo" else source)[-1].goes_on:
                target.append(source.pop())


def _goes_on(entry: Entry) -> bool:
    return isinstance(entry, Stroke) and entry.goes_on


def _count(parts: Sequence[Stroke]) -> int:
    """Return how many strokes these parts are."""
    return sum(not each.goes_on for each in parts)


def _append(path: Path, line: bytes) -> None:
    """Write a line behind a file and flush it, or leave the file as long as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        length = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def _line(entry: Beginning | Entry) -> bytes:
    text = entry.model_dump_json().encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> bytes | None:
    """Return a line without its checksum; None where that is another one."""
    mark, _, text = line.partition(b" ")
    return text if mark == b"%08x" % zlib.crc32(text) else None
