"""Damaged annotation files and masks, the same each time; and a program to read them all.

As a program it reads every folder of annotations and every mask of a folder in one process, under a
limit of memory, and prints as JSON what came of each: read, refused, or broken in some other way.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import damaged_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMATS = Path(__file__).parent / "annotations"
TEXTS = (".json", ".geojson", ".xml", ".yaml", ".txt", ".csv", ".parquet")
CUTS, FLIPS, SWAPS = 3, 3, 5
"""Of each format: files that are cut short, whose bits flip, and whose values change."""

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e300, -1e9, "", "x", "../../x.png", "/etc/passwd", "a\0b"),
    *([], {}, [[]], [0] * 9, [[1, 2]] * 3, {"size": [2, 2], "counts": "PPP"}, "é" * 300),
)


def damaged(folder: Path) -> Iterator[Path]:
    """Copy each format some times, one annotation file damaged in each copy; yield the copies."""
    chance = random.Random(16)
    for whole in sorted(each for each in FORMATS.iterdir() if each.is_dir()):
        texts = [path for path in sorted(whole.rglob("*")) if path.suffix in TEXTS]
        if not texts or whole.name.startswith("truth"):
            continue
        ways: list[tuple[str, Callable[[bytes, random.Random], bytes]]] = [
            *(("cut", cut) for _ in range(CUTS)),
            *(("flipped", flip) for _ in range(FLIPS)),
            *(("swapped", swap) for _ in range(SWAPS)),
        ]
        for number, (name, damage) in enumerate(ways):
            path = chance.choice(texts)
            if name == "swapped" and path.suffix not in (".json", ".geojson"):
                continue
            place = folder / f"{whole.name}-{name}-{number}"
            shutil.copytree(whole, place)
            changed = place / path.relative_to(whole)
            changed.write_bytes(damage(path.read_bytes(), chance))
            yield place


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) or 1)]


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 8, 64)) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def swap(content: bytes, chance: random.Random) -> bytes:
    """Put something else in one place of a JSON file."""
    whole = json.loads(content)
    places = list(_places(whole))
    holder, key = chance.choice(places)
    holder[key] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(whole).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where a value may be put: few numbers of the long lists, everything else."""
    keys = node if isinstance(node, dict) else range(min(len(node), 3))
    for key in keys:
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


def read_all(folder: Path) -> dict[str, str]:
    """Read every annotated folder and every mask; a word, or why not, for each."""
    from notan.io.masks import read_mask

    said: dict[str, str] = {}
    for path in sorted((folder / "annotations").iterdir()):
        said[path.name] = _outcome(lambda path=path: _read_folder(path))  # type: ignore[misc]
    for path in sorted((folder / "masks").iterdir()):
        said[path.name] = _outcome(lambda path=path: read_mask(path))  # type: ignore[misc]
    return said


def _outcome(work: Callable[[], object]) -> str:
    from notan.errors import ConfigError, DataError

    try:
        work()
    except (ConfigError, DataError) as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - anything else is what the test looks for
        return f"broken: {type(error).__name__}: {error}"
    return "read"


def _read_folder(path: Path) -> None:
    from notan.config import Data, Masks
    from notan.data.annotations.formats import read_annotations
    from notan.data.folders import find_layout, open_split

    table = path.name.startswith(("csv", "parquet", "voc-void"))
    masks = Masks(foreground=(1,) if table else ("cell",), crowd="foreground")
    data = Data(path=path, masks=masks)
    layout = find_layout(data)
    # a table that is one no more leaves the folders beside it
    splits = ["all"] if layout == "folder" else read_annotations(path, layout).pairs
    for split in splits:
        for sample in open_split(data, split, seed=0):
            assert sample.mask.shape == sample.image.shape[:2]


if __name__ == "__main__":
    import cv2
    import pyarrow.parquet

    import notan.data.folders  # noqa: F401 - what is imported belongs to the idle program

    cv2.setNumThreads(1)
    pyarrow.set_cpu_count(1)
    damaged_files._limit_memory()
    print(json.dumps(read_all(Path(sys.argv[1]))))  # noqa: T201 - the program's answer
