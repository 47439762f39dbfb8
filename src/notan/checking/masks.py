"""What the data doctor finds in masks: misread, inverted, shifted, ragged.

Findings about masks whose outline lies beside the image's edges instead of on them.

Kept conservative on purpose: edges lie beside edges in real images, and a false alarm on good
data costs more trust than a missed shift. A single mask is reported only in a folder where most
others fit as they are.

Findings about masks: how they are encoded, which way round, empty, full, ragged, repeated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from notan.checking.alignment import MAP_SIDE, Alignment
from notan.checking.diagnosis import Finding, Severity, number_of
from notan.data.folders import SILENT_ENCODINGS, odd_encodings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from notan.checking.reading import Facts, MaskFacts

FEW = 8
IN_PLACE = 2.0
"""Pixels, at the reduced size, that still count as no shift."""

LEAST_DISTANCE = 3.0
MOST_FIT = 0.6
CLEARLY_BETTER = 3.0
CLEARLY_ALONE = 0.6
POOR_HERE = 1.0
FOLDER_FIT = 2.0
FOLDER_BETTER = 1.0


def check_shifted(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks that would fit much better elsewhere: all of the folder, or single ones."""
    aligned = [(facts, facts.alignment) for facts in samples if facts.alignment]
    if len(aligned) < FEW:
        return
    together = _common_shift([alignment for _, alignment in aligned])
    if together:
        message = (
            f"all {number_of(len(aligned), 'mask')} fit their images' edges best when moved "
            f"{together}; they seem shifted by one step of their making; "
            "look at some overlays and mend that step"
        )
        files = tuple(facts.mask.path for facts, _ in aligned[:FEW] if facts.mask)
        yield Finding("shifted-masks", "warning", message, files)
        return
    in_place = sum(alignment.distance <= IN_PLACE for _, alignment in aligned)
    if in_place < MOST_FIT * len(aligned):
        return
    for facts, alignment in aligned:
        if facts.mask and _is_shifted(alignment):
            message = (
                f"{facts.mask.path}: its outline fits the image's edges far better when moved "
                f"{_way(alignment.down, alignment.right)}, while most other masks fit as they "
                "are; look at the overlay"
            )
            yield Finding("shifted-mask", "warning", message, (facts.mask.path,), facts.split)


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
    return _way(round(down * step), round(right * step))


def _way(down: int, right: int) -> str:
    vertical = f"{abs(down)} pixels {'down' if down > 0 else 'up'}" if down else ""
    horizontal = f"{abs(right)} pixels to the {'right' if right > 0 else 'left'}" if right else ""
    return " and ".join(part for part in (vertical, horizontal) if part)


SOFT = "soft edges, cut at half"
LIKE_SOFT = frozenset({SOFT, "0/255", "0/65535"})
"""Readings of one way of saving masks: some foregrounds have no slanted edge to be soft."""

FEW_MASKS = 8
"""Fewer masks than this say nothing about what is usual in a folder."""

MOST = 0.6
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
    by_encoding: dict[str, list[MaskFacts]] = defaultdict(list)
    for mask in _masks(samples):
        by_encoding[mask.encoding].append(mask)
    if not by_encoding:
        return
    counts = ", ".join(
        f"{number_of(len(masks), 'mask')} {encoding} ({how_read(encoding)})"
        for encoding, masks in sorted(by_encoding.items(), key=lambda item: -len(item[1]))
    )
    examples = tuple(masks[0].path for masks in by_encoding.values())
    yield Finding("mask-encoding", "note", f"masks are read as: {counts}", examples)
    yield from _clashes({name: len(masks) for name, masks in by_encoding.items()}, by_encoding)


def _clashes(
    counts: Mapping[str, int], by_encoding: Mapping[str, Sequence[MaskFacts]]
) -> Iterator[Finding]:
    speaking = {name: count for name, count in counts.items() if name not in SILENT_ENCODINGS}
    odd = odd_encodings(speaking)
    listing = ", ".join(f"{count} {name}" for name, count in sorted(speaking.items()))
    for name in sorted(odd):
        files = tuple(mask.path for mask in by_encoding[name])
        message = (
            f"{files[0]}: {number_of(len(files), 'mask')} of {name} among {listing}; foreground "
            "must "
            "be one value throughout; perhaps these are more classes than two"
        )
        yield Finding("masks-disagree", "error", message, files)
    rest = {name: count for name, count in speaking.items() if name not in odd}
    if len(rest) < 2 or LIKE_SOFT.issuperset(rest):
        return
    usual = max(rest, key=lambda name: rest[name])
    files = tuple(mask.path for name in sorted(rest) if name != usual for mask in by_encoding[name])
    message = (
        f"masks of several encodings stand side by side: {listing}; each is read by its own rule, "
        "but they come from different tools or steps; make sure that foreground means the same in "
        "all"
    )
    yield Finding("mixed-encodings", "warning", message, files)


def how_read(encoding: str) -> str:
    """Say in words which pixels of an encoding are foreground."""
    if encoding.startswith("trimap, trimap_border = "):
        rule = encoding.removeprefix("trimap, trimap_border = ")
        trimap_border = {
            "foreground": "3 foreground",
            "background": "3 background",
            "ignore": "3 left out",
        }[rule]
        return f"1 is foreground, 2 background, {trimap_border}"
    plain = {
        "empty": "no foreground",
        "full": "all foreground",
        "bool": "1 is foreground",
        SOFT: "the brighter half is foreground",
        "black/colour": "black is background, the colour foreground",
    }
    if encoding in plain:
        return plain[encoding]
    return f"{encoding.rpartition('/')[2]} is foreground, 0 background"


