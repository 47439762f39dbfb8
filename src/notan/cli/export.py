"""``notan export``: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import KnownDataPath, ModelClass, Switch, flag
from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.exporting import Kind
    from notan.modelfile.card import Exported


def export(
    *,
    model: Annotated[Path, arg(metavar="FILE")],
    model_class: ModelClass = None,
    to: Annotated[Literal["onnx"], arg(metavar="onnx")] = "onnx",  # noqa: ARG001 - one so far
    out: Annotated[Path | None, flag("FILE", "beside the model, best.onnx")] = None,
    half: Switch = False,
    int8: Switch = False,
    end_to_end: Switch = False,
    data_path: KnownDataPath = None,
) -> None:
    """Write an ONNX model, which predicts without PyTorch.

    Before it is written, its masks are compared with the checkpoint's on validation images, at
    their own size, under ONNX Runtime and, where it is installed, OpenVINO; a file whose masks
    differ is refused. The file holds the card, so predict, evaluate and compare take it like a
    checkpoint. With --int8 it is calibrated on validation images too.

    Args:
        model: A best.safetensors that train wrote.
        to: The format.
        out: The file to write.
        half: Store the weights in float16: a file half as large, of the same speed.
        int8: Compute in eight bits: several times as quick, a quarter of the size; refused where
            the masks would be others.
        end_to_end: For programs without notan: a graph from an image's pixels to its probability
            and mask at its own size; what goes by components or tiles has no place in it.
    """
    from notan.exporting import export as export_model

    if half and int8:
        raise ConfigError(
            "--half and --int8 are two kinds of file; give one: --int8 for a quicker file, --half "
            "for a smaller one with nearly the same masks"
        )
    precision: Kind = "int8" if int8 else "half" if half else "fp32"
    path, card = export_model(
        model,
        out,
        precision=precision,
        data_path=data_path,
        own_model=model_class,
        end_to_end=end_to_end,
    )
    if card.exported:
        print(_parity_in_words(card.exported))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _parity_in_words(exported: Exported) -> str:
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
