"""Damaged annotation files and masks: read or refused in a line, within bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import damaged_annotations
import damaged_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each file, in a process that a crash or too much memory would end."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("annotations", "masks", "cache"):
        (folder / name).mkdir()
    list(damaged_annotations.damaged(folder / "annotations"))
    for name, content in damaged_files.damaged():
        (folder / "masks" / name).write_bytes(content)
    answer = subprocess.run(
        [sys.executable, damaged_annotations.__file__, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env={
            **os.environ,
            "PYTHONWARNINGS": "error",
            "OPENBLAS_NUM_THREADS": "1",
            "NOTAN_CACHE": str(folder / "cache"),
        },
    )
    assert answer.returncode == 0, (answer.returncode, answer.stderr[-2000:])
    result: dict[str, str] = json.loads(answer.stdout)
    return result


def test_everything_is_read_or_refused(said: dict[str, str]) -> None:
    assert len(said) > 500
    assert {name: each for name, each in said.items() if each.startswith("broken")} == {}


def test_every_refusal_names_its_file_in_one_line(said: dict[str, str]) -> None:
    refusals = {name: each for name, each in said.items() if each.startswith("refused")}
    assert len(refusals) > 300
    for name, each in refusals.items():
        assert f"/{name}" in each or "/cache/tables/" in each
        assert "\n" not in each


def test_whole_masks_of_noise_are_refused(said: dict[str, str]) -> None:
    for kind in damaged_files.KINDS:
        assert said[f"{kind}-whole"].startswith("refused"), kind
