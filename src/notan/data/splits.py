"""Splits: which images are set aside, so that what belongs together stays on one side."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

from notan.errors import ConfigError, DataError
from notan.io.digest import sha256

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_COLUMN = re.compile(r"(?P<file>.+\.csv):(?P<column>.+)", re.IGNORECASE)


def choose_validation(
    names: Sequence[str],
    *,
    fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
    empty: Collection[str] = (),
) -> frozenset[str]:
    """Choose which images are set aside for validation.

    The choice depends on the names, the groups, the empty masks and the seed, not on the order of
    the files or on a random generator, so the same folder is split alike on every machine. Where
    chance keeps the groups whole and the share of empty masks, groups and masks change nothing.

    Args:
        names: All images to divide; at least two.
        fraction: The share to set aside, above 0 and below 1; at least one image is set
            aside and at least one is left. Large groups may make it more or less.
        seed: Another seed makes another split.
        groups: Images of one group stay on one side; an image without a group is one by itself.
        empty: Images without foreground, which are set aside in proportion: validation holds
            foreground where two images have it.
    """
    count = min(max(1, round(len(names) * fraction)), len(names) - 1)
    order = _in_hash_order(names, seed)
    units = _units(order, groups or {})
    if len(units) < 2:
        units = [[name] for name in order]
    empty = frozenset(empty)
    room = _rooms(order, count, empty)
    chosen: list[list[str]] = []
    for unit in units:
        needs = Counter(name in empty for name in unit)
        if needs[True] <= room[True] and needs[False] <= room[False]:
            room.subtract(needs)
            chosen.append(unit)
    chosen += _more_units(units, chosen, count, empty)
    return frozenset(name for unit in chosen for name in unit)


def _rooms(order: Sequence[str], count: int, empty: frozenset[str]) -> Counter[bool]:
    """Return how many images without foreground are set aside (True), and with it (False)."""
    without = sum(name in empty for name in order)
    with_foreground = len(order) - without
    by_chance = sum(name in empty for name in order[:count])
    share = count * without / len(order)
    wanted = count - min(max(by_chance, floor(share)), ceil(share))
    # one to validate on, and one to train on before that
    wanted = min(max(wanted, min(1, with_foreground - 1)), max(with_foreground - 1, 0))
    return Counter({True: count - max(wanted, 0), False: max(wanted, 0)})


def _more_units(
    units: Sequence[list[str]], chosen: Sequence[list[str]], count: int, empty: frozenset[str]
) -> list[list[str]]:
    """Return groups that are too large for the room that is left, but bring the count nearer."""
    taken = sum(map(len, chosen))
    rest = [unit for unit in units if unit not in chosen]
    more: list[list[str]] = []
    judged = any(name not in empty for unit in chosen for name in unit)
    # with foreground first, and of those without any chosen the smallest
    for unit in sorted(rest, key=lambda unit: (empty.issuperset(unit), len(unit) * (not judged))):
        has_foreground = not empty.issuperset(unit)
        left = [each for each in rest if each is not unit and each not in more]
        teaches = any(not empty.issuperset(each) for each in left)
        wanted = not taken or (has_foreground and not judged)
        wanted = wanted or abs(taken + len(unit) - count) < abs(taken - count)
        if left and wanted and (teaches or not has_foreground):
            more.append(unit)
            taken += len(unit)
            judged = judged or has_foreground
    return more


def choose_folds(
    names: Sequence[str],
    count: int,
    *,
    seed: int,
    groups: Mapping[str, str] | None = None,
    empty: Collection[str] = (),
) -> tuple[frozenset[str], ...]:
    """Divide images into parts for cross-validation, their sizes as equal as groups allow.

    As above, the order of the files does not matter.

    Args:
        names: All images to divide, each once; at least ``count``.
        count: How many parts, at least 2.
        seed: Another seed makes other parts.
        groups: Images of one group stay in one part. Fewer groups than parts are not kept whole.
        empty: Images without foreground, of which each part gets its share.
    """
    order = _in_hash_order(names, seed)
    units = _units(order, groups or {})
    if len(units) < count:
        units = [[name] for name in order]
    folds: list[list[str]] = [[] for _ in range(count)]
    empty = frozenset(empty)
    for unit in sorted(units, key=empty.issuperset):
        min(folds, key=len).extend(unit)
    return tuple(map(frozenset, folds))


def _in_hash_order(names: Sequence[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: sha256(f"{seed}:{name}"))


def _units(order: Sequence[str], groups: Mapping[str, str]) -> list[list[str]]:
    units: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for name in order:
        units[groups.get(name, name), name in groups].append(name)
    return list(units.values())


def name_groups(names: Sequence[str], group_by: str | None) -> dict[str, str]:
    """Return the group of each image that is in one, by what the owner says of them.

    Args:
        names: The images.
        group_by: A regular expression that is looked for in each name: what its first brackets
            match is the group, or all of the match where it has none. Or ``FILE.csv:COLUMN``: a
            table with the images' names in the column ``image`` or ``name``, else in the first.

    Raises:
        ConfigError: The expression is none, or is found in no name.
        DataError: The table cannot be read, lacks the column, or has no row of an image.
    """
    if group_by is None:
        return {}
    table = _COLUMN.fullmatch(group_by)
    if table:
        return _from_table(names, Path(table["file"]), table["column"])
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ConfigError(
            f"data.group_by = '{group_by}': no regular expression ({error}); wanted one that is "
            "found in the images' names, such as '^[^_]+', or FILE.csv:COLUMN"
        ) from error
    found = {name: match for name in names if (match := pattern.search(name))}
    if not found:
        raise ConfigError(
            f"data.group_by = '{group_by}': found in none of the {len(names)} names, such as "
            f"{min(names, default='(none)')}; wanted a regular expression for what images of one "
            "group share, or FILE.csv:COLUMN"
        )
    return {name: match[bool(match.re.groups)] or match[0] for name, match in found.items()}


def _from_table(names: Sequence[str], path: Path, column: str) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: the groups cannot be read ({error}); wanted a CSV in UTF-8 with a line of "
            "column names"
        ) from error
    columns = [name for name in (rows[0] if rows else ()) if name]
    if column not in columns:
        raise DataError(
            f"{path}: there is no column '{column}'; it has {', '.join(columns) or 'no row'}"
        )
    named = next((each for each in ("image", "name") if each in columns), columns[0])
    by_name = {row[named]: row[column] or "" for row in rows if row[named]}
    by_stem = {Path(name).stem: group for name, group in by_name.items()}
    groups = {name: by_name.get(name, by_stem.get(name)) for name in names}
    missing = [name for name, group in groups.items() if group is None]
    if missing:
        raise DataError(
            f"{path}: the image {missing[0]} has no row, nor have {len(missing) - 1} others; "
            f"every image needs one, with its name in the column '{named}'"
        )
    return {name: group for name, group in groups.items() if group}


def join_groups(
    groups: Mapping[str, str], linked: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], int]:
    """Put images that are linked into one group, with all that are grouped with them already.

    Args:
        groups: Of images that are in one.
        linked: Pairs of images.

    Returns:
        The groups, each called by its first image, and how many images were linked.
    """
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while name in above:
            name = above[name]
        return name

    links = list(linked)
    first_of: dict[str, str] = {}
    grouped = [(first_of.setdefault(group, name), name) for name, group in groups.items()]
    for one, other in (*grouped, *links):
        ends = sorted({top(one), top(other)})
        if len(ends) == 2:
            above[ends[1]] = ends[0]
    members = {*groups, *(name for link in links for name in link)}
    return {name: top(name) for name in members}, len({n for link in links for n in link})
