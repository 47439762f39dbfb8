"""The backend on PyTorch: begun and answered, compiled or as it is, in the arithmetic it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from needs import OPENVINO
from notan.errors import OutOfMemoryError, ShapeError
from notan.prediction import backends
from notan.prediction.backends import TorchBackend, precision_of
from notan.prediction.batches import Overlapping, computes_beside
from notan.prediction.predictor import Predictor
from notan.prediction.tta import AugmentedBackend
from notan.runtime import Precision as Arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INPUTS = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
    return nn.Sequential(*layers).eval()


def plain(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The network as PyTorch's manual runs one."""
    with torch.inference_mode():
        images = torch.from_numpy(inputs).to(memory_format=torch.channels_last)
        answer: np.ndarray[Any, Any] = (
            network()
            .to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
                images
            )
            .numpy()
        )
    return answer


def test_what_is_begun_answers_what_a_call_does() -> None:
    backend = TorchBackend(network())
    assert isinstance(backend, Overlapping)
    assert not computes_beside(backend)
    answers = [backend.begin(list(INPUTS[:2])), backend.begin(list(INPUTS[2:]))]
    for answer, inputs in zip(answers, (INPUTS[:2], INPUTS[2:]), strict=True):
        answered = answer()
        np.testing.assert_array_equal(answered.logits, plain(inputs))
        np.testing.assert_array_equal(answered.logits, backend(inputs))
        assert answered.seconds > 0


def test_a_wrong_shape_is_refused_however_it_is_asked() -> None:
    backend = TorchBackend(nn.Conv2d(3, 2, 1))
    for ask in (lambda: backend(INPUTS), lambda: backend.begin(list(INPUTS))()):
        with pytest.raises(ShapeError, match=r"Conv2d returned \(4, 2, 16, 16\)"):
            ask()


class Compiler:
    """Stands for torch.compile: notes the shapes that it is called with, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.shapes = error, []  # type: ignore[var-annotated]

    def __call__(self, model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(images: torch.Tensor) -> torch.Tensor:
            self.shapes.append(tuple(images.shape))
            if self.error is not None:
                raise self.error
            answer: torch.Tensor = model(images)
            return answer

        return run


def test_a_compiled_network_is_compiled_for_one_shape_and_takes_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    plain_backend = TorchBackend(network())
    backend = plain_backend.compiled()
    for inputs in (INPUTS, INPUTS, INPUTS[:1], INPUTS[..., :8, :8], INPUTS):
        np.testing.assert_array_equal(backend(inputs), plain_backend(inputs))
    assert compiler.shapes == [INPUTS.shape] * 3


def test_where_it_cannot_be_compiled_one_line_says_so_and_it_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(RuntimeError("no C++ compiler\nwas found"))
    monkeypatch.setattr(torch, "compile", compiler)
    backend = TorchBackend(network()).compiled()
    for _ in range(3):
        np.testing.assert_array_equal(backend(INPUTS), plain(INPUTS))
    assert len(compiler.shapes) == 1
    assert [line.message for line in caplog.records] == [
        "the network runs as it is, for it could not be compiled (RuntimeError: no C++ compiler "
        "was found)"
    ]


def test_memory_that_runs_out_is_no_fault_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        TorchBackend(network()).compiled()(INPUTS)
    assert not caplog.records


def test_views_of_a_compiled_network_are_seen_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    augmented = AugmentedBackend(TorchBackend(network()), ["hflip"], stride=1)
    np.testing.assert_array_equal(augmented.compiled()(INPUTS), augmented(INPUTS))
    assert compiler.shapes == [INPUTS.shape] * 2


@pytest.mark.parametrize(
    ("wanted", "found"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")]
)
def test_on_a_processor_it_computes_in_fp32_unless_told_otherwise(wanted: Any, found: str) -> None:
    backend = TorchBackend(network(), precision=wanted)
    assert backend.precision == precision_of(backend) == found
    assert precision_of(AugmentedBackend(backend, ["hflip"], stride=1)) == found
    assert next(backend.model.parameters()).dtype is (
        torch.bfloat16 if found == "bf16" else torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_the_rule_of_training_decides(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(wanted: str, device: torch.device) -> Arithmetic:
        assert (wanted, device.type) == ("auto", "meta")
        return Arithmetic(device, dtype, "a test")

    monkeypatch.setattr(backends, "choose_precision", rule)
    backend = TorchBackend(network(), "meta", precision="auto")
    assert backend.precision == ("bf16" if dtype is torch.bfloat16 else "fp32")


def test_a_function_of_ones_own_computes_in_fp32() -> None:
    assert precision_of(lambda inputs: inputs[:, :1]) == "fp32"


@pytest.mark.parametrize(
    ("runtime", "wanted", "found"),
    [
        ("onnxruntime", "auto", "fp32"),
        pytest.param("openvino", "auto", "fp32", marks=OPENVINO),
        pytest.param("openvino", "bf16", "bf16", marks=OPENVINO),
    ],
)
def test_an_onnx_model_says_what_it_computes_in(
    runtime: str, wanted: Any, found: str, portable: Path
) -> None:
    predictor = Predictor.load(portable, backend=runtime, precision=wanted)
    assert predictor.precision == found
    assert not predictor.leaves_processor_free
    assert predictor.choose_batch_size() == 1
