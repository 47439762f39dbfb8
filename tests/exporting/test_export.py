"""Export: one file, the same masks, and nothing written where they would be others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from needs import INSTALLED
from notan.data.synthetic import DrawnSource
from notan.errors import CheckpointError, ConfigError, DataError, ExportError
from notan.exporting import export
from notan.exporting.make import (
    LEAST_IOU,
    ImageSet,
    check_parity,
    images_to_compare,
    measure_parity,
)
from notan.exporting.onnx import store_half, to_onnx
from notan.modelfile.card import (
    Checkpoint,
    load_checkpoint,
    read_card,
    save_checkpoint,
)
from notan.modelfile.onnx import write_onnx
from notan.modelfile.safetensors import hash_weights
from notan.prediction.predictor import Predictor
from runs import Own

IMAGE = DrawnSource(1, size=(40, 48), seed=1, first=30)[0].image


def test_the_card_says_what_export_did(portable: Path, small_checkpoint: Path) -> None:
    card, before = read_card(portable), read_card(small_checkpoint)
    assert card.exported is not None
    assert card.exported.checkpoint == before.sha256
    assert card.exported.precision == "fp32"
    assert {each.runtime for each in card.exported.parity} == set(INSTALLED)
    for each in card.exported.parity:
        assert each.mask_iou >= LEAST_IOU["fp32"]
        assert each.images == "6 validation images"
    told = before.without_places().model_copy(update={"sha256": ""})
    assert card.model_copy(update={"exported": None, "sha256": ""}) == told


def test_the_file_says_nothing_of_the_machine_it_was_made_on(portable: Path) -> None:
    assert str(Path(__file__).resolve().parents[2]).encode() not in portable.read_bytes()


def test_the_file_is_valid_and_takes_any_batch_and_size(portable: Path) -> None:
    model = onnx.load(portable)
    onnx.checker.check_model(model, full_check=True)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(side.dim_param) for side in shape] == [True, False, True, True]


def test_the_same_checkpoint_gives_the_same_network(
    portable: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    again = export(small_checkpoint, tmp_path / "again.onnx")[1]
    assert again.sha256 == read_card(portable).sha256


@pytest.mark.usefixtures("traced")
def test_half_stores_half_and_gives_nearly_the_same(
    portable: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    path, card = export(small_checkpoint, tmp_path / "half.onnx", precision="half")
    assert card.exported is not None
    assert card.exported.precision == "half"
    weights = [each.data_type for each in onnx.load(path).graph.initializer]
    assert onnx.TensorProto.FLOAT not in weights
    assert path.stat().st_size < 0.75 * portable.stat().st_size
    one, other = (Predictor.load(each)(IMAGE).probability for each in (portable, path))
    np.testing.assert_allclose(one, other, atol=5e-3)


def test_a_weight_too_large_for_half_is_refused() -> None:
    network = nn.Conv2d(3, 1, 1)
    nn.init.constant_(network.weight, 1e6)
    with pytest.raises(ExportError, match=r"does not fit into float16.*without --half"):
        store_half(to_onnx(network, 1))


def test_a_network_that_cannot_be_traced_says_why() -> None:
    class Capricious(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :1] * (1 if images.sum().item() > 0 else 2)

    with pytest.raises(ExportError, match="Capricious cannot be traced for ONNX"):
        to_onnx(Capricious(), 1)


def test_masks_that_differ_are_refused_and_nothing_is_written(
    small_checkpoint: Path, traced: onnx.ModelProto, tmp_path: Path
) -> None:
    for weight in traced.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            spoilt = -onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(spoilt, weight.name))
    with pytest.raises(ExportError, match=r"other masks than the checkpoint: IoU .* nothing was"):
        export(small_checkpoint, tmp_path / "spoilt.onnx")
    assert not list(tmp_path.iterdir())


def test_parity_counts_the_pixels_of_all_images(small_checkpoint: Path) -> None:
    one = Predictor.load(small_checkpoint, threshold=0.5)
    other = Predictor.load(small_checkpoint, threshold=0.45)
    images = tuple(sample.image for sample in DrawnSource(3, size=(24, 30)))
    parity = measure_parity(one, other, ImageSet(images, "3 drawn"), runtime="openvino")
    pairs = [(one(image).mask, other(image).mask) for image in images]
    common = sum(int((a & b).sum()) for a, b in pairs)
    either = sum(int((a | b).sum()) for a, b in pairs)
    assert parity.mask_iou == pytest.approx(common / either if either else 1)
    assert parity.largest_difference == 0
    shifted = parity.model_copy(update={"mask_iou": 0.99})
    for precision in LEAST_IOU:
        with pytest.raises(ExportError, match=f"{precision} under openvino.*IoU 0.99000"):
            check_parity(shifted, precision)


def test_without_data_images_are_drawn_and_it_says_so(small_checkpoint: Path) -> None:
    card = read_card(small_checkpoint)
    run = card.run.model_copy(update={"data": card.run.data.model_copy(update={"path": None})})
    gone = card.model_copy(update={"run": run})
    assert "drawn images, for want of real ones" in images_to_compare(gone, None).words
    five = gone.preprocess.model_copy(update={"channels": 5})
    other = images_to_compare(gone.model_copy(update={"preprocess": five}), None).images[0]
    assert other.shape[2] == 5


def test_a_data_folder_that_is_not_there_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        export(small_checkpoint, tmp_path / "a.onnx", data_path=tmp_path / "nowhere")


def test_another_name_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.pt: an ONNX model is called .onnx, say"):
        export(small_checkpoint, tmp_path / "model.pt")


def test_an_onnx_model_is_not_exported_again(portable: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"give the \.safetensors checkpoint"):
        export(portable, tmp_path / "again.onnx")


def test_a_network_of_ones_own_is_exported_from_python(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    own = Own(stride=16)
    card = read_card(small_checkpoint).model_copy(update={"model": None, "model_class": "Own"})
    path = tmp_path / "own.safetensors"
    weights = own.state_dict()
    save_checkpoint(path, Checkpoint(card, weights))
    assert load_checkpoint(path).card.sha256 == hash_weights(weights)
    with pytest.raises(CheckpointError, match="a class of your own"):
        export(path)
    out, _ = export(path, own_model=Own(stride=16))
    assert out == tmp_path / "own.onnx"
    inputs = np.random.default_rng(0).normal(size=(2, 3, 16, 32)).astype(np.float32)
    expected = own(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(Predictor.load(out).backend(inputs), expected, atol=1e-5)


def no_card(path: Path, content: bytes) -> None:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def newer_card(path: Path, content: bytes) -> None:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    write_onnx(path, model.SerializeToString(), {"notan": '{"format": 99}'})


def foreign(path: Path, content: bytes) -> None:  # noqa: ARG001 - each takes both
    onnx.save(to_onnx(nn.Conv2d(3, 1, 1), 1), path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_card, "weights without a notan card; make one with notan export"),
        (foreign, "weights without a notan card"),
        (newer_card, "card format 99; notan .* the file was written by a newer notan"),
        (lambda path, content: path.write_bytes(content[:-7]), "cut short"),
        (lambda path, content: path.write_bytes(content[: len(content) // 2]), "cut short"),
        (lambda path, _: path.write_bytes(b""), "not an ONNX file"),
        (lambda path, _: path.write_text("this is no network\n" * 9), "not an ONNX file"),
        (lambda path, _: path.write_bytes(b"PK\x03\x04" + bytes(40)), "not an ONNX file"),
        (lambda path, _: path.mkdir(), "there is no such ONNX model"),
        (lambda _path, _: None, "there is no such ONNX model"),
    ],
    ids=["bare", "foreign", "newer", "cut", "halved", "empty", "text", "zip", "folder", "absent"],
)
def test_a_broken_onnx_model_is_refused_with_the_reason(
    spoil: Any, words: str, portable: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.onnx"
    spoil(path, portable.read_bytes())
    with pytest.raises(CheckpointError, match=f"broken.onnx: .*{words}"):
        Predictor.load(path)


@pytest.mark.parametrize("where", range(12))
def test_one_flipped_byte_is_noticed(where: int, portable: Path, tmp_path: Path) -> None:
    content = bytearray(portable.read_bytes())
    network = len(content) - 20_000  # the card stands behind it
    content[17 + where * (network // 13)] ^= 1 << (where % 8)
    (tmp_path / "flipped.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 differs|damaged"):
        Predictor.load(tmp_path / "flipped.onnx")
