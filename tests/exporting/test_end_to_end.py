"""One graph from pixels to the mask: what predict gives, at any size, in any runtime."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import notan
from needs import INSTALLED, RUNTIMES
from notan.cli.main import main
from notan.errors import ConfigError, ExportError
from notan.exporting import end_to_end
from notan.exporting.end_to_end import FUNCTIONS, MASK, PROBABILITY, around, own
from notan.exporting.make import agrees, check_parity
from notan.modelfile.card import Checkpoint, Parity, load_checkpoint, read_card, save_checkpoint
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.backends import onnx_backend
from without_notan import ANY, SIZES, graph_of, image_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.modelfile.card import Card
    from notan.types import Size

CALIBRATED = {**ANY, "temperature": 1.386, "bias": -0.536}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "changes",
    [
        {**ANY, "temperature": 1.0, "bias": 0.0},
        {**CALIBRATED, "image_size": (48, 32), "stride": 32},
        {**CALIBRATED, "keep_aspect_ratio": True},
        {**CALIBRATED, "image_size": None},
        {**CALIBRATED, "min_foreground_fraction": 0.45},
    ],
    ids=["squashed", "calibrated", "in proportion", "own size", "least"],
)
def test_it_gives_what_predict_gives_within_the_stated_rounding(
    changes: dict[str, Any], runtime: str, portable: Path, tmp_path: Path
) -> None:
    path, predictor = graph_of(portable, tmp_path / "graph.onnx", **changes)
    backend = onnx_backend(path, runtime)
    sizes = SIZES[:-1] if predictor.preprocessor.image_size is None else SIZES
    differing = pixels = 0
    for number, size in enumerate(sizes):
        image = image_of(size, number)
        expected = predictor(image)
        probability, mask = backend.run(image)
        assert probability.dtype == np.float32
        assert mask.dtype == np.bool_
        np.testing.assert_allclose(probability, expected.probability, rtol=0, atol=1 / 255)
        differing += int(np.count_nonzero(mask != expected.mask))
        pixels += mask.size
    assert differing <= pixels / 1000


@functools.cache
def alone(name: str, *ranks: int) -> Callable[..., Any]:
    """Return one of the graph's functions: of values with so many axes, if any, and two sizes."""
    types = (*[onnx.TensorProto.FLOAT] * len(ranks), *[onnx.TensorProto.INT64] * 2)
    shapes = [[None] * rank for rank in (*ranks, 1, 1)]
    names = [f"input {number}" for number in range(len(types))]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(name, names, ["answer"], domain=own.domain)],
        name,
        [info(*each) for each in zip(names, types, shapes, strict=True)],
        [info("answer", onnx.TensorProto.FLOAT if ranks else onnx.TensorProto.INT64, None)],
    )
    model = helper.make_model(
        graph,
        functions=[each.to_function_proto() for each in FUNCTIONS],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(own.domain, own.version)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())

    def run(*values: Any) -> Any:
        given = dict(zip(names, map(np.asarray, values), strict=True))
        return session.run(None, given)[0]

    return run


PAIRS: tuple[tuple[Size, Size], ...] = (
    *(((100, 100), (50, 50)), ((640, 480), (320, 240)), ((200, 100), (50, 50))),
    *(((40, 100), (20, 100)), ((500, 375), (256, 256)), ((150, 333), (64, 64))),
    *(((10, 10), (50, 50)), ((3, 7), (64, 64)), ((120, 152), (256, 256)), ((30, 40), (60, 40))),
    *(((1, 1), (32, 48)), ((20, 300), (64, 64)), ((300, 20), (64, 64)), ((64, 64), (64, 64))),
)


@pytest.mark.parametrize(("size", "wanted"), PAIRS)
def test_grey_levels_are_opencvs_but_for_one_in_a_thousand(size: Size, wanted: Size) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = Preprocessor(image_size=wanted, mean=(0, 0, 0), std=(1 / 255,) * 3, stride=1)(image)
    levels = image.transpose(2, 0, 1).astype(np.float32)
    for name in ("shrink_image", "grow_image"):
        levels = alone(name, 3)(levels, size, wanted)
    apart = np.abs(levels - expected[0])
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= apart.size / 1000


@pytest.mark.parametrize(("size", "wanted"), PAIRS)
def test_maps_are_opencvs_to_the_last_bits(size: Size, wanted: Size) -> None:
    values = np.random.default_rng(0).random(size, dtype=np.float32)
    expected = Preprocessor(image_size=wanted, stride=1).place(size)
    back = type(expected)(original=wanted, resized=size, padded=size).restore(values)
    shrunk = alone("shrink", 3)(values[np.newaxis], size, wanted)[0]
    np.testing.assert_allclose(alone("grow_map", 2)(shrunk, size, wanted), back, atol=1e-6)


@pytest.mark.parametrize("side", range(1, 60))
def test_a_size_that_keeps_its_proportions_is_the_preprocessors(side: int) -> None:
    preprocessor = Preprocessor(image_size=(21, 30), keep_aspect_ratio=True)
    for other in (1, 2, 9, 20, 21, 30, 31, 41, 63, 1000):
        for size in ((side, other), (other, side)):
            assert tuple(alone("fit")(size, (21, 30))) == preprocessor.fit(size)


