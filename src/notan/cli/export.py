"""``notan export``: a model file that runs without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import ModelFile, shows

if TYPE_CHECKING:
    from notan.checkpoint import Exported


def export(
    *,
    model: ModelFile,
    to: Annotated[Literal["onnx"], arg(metavar="onnx")] = "onnx",  # noqa: ARG001 - one so far
    out: Annotated[Path | None, shows("beside the model, best.onnx", "FILE")] = None,
    half: bool = False,
    data_path: Annotated[Path | None, shows("the model's own", "FOLDER")] = None,
) -> None:
    """Write one portable file, which predicts on any machine, with ONNX Runtime or OpenVINO.

    Before it is written, its masks are compared with the checkpoint's on validation pictures, at
    their own size, under each of the two that is installed; a file whose masks differ is refused.
    The file holds the card, so predict, evaluate and compare take it like a checkpoint.

    Args:
        model: A best.safetensors that train wrote.
        to: The format.
        out: The file to write.
        half: Store the weights in float16: a file half as large, of the same speed.
        data_path: The folder with the pictures that the masks are compared on.
    """
    from notan.export import export as export_model

    path, card = export_model(model, out, precision="half" if half else "fp32", data_path=data_path)
    if card.exported:
        print(_in_words(card.exported))
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _in_words(exported: Exported) -> str:
    return "\n".join(
        f"{each.runtime}: mask IoU {each.mask_iou:.5f} with the checkpoint on {each.pictures} "
        f"(worst {each.worst_iou:.5f}), probabilities differ by at most "
        f"{each.largest_difference:.1g}"
        for each in exported.parity
    )
