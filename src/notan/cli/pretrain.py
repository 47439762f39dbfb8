"""``notan pretrain``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from notan.cli.flags import DataPath, Overrides, shows
from notan.config import Pretrain

DEFAULT = Pretrain()


def pretrain(
    overrides: Overrides = (),
    *,
    data_path: DataPath = None,
    encoder: Annotated[str | None, shows(DEFAULT.encoder, "NAME")] = None,
    pretrained: bool = False,
    encoder_weights: Annotated[Path | None, shows("none", "FILE")] = None,
    out: Annotated[Path | None, shows("a fresh folder under runs/", "FOLDER")] = None,
    overwrite: bool = False,
    resume: Annotated[Path | None, shows("none", "FOLDER")] = None,
    device: Annotated[str | None, shows(DEFAULT.device, "auto|cpu|cuda|cuda:1|mps")] = None,
    epochs: Annotated[int | None, shows(DEFAULT.epochs, "N")] = None,
    batch_size: Annotated[int | None, shows(DEFAULT.batch_size, "N")] = None,
    learning_rate: Annotated[float | None, shows(DEFAULT.learning_rate, "RATE")] = None,
    image_size: Annotated[int | None, shows(DEFAULT.image_size, "PIXELS")] = None,
    seed: Annotated[int | None, shows(DEFAULT.seed, "N")] = None,
) -> None:
    """Let an encoder learn from images without masks, before notan train learns from masks.

    Squares of each image are hidden, and the network learns to fill them in: for that it has to
    know what your images show. It is of use where you have many more images than masks, and the
    images are of a kind that published weights have never seen. Start the training from it with:
    notan train --encoder NAME --encoder-weights RUN/encoder.safetensors.

    The run folder receives encoder.safetensors, history.jsonl with the loss on images that were
    held out, and reconstructions.png: what is seen, what is filled in, and what was there.

    Args:
        overrides: Any other setting: pretrain.hidden_share=0.5 pretrain.patch=16
            pretrain.crop_area=0.3 pretrain.precision=bf16 pretrain.workers=4.
        data_path: A folder of images; or a data folder as train takes it, of which only the
            training images are used.
        encoder: efficientnet_lite0, resnet34, timm:NAME or smp:NAME: what learns.
        pretrained: Go on from the encoder's published weights, learned on ImageNet.
        encoder_weights: Go on from the weights in this file.
        out: Where the run is kept.
        overwrite: Replace the pretraining that is already in --out.
        resume: Go on with the pretraining in this folder where it was stopped, with its own
            settings; device, workers and a folder of images that was moved may be given anew.
        device: Where to compute.
        epochs: Passes over the images; of a few hundred images, hundreds are wanted.
        batch_size: Images in a step.
        learning_rate: Of AdamW, at its highest.
        image_size: Side of the square that images are cropped and resized to, in pixels; near
            what you will train at.
        seed: Decides weights, order, crops, what is hidden and which images are held out; give
            the training the same, so that both set the same validation images aside.
    """
    flags = {
        "path": data_path,
        "encoder": encoder,
        "pretrained": pretrained or None,
        "encoder_weights": encoder_weights,
        "device": device,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "image_size": image_size,
        "seed": seed,
    }
    _run(
        {f"pretrain.{name}": value for name, value in flags.items()},
        overrides,
        out,
        resume,
        overwrite=overwrite,
    )


def _run(
    flags: dict[str, object],
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    *,
    overwrite: bool,
) -> None:
    from notan.config import Pretraining, load_settings
    from notan.errors import ConfigError
    from notan.pretraining import pretrain as run_pretraining
    from notan.pretraining import resume as resume_pretraining
    from notan.pretraining.pretrainer import stored_settings

    if resume is not None and (out or overwrite):
        raise ConfigError(
            "--resume takes settings and folder from the run: leave --out and --overwrite"
        )
    stored = stored_settings(resume) if resume else None
    settings = load_settings(Pretraining, stored, flags=flags, overrides=overrides).pretrain
    result = (
        resume_pretraining(resume, settings=settings)
        if resume
        else run_pretraining(settings, out=out, overwrite=overwrite)
    )
    lowest = result.lowest
    print(
        f"Lowest held-out loss: {lowest.loss:.4f} (epoch {lowest.epoch}); "
        f"grey in every gap: {lowest.blind:.4f}\n{result.encoder}\n"
        f"Train from it: notan train --encoder {result.name} "
        f"--encoder-weights {shlex.quote(str(result.encoder))} --data-path FOLDER"
    )