@pytest.fixture
def plain_checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint, with a rule for masks that has a place in a graph."""
    return ruled(small_checkpoint, tmp_path / "plain.safetensors", **ANY)


def ruled(checkpoint: Path, out: Path, **changes: Any) -> Path:
    found = load_checkpoint(checkpoint)
    rule = found.card.postprocessing.model_copy(update=changes)
    card = found.card.model_copy(update={"postprocessing": rule})
    save_checkpoint(out, Checkpoint(card, found.weights))
    return out


@pytest.mark.usefixtures("traced")
def test_the_command_writes_a_file_that_programs_without_notan_can_read(
    plain_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", "--model", str(plain_checkpoint), "--end-to-end"])
    path = plain_checkpoint.with_name("plain-end-to-end.onnx")
    card = read_card(path)
    assert card.exported is not None
    assert card.exported.end_to_end
    assert [each.runtime for each in card.exported.parity] == list(INSTALLED)
    assert "7 of them in other sizes" in card.exported.parity[0].images
    assert "mask IoU" in capsys.readouterr().out
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    assert "CastLike" not in {each.op_type for each in model.graph.node}  # it is warned of
    assert {each.domain for each in model.opset_import} == {""}
    assert [each.name for each in model.graph.input] == [end_to_end.IMAGE]
    assert [each.name for each in model.graph.output] == [PROBABILITY, MASK]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("precision", ["half", "int8"])
def test_its_network_may_be_small_or_quick(
    precision: Any, plain_checkpoint: Path, drawn_folder: Path
) -> None:
    out = notan.export(plain_checkpoint, precision=precision, data=drawn_folder, end_to_end=True)
    assert out.name == f"plain-{precision}-end-to-end.onnx"
    exported = read_card(out).exported
    assert exported is not None
    assert exported.precision == precision
    assert exported.end_to_end


@pytest.mark.usefixtures("traced")
def test_the_other_commands_refuse_it_in_a_line(
    plain_checkpoint: Path, drawn_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = notan.export(plain_checkpoint, end_to_end=True)
    with pytest.raises(ConfigError, match=r"takes pixels and gives masks by itself.*checkpoint"):
        notan.load(out)
    for words in (["predict", str(drawn_folder / "test" / "images")], ["evaluate"]):
        with pytest.raises(SystemExit):
            main(
                [
                    *words,
                    "--model",
                    str(out),
                    *(["--data-path", str(drawn_folder)] * (len(words) == 1)),
                ]
            )
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"keep_largest": True}, "largest component only"),
        ({"min_component_fraction": 0.01}, "components under 1.00% of the image removed"),
        ({"fill_holes_fraction": 0.02}, "holes under 2.00% of the image filled"),
        ({"threshold_rule": "dice"}, "the Dice-optimal threshold of each image"),
    ],
)
def test_what_has_no_place_in_a_graph_is_refused_by_name(
    rule: dict[str, Any], words: str, plain_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = ruled(plain_checkpoint, tmp_path / "ruled.safetensors", **rule)
    with pytest.raises(ExportError, match=f"{words}.*{next(iter(rule))}.*without --end-to-end"):
        notan.export(checkpoint, end_to_end=True)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.usefixtures("traced")
def test_a_graph_that_resizes_otherwise_is_not_written(
    plain_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(network: Any, card: Card) -> Any:
        wrong = card.preprocess.model_copy(update={"mean": (0.9, 0.1, 0.5)})
        return around(network, card.model_copy(update={"preprocess": wrong}))

    monkeypatch.setattr("notan.exporting.end_to_end.around", spoilt)
    with pytest.raises(ExportError, match=r"other masks.*nothing was written.*--end-to-end"):
        notan.export(plain_checkpoint, end_to_end=True)
    assert not list(plain_checkpoint.parent.glob("*.onnx"))


def test_its_bounds_are_of_masks_and_of_probabilities() -> None:
    fine = Parity(
        runtime="openvino", images="3", mask_iou=0.9992, worst_iou=0.99, largest_difference=0.05
    )
    check_parity(fine, "fp32", end_to_end=True)
    assert not agrees(fine, "fp32", end_to_end=False)
    for spoilt in ({"mask_iou": 0.9985}, {"largest_difference": 0.11}):
        with pytest.raises(ExportError, match="without --end-to-end"):
            check_parity(fine.model_copy(update=spoilt), "fp32", end_to_end=True)
    check_parity(fine.model_copy(update={"largest_difference": 0.11}), "int8", end_to_end=True)


def test_what_is_no_image_is_refused_by_the_runtime(portable: Path, tmp_path: Path) -> None:
    path, _ = graph_of(portable, tmp_path / "graph.onnx", **ANY)
    backend = onnx_backend(path, "onnxruntime")
    for spoilt in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(Exception, match=r"(?i)invalid|unexpected"):
            backend.run(spoilt)
