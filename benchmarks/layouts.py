"""Compare how tensors lie in memory, channels last or planes, in training and prediction.

Run by hand: OMP_NUM_THREADS=1 python benchmarks/layouts.py
Takes turns with forward and backward passes, and with forward passes alone, of networks whose
weights lie in either way, and writes benchmarks/results/layouts.json and .md. From it comes the
rule of notan.training.computing.lay_out.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import TYPE_CHECKING

import torch

from notan.config import Model
from notan.models.build import build_model
from results import best_device, spread, take_turns, timed, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LAYOUTS = {"planes": torch.contiguous_format, "channels last": torch.channels_last}
NETWORKS = {
    "U-Net, width 16": Model(width=16),
    "U-Net, width 32": Model(width=32),
    "U-Net, width 64": Model(width=64),
    "attention U-Net, width 16": Model(name="attention_unet", width=16),
    "attention U-Net, width 32": Model(name="attention_unet", width=32),
    "U-Net on ResNet34, width 16": Model(encoder="resnet34", width=16),
    "ResNet34-U-Net": Model(name="resnet34_unet"),
    "U-Net on EfficientNet-Lite0, width 8": Model(encoder="efficientnet_lite0", width=8),
    "U-Net on EfficientNet-Lite0, width 32": Model(encoder="efficientnet_lite0", width=32),
}


def trained(network: nn.Module, images: torch.Tensor) -> None:
    """Pass forward and backward."""
    network.train()(images).mean().backward()


@torch.inference_mode()
def predicted(network: nn.Module, images: torch.Tensor) -> None:
    """Pass forward."""
    network.eval()(images)


def measured(
    settings: Model, act: Callable[[nn.Module, torch.Tensor], None], asked: argparse.Namespace
) -> dict[str, object]:
    """Return what a pass takes in each layout, and the ratio of neighbours in time."""
    device = best_device()
    network = build_model(settings).to(device)
    images = torch.rand(asked.batch, 3, asked.size, asked.size, device=device)
    seconds = take_turns(
        {
            name: timed(partial(act, _laid(network, layout), images))
            for name, layout in LAYOUTS.items()
        },
        rounds=asked.rounds,
    )
    planes, last = seconds.values()
    ratio = spread([one / other for one, other in zip(last, planes, strict=True)])
    return {
        "planes, s": spread(planes),
        "channels last, s": spread(last),
        "channels last over planes": ratio,
    }


def _laid(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    twin = copy.deepcopy(network)
    return twin.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    rows: list[dict[str, object]] = [
        {"network": name, "pass": what, **measured(settings, act, asked)}
        for name, settings in NETWORKS.items()
        for what, act in (("training", trained), ("prediction", predicted))
    ]
    write_results(
        "layouts",
        "How tensors lie in memory: seconds of a pass in float32",
        rows,
        [f"Batches of {asked.batch}, {asked.size}x{asked.size}."],
    )


if __name__ == "__main__":
    main()
