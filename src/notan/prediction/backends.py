"""Backends: the same network on PyTorch, ONNX Runtime or OpenVINO.

Each runtime is imported only where its backend is made, so that an ONNX model predicts on a
machine without PyTorch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from notan.errors import (
    CheckpointError,
    ConfigError,
    OutOfMemoryError,
    ShapeError,
    explaining_extras,
    explaining_memory,
    nearest,
    stop_telemetry,
)
from notan.io.write import is_text
from notan.modelfile.card import load_checkpoint, read_card
from notan.modelfile.onnx import is_onnx
from notan.prediction.batches import Answered
from notan.prediction.batches import Array as Array
from notan.prediction.batches import Backend as Backend
from notan.runtime import choose_precision, find_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import torch

    from notan.modelfile.card import Card, Checkpoint
    from notan.models.own import Network
    from notan.types import ModelInput

logger = logging.getLogger("notan")

Precision = Literal["auto", "fp32", "bf16"]
"""What a network computes in: float32, or bfloat16 where the machine is quicker in it; ``auto``:
bfloat16 on a GPU that computes in it, which may move pixels at the edge, else float32."""

ONNX_RUNTIMES = ("openvino", "onnxruntime")
"""What runs an ONNX model; the quicker one first."""

ERRORS_ONLY = 3
"""Log level of ONNX Runtime: its warnings are of nodes and machines, not of the image."""


@runtime_checkable
class _Exact(Protocol):
    """A backend that says what it computes in."""

    @property
    def precision(self) -> Precision:
        """``fp32`` or ``bf16``."""


def precision_of(backend: Backend) -> Precision:
    """Say what a network computes in: fp32 but for backends that say otherwise."""
    return backend.precision if isinstance(backend, _Exact) else "fp32"


class TorchBackend:
    """A PyTorch module in evaluation mode, which many threads may call at once.

    Attributes:
        device: Where it runs.
        model: The module that runs: in float32 the one that was given, in bfloat16 a copy.
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        in_training: bool = False,
    ) -> None:
        """Move a module to a device; it is used as it is, so train it no further meanwhile.

        Args:
            model: From (n, channels, h, w) to logits (n, 1, h, w).
            device: Where to run.
            precision: ``bf16`` rounds a copy of the weights to bfloat16 and computes in it. That
                is as quick as autocast, which rounds them again for every image, and needs half
                the memory.
            threads: At most so many of the processor, whichever thread calls; None: as PyTorch
                is set.
            in_training: Leave its weights lying as a fused optimizer pairs them with moments.
        """
        import torch

        self.device = torch.device(device)
        self.precision = _chosen_precision(precision, self.device)
        self._dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        if self.precision == "bf16":
            model = copy.deepcopy(model).to(torch.bfloat16)
        self._layout = layout = torch.preserve_format if in_training else torch.channels_last
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self._threads = threads
        if threads is not None:
            torch.set_num_threads(threads)
        self._lock = threading.Lock()
        self._running = 0
        self._was_training = False

    @property
    def overlaps(self) -> bool:
        """Whether it computes on a GPU, which needs no processor meanwhile."""
        return self.device.type == "cuda"

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, channels, h, w) to logits, float32 (n, 1, h, w)."""
        return self.begin(inputs)().logits

    def begin(self, inputs: Sequence[ModelInput] | Array) -> Callable[[], Answered]:
        """Take a batch of float32 (channels, h, w); what is returned waits for the answer.

        On a GPU everything is put in its queue here, from and to memory that it can read by itself
        (pinned); elsewhere the answer is there already.

        Raises:
            ShapeError: The network returned another shape.
        """
        import torch

        # OpenMP keeps the number for each thread: one that computed before has its own
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        size = (len(inputs), *inputs[0].shape)
        staged = torch.empty(size, pin_memory=self.overlaps)
        np.stack(list(inputs), out=staged.numpy())
        with self._evaluation_mode(), torch.inference_mode():
            began = self._moment()
            images = staged.to(self.device, non_blocking=self.overlaps)
            images = images.to(self._dtype, memory_format=self._layout)
            found = self._forward(images).float()
            logits = torch.empty(found.shape, pin_memory=self.overlaps)
            logits.copy_(found, non_blocking=self.overlaps)
            ended = self._moment()
        _check(found.shape, size, type(self.model).__name__)
        return functools.partial(self._answer, logits, began, ended)

    def _moment(self) -> float | torch.cuda.Event:
        """Note the time: on a GPU that at which its queue comes to here."""
        import torch

        if not self.overlaps:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _answer(self, logits: torch.Tensor, began: Any, ended: Any) -> Answered:  # noqa: ANN401 - what _moment returns
        if not self.overlaps:
            return Answered(logits.numpy(), ended - began)
        ended.synchronize()
        return Answered(logits.numpy(), began.elapsed_time(ended) / 1e3)

    def compiled(self) -> TorchBackend:
        """Return the same network compiled; it is compiled for the batches that come first.

        Where PyTorch cannot, one line says so and the network runs as it is.
        """
        other = copy.copy(self)
        other._lock, other._running = threading.Lock(), 0
        other._forward = _Compiled(self.model)
        return other

    @contextlib.contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Keep the module in evaluation mode until the last thread's call has ended.

        Were each call to turn it back by itself, another thread's images would pass in training
        mode, and change the running statistics for good.
        """
        with self._lock:
            if not self._running:
                self._was_training = self.model.training
                self.model.eval()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self.model.train(self._was_training)


