"""Files and archives from the network: checked against a published hash, whole or not at all.

pooch talks to the network, and only when something is asked for. What it lacks is added here:
hashes of which only the first digits are published, errors of one line that say what to do, and
archives that cannot write outside their own folder.
"""

from __future__ import annotations

import gzip
import http.client
import io
import logging
import os
import shutil
import tarfile
import time
import urllib.parse
import zlib
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO

import pooch

from notan.errors import ConfigError, DataError
from notan.io.digest import hash_file
from notan.io.write import set_usual_permissions, storage_errors

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger("notan")

CACHE = "NOTAN_CACHE"
"""The environment variable that says where downloaded files are kept."""

TIMEOUT_SECONDS = 30.0  # without a single byte, not for the whole transfer
RETRY_WAITS_SECONDS = (1.0, 2.0, 3.0)
"""Between attempts, as pooch waits too."""

CHUNK_BYTES = 2**18  # pooch's own 1 KiB makes a Python call of every packet
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may be gone at the next attempt."""

MARKER = ".archive"
"""The file in an unpacked folder that names the archive it came from, by its hash."""

pooch.get_logger().setLevel(logging.WARNING)  # its log would repeat ours


def cache_folder() -> Path:
    """Return where downloaded files are kept for later runs; it need not exist yet.

    ``NOTAN_CACHE`` where that is set, else ``notan`` in the platform's folder for such files,
    such as ``~/.cache`` or ``XDG_CACHE_HOME`` on Linux.
    """
    chosen = os.environ.get(CACHE)
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("notan"))


def check_url(base_url: str) -> str:
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


def hash_matches(path: Path, known_hash: str) -> bool:
    """Say whether a file has a published hash.

    Args:
        path: The file.
        known_hash: ``algorithm:digits``, such as ``md5:5c4f...``; of the digits, as many of the
            first ones as are published.

    Raises:
        DataError: The file cannot be read.
    """
    algorithm, _, digits = known_hash.partition(":")
    return hash_file(path, algorithm).startswith(digits)


def download(
    url: str, path: Path, known_hash: str, *, chosen_by: str = "--out", progress: bool = True
) -> Path:
    """Download a file and check it, unless it is there already.

    Whatever ends it early, Ctrl-C too, leaves no part of the file behind; a broken transfer is
    tried again from its start.

    Args:
        url: An http or https address.
        path: Where it goes; a file there that has another hash is replaced.
        known_hash: What it must hash to, as for ``hash_matches``.
        chosen_by: The flag or variable that would choose another place, for messages.
        progress: Show a bar on stderr.

    Returns:
        The file's path.

    Raises:
        DataError: The network fails for good, or what came is not what was published.
        StorageError: The disk is full, or the place cannot be written.
    """
    import requests  # slow to import, and rarely wanted

    if path.is_file():
        if hash_matches(path, known_hash):
            return path
        logger.warning("%s: damaged or cut short (its hash differs)", path)
    logger.info("downloading %s to %s", url, path)
    with storage_errors(path, chosen_by=chosen_by):
        path.unlink(missing_ok=True)
        files = pooch.create(
            path.parent,
            base_url="",
            registry={path.name: None},  # checked in the transfer, against all known digits
            urls={path.name: url},
            retry_if_failed=len(RETRY_WAITS_SECONDS),
        )
        try:
            files.fetch(path.name, downloader=_Transfer(known_hash, progress=progress))
        except requests.RequestException as error:
            raise _failure(url, error) from error
        set_usual_permissions(path)
    return path


def download_bytes(url: str, most: int) -> bytes:
    """Return what an http or https address holds; broken transfers are tried again.

    Args:
        url: The address.
        most: Bytes that are taken at most.

    Raises:
        ConfigError: It is not an http or https address.
        DataError: The network fails for good, or more comes than is taken.
    """
    import requests

    check_url(url)
    for wait in (*RETRY_WAITS_SECONDS, None):
        content = _BoundedBytes(url, most)
        try:
            _Transfer(None, progress=False)(url, content)
        except requests.RequestException as error:
            if wait is None:
                raise _failure(url, error) from error
            time.sleep(wait)
        else:
            break
    return content.getvalue()


def _failure(url: str, error: BaseException) -> DataError:
    """Say in one line what lies at the bottom of an error of requests."""
    while error.__context__ is not None:
        error = error.__context__
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, http.client.IncompleteRead):
        reason = "the connection closed too soon"
    return DataError(
        f"{url}: the download failed ({reason}); check the address and the network, and run the "
        "same command again"
    )


class _BoundedBytes(io.BytesIO):
    """Bytes in memory, up to a number of them."""

    def __init__(self, url: str, most: int) -> None:
        super().__init__()
        self.url, self.most = url, most

    def write(self, chunk: ReadableBuffer) -> int:
        """Take what came, or raise DataError where it is too much."""
        if super().write(chunk) and self.tell() > self.most:
            raise DataError(
                f"{self.url}: holds more than {self.most:,} bytes; download it to a file"
            )
        return self.tell()


class _Transfer(pooch.HTTPDownloader):  # type: ignore[misc]  # pooch has no types
    """One attempt; raises DataError where another one would end alike."""

    def __init__(self, known_hash: str | None, *, progress: bool) -> None:
        # Unasked, servers may label a .tar.gz as compressed on its way and have it unpacked here
        headers = {"User-Agent": "notan", "Accept-Encoding": "identity"}
        super().__init__(progress, CHUNK_BYTES, timeout=TIMEOUT_SECONDS, headers=headers)
        self.known_hash = known_hash

    def __call__(
        self, url: str, output_file: str | BinaryIO, files: pooch.Pooch | None = None
    ) -> None:
        """Download to a file that pooch has made, and check what came; or to an open one."""
        import requests

        try:
            super().__call__(url, output_file, files)
        except requests.HTTPError as error:
            answer = error.response
            if answer is None or answer.status_code in PASSING_STATUSES:
                raise
            raise DataError(
                f"{url}: the server answered {answer.status_code} {answer.reason}; "
                "check the address, the file may have moved"
            ) from error
        if self.known_hash is None or not isinstance(output_file, str):
            return
        algorithm, _, digits = self.known_hash.partition(":")
        found = hash_file(Path(output_file), algorithm)[: len(digits)]
        if found != digits:
            raise DataError(
                f"{url}: the {algorithm.upper()} of what came is {found}, wanted {digits}; it was "
                "deleted. Run the same command again, and if that does not help the file was "
                "changed at its source"
            )


def download_archive(url: str, folder: Path, known_hash: str, *, progress: bool = True) -> Path:
    """Download an archive that holds one folder of its own name, and unpack it.

    An archive that lies in ``folder`` already is checked and not downloaded; one that was unpacked
    already is not even that. It is removed after unpacking.

    Args:
        url: An http or https address; it ends with the archive's name, such as ``images.tar.gz``.
        folder: Where ``images/`` goes; made if missing.
        known_hash: What the archive must hash to, as for ``hash_matches``.
        progress: Show a bar on stderr.

    Returns:
        The unpacked folder.

    Raises:
        DataError: The network fails for good, the archive is not what was published or unsafe, or
            its folder is there already and is not from an earlier call.
        StorageError: The disk is full, or the place cannot be written.
    """
    archive = folder / url.rpartition("/")[2]
    target = _unpacked(archive)
    if _marker(target) == known_hash:
        return target
    _refuse_foreign(target)
    if archive.is_file() and not hash_matches(archive, known_hash):
        raise DataError(
            f"{archive}: its hash is not {known_hash}; delete it and run the same command again"
        )
    download(url, archive, known_hash, progress=progress)
    return unpack(archive, known_hash)


def unpack(archive: Path, known_hash: str) -> Path:
    """Unpack a checked archive beside itself and remove it.

    A folder is filled beside its place and moved there at the end, so that a half unpacked one
    never looks complete. Files whose names begin with ``._`` are macOS's notes about other files,
    not data, and are left out.

    Args:
        archive: A tar file, compressed or not; ``images.tar.gz`` must hold ``images/`` alone.
        known_hash: Is left in the folder, to know it again.

    Returns:
        The unpacked folder.

    Raises:
        DataError: The archive is damaged, holds something else, a link, a device or a path that
            leads out of the folder, or would replace something of the user's. Nothing is unpacked
            then.
        StorageError: The disk is full, or the place cannot be written.
    """
    target = _unpacked(archive)
    _refuse_foreign(target)
    waiting = archive.with_name(f".unpacking-{target.name}")
    shutil.rmtree(waiting, ignore_errors=True)
    try:
        with storage_errors(target):
            waiting.mkdir()
            _extract(archive, waiting)
            found = sorted(entry.name for entry in waiting.iterdir())
            if found != [target.name]:
                raise DataError(
                    f"{archive}: holds {', '.join(found) or 'nothing'}; wanted a folder "
                    f"{target.name}/ and nothing else; delete the archive"
                )
            (waiting / target.name / MARKER).write_text(known_hash)
            if target.exists():
                shutil.rmtree(target)
            (waiting / target.name).replace(target)
            archive.unlink()
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    return target


def _unpacked(archive: Path) -> Path:
    """Return the folder that an archive is unpacked to."""
    return archive.with_name(archive.name.partition(".")[0])


def _marker(folder: Path) -> str | None:
    """Return the hash of the archive that a folder came from; None of a folder of the user's."""
    try:
        return (folder / MARKER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _refuse_foreign(target: Path) -> None:
    """Refuse to write over what was not unpacked here."""
    if target.exists() and _marker(target) is None:
        raise DataError(
            f"{target} is already there and was not completed by this command, so it is left "
            "alone; use it as it is, or move it away to download it afresh"
        )


def _extract(archive: Path, folder: Path) -> None:
    """Extract the members of an archive, or refuse it at the first unsafe one."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            # A second guard beside our own; Python before 3.11.4 does not have it.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                _refuse_unsafe(member, archive)
                if not Path(member.name).name.startswith("._"):
                    # Owners, modes and times of the publisher's machine mean nothing here.
                    tar.extract(member, folder, set_attrs=False)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{archive}: the archive is damaged ({error}) although its hash is right; "
            "delete it and report this to its publisher"
        ) from error


def _refuse_unsafe(member: tarfile.TarInfo, archive: Path) -> None:
    """Refuse a member that is not a plain file or folder inside the archive's own tree."""
    place = PureWindowsPath(member.name)  # knows both slashes and drive letters
    if place.anchor or ".." in place.parts:
        found = "leads out of the folder"
    elif not (member.isfile() or member.isdir()):
        found = "is a link or a device"
    else:
        return
    raise DataError(
        f"{archive}: its member {member.name!r} {found}; only plain files and folders are "
        "unpacked, so nothing was; do not use this archive"
    )
