"""Which files the words on a command line mean, and what their masks are called."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from notan.data.folder import SUFFIXES
from notan.data.video import VIDEO_SUFFIXES
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

STANDARD_INPUT = Path("-")
MOST_BYTES = 2**30
"""Of standard input: more than any image that is decoded."""

_SEQUENCES = VIDEO_SUFFIXES | {".tif", ".tiff"}
_PART = re.compile(r"-(\d{6,}|p\d{4,})$")
"""How the names of a video's frames and of a TIFF's pages end."""


@dataclass(frozen=True)
class Found:
    """A file to predict, and what its outputs are called.

    Attributes:
        name: Of its outputs, without a suffix; ``/`` where a folder tells it from another.
        path: The file; ``-`` for standard input.
        content: The file's bytes, of standard input only.
    """

    name: str
    path: Path
    content: bytes | None = None


def find_inputs(words: Iterable[Path], *, standard_input: BinaryIO | None = None) -> list[Found]:
    """Return the files to predict in the order of the words, each with a name of its own.

    An output has its file's stem: ``cat`` for ``cat.jpg``. Where that would name two things alike,
    these keep their whole file names (``cat.jpg``, ``cat.png``), and where that is not enough their
    folders too (``monday/cat``, ``tuesday/cat``). Names differ in more than upper and lower case,
    which some disks do not tell apart, and they depend on the files alone.

    Args:
        words: Files, whatever they are called; folders, of which every image and video is taken;
            patterns with ``*``, ``?`` or ``[a-z]``, and ``**`` for folders in folders; ``-`` for
            the bytes of one image on standard input.
        standard_input: Where ``-`` reads; None: the process's own.

    Raises:
        DataError: An input is missing, a folder or pattern has nothing to predict, nothing was
            given, or standard input is empty or too large.
    """
    paths = [path for word in words for path in _files(word)]
    if not paths:
        raise DataError("no images were given; name files, folders or patterns such as '*.jpg'")
    # by absolute path, so that a file that is named twice is predicted once
    unique: dict[str, Path] = {}
    for path in paths:
        unique.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - links are kept as they are
    files = list(unique.values())
    content = _read_standard_input(standard_input) if STANDARD_INPUT in files else None
    names = _name(files)
    return [Found(names[path], path, content if path == STANDARD_INPUT else None) for path in files]


def refuse_outputs_over_inputs(
    found: Iterable[Found], outputs: Callable[[str], Iterable[Path]]
) -> None:
    """Refuse to write where any input lies.

    Args:
        found: The inputs.
        outputs: Returns where the outputs of a name go.

    Raises:
        ConfigError: An output would take the place of an input.
    """
    inputs = {file.path.resolve() for file in found if file.content is None}
    # whose frames or pages: clip for clip-000001.png
    parts = {path.parent / _PART.sub("", path.stem): path for path in sorted(inputs)}
    for file in found:
        is_sequence = file.path.suffix.lower() in _SEQUENCES
        for path in outputs(file.name):
            # the folder only: an output that is a link is itself replaced, not what it leads to
            place = path.parent.resolve() / path.name
            taken = parts.get(place.with_suffix("")) if is_sequence else None
            if place in inputs or taken not in (None, file.path.resolve()):
                raise ConfigError(
                    f"{taken or place}: is an input, and outputs of {file.path} could replace it; "
                    "choose another --out"
                )


def _files(word: Path) -> list[Path]:
    if word == STANDARD_INPUT:
        return [word]
    if word.is_dir():
        files = _in_folder(word)
        if not files:
            raise DataError(f"{word}: there are no images in this folder")
        return files
    if word.exists():
        return [word]
    if glob.has_magic(str(word)):
        return _matching(word)
    raise DataError(f"{word}: there is no such image or folder")


def _in_folder(folder: Path) -> list[Path]:
    """Return a folder's images and videos; hidden files (``._x.jpg``) are none."""
    wanted = SUFFIXES | VIDEO_SUFFIXES
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in wanted and not path.name.startswith(".") and path.is_file()
    )


def _matching(pattern: Path) -> list[Path]:
    """Return what a pattern matches, as a shell would; of folders, what is in them."""
    found = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - with ** in the middle, too
    files = [file for path in found for file in (_in_folder(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(
            f"{pattern}: no file matches this pattern; see what is there with: ls {pattern.parent}"
        )
    return files


def _read_standard_input(stream: BinaryIO | None) -> bytes:
    source = stream or sys.stdin.buffer
    if source.isatty():
        raise DataError(
            "-: standard input is the keyboard; pipe an image in: "
            "notan predict - --model FILE < photo.jpg"
        )
    content = source.read(MOST_BYTES + 1)
    if not content:
        raise DataError("-: standard input was empty; wanted the bytes of one image")
    if len(content) > MOST_BYTES:
        raise DataError(f"-: more than {MOST_BYTES:,} bytes on standard input; name a file instead")
    return content


def _name(paths: Sequence[Path]) -> Mapping[Path, str]:
    """Give every file the shortest of its names that no other has."""
    whole = {path: Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    choices = {path: _choices(path, whole[path].relative_to(shared)) for path in paths}
    level = dict.fromkeys(paths, 0)
    while True:
        names = {path: choices[path][level[path]] for path in paths}
        alike = [path for path in _alike(names) if level[path] + 1 < len(choices[path])]
        if not alike:
            break
        for path in alike:
            level[path] += 1
    for path in _alike(names):
        raise DataError(
            f"{path}: its outputs would have the name of another's ({names[path]}); rename one "
            "file, or predict them one after the other with another --out"
        )
    return names


def _choices(path: Path, relative: Path) -> list[str]:
    if path == STANDARD_INPUT:
        return ["stdin", "standard input"]
    return [path.stem, path.name, relative.with_suffix("").as_posix(), relative.as_posix()]


def _alike(names: Mapping[Path, str]) -> list[Path]:
    """Return the files whose outputs would share a name with another's.

    The frames of a video and the pages of a TIFF are not known yet, but how they will be called:
    ``clip-000001``, ``scan-p0001``.
    """
    groups = defaultdict(list)
    for path, name in names.items():
        groups[name.casefold()].append(path)
    alike = [path for group in groups.values() if len(group) > 1 for path in group]
    sequences = {
        name.casefold() for path, name in names.items() if path.suffix.lower() in _SEQUENCES
    }
    for path, name in names.items():
        parent = _PART.sub("", name.casefold())
        if parent != name.casefold() and parent in sequences:
            alike.append(path)
    return alike