class _Compiled:
    """A module compiled for inputs of the shape that comes first; others run as they are.

    So a last, smaller batch compiles nothing anew.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        self._model = model
        self._network: Callable[[torch.Tensor], torch.Tensor] | None = torch.compile(model)
        self._shape: torch.Size | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        network, self._shape = self._network, self._shape or images.shape
        if network is None or images.shape != self._shape:
            return self._model(images)  # type: ignore[no-any-return]
        try:
            with explaining_memory():
                return network(images)
        except OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("the network runs as it is, for it could not be compiled (%s)", reason)
            self._network = None
            return self._model(images)  # type: ignore[no-any-return]


class OnnxRuntimeBackend:
    """An ONNX model on ONNX Runtime, on the processor, in float32 (int8 where the file is).

    Attributes:
        precision: ``fp32``.
    """

    precision: Precision = "fp32"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load an ONNX model.

        Args:
            path: The ``.onnx`` file.
            threads: At most so many; None: one for each core.

        Raises:
            CheckpointError: ONNX Runtime cannot run the file.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Threads that spin while they wait slow everything else on a busy machine down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                _openable(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class but this
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: ONNX Runtime cannot run it: {reason}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return all that the graph gives, whatever it takes."""
        answers: list[npt.NDArray[Any]] = self._session.run(None, {self._input: inputs})
        return answers

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, channels, h, w) to logits, float32 (n, 1, h, w)."""
        return _checked(self.run(inputs)[0], inputs)


class OpenVinoBackend:
    """An ONNX model on OpenVINO, on the processor, which many threads may call at once.

    Attributes:
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(
        self, path: Path, *, precision: Precision = "fp32", threads: int | None = None
    ) -> None:
        """Compile an ONNX model for this processor.

        OpenVINO can keep what it compiled in a folder. It is not told to: it reads it again
        unchecked, so that a byte that has flipped there gives another mask, and to check it by
        its hash takes as long as to compile it.

        Args:
            path: The ``.onnx`` file.
            precision: OpenVINO itself would choose bfloat16 wherever it is quicker, and so other
                masks on other machines; here float32 is the default, and ``auto`` too.
            threads: At most so many; None: OpenVINO's choice.

        Raises:
            CheckpointError: OpenVINO cannot run the file.
        """
        self.precision: Precision = "bf16" if precision == "bf16" else "fp32"
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            network = _openvino_core().read_model(_openable(path))
            self._compiled = _openvino_core().compile_model(network, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise CheckpointError(f"{path}: OpenVINO cannot run it: {reason}") from error
        # A request takes one call at a time: there are as many as calls that ran at once
        self._free = deque([self._compiled.create_infer_request()])

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, channels, h, w) to logits, float32 (n, 1, h, w)."""
        return _checked(self.run(inputs)[0], inputs)

    def run(self, inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return all that the graph gives, whatever it takes."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # The request's own memory is written again by the next image, so answers are copied
            return [each.copy() for each in request.infer({0: inputs}).values()]
        finally:
            self._free.append(request)


OnnxBackend: TypeAlias = OnnxRuntimeBackend | OpenVinoBackend


_FIRST_USE = threading.Lock()


def _openvino_core() -> Any:  # noqa: ANN401 - openvino.Core, without importing it above
    """Return the process's one OpenVINO, made by one thread alone."""
    with _FIRST_USE:
        return _make_openvino_core()


