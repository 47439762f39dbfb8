"""What the data doctor says of masks: misread, inverted, empty, ragged, repeated, shifted."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from notan.checking.alignment import MAP_SIDE, Alignment, shift_in_words
from notan.checking.diagnosis import Finding, number_of
from notan.data.survey import SILENT_ENCODINGS, odd_encodings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.checking.reading import Facts, MaskFacts

FEW_MASKS = 8
"""Fewer masks than this say nothing about what is usual in a folder."""

MOST = 0.6
"""Share of the masks from which on something is usual in a folder."""

SOFT = "soft edges, cut at half"
LIKE_SOFT = frozenset({SOFT, "0/255", "0/65535"})
"""Readings of one way of saving masks: some foregrounds have no slanted edge to be soft."""

MEANINGS = {
    "empty": "no foreground",
    "full": "all foreground",
    "bool": "1 is foreground",
    SOFT: "the brighter half is foreground",
    "black/colour": "black is background, the colour foreground",
    "trimap, trimap_border = foreground": "1 is foreground, 2 background, 3 foreground",
    "trimap, trimap_border = background": "1 is foreground, 2 background, 3 background",
    "trimap, trimap_border = ignore": "1 is foreground, 2 background, 3 left out",
}
"""Which pixels are foreground, by encoding; every other one is two values, ``low/high``."""

MOSTLY_FOREGROUND = 0.6
FRAMED_BY_FOREGROUND = 0.8
"""Real close-ups, foregrounds that fill the image, cover up to two thirds of its four sides."""

USUAL_PLACE = 0.3
OPPOSITE_PLACE = -0.45

LONE_SHARE = 0.01
OUTLINE_LOSS = 0.4
TIMES_USUAL = 2.5
"""Noise on 2 of 100 pixels gives 0.02 and over 0.45; real masks, fine ones too, stay below one."""

LONE_PIXELS = 50
"""In tiny images, a thin corner is a large share."""

REPEATED_SHARE = 0.1


def check_encodings(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Note how the masks are read; report encodings that do not go together."""
    by_encoding: dict[str, list[Path]] = defaultdict(list)
    for mask in _masks(samples):
        by_encoding[mask.encoding].append(mask.path)
    if not by_encoding:
        return
    counts = ", ".join(
        f"{number_of(len(files), 'mask')} {encoding} ({how_read(encoding)})"
        for encoding, files in sorted(by_encoding.items(), key=lambda item: -len(item[1]))
    )
    examples = tuple(files[0] for files in by_encoding.values())
    yield Finding("mask-encoding", "note", f"masks are read as: {counts}", examples)
    yield from _clashes(by_encoding)


def how_read(encoding: str) -> str:
    """Say in words which pixels of an encoding are foreground."""
    high = encoding.rpartition("/")[2]
    return MEANINGS.get(encoding, f"{high} is foreground, 0 background")


def _clashes(by_encoding: Mapping[str, Sequence[Path]]) -> Iterator[Finding]:
    """Report encodings whose foregrounds clash, and those that only stand side by side."""
    counts = {
        name: len(files) for name, files in by_encoding.items() if name not in SILENT_ENCODINGS
    }
    odd = odd_encodings(counts)
    listing = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    for name in sorted(odd):
        files = tuple(by_encoding[name])
        message = (
            f"{files[0]}: {number_of(len(files), 'mask')} of {name} among {listing}; foreground "
            "must be one value throughout; perhaps these are more classes than two"
        )
        yield Finding("masks-disagree", "error", message, files)
    rest = {name: count for name, count in counts.items() if name not in odd}
    if len(rest) < 2 or LIKE_SOFT.issuperset(rest):
        return
    usual = max(rest, key=lambda name: rest[name])
    files = tuple(path for name in sorted(rest) if name != usual for path in by_encoding[name])
    message = (
        f"masks of several encodings stand side by side: {listing}; each is read by its own rule, "
        "but they come from different tools or steps; make sure that foreground means the same in "
        "all"
    )
    yield Finding("mixed-encodings", "warning", message, files)


