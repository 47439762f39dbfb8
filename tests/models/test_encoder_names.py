"""Weights under anybody's names fit the one encoder that they were learned by, and no other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch

from notan.errors import CheckpointError
from notan.models.encoder_weights import FIRST_BLOCKS, fit_weights, names_in_file
from notan.models.encoders import ENCODERS, build_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from notan.models.base import Encoder

CLASSIFIER = {
    "resnet34": {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)},
    **{
        name: {
            f"_blocks.{first_blocks[-1]}._expand_conv.weight": torch.ones(1152, 192, 1, 1),
            "_conv_head.weight": torch.ones(1280, 320, 1, 1),
            "_bn1.weight": torch.ones(1280),
            "_fc.weight": torch.ones(10, 1280),
            "_fc.bias": torch.ones(10),
        }
        for name, first_blocks in FIRST_BLOCKS.items()
    },
}


def published(name: str) -> dict[str, Tensor]:
    """Return made-up weights under the publisher's names, with a classifier's."""
    state = build_encoder(name).state_dict()
    theirs = names_in_file(state, (), name)
    weights = {
        theirs[ours]: torch.full(tensor.shape, 0.5).to(tensor.dtype)
        for ours, tensor in state.items()
    }
    return {**weights, **CLASSIFIER[name]}


def refusal(name: str, weights: dict[str, Tensor], encoder: Encoder | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        fit_weights("weights.pth", weights, name, encoder or build_encoder(name))
    message = str(caught.value)
    assert message.startswith("weights.pth: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ENCODERS)
def test_published_weights_fill_every_tensor_and_leave_the_classifier(name: str) -> None:
    encoder = build_encoder(name)
    encoder.load_state_dict(fit_weights("weights.pth", published(name), name, encoder))
    for ours, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, torch.full(tensor.shape, 0.5).to(tensor.dtype)), ours


def test_the_published_names_of_efficientnet_are_those_of_its_blocks_in_a_row() -> None:
    names = set(published("efficientnet_lite0"))
    larger = set(published("efficientnet_lite1"))
    assert {
        "_conv_stem.weight",
        "_bn0.running_var",
        "_blocks.0._depthwise_conv.weight",
        "_blocks.0._bn2.bias",
        "_blocks.3._expand_conv.weight",
        "_blocks.14._project_conv.weight",
        "_blocks.14._bn0.num_batches_tracked",
    } <= names
    assert "_blocks.0._expand_conv.weight" not in names | larger
    assert "_blocks.19._project_conv.weight" in larger - names


@pytest.mark.parametrize("name", ENCODERS)
def test_our_own_names_are_read_too(name: str) -> None:
    encoder, other = build_encoder(name), build_encoder(name)
    other.load_state_dict(fit_weights("w", encoder.state_dict(), name, other))
    mine, theirs = encoder.state_dict(), other.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_counters_of_batch_norm_may_be_absent_as_in_old_files(name: str) -> None:
    weights = {
        key: tensor for key, tensor in published(name).items() if not key.endswith("tracked")
    }
    encoder = build_encoder(name)
    counters = {key: n for key, n in encoder.state_dict().items() if key.endswith("tracked")}
    fitted = fit_weights("w", weights, name, encoder)
    assert fitted.keys() == encoder.state_dict().keys()
    assert counters
    assert all(torch.equal(fitted[key], count) for key, count in counters.items())


@pytest.mark.parametrize(("name", "other"), [*itertools.permutations(ENCODERS, 2)])
def test_weights_of_another_encoder_name_it(name: str, other: str) -> None:
    message = refusal(name, published(other))
    assert f"these are not weights of {name}: " in message
    if "resnet34" in (name, other):  # the efficientnets share names, and differ in shapes
        assert " are missing (" in message
        assert " are not of it (" in message
    assert f"they are of {other}: choose --encoder {other}" in message


def test_a_deeper_network_of_the_family_is_told_by_its_tensors() -> None:
    weights = published("resnet34")
    weights["layer1.3.conv1.weight"] = torch.ones(64, 64, 3, 3)
    message = refusal("resnet34", weights)
    assert "1 are not of it ('layer1.3.conv1.weight'); give weights of that very network" in message
    assert "missing" not in message


def test_a_bottleneck_block_is_told_by_its_shape() -> None:
    weights = published("resnet34")
    weights["layer1.0.conv1.weight"] = torch.ones(64, 64, 1, 1)
    message = refusal("resnet34", weights)
    assert (
        "'layer1.0.conv1.weight' has the shape (64, 64, 1, 1), wanted (64, 64, 3, 3);"
    ) in message


def test_what_is_missing_is_called_as_the_file_would() -> None:
    weights = published("efficientnet_lite0")
    del weights["_blocks.2._project_conv.weight"]
    message = refusal("efficientnet_lite0", weights)
    assert "1 of 225 are missing ('_blocks.2._project_conv.weight')" in message


def test_weights_that_are_no_numbers_are_refused() -> None:
    weights = published("resnet34")
    weights["layer2.0.bn1.running_var"] = torch.full((128,), torch.nan)
    assert "'layer2.0.bn1.running_var' holds values that are no numbers" in refusal(
        "resnet34", weights
    )


def test_quantised_weights_are_refused() -> None:
    weights = published("resnet34")
    weights["conv1.weight"] = weights["conv1.weight"].to(torch.int8)
    assert "'conv1.weight' is stored as int8, and float32 is wanted" in refusal("resnet34", weights)


def test_half_precision_weights_are_taken() -> None:
    weights = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in published("resnet34").items()
    }
    encoder = build_encoder("resnet34")
    encoder.load_state_dict(fit_weights("w", weights, "resnet34", encoder))
    assert encoder.state_dict()["conv1.weight"].dtype == torch.float32
    assert float(encoder.state_dict()["conv1.weight"].mean()) == 0.5


def test_an_empty_file_of_weights_is_no_encoder() -> None:
    assert "180 of 180 are missing ('conv1.weight', 'bn1.weight', ...)" in refusal("resnet34", {})