@functools.cache
def _make_openvino_core() -> Any:  # noqa: ANN401
    """Return an OpenVINO that lives as long as the process.

    It lends the thread its stack for signals, and takes that back when it goes: a later signal
    that has a handler (PyTorch's for data workers has one) would then end the process.
    """
    stop_telemetry()
    import openvino

    # its first look at an array finds NumPy for all others; two threads that do so at once wait
    # for each other for ever, and with them everything else in the process
    openvino.Tensor(np.zeros(1, np.float32))
    return openvino.Core()


def _openable(path: Path) -> str | bytes:
    """Return what a runtime opens: a path that is text, else the file's content."""
    return str(path) if is_text(path) else path.read_bytes()


def _checked(logits: Array, inputs: Array) -> Array:
    """Return logits, or refuse what is not one for each pixel of the inputs."""
    _check(logits.shape, inputs.shape, "the network")
    return logits


def _check(found: Sequence[int], inputs: Sequence[int], network: str) -> None:
    """Refuse what is not one logit for each pixel of the inputs."""
    wanted = (inputs[0], 1, *inputs[2:])
    if tuple(found) != wanted:
        raise ShapeError(
            f"{network} returned {tuple(found)} for an input of {tuple(inputs)}; logits of "
            f"{wanted} are wanted"
        )


def _chosen_precision(wanted: Precision, device: torch.device) -> Precision:
    """Choose what a network computes in; on a processor every machine gives the same masks."""
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "fp32"
    import torch

    return "bf16" if choose_precision("auto", device).dtype is torch.bfloat16 else "fp32"


def open_model(
    path: Path,
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    threads: int | None = None,
    own_model: Network | None = None,
) -> tuple[Card, Backend]:
    """Read a model file and make the backend that runs it.

    Args:
        path: A checkpoint (``.safetensors``), which runs on PyTorch, or an ONNX model
            (``.onnx``), which runs on OpenVINO or else ONNX Runtime, whichever is installed.
        backend: ``auto``, or the one of them to use.
        device: Where to run; an ONNX model runs on the processor only.
        precision: ``fp32``, ``bf16`` where the runtime can, or ``auto``: bf16 on a GPU that
            computes in it.
        threads: At most so many of the processor; None: the runtime's own choice. PyTorch knows
            one number for the whole process, so give all models of a process the same.
        own_model: Where a checkpoint is of a class of the user's own: that, or what makes one.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, or of a network that was not given.
        ConfigError: The network that was given does not work, or the file or the runtime cannot
            do what was asked for.
        MissingExtraError: The runtime is not installed.
    """
    for flag, name, choices in (
        ("--backend", backend, ("auto", "torch", *ONNX_RUNTIMES)),
        ("--precision", precision, ("auto", "fp32", "bf16")),
    ):
        if name not in choices:
            raise ConfigError(f"{flag} {name}: there is no such choice{nearest(name, choices)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: at least 1 is wanted")
    if is_onnx(path):
        if own_model is not None:
            raise ConfigError(
                f"{path}: an ONNX model holds its network; leave --model-class out (network=)"
            )
        card = read_card(path)
        if card.exported and card.exported.end_to_end:
            raise ConfigError(
                f"{path}: it takes pixels and gives masks by itself, for programs without notan "
                "(export --end-to-end); here give the checkpoint that it was made from, or a file "
                "that was exported without that flag"
            )
        runtime = _choose_onnx_runtime(path, backend, device, precision)
        with explaining_extras(f"--backend {runtime}"):
            return card, onnx_backend(path, runtime, precision=precision, threads=threads)
    if backend in ONNX_RUNTIMES:
        raise ConfigError(
            f"{path}: a checkpoint runs on PyTorch only; make an ONNX model for {backend}: "
            f"notan export --model {path} --to onnx"
        )
    needless = f"; or make an ONNX model of it where PyTorch is: notan export --model {path}"
    with explaining_extras(str(path), otherwise=needless):
        checkpoint = load_checkpoint(path)
        where = find_device(device) if isinstance(device, str) else device
        network = rebuild(checkpoint, own_model, path=path).eval()
        return checkpoint.card, TorchBackend(network, where, precision=precision, threads=threads)


