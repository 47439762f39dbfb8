"""Run a plain training script for ``ahead.py`` and keep what it scored on each image.

Run by ``ahead.py``: python yardstick.py SCRIPT OUT.json SEED BF16 WORD ...
The script fixes its seed and prints means alone. It runs unchanged, but with the seed that was
asked for; with BF16 ``without``, in float32, because a processor that can only imitate bf16 takes
longer in it. This file imports nothing of notan: the script may have an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def run(script: Path, seed: int, words: list[str], *, bf16: bool) -> dict[str, Any]:
    """Run a script whose globals hold its ``scores`` and the ``pairs`` that they are of.

    Args:
        script: Seeds torch and NumPy with a number of its own, which ``seed`` takes the place of.
        seed: What to seed them with.
        words: Its command line.
        bf16: Leave its ``torch.autocast`` as it is; else it does nothing.

    Returns:
        The Dice of each test image by its name, and what the training took.
    """
    seed_torch, seed_numpy = torch.manual_seed, np.random.default_rng
    torch.manual_seed = lambda _: seed_torch(seed)  # type: ignore[assignment]
    np.random.default_rng = lambda *_: seed_numpy(seed)
    if not bf16:
        torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment,misc]
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *words]
    left = runpy.run_path(str(script), run_name="__main__")
    options = left["a"]
    names = [path.stem for path, _ in left["pairs"](options.test or options.data, "test")]
    dice = [float(score[0]) for score in left["scores"]]
    return {
        "dice": dict(zip(names, dice, strict=True)),
        "steps": left["step"],
        "epochs": left["step"] * options.batch / len(left["train"]),
    }


def main() -> None:
    """Run the script that the command line names."""
    script, out, seed, bf16, *words = sys.argv[1:]
    found = run(Path(script).resolve(), int(seed), words, bf16=bf16 == "bf16")
    Path(out).write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
