"""Encoders of timm, named ``timm:NAME``: feature maps, published weights, and stages.

Source: Wightman, PyTorch Image Models (timm), Apache-2.0,
https://github.com/huggingface/pytorch-image-models. Nothing of it is copied here.
"""

from __future__ import annotations

import copy
import difflib
import importlib
from typing import TYPE_CHECKING, Any

import torch

from notan.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    explaining_extras,
    nearest,
)
from notan.models.base import Encoder
from notan.models.blocks import follow_quickly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from torch import Tensor, nn

    from notan.types import Images

PREFIX = "timm:"
STRIDES = ((1, 2, 4, 8, 16, 32), (2, 4, 8, 16, 32), (4, 8, 16, 32))
WANTED = "a convolutional network with maps at strides 2, 4, 8, 16, 32, or from 4 on, is wanted"
PROBE = (64, 96)
"""Height and width of the image that a network is measured with; not square, so that a map with
its channels last is noticed."""


class TimmEncoder(Encoder):
    """A network of timm, built with ``features_only``.

    Channels and strides are measured: a small image goes through the network, because some
    networks hand out maps with channels last or refuse images of another size than their own.

    Attributes:
        name: As ``model.encoder`` has it, ``timm:NAME``.
        inputs: Channels of the images that it takes.
        network: timm's own module; its weights keep their names behind ``network.``.
    """

    def __init__(self, name: str, inputs: int = 3) -> None:
        """Build the network without weights.

        Args:
            name: ``timm:NAME``.
            inputs: Channels of the images.

        Raises:
            ConfigError: timm has no such network, or its feature maps do not fit under a U-Net.
            MissingExtraError: timm is not installed, or cannot be imported.
        """
        super().__init__()
        self.name = name
        self.inputs = inputs
        timm = _import_timm()
        known = {*timm.list_models(), *timm.list_models(include_tags=True)}
        inner = name.removeprefix(PREFIX)
        if inner not in known:
            close = difflib.get_close_matches(inner, known, n=5)
            hint = nearest(inner, close) or "; timm.list_models() has them all"
            raise ConfigError(f"'{name}': there is no such encoder{hint}")
        try:
            self.network = self._create(pretrained=False)
            maps = _probe(self)
        except Exception as error:
            raise ConfigError(
                f"{name}: hands out no feature maps of an image of {PROBE[0]}x{PROBE[1]} "
                f"({_one_line(error)}); {WANTED}"
            ) from error
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(PROBE[0] // max(1, each.shape[2]) for each in maps)
        divided = [tuple(side // stride for side in PROBE) for stride in self.strides]
        if self.strides not in STRIDES or [tuple(each.shape[2:]) for each in maps] != divided:
            sizes = ", ".join("x".join(map(str, each.shape[2:])) for each in maps)
            raise ConfigError(
                f"{name}: its feature maps of an image of {PROBE[0]}x{PROBE[1]} are "
                f"{sizes}; {WANTED}"
            )
        self.mean, self.std = (tuple(map(float, self._settings[each])) for each in ("mean", "std"))

    def load_published(self) -> str:
        """Take the weights that timm publishes; timm downloads them and keeps them itself.

        Returns:
            What they are, in words.

        Raises:
            ConfigError: There are none.
            CheckpointError: They cannot be downloaded.
        """
        settings = self._settings
        where = settings.get("hf_hub_id")
        address = f"https://huggingface.co/{where}" if where else settings.get("url")
        if not address:
            raise ConfigError(
                f"train.pretrained: timm has no published weights of {self.name}; leave "
                "--pretrained, or choose one of timm.list_pretrained()"
            )
        try:
            weights = self._create(pretrained=True).state_dict()
        except Exception as error:
            raise CheckpointError(
                f"{self.name}: its published weights cannot be fetched ({_one_line(error)}); on a "
                f"machine without a network, fetch them on another from {address} and give them "
                "with --encoder-weights FILE"
            ) from error
        self.network.load_state_dict(weights)
        tagged = ".".join(filter(None, (settings["architecture"], settings.get("tag"))))
        return f"timm {_import_timm().__version__} {tagged}"

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
        """Map (n, inputs, h, w) to the feature maps, finest first."""
        maps: list[Images] = self.network(images)
        return maps

    def _create(self, *, pretrained: bool) -> nn.Module:
        """Let timm build the network, with the weights that it downloads or without any."""
        # timm fits the first layer of published weights to another number of channels itself
        more = {} if self.inputs == 3 else {"in_chans": self.inputs}
        network: nn.Module = _import_timm().create_model(
            self.name.removeprefix(PREFIX), features_only=True, pretrained=pretrained, **more
        )
        follow_quickly(network)
        return network

    @property
    def _settings(self) -> Mapping[str, Any]:
        """What timm knows of the network's published weights."""
        settings: Mapping[str, Any] = self.network.pretrained_cfg  # type: ignore[assignment]
        return settings


def is_timm(name: str) -> bool:
    """Say whether an encoder's name is one of timm's."""
    return name.startswith(PREFIX)


def _import_timm() -> ModuleType:
    """Import timm, whose own needs may be unmet: torchvision must be made for this torch.

    Raises:
        MissingExtraError: It is not installed, or cannot be imported.
    """
    try:
        with explaining_extras("an encoder timm:NAME"):
            return importlib.import_module("timm")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingExtraError(
            f"timm is installed but cannot be imported ({_one_line(error)}); install all that it "
            f"needs, a torchvision made for torch {torch.__version__} too: pip install "
            "'notan[timm]'"
        ) from error


def _one_line(error: Exception) -> str:
    """Return the first sentence of what a package says of a failure."""
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return sentence.strip(" .:")[:150] or type(error).__name__


def _probe(encoder: TimmEncoder) -> list[Images]:
    """Return the maps of a small black image; what the network has learned stays as it was."""
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        maps: list[Images] = encoder(
            torch.zeros(1, encoder.inputs, *PROBE, device=next(encoder.parameters()).device)
        )
        return maps
    finally:
        for module, mode in training.items():
            module.training = mode


def _weights_behind(features: Tensor) -> Iterator[nn.Parameter]:
    """Walk back through autograd's graph from a map to all weights that it depends on."""
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
