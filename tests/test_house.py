"""The house rules that no linter keeps: sizes, names, and the public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import notan

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
LIBRARY = [path for path in SOURCES if "cli" not in path.parts]
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *(ROOT / "benchmarks").rglob("*.py")]
LONGEST_FILE, LONGEST_FUNCTION = 900, 80
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "core"}

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
IDS = [str(path.relative_to(ROOT)) for path in PYTHON]


def docstring_lines(node: FUNCTION) -> int:
    first = node.body[0]
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


@pytest.mark.parametrize("path", PYTHON, ids=IDS)
def test_no_file_is_two_rooms(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", PYTHON, ids=IDS)
def test_no_function_is_two_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, FUNCTION):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_no_module_is_a_drawer(path: Path) -> None:
    assert path.stem not in DRAWERS


@pytest.mark.parametrize("path", LIBRARY, ids=[path.stem for path in LIBRARY])
def test_the_library_neither_exits_nor_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert)
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.exit")


def test_the_package_states_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert version("notan") == notan.__version__
    assert f"## {notan.__version__}" in changelog
    assert f"version: {notan.__version__}" in citation


def test_every_dependency_is_pinned_by_the_constraints_and_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    groups = project["optional-dependencies"]
    extras = [word for words in groups.values() for word in words]
    unpinned = {*groups["timm"]}  # its torchvision does not import beside a CPU torch
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[\[>=<]", requirement)[0]
        assert name == "notan" or name in pinned or requirement in unpinned
        assert name == "notan" or re.search(rf'"{re.escape(requirement)}", +# \S', text), name


@pytest.mark.parametrize(
    "module",
    [
        "notan",
        "notan.api",
        "notan.config",
        "notan.errors",
        "notan.metrics",
        "notan.modelfile.preprocess",
        "notan.modelfile.card",
        "notan.runtime",
        "notan.modelfile.onnx",
        "notan.evaluation.evaluate",
        "notan.prediction.predictor",
        "notan.prediction.backends",
        "notan.prediction.formats",
        "notan.prediction.submission",
        "notan.io.images",
        "notan.data.folders",
        "notan.auto",
        "notan.cli.main",
    ],
)
def test_a_room_that_promises_it_does_not_import_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
