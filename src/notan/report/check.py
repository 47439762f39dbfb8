"""The data doctor's page: findings with thumbnails and each split's numbers, in one HTML file."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from notan.data.doctor.diagnosis import SEVERITIES, number_of
from notan.labels.explanations import KINDS
from notan.report.check_labels import label_section
from notan.report.check_thumbnails import Thumbnails
from notan.report.check_words import reason_of, title_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.data.doctor import Diagnosis, Finding, SplitStatistics
    from notan.labels.search import LabelSearch

MOST_MESSAGES = 100
"""Findings of one kind that the page puts into words; the JSON beside it has all."""

MOST_THUMBNAILS = 12
MOST_OPEN = 3
"""More findings of one kind than this are folded away."""

WITHOUT_THUMBNAILS = frozenset(
    {"mask-encoding", "ignored-file", "label-unjudged", "label-disagreement"}
    | {f"label-{kind}" for kind in KINDS}  # the section about labels shows them
)
HEADINGS = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
MARKS = {"error": "✕", "warning": "!", "clean": "✓"}


def check_page(diagnosis: Diagnosis, search: LabelSearch | None = None) -> str:
    """Return the page: one HTML text with its pictures and its style inside.

    Args:
        diagnosis: What the doctor found. Of the files that findings name, up to 12 of each kind
            are read again to be shown.
        search: The ranking of the masks, where there is one; the first 12 are shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    template = Template(files("notan.report").joinpath("templates/check.html").read_text("utf-8"))
    state = next((each for each in ("error", "warning") if diagnosis.count(each)), "clean")
    return template.substitute(
        folder=_breakable(str(diagnosis.folder)),
        name=escape(diagnosis.folder.resolve().name),
        state=state,
        mark=MARKS[state],
        verdict=escape(diagnosis.verdict()),
        counts="".join(_counts(diagnosis)),
        findings="".join(_groups(diagnosis)) or "<p>There is nothing to report.</p>",
        labels=label_section(search) if search else "",
        statistics="".join(_row(split) for split in diagnosis.statistics),
    )


def _counts(diagnosis: Diagnosis) -> Iterator[str]:
    for severity in SEVERITIES:
        count = diagnosis.count(severity)
        word = number_of(count, severity)
        if count:
            yield f'<li class="{severity}"><a href="#{severity}">{word}</a></li>'
        else:
            yield f'<li class="none">{word}</li>'


def _groups(diagnosis: Diagnosis) -> Iterator[str]:
    """Write a heading for each severity, and below it an article for each kind."""
    thumbnails = Thumbnails(diagnosis)
    last = None
    for (severity, kind), findings in diagnosis.grouped().items():
        if severity != last:
            yield f'<h2 id="{severity}">{HEADINGS[severity]}</h2>'
            last = severity
        count = f' <span class="count">{len(findings)}</span>' if len(findings) > 1 else ""
        yield f'<article class="{severity}"><h3>{escape(title_of(kind))}{count}</h3>'
        if reason_of(kind):
            yield f"<p>{escape(reason_of(kind))}</p>"
        yield '<div class="body">'
        if kind not in WITHOUT_THUMBNAILS:
            yield from _gallery(diagnosis, thumbnails, findings)
        yield from _messages(diagnosis, findings)
        yield "</div></article>"


def _messages(diagnosis: Diagnosis, findings: Sequence[Finding]) -> Iterator[str]:
    lines = [f"<li>{_breakable(diagnosis.brief(each.message))}</li>" for each in findings]
    more = len(lines) - MOST_MESSAGES
    tail = f"<li>... and {more} more, all of them in check.json</li>" if more > 0 else ""
    listing = f"<ul>{''.join(lines[:MOST_MESSAGES])}{tail}</ul>"
    if len(lines) > MOST_OPEN:
        listing = f"<details><summary>All {len(lines)} in words</summary>{listing}</details>"
    yield listing


def _gallery(
    diagnosis: Diagnosis, thumbnails: Thumbnails, findings: Sequence[Finding]
) -> Iterator[str]:
    """Write thumbnails; those of one finding stand in one frame."""
    picture_of = {mask: picture for picture, mask in diagnosis.pairs}
    left = MOST_THUMBNAILS
    yield '<div class="gallery">'
    for finding in findings:
        # a sample is shown once, by its picture, whichever of its two files is meant
        paths = list(dict.fromkeys(picture_of.get(path, path) for path in finding.files))[:left]
        left -= len(paths)
        if paths:
            figures = "".join(_figure(diagnosis, thumbnails, path) for path in paths)
            yield f'<div class="together">{figures}</div>'
    yield "</div>"
    hidden = sum(len(finding.files) for finding in findings) - MOST_THUMBNAILS
    if left == 0 and hidden > 0:
        yield f'<p class="quiet">The first {MOST_THUMBNAILS} are shown.</p>'


def _figure(diagnosis: Diagnosis, thumbnails: Thumbnails, path: Path) -> str:
    inside = path.is_relative_to(diagnosis.folder)
    caption = _breakable((path.relative_to(diagnosis.folder) if inside else path).as_posix())
    encoded = thumbnails.of(path)
    if encoded is None:
        shown = '<div class="gone">cannot be shown</div>'
    else:
        shown = f'<img src="data:image/jpeg;base64,{encoded}" alt="{escape(path.name)}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _breakable(text: str) -> str:
    """Escape, and let long paths break after slashes and underscores."""
    return escape(text).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _row(split: SplitStatistics) -> str:
    heights, widths = split.height, split.width
    sizes = list(dict.fromkeys(f"{heights[i]} &times; {widths[i]}" for i in range(3)))
    least, middle, most = split.coverage
    cells = (
        f'<th scope="row">{escape(split.split)}</th>',
        f'<td class="number" data-name="pictures">{split.pictures}</td>',
        f'<td class="number" data-name="masks">{split.masks}</td>',
        f'<td data-name="height &times; width">{_sizes(sizes)}</td>',
        '<td data-name="figure">'
        f'<span class="range"><i style="left:{least:.1%};right:{1 - most:.1%}"></i>'
        f'<b style="left:{middle:.1%}"></b></span>'
        f"{least:.0%} &ndash; <strong>{middle:.0%}</strong> &ndash; {most:.0%}</td>",
        f'<td data-name="colour">{_colour(split)}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _sizes(sizes: Sequence[str]) -> str:
    if len(sizes) == 1:
        return f"{sizes[0]} throughout"
    middle = f" &ndash; <strong>{sizes[1]}</strong>" if len(sizes) == 3 else ""
    return f"{sizes[0]}{middle} &ndash; {sizes[-1]}"


def _colour(split: SplitStatistics) -> str:
    red, green, blue = (round(255 * mean) for mean in split.colour_mean)
    numbers = " · ".join(
        f"{mean:.2f} ± {std:.2f}"
        for mean, std in zip(split.colour_mean, split.colour_std, strict=True)
    )
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>{numbers}'