def check_empty(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks without foreground: usual for some data, a mistake where they abound."""
    for split, inside in _by_split(samples).items():
        masks = _masks(inside)
        empty = [mask for mask in masks if mask.is_empty]
        for mask in empty:
            severity: Severity = "note"
            found = "the mask holds no foreground; check that this is meant"
            if mask.encoding.startswith("trimap"):
                severity = "warning"
                found = "the trimap holds no pet pixel (1), yet every image here shows a pet"
            message = f"{mask.path}: {found}"
            yield Finding("empty-mask", severity, message, (mask.path,), split)
        if len(empty) > len(masks) / 2:
            message = (
                f"{split}: {len(empty)} of {number_of(len(masks), 'mask')} hold no foreground; "
                "a model that finds nothing would look good here; check how they were written"
            )
            files = tuple(mask.path for mask in empty)
            yield Finding("mostly-empty-masks", "warning", message, files, split)


def check_full(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks without background."""
    for facts in samples:
        if facts.mask and facts.mask.is_full:
            message = (
                f"{facts.mask.path}: the mask is foreground from side to side, without any "
                "background; "
                "check that it is no blank file"
            )
            yield Finding("full-mask", "warning", message, (facts.mask.path,), facts.split)


def check_polarity(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report masks that look the wrong way round: of a whole folder, or single ones."""
    masks = [mask for mask in _masks(samples) if not (mask.is_empty or mask.is_full)]
    framed = [mask for mask in masks if _is_framed(mask)]
    if len(masks) >= 2 and len(framed) > MOST * len(masks):
        message = (
            f"in {len(framed)} of {number_of(len(masks), 'mask')} the foreground covers most of "
            "the "
            "image and of its four sides: foreground and background may be the wrong way round; "
            "foreground "
            "must be the bright value; invert the masks if it is not"
        )
        yield Finding("inverted-masks", "warning", message, tuple(mask.path for mask in framed))
        return
    if len(masks) < FEW_MASKS:
        return
    opposite = _opposite_places(masks)
    for facts in samples:
        mask = facts.mask
        if mask and (mask in framed or mask.path in opposite):
            message = (
                f"{mask.path}: the foreground covers {mask.coverage:.0%} of the image and "
                f"{mask.frame_coverage:.0%} of its four sides, unlike the other masks: foreground "
                "and "
                "background may be the wrong way round; invert it if they are"
            )
            yield Finding("inverted-mask", "warning", message, (mask.path,), facts.split)


def _is_framed(mask: MaskFacts) -> bool:
    return mask.coverage > MOSTLY_FOREGROUND and mask.frame_coverage > FRAMED_BY_FOREGROUND


def _opposite_places(masks: Sequence[MaskFacts]) -> set[object]:
    """Find masks that lie just where the others do not, if the others agree on a place."""
    places = np.stack([mask.place.ravel() for mask in masks if mask.place is not None])
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
    masks = [mask for mask in _masks(samples) if mask.outline_loss > 0 or mask.coverage > 0]
    if len(masks) < FEW_MASKS:
        return
    lone = TIMES_USUAL * float(np.median([mask.lone_share for mask in masks]))
    loss = TIMES_USUAL * float(np.median([mask.outline_loss for mask in masks]))
    for facts in samples:
        mask = facts.mask
        if not (mask and mask.size) or mask.lone_share <= max(LONE_SHARE, lone):
            continue
        if mask.lone_share * mask.size[0] * mask.size[1] < LONE_PIXELS:
            continue
        if mask.outline_loss > max(OUTLINE_LOSS, min(loss, 0.9)):
            message = (
                f"{mask.path}: {mask.lone_share:.1%} of its pixels stand alone, unlike in the "
                "other masks; a lossy format, a threshold or noise may have torn it; save it "
                "again from its source as PNG"
            )
            yield Finding("ragged-mask", "warning", message, (mask.path,), facts.split)


def check_repeated(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report one mask that serves different images: probably saved under a wrong name."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for facts in samples:
        mask = facts.mask
        if mask and mask.digest and not (mask.is_empty or mask.is_full):
            groups[mask.digest].append(facts)
    for group in groups.values():
        images = Counter(facts.image.digest for facts in group if facts.image)
        if len(images) < 2 or len(group) > max(2, REPEATED_SHARE * len(samples)):
            continue  # the same area in most images is a frame, not a mistake
        files = tuple(facts.mask.path for facts in group if facts.mask)
        message = (
            f"{files[0]}: the very same mask as {files[1].name}, for another image; "
            "one of them was probably saved under a wrong name"
        )
        yield Finding("repeated-mask", "warning", message, files)


def _masks(samples: Sequence[Facts]) -> list[MaskFacts]:
    """Return the masks that could be read."""
    return [facts.mask for facts in samples if facts.mask and not facts.mask.fault]


def _by_split(samples: Sequence[Facts]) -> Mapping[str, list[Facts]]:
    splits: dict[str, list[Facts]] = defaultdict(list)
    for facts in samples:
        splits[facts.split].append(facts)
    return splits
