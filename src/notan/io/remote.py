"""Object stores and servers: what fsspec reaches by an address, such as ``s3://bucket/shards``.

A path holds an address with one slash behind its scheme, since paths have no empty parts. What the
libraries need to be let in they find themselves, in variables and files of their own; an address
that holds a password or a query is refused, so that none reaches a log, a card or a message.

A store may fail for a moment: what was asked is asked again, a few times and no longer than
``PATIENCE_SECONDS``, beside what the library of the store does itself.
"""

from __future__ import annotations

import errno
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from notan.errors import (
    LONGEST_REASON,
    DataError,
    MissingExtraError,
    NotanError,
    StorageError,
    explaining_extras,
)
from notan.io.write import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Answer = TypeVar("Answer")

ATTEMPTS, PAUSE_SECONDS, PATIENCE_SECONDS = 5, 0.25, 60.0
"""How often a store is asked, the pause before the second time, which doubles, and for how long."""

CONNECT_SECONDS, READ_SECONDS = 10, 20
"""That S3 is waited for at a time."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_INNER = re.compile(r"(?:(?<=::)|^)([A-Za-z][A-Za-z0-9+.-]+):/+")
"""Also of an address in an address, such as ``zip://a.jpg::s3://bucket/photos.zip``."""

_SECRETS = re.compile(r"(?<!abfs://)(?<!abfss://)(?<=//)[^/\s@]+@|(?<=//)[^/\s@]*:[^/\s@]*@|\?\S+")
"""Users, passwords and queries; in addresses of Azure a container stands before the sign."""


def is_remote(path: Path) -> bool:
    """Say whether a path is an address, not a place in the file system."""
    return _ADDRESS.fullmatch(path.as_posix()) is not None


def shown(path: Path) -> str:
    """Return a path as people write it, an address without what is nobody's business."""
    return _without_secrets(_address_of(path)) if is_remote(path) else str(path)


def _address_of(path: Path) -> str:
    """Return an address with the slashes that a path has dropped."""

    def whole(found: re.Match[str]) -> str:
        return f"{found[1]}:/{'//' if found[1] in ('file', 'local') else '/'}"

    return _INNER.sub(whole, path.as_posix())


def require_plain(path: Path) -> None:
    """Refuse an address with a user, a password or a query in it.

    Raises:
        DataError: It has; they are not repeated.
    """
    if is_remote(path) and shown(path) != _address_of(path):
        raise DataError(
            f"{shown(path)}: holds a user, a password or a query, which is left out here; give the "
            "bare address, and credentials where its library looks for them, such as AWS_PROFILE"
        )


def read_range(path: Path, start: int, count: int) -> bytes:
    """Read a part of a file; less where it ends before.

    Raises:
        DataError: The store refuses, or does not answer.
        FileNotFoundError: There is no such file.
    """
    return bytes(
        _asked(path, lambda store, name: store.cat_file(name, start=start, end=start + count))
    )


def read_whole(path: Path) -> bytes:
    """Read a file; for the errors see ``read_range``."""
    return bytes(_asked(path, lambda store, name: store.cat_file(name)))


def read_start(path: Path, most: int) -> bytes:
    """Read the beginning of a file, by one question; for the errors see ``read_range``."""

    def start(store: Any, name: str) -> bytes:  # noqa: ANN401 - fsspec has no types
        try:
            return bytes(store.cat_file(name, start=0, end=most))
        except FileNotFoundError:
            raise
        except Exception:
            with suppress(Exception):  # what was asked first says more
                if store.info(name)["size"] == 0:  # of which S3 has no range
                    return b""
            raise

    return _asked(path, start)


def copy_file(path: Path, local: Path) -> None:
    """Copy a file out of a store, and see that all of it came; for the errors see ``read_range``.

    Raises:
        StorageError: The disk is full, or cannot be written.
    """

    def get(store: Any, name: str) -> None:  # noqa: ANN401 - fsspec has no types
        size = store.info(name)["size"]
        try:
            store.get_file(name, str(local))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            with storage_errors(local, chosen_by="TMPDIR"):
                raise
        if size not in (None, local.stat().st_size):
            raise OSError(f"{local.stat().st_size} bytes arrived, not {size}")

    _asked(path, get)


def find_files(path: Path) -> list[Path]:
    """Return the files that an address means: itself, what is in it, or what matches its ``*``.

    Raises:
        DataError: As for ``read_range``.
        FileNotFoundError: There is neither such a file nor such a folder.
    """
    inner, chain, outer = _address_of(path).partition("::")
    root = inner
    if "*" in inner:
        root = inner.partition("*")[0].rpartition("/")[0]

    def names(store: Any, name: str) -> list[str]:  # noqa: ANN401 - fsspec has no types
        store.invalidate_cache()
        if "*" in inner:
            found = store.glob(name, detail=True).values()
        elif store.info(name)["type"] == "file":
            return [""]
        else:
            found = store.ls(name, detail=True)
        start = name.removesuffix(inner[len(root) :].lstrip("/")).rstrip("/")
        files = [each["name"] for each in found if each["type"] == "file"]
        return sorted(each.removeprefix(start).lstrip("/") for each in files)

    return [Path(f"{root}/{name}{chain}{outer}") if name else path for name in _asked(path, names)]


def read_size(path: Path) -> int:
    """Return the bytes that a file has; for the errors see ``read_range``."""
    return int(_asked(path, lambda store, name: store.info(name)["size"]))


