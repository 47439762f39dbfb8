"""From a model file to its card and a backend that runs it on this machine."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from notan.errors import EXTRAS, ConfigError, MissingExtraError, explaining_extras, nearest
from notan.modelfile.card import load_checkpoint, read_card
from notan.modelfile.onnx import is_onnx
from notan.prediction.backends.onnx import OnnxRuntimeBackend, OpenVinoBackend
from notan.prediction.backends.torch import TorchBackend, rebuild
from notan.runtime import find_device

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from notan.modelfile.card import Card
    from notan.prediction.backends.base import Backend, Precision

PORTABLE = ("openvino", "onnxruntime")
"""What runs an ONNX model; the quicker one first."""

RUNTIMES = ("auto", "torch", *PORTABLE)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def open_model(
    path: Path,
    *,
    runtime: str = "auto",
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    threads: int | None = None,
    own_model: torch.nn.Module | None = None,
) -> tuple[Card, Backend]:
    """Read a model file and make the backend that runs it.

    Args:
        path: A checkpoint (``.safetensors``), which runs on PyTorch, or an ONNX model
            (``.onnx``), which runs on OpenVINO or else ONNX Runtime, whichever is installed.
        runtime: ``auto``, or the one of them to use.
        device: Where to run; an ONNX model runs on the processor only.
        precision: ``fp32``, or ``bf16`` where the runtime can.
        threads: At most so many of the processor; None: the runtime's own choice. PyTorch knows
            one number for the whole process.
        own_model: A fresh instance, where a checkpoint is of a class of the user's own.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, or of a network that was not given.
        ConfigError: The file or the runtime cannot do what was asked for.
        MissingExtraError: The runtime is not installed.
    """
    _check(runtime, precision, threads)
    if is_onnx(path):
        return _open_portable(path, runtime, device, precision, threads)
    if runtime in PORTABLE:
        raise ConfigError(
            f"{path}: a checkpoint runs on PyTorch only; make an ONNX model for {runtime}: "
            f"notan export --model {path} --to onnx"
        )
    with explaining_extras():
        checkpoint = load_checkpoint(path)
        where = find_device(device) if isinstance(device, str) else device
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        network = rebuild(checkpoint, own_model)
        return checkpoint.card, TorchBackend(network, where, precision=precision)


def _open_portable(
    path: Path,
    runtime: str,
    device: str | torch.device,
    precision: Precision,
    threads: int | None,
) -> tuple[Card, Backend]:
    card = read_card(path)
    if str(device) not in ("auto", "cpu"):
        raise ConfigError(
            f"{path}: an ONNX model runs on the processor, not on {device}; leave --device out, "
            "or give the checkpoint that it was made from"
        )
    if runtime == "torch":
        raise ConfigError(
            f"{path}: PyTorch cannot run an ONNX model; leave --backend out, or give the "
            "checkpoint that it was made from"
        )
    chosen = installed_runtimes()[0] if runtime == "auto" else runtime
    if chosen == "onnxruntime" and precision != "fp32":
        raise ConfigError(
            f"{path}: ONNX Runtime computes in fp32 only, {precision} was asked for; install "
            "OpenVINO for it: pip install 'notan[openvino]'"
        )
    with explaining_extras():
        return card, portable_backend(path, chosen, precision=precision, threads=threads)


def portable_backend(
    path: Path,
    runtime: str,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
) -> Backend:
    """Load an ONNX model, whatever its card says.

    Args:
        path: The file.
        runtime: ``openvino`` or ``onnxruntime``.
        precision: ``bf16`` on OpenVINO only.
        threads: At most so many.

    Raises:
        CheckpointError: The runtime cannot run the file.
    """
    if runtime == "onnxruntime":
        return OnnxRuntimeBackend(path, threads=threads)
    return OpenVinoBackend(path, precision=precision, threads=threads)


def installed_runtimes() -> tuple[str, ...]:
    """Name what can run an ONNX model on this machine, the quicker one first.

    Raises:
        MissingExtraError: Nothing can.
    """
    found = tuple(name for name in PORTABLE if importlib.util.find_spec(name) is not None)
    if not found:
        choices = " or ".join(f"pip install 'notan[{EXTRAS[name]}]'" for name in PORTABLE)
        raise MissingExtraError(
            f"an ONNX model needs OpenVINO or ONNX Runtime, and neither is installed: {choices}"
        )
    return found


def _check(runtime: str, precision: str, threads: int | None) -> None:
    for name, choices in ((runtime, RUNTIMES), (precision, PRECISIONS)):
        if name not in choices:
            flag = "--backend" if choices is RUNTIMES else "--precision"
            raise ConfigError(f"{flag} {name}: there is no such choice{nearest(name, choices)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: at least 1 is wanted")
