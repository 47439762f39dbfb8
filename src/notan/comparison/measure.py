"""What one model scores on the images: its Dice, its masks, its speed, its size."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from notan.evaluate import evaluate
from notan.portable import is_onnx
from notan.predict.backends import TorchBackend
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from notan.comparison.candidates import Candidate
    from notan.config import TrimapBorder
    from notan.data.sample import Sample, Source
    from notan.metrics import Score
    from notan.predict.predictor import Prediction
    from notan.types import Mask, RGBImage, Size

TIMED, TRIES = 10, 3
"""Images that the speed is measured on, and how often each is tried."""


@dataclass(frozen=True)
class PackedMask:
    """A mask as compressed bits, so that those of a whole test split fit into memory.

    Attributes:
        size: (height, width) in pixels.
        bits: One for each pixel, eight to a byte, compressed by zlib.
    """

    size: Size
    bits: bytes

    @classmethod
    def of(cls, mask: Mask) -> PackedMask:
        """Pack a mask: bool, (height, width)."""
        bits = zlib.compress(np.packbits(mask).tobytes(), level=1)
        return cls((mask.shape[0], mask.shape[1]), bits)

    def unpack(self) -> Mask:
        """Return the mask as it was."""
        height, width = self.size
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        return np.unpackbits(bits, count=height * width).reshape(self.size).astype(np.bool_)


@dataclass(frozen=True)
class Result:
    """What one model did on the images.

    Attributes:
        candidate: The model.
        score: Of every image.
        masks: Of every image.
        images_per_second: One image at a time, from pixels to mask; reading not counted.
        parameters: Numbers that were learned; 0 where an ONNX model's card does not say.
        file_bytes: Of the model file.
    """

    candidate: Candidate
    score: Score
    masks: tuple[PackedMask, ...]
    images_per_second: float
    parameters: int
    file_bytes: int

    @property
    def dice(self) -> list[float]:
        """Of every image."""
        return [image.counts.dice for image in self.score.images]

    def to_json(self) -> dict[str, object]:
        """Return what is said of this model alone."""
        return {
            "name": self.candidate.name,
            "file": str(self.candidate.path),
            "seed": self.candidate.card.run.seed,
            "epoch": self.candidate.card.epoch,
            "threshold": self.score.rules.threshold,
            "postprocessing": self.score.rules.postprocessing,
            "seen": self.score.rules.seen,
            "mean_dice": self.score.mean_dice,
            "mean_iou": self.score.mean_iou,
            "images_per_second": self.images_per_second,
            "parameters": self.parameters,
            "file_bytes": self.file_bytes,
            "dice": self.dice,
        }


def measure(
    candidate: Candidate,
    source: Source,
    *,
    split: str,
    trimap_border: TrimapBorder | None,
    device: torch.device,
    batch_size: int,
    allow_training_images: bool,
) -> Result:
    """Evaluate a model, keep its masks and measure its speed.

    Raises:
        CheckpointError: The file is damaged, or of a network of the user's own.
        DataError: An image or mask cannot be read, or the model was trained on it and
            ``allow_training_images`` is False.
    """
    predictor = _load(candidate, device)
    masks: list[PackedMask] = []
    first: list[RGBImage] = []

    def keep(sample: Sample, prediction: Prediction) -> None:
        masks.append(PackedMask.of(prediction.mask))
        if len(first) < TIMED:
            first.append(sample.image)

    score = evaluate(
        predictor,
        source,
        split=split,
        trimap_border=trimap_border,
        batch_size=batch_size,
        witness=keep,
        allow_training_images=allow_training_images,
    )
    return Result(
        candidate,
        score,
        tuple(masks),
        _speed(predictor, first),
        _parameters(predictor),
        candidate.path.stat().st_size,
    )


def _load(candidate: Candidate, device: torch.device) -> Predictor:
    """Open a model; an ONNX model runs on the processor, whatever the others run on."""
    if not is_onnx(candidate.path):
        return Predictor.load(candidate.path, device=device)
    import torch

    # speeds stand side by side, under one line that says how many threads there were: PyTorch's
    return Predictor.load(candidate.path, threads=torch.get_num_threads())


def _speed(predictor: Predictor, images: Sequence[RGBImage]) -> float:
    """Return images per second, of the middle image's fastest try.

    Whatever else the machine does makes a try slower, never faster.
    """
    fastest = (min(_seconds(predictor, image) for _ in range(TRIES)) for image in images)
    return 1 / median(fastest)


def _seconds(predictor: Predictor, image: RGBImage) -> float:
    start = time.perf_counter()
    _ = predictor(image).mask
    return time.perf_counter() - start


def _parameters(predictor: Predictor) -> int:
    backend = predictor.backend
    if isinstance(backend, TorchBackend):
        return sum(parameter.numel() for parameter in backend.model.parameters())
    return (predictor.card.parameters if predictor.card else None) or 0
