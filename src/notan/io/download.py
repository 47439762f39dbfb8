"""Files from the network, resumed and checked, and archives that are unpacked safely.

Fetching files from the network: resumed when broken off, checked, whole or not at all.

Only the standard library talks to the network, and only when something is asked for.

Unpacking published archives: nothing but plain files, and whole or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from tqdm import tqdm

from notan.errors import ConfigError, DataError, StorageError
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import NoReturn

CACHE = "NOTAN_CACHE"
"""The environment variable that says where fetched files are kept."""

TIMEOUT_SECONDS = 30.0  # without a single byte, not for the whole transfer
RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0)
WORTHWHILE_BYTES = 2**20  # a connection that brought this much starts the count of retries anew
CHUNK_BYTES = 2**18
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenTransferError(Exception):
    """A transfer that stopped and may be tried again."""


@dataclass(frozen=True)
class Checksum:
    """What a file's publisher says its content hashes to.

    Attributes:
        algorithm: ``md5`` or ``sha256``.
        digits: The hexadecimal digits, or as many of the first ones as are published.
    """

    algorithm: Literal["md5", "sha256"]
    digits: str

    def of(self, path: Path) -> str:
        """Return as many digits of a file's own checksum.

        Raises:
            DataError: It cannot be read.
        """
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, self._begin).hexdigest()
        except OSError as error:
            raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
        return digest[: len(self.digits)]

    def _begin(self) -> hashlib._Hash:
        # MD5 guards no secret here: it is what some publishers give
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def __str__(self) -> str:
        """Name the algorithm as messages do."""
        return {"md5": "MD5", "sha256": "SHA-256"}[self.algorithm]


@dataclass(frozen=True)
class Place:
    """Where a fetched file goes.

    Attributes:
        path: The file.
        unpacked: Whether it is an archive that will be unpacked beside itself.
        chosen_by: The flag or variable that would choose another place, for messages.
    """

    path: Path
    unpacked: bool = False
    chosen_by: str = "--out"

    @property
    def part(self) -> Path:
        """The file while it is not whole."""
        return self.path.with_name(f"{self.path.name}.part")

    def storage_errors(self) -> AbstractContextManager[None]:
        """Turn the system's refusals to write into a StorageError that says what to do."""
        return storage_errors(self.part, chosen_by=self.chosen_by)


class _Span(NamedTuple):
    """What an answer brings: from which byte on, and up to how many in all, if the server says."""

    start: int
    total: int | None


def cache_folder() -> Path:
    """Return where fetched files are kept for later runs; it need not exist yet.

    ``NOTAN_CACHE`` where that is set, else ``notan`` in the user's folder for such files:
    ``XDG_CACHE_HOME``, ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``LOCALAPPDATA``.
    """
    if chosen := os.environ.get(CACHE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        usual = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    else:
        usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(usual) / "notan"


def checked_address(base_url: str) -> str:
    """Return an address that others are joined to, with a slash at its end.

    Raises:
        ConfigError: It is not an http or https one.
    """
    try:
        parts = urllib.parse.urlsplit(base_url)
    except ValueError:
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"{base_url!r} is not an address to download from; "
            "give one that begins with https:// or http://"
        )
    return base_url.rstrip("/") + "/"


def fetch(url: str, place: Place, checksum: Checksum, *, progress: bool = True) -> Path:
    """Fetch a file and check it; what a broken transfer has left is gone on with.

    Args:
        url: An http or https address.
        place: Where it goes; it takes the place of what is there.
        checksum: What it must hash to.
        progress: Show a bar on stderr.

    Returns:
        The file's path.

    Raises:
        DataError: The network fails for good, or what came is not what was published.
        StorageError: The disk is full, or the place cannot be written.
    """
    part, folder = place.part, place.path.parent
    with storage_errors(folder, chosen_by=place.chosen_by):
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(desc=place.path.name, unit="B", unit_scale=True, disable=not progress) as bar:
        _transfer_patiently(url, place, bar)
    found = checksum.of(part)
    with place.storage_errors():
        if found == checksum.digits:
            return part.replace(place.path)
        part.unlink()
    raise DataError(
        f"{url}: the {checksum} checksum of what came is {found}, wanted {checksum.digits}; it was "
        "deleted. Run the same command again, and if that does not help the file was changed at "
        "its source"
    )


