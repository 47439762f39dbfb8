"""``notan ensemble``: several models as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from notan.cli.flags import Device, shows

Models = Positional[Annotated[tuple[Path, ...], arg(metavar="RUN RUN ...")]]


def ensemble(
    models: Models,
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    data_path: Annotated[Path | None, shows("the first run's own", "FOLDER")] = None,
    batch_size: int = 8,
    device: Device = "auto",
) -> None:
    """Make one model file of several trained models, which answers with their weighted mean.

    Weights, calibration and threshold are chosen on the validation images of the first model, on
    which none of them may have been trained: give all trainings one split, data.split_seed=0, where
    the data have no val/ part. The file is used like any other model, and takes the time of all its
    members.

    Args:
        models: Run folders or model files, two or more; their networks may differ.
        out: The file to write, such as ensemble.safetensors.
        data_path: The folder with the images and masks.
        batch_size: Images predicted at once.
        device: Where to compute.
    """
    from notan.comparison import make_ensemble

    result = make_ensemble(models, out, data_path=data_path, device=device, batch_size=batch_size)
    print(f"{'':<32} weight  validation Dice")
    for name, weight in result.weights.items():
        dice = f"{result.dice[name]:.4f}" if name in result.dice else ""
        print(f"{name:<32} {weight:6.3f}  {dice}".rstrip())
    print(f"{'ensemble':<32} {'':6}  {result.dice['ensemble']:.4f}")
    for reason in result.card.choices:
        print(reason)
    print(result.path)
