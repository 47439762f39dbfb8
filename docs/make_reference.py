"""Write the reference pages from the code: every command, every setting, the Python functions.

The build of the docs calls this; by hand: python docs/make_reference.py docs/reference
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import annotated_types
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import notan
from notan.cli.main import COMMANDS, main
from notan.config import Pretraining, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic.fields import FieldInfo

COLUMNS = "100"
"""Of the terminal that the help is read from; on wider ones tyro puts boxes side by side."""

SIGNS = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}


def write_reference(folder: Path) -> None:
    """Write commands.md, settings.md and python.md into a folder."""
    folder.mkdir(exist_ok=True)
    for name, page in (
        ("commands.md", commands_page()),
        ("settings.md", settings_page()),
        ("python.md", python_page()),
    ):
        (folder / name).write_text(page, encoding="utf-8")


def commands_page() -> str:
    """Return the page of all commands, from the help that each of them prints."""
    parts = [
        "# Commands",
        "Made from `notan COMMAND --help` when these pages were built. Trailing words such as "
        "`model.width=16` are [settings](settings.md).",
    ]
    for name in COMMANDS:
        about, groups = _read_help(_help_of(name))
        parts += [f"## notan {name}", about]
        for title, rows in groups:
            if rows:
                parts += [title, _table(("flag", "meaning", "default"), rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _help_of(command: str) -> str:
    """Return what ``notan COMMAND --help`` prints on a terminal without colours."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # an encoding, or no boxes
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ.update(COLUMNS=COLUMNS, NO_COLOR="1", TERM="dumb")
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    printed.seek(0)
    return printed.read()


def _read_help(text: str) -> tuple[str, list[tuple[str, list[tuple[str, str, str]]]]]:
    """Divide a command's help into its description and its boxes of flags."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    head, *boxes = re.split(r"^╭.*╮$", text, flags=re.MULTILINE)
    paragraphs = [
        " ".join(part.split())
        for part in head.split("\n\n")
        if part.strip() and not part.lstrip().startswith("usage:")
    ]
    return "\n\n".join(map(_escape, paragraphs)), [_read_box(box) for box in boxes]


def _read_box(box: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a box's title, where it has one, and its rows: flag, meaning, default."""
    lines = [line.strip().strip("│") for line in box.splitlines() if line.startswith("│")]
    title = ""
    rows: list[tuple[str, str]] = []
    for line in (line[1:].rstrip() for line in lines):
        if set(line) <= {"─"}:
            title = " ".join(_escape(flag) for flag, _ in rows)
            rows = []
        elif line.startswith(" ") and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
        else:
            flag, _, meaning = line.partition("  ")
            rows.append((flag, meaning.strip()))
    return title, [_row(*row) for row in rows if not row[0].startswith("-h")]


def _row(flag: str, meaning: str) -> tuple[str, str, str]:
    """Take the default out of a flag's explanation."""
    found = re.search(r"\s*\((?:default: (.*)|(required))\)$", meaning)
    default = (found[1] or found[2] or "") if found else ""
    words = meaning[: found.start()] if found else meaning
    return f"`{flag}`", _escape(words), _escape("" if default == "False" else default)


def settings_page() -> str:
    """Return the page of all settings, from the sections of Run and of Pretraining."""
    parts = [
        "# Settings",
        "Made from the code when these pages were built. Write settings into a recipe as TOML "
        "tables, or on the command line as trailing words: `notan train ... model.width=16`. "
        '"none" switches a default off: `train.gradient_clip=none`.',
    ]
    for name, field in (*Run.model_fields.items(), *Pretraining.model_fields.items()):
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            about = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            parts += [f"## {name}", _escape(about), _settings_table(kind, f"{name}.")]
    alone = {
        name: field
        for name, field in Run.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }
    parts += ["## Outside of the sections", _settings_table(Run, "", only=set(alone))]
    return "\n\n".join(parts) + "\n"


