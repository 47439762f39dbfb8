"""What docs/how-to/own-network.md shows runs as printed."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from image_files import photo, saved
from notan.cli.main import main
from notan.modelfile.card import read_card
from notan.training import resume

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "own-network.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, drawn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with cells/, photo.jpg and the page's mynet.py."""
    shutil.copytree(drawn_folder, tmp_path / "cells")
    saved(tmp_path / "photo.jpg", Image.fromarray(photo()))
    (tmp_path / "mynet.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("mynet", None)


@pytest.mark.usefixtures("without_reports")
def test_the_commands_run(place: Path) -> None:
    (commands,) = blocks("sh")
    for command in commands.splitlines():
        name, *words = shlex.split(command)
        assert name == "notan"
        main(words)
    run = place / "runs" / "mine"
    assert read_card(run / "best.onnx").run.model.arguments == {"width": 8}
    assert (place / "predictions" / "masks" / "photo.png").is_file()
    assert (run / "report.html").is_file()


def test_the_python_lines_run(place: Path) -> None:
    _, network, functions = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(network, str(PAGE), "exec"), names)  # noqa: S102 - the page's own lines
    exec(compile(functions, str(PAGE), "exec"), names)  # noqa: S102
    own = read_card(names["result"].checkpoint).run.own
    assert (own.loss, own.optimizer, own.schedule) == ("loss", "optimizer", "schedule")
    parts = {part: names[part] for part in ("loss", "optimizer", "schedule")}
    assert resume(place / "runs" / "functions", **parts).epoch == names["result"].epoch