def _transfer_patiently(url: str, place: Place, bar: tqdm[NoReturn]) -> None:
    """Fetch the rest of a file, trying again where the last connection broke off."""
    waits = iter(RETRY_WAITS_SECONDS)
    part = place.part
    furthest = _size(part)
    while True:
        try:
            _transfer(url, place, bar)
        except _BrokenTransferError as error:
            if _size(part) - furthest >= WORTHWHILE_BYTES:
                waits = iter(RETRY_WAITS_SECONDS)
            furthest = max(furthest, _size(part))
            wait = next(waits, None)
            if wait is None:
                raise DataError(
                    f"{url}: the download failed ({error}); "
                    "check the network and run the same command again: it resumes where it stopped"
                ) from error
            time.sleep(wait)
        else:
            return


def _transfer(url: str, place: Place, bar: tqdm[NoReturn]) -> None:
    """Fetch the rest of a file over one connection.

    A file changed on the server between two connections is not asked about (If-Range): the
    checksum of the whole notices it, and everything else too.
    """
    part = place.part
    have = _size(part)
    response = _open(url, have)
    if response is None:
        return
    with response:
        span = _span(response, have, place)
        bar.reset(span.total)
        bar.initial = bar.n = span.start
        _require_space(place, span)
        _receive(response, place, span, bar)
    if span.total is not None and _size(part) < span.total:
        raise _BrokenTransferError(
            f"the connection closed after {_size(part)} of {span.total} bytes"
        )


def _open(url: str, have: int) -> http.client.HTTPResponse | None:
    """Ask for a file from byte ``have`` on; None says that there is nothing more to come."""
    # The scheme was checked when the address came in, and the opener knows no other.
    request = urllib.request.Request(url, headers={"User-Agent": "notan"})  # noqa: S310
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = _opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return None  # the part is complete, or is not of this file: the checksum decides
        if error.code in PASSING_STATUSES:
            raise _BrokenTransferError(f"the server answered {error.code}") from error
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}; "
            "check the address, the file may have moved"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(_one_line(error)) from error
    return cast("http.client.HTTPResponse", response)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone, so that no redirect leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _span(response: http.client.HTTPResponse, have: int, place: Place) -> _Span:
    """Read from an answer's head which part of the file it brings."""
    length = response.headers.get("Content-Length", "")
    coming = int(length) if length.isdigit() else None
    start = 0
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start = have
        stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != have:
            with place.storage_errors():
                place.part.unlink(missing_ok=True)
            raise _BrokenTransferError("the server sent another part of the file than asked for")
    return _Span(start, None if coming is None else start + coming)


def _receive(
    response: http.client.HTTPResponse, place: Place, span: _Span, bar: tqdm[NoReturn]
) -> None:
    """Write an answer's body behind what is there, or over it if it brings the whole file."""
    with place.storage_errors(), place.part.open("ab" if span.start else "wb") as file:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # what has come so far, to lose nothing if it breaks
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(_one_line(error)) from error


def _require_space(place: Place, span: _Span) -> None:
    """Refuse a download that cannot fit: the rest of the file and all that will come out of it."""
    if span.total is None:
        return
    needed = span.total - span.start
    if place.unpacked:
        needed += span.total  # images are packed about as large as they are
    folder = place.path.parent
    with place.storage_errors():
        free = shutil.disk_usage(folder).free
    if free < needed:
        aim = "download and unpack" if place.unpacked else "download"
        raise StorageError(
            f"{folder}: {_amount(free)} are free and about {_amount(needed)} are needed to "
            f"{aim}; free some space or choose another place with {place.chosen_by}"
        )


def _amount(size: int) -> str:
    return tqdm.format_sizeof(size, "B")


def _one_line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__


def _size(path: Path) -> int:
    """Return a file's size in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