def _settings_table(section: type[BaseModel], prefix: str, only: set[str] | None = None) -> str:
    explained = _attribute_docstrings(section)
    rows = [
        (
            f"`{prefix}{name}`",
            _escape(_type_of(field)),
            _escape(_default_of(field)),
            _escape(field.description or explained.get(name, "")),
        )
        for name, field in section.model_fields.items()
        if only is None or name in only
    ]
    return _table(("setting", "type and bounds", "default", "meaning"), rows)


def _attribute_docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Return the strings that stand below a class's attributes."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - tells mypy what getsource returns
    return {
        field.target.id: " ".join(note.value.value.replace("``", "`").split())
        for field, note in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(note, ast.Expr)
        and isinstance(note.value, ast.Constant)
        and isinstance(note.value.value, str)
    }


def _type_of(field: FieldInfo) -> str:
    """Say a setting's type and bounds in words: int, ≥ 1."""
    names, bounds = [], list(_bounds(field.metadata))
    for kind in _alternatives(field.annotation):
        inner, found = _unwrapped(kind)
        bounds += found
        names.append(inner)
    return ", ".join([" or ".join(names), *dict.fromkeys(bounds)])


def _alternatives(annotation: object) -> tuple[object, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _unwrapped(kind: object) -> tuple[str, list[str]]:
    """Return a type's name and the bounds that its annotation carries."""
    if hasattr(kind, "__metadata__"):
        name, bounds = _unwrapped(typing.get_args(kind)[0])
        metadata = getattr(kind, "__metadata__", ())
        inner = [extra for each in metadata for extra in getattr(each, "metadata", [each])]
        return name, [*bounds, *_bounds(inner)]
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind)), []
    if typing.get_origin(kind) is tuple:
        parts = [_unwrapped(part) for part in typing.get_args(kind)]
        return (
            f"({', '.join(name for name, _ in parts)})",
            list(dict.fromkeys(bound for _, bounds in parts for bound in bounds)),
        )
    names = {type(None): "none", str: "text", Path: "path"}
    known = names.get(kind) if isinstance(kind, type) else None
    return known or str(getattr(kind, "__name__", kind)), []


def _bounds(metadata: list[object]) -> Iterator[str]:
    for bound in metadata:
        if type(bound) in SIGNS:
            attribute, sign = SIGNS[type(bound)]
            value = getattr(bound, attribute)
            yield f"{sign} {'2^32' if value == 2**32 else f'{value:g}'}"


def _default_of(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "none" if field.default is None else str(field.default)


def python_page() -> str:
    """Return the page of the public functions and classes, from their docstrings."""
    parts = [
        "# Python",
        "What `import notan` offers, from the docstrings. A name is loaded when you first use it, "
        "so the import is quick.",
    ]
    public = {name: getattr(notan, name) for name in notan.__all__ if name != "__version__"}
    functions = {name: each for name, each in public.items() if inspect.isfunction(each)}
    classes = {name: each for name, each in public.items() if inspect.isclass(each)}
    for title, kind in (("Functions", functions), ("Classes", classes)):
        parts.append(f"## {title}")
        for name, each in kind.items():
            text = (inspect.getdoc(each) or "").replace("```", "'''")
            parts += [f"### notan.{name}", f"```text\n{_signature(name, each)}{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _signature(name: str, function: object) -> str:
    """Return a function's signature, a parameter to a line; nothing for a class."""
    if not inspect.isfunction(function):
        return ""
    signature = inspect.signature(function)
    inside = ",\n    ".join(_parameters(signature))
    returns = str(signature.return_annotation).strip("'")
    return f"{name}(\n    {inside},\n) -> {returns}\n\n"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        shown = str(parameter.replace(annotation=inspect.Parameter.empty))
        kind = str(parameter.annotation).strip("'\"")
        name, _, default = shown.partition("=")
        yield f"{name}: {kind} = {default}" if default else f"{name}: {kind}"


def _escape(text: str) -> str:
    """Keep what Markdown would take for markup, such as *.tif and <, in prose and tables."""
    pieces = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([\\*_<>\[\]|$])", r"\\\1", piece) for piece in pieces[::2]]
    code = [piece.replace("|", "\\|") for piece in pieces[1::2]]
    woven = [piece for pair in zip(plain, [*code, ""], strict=True) for piece in pair]
    return "".join(woven)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
