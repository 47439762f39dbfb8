"""Fetching data sets from their publishers: resumed when broken off, checked, unpacked safely.

Only the standard library talks to the network, and only when a download is asked for.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, NamedTuple, cast

from tqdm import tqdm

from notan.data.unpack import Archive, is_unpacked, refuse_foreign, unpack
from notan.errors import ConfigError, DataError, StorageError
from notan.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import NoReturn

__all__ = ["OXFORD_URL", "PETS", "Archive", "download_archives", "download_pets"]

OXFORD_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

PETS: tuple[Archive, ...] = (
    Archive("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Archive("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
)

TIMEOUT_SECONDS = 30.0  # without a single byte, not for the whole transfer
RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0)
WORTHWHILE_BYTES = 2**20  # a connection that brought this much starts the count of retries anew
CHUNK_BYTES = 2**18
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenTransferError(Exception):
    """A transfer that stopped and may be tried again."""


class _Span(NamedTuple):
    """What an answer brings: from which byte on, and up to how many in all, if the server says."""

    start: int
    total: int | None


def download_pets(out: Path, *, base_url: str = OXFORD_URL, progress: bool = True) -> Path:
    """Fetch the Oxford-IIIT Pet pictures and masks (about 0.8 GB) from their own site.

    Calling it again continues a broken download, and does nothing after a complete one.

    Args:
        out: The folder to put ``oxford-iiit-pet/`` into.
        base_url: Where the two archives lie, such as a mirror in one's own network.
        progress: Show a bar on stderr.

    Returns:
        The folder that holds ``images/`` and ``annotations/``.

    Raises:
        ConfigError: The address is not an http or https one.
        DataError: The network fails for good, or what came is not what was published.
        StorageError: The disk is full, or the place cannot be written.

    Source:
        Parkhi, Vedaldi, Zisserman, Jawahar: "Cats and Dogs", CVPR 2012,
        doi:10.1109/CVPR.2012.6248092. Pictures under CC BY-SA 4.0.
    """
    return download_archives(PETS, out / "oxford-iiit-pet", base_url=base_url, progress=progress)


def download_archives(
    archives: Sequence[Archive], folder: Path, *, base_url: str, progress: bool = True
) -> Path:
    """Fetch archives, check them against their checksums and unpack them into one folder.

    An archive that is on the disk already is checked and not fetched; one that was unpacked
    already is not even that. An archive is removed after unpacking.

    Args:
        archives: What to fetch, in this order.
        folder: Where their contents go; made if missing.
        base_url: The http or https address that all of them lie under.
        progress: Show a bar on stderr.

    Returns:
        The folder.

    Raises:
        ConfigError: The address is not an http or https one.
        DataError: The network fails for good, a checksum is wrong, or an archive is unsafe.
        StorageError: The disk is full, or the place cannot be written.
    """
    base = _checked_address(base_url)
    missing = [archive for archive in archives if not is_unpacked(archive, folder)]
    for archive in missing:
        refuse_foreign(archive, folder)
    for archive in missing:
        unpack(archive, _fetch(archive, folder, base, progress=progress), folder)
    return folder


def _checked_address(base_url: str) -> str:
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


def _fetch(archive: Archive, folder: Path, base: str, *, progress: bool) -> Path:
    """Return the path of a verified archive, fetched unless it lies there already."""
    whole, part = folder / archive.name, folder / f"{archive.name}.part"
    if whole.exists():
        found = _md5(whole)
        if found != archive.md5:
            raise DataError(
                f"{whole}: its MD5 checksum is {found}, wanted {archive.md5}; "
                "delete it and run the same command again"
            )
        return whole
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    url = base + archive.name
    with tqdm(desc=archive.name, unit="B", unit_scale=True, disable=not progress) as bar:
        _transfer_patiently(url, part, bar)
    found = _md5(part)
    with storage_errors(part):
        if found == archive.md5:
            return part.replace(whole)
        part.unlink()
    raise DataError(
        f"{url}: the MD5 checksum of what came is {found}, wanted {archive.md5}; it was deleted. "
        "Run the same command again, and if that does not help the file was changed at its source"
    )


def _transfer_patiently(url: str, part: Path, bar: tqdm[NoReturn]) -> None:
    """Fetch the rest of a file, trying again where the last connection broke off."""
    waits = iter(RETRY_WAITS_SECONDS)
    furthest = _size(part)
    while True:
        try:
            _transfer(url, part, bar)
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


def _transfer(url: str, part: Path, bar: tqdm[NoReturn]) -> None:
    """Fetch the rest of a file over one connection.

    A file changed on the server between two connections is not asked about (If-Range): the
    checksum of the whole notices it, and everything else too.
    """
    have = _size(part)
    response = _open(url, have)
    if response is None:
        return
    with response:
        span = _span(response, have, part)
        bar.reset(span.total)
        bar.initial = bar.n = span.start
        _require_space(part, span)
        _receive(response, part, span, bar)
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


def _span(response: http.client.HTTPResponse, have: int, part: Path) -> _Span:
    """Read from an answer's head which part of the file it brings."""
    length = response.headers.get("Content-Length", "")
    coming = int(length) if length.isdigit() else None
    start = 0
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start = have
        stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != have:
            with storage_errors(part):
                part.unlink(missing_ok=True)
            raise _BrokenTransferError("the server sent another part of the file than asked for")
    return _Span(start, None if coming is None else start + coming)


def _receive(
    response: http.client.HTTPResponse, part: Path, span: _Span, bar: tqdm[NoReturn]
) -> None:
    """Write an answer's body behind what is there, or over it if it brings the whole file."""
    with storage_errors(part), part.open("ab" if span.start else "wb") as file:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # what has come so far, to lose nothing if it breaks
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(_one_line(error)) from error


def _require_space(part: Path, span: _Span) -> None:
    """Refuse a download that cannot fit: the rest of the archive and all that comes out of it."""
    if span.total is None:
        return
    needed = span.total - span.start + span.total  # pictures are packed about as large as they are
    with storage_errors(part):
        free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise StorageError(
            f"{part.parent}: {_amount(free)} are free and about {_amount(needed)} are needed to "
            "download and unpack; free some space or choose another place with --out"
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


def _md5(path: Path) -> str:
    """Return a file's MD5 checksum; its publisher gives no other, and it guards no secret."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