def check_empty(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks without foreground: usual for some data, a mistake where they abound."""
    by_split: dict[str, list[MaskFacts]] = defaultdict(list)
    for mask in _masks(samples):
        by_split[mask.split].append(mask)
    for split, masks in by_split.items():
        empty = [mask for mask in masks if mask.is_empty]
        for mask in empty:
            if mask.encoding.startswith("trimap"):
                found = "the trimap holds no pet pixel (1), yet every image here shows a pet"
                yield mask.finding("empty-mask", found)
            else:
                found = "the mask holds no foreground; check that this is meant"
                yield mask.finding("empty-mask", found, "note")
        if len(empty) > len(masks) / 2:
            message = (
                f"{split}: {len(empty)} of {number_of(len(masks), 'mask')} hold no foreground; "
                "a model that finds nothing would look good here; check how they were written"
            )
            files = tuple(mask.path for mask in empty)
            yield Finding("mostly-empty-masks", "warning", message, files, split)


def check_full(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks without background."""
    for mask in _masks(samples):
        if mask.is_full:
            yield mask.finding(
                "full-mask",
                "the mask is foreground from side to side, without any background; check that it "
                "is no blank file",
            )


def check_polarity(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks that look the wrong way round: of a whole folder, or single ones."""
    masks = [mask for mask in _masks(samples) if not (mask.is_empty or mask.is_full)]
    framed = tuple(mask.path for mask in masks if _is_framed(mask))
    if len(masks) >= 2 and len(framed) > MOST * len(masks):
        message = (
            f"in {len(framed)} of {number_of(len(masks), 'mask')} the foreground covers most of "
            "the image and of its four sides: foreground and background may be the wrong way "
            "round; foreground must be the bright value; invert the masks if it is not"
        )
        yield Finding("inverted-masks", "warning", message, framed)
    elif len(masks) >= FEW_MASKS:
        suspects = _opposite_places(masks).union(framed)
        for mask in masks:
            if mask.path in suspects:
                yield mask.finding(
                    "inverted-mask",
                    f"the foreground covers {mask.coverage:.0%} of the image and "
                    f"{mask.frame_coverage:.0%} of its four sides, unlike the other masks: "
                    "foreground and background may be the wrong way round; invert it if they are",
                )


def _is_framed(mask: MaskFacts) -> bool:
    return mask.coverage > MOSTLY_FOREGROUND and mask.frame_coverage > FRAMED_BY_FOREGROUND


def _opposite_places(masks: Sequence[MaskFacts]) -> set[Path]:
    """Find masks that lie just where the others do not, if the others agree on a place."""
    places = np.stack([mask.place.ravel() for mask in masks])
    others = (places.sum(axis=0) - places) / (len(places) - 1)
    mine = places - places.mean(axis=1, keepdims=True)
    theirs = others - others.mean(axis=1, keepdims=True)
    length = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    likeness = (mine * theirs).sum(axis=1) / np.maximum(length, 1e-9)
    if np.median(likeness) < USUAL_PLACE:
        return set()
    return {mask.path for mask, like in zip(masks, likeness, strict=True) if like < OPPOSITE_PLACE}


def check_ragged(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks with far more lone pixels than the others: noise, or a lossy format."""
    every = _masks(samples)
    usual = [mask for mask in every if mask.outline_loss > 0 or mask.coverage > 0]
    if len(usual) < FEW_MASKS:
        return
    lone = TIMES_USUAL * float(np.median([mask.lone_share for mask in usual]))
    loss = TIMES_USUAL * float(np.median([mask.outline_loss for mask in usual]))
    for mask in every:
        if (
            mask.lone_share > max(LONE_SHARE, lone)
            and mask.lone_share * mask.size[0] * mask.size[1] >= LONE_PIXELS
            and mask.outline_loss > max(OUTLINE_LOSS, min(loss, 0.9))
        ):
            yield mask.finding(
                "ragged-mask",
                f"{mask.lone_share:.1%} of its pixels stand alone, unlike in the other masks; a "
                "lossy format, a threshold or noise may have torn it; save it again from its "
                "source as PNG",
            )


def check_repeated(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report one mask that serves different images: probably saved under a wrong name."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for facts in samples:
        if facts.mask and not (facts.mask.is_empty or facts.mask.is_full):
            groups[facts.mask.digest].append(facts)
    for group in groups.values():
        images = {facts.image.digest for facts in group if facts.image}
        if len(images) < 2 or len(group) > max(2, REPEATED_SHARE * len(samples)):
            continue  # the same area in most images is a frame, not a mistake
        files = tuple(mask.path for mask in _masks(group))
        message = (
            f"{files[0]}: the very same mask as {files[1].name}, for another image; "
            "one of them was probably saved under a wrong name"
        )
        yield Finding("repeated-mask", "warning", message, files)


IN_PLACE = 2.0
"""Pixels, at the reduced size, that still count as no shift."""

LEAST_DISTANCE = 3.0
CLEARLY_BETTER = 3.0
CLEARLY_ALONE = 0.6
POOR_HERE = 1.0
FOLDER_FIT = 2.0
FOLDER_BETTER = 1.0


def check_turned(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks that were drawn on images before these were turned by their EXIF orientation.

    Where the sizes agree (180 degrees, mirrors, squares) only the content tells.
    """
    fits = [(mask, mask.alignment, mask.turned) for mask in _masks(samples) if mask.turned]
    if not fits:
        return
    better = sum(turned.here > as_read.here for _, as_read, turned in fits if as_read and turned)
    files = tuple(mask.path for mask, *_ in fits)
    what = f"{number_of(len(fits), 'image')} turned by the EXIF orientation"
    if better >= MOST * len(fits):
        yield Finding(
            "turned-masks",
            "error",
            f"{what}, and {better} masks fit the images as they are stored better: they were "
            "drawn on unturned images; add --exif-orientation ignore",
            files,
        )
    else:
        yield Finding(
            "turned-images",
            "note",
            f"{what}; the masks fit them upright; if they were drawn on unturned images all the "
            "same, add --exif-orientation ignore",
            files,
        )


def check_shifted(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks that would fit much better elsewhere: all of the folder, or single ones.

    Kept conservative on purpose: edges lie beside edges in real images, and a false alarm on good
    data costs more trust than a missed shift. A single mask is reported only in a folder where
    most others fit as they are.
    """
    aligned = [(mask, mask.alignment) for mask in _masks(samples) if mask.alignment]
    if len(aligned) < FEW_MASKS:
        return
    together = _common_shift([alignment for _, alignment in aligned])
    if together:
        message = (
            f"all {number_of(len(aligned), 'mask')} fit their images' edges best when moved "
            f"{together}; they seem shifted by one step of their making; "
            "look at some overlays and mend that step"
        )
        files = tuple(mask.path for mask, _ in aligned[:FEW_MASKS])
        yield Finding("shifted-masks", "warning", message, files)
        return
    in_place = sum(alignment.distance <= IN_PLACE for _, alignment in aligned)
    if in_place < MOST * len(aligned):
        return
    for mask, alignment in aligned:
        if _is_shifted(alignment):
            yield mask.finding(
                "shifted-mask",
                "its outline fits the image's edges far better when moved "
                f"{shift_in_words(alignment.down, alignment.right)}, while most other masks fit "
                "as they are; look at the overlay",
            )


def _is_shifted(alignment: Alignment) -> bool:
    return (
        alignment.distance > LEAST_DISTANCE
        and alignment.best - alignment.here > CLEARLY_BETTER
        and alignment.best - alignment.rival > CLEARLY_ALONE
        and alignment.here < POOR_HERE
    )


def _common_shift(alignments: Sequence[Alignment]) -> str | None:
    """Say by how much all masks are shifted, or None; chance fits of single images cancel."""
    fits = np.mean([alignment.fits for alignment in alignments], axis=0)
    middle = MAP_SIDE // 2
    row, column = np.unravel_index(int(fits.argmax()), fits.shape)
    down, right = int(row) - middle, int(column) - middle
    here = float(fits[middle - 1 : middle + 2, middle - 1 : middle + 2].max())
    best = float(fits.max())
    if np.hypot(down, right) <= LEAST_DISTANCE or best < FOLDER_FIT or best - here < FOLDER_BETTER:
        return None
    step = float(np.median([alignment.step for alignment in alignments]))
    return shift_in_words(round(down * step), round(right * step))


def _masks(samples: Sequence[Facts]) -> list[MaskFacts]:
    """Return the masks that could be read."""
    return [facts.mask for facts in samples if facts.mask]
