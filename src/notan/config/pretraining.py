"""Every setting of a pretraining on images without masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from notan.config.sections import Section


class Pretrain(Section):
    """How an encoder learns to fill in what is hidden of images.

    Where nothing else is said, the values are SimMIM's (Xie et al. 2022, arXiv:2111.09886, section
    4.1), fitted to a convolutional encoder and to hundreds of images instead of a million.
    """

    path: Path | None = None
    """The folder of images, or a data folder, of which the training split is taken."""
    encoder: str = "efficientnet_lite0"
    """What learns: a name that ``model.encoder`` knows."""
    pretrained: bool = False
    """Go on from the encoder's published weights; False: from scratch."""
    encoder_weights: Path | None = None
    """Go on from the encoder's weights in this file."""
    width: Annotated[int, Field(ge=1, le=512)] = 8
    """Channels of the finest level of the decoder, which is thrown away in the end."""
    image_size: Annotated[int, Field(ge=64, le=2048)] = 192
    """Side of the square that images are cropped and resized to, in pixels."""
    patch: Annotated[int, Field(ge=1)] = 32
    """Side of the squares that are hidden, in pixels of that square."""
    hidden_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.6
    """How much of each image is hidden."""
    crop_area: Annotated[float, Field(gt=0.0, le=1.0)] = 0.67
    """Random crops keep at least this share of an image."""
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the images that are not learned from, and say which epoch was best."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of the training that will follow, where the data folder has no validation part; None: the
    seed."""
    epochs: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Of AdamW, at its highest: after the warm-up; then it falls to 0 as half a cosine."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 5.0
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = 5.0
    """Largest norm of the gradient of all weights together; None: any."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; ``auto``: bf16 where a GPU has it, else fp32."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images; None: none on a CPU, up to 8 beside a GPU."""
    loss_guard: bool = True
    """Watch for losses that are no numbers or that jump, skip them, go back if they persist."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 5
    """How often the guard may go back to good weights, each time at a quarter of the rate."""
    checkpoint_every_seconds: Annotated[float, Field(ge=0.0)] = 60.0
    """Write the state for --resume every so many seconds, at the next step's end."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """And every so many steps; None: by the clock alone."""
    deterministic: bool = False
    """Repeatable arithmetic on a GPU too, slower; on a CPU it always is."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides weights, order, crops, what is hidden and which images are held out."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""

    @model_validator(mode="after")
    def _something_to_see(self) -> Pretrain:
        if 2 * self.patch > self.image_size:
            raise ValueError(
                f"patches of {self.patch} pixels in images of {self.image_size}: at least two "
                "must fit beside each other; lower pretrain.patch or raise --image-size"
            )
        if self.pretrained and self.encoder_weights:
            raise ValueError(
                "--pretrained and --encoder-weights both say what to go on from; give one"
            )
        return self


class Pretraining(Section):
    """All settings of one pretraining: the root of ``pretrain.key=value``."""

    pretrain: Pretrain = Pretrain()
