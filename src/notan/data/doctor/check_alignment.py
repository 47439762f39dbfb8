"""Findings about masks whose outline lies beside the image's edges instead of on them.

Kept conservative on purpose: edges lie beside edges in real images, and a false alarm on good
data costs more trust than a missed shift. A single mask is reported only in a folder where most
others fit as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from notan.data.doctor.alignment import MAP_SIDE, Alignment
from notan.data.doctor.diagnosis import Finding, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.data.doctor.reading import Facts

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
