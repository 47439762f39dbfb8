"""Int8: the same masks under both runtimes, or no file; what stays in float32 is measured."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from forbidden import run_without
from needs import INSTALLED, OPENVINO, RUNTIMES
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import DataError, ExportError
from notan.exporting import export
from notan.exporting.make import LEAST_IOU, ImageSet, images_to_calibrate, network_inputs
from notan.exporting.onnx import CHEAP, LEAST_INT8, Quantizer, to_onnx
from notan.modelfile.card import (
    Card,
    Checkpoint,
    load_checkpoint,
    read_card,
    save_checkpoint,
)
from notan.prediction.backends import TorchBackend, onnx_backend
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = [
    each.astype(np.float32) for each in np.random.default_rng(3).normal(size=(3, 1, 3, 16, 16))
]


class Steps(nn.Module):
    """Down and up again: 3 -> 8 channels, 8 -> 4 at twice the size, 4 -> 1."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.relu(self.up(torch.relu(self.down(images)))))
        return result


@pytest.fixture(scope="module")
def int8(small_checkpoint: Path, portable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint in int8, from the network that was traced for the float32 file."""
    model = onnx.load(portable)
    del model.metadata_props[:]
    out = tmp_path_factory.mktemp("int8") / "small-int8.onnx"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("notan.exporting.make.to_onnx", lambda *_: model)
        return export(small_checkpoint, out, precision="int8")[0]


@pytest.fixture(scope="module")
def steps() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(to_onnx(Steps(), 2), INPUTS, "3 of noise")


def seen_without(card: Card) -> Card:
    """Return the card of a model whose data nobody knows."""
    data = card.run.data.model_copy(update={"path": None})
    return card.model_copy(update={"run": card.run.model_copy(update={"data": data})})


def test_the_card_says_how_it_was_quantized(int8: Path) -> None:
    exported = read_card(int8).exported
    assert exported is not None
    assert exported.precision == "int8"
    assert exported.quantized is not None
    assert exported.quantized.images == (
        "24 training images, for the validation split holds 6 only"
    )
    assert exported.quantized.layers + len(exported.quantized.float_layers) == 23
    assert exported.quantized.share >= LEAST_INT8
    assert {each.runtime for each in exported.parity} == set(INSTALLED)
    assert all(each.mask_iou >= LEAST_IOU["int8"] for each in exported.parity)


def test_the_file_holds_its_weights_in_int8_and_is_valid(int8: Path, portable: Path) -> None:
    model = onnx.load(int8)
    onnx.checker.check_model(model, full_check=True)
    quantized = read_card(int8).exported
    assert quantized is not None
    assert quantized.quantized is not None
    eight = [
        each
        for each in model.graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    assert len(eight) == quantized.quantized.layers
    assert {each.domain for each in model.opset_import} == {""}  # no operators of one runtime alone
    assert int8.stat().st_size < 0.6 * portable.stat().st_size


@OPENVINO
def test_both_runtimes_give_the_same_masks(int8: Path) -> None:
    one, other = (Predictor.load(int8, backend=each) for each in INSTALLED)
    for sample in DrawnSource(6, size=(40, 48), seed=1, first=30):
        expected, found = one(sample.image), other(sample.image)
        np.testing.assert_allclose(expected.probability, found.probability, atol=0.02)
        assert (expected.mask == found.mask).mean() > 0.99


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_machine_without_the_quantizer_predicts(
    runtime: str, int8: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    images = drawn_folder / "test" / "images"
    words = ("predict", str(images), "--model", str(int8), "--backend", runtime)
    result = run_without("torch,onnx,onnxscript", *words, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 6


def test_a_card_of_before_int8_is_read(portable: Path) -> None:
    fields = json.loads(read_card(portable).model_dump_json())
    assert fields["exported"].pop("quantized") is None
    assert Card.model_validate(fields) == read_card(portable)


class Flat(nn.Module):
    """Three layers of 16 channels at the image's size, and a head."""

    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16)))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            images = torch.relu(layer(images))
        result: torch.Tensor = self.head(images)
        return result


