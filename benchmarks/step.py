"""Compare training steps on one batch that lies where the network is, in images a second.

Run by hand: OMP_NUM_THREADS=2 python benchmarks/step.py
The ways: the loop of the report that the recipes repeat (float32, channels first, BCE and Dice,
Adam, the loss read after each step); the same as one would write it today (AdamW, nothing read);
the U-Net of segmentation_models_pytorch in a plain recipe (channels last, bf16 where the machine
has it); and notan's step with its own settings. They take turns. The last column is the limit: the
multiplications and additions of the network's step, over what a large matrix product in float32
reaches on the same threads. On a GPU the sizes are those of a
training; on a processor they are small, so that a round takes a minute or two: each row says which.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from data_path import import_beside_cpu_torch
from notan.config import Model, load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.models.build import build_model
from notan.runtime import has_quick_bf16
from notan.training.build import prepare
from notan.training.compiling import Stepper
from notan.training.judge import LossJudge
from notan.training.spikes import SpikeDetector
from notan.training.steps import AverageMeter
from results import best_device, spread, take_turns, timed, version_of, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], object]

DEVICE = best_device()
ON_GPU = DEVICE.type == "cuda"
NETWORKS: dict[str, dict[str, Any]] = {
    "U-Net, 31 M": {"name": "unet", "width": 64},
    "ResNet34-U-Net": {"name": "resnet34_unet"},
    "U-Net on EfficientNet-Lite0": {"name": "unet", "encoder": "efficientnet_lite0"},
}
SMP = {
    "U-Net on EfficientNet-Lite0": "tu-tf_efficientnet_lite0",
    "ResNet34-U-Net": "resnet34",
}
"""The encoders of SMP's U-Net that are the same."""

Tensors = tuple[torch.Tensor, torch.Tensor]


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return BCE and soft Dice, as everybody writes them."""
    chances = logits.sigmoid()
    both = (chances * masks).sum((1, 2, 3))
    either = (chances + masks).sum((1, 2, 3))
    bce = functional.binary_cross_entropy_with_logits(logits, masks)
    return bce + 1 - ((2 * both + 1) / (either + 1)).mean()


def plain(settings: dict[str, Any], batch: Tensors, *, as_in_the_report: bool) -> Step:
    """Return a step of a plain loop in float32."""
    torch.manual_seed(0)
    network = build_model(Model(**settings)).to(DEVICE).train()
    kind = torch.optim.Adam if as_in_the_report else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=1e-4)
    images, masks = batch

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_of(network(images), masks)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if as_in_the_report:
            loss.item()

    return step


def peers(encoder: str, batch: Tensors) -> Step:
    """Return a step of segmentation_models_pytorch in a plain recipe."""
    import_beside_cpu_torch()
    import segmentation_models_pytorch as library  # type: ignore[import-not-found, unused-ignore]

    torch.manual_seed(0)
    network: nn.Module = library.Unet(encoder, encoder_weights=None)
    network = network.to(DEVICE, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    images, masks = batch
    images = images.to(memory_format=torch.channels_last)
    bf16 = ON_GPU or bool(has_quick_bf16())

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            logits = network(images)
        loss = loss_of(logits.float(), masks)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours(settings: dict[str, Any], folder: Path, batch: int, side: int) -> Step:
    """Return notan's step, of a training with its own settings, on a batch that is there."""
    flags = {f"model.{name}": value for name, value in settings.items()}
    given = {"data.path": folder, "train.batch_size": batch, "preprocess.image_size": side}
    setup = prepare(load_run(flags={**flags, **given, "device": str(DEVICE)}))
    first = next(iter(setup.training_batches))
    images, targets, valid = (tensor.to(DEVICE) for tensor in first[:3])
    resident = first._replace(images=images, targets=targets, valid=valid)
    means = AverageMeter()
    take = Stepper(setup, setup.loss, SpikeDetector(LossJudge(0), setup.device))

    def step() -> None:
        _, _, losses = take(resident).read()
        means.add(losses, batch)

    return step


