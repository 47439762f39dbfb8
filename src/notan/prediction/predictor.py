"""Predictor: any image in, its probability map and mask at its own size out."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from notan.errors import ConfigError, DivergedError, ShapeError, StorageError, nearest
from notan.io.write import write_bytes
from notan.modelfile.postprocess import Postprocessing, sigmoid
from notan.prediction.backends import open_model, precision_of
from notan.prediction.batches import ON_GPU, Batches, computes_beside
from notan.prediction.inputs import as_image
from notan.prediction.tiles import PixelsInMemory, Tiling
from notan.prediction.tta import AugmentedBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO, Literal

    import numpy.typing as npt
    import torch

    from notan.data.samples import Sample
    from notan.modelfile.card import Card
    from notan.modelfile.preprocess import Placement, Preprocessor
    from notan.models.own import Network
    from notan.prediction.backends import Backend, Precision
    from notan.prediction.inputs import ImageLike
    from notan.prediction.tiles import Pixels, TileGrid
    from notan.types import Image8, Mask, ModelInput, Probability, ProgressCallback, RGBImage, Size

logger = logging.getLogger("notan")

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        probability: float32, (height, width) of the image; the calibrated chance of foreground,
            0..1.
        postprocessing: How it becomes a mask.
        image: uint8, (height, width, 3), RGB: what was predicted, no copy of it; None where
            ``notan.predict`` was given a list, and it decoded the image itself: of many files the
            pixels would fill the memory.
    """

    probability: Probability
    postprocessing: Postprocessing
    image: Image8 | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.probability.shape[0], self.probability.shape[1]

    @cached_property
    def mask(self) -> Mask:
        """bool, (height, width), True = foreground."""
        return self.postprocessing.mask(self.probability)

    @cached_property
    def expected_dice(self) -> float:
        """The Dice that the mask is expected to have, 0..1: see ``Postprocessing``."""
        return self.postprocessing.expected_dice(self.probability, self.mask)

    @property
    def foreground_fraction(self) -> float:
        """The foreground's share of the image, 0..1."""
        return float(self.mask.mean())

    @property
    def needs_review(self) -> bool | None:
        """Whether a person should look: less sure than on nine in ten validation images.

        None where validation has not said how sure is usual.
        """
        return self.postprocessing.needs_review(self.expected_dice)

    def cutout(
        self,
        *,
        alpha: Literal["mask", "probability"] = "mask",
        image: ImageLike | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Return the foreground alone, the background transparent.

        Args:
            alpha: What the transparency is: the mask, with a hard edge; or the probability, with a
                soft one, through which the background shines where the network is less than sure.
            image: What was predicted, where the prediction does not hold it.

        Returns:
            uint8, (height, width, 4), RGBA.

        Raises:
            ConfigError: There is no such kind of transparency, or the prediction holds no image.
            ShapeError: The image is of another size.

        Example:
            >>> notan.predict("cat.jpg").cutout().shape
            (20, 30, 4)
        """
        from notan.prediction.pixels import cutout_image, probability_image

        if alpha not in ("mask", "probability"):
            raise ConfigError(f"alpha {alpha!r}{nearest(alpha, ('mask', 'probability'))}")
        cutout = cutout_image(self._its(image), self.mask)
        if alpha == "probability":
            cutout[..., 3] = probability_image(self.probability)
        return cutout

    def overlay(self, *, image: ImageLike | None = None) -> RGBImage:
        """Return the image with the foreground tinted and outlined.

        Args:
            image: What was predicted, where the prediction does not hold it.

        Returns:
            uint8, (height, width, 3), RGB.

        Raises:
            ConfigError: The prediction holds no image.
            ShapeError: The image is of another size.

        Example:
            >>> notan.predict("cat.jpg").overlay().shape
            (20, 30, 3)
        """
        from notan.prediction.pixels import overlay_image

        return overlay_image(self._its(image), self.mask)

    def to_png(
        self,
        file: str | Path | BinaryIO,
        *,
        kind: Literal["mask", "probability", "cutout", "overlay"] = "mask",
        image: ImageLike | None = None,
    ) -> None:
        """Write a PNG file.

        Args:
            file: A path, which is written whole or not at all; or what was opened for writing
                bytes, such as ``io.BytesIO()``.
            kind: ``mask`` (255 and 0), ``probability`` (0 to 255 for 0 to 1), ``cutout`` or
                ``overlay``.
            image: What was predicted, where the prediction does not hold it; for the last two.

        Raises:
            ConfigError: There is no such kind, or the prediction holds no image.
            ShapeError: The image is of another size.
            StorageError: The file could not be written, or takes no bytes.

        Example:
            >>> notan.predict("cat.jpg").to_png("cat-without-background.png", kind="cutout")
        """
        from notan.prediction.pixels import encode_png, mask_image, probability_image

        makers: dict[str, Callable[[], npt.NDArray[np.uint8]]] = {
            "mask": lambda: mask_image(self.mask),
            "probability": lambda: probability_image(self.probability),
            "cutout": lambda: self.cutout(image=image),
            "overlay": lambda: self.overlay(image=image),
        }
        if kind not in makers:
            raise ConfigError(f"kind {kind!r}: there is no such kind{nearest(kind, makers)}")
        content = encode_png(makers[kind]())
        if isinstance(file, (str, Path)):
            write_bytes(Path(file), content)
            return
        try:
            file.write(content)
        except (AttributeError, TypeError, ValueError, OSError) as error:  # closed, or of text
            raise StorageError(
                f"{file!r}: could not be written ({error}); wanted a path, or a file object that "
                "takes bytes, such as open(path, 'wb')"
            ) from error

    def _its(self, image: ImageLike | None) -> Image8:
        """Return the image that was predicted, from here or as it was given again."""
        found = self.image if image is None else as_image(image)
        if found is None:
            raise ConfigError(
                "this prediction is one of a list of files and does not hold its image; give it "
                "again: cutout(image='photo.jpg')"
            )
        if found.shape[:2] != self.size:
            raise ShapeError(
                f"an image of {found.shape[0]}x{found.shape[1]} pixels (height x width) was given "
                f"for a prediction of {self.size[0]}x{self.size[1]}; wanted the one that was "
                "predicted"
            )
        return found


def counted(
    things: Iterable[T], progress: ProgressCallback | None, total: int | None
) -> Iterator[T]:
    """Yield things, and tell how many are done of how many."""
    for done, thing in enumerate(things, start=1):
        if progress:
            progress(done, total)
        yield thing


@dataclass(frozen=True)
class Placed:
    """An image whose input the network has.

    Attributes:
        image: As it was given.
        placement: The way back.
    """

    image: Image8
    placement: Placement


@dataclass(frozen=True)
class LargePrediction:
    """What a model says of an image whose mask is on the disk.

    Attributes:
        size: (height, width) in pixels.
        mask: Bands of bool, (rows, width), to be gone through as often as one likes.
        probability: Bands of float32, calibrated, likewise; None where it was not asked for.
        foreground_fraction: The foreground's share of the image, 0..1.
        expected_dice: The Dice that the mask is expected to have, 0..1: see ``Postprocessing``.
        needs_review: Whether a person should look; None: validation did not say how sure is usual.
    """

    size: Size
    mask: Iterable[Mask]
    probability: Iterable[Probability] | None
    foreground_fraction: float
    expected_dice: float
    needs_review: bool | None


class Predictor:
    """A backend with the preprocessing that its network was trained with.

    It never changes once loaded, so let all threads of a server share one: each call gives the
    bytes that it would give alone, and the weights are in memory once. Where many calls come at
    once, ``threads=1`` lets as many run side by side as there are cores, on PyTorch and ONNX
    Runtime; OpenVINO runs them in turn, each on all of its threads.
    """

    def __init__(
        self,
        backend: Backend,
        preprocessor: Preprocessor,
        *,
        postprocessing: Postprocessing | None = None,
        card: Card | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        """Join a network and its preprocessing.

        Args:
            backend: Maps model inputs to logits.
            preprocessor: Makes model inputs, and knows the way back.
            postprocessing: How probabilities become masks; None: a threshold of 0.5.
            card: The card of the model file, where there is one.
            tiling: When and how an image is cut into tiles; None: where it is too large.
        """
        self.backend = backend
        self.preprocessor = preprocessor
        self.postprocessing = postprocessing or Postprocessing()
        self.card = card
        self.tiling = tiling or Tiling()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        threads: int | None = None,
        backend: str = "auto",
        model: Network | None = None,
        threshold: float | None = None,
        tiling: Tiling | None = None,
        augment: Sequence[str] = (),
    ) -> Predictor:
        """Open a checkpoint or an ONNX model.

        Args:
            path: A ``.safetensors`` file that ``train`` wrote, or an ``.onnx`` one of ``export``.
            device: Where to run; ``auto`` takes a GPU where there is one.
            precision: ``fp32``; ``bf16`` is quicker on machines that know it; ``auto`` takes it on
                a GPU.
            threads: At most so many of the processor; None: the runtime's own choice.
            backend: ``torch``, ``onnxruntime``, ``openvino``, or the one that fits: ``auto``.
            model: Where the checkpoint is of a class of your own: a fresh instance, the class,
                or ``package:Class``.
            threshold: Instead of what validation chose; None: as it chose.
            tiling: When and how an image is cut into tiles; None: where it is too large.
            augment: Views of each image to take the mean over: ``hflip``, ``vflip``, ``rot90``,
                ``scale``.

        Raises:
            ConfigError: The threshold is outside 0..1, there is no such view, file and runtime
                cannot do what was asked for, or the class that was given does not work.
            CheckpointError: Missing, damaged, foreign, or of a network that was not given.
            MissingExtraError: The runtime is not installed.
        """
        card, network = open_model(
            Path(path),
            backend=backend,
            device=device,
            precision=precision,
            threads=threads,
            own_model=model,
        )
        if augment:
            network = AugmentedBackend(network, augment, stride=card.preprocess.stride)
        chosen = card.postprocessing
        postprocessing = chosen if threshold is None else chosen.with_threshold(threshold)
        return cls(
            network, card.preprocess, postprocessing=postprocessing, card=card, tiling=tiling
        )

    @property
    def augment(self) -> str | None:
        """Say over which views of each image the mean is taken; None: the image alone."""
        return self.backend.in_words() if isinstance(self.backend, AugmentedBackend) else None

    @property
    def precision(self) -> Precision:
        """What the network computes in: ``fp32`` or ``bf16``."""
        return precision_of(self.backend)

    @property
    def leaves_processor_free(self) -> bool:
        """Whether the network computes on a GPU."""
        return computes_beside(self.backend)

    def choose_batch_size(self, wanted: int | None = None, *, on_processor: int = 1) -> int:
        """Choose how many images go through the network at once.

        Args:
            wanted: So many; None: ``on_processor``, and ``ON_GPU`` on a GPU.
            on_processor: There a batch gains little, and how many there are in it may change the
                last digit of a probability: one at a time gives every image the same bytes,
                whatever lies beside it. benchmarks/predict_files.py measures it.

        Raises:
            ConfigError: Less than 1 is wanted.
        """
        if wanted is None:
            return ON_GPU if self.leaves_processor_free else on_processor
        if wanted < 1:
            raise ConfigError(f"--batch-size is {wanted}; 1 or more is wanted")
        return wanted

    def with_postprocessing(self, postprocessing: Postprocessing) -> Predictor:
        """Return the same network and preprocessing with another postprocessing."""
        return Predictor(
            self.backend,
            self.preprocessor,
            postprocessing=postprocessing,
            card=self.card,
            tiling=self.tiling,
        )

    def __call__(self, image: ImageLike) -> Prediction:
        """Segment one image, from 1x1 up.

        Args:
            image: A path, an address, the bytes of a file, a binary file object, a Pillow image,
                an array or a torch tensor, as ``as_image`` takes them.

        Raises:
            ShapeError: Not such an image.
            DataError: It cannot be read or decoded.
            DivergedError: The network returned NaN or infinity.
        """
        return next(self.predict_many([as_image(image, self.preprocessor.reading)]))

    def predict_many(
        self,
        images: Iterable[Image8],
        *,
        batch_size: int = 1,
        progress: ProgressCallback | None = None,
    ) -> Iterator[Prediction]:
        """Segment images in their order, several at once where their inputs are of one size.

        Args:
            images: Read as they are needed, so a generator keeps the memory small.
            batch_size: At most so many at once.
            progress: Called with the number of images that are done, and of all, which is None
                where a generator does not say it.

        Raises:
            ShapeError: Something that is no image.
            DivergedError: The network returned NaN or infinity.

        Example:
            >>> images = [np.zeros((8, 8, 3), np.uint8)] * 2
            >>> for prediction in notan.load().predict_many(images, progress=print):
            ...     print(prediction.size)
            1 2
            (8, 8)
            2 2
            (8, 8)
        """
        total = len(images) if isinstance(images, Sized) else None
        yield from counted(self._predict_all(images, batch_size), progress, total)

    def _predict_all(self, images: Iterable[Image8], batch_size: int) -> Iterator[Prediction]:
        for in_tiles, group in itertools.groupby(images, key=self._is_cut):
            if not in_tiles:
                yield from self._predict_whole(group, batch_size)
                continue
            for image in group:
                yield self.predict_in_tiles(image, batch_size=batch_size)

    def predict_in_tiles(self, image: Image8, *, batch_size: int = 1) -> Prediction:
        """Segment an image in tiles, whatever its size; see ``predict_bands`` for the errors."""
        bands = self.predict_bands(PixelsInMemory(image), batch_size=batch_size)
        rule = self.postprocessing_in_tiles((image.shape[0], image.shape[1]))
        return Prediction(np.concatenate(list(bands)), rule, image)

    def predict_bands(self, pixels: Pixels, *, batch_size: int = 1) -> Iterator[Probability]:
        """Segment an image of any size in tiles, holding no more than a row of them.

        Args:
            pixels: The image, of which any part can be read.
            batch_size: At most so many tiles at once.

        Yields:
            The calibrated map from the top, float32, (rows, width): all rows together.

        Raises:
            ConfigError: The scale makes a single tile too large.
            DataError: A part of the image cannot be read.
            DivergedError: The network returned NaN or infinity.
        """
        grid = self._grid(pixels.size)
        logger.info("%s", grid.in_words())
        if self.postprocessing.in_parts(grid.part) != self.postprocessing:
            largest = self.postprocessing.keep_largest
            logger.info(
                "what is a speck or a small hole goes by the size of a training image, %.2g of "
                "this one%s",
                *(grid.part, "; other components than the largest are kept too" * largest),
            )
        as_it_is = self.preprocessor.model_copy(update={"image_size": None})
        plain = Predictor(self.backend, as_it_is)

        def predict(tiles: Iterable[Image8]) -> Iterator[Probability]:
            return (each.probability for each in plain._predict_whole(tiles, batch_size))

        for band in grid.bands(predict, pixels):
            yield self.postprocessing.calibrate(band)

    def postprocessing_in_tiles(self, size: Size) -> Postprocessing:
        """Return how an image of a (height, width) becomes a mask when it goes through in tiles."""
        return self.postprocessing.in_parts(self._grid(size).part)

    def _grid(self, size: Size) -> TileGrid:
        trained = self.card.data.median_size if self.card else None
        return self.tiling.grid(size, self.preprocessor, trained)

    def predict_samples(
        self, samples: Iterable[Sample], *, batch_size: int = 1
    ) -> Iterator[tuple[Sample, Prediction]]:
        """Segment the images of samples, and give each sample back with its prediction.

        Args:
            samples: Read as they are needed.
            batch_size: At most so many at once.

        Raises:
            DataError: A sample cannot be read.
            DivergedError: The network returned NaN or infinity.
        """
        waiting: deque[Sample] = deque()

        def images() -> Iterator[Image8]:
            for sample in samples:
                waiting.append(sample)
                yield sample.image

        for prediction in self.predict_many(images(), batch_size=batch_size):
            yield waiting.popleft(), prediction

    def cuts(self, size: Size) -> bool:
        """Say whether an image of a (height, width) goes through in tiles."""
        return self.tiling.cuts(size, self.preprocessor)

    def _is_cut(self, image: Image8) -> bool:
        """Say whether an image goes through in tiles; what is no image is refused elsewhere."""
        return self.preprocessor.takes(image) and self.cuts((image.shape[0], image.shape[1]))

    def _predict_whole(self, images: Iterable[Image8], batch_size: int) -> Iterator[Prediction]:
        """Segment images each at once, several together where their inputs are of one size."""
        batches: Batches[Placed] = Batches(self.backend, batch_size)
        ready = map(self._prepare, images)
        for _, same_size in itertools.groupby(ready, key=lambda each: each[0].placement.padded):
            while batch := list(itertools.islice(same_size, batch_size)):
                for placed, logits in batches.put(batch):
                    yield self.finish(placed, logits)
        for placed, logits in batches.rest():
            yield self.finish(placed, logits)

    def prepare(self, image: Image8) -> tuple[Placed, ModelInput] | None:
        """Make an image ready for the network: what can be done ahead of it, in any thread.

        Returns:
            What ``finish`` needs, and the input; None: it goes through in tiles.

        Raises:
            ShapeError: It is no image.
        """
        return None if self._is_cut(image) else self._prepare(image)

    def _prepare(self, image: Image8) -> tuple[Placed, ModelInput]:
        inputs, placement = self.preprocessor(image)
        return Placed(image, placement), inputs

    def finish(self, placed: Placed, logits: npt.NDArray[np.float32]) -> Prediction:
        """Make a prediction of what the network answered: what can be done behind it, likewise.

        Args:
            placed: What went through whole.
            logits: float32, (h, w) of its input.

        Raises:
            DivergedError: NaN or infinity is among them.
            ShapeError: They are of another size.
        """
        if not np.isfinite(logits).all():
            raise DivergedError(
                "the network returned values that are no numbers; its weights are spoilt: "
                "use another checkpoint"
            )
        probability = placed.placement.restore(sigmoid(logits))
        calibrated = self.postprocessing.calibrate(probability)
        return Prediction(calibrated, self.postprocessing, placed.image)
