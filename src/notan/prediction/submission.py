"""A leaderboard's file: masks as run lengths, of the images that a list names, in its order.

It is written here, and checked: what is wrong with it is said before the leaderboard does.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from notan.data.folders import PART_NAMES, SUFFIXES, image_files
from notan.errors import ConfigError, DataError
from notan.io.headers import read_size
from notan.io.images import read_image
from notan.io.write import as_named, as_written, replacing
from notan.prediction.flow import Flow, Job, bytes_ahead
from notan.prediction.formats.rows import decode_rle, kaggle_rle, read_runs
from notan.prediction.formats.writers import RLE_HEADER, write_rle_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.prediction.predictor import Predictor
    from notan.types import Size


_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SUFFIX_IN_LINE = re.compile(rf"(?i)({'|'.join(map(re.escape, sorted(SUFFIXES)))})(?=\s|$)")


@dataclass(frozen=True)
class NameList:
    """The images that a leaderboard asks for.

    Attributes:
        path: The list's file.
        lines: The names as they stand there, in order, each with the number of its line.
    """

    path: Path
    lines: Mapping[str, int]

    def at(self, name: str) -> str:
        """Say where a name stands, to begin a message with."""
        return f"{self.path}, line {self.lines[name]}: '{name}'"


def read_list(path: Path, folder: Path | None = None) -> NameList:
    """Read a name from every line; lines that begin with ``#`` are comments.

    A name may have spaces and stand in quotes; what follows it on its line is passed over. The
    images decide where it ends; without them the first suffix of an image does, or the first word.

    Args:
        path: The list.
        folder: Holds the images, as for ``find_images``.

    Raises:
        DataError: The list is missing, no text, empty, or names an image twice.

    Source: the lists of the Oxford-IIIT Pet dataset, ``annotations/test.txt``.
    """
    try:
        content = path.read_bytes()
        # the names of files need not be text: in a list that could be one they match byte by byte
        errors = "strict" if _BINARY.search(content) else "surrogateescape"
        text = content.decode("utf-8-sig", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list cannot be read ({error}); wanted UTF-8 text, one image's name a line"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: the list is no text; wanted UTF-8, one image's name a line")
    known = _Known(_places(folder)) if folder is not None else None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name = _name_in(line.strip(), known)
        if name in lines:
            raise DataError(
                f"{path}, line {number}: '{name}' stands on line {lines[name]} already; a mask is "
                "submitted once: remove one of the lines"
            )
        lines[name] = number
    if not lines:
        raise DataError(f"{path}: the list is empty; at least one image's name was wanted")
    return NameList(path, lines)


def _name_in(line: str, known: _Known | None) -> str:
    """Return the name that a line begins with, in its written form."""
    words = line.split()
    is_quoted = len(line) > 2 and line[0] == line[-1] and line[0] in "\"'"
    ends = (match.end() for match in _SUFFIX_IN_LINE.finditer(line))
    choices = [line[1:-1]] if is_quoted else [line[:end] for end in ends][:1]
    choices.append(words[0])
    if known is not None:
        choices = [name for name in (line, *choices) if known.find(name)] or choices
    return as_written(choices[0])


class _Known:
    """The images of some folders, by name: exactly, or in another of Unicode's forms."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = places
        self.by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        self._by_name: defaultdict[str, list[Path]] = defaultdict(list)
        for path in (path for place in places for path in image_files(place)):
            for form in dict.fromkeys((path.name, unicodedata.normalize("NFC", path.name))):
                self._by_name[form].append(path)
            for form in dict.fromkeys((path.stem, unicodedata.normalize("NFC", path.stem))):
                self.by_stem[form].append(path)

    def find(self, name: str) -> list[Path]:
        """Return the images of a name, of which there should be one."""
        for form in (as_named(name), unicodedata.normalize("NFC", as_named(name))):
            found = self._by_name.get(form) or self.by_stem.get(form)
            stem, dot, ending = form.rpartition(".")
            if not found and dot + ending.lower() in SUFFIXES:
                found = self.by_stem.get(stem)
            if found:
                return found
        return []


