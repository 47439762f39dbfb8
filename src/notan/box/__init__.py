"""The model in the box: cats and dogs, for a first mask before anything was trained.

``README.md`` beside it says what it learned from, what it is worth and under which terms it comes.
"""

from pathlib import Path

BOXED_MODEL = Path(__file__).with_name("pets.onnx")
"""A portable file; runs where OpenVINO or ONNX Runtime is installed."""

WHAT_IT_KNOWS = (
    "the model in the box, which has seen 300 photographs of cats and dogs of three breeds: for "
    "anything else, train your own and give it with --model"
)
