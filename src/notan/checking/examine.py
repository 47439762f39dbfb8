"""Examine: read a data folder once, run every check, and return the diagnosis."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from notan.checking import files, masks
from notan.checking.diagnosis import Diagnosis, Finding, SplitStatistics, worst_first
from notan.checking.reading import UNLISTED, SampleReader, collect, read_choices
from notan.config import Data
from notan.data.folders import find_layout
from notan.errors import DataError
from notan.runtime import count_cores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.checking.diagnosis import Three
    from notan.checking.reading import Entry, Facts

AS_IT_STANDS = Data()

MOST_THREADS = 8
"""Decoders let go of the interpreter's lock; numpy's small steps between them do not."""

CHECKS = (
    files.check_pair_sizes,
    files.check_copies,
    files.check_near_copies,
    masks.check_encodings,
    masks.check_polarity,
    masks.check_empty,
    masks.check_full,
    masks.check_ragged,
    masks.check_repeated,
    masks.check_turned,
    masks.check_shifted,
    files.check_images,
    files.check_drift,
)
"""Every check reads the facts of all samples and yields findings."""


def examine(folder: Path, data: Data = AS_IT_STANDS, *, progress: bool = True) -> Diagnosis:
    """Look at every image and mask of a data folder once, and say what is wrong with it.

    Nothing that is wrong with a file raises: it becomes a finding.

    Args:
        folder: A data folder.
        data: How its files are read; its path is not asked.
        progress: Show a bar on a terminal once it takes longer than a second.

    Raises:
        DataError: The folder is missing, of neither layout, or holds no image at all.
    """
    data = data.model_copy(update={"path": folder})
    layout = find_layout(data)
    entries, findings = collect(folder, layout, data.masks.folder)
    choices, reading = read_choices(entries, data)
    findings += choices
    try:
        reader = SampleReader(layout, data, reading)
    except DataError as error:
        findings.append(Finding("several-classes", "error", str(error)))
        entries = [replace(entry, mask=None) for entry in entries]
        reader = SampleReader("folder", data, reading)
    samples = _read_all(entries, reader, progress=progress)
    findings += (finding for facts in samples for finding in facts.findings)
    for check in CHECKS:
        findings += check(samples)
    return Diagnosis(
        folder=folder,
        layout=layout,
        trimap_border=data.trimap_border,
        data=data.model_copy(update={"white": reading.white}),
        reading=reading,
        findings=_unique(findings),
        statistics=_statistics(samples),
        pairs=_pairs_named(findings, entries),
    )


def _read_all(entries: Sequence[Entry], reader: SampleReader, *, progress: bool) -> list[Facts]:
    threads = min(MOST_THREADS, count_cores())
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(reader.read, entries)
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


def _unique(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Drop repetitions and sort by severity; what no split reads is at most a warning."""
    judged = (
        replace(each, severity="warning")
        if each.split == UNLISTED and each.severity == "error"
        else each
        for each in findings
    )
    return worst_first(list({(each.kind, each.message): each for each in judged}.values()))


def _pairs_named(
    findings: Sequence[Finding], entries: Sequence[Entry]
) -> tuple[tuple[Path, Path], ...]:
    named = {path for finding in findings for path in finding.files}
    return tuple(
        (entry.image, entry.mask)
        for entry in entries
        if entry.image and entry.mask and (entry.image in named or entry.mask in named)
    )


def _statistics(samples: Sequence[Facts]) -> tuple[SplitStatistics, ...]:
    """Return the numbers of each split that has a readable image, in the order of the splits."""
    splits = dict.fromkeys(facts.entry.split for facts in samples if facts.image)
    return tuple(
        _of_split(split, [facts for facts in samples if facts.entry.split == split])
        for split in splits
    )


def _of_split(split: str, samples: Sequence[Facts]) -> SplitStatistics:
    images = [facts.image for facts in samples if facts.image]
    read_masks = [facts.mask for facts in samples if facts.mask]
    means = np.array([image.colour_mean for image in images]) / 255
    deviations = np.array([image.colour_std for image in images]) / 255
    mean = means.mean(axis=0)
    # all pixels' variance: within the images, and between them
    deviation = np.sqrt((deviations**2 + means**2).mean(axis=0) - mean**2)
    heights, widths = zip(*(image.size for image in images), strict=True)
    return SplitStatistics(
        split=split,
        images=len(images),
        masks=len(read_masks),
        height=(min(heights), round(float(np.median(heights))), max(heights)),
        width=(min(widths), round(float(np.median(widths))), max(widths)),
        colour_mean=tuple(mean.round(6).tolist()),
        colour_std=tuple(deviation.round(6).tolist()),
        coverage=_three(np.quantile([mask.coverage for mask in read_masks] or [0.0], (0, 0.5, 1))),
        encodings=dict(Counter(mask.encoding for mask in read_masks).most_common()),
    )


def _three(values: npt.NDArray[np.float64]) -> Three:
    first, second, third = (round(float(value), 6) for value in values)
    return first, second, third
