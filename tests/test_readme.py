"""The README's commands are run as printed, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from notan.data.synthetic import DrawnSource, write_folder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900

NOT_RUN = ("pip ", "make ", "notan download ")
"""What installs, or needs the network; the commands after a download need its images."""

SHORTER = {"10m": "5s"}
"""The one change to what is printed: a test cannot wait for ten minutes."""


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for printed, short in SHORTER.items():
        found = [block.replace(printed, short) for block in found]
    return found


def shell_commands() -> list[str]:
    chosen = [block for block in blocks("sh") if "notan download" not in block]
    lines = [line for block in chosen for line in block.splitlines()]
    return [line for line in lines if not line.startswith(NOT_RUN)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader has: photo-of-a-cat.jpg, photo.jpg and cells/."""
    folder = tmp_path_factory.mktemp("readme")
    for part, count, first in (("train", 24, 0), ("test", 6, 24)):
        write_folder(DrawnSource(count, size=(40, 48), first=first), folder / "cells" / part)
    skimage = importlib.util.find_spec("skimage")
    assert skimage
    assert skimage.origin
    chelsea = Path(skimage.origin).parent / "data" / "chelsea.png"
    for name in ("photo-of-a-cat.jpg", "photo.jpg"):  # read by content, not by name
        shutil.copy(chelsea, folder / name)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Puts a notan on the PATH that this Python runs, and takes one thread."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "notan"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m notan "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(command: list[str], place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_do_what_the_readme_says(place: Path, environment: dict[str, str]) -> None:
    commands = shell_commands()
    assert len(commands) == 4
    for command in commands:
        run(["/bin/sh", "-c", command], place, environment)
    assert (place / "predictions" / "masks" / "photo-of-a-cat.png").is_file()
    assert (place / "runs" / "cells" / "best.safetensors").is_file()
    assert (place / "out" / "masks" / "photo.png").is_file()


def test_the_python_lines_run(place: Path, environment: dict[str, str]) -> None:
    (code,) = blocks("python")
    printed = run([sys.executable, "-c", code], place, environment)
    assert "(300, 451)" in printed  # the mask of the photograph, at its own size
    assert (place / "cells.onnx").is_file()


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_every_link_is_defined_in_one_place_and_leads_to_a_file() -> None:
    targets = re.findall(r"^\[[^\]]+\]: (\S+)$", README, flags=re.MULTILINE)
    assert targets
    assert not re.findall(r"\]\((?!https?://)[^)]+\)", README), "a relative link in the text"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    addresses = tuple(project.get("urls", {}).values())
    for target in targets:
        if addresses:
            assert target.startswith(addresses), "a package index shows no relative link"
        else:
            assert (ROOT / target).is_file(), target