def find_images(names: NameList, folder: Path) -> dict[str, Path]:
    """Find the images of a list; they need no masks.

    A name is a file's, with or without its suffix. Where no file has the name and the suffix is
    that of an image, the rest decides: lists name ``a.jpg`` when the folder holds ``a.png``.

    Args:
        names: The list.
        folder: Holds images itself, in ``images/``, or in ``images/`` of a part such as
            ``test/``.

    Returns:
        The name as the list has it -> its file, in the list's order.

    Raises:
        DataError: The folder is missing, or an image is missing, there twice, or meant by two
            names.
    """
    known = _Known(_places(folder))
    found = {name: known.find(name) for name in names.lines}
    missing = [name for name in found if not found[name]]
    _refuse_missing(missing, names, known.by_stem, known.places)
    taken: dict[Path, str] = {}
    for name, paths in found.items():
        if len(paths) > 1:
            raise DataError(
                f"{names.at(name)} may be {' or '.join(map(str, paths[:3]))}; name the folder of "
                "the one that is meant with --data-path, or give the list the whole file name"
            )
        if paths[0] in taken:
            raise DataError(
                f"{names.at(name)} means {paths[0]}, as '{taken[paths[0]]}' on line "
                f"{names.lines[taken[paths[0]]]} does; remove one of the lines"
            )
        taken[paths[0]] = name
    return {name: paths[0] for name, paths in found.items()}


def read_sizes(images: Mapping[str, Path]) -> dict[str, Size]:
    """Return each image's upright (height, width) in pixels, from its file's header.

    Raises:
        DataError: A file is no image, or claims too large a size.
    """
    return {name: read_size(path) for name, path in images.items()}


def write_submission(
    predictor: Predictor,
    images: Mapping[str, Path],
    out: Path,
    *,
    batch_size: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Predict images and write ``image_id,encoded_mask``, whole or not at all.

    A leaderboard scores every image, so one that cannot be read ends it. All headers are read
    first, lest what is no image shows at the end of a long run.

    Args:
        predictor: The network, with the rule that makes masks.
        images: The id to write -> the file, in the order of the rows.
        out: The CSV file; masks are at the images' own size, upright.
        batch_size: Images predicted at once.
        progress: Called as each row is written.

    Raises:
        ConfigError: The file would take the place of an image or of a folder.
        DataError: An image cannot be read.
        DivergedError: The network returned NaN or infinity.
        StorageError: The file could not be written.
    """
    refuse_to_replace(out, list(images.values()))
    sizes = read_sizes(images)
    reading = predictor.preprocessor.reading
    flow: Flow[str, str] = Flow(predictor, batch_size=batch_size, images=len(images))

    def start(name: str) -> Job[str]:
        return Job(
            functools.partial(read_image, images[name], reading),
            lambda _, prediction: kaggle_rle(prediction.mask),
            bytes_ahead(predictor, sizes[name]),
        )

    def rows(found: Iterator[tuple[str, str | DataError]]) -> Iterator[tuple[str, str]]:
        for name, row in found:
            if isinstance(row, DataError):
                raise row
            yield name, row
            progress()

    with replacing(out) as file, contextlib.closing(flow.run(images, start)) as found:
        write_rle_csv(file, rows(found))


def refuse_to_replace(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write where a folder or an input lies.

    Raises:
        ConfigError: It does.
    """
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the file to write with --out")
    # the folder only: an output that is a link is itself replaced, not what it leads to
    place = out.parent.resolve() / out.name
    if place in {path.resolve() for path in inputs}:
        raise ConfigError(f"{out}: is an input, which would be lost; choose another --out")


def _places(folder: Path) -> list[Path]:
    """Return what may hold the images: the folder, its images/ and those of its parts."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; wanted the one with the images")
    parts = [folder / part for parts in PART_NAMES.values() for part in parts]
    places = [folder, *(place / "images" for place in (folder, *parts))]
    return [place for place in places if place.is_dir()]


def _refuse_missing(
    missing: Sequence[str],
    names: NameList,
    by_stem: Mapping[str, Sequence[Path]],
    places: Sequence[Path],
) -> None:
    if not missing:
        return
    name = missing[0]
    close = difflib.get_close_matches(name, by_stem, n=1)
    hint = f" (the nearest is {by_stem[close[0]][0].name})" if close else ""
    others = f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
    comma = "; a line holds one name, without commas" if "," in name else ""
    folders = "; a name is that of a file, without folders" if "/" in name else ""
    raise DataError(
        f"{names.at(name)}: there is no image of this name in "
        f"{', '.join(map(str, places))}{hint}{others}{comma}{folders}"
    )


MOST_LISTED = 20
_LONGEST_FIELD = 2**31 - 1
"""In characters: the most that the csv module takes on every system."""


@dataclass
class Findings:
    """What a check found.

    Attributes:
        images: Names in the file, each counted once.
        count: How many problems there are.
        problems: The first ``MOST_LISTED`` of them, in words, with their lines.
    """

    images: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Note a problem; a file may have a million, so that only the first are kept in words."""
        self.count += 1
        if len(self.problems) < MOST_LISTED:
            self.problems.append(problem)

    def in_words(self) -> str:
        """Return the problems, one a line; then how many more there are."""
        more = self.count - len(self.problems)
        return "\n".join([*self.problems, *([f"... and {more} more"] if more else [])])


def check_submission(
    path: Path, names: NameList | None = None, sizes: Mapping[str, Size] | None = None
) -> Findings:
    """Look for everything that a leaderboard would refuse, or would score as another mask.

    The header, two cells a row, each name once, and run lengths as ``decode_rle`` reads them. The
    order of the rows is free. Runs that touch are one run in two words, and no problem.

    Args:
        path: The CSV file.
        names: The names that it must hold, these and no others; None: any.
        sizes: (height, width) in pixels of each name's image, which its runs must lie in; None:
            not known.

    Raises:
        DataError: The file is missing, or is no text.
    """
    findings = Findings()
    seen: dict[str, int] = {}
    before = csv.field_size_limit(_LONGEST_FIELD)  # the run lengths of a large mask pass its usual
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for problem in _problems(csv.reader(file, strict=True), seen, names, sizes or {}):
                findings.add(problem)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); wanted UTF-8 text, as notan submit writes it"
        ) from error
    finally:
        csv.field_size_limit(before)
    if names:
        for name in [name for name in names.lines if name not in seen]:
            findings.add(f"no row for '{name}', line {names.lines[name]} of {names.path}")
    if not seen and not findings.count:
        findings.add("there are no rows below the header")
    findings.images = len(seen)
    return findings


