"""``notan pack``: a folder of images and masks becomes a few large files that are read quickly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from notan.cli import flags
from notan.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMG]?)B", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def pack(
    *,
    data_path: flags.DataPath = None,
    out: Annotated[Path | None, flags.flag("FOLDER", help="A new folder for the shards.")] = None,
    shard_size: Annotated[str, arg(metavar="64MB|1GB")] = "256MB",
    overwrite: flags.Switch = False,
    reading: OmitArgPrefixes[flags.ReadingFlags] = flags.READING,
    overrides: flags.Overrides = (),
) -> None:
    """Write images and masks as a few large files.

    The shards are plain tar files, which WebDataset and other programs read too. train, evaluate,
    check and the others take their folder as --data-path, and do the same as with the images
    themselves: a run that was begun on these goes on there, and back.

    Args:
        shard_size: Of a file, about; no image is parted.
        overwrite: Replace packed data that are in --out already.
        overrides: Any other setting of the data: data.layout=coco
    """
    from notan.config import load_run
    from notan.data.packing import pack as pack_data
    from notan.io.remote import shown

    for name, value in (("data-path", data_path), ("out", out)):
        if value is None:
            raise ConfigError(f"--{name} FOLDER is missing: notan pack --data-path D --out shards")
    flags.only_data(overrides, "packing takes")
    settings = {**flags.settings_of(reading), "data.path": data_path}
    data = load_run(flags=settings, overrides=overrides).data
    found = pack_data(data, Path(out or ""), shard_bytes=_bytes_of(shard_size), overwrite=overwrite)
    size = sum(shard.size for shard in found.header.shards.values())
    print(f"{shown(found.folder)}: {found.in_words()}, {size:,} bytes")


def _bytes_of(size: str) -> int:
    """Return a number of bytes as people write it, such as 256MB or 1.5 GB."""
    match = _SIZE.fullmatch(size.strip())
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise ConfigError(f"--shard-size {size}: a size above zero is wanted, such as 64MB or 1GB")
    return count
