"""What a search for wrong masks has to say: findings beside the data doctor's, and JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from notan.data.doctor.diagnosis import SEVERITIES, Diagnosis, Finding, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.labels.search import LabelSearch
    from notan.labels.suspicion import Suspect

MOST_LINES = 20
SHOWN = 3
"""Unreadable files that the finding about them names."""


def with_labels(diagnosis: Diagnosis, search: LabelSearch) -> Diagnosis:
    """Return a diagnosis with findings about the masks beyond the ranking's cut.

    A mask whose fault can be told is a warning, a mere disagreement a note.
    """
    findings = [*diagnosis.findings, *label_findings(search)]
    named = {path for finding in findings for path in finding.files}
    pairs = [(pair.image, pair.mask) for pair in search.pairs.values()]
    more = [pair for pair in pairs if named & set(pair) and pair not in diagnosis.pairs]
    findings.sort(key=lambda each: SEVERITIES.index(each.severity))
    return replace(diagnosis, findings=tuple(findings), pairs=(*diagnosis.pairs, *more))


def label_findings(search: LabelSearch) -> Iterator[Finding]:
    """Give a finding for each mask beyond the cut, and one for those that could not be judged."""
    for suspect in search.ranking.beyond_cut:
        mask = search.pairs[suspect.judgement.name].mask
        kind = suspect.explanation.kind if suspect.explanation else "disagreement"
        message = f"{mask}: {suspect.in_words()}; look at it"
        severity = "warning" if suspect.explanation else "note"
        yield Finding(f"label-{kind}", severity, message, (mask,))  # type: ignore[arg-type]
    if search.left_out:
        yield Finding("label-unjudged", "note", _about_left_out(search.left_out))
    if not search.ranking.is_sound:
        yield Finding("label-unjudged", "note", _about_poor_judges(search))


def _about_poor_judges(search: LabelSearch) -> str:
    return (
        f"the networks have learned too little to judge masks (typical Dice "
        f"{search.ranking.typical.dice:.2f} with the settings of {search.plan.model}, "
        f"{search.plan.run.train.epochs} epochs); give more --epochs or a better --model"
    )


def _about_left_out(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    few = "; ".join(reasons[:SHOWN])
    return f"{number_of(len(reasons), 'image')} left out of the ranking: {few}{more}"


def describe(search: LabelSearch) -> str:
    """Return the masks beyond the cut as lines of text, the most suspicious first."""
    suspects, cut = search.ranking.beyond_cut, search.ranking.typical.cut
    judged = number_of(len(search.ranking.suspects), "mask")
    lines = [
        f"{suspect.score:6.2f}  {suspect.judgement.name}: {suspect.in_words()}"
        for suspect in suspects[:MOST_LINES]
    ]
    if len(suspects) > MOST_LINES:
        lines.append(
            f"        ... and {len(suspects) - MOST_LINES} more, all of them in check.json"
        )
    if not search.ranking.is_sound:
        lines.append(_about_poor_judges(search))
    if search.left_out:
        lines.append(_about_left_out(search.left_out))
    return "\n".join([f"{len(suspects)} of {judged} look wrong (score {cut:.2f} or more):", *lines])


def labels_to_json(search: LabelSearch) -> dict[str, Any]:
    """Return the whole ranking as plain values, with what it was made by."""
    plan, typical = search.plan, search.ranking.typical
    return {
        "model": str(plan.model),
        "folds": plan.folds,
        "epochs": plan.run.train.epochs,
        "cut": round(typical.cut, 4),
        "typical_dice": round(typical.dice, 4),
        "left_out": list(search.left_out),
        "ranking": [_row(search, suspect) for suspect in search.ranking.suspects],
    }


def _row(search: LabelSearch, suspect: Suspect) -> dict[str, Any]:
    judgement, pair = suspect.judgement, search.pairs[suspect.judgement.name]
    return {
        "name": judgement.name,
        "image": str(pair.image),
        "mask": str(pair.mask),
        "score": round(suspect.score, 4),
        "dice": round(judgement.dice, 4),
        "expected_dice": round(judgement.expected_dice, 4),
        "message": suspect.in_words(),
        "explanation": asdict(suspect.explanation) if suspect.explanation else None,
    }
