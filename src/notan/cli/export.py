"""``notan export``: a model file that runs without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import ModelFile, shows
from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.exporting.make import Kind
    from notan.modelfile.card import Exported


def export(
    *,
    model: ModelFile,
    to: Annotated[Literal["onnx"], arg(metavar="onnx")] = "onnx",  # noqa: ARG001 - one so far
    out: Annotated[Path | None, shows("beside the model, best.onnx", "FILE")] = None,
    half: bool = False,
    int8: bool = False,
    data_path: Annotated[Path | None, shows("the model's own", "FOLDER")] = None,
) -> None:
    """Write one ONNX model, which predicts on any machine, with ONNX Runtime or OpenVINO.

    Before it is written, its masks are compared with the checkpoint's on validation images, at
    their own size, under each of the two that is installed; a file whose masks differ is refused.
    The file holds the card, so predict, evaluate and compare take it like a checkpoint.

    Args:
        model: A best.safetensors that train wrote.
        to: The format.
        out: The file to write.
        half: Store the weights in float16: a file half as large, of the same speed.
        int8: Compute in eight bits: several times as quick, a quarter of the size. It is calibrated
            on validation images, and refused where the masks would be others.
        data_path: The folder with the images that the masks are compared on, and that int8 is
            calibrated on.
    """
    from notan.exporting import export as export_model

    if half and int8:
        raise ConfigError(
            "--half and --int8 are two kinds of file; give one: --int8 for a quicker file, --half "
            "for a smaller one with nearly the same masks"
        )
    precision: Kind = "int8" if int8 else "half" if half else "fp32"
    path, card = export_model(model, out, precision=precision, data_path=data_path)
    if card.exported:
        print(_in_words(card.exported))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _in_words(exported: Exported) -> str:
    lines = []
    if made := exported.quantized:
        lines.append(
            f"int8: {made.layers} of {made.layers + len(made.float_layers)} convolutions, "
            f"{made.share:.1%} of the multiplications, calibrated on {made.images}"
        )
    lines += [
        f"{each.runtime}: mask IoU {each.mask_iou:.5f} with the checkpoint on {each.images} "
        f"(worst {each.worst_iou:.5f}), probabilities differ by at most "
        f"{each.largest_difference:.1g}"
        for each in exported.parity
    ]
    return "\n".join(lines)
