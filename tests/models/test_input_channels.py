"""Networks take any number of channels, and learned weights fit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from needs import WEIGHTS
from notan.config import Model
from notan.errors import CheckpointError
from notan.models.build import MODELS, build_model
from notan.models.encoder_weights import fit_inputs, fit_weights, save_encoder
from notan.models.encoders import ENCODERS, build_encoder
from notan.models.unet import UNet

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [*MODELS, *(f"unet on {name}" for name in ENCODERS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 4])
def test_every_network_takes_any_number_of_channels(name: str, channels: int) -> None:
    model, _, encoder = name.partition(" on ")
    settings = Model(name=model, width=2, encoder=encoder or None)
    network = build_model(settings, channels).eval()
    side = 2 * network.stride
    assert network(torch.zeros(1, channels, side, side)).shape == (1, 1, side, side)
    with pytest.raises(RuntimeError, match="channels"):
        network(torch.zeros(1, 3, side, side))


def test_one_channel_gets_the_sum_and_more_get_three_nths_in_turn() -> None:
    weight = torch.tensor([[[[1.0]], [[10.0]], [[100.0]]]])
    for channels, expected in (
        (1, [111.0]),
        (2, [1.5, 15.0]),
        (4, [0.75, 7.5, 75.0, 0.75]),
        (7, [each * 3 / 7 for each in (1.0, 10.0, 100.0, 1.0, 10.0, 100.0, 1.0)]),
    ):
        torch.testing.assert_close(fit_inputs(weight, channels).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_learned_on_colours_answer_grey_as_they_answer_grey_colours(name: str) -> None:
    torch.manual_seed(2)
    colours, grey = build_encoder(name).eval(), build_encoder(name, 1).eval()
    grey.load_state_dict(fit_weights("weights", colours.state_dict(), name, grey))
    image = torch.randn(1, 1, 64, 64)
    # padding of zeros is the same for both, as both images are normalised already
    for one, other in zip(grey(image), colours(image.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_only_the_first_layer_differs_where_there_are_four_channels(name: str) -> None:
    torch.manual_seed(2)
    colours, four = build_encoder(name), build_encoder(name, 4)
    fitted = fit_weights("weights", colours.state_dict(), name, four)
    before = colours.state_dict()
    changed = [key for key in before if not torch.equal(before[key], fitted[key])]
    assert len(changed) == 1
    torch.testing.assert_close(fitted[changed[0]][:, 3], before[changed[0]][:, 0] * 0.75)


def test_weights_of_four_channels_fit_four_and_no_other_number(tmp_path: Path) -> None:
    name = "efficientnet_lite0"
    weights = build_encoder(name, 4).state_dict()
    four = build_encoder(name, 4)
    four.load_state_dict(fit_weights("weights", weights, name, four))
    for channels in (3, 5):
        with pytest.raises(CheckpointError, match=r"has the shape \(32, 4, 3, 3\), wanted \(32, "):
            fit_weights("weights", weights, name, build_encoder(name, channels))
    save_encoder(tmp_path / "four.safetensors", name, four)


@WEIGHTS
def test_a_unet_of_one_channel_begins_with_published_weights() -> None:
    colours, grey = (
        UNet(encoder="efficientnet_lite0", width=2, channels=channels, pretrained=True)
        for channels in (3, 1)
    )
    one, three = (each.encoder.state_dict()["stem.conv.weight"] for each in (grey, colours))
    torch.testing.assert_close(one, three.sum(dim=1, keepdim=True))
