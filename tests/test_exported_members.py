"""Every public name is there, documented, and where the type checker is told that it is."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import notan

NAMES = sorted({*notan.__all__} - {"__version__"})
FUNCTIONS = [name for name in NAMES if name[0].islower()]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(notan, name))


def test_the_lazy_names_the_typed_names_and_all_are_the_same() -> None:
    tree = ast.parse(Path(inspect.getfile(notan)).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == notan._HOMES
    assert sorted(typed) == NAMES
    assert notan.__all__ == sorted(notan.__all__)
    assert dir(notan) == notan.__all__


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Prediktor'"):
        _ = notan.Prediktor


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_typed_and_takes_no_keywords_unseen(name: str) -> None:
    signature = inspect.signature(getattr(notan, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD, parameter


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "export", "check", "compare"])
def test_the_functions_are_called_as_the_commands(name: str) -> None:
    assert name in import_module("notan.cli.main").COMMANDS
    assert getattr(notan, name).__module__ == "notan.api"