def exists(path: Path) -> bool:
    """Say whether a store has a file; for the errors see ``read_range``."""

    def is_there(store: Any, name: str) -> bool:  # noqa: ANN401 - fsspec has no types
        store.invalidate_cache()
        return bool(store.info(name)["type"] == "file")

    try:
        return _asked(path, is_there)
    except FileNotFoundError:
        return False


def list_sizes(folder: Path) -> Mapping[str, int | None]:
    """Return the names in a folder with their sizes, as far as the store tells them.

    There are none where there is no folder.

    Raises:
        DataError: As for ``read_range``.
    """

    def listed(store: Any, name: str) -> list[dict[str, Any]]:  # noqa: ANN401 - fsspec has no types
        store.invalidate_cache()
        found: list[dict[str, Any]] = store.ls(name, detail=True)
        return found

    try:
        entries = _asked(folder, listed)
    except FileNotFoundError:
        return {}
    files = {entry["name"].rstrip("/").rpartition("/")[2]: entry.get("size") for entry in entries}
    return {name: size for name, size in files.items() if name and name != folder.name}


def write_file(local: Path, path: Path) -> None:
    """Copy a file into a store, and see that all of it is there.

    Raises:
        StorageError: The store refuses, does not answer, or holds less.
    """
    size = local.stat().st_size

    def put(store: Any, name: str) -> None:  # noqa: ANN401 - fsspec has no types
        store.put_file(str(local), name)
        store.invalidate_cache()
        found = store.info(name)["size"]
        if found != size:
            raise OSError(f"{found} bytes arrived, not {size}")

    _written(path, put)


def write_whole(path: Path, content: bytes, *, replaces: bool = True) -> None:
    """Write a small file into a store; for the errors see ``write_file``.

    Args:
        path: Where it goes.
        content: What it holds.
        replaces: Whether one that is there gives way; where it should not and the store cannot
            tell, it does all the same.
    """

    def put(store: Any, name: str) -> None:  # noqa: ANN401 - fsspec has no types
        if not replaces:
            try:
                store.pipe_file(name, content, mode="create")
            except FileExistsError:
                return  # another's, or ours, of which the answer was lost
            except (NotImplementedError, TypeError):
                pass
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
            else:
                return
        store.pipe_file(name, content)

    _written(path, put)


def remove(path: Path, *, recursive: bool = False) -> None:
    """Remove a file or a folder from a store, if it is there; for the errors see ``write_file``."""

    def gone(store: Any, name: str) -> None:  # noqa: ANN401 - fsspec has no types
        store.invalidate_cache()
        with suppress(FileNotFoundError):
            if recursive:
                store.rm(name, recursive=True)
            else:
                store.rm_file(name)

    _written(path, gone)


def _written(path: Path, work: Callable[[Any, str], None]) -> None:
    try:
        _asked(path, work, raises=StorageError)
    except FileNotFoundError as error:
        raise StorageError(
            f"{shown(path)}: could not be written ({_reason(error)}); make the bucket first, or "
            "choose another place with --out"
        ) from error


def _asked(
    path: Path, work: Callable[[Any, str], Answer], *, raises: type[NotanError] = DataError
) -> Answer:
    """Ask a store, and again where it fails for a moment."""
    require_plain(path)
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            return work(*_store_of(shown(path)))
        except (NotanError, FileNotFoundError):
            raise
        except NotImplementedError as error:
            raise raises(
                f"{shown(path)}: fsspec cannot do that in such a place ({_reason(error)}); choose "
                "one such as s3://bucket/folder"
            ) from error
        except Exception as error:
            if _is_refusal(error):
                raise raises(
                    f"{shown(path)}: the store lets nobody in ({_reason(error)}); check the "
                    "credentials, which its library finds itself, such as AWS_PROFILE"
                ) from error
            last = error
        if time.monotonic() - began > PATIENCE_SECONDS:
            break
    raise raises(
        f"{shown(path)}: the store does not answer, asked {attempt + 1} times within "
        f"{time.monotonic() - began:.0f} seconds ({_reason(last)}); check the address and the "
        "network, and give the same command again"
    ) from last


def _is_refusal(error: Exception) -> bool:
    """Say whether a store wants other credentials, or some at all; the libraries' names differ."""
    status = getattr(error, "status", None)
    name = type(error).__name__
    return isinstance(error, PermissionError) or status in (401, 403) or "Credential" in name


def _store_of(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, which it keeps, and the name in it."""
    scheme = address.partition(":")[0].lower()
    with explaining_extras(f"{scheme}:// as an address"):
        import fsspec
    known = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
    times = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    # botocore's attempts would multiply with those of s3fs, which asks five times, and ours
    limits = {**times, "retries": {"max_attempts": 0}, **known}
    options = {"config_kwargs": limits} if scheme in ("s3", "s3a") else {}
    try:
        store, name = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        raise MissingExtraError(
            f"{address}: its library is not installed ({_reason(error)}); pip install what is "
            "named there"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{address}: is no address that fsspec knows ({_reason(error)}); wanted one such as "
            "s3://bucket/folder, or a folder"
        ) from error
    return store, name


def _reason(error: Exception) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return _without_secrets(words)[:LONGEST_REASON]


def _without_secrets(text: str) -> str:
    return _SECRETS.sub("", text)
