"""Every backend gives the same mask of the same image: alone, in a batch, in tiles, as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from forbidden import run_without
from needs import INSTALLED, OPENVINO, RUNTIMES
from notan.cli.main import main
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError
from notan.prediction.formats.writers import FORMATS, FileFormat
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import Tiling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.prediction.backends import Precision
    from notan.prediction.predictor import Prediction

IMAGES = [DrawnSource(1, size=size, seed=5)[0].image for size in [(70, 90), (33, 71), (8, 9)]]
SAME_SIZE = [sample.image for sample in DrawnSource(8, size=(40, 48), seed=6)]
MOST = 1e-5
"""That a probability may differ by between two runtimes."""


@dataclass(frozen=True)
class Way:
    """A way for an image to go through a network.

    Attributes:
        own_pixels: As if training had kept the images' own pixels.
        tiling: When and how it is cut.
    """

    own_pixels: bool = False
    tiling: Tiling | None = None

    def open(self, model: Path, runtime: str) -> Predictor:
        predictor = Predictor.load(model, backend=runtime, tiling=self.tiling)
        if self.own_pixels:
            kept = predictor.preprocessor.model_copy(update={"image_size": None})
            predictor.preprocessor = kept
        return predictor


WAYS = {
    "whole": Way(),
    "whole at its own pixels": Way(own_pixels=True),
    "in tiles": Way(tiling=Tiling(always=True)),
    "in tiles of its own pixels": Way(
        own_pixels=True, tiling=Tiling(always=True, input_size=(32, 32))
    ),
}


def clear_threshold(predictions: Sequence[Prediction]) -> float:
    """Return a threshold amid the probabilities and as far from any of them as can be.

    Runtimes round their last digits differently; so no pixel has an excuse.
    """
    values = np.sort(np.concatenate([each.probability.ravel() for each in predictions]))
    middle = values[len(values) // 4 : -len(values) // 4].astype(np.float64)
    widest = int(np.argmax(np.diff(middle)))
    return float(middle[widest : widest + 2].mean())


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runtime", ["torch", *RUNTIMES])
def test_the_same_image_gives_the_same_mask(
    runtime: str, way: str, batch_size: int, portable: Path, small_checkpoint: Path
) -> None:
    images = [*IMAGES, *SAME_SIZE]
    model = small_checkpoint if runtime == "torch" else portable
    expected = list(WAYS[way].open(small_checkpoint, "torch").predict_many(images))
    found = list(WAYS[way].open(model, runtime).predict_many(images, batch_size=batch_size))
    for one, other in zip(expected, found, strict=True):
        threshold = clear_threshold([one])
        np.testing.assert_allclose(one.probability, other.probability, atol=MOST)
        mask = one.postprocessing.with_threshold(threshold).mask(one.probability)
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(
            mask, other.postprocessing.with_threshold(threshold).mask(other.probability)
        )


@pytest.mark.parametrize("way", [name for name in WAYS if WAYS[name].tiling])
def test_those_tiles_are_several(way: str, small_checkpoint: Path) -> None:
    predictor = WAYS[way].open(small_checkpoint, "torch")
    assert predictor.card is not None
    size = IMAGES[0].shape[0], IMAGES[0].shape[1]
    trained = predictor.card.data.median_size
    grid = predictor.tiling.grid(size, predictor.preprocessor, trained)
    assert len(grid.rows) > 1
    assert len(grid.columns) > 1


@pytest.fixture(scope="module")
def written(
    portable: Path,
    small_checkpoint: Path,
    drawn_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The outputs of ``notan predict`` in every format there is, by runtime."""
    images = drawn_folder / "test" / "images"
    predictor = Predictor.load(small_checkpoint)
    threshold = clear_threshold([predictor(path) for path in sorted(images.iterdir())])
    folders = {}
    for runtime in ("torch", *INSTALLED):
        out = folders[runtime] = tmp_path_factory.mktemp(runtime)
        model = small_checkpoint if runtime == "torch" else portable
        words = ("--model", model, "--backend", runtime, "--out", out, "--threshold", threshold)
        given = ("--device", "cpu", "--format", ",".join(FORMATS), *map(str, words))
        main(["predict", str(images), *given])
    return folders


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(name: str, runtime: str, written: dict[str, Path]) -> None:
    format_ = FORMATS[name]
    place = format_.folder if isinstance(format_, FileFormat) else format_.file
    expected, found = (files_at(written[each] / place) for each in ("torch", runtime))
    assert len(expected) == (6 if isinstance(format_, FileFormat) else 1)
    assert [path.name for path in expected] == [path.name for path in found]
    steps = {"probability": 255, "probability16": 65535, "probability-float": 1}.get(name)
    for one, other in zip(expected, found, strict=True):
        if steps is not None:
            np.testing.assert_allclose(pixels(one), pixels(other), atol=MOST * steps + (steps > 1))
        elif one.suffix == ".json":
            (ours, numbers), (theirs, others) = parsed(one), parsed(other)
            assert ours == theirs
            np.testing.assert_allclose(numbers, others, atol=MOST)  # the expected Dice
        else:
            assert one.read_bytes() == other.read_bytes()


def files_at(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else [place]


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image, np.float64)


def parsed(path: Path) -> tuple[Any, list[float]]:
    """Return the content with None in the place of each fraction, and the fractions."""
    fractions: list[float] = []

    def aside(digits: str) -> None:
        fractions.append(float(digits))

    return json.loads(path.read_text(encoding="utf-8"), parse_float=aside), fractions


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_answer_is_not_written_over_by_the_next(runtime: str, portable: Path) -> None:
    backend = Predictor.load(portable, backend=runtime).backend
    rows = np.random.default_rng(0).normal(size=(2, 1, 3, 32, 32)).astype(np.float32)
    first = backend(rows[0])
    kept = first.copy()
    backend(rows[1])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("file", ["checkpoint", pytest.param("portable", marks=OPENVINO)])
def test_bf16_is_near_to_fp32(file: str, portable: Path, small_checkpoint: Path) -> None:
    path = portable if file == "portable" else small_checkpoint
    exact, rounded = (Predictor.load(path, precision=each) for each in ("fp32", "bf16"))
    image = IMAGES[0]
    np.testing.assert_allclose(exact(image).probability, rounded(image).probability, atol=0.05)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_thread_gives_the_same(runtime: str, portable: Path) -> None:
    one = Predictor.load(portable, backend=runtime, threads=1)(IMAGES[0])
    free = Predictor.load(portable, backend=runtime)(IMAGES[0])
    np.testing.assert_allclose(one.probability, free.probability, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_machine_without_torch_predicts(
    runtime: str, portable: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    absent = "torch,safetensors,filelock,matplotlib,onnx,onnxscript,nncf"
    other = "openvino" if runtime == "onnxruntime" else "onnxruntime"
    words = ("predict", str(drawn_folder / "test" / "images"), "--model", str(portable))
    result = run_without(f"{absent},{other}", *words, "--out", tmp_path / "o", "--backend", runtime)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "o" / "masks").iterdir())) == 6


@OPENVINO
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_keeps_nothing_that_could_be_damaged(
    precision: Precision, portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    beside = sorted(portable.parent.iterdir())
    Predictor.load(portable, backend="openvino", precision=precision)(IMAGES[0])
    assert list(tmp_path.iterdir()) == []
    assert sorted(portable.parent.iterdir()) == beside


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "torch"}, "PyTorch cannot run an ONNX model"),
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
    with pytest.raises(ConfigError, match="runs on PyTorch only; make an ONNX model"):
        Predictor.load(small_checkpoint, backend=runtime)
