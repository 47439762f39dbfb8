"""A network of another package as an encoder: measured, filled and divided into stages."""

from __future__ import annotations

import contextlib
import copy
import difflib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from notan.errors import CheckpointError, ConfigError, nearest
from notan.models.base import Encoder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor, nn

    from notan.types import Images

STRIDES = ((1, 2, 4, 8, 16, 32), (2, 4, 8, 16, 32), (4, 8, 16, 32))
WANTED = "a convolutional network with maps at strides 2, 4, 8, 16, 32, or from 4 on, is wanted"
PROBE = (64, 96)
"""Height and width of the image that a network is measured with; not square, so that a map with
its channels last is noticed."""


class ForeignEncoder(Encoder):
    """A network of another package that hands out feature maps.

    Its package's word on channels and strides is not taken: a small image goes through it.

    Attributes:
        package: How ``model.encoder`` calls the package, before the colon.
        name: What the package calls the network, after it.
        network: The package's own module; its weights keep their names behind ``network.``.
        listed_by: What in the package lists all its networks.
        skipped: So many maps at the front are none of the network's.
    """

    package: str
    listed_by: str
    skipped = 0

    def __init__(self, name: str) -> None:
        """Build the network without weights.

        Raises:
            ConfigError: The package has no such network, or it hands out other maps than are
                wanted.
            MissingExtraError: The package is not installed.
        """
        super().__init__()
        self.name = name
        names = self.names()
        if name not in names:
            close = difflib.get_close_matches(name, names, n=5)
            hint = nearest(name, close) or f"; {self.listed_by} has them all"
            raise ConfigError(f"'{self.called}': there is no such encoder{hint}")
        try:
            self.network = self.build(pretrained=False)
            maps = _probe(self)
        except Exception as error:
            raise ConfigError(
                f"{self.called}: hands out no feature maps of an image of {PROBE[0]}x{PROBE[1]} "
                f"({one_line(error)}); {WANTED}"
            ) from error
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(PROBE[0] // max(1, each.shape[2]) for each in maps)
        divided = [tuple(side // stride for side in PROBE) for stride in self.strides]
        if self.strides not in STRIDES or [tuple(each.shape[2:]) for each in maps] != divided:
            sizes = ", ".join("x".join(map(str, each.shape[2:])) for each in maps)
            raise ConfigError(
                f"{self.called}: its feature maps of an image of {PROBE[0]}x{PROBE[1]} are "
                f"{sizes}; {WANTED}"
            )

    @property
    def called(self) -> str:
        """What ``model.encoder`` calls it."""
        return f"{self.package}:{self.name}"

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return all networks that the package offers."""

    @abstractmethod
    def build(self, *, pretrained: bool) -> nn.Module:
        """Build the package's network, with the weights that it fetches or without any."""

    @abstractmethod
    def published(self) -> tuple[str, str]:
        """Say in words what the published weights are, and at which address they are.

        Raises:
            ConfigError: There are none.
        """

    def load_published(self) -> str:
        """Take the weights that the package publishes; it fetches them and keeps them itself.

        Returns:
            What they are, in words.

        Raises:
            ConfigError: There are none.
            CheckpointError: They cannot be fetched.
        """
        words, address = self.published()
        with self.fetching(address):
            weights = self.build(pretrained=True).state_dict()
        self.network.load_state_dict(weights)
        return words

    @contextlib.contextmanager
    def fetching(self, address: str) -> Iterator[None]:
        """Turn whatever a package raises while it fetches into one line with a way out.

        Raises:
            CheckpointError: Something was raised inside.
        """
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self.called}: its published weights cannot be fetched ({one_line(error)}); on a "
                f"machine without a network, fetch them on another from {address} and give them "
                "with --encoder-weights FILE"
            ) from error

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that a map needs and no finer one does; one list where they mix."""
        twin = copy.deepcopy(self).requires_grad_(True)
        with torch.enable_grad():
            maps = _probe(twin)
        names = {weight: name for name, weight in twin.named_parameters()}
        levels: dict[str, int] = {}
        for level, features in enumerate(maps):
            for weight in _weights_behind(features):
                levels.setdefault(names[weight], level)
        stages: list[list[nn.Module]] = [[] for _ in maps]
        for path, module in self.named_modules():
            for name, _ in module.named_parameters(path, recurse=False):
                stages[levels.get(name, -1)].append(module)
        return stages if _divide(stages) else [[self.network]]

    def forward(self, images: Images) -> list[Images]:
        """Map (n, 3, h, w) to the feature maps, finest first."""
        maps = self.network(images)[self.skipped :]
        return [each for each in maps if each.shape[1]]  # smp has maps of no channels


def one_line(error: Exception) -> str:
    """Return the first sentence of what a package says of a failure."""
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return sentence.strip(" .:")[:150] or type(error).__name__


def _probe(encoder: ForeignEncoder) -> list[Images]:
    """Return the maps of a small black image; what the network has learned stays as it was."""
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        maps: list[Images] = encoder(
            torch.zeros(1, 3, *PROBE, device=next(encoder.parameters()).device)
        )
        return maps
    finally:
        for module, mode in training.items():
            module.training = mode


def _weights_behind(features: Tensor) -> Iterator[nn.Parameter]:
    """Walk back from a map to all weights that it depends on."""
    seen: set[Any] = set()
    waiting: list[Any] = [features.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [before for before, _ in node.next_functions]


def _divide(stages: list[list[nn.Module]]) -> bool:
    """Say whether every stage has weights, and every weight is in one stage alone."""
    held = [{weight for module in stage for weight in module.parameters()} for stage in stages]
    return all(held) and sum(map(len, held)) == len(set().union(*held))
