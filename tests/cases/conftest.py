"""Inputs as people have them, and a model that needs no training."""

from __future__ import annotations

from pathlib import Path

import pytest

from notan.modelfile.default import DEFAULT_MODEL

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.fixture(scope="session")
def cases() -> Path:
    """The cases of ../shared; a test copies what it changes."""
    if not CASES.is_dir():
        pytest.skip("cases are absent: ../shared/cases")
    return CASES


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The model that comes with notan."""
    return DEFAULT_MODEL