def _problems(
    reader: Iterator[list[str]],
    seen: dict[str, int],
    names: NameList | None,
    sizes: Mapping[str, Size],
) -> Iterator[str]:
    """Go through the rows, numbered from 1; behind one that is no CSV nothing can be told apart."""
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            header = _header_problem(row) if number == 1 else ""
            if header:
                yield header
            # where the header was left out, the first row is data
            if number > 1 or (header and len(row) == 2 and row[1].replace(" ", "").isdigit()):
                yield from _row_problems(number, row, seen, names, sizes)
    except csv.Error as error:
        yield f"row {number + 1} is no CSV ({error}); nothing behind it was read"
    if not number:
        yield f"the file is empty; wanted the header {','.join(RLE_HEADER)}"


def _header_problem(first: Sequence[str]) -> str:
    """Say what is wrong with the first row as a header; empty: nothing."""
    wanted = ",".join(RLE_HEADER)
    if tuple(first) == RLE_HEADER:
        return ""
    if first and first[0].startswith("\ufeff"):
        return f"the file begins with a byte order mark; wanted the plain header {wanted}"
    return f"the header is '{_short(','.join(first))}'; wanted {wanted}"


def _row_problems(
    number: int,
    row: Sequence[str],
    seen: dict[str, int],
    names: NameList | None,
    sizes: Mapping[str, Size],
) -> Iterator[str]:
    if len(row) != len(RLE_HEADER):
        what = f"has {len(row)} cells ('{_short(','.join(row))}')" if row else "is empty"
        yield f"row {number} {what}; wanted a name and its run lengths"
        return
    name, text = row
    where = f"row {number}, '{_short(name)}'"
    if not name:
        yield f"row {number} has no name"
    elif name in seen:
        yield f"{where}: stands in row {seen[name]} already"
    elif names and name not in names.lines:
        yield f"{where}: is not in {names.path}"
    seen.setdefault(name, number)
    try:
        if name in sizes:
            decode_rle(text, sizes[name])
        else:
            read_runs(text)
    except DataError as error:
        yield f"{where}: {error}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