def unequal_channels(network: Flat) -> Flat:
    """Return the same network with neighbouring channels of very different size.

    Each is multiplied by a power of two, and what reads it divides by that: float32 does not
    notice, but a scale that is one for all channels leaves the small ones nothing.
    """
    network = copy.deepcopy(network)
    layers: list[Any] = [*network.layers, network.head]
    factors = 16.0 ** (torch.arange(16) % 4)
    with torch.no_grad():
        for layer, reader in pairwise(layers):
            layer.weight *= factors[:, None, None, None]
            layer.bias *= factors
            reader.weight /= factors[:, None, None]
    return network


def test_masks_that_int8_changes_are_refused_and_nothing_is_written(
    small_checkpoint: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    card = read_card(small_checkpoint)
    one = Flat()
    other = unequal_channels(one)
    files = sorted((drawn_folder / "val" / "images").iterdir())
    predictors = [
        Predictor(TorchBackend(each), card.preprocess, postprocessing=card.postprocessing)
        for each in (one, other)
    ]
    first, second = ([each(file).probability for file in files] for each in predictors)
    np.testing.assert_allclose(first, second, atol=1e-5)
    # amid the pixels, not beside them
    postprocessing = card.postprocessing.with_threshold(float(np.median(first)))
    own = {"model": None, "model_class": "Flat", "postprocessing": postprocessing}
    model = tmp_path / "delicate.safetensors"
    save_checkpoint(model, Checkpoint(card.model_copy(update=own), other.state_dict()))
    words = rf"int8 under {INSTALLED[0]} gives other masks .* 0.995 is wanted; nothing was written"
    with pytest.raises(ExportError, match=words):
        export(model, precision="int8", own_model=Flat())
    assert list(tmp_path.iterdir()) == [model]


def test_a_quantized_layer_computes_what_its_rounded_numbers_say(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 1, 3, padding=1)
    candidate, told = next(Quantizer(to_onnx(layer, 1), INPUTS, "noise").candidates())
    assert (told.layers, told.float_layers, told.share) == (1, (), 1)
    everything = np.stack(INPUTS)
    step = float(everything.max() - everything.min()) / 255
    zero = np.round(-everything.min() / step)
    rounded = (np.clip(np.round(INPUTS[0] / step) + zero, 0, 255) - zero) * step
    weights = layer.weight.detach().numpy()
    scale = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 64
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.round(weights / scale) * scale))
        expected = layer(torch.from_numpy(rounded.astype(np.float32))).numpy()
    (tmp_path / "a.onnx").write_bytes(candidate.SerializeToString())
    for runtime in INSTALLED:
        found = onnx_backend(tmp_path / "a.onnx", runtime)(INPUTS[0])
        np.testing.assert_allclose(found, expected, atol=3 * step * float(scale.max()))


def test_the_largest_numbers_are_added_without_loss_on_every_processor(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 1, 3, padding=1, bias=False)
    layer.weight.data.fill_(1.0)
    largest = np.ones((1, 3, 16, 16), np.float32)
    largest[..., 0, 0] = 0
    candidate, _ = next(Quantizer(to_onnx(layer, 1), [largest], "ones").candidates())
    (tmp_path / "a.onnx").write_bytes(candidate.SerializeToString())
    expected = layer(torch.from_numpy(largest)).detach().numpy()
    for runtime in INSTALLED:
        found = onnx_backend(tmp_path / "a.onnx", runtime)(largest)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_leave_room_for_the_sum_of_two_products(steps: Quantizer) -> None:
    candidate, _ = next(steps.candidates())
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in candidate.graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    largest = max(int(np.abs(each.astype(int)).max()) for each in weights)
    assert largest == 64
    assert 2 * 255 * largest <= np.iinfo(np.int16).max


def test_multiplications_are_counted(steps: Quantizer) -> None:
    down, up, head = 8 * 3 * 9 * 8 * 8, 8 * 4 * 4 * 8 * 8, 4 * 16 * 16
    whole = down + up + head
    assert [each.share for each in steps.layers] == pytest.approx(
        [down / whole, up / whole, head / whole]
    )


def test_a_layer_that_errs_most_for_its_cost_is_kept_first(steps: Quantizer) -> None:
    order = sorted(steps.layers, key=lambda each: -each.error / each.share)
    assert all(each.error > 0 for each in order)
    kept = [set(told.float_layers) for _, told in steps.candidates()]
    for count, names in enumerate(kept, start=len(kept[0])):
        assert names == {each.name for each in order[:count]}


