"""Test-time augmentation: the mean of a network's probabilities over several views of an image.

It wraps any backend, so it works on whole images and inside tiles, on every runtime. NumPy and
OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ConfigError, nearest
from notan.modelfile.preprocess import pad, resize
from notan.prediction.backends import precision_of
from notan.prediction.batches import Answered, Overlapping, begin, computes_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from notan.prediction.backends import Array, Backend, Precision
    from notan.types import ModelInput, Size

Symmetry = tuple[bool, int]
"""(whether left and right are exchanged, quarter turns counter-clockwise after that)."""

AS_IT_IS: Symmetry = (False, 0)
SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "hflip": (AS_IT_IS, (True, 0)),
    "vflip": (AS_IT_IS, (True, 2)),
    "rot90": (AS_IT_IS, (False, 1), (False, 2), (False, 3)),
}
"""``hflip`` exchanges left and right, which suits photographs; ``vflip`` exchanges top and bottom
and ``rot90`` goes round: for images without an up, from a microscope or an aeroplane."""

SCALES = (0.75, 1.0, 1.25)
"""Sides of the views of ``scale``, as shares of the input's own."""

NAMES = (*SYMMETRIES, "scale")


@dataclass(frozen=True)
class View:
    """One way to look at an input, and the way back.

    Attributes:
        mirrored: Whether left and right are exchanged, before turning.
        turns: Quarter turns counter-clockwise.
        scale: What height and width are multiplied by, before mirroring.
    """

    mirrored: bool
    turns: int
    scale: float

    def apply(self, inputs: Array, stride: int) -> Array:
        """Return (n, c, h, w) as the view shows it, padded below and right to the stride."""
        seen = self._zoom(inputs, stride) if self.scale != 1 else inputs
        seen = seen[..., ::-1] if self.mirrored else seen
        return np.ascontiguousarray(np.rot90(seen, self.turns, axes=(2, 3)))

    def undo(self, answers: Array, size: Size) -> Array:
        """Bring answers (n, 1, h, w) to such a view back to an input of (height, width)."""
        back = np.rot90(answers, -self.turns, axes=(2, 3))
        back = back[..., ::-1] if self.mirrored else back
        if self.scale == 1:
            return back
        height, width = self._zoomed(size)
        return np.stack([resize(answer[0, :height, :width], size)[None] for answer in back])

    def _zoom(self, inputs: Array, stride: int) -> Array:
        height, width = self._zoomed((inputs.shape[2], inputs.shape[3]))
        padded = (-(-height // stride) * stride, -(-width // stride) * stride)
        images = inputs.transpose(0, 2, 3, 1)
        zoomed = [pad(resize(image, (height, width)), padded) for image in images]
        return np.stack(zoomed).transpose(0, 3, 1, 2)

    def _zoomed(self, size: Size) -> Size:
        height, width = (max(1, round(side * self.scale)) for side in size)
        return height, width


def parse_augment(text: str) -> tuple[str, ...]:
    """Read names with commas between them, such as ``hflip,rot90``; each counts once.

    Raises:
        ConfigError: There is no such name.
    """
    return check_augment(word.strip() for word in text.split(","))


def check_augment(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in their own order, each once.

    Raises:
        ConfigError: There is no such name.
    """
    given = set(names)
    for name in sorted(given - set(NAMES)):
        raise ConfigError(f"'{name}': there is no such test-time view{nearest(name, NAMES)}")
    return tuple(name for name in NAMES if name in given)


def views_of(names: Sequence[str]) -> tuple[View, ...]:
    """Return all that names make together, the input as it is first.

    ``hflip`` or ``vflip`` with ``rot90`` gives the eight symmetries of the square; ``scale`` shows
    each of them at three sizes.

    Raises:
        ConfigError: There is no such name.
    """
    names = check_augment(names)
    found = {AS_IT_IS: None}  # a dict keeps the order and holds each once
    for name in names:
        steps = SYMMETRIES.get(name, (AS_IT_IS,))
        found = dict.fromkeys(_then(first, step) for step in steps for first in found)
    scales = sorted(SCALES, key=lambda scale: scale != 1) if "scale" in names else (1.0,)
    return tuple(View(mirrored, turns, scale) for scale in scales for mirrored, turns in found)


def _then(first: Symmetry, second: Symmetry) -> Symmetry:
    """Do one symmetry after another: a turn that is mirrored afterwards goes the other way."""
    turns = -first[1] if second[0] else first[1]
    return first[0] != second[0], (turns + second[1]) % 4


class AugmentedBackend:
    """A backend that answers with the mean of another one's probabilities over several views.

    Attributes:
        backend: The one that sees the views.
        names: What the views are made of.
        views: Made of the names, the input as it is first.

    Source: the mean of probabilities, as in deep ensembles, Lakshminarayanan et al. 2017,
        arXiv:1612.01474. A mean of logits lets one view that is very sure outvote the others. The
        mean is formed from logarithms, so that a pixel of logit 40 does not become one of 16.
    """

    def __init__(self, backend: Backend, names: Sequence[str], *, stride: int) -> None:
        """Wrap a backend.

        Args:
            backend: Must take inputs of any size that is a multiple of the stride.
            names: ``hflip``, ``vflip``, ``rot90``, ``scale``; at least one.
            stride: Of the network.

        Raises:
            ConfigError: There is no such name.
        """
        self.backend = backend
        self.names = check_augment(names)
        self.views = views_of(names)
        self.stride = stride

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w)."""
        return self._mean(self.backend(each) for each in self._seen(inputs))

    def begin(self, inputs: Sequence[ModelInput]) -> Callable[[], Answered]:
        """Show all views of a batch to the network; what is returned waits for the answers."""
        stacked = np.stack(inputs)
        answers = [begin(self.backend, list(each)) for each in self._seen(stacked)]

        def answer() -> Answered:
            answered = [each() for each in answers]
            mean = self._mean(each.logits for each in answered)
            return Answered(mean, sum(each.seconds for each in answered))

        return answer

    @property
    def overlaps(self) -> bool:
        """Whether the network computes beside the processor."""
        return computes_beside(self.backend)

    @property
    def precision(self) -> Precision:
        """What the network computes in."""
        return precision_of(self.backend)

    def compiled(self) -> AugmentedBackend:
        """Return the same over the compiled network, of those that can be compiled."""
        inner = self.backend
        network = inner.compiled() if isinstance(inner, Overlapping) else inner
        return AugmentedBackend(network, self.names, stride=self.stride)

    def _seen(self, inputs: Array) -> Iterator[Array]:
        return (view.apply(inputs, self.stride) for view in self.views)

    def _mean(self, answers: Iterable[Array]) -> Array:
        """Return the logits of the mean probability over the answers to all views."""
        foreground: Array = np.full((), -np.inf, np.float32)
        background = foreground
        size = None
        for view, answer in zip(self.views, answers, strict=True):
            size = size or (answer.shape[2], answer.shape[3])  # the first view is the input itself
            logits = view.undo(answer, size)
            with np.errstate(invalid="ignore"):  # the Predictor refuses what is no number
                foreground = np.logaddexp(foreground, -np.logaddexp(np.float32(0), -logits))
                background = np.logaddexp(background, -np.logaddexp(np.float32(0), logits))
        result: Array = foreground - background  # the number of views stands in both, and cancels
        return result

    def in_words(self) -> str:
        """Say what was done, for the rules of a score."""
        return f"{', '.join(self.names)} ({len(self.views)} views of each image)"
