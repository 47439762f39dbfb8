"""What a report calls things: metrics, rules, numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.metrics.rules import BORDER_WORDS

if TYPE_CHECKING:
    from notan.report.score_file import ScoreFile

METRICS = {
    "dice": ("Dice", "overlap: twice the shared foreground over the sum of both"),
    "plain_dice": ("Dice at threshold 0.5", "before validation chose how to cut"),
    "iou": ("IoU", "overlap: the shared foreground over the joint one"),
    "precision": ("Precision", "the share of the predicted foreground that is right"),
    "recall": ("Recall", "the share of the true foreground that is found"),
    "specificity": ("Specificity", "the share of the true background that is left alone"),
    "accuracy": (
        "Accuracy",
        "the share of all pixels that are right; high on mostly-background data",
    ),
    "boundary_f": ("Boundary F", "how much of both outlines lies within the tolerance"),
    "surface_dice": ("Surface Dice", "the share of both outlines within the tolerance"),
    "hausdorff95": (
        "Hausdorff 95",
        "pixels within which 95 % of the outlines lie; low is good",
    ),
    "average_precision": ("Average precision", "over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probabilities; low is good"),
    "ece": ("Calibration error", "how far probabilities are from what happens; low is good"),
}
"""What each metric is called, and what it says."""

IN_PIXELS = frozenset({"hausdorff95"})
"""Metrics that are not in 0..1."""

RULES = {
    "split": "Split",
    "seen": "Seen before",
    "size": "Compared at",
    "trimap_border": "TrimapBorder",
    "trained_trimap_border": "Border in training",
    "postprocessing": "Mask",
    "threshold": "Threshold",
    "augment": "Test-time augmentation",
    "tolerance": "Tolerance",
    "weights": "Began",
    "empty": "Empty images",
}


def name_of(metric: str) -> str:
    """Return what a metric is called; an unknown one's own name serves as well."""
    return METRICS.get(metric, (metric.replace("_", " ").capitalize(), ""))[0]


def meaning_of(metric: str) -> str:
    """Return what a metric says, or nothing where it is unknown."""
    return METRICS.get(metric, ("", ""))[1]


def rules_in_words(score: ScoreFile) -> dict[str, str]:
    """Return a score's rules, the known ones first and in the words of ``evaluate``."""
    rules = score.rules
    borders = {
        name: BORDER_WORDS.get(str(rules.get(name)), rules.get(name))
        for name in ("trimap_border", "trained_trimap_border")
    }
    known = {label: {**rules, **borders}.get(name) for name, label in RULES.items()}
    others = {
        name.replace("_", " ").capitalize(): value
        for name, value in rules.items()
        if name not in RULES
    }
    told = {label: plain(each) for label, each in {**known, **others}.items() if each is not None}
    told["Images without foreground"] = f"{score.empty_images} of {len(score.images)}"
    return told


def plain(value: object) -> str:
    """Write a setting as a reader would."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value)
    if isinstance(value, dict):
        return "; ".join(f"{name}: {plain(each)}" for name, each in value.items())
    return str(value)


def epochs(number: int) -> str:
    """Count epochs."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, the two largest of them."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
