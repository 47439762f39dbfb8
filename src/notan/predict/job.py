"""What a folder of predictions was made by, so that a resumed one is made by nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from notan.errors import ConfigError, DataError
from notan.files import storage_errors, write_bytes
from notan.predict.table import FAILED, TABLE, PredictionTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

JOB = "predict.json"


def begin(folder: Path, settings: Mapping[str, str], *, resume: bool) -> PredictionTable:
    """Begin a folder of predictions, or go on with one.

    Args:
        folder: Where the outputs go.
        settings: Everything beside the images that decides what the outputs are.
        resume: Keep what is done. Without it, the tables of an earlier run are removed; outputs
            are replaced one by one as their images are predicted again.

    Returns:
        A row for each image that is done.

    Raises:
        ConfigError: The folder was begun with other settings.
        DataError: What an earlier run left cannot be read.
        StorageError: The folder cannot be written.
    """
    path = folder / JOB
    if resume and path.exists():
        _refuse_others(path, settings)
        return PredictionTable.read(folder)
    # before the settings change, lest rows of other settings pass for these
    for name in (TABLE, FAILED):
        with storage_errors(folder / name):
            (folder / name).unlink(missing_ok=True)
    write_bytes(path, (json.dumps(dict(settings), indent=2) + "\n").encode())
    return PredictionTable()


def _refuse_others(path: Path, settings: Mapping[str, str]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so nobody knows how this folder was made; choose "
            "another --out, or leave out --resume"
        ) from error
    if before == dict(settings):
        return
    names = settings.keys() | (before.keys() if isinstance(before, dict) else set())
    there = before if isinstance(before, dict) else {}
    other = [
        f"{name} was {there.get(name, 'not said')}, is now {settings.get(name, 'not said')}"
        for name in sorted(names)
        if there.get(name) != settings.get(name)
    ]
    raise ConfigError(
        f"{path}: this folder was begun otherwise: {'; '.join(other) or 'it holds no settings'}; "
        "give the same settings, choose another --out, or leave out --resume to begin anew"
    )
