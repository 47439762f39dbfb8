"""Packed data as a source: what ``notan pack`` wrote is read like the folder that it was made of.

Names, order, splits, groups and hashes are those of the folder, and so are the bytes of the files;
``notan.io.packed`` opens them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from notan.config import Masks
from notan.data.annotations.labels import mask_labels, require_values
from notan.data.pets import trimap_labels
from notan.data.samples import FileSource, Labels, Pair, PairFacts
from notan.errors import ConfigError, DataError
from notan.io.packed import find_pack as find_pack
from notan.io.remote import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.config import Data, Layout
    from notan.io.images import ImageReading
    from notan.io.packed import Pack as Pack
    from notan.io.packed import PackedSample

IGNORED = 128
"""The grey value of what is ignored in a mask that was drawn anew, beside 0 and 255."""


def packed_source(pack: Pack, split: str, data: Data, images: ImageReading) -> FileSource:
    """Return a part of packed data as a source.

    Args:
        pack: What was found in a folder.
        split: Of its samples; ``all`` of Oxford's pets is every sample.
        data: What the owner says of the masks.
        images: How image files are read.

    Raises:
        ConfigError: It is not what the pack was made with, and the masks cannot follow.
    """
    everything = split == "all" and pack.header.layout == "pets"
    chosen = [each for each in pack.samples if everything or each.split == split]
    pairs = [packed_pair(pack, sample) for sample in chosen]
    return FileSource(pairs, packed_labels(pack, data), images)


def packed_layout(pack: Pack, data: Data) -> Layout:
    """Return the layout that packed data are read by; that of what was packed may be said too.

    Raises:
        DataError: Another is said.
    """
    header = pack.header
    known = {"auto", header.layout, *((header.resolved.layout,) if header.resolved else ())}
    if data.layout not in known:
        raise DataError(
            f"{shown(pack.folder)}: these are packed data of the layout '{header.layout}', not "
            f"'{data.layout}'; leave the layout out"
        )
    return header.layout


def packed_splits(pack: Pack) -> list[str]:
    """Return the splits that have samples, in the order of the first of each."""
    return list(dict.fromkeys(sample.split for sample in pack.samples))


def packed_pair(pack: Pack, sample: PackedSample) -> Pair:
    """Return where the files of a sample lie, with all that the index knows of them."""
    image, *channels = (pack.path_of(sample, member) for member in sample.images)
    facts = PairFacts(sample.image_hash, sample.content_hash, sample.size, sample.sideways)
    mask = pack.path_of(sample, sample.mask)
    return Pair(sample.name, image, mask, tuple(channels), facts)


def packed_labels(pack: Pack, data: Data) -> Callable[[Path], Labels]:
    """Return how the masks are read.

    Raises:
        ConfigError: The owner says of masks that were drawn anew what they were not drawn by.
    """
    header = pack.header
    if header.layout == "pets":
        return partial(trimap_labels, trimap_border=data.trimap_border)
    if header.resolved is None:
        require_values(data.masks, pack.folder)
        return partial(mask_labels, rule=data.masks)
    drawn_by = header.resolved.masks
    if data.masks not in (Masks(), Masks(folder=data.masks.folder), drawn_by):
        raise ConfigError(
            f"{shown(pack.folder)}: the masks were drawn when the data were packed, with "
            f"{_in_words(drawn_by)}, and now {_in_words(data.masks)} is wanted; leave it out, or "
            "pack the data anew with it"
        )
    if data.exif_orientation != header.resolved.exif_orientation:
        raise ConfigError(
            f"{shown(pack.folder)}: the masks were drawn with data.exif_orientation = "
            f"'{header.resolved.exif_orientation}' when the data were packed; say the same, or "
            "pack the data anew"
        )
    return drawn_labels


def _in_words(masks: Masks) -> str:
    said = masks.model_dump(exclude_defaults=True, mode="json")
    return ", ".join(f"data.masks.{name} = {value}" for name, value in said.items()) or "no choice"


def drawn_labels(path: Path) -> Labels:
    """Read a mask that was drawn for a pack: 0, 255 and, ignored, 128.

    Raises:
        DataError: The file is unreadable.
    """
    labels = mask_labels(path, rule=Masks(ignore=(IGNORED,)))
    is_used = labels.ignore is not None and bool(labels.ignore.any())
    return Labels(labels.mask, labels.ignore if is_used else None, labels.encoding)
