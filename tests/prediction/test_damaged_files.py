"""Damaged and malicious image files: each is read or refused by name, within bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import damaged_files

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What came of each file, in a process that a crash or too much memory would end."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in damaged_files.damaged():
        (folder / name).write_bytes(content)
    answer = subprocess.run(
        [sys.executable, damaged_files.__file__, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONWARNINGS": "error", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, (answer.returncode, answer.stderr[-2000:])
    result: dict[str, list[str]] = json.loads(answer.stdout)
    return result


def lines(said: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    for name, found in said.items():
        yield from ((name, line) for line in found)


def test_every_file_is_read_or_refused(said: dict[str, list[str]]) -> None:
    assert len(said) > 300
    assert all(said.values())
    assert not [pair for pair in lines(said) if pair[1].startswith("broken")]


def test_every_refusal_names_its_file_in_one_line(said: dict[str, list[str]]) -> None:
    refusals = [pair for pair in lines(said) if pair[1].startswith("refused")]
    assert len(refusals) > 150
    for name, line in refusals:
        assert f"/{name}" in line
        assert "\n" not in line


def test_whole_files_are_read(said: dict[str, list[str]]) -> None:
    whole = {name: found for name, found in said.items() if name.endswith("-whole")}
    assert whole.keys() == {f"{kind}-whole" for kind in damaged_files.KINDS}
    for name, found in whole.items():
        assert found == ["read"] * (3 if "PAGES" in name else 1), name


def test_what_is_no_image_is_refused(said: dict[str, list[str]]) -> None:
    for name, _ in damaged_files.foreign():
        assert all(line.startswith("refused") for line in said[name]), (name, said[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("png-65535", "at most 89,478,485 pixels are decoded"),
        ("png-largest", "at most 89,478,485 pixels are decoded"),
        ("png-no-pixels", ""),
        ("gif-frame", "at most 89,478,485 pixels are decoded"),
        ("gif-screen", "at most 89,478,485 pixels are decoded"),
        ("bmp-65535", "at most 89,478,485 pixels are decoded"),
        ("ppm-99999", "at most 89,478,485 pixels are decoded"),
        ("jpeg-65500", "at most 89,478,485 pixels are decoded"),
        ("webp-16383", ""),
        ("jpeg2000-65535", "at most 89,478,485 pixels are decoded"),
        ("tiff-65535", "at most 89,478,485 pixels are decoded"),
        ("tiff-10100-pages", "has more than 10,000 pages"),
    ],
)
def test_a_bomb_is_refused(said: dict[str, list[str]], name: str, words: str) -> None:
    assert all(line.startswith("refused") for line in said[name])
    assert words in said[name][0]


def test_pages_are_found_whether_or_not_warnings_are_errors(said: dict[str, list[str]]) -> None:
    assert len(said["TIFF-PAGES-twice"]) <= 3


def test_pages_that_lead_back_are_read_once(said: dict[str, list[str]]) -> None:
    assert said["tiff-itself-again"] == ["read"]


def test_texts_are_no_reason_to_refuse_an_image(said: dict[str, list[str]]) -> None:
    assert said["png-many-texts"] == ["read"]


def test_the_limit_of_memory_is_one() -> None:
    """Without it, the tests above could not fail by memory."""
    script = (
        "import damaged_files, numpy as np\n"
        "damaged_files._limit_memory()\n"
        "np.ones(damaged_files.MEMORY // 2, np.uint8)\n"
        "np.ones(damaged_files.MEMORY, np.uint8)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(damaged_files.__file__).parent,
    )
    assert answer.returncode == 1
    assert "line 4" in answer.stderr
    assert "MemoryError" in answer.stderr
