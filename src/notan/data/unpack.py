"""Unpacking published archives: nothing but plain files, and whole or not at all."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from notan.errors import DataError
from notan.files import storage_errors, write_bytes

MARKER = ".unpacked.json"


@dataclass(frozen=True)
class Archive:
    """One published archive.

    Attributes:
        name: Its file name, such as ``images.tar.gz``.
        md5: The checksum its publisher gives, 32 hexadecimal digits.
    """

    name: str
    md5: str

    @property
    def stem(self) -> str:
        """The name without its endings: the folder that such an archive usually holds."""
        return self.name.split(".")[0]


def is_unpacked(archive: Archive, folder: Path) -> bool:
    """Say whether this very archive was unpacked into the folder and is still there."""
    record = _read_marker(folder).get(archive.name)
    return (
        record is not None
        and record["md5"] == archive.md5
        and all((folder / entry).exists() for entry in record["entries"])
    )


def refuse_foreign(archive: Archive, folder: Path, entries: list[str] | None = None) -> None:
    """Refuse to write over what this program did not put there.

    Args:
        archive: The archive about to be unpacked.
        folder: Where to.
        entries: The names it will put into the folder; by default the one its own name suggests,
            which is enough to notice the clash before a long download.

    Raises:
        DataError: An entry is there already and is not from an earlier unpacking.
    """
    record = _read_marker(folder).get(archive.name)
    own = record["entries"] if record else []
    for entry in entries or [archive.stem]:
        if entry not in own and (folder / entry).exists():
            raise DataError(
                f"{folder / entry} is already there and was not completed by this command, so it "
                f"is left alone; use it as it is, or move it away to fetch {archive.name} afresh"
            )


def unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Unpack a verified archive into a folder and remove it.

    Everything is unpacked beside its place first and moved there at the end, so that a half
    unpacked folder never looks complete. Files whose names begin with ``._`` are macOS's notes
    about other files, not data, and are left out.

    Args:
        archive: What it is.
        path: Where it lies.
        folder: Where its contents go.

    Raises:
        DataError: The archive is damaged or empty, holds a link, a device or a path that leads
            out of the folder, or would replace something of the user's. Nothing is unpacked then.
        StorageError: The disk is full, or the place cannot be written.
    """
    waiting = folder / f".unpacking-{archive.name}"
    shutil.rmtree(waiting, ignore_errors=True)
    try:
        with storage_errors(folder):
            waiting.mkdir(parents=True)
            _extract(path, waiting)
            _move_in(archive, waiting, folder)
            path.unlink()
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def _extract(path: Path, waiting: Path) -> None:
    try:
        with tarfile.open(path, "r:*") as tar:
            # A second guard beside our own; Python before 3.11.4 does not have it.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                _refuse_unsafe(member, path)
                if not Path(member.name).name.startswith("._"):
                    # Owners, modes and times of the publisher's machine mean nothing here.
                    tar.extract(member, waiting, set_attrs=False)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path}: the archive is damaged ({error}) although its checksum is right; "
            "delete it and report this to its publisher"
        ) from error


def _refuse_unsafe(member: tarfile.TarInfo, path: Path) -> None:
    """Refuse a member that is not a plain file or folder inside the archive's own tree."""
    place = PureWindowsPath(member.name)  # knows both slashes and drive letters
    if place.anchor or ".." in place.parts:
        found = "leads out of the folder"
    elif not (member.isfile() or member.isdir()):
        found = "is a link or a device"
    else:
        return
    raise DataError(
        f"{path}: its member {member.name!r} {found}; only plain files and folders are "
        "unpacked, so nothing was; do not use this archive"
    )


def _move_in(archive: Archive, waiting: Path, folder: Path) -> None:
    """Move the finished entries into place.

    The record is written first: it claims nothing while an entry is missing, and after a crash
    it lets the next attempt replace what this one had already moved.
    """
    entries = sorted(entry.name for entry in waiting.iterdir())
    if not entries:
        raise DataError(f"{waiting.parent / archive.name}: the archive is empty; delete it")
    refuse_foreign(archive, folder, entries)
    for entry in entries:
        _remove(folder / entry)
    records = _read_marker(folder)
    records[archive.name] = {"md5": archive.md5, "entries": entries}
    write_bytes(folder / MARKER, json.dumps(records, indent=2).encode())
    for entry in entries:
        (waiting / entry).replace(folder / entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_marker(folder: Path) -> dict[str, Any]:
    """Read which archives were unpacked; an absent or damaged record says: none."""
    try:
        records = json.loads((folder / MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(records, dict):
        return {}
    return {
        name: record
        for name, record in records.items()
        if isinstance(record, dict) and {"md5", "entries"} <= record.keys()
    }