def ways_of(name: str, folder: Path, batch: int, side: int) -> dict[str, Step | str]:
    """Return the steps by what they are called; or a word where one cannot be taken."""
    settings = NETWORKS[name]
    torch.manual_seed(0)
    images = torch.rand(batch, 3, side, side, device=DEVICE)
    masks = (torch.rand(batch, 1, side, side, device=DEVICE) > 0.5).float()
    ways: dict[str, Step | str] = {
        "the report's loop": plain(settings, (images, masks), as_in_the_report=True),
        "a plain loop": plain(settings, (images, masks), as_in_the_report=False),
    }
    if name in SMP:
        try:
            peer = peers(SMP[name], (images, masks))
            ways[f"SMP {version_of('segmentation-models-pytorch')}"] = peer
        except ImportError:
            missing = "not installed: pip install segmentation-models-pytorch timm torchvision"
            ways["SMP"] = missing
    return {**ways, "notan": ours(settings, folder, batch, side)}


def main() -> None:
    """Let the ways of each network take turns; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32 if ON_GPU else 4)
    parser.add_argument("--size", type=int, default=256 if ON_GPU else 128)
    parser.add_argument("--rounds", type=int, default=9 if ON_GPU else 5)
    parser.add_argument("--steps", type=int, default=20 if ON_GPU else 1, help="in each turn")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for part, first in (("train", 0), ("val", 10_000)):
            drawn = DrawnSource(2 * asked.batch, size=(asked.size, asked.size), first=first)
            write_folder(drawn, folder / part)
        for name in asked.networks:
            rows += rows_of(name, folder, asked)
    write_results(
        f"step-{DEVICE.type}",
        f"Training steps on a resident batch, on {'a GPU' if ON_GPU else 'a processor'}",
        rows,
        [
            "Times the plain loop: of neighbours in time.",
            "ResNet34-U-Net of SMP is its own U-Net on the same encoder, with fewer channels in "
            "its decoder than notan's; the two on EfficientNet-Lite0 differ likewise.",
        ],
    )


SIDE_OF_PRODUCT = 2048


def measure_peak() -> float:
    """Return the operations a second of a matrix product in float32, the best of five."""
    left, right = torch.rand(2, SIDE_OF_PRODUCT, SIDE_OF_PRODUCT, device=DEVICE)
    multiply = timed(lambda: left @ right)
    return 2 * SIDE_OF_PRODUCT**3 / min(multiply() for _ in range(5))


def operations_of(settings: dict[str, Any], batch: int, side: int) -> int:
    """Return the operations of a step of a network: a multiplication and an addition are two.

    Three times those of the forward pass, as a backward pass has twice as many; PyTorch's counter
    takes grouped convolutions for dense ones on the way back.
    """
    network = build_model(Model(**settings)).train()
    with FlopCounterMode(display=False) as counted:
        network(torch.rand(batch, 3, side, side))
    return 3 * int(counted.get_total_flops())


def rows_of(name: str, folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one network."""
    ways = ways_of(name, folder, asked.batch, asked.size)
    steps = {way: step for way, step in ways.items() if not isinstance(step, str)}

    def several(step: Step) -> Step:
        return lambda: [step() for _ in range(asked.steps)]

    turns = {way: timed(several(step)) for way, step in steps.items()}
    found = take_turns(turns, rounds=asked.rounds)
    operations = operations_of(NETWORKS[name], asked.batch, asked.size) * asked.steps
    peak = measure_peak()
    rows = []
    for way, step in ways.items():
        row: dict[str, Any] = {"network": name, "way": way, "batch": asked.batch}
        row["size"] = f"{asked.size}x{asked.size}"
        if isinstance(step, str):
            rows.append({**row, "images a second": step})
            continue
        row["images a second"] = spread(found[way]).per_second(asked.steps * asked.batch)
        pairs = zip(found["a plain loop"], found[way], strict=True)
        row["times the plain loop"] = spread([one / own for one, own in pairs])
        if not way.startswith("SMP"):  # its network has fewer operations
            row["of a matrix product's rate"] = operations / min(found[way]) / peak
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
