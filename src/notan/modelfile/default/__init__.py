"""The default model: cats and dogs, for a first mask before anything was trained.

``README.md`` beside it says what it learned from, what it is worth and under which terms it comes.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = Path(__file__).with_name("pets.onnx")
"""An ONNX model."""

WHAT_IT_KNOWS = (
    "the default model, which has learned cats and dogs, most of them from masks that other models "
    "drew: for anything else, train your own and give it with --model"
)
