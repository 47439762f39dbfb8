"""Predictor: any picture in, its probability map and mask at its own size out."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from notan.checkpoint import load_checkpoint
from notan.decision import Decision, expected_dice, sigmoid
from notan.errors import DivergedError
from notan.predict.augment import AugmentedBackend
from notan.predict.backends import TorchBackend, rebuild
from notan.predict.pictures import as_picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from notan.checkpoint import Card
    from notan.data.sample import Sample
    from notan.predict.backends import Backend
    from notan.predict.pictures import PictureLike
    from notan.preprocess import Placement, Preprocessor
    from notan.types import Mask, ModelInput, Picture, Probability


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        probability: float32, (height, width) of the picture; the calibrated chance of figure, 0..1.
        decision: How it becomes a mask.
    """

    probability: Probability
    decision: Decision

    @cached_property
    def mask(self) -> Mask:
        """bool, (height, width), True = figure."""
        return self.decision.mask(self.probability)

    @cached_property
    def expected_dice(self) -> float:
        """The Dice that the mask has if the probabilities are right, 0..1."""
        return expected_dice(self.probability, self.mask)

    @property
    def please_check(self) -> bool | None:
        """Whether a person should look: less sure than on nine in ten validation pictures.

        None where validation has not said how sure is usual.
        """
        bound = self.decision.check_below
        return None if bound is None else self.expected_dice < bound


class Predictor:
    """A backend with the preprocessing that its network was trained with."""

    def __init__(
        self,
        backend: Backend,
        preprocessor: Preprocessor,
        *,
        decision: Decision | None = None,
        card: Card | None = None,
    ) -> None:
        """Join a network and its preprocessing.

        Args:
            backend: Maps model inputs to logits.
            preprocessor: Makes model inputs, and knows the way back.
            decision: How probabilities become masks; None: a threshold of 0.5.
            card: The card of the model file, where there is one.
        """
        self.backend = backend
        self.preprocessor = preprocessor
        self.decision = decision or Decision()
        self.card = card

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str | torch.device = "cpu",
        model: torch.nn.Module | None = None,
        threshold: float | None = None,
        augment: Sequence[str] = (),
    ) -> Predictor:
        """Open a checkpoint.

        Args:
            path: A ``.safetensors`` file that ``train`` wrote.
            device: Where to run.
            model: A fresh instance, where the checkpoint is of a class of your own.
            threshold: Instead of what validation chose; None: as it chose.
            augment: Ask several views of each picture: ``mirror``, ``flip``, ``turn``, ``scale``.

        Raises:
            ConfigError: The threshold is outside 0..1, or there is no such view.
            CheckpointError: Missing, damaged, foreign, or of a network that was not given.
        """
        checkpoint = load_checkpoint(path)
        card = checkpoint.card
        backend: Backend = TorchBackend(rebuild(checkpoint, model), device)
        if augment:
            backend = AugmentedBackend(backend, augment, stride=card.preprocess.stride)
        chosen = card.decision
        decision = chosen if threshold is None else chosen.with_threshold(threshold)
        return cls(backend, card.preprocess, decision=decision, card=card)

    @property
    def augment(self) -> str | None:
        """Say which views of each picture are asked; None: the picture alone."""
        return self.backend.in_words() if isinstance(self.backend, AugmentedBackend) else None

    def with_decision(self, decision: Decision) -> Predictor:
        """Return the same network and preprocessing with another decision."""
        return Predictor(self.backend, self.preprocessor, decision=decision, card=self.card)

    def __call__(self, image: PictureLike) -> Prediction:
        """Segment one picture, from 1x1 up.

        Args:
            image: A path, the bytes of a file, a Pillow image, or a uint8 array of shape
                (height, width, 3) RGB, (height, width) grey or (height, width, 4) RGBA.

        Raises:
            ShapeError: Not such a picture.
            DataError: A file, bytes or image that cannot be decoded.
        """
        return next(self.predict_many([as_picture(image)]))

    def predict_many(
        self, images: Iterable[Picture], *, batch_size: int = 1
    ) -> Iterator[Prediction]:
        """Segment pictures in their order, several at once where their inputs are of one size.

        Args:
            images: Read as they are needed, so a generator keeps the memory small.
            batch_size: At most so many at once.

        Raises:
            ShapeError: Something that is no picture.
            DivergedError: The network returned NaN or infinity.
        """
        inputs = (self.preprocessor(image) for image in images)
        for _, same_size in itertools.groupby(inputs, key=lambda pair: pair[1].padded):
            while batch := list(itertools.islice(same_size, batch_size)):
                yield from self._predict_batch(batch)

    def predict_samples(
        self, samples: Iterable[Sample], *, batch_size: int = 1
    ) -> Iterator[tuple[Sample, Prediction]]:
        """Segment the pictures of samples, and give each sample back with its prediction.

        Args:
            samples: Read as they are needed.
            batch_size: At most so many at once.

        Raises:
            DataError: A sample cannot be read.
            DivergedError: The network returned NaN or infinity.
        """
        waiting: deque[Sample] = deque()

        def images() -> Iterator[Picture]:
            for sample in samples:
                waiting.append(sample)
                yield sample.image

        for prediction in self.predict_many(images(), batch_size=batch_size):
            yield waiting.popleft(), prediction

    def _predict_batch(self, batch: Sequence[tuple[ModelInput, Placement]]) -> Iterator[Prediction]:
        logits = self.backend(np.stack([array for array, _ in batch]))
        if not np.isfinite(logits).all():
            raise DivergedError(
                "the network returned values that are no numbers; its weights are spoilt: "
                "use another checkpoint"
            )
        for probability, (_, placement) in zip(sigmoid(logits[:, 0]), batch, strict=True):
            calibrated = self.decision.calibrate(placement.restore(probability))
            yield Prediction(calibrated, self.decision)
