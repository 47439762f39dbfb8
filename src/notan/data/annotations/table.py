"""Tables: a row for each image, in CSV or Parquet, with paths or with the files' own bytes.

The columns are ``image`` and ``mask``, and ``split`` and ``group`` where there are such; Hugging
Face's ``datasets`` keeps bytes and path of a file together. Bytes are unpacked once into the cache
folder, under a digest of the table.
"""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notan.data.annotations.sets import (
    AnnotationSet,
    Collector,
    names_of,
    read_text,
    split_of,
)
from notan.data.layouts import WHOLE
from notan.data.samples import hash_ends
from notan.errors import DataError, explaining_extras
from notan.io.download import CACHE, cache_folder
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "img", "file_name", "filename"),
    "mask": ("mask", "mask_path", "mask_file_name", "label", "annotation", "segmentation"),
    "split": ("split", "subset", "part"),
    "group": ("group",),
}
"""What a column may be called; the first that there is counts."""

PLACES = ("*.parquet", "data/*.parquet")


def find(path: Path) -> Sequence[Path]:
    """Return the table that is named, or those of a folder."""
    if path.is_file():
        return [path] if path.suffix.lower() in (".csv", ".parquet") else []
    return find_lists(path) or [each for place in PLACES for each in sorted(path.glob(place))]


def find_lists(folder: Path) -> Sequence[Path]:
    """Return the CSV files of a folder that name images and masks, in so many words.

    Labels of images often lie beside them in such files, and are no masks.
    """
    return [each for each in sorted(folder.glob("*.csv")) if _lists_masks(each)]


def _lists_masks(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(itertools.islice(file, 1)), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return bool(_column(names, "image")) and "mask" in (_column(names, "mask") or "")


def _column(names: Sequence[str], what: str) -> str | None:
    return next((each for each in COLUMNS[what] if each in names), None)


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read tables as one set.

    Raises:
        DataError: A table cannot be read, or lacks the column of the images or of the masks.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
        StorageError: The bytes of its files cannot be unpacked.
    """
    collector = Collector(folder)
    groups: dict[Path, str] = {}
    for path in files:
        shown = split_of(path.stem.replace("_", "-").split("-")) or WHOLE
        is_parquet = path.suffix.lower() == ".parquet"
        names, rows = _read_parquet(path) if is_parquet else _read_csv(path)
        columns = {what: _column(names, what) for what in COLUMNS}
        for what in ("image", "mask"):
            if columns[what] is None:
                raise DataError(
                    f"{path}: there is no column '{what}'; it has {names_of(names) or 'none'}"
                )
        unpack = _Unpacking(path)
        for place, row in enumerate(rows):
            cells = {what: row.get(name) for what, name in columns.items() if name}
            where = f"{path}: row {place + 1}"
            if not cells["mask"]:
                collector.count("rows without a mask")
                continue
            image, mask = (_file(cells[each], each, where, unpack) for each in ("image", "mask"))
            told = str(cells.get("split") or "")
            split = split_of([told]) or shown
            if told and split_of([told]) is None:
                collector.faults.append(f"{where}: '{told}' is no split; train, val or test is one")
            collector.add(split, mask, image, None)
            if cells.get("group"):
                groups[image] = str(cells["group"])
    return collector.result({}, groups=groups)


def _read_csv(path: Path) -> tuple[Sequence[str], Iterator[Mapping[str, Any]]]:
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        return [name for name in rows.fieldnames or () if name], iter(list(rows))
    except csv.Error as error:
        raise DataError(f"{path}: this is no CSV ({error})") from error


def _read_parquet(path: Path) -> tuple[Sequence[str], Iterator[Mapping[str, Any]]]:
    with explaining_extras("tables"):
        import pyarrow as pa
        from pyarrow import parquet
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = [name for what in COLUMNS if (name := _column(names, what))]
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{path}: this is no Parquet, or only a part of it ({words})") from error

    def rows() -> Iterator[Mapping[str, Any]]:
        try:
            for batch in table.iter_batches(batch_size=16, columns=wanted):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            words = " ".join(str(error).split())
            raise DataError(f"{path}: cannot be read to its end ({words})") from error

    return names, rows()


class _Unpacking:
    """Writes the bytes of a table's files, once, into a folder of their own."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self._folder = cache_folder() / "tables" / hash_ends(table)
        self._taken: set[Path] = set()

    def write(self, content: bytes, name: str, what: str) -> Path:
        folder = self._folder / what
        named = Path(name.replace("\\", "/").replace("\0", ""))
        stem, suffix = named.stem[:80] or "row", named.suffix[:8] or ".png"
        path = folder / f"{stem}{suffix}"
        if path in self._taken or not named.stem:
            path = folder / f"{stem}-{len(self._taken):06d}{suffix}"
        self._taken.add(path)
        with storage_errors(folder, chosen_by=CACHE):
            if not path.is_file() or path.read_bytes() != content:
                write_bytes(path, content)
        return path


def _file(cell: object, what: str, where: str, unpack: _Unpacking) -> Path:
    """Return the file of a cell: a path, bytes, or both as Hugging Face's ``datasets`` has them."""
    content, name = cell, ""
    if isinstance(cell, dict):
        content, name = cell.get("bytes") or cell.get("path"), str(cell.get("path") or "")
    if isinstance(content, bytes):
        return unpack.write(content, name, what)
    if not isinstance(content, str) or "\0" in content:
        raise DataError(f"{where}: wanted a path or the bytes of a file as {what}")
    path = unpack.table.parent / content
    if not path.is_file():
        raise DataError(
            f"{where}: the {what} {content} is not there; paths are seen from the table's folder"
        )
    return path
