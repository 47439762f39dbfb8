"""examine: read a data folder once, judge what was read, and return the diagnosis."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, get_args

from tqdm import tqdm

from notan.config import Data, TrimapBorder
from notan.data.build import find_layout
from notan.data.doctor.check_alignment import check_shifted
from notan.data.doctor.check_copies import check_contradictions, check_copies, check_near_copies
from notan.data.doctor.check_files import (
    check_blank,
    check_extreme_sizes,
    check_faults,
    check_formats,
    check_pair_sizes,
)
from notan.data.doctor.check_masks import (
    check_empty,
    check_encodings,
    check_full,
    check_polarity,
    check_ragged,
    check_repeated,
)
from notan.data.doctor.collect import UNLISTED, collect
from notan.data.doctor.diagnosis import SEVERITIES, Diagnosis, Finding, milder
from notan.data.doctor.reading import mask_reader, read_sample
from notan.data.doctor.statistics import check_drift, split_statistics
from notan.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Literal

    from notan.data.doctor.collect import Entry
    from notan.data.doctor.reading import Facts

MOST_THREADS = 8
"""Decoders let go of the interpreter's lock; numpy's small steps between them do not."""

CHECKS = (
    check_faults,
    check_pair_sizes,
    check_copies,
    check_contradictions,
    check_near_copies,
    check_formats,
    check_encodings,
    check_polarity,
    check_empty,
    check_full,
    check_ragged,
    check_repeated,
    check_shifted,
    check_extreme_sizes,
    check_blank,
    check_drift,
)
"""Every check reads the facts of all samples and yields findings."""


def examine(
    folder: Path,
    *,
    trimap_border: TrimapBorder = "foreground",
    layout: Literal["auto", "pets", "folder"] = "auto",
    progress: bool = True,
) -> Diagnosis:
    """Look at every image and mask of a data folder once, and say what is wrong with it.

    Nothing that is wrong with a file raises: it becomes a finding.

    Args:
        folder: A data folder of either layout.
        trimap_border: What the border of trimaps counts as.
        layout: ``"pets"``, ``"folder"``, or ``"auto"`` to look.
        progress: Show a bar on a terminal once it takes longer than a second.

    Raises:
        ConfigError: There is no such border rule or layout.
        DataError: The folder is missing, of neither layout, or holds no image at all.
    """
    _require_known("trimap_border", trimap_border, get_args(TrimapBorder))
    _require_known("layout", layout, ("auto", "pets", "folder"))
    layout_found = find_layout(Data(path=folder, layout=layout))
    collection = collect(folder, layout_found)
    samples = _read_all(collection.entries, layout_found, trimap_border, progress=progress)
    findings = [*collection.findings]
    for check in CHECKS:
        findings += check(samples)
    return Diagnosis(
        folder=folder,
        layout=layout_found,
        trimap_border=trimap_border,
        findings=_worst_first(findings),
        statistics=split_statistics(samples),
        pairs=_pairs_named(findings, collection.entries),
    )


def _require_known(what: str, word: str, options: Sequence[str]) -> None:
    if word not in options:
        raise ConfigError(f"{what} = '{word}': there is no such {what}{nearest(word, options)}")


def _read_all(
    entries: Sequence[Entry], layout: str, trimap_border: TrimapBorder, *, progress: bool
) -> list[Facts]:
    read = mask_reader(layout, trimap_border)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(lambda entry: read_sample(entry, read), entries)
        bar = tqdm(
            work,
            total=len(entries),
            desc="examining",
            unit="image",
            leave=False,
            delay=1,
            disable=None if progress else True,
        )
        return list(bar)


def _worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Drop repetitions, be mild on files that no split reads, and sort by severity."""
    judged = [milder(each) if each.split == UNLISTED else each for each in findings]
    unique = {(each.kind, each.message): each for each in judged}
    return tuple(sorted(unique.values(), key=lambda each: SEVERITIES.index(each.severity)))


def _pairs_named(
    findings: Sequence[Finding], entries: Sequence[Entry]
) -> tuple[tuple[Path, Path], ...]:
    named = {path for finding in findings for path in finding.files}
    return tuple(
        (entry.image, entry.mask)
        for entry in entries
        if entry.image and entry.mask and (entry.image in named or entry.mask in named)
    )
