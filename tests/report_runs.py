"""Run folders for the tests of reports, and a score with all that a score can hold."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from notan.metrics import Score
from notan.metrics.counts import MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INCIDENT = {
    "epoch": 1,
    "batch": 2,
    "step": 2,
    "reason": "the loss is NaN or infinite",
    "action": "skip",
    "loss": "nan",
    "terms": {"bce": "nan", "dice": 0.5},
    "gradient_norm": "nan",
    "learning_rate": 0.001,
    "images": ["cat_1", "<b>dog</b>"],
}
METRICS = (
    "dice iou precision recall specificity accuracy boundary_f surface_dice average_precision brier"
)

COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
NOT_DEFINED: dict[str, float | None] = {"mean": None, "low": None, "high": None, "images": 0}

GROUPS = {
    "foreground size": {
        "small": {"images": 2, "mean": 0.5, "low": 0.4, "high": 0.65},
        "medium": {"images": 3, "mean": 0.7, "low": 0.6, "high": 0.75},
        "large": {"images": 1, "mean": 0.9, "low": None, "high": None},
    },
}
RULES = {
    "trimap_border": "none",
    "threshold": 0.5,
    "size": "original size",
    "weights": "from scratch",
    "empty": "an empty image predicted empty scores 1",
    "tolerance": "2",
}


def full_score(names: Sequence[str], split: str = "validation") -> dict[str, Any]:
    """Return a score.json with every part, of made-up numbers, as a score is written."""
    number = len(names)
    dice = [0.35 + 0.6 * math.sqrt((index + 1) / (number + 1)) for index in range(number)]
    mean = sum(dice) / number
    interval = {"mean": mean, "low": mean - 0.05, "high": mean + 0.04, "images": number}
    thresholds = [step / 20 for step in range(1, 20)]
    content = {
        "mean_dice": mean,
        "mean_iou": mean - 0.1,
        "pooled_dice": mean + 0.01,
        "pooled_iou": mean - 0.09,
        "empty_images": 1,
        "means": {**dict.fromkeys(METRICS.split(), interval), "hausdorff95": NOT_DEFINED},
        "pooled": {**dict.fromkeys(("dice", "iou", "precision", "recall"), mean), "ece": 0.031},
        "reliability": [reliability_bin(tenth / 10) for tenth in range(10)],
        "threshold_sweep": {
            "thresholds": thresholds,
            "mean_dice": [mean - (step - 0.45) ** 2 for step in thresholds],
            "area": 0.6,
        },
        "groups": GROUPS,
        "expected": {
            "rank_correlation": 0.71,
            "flagged": 2,
            "flagged_mean_dice": 0.41,
            "other_mean_dice": 0.83,
        },
        "undefined": ["hausdorff95: one of the masks is empty in every image"],
        "rules": {**RULES, "split": split},
        "images": [image_row(name, value) for name, value in zip(names, dice, strict=True)],
        "content": None,
    }
    written: dict[str, Any] = json.loads(Score.model_validate(content).model_dump_json())
    return written


def reliability_bin(start: float) -> dict[str, float]:
    """Return the pixels of a tenth of the probabilities, of an over-cautious model."""
    return {
        "low": start,
        "high": start + 0.1,
        "pixels": 50 if start else 100,
        "mean_probability": start + 0.05,
        "foreground_fraction": min(1.0, 1.2 * start),
    }


def image_row(name: str, dice: float) -> dict[str, Any]:
    """Return one image's row."""
    return {
        "name": name,
        "height": 40,
        "width": 48,
        **dict.fromkeys(MEASURES, dice),
        **dict.fromkeys(COUNTS, 480),
        "expected_dice": min(1.0, dice + 0.1 * math.sin(9 * dice)),
        "needs_review": dice < 0.5,
    }


def keep_score(run: Path, content: object, folder: str = "evaluate-val") -> Path:
    """Put a score into a run folder, as evaluate does."""
    path = run / folder / "score.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def keep_incidents(run: Path, *incidents: dict[str, Any]) -> None:
    """Write incidents as the guard does."""
    lines = "".join(json.dumps({**INCIDENT, **incident}) + "\n" for incident in incidents)
    (run / "incidents.jsonl").write_text(lines)


def forget_data(run: Path) -> None:
    """Let the run's data folder be one that is not there."""
    settings = run / "run.toml"
    settings.write_text(re.sub(r'path = ".*"', 'path = "gone"', settings.read_text()))
