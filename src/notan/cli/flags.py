"""Flags that several commands share, and how a flag shows its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional, arg

from notan.config import Run

DEFAULT = Run()


def shows(default: object, metavar: str) -> Any:  # noqa: ANN401 - tyro keeps its type private
    """Describe an optional flag whose default comes from the recipe or from Run."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


DataPath: TypeAlias = Annotated[Path | None, shows("none; needed", "FOLDER")]
Device: TypeAlias = Annotated[str, arg(metavar="auto|cpu|cuda|cuda:1|mps")]
BorderFlag: TypeAlias = Annotated[
    Literal["figure", "ground", "ignore"] | None,
    shows("the model's own", "figure|ground|ignore"),
]
Split: TypeAlias = Annotated[str, arg(metavar="test|val|train|all")]
Threshold: TypeAlias = Annotated[float | None, shows("as validation chose", "0..1")]
Tta: TypeAlias = Annotated[str | None, shows("none", "mirror,flip,turn,scale")]
BackendFlag: TypeAlias = Annotated[str, arg(metavar="auto|torch|onnxruntime|openvino")]
PrecisionFlag: TypeAlias = Annotated[Literal["fp32", "bf16"], arg(metavar="fp32|bf16")]
Threads: TypeAlias = Annotated[int | None, shows("the runtime's own choice", "N")]
Scale: TypeAlias = Annotated[float | None, shows("as training saw its pictures", "FRACTION")]
ModelFile: TypeAlias = Annotated[Path, arg(metavar="FILE")]
Inputs: TypeAlias = Positional[Annotated[tuple[Path, ...], arg(metavar="INPUT ...")]]
Overrides: TypeAlias = Positional[
    Annotated[tuple[str, ...], arg(metavar="SECTION.KEY=VALUE ...", help_behavior_hint="")]
]