def _choose_onnx_runtime(
    path: Path, backend: str, device: str | torch.device, precision: Precision
) -> str:
    if str(device) not in ("auto", "cpu"):
        raise ConfigError(
            f"{path}: an ONNX model runs on the processor, not on {device}; leave --device out, "
            "or give the checkpoint that it was made from"
        )
    if backend == "torch":
        raise ConfigError(
            f"{path}: PyTorch cannot run an ONNX model; leave --backend out, or give the "
            "checkpoint that it was made from"
        )
    chosen = installed_runtimes()[0] if backend == "auto" else backend
    if chosen == "onnxruntime" and precision == "bf16":
        raise ConfigError(
            f"{path}: ONNX Runtime computes in fp32 only, {precision} was asked for; install "
            "OpenVINO for it: pip install 'notan[openvino]'"
        )
    return chosen


def onnx_backend(
    path: Path, runtime: str, *, precision: Precision = "fp32", threads: int | None = None
) -> OnnxBackend:
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

    ONNX Runtime comes with notan; OpenVINO with an extra.
    """
    return ONNX_RUNTIMES if importlib.util.find_spec("openvino") else ONNX_RUNTIMES[1:]


def rebuild(
    checkpoint: Checkpoint, own_model: Network | None, *, path: Path | None = None
) -> torch.nn.Module:
    """Return the checkpoint's network with its weights.

    A class that only the card names is not imported: a card could come from anybody.

    Args:
        checkpoint: Card and weights.
        own_model: Where the checkpoint is of a class of the user's own: that, or what makes one.
        path: The file, for messages.

    Raises:
        CheckpointError: The network is the user's own and was not given, or the weights belong
            to another network.
        ConfigError: The network that was given cannot be built or does not keep the contract.
    """
    from notan.models.own import build_own

    card, file = checkpoint.card, path or "this checkpoint"
    if own_model is None:
        model = _build(card, file)
    else:
        model = build_own(own_model, card.run.model.arguments)
        _require_same_class(model, card, file)
    try:
        model.load_state_dict(dict(checkpoint.weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: the weights do not fit {type(model).__name__}: {reason}"
        ) from error
    if not (card.model or card.members):
        _require_answer(model, card, file)
    return model


def _require_same_class(model: torch.nn.Module, card: Card, file: Path | str) -> None:
    name = type(model).__name__
    if name == card.model_class:
        return
    if card.model or card.members:
        raise CheckpointError(
            f"{file}: this is of {card.model_class}, one of notan's networks, and not of {name}; "
            "leave --model-class out (network=)"
        )
    raise CheckpointError(
        f"{file}: this is of the class {card.model_class}, and the one given is {name}; other code "
        "makes other masks of the same weights: give the class by the name it was trained under"
    )


def _require_answer(model: torch.nn.Module, card: Card, file: Path | str) -> None:
    """Try the user's own network once, for its code may have changed since its training."""
    from notan.models.base import stride_of
    from notan.models.own import require_contract, trial_sizes

    preprocess, stride = card.preprocess, stride_of(model)
    if stride != preprocess.stride:
        raise CheckpointError(
            f"{file}: {card.model_class} was trained with stride {preprocess.stride} and now "
            f"states {stride}; give it the stride it had"
        )
    for size in trial_sizes(preprocess):
        require_contract(model, size, training=False, channels=preprocess.channels)


def _build(card: Card, file: Path | str) -> torch.nn.Module:
    """Build a card's network, freshly initialised."""
    from notan.models.build import build_model
    from notan.models.ensemble import Ensemble

    channels = card.preprocess.channels
    if card.members:
        return Ensemble(
            [build_model(member.model, channels) for member in card.members],
            [member.weight for member in card.members],
            temperatures=[member.temperature for member in card.members],
            biases=[member.bias for member in card.members],
        )
    if card.model:
        return build_model(card.model, channels)
    where = card.run.model.class_path or f"PACKAGE:{card.model_class}"
    raise CheckpointError(
        f"{file}: this is of {card.model_class}, a class of your own; no file makes notan import "
        f"code, so add --model-class {where}, or in Python load(..., network={card.model_class})"
    )
