"""Every backend gives the same mask of the same picture, alone or in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from forbidden import run_without
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = [DrawnSource(1, size=size, seed=5)[0].image for size in [(40, 48), (33, 71), (8, 9)]]
SAME_SIZE = [sample.image for sample in DrawnSource(8, size=(40, 48), seed=6)]
RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what OpenVINO compiles out of the home of who runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_same_picture_gives_the_same_mask(
    runtime: str, batch_size: int, portable: Path, small_checkpoint: Path
) -> None:
    ours, theirs = Predictor.load(small_checkpoint), Predictor.load(portable, backend=runtime)
    pictures = SAME_SIZE if batch_size > 1 else PICTURES
    expected = list(ours.predict_many(pictures, batch_size=batch_size))
    found = list(theirs.predict_many(pictures, batch_size=batch_size))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-4)
        sure = np.abs(one.probability - one.decision.threshold) > 1e-4
        np.testing.assert_array_equal(one.mask[sure], other.mask[sure])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_answer_is_not_written_over_by_the_next(runtime: str, portable: Path) -> None:
    backend = Predictor.load(portable, backend=runtime).backend
    rows = np.random.default_rng(0).normal(size=(2, 1, 3, 32, 32)).astype(np.float32)
    first = backend(rows[0])
    kept = first.copy()
    backend(rows[1])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("file", ["checkpoint", "portable"])
def test_bf16_is_near_to_fp32(file: str, portable: Path, small_checkpoint: Path) -> None:
    path = portable if file == "portable" else small_checkpoint
    exact, rounded = (Predictor.load(path, precision=each) for each in ("fp32", "bf16"))
    picture = PICTURES[0]
    np.testing.assert_allclose(exact(picture).probability, rounded(picture).probability, atol=0.05)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_thread_gives_the_same(runtime: str, portable: Path) -> None:
    one = Predictor.load(portable, backend=runtime, threads=1)(PICTURES[0])
    free = Predictor.load(portable, backend=runtime)(PICTURES[0])
    np.testing.assert_allclose(one.probability, free.probability, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_machine_without_torch_predicts(
    runtime: str, portable: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    absent = "torch,safetensors,filelock,matplotlib,onnx,onnxscript,nncf"
    other = next(each for each in RUNTIMES if each != runtime)
    words = ("predict", str(drawn_folder / "test" / "images"), "--model", str(portable))
    result = run_without(f"{absent},{other}", *words, "--out", tmp_path / "o", "--backend", runtime)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "o" / "masks").iterdir())) == 6


def test_openvino_keeps_what_it_compiled_by_the_content_of_the_file(
    portable: Path, own_cache: Path
) -> None:
    predictor = Predictor.load(portable, backend="openvino")
    assert predictor.card is not None
    folder = own_cache / "notan" / "openvino" / predictor.card.sha256[:32]
    assert list(folder.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "torch"}, "PyTorch cannot run a portable file"),
        ({"backend": "openvion"}, "did you mean 'openvino'"),
        ({"device": "cuda"}, "runs on the processor, not on cuda"),
        ({"precision": "fp16"}, "--precision fp16: there is no such choice"),
        ({"threads": 0}, "--threads 0: at least 1 is wanted"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "ONNX Runtime computes in fp32 only"),
    ],
)
def test_what_a_portable_file_cannot_do_is_refused(
    settings: dict[str, object], words: str, portable: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        Predictor.load(portable, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_checkpoint_runs_on_torch_only(runtime: str, small_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="runs on PyTorch only; make a portable file"):
        Predictor.load(small_checkpoint, backend=runtime)
