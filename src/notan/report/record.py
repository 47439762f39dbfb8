"""What a run folder holds: settings, card, history, incidents, scores; and what it lacks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notan.config import load_run
from notan.errors import CheckpointError, ConfigError, DataError
from notan.evaluation.evaluate import SUMMARY, read_score
from notan.modelfile.card import read_card
from notan.run_folder import BEST, HISTORY, INCIDENTS, SETTINGS, is_in_use

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run
    from notan.metrics import Score
    from notan.modelfile.card import Card

Epoch = dict[str, float]

SCORE_FOLDERS = ("evaluate-*", "inference-*")


@dataclass(frozen=True)
class RunRecord:
    """All that a run left, as far as it can be read.

    Attributes:
        path: The folder.
        run: All settings of the training.
        settings: The text of run.toml.
        card: Of the best checkpoint; None while there is none.
        history: An epoch's values by name, in the order of the epochs.
        incidents: What the guard saw and did.
        scores: Of any split by their files, the newest first.
        in_use: Whether a training is writing here at this moment.
        notices: What is missing or cannot be read, in sentences.
    """

    path: Path
    run: Run
    settings: str
    card: Card | None
    history: tuple[Epoch, ...]
    incidents: tuple[dict[str, Any], ...]
    scores: dict[Path, Score]
    in_use: bool
    notices: tuple[str, ...]

    @property
    def best(self) -> Path:
        """The best checkpoint, whether it is there or not."""
        return self.path / BEST

    @property
    def seconds(self) -> float:
        """Time that the epochs took."""
        return sum(epoch.get("seconds", 0.0) for epoch in self.history)

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def time_limit_is_reached(self) -> bool:
        """Whether a time limit has ended the training."""
        return bool(self.history) and self.history[-1].get("time_limit/steps_left") == 0

    def is_outdated(self, score: Path | None) -> bool:
        """Say whether a score's file is older than the best checkpoint, so of earlier weights."""
        if score is None or not self.best.is_file():
            return False
        return score.stat().st_mtime_ns < self.best.stat().st_mtime_ns


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ConfigError: There is no run, or its settings cannot be read.
    """
    settings = _settings_of(folder)
    run = load_run(settings)
    notices: list[str] = []
    card = _card(folder / BEST, notices)
    history = _lines(folder / HISTORY, notices)
    if not history:
        notices.append("There is no history yet (history.jsonl), so there are no curves.")
    return RunRecord(
        path=folder,
        run=run,
        settings=settings.read_text(encoding="utf-8"),
        card=card,
        history=tuple(
            {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
            for line in history
        ),
        incidents=tuple(_lines(folder / INCIDENTS, notices)),
        scores=_scores(folder, notices),
        in_use=is_in_use(folder),
        notices=tuple(notices),
    )


def _settings_of(folder: Path) -> Path:
    """Return the settings of a run; where there is none, say what is there instead."""
    if (folder / SETTINGS).is_file():
        return folder / SETTINGS
    if not folder.exists():
        fault = "there is no such folder; give one that notan train made, such as runs/unet"
    elif not folder.is_dir():
        fault = f"this is a file; the run folder is wanted, perhaps {folder.parent}"
    else:
        fault = f"there is no run here ({SETTINGS} is missing); give a folder that notan train made"
    raise ConfigError(f"{folder}: {fault}")


def _card(path: Path, notices: list[str]) -> Card | None:
    if not path.exists():
        notices.append(
            f"There is no checkpoint yet ({BEST}): the first epoch writes it. So there are "
            "neither scores nor images."
        )
        return None
    try:
        return read_card(path)
    except CheckpointError as error:
        notices.append(f"The checkpoint cannot be read: {error}.")
        return None


def _lines(path: Path, notices: list[str]) -> list[dict[str, Any]]:
    """Read the lines of a .jsonl file that are epochs or incidents; name those that are not."""
    try:
        texts = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        notices.append(f"{path.name} cannot be read ({error}).")
        return []
    lines, broken = [], []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and isinstance(line.get("epoch"), int):
            lines.append(line)
        else:
            broken.append(str(number))
    if broken:
        word = "line" if len(broken) == 1 else "lines"
        notices.append(f"{path.name}: {word} {', '.join(broken)} cannot be read; left out.")
    return lines


def _scores(folder: Path, notices: list[str]) -> dict[Path, Score]:
    """Read what evaluate and inference left, the newest first."""
    found = [path for name in SCORE_FOLDERS for path in folder.glob(f"{name}/{SUMMARY}")]
    scores = {}
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True):
        try:
            scores[path] = read_score(path)
        except DataError as error:
            notices.append(f"A score is left out: {error}.")
    return scores