def test_candidates_begin_with_the_quickest_and_end_at_half(steps: Quantizer) -> None:
    shares = [told.share for _, told in steps.candidates()]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= 1 - CHEAP
    assert all(share >= LEAST_INT8 for share in shares)


def test_each_layer_more_in_float32_brings_the_logits_nearer(
    steps: Quantizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    expected = Steps()(torch.from_numpy(INPUTS[0])).detach().numpy()
    errors = []
    for candidate, _ in steps.candidates():
        (tmp_path / "a.onnx").write_bytes(candidate.SerializeToString())
        found = onnx_backend(tmp_path / "a.onnx", "onnxruntime")(INPUTS[0])
        errors.append(float(((found - expected) ** 2).mean()))
    assert 0 < errors[0] < 1e-3
    assert errors == sorted(errors, reverse=True)


def test_a_network_without_convolutions_is_refused() -> None:
    class Brightness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(1, keepdim=True)

    with pytest.raises(ExportError, match=r"no convolution .* export without --int8"):
        Quantizer(to_onnx(Brightness(), 1), INPUTS, "noise")


def test_enough_validation_images_are_calibrated_on(
    small_checkpoint: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    card = read_card(small_checkpoint)
    few = images_to_calibrate(card, drawn_folder)
    assert few.words == "24 training images, for the validation split holds 6 only"
    assert len(few.images) == 24
    for part, count in (("train", 2), ("val", 40)):
        write_folder(DrawnSource(count, size=(16, 16)), tmp_path / part)
    assert images_to_calibrate(card, tmp_path).words == "32 validation images"


def test_the_validation_split_is_taken_where_the_training_split_is_smaller_still(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    for part, count in (("train", 2), ("val", 3)):
        write_folder(DrawnSource(count, size=(16, 16)), tmp_path / part)
    found = images_to_calibrate(read_card(small_checkpoint), tmp_path)
    assert found.words == "3 validation images"


def test_int8_is_not_calibrated_on_drawn_images(small_checkpoint: Path) -> None:
    gone = seen_without(read_card(small_checkpoint))
    with pytest.raises(ExportError, match=r"model names no folder.*--data-path FOLDER"):
        images_to_calibrate(gone, None)


def test_a_folder_that_has_moved_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(small_checkpoint)
    place = tmp_path / "moved"
    data = checkpoint.card.run.data.model_copy(update={"path": place})
    run = checkpoint.card.run.model_copy(update={"data": data})
    model = tmp_path / "model.safetensors"
    card = checkpoint.card.model_copy(update={"run": run})
    save_checkpoint(model, Checkpoint(card, checkpoint.weights))
    with pytest.raises(ExportError, match=r"moved is not on this machine; say where"):
        export(model, precision="int8")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("broken", ["absent", "file", "undecodable"])
def test_broken_images_are_refused(broken: str, small_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if broken == "file":
        folder.write_bytes(b"")
    elif broken == "undecodable":
        for part in ("train", "val"):
            write_folder(DrawnSource(2, size=(16, 16)), folder / part)
        for image in (folder / "val" / "images").iterdir():
            image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(DataError, match=r"data"):
        export(small_checkpoint, tmp_path / "a.onnx", precision="int8", data_path=folder)
    assert not (tmp_path / "a.onnx").exists()


def test_the_network_sees_one_input_of_each_image(small_checkpoint: Path) -> None:
    card = read_card(small_checkpoint)
    images = tuple(sample.image for sample in DrawnSource(3, size=(40, 48)))
    found = network_inputs(card, ImageSet(images, "3 drawn"))
    for image, each in zip(images, found, strict=True):
        np.testing.assert_array_equal(each[0], card.preprocess(image)[0])


def test_of_an_image_in_tiles_one_tile_is_taken(small_checkpoint: Path) -> None:
    card = read_card(small_checkpoint)
    own = card.preprocess.model_copy(update={"image_size": None})
    card = card.model_copy(update={"preprocess": own})
    huge: Any = np.zeros((3000, 3000, 3), np.uint8)
    found = network_inputs(card, ImageSet((huge,), "1 image"))
    assert len(found) == 1
    assert found[0].shape[2] < 3000
