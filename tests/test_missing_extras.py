"""Optional packages: a missing one is one line that says what to install."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from forbidden import run_without
from notan.errors import EXTRAS, MissingExtraError, explaining_extras

ROOT = Path(__file__).resolve().parents[1]


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {**project["optional-dependencies"], "": project["dependencies"]}


def test_a_missing_package_of_an_extra_says_which_extra_brings_it() -> None:
    absent = ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper")
    wanted = r"^export needs ONNX: pip install 'notan\[export\]'; or do without$"
    with (
        pytest.raises(MissingExtraError, match=wanted),
        explaining_extras("export", otherwise="; or do without"),
    ):
        raise absent


@pytest.mark.parametrize("name", ["notan.prediction", "numpy", None])
def test_another_missing_module_stays_what_it_is(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError, match="no such thing"), explaining_extras():
        raise ModuleNotFoundError("no such thing", name=name)


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_each_package_stands_in_the_extra_that_is_offered(package: str) -> None:
    wanted = tuple(f"{package.replace('_', '-')}{bound}" for bound in (">=", "==", "-skinny>="))
    assert any(word.startswith(wanted) for word in extras()[EXTRAS[package]])
    assert not any(word.startswith(wanted) for word in extras()[""])


@pytest.mark.parametrize("name", ["openvino", ""])
def test_what_predicts_brings_no_torch(name: str) -> None:
    assert not any(word.startswith(("torch", "notan[")) for word in extras()[name])


def test_a_developer_has_every_extra_that_the_pinned_torch_allows() -> None:
    others = {*extras()} - {"dev", "docs", "timm", "mlflow", "wandb", ""}  # see pyproject.toml
    assert f"notan[{','.join(sorted(others))}]" == f"notan[{','.join(sorted(_of_dev()))}]"


def _of_dev() -> list[str]:
    own = next(word for word in extras()["dev"] if word.startswith("notan["))
    return own.removeprefix("notan[").removesuffix("]").split(",")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("train", "--data-path", "{data}"), "training"),
        (("evaluate", "--model", "{model}", "--data-path", "{data}"), "{model}"),
        (("predict", "--model", "{model}", "{data}/test/images"), "{model}"),
        (("compare", "{model}", "{model}"), "notan compare"),
        (("export", "--model", "{model}"), "export"),
        (("report", "{run}"), "notan report"),
        (("demo", "--out", "{run}/demo"), "notan demo"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_needs_torch_says_so_in_one_line(
    words: tuple[str, ...], wanted: str, small_checkpoint: Path, drawn_folder: Path
) -> None:
    places = {"model": small_checkpoint, "data": drawn_folder, "run": small_checkpoint.parent}
    result = run_without("torch", *(word.format(**places) for word in words))
    assert result.returncode == MissingExtraError.exit_code
    last = result.stderr.splitlines()[-1]
    needs = f"notan: {wanted.format(**places)} needs PyTorch: pip install 'notan[train]'"
    assert last.startswith(needs)
    assert ("notan export --model" in last) == (wanted == "{model}")
    assert "Traceback" not in result.stderr
