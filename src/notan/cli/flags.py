"""Flags that several commands share, and how a flag shows its default."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional, arg

from notan.config import Run
from notan.errors import ConfigError

DEFAULT = Run()
NUMBER = r"(\d+(?:\.\d+)?)"
DURATION = re.compile(rf"(?:{NUMBER}h)?(?:{NUMBER}m)?(?:{NUMBER}s)?", re.ASCII)
UNITS = (3600, 60, 1)


def shows(default: object, metavar: str) -> Any:  # noqa: ANN401 - tyro keeps its type private
    """Describe an optional flag whose default comes from the recipe or from Run."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


DataPath: TypeAlias = Annotated[Path | None, shows("none; needed", "FOLDER")]
Device: TypeAlias = Annotated[str, arg(metavar="auto|cpu|cuda|cuda:1|mps")]
TrimapBorderFlag: TypeAlias = Annotated[
    Literal["foreground", "background", "ignore"] | None,
    shows("the model's own", "foreground|background|ignore"),
]
Split: TypeAlias = Annotated[str, arg(metavar="test|val|train|all")]
Threshold: TypeAlias = Annotated[float | None, shows("as validation chose", "0..1")]
Tta: TypeAlias = Annotated[str | None, shows("none", "hflip,vflip,rot90,scale")]
BackendFlag: TypeAlias = Annotated[str, arg(metavar="auto|torch|onnxruntime|openvino")]
PrecisionFlag: TypeAlias = Annotated[Literal["fp32", "bf16"], arg(metavar="fp32|bf16")]
TimeLimitFlag: TypeAlias = Annotated[str | None, shows("none", "90s|10m|1.5h")]
Threads: TypeAlias = Annotated[int | None, shows("the runtime's own choice", "N")]
Scale: TypeAlias = Annotated[float | None, shows("as training saw its images", "FRACTION")]
ModelFile: TypeAlias = Annotated[Path, arg(metavar="FILE")]
ModelOrDefault: TypeAlias = Annotated[
    Path | None, shows("the default model, for cats and dogs", "FILE")
]
Inputs: TypeAlias = Positional[Annotated[tuple[Path, ...], arg(metavar="INPUT ...")]]
Overrides: TypeAlias = Positional[
    Annotated[tuple[str, ...], arg(metavar="SECTION.KEY=VALUE ...", help_behavior_hint="")]
]


def seconds_of(time_limit: str) -> float:
    """Return the seconds of a time such as 90s, 10m, 1.5h, 1h30m or 600.

    Raises:
        ConfigError: It is no time, or none at all.
    """
    text = time_limit.strip()
    alone = re.fullmatch(NUMBER, text, re.ASCII)
    found = DURATION.fullmatch(f"{text}s" if alone else text)
    parts = found.groups(default="0") if found else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, UNITS, strict=False))
    if not 0 < seconds < math.inf:
        raise ConfigError(
            f"--time-limit {time_limit}: a time above zero is wanted, such as 90s, 10m, 1.5h or "
            "1h30m; a "
            "number alone is seconds"
        )
    return seconds
