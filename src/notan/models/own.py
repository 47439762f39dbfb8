"""A network of one's own: found where the command says, built, and held to the contract.

Only what a person has written into a command or a call is ever imported. A card or a recipe may
name a class, and is then told from, but never obeyed: it could come from anybody.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from notan.errors import ConfigError, ShapeError, nearest
from notan.io.images import RGB_CHANNELS
from notan.models.base import stride_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import ModuleType

    from torch import Tensor

    from notan.modelfile.preprocess import Preprocessor
    from notan.types import Size

Network: TypeAlias = nn.Module | str | Callable[..., nn.Module]
"""A module; or a class or function that makes one, itself or as ``package:Class``."""

PYTHON = ".py"
SMALL = (33, 66)
"""(height, width) of an image to try a network on: no stride but 1 divides the height, and the
sides are long enough for any padding."""


def build_own(network: Network, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network of the user's own, freshly built unless it is a module already.

    Args:
        network: What the user gave.
        arguments: What to build it with.

    Raises:
        ConfigError: It cannot be found or built, or is no module.
    """
    if isinstance(network, nn.Module):
        return network
    what = name_own(network)
    with torch.random.fork_rng([]):  # what a file draws as it is imported, it draws once only
        make = _find(network) if isinstance(network, str) else network
    if isinstance(make, nn.Module):
        raise ConfigError(f"{what}: this is a {type(make).__name__}, built already; name its class")
    if not callable(make) or (isinstance(make, type) and not issubclass(make, nn.Module)):
        raise ConfigError(
            f"{what}: this is no torch.nn.Module, nor a function that returns one ({shown(make)})"
        )
    _require_arguments(what, make, arguments)
    try:
        built = make(**arguments)
    except Exception as error:
        raise ConfigError(f"{what}: building it failed: {in_a_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise ConfigError(
            f"{what}: it returned a {type(built).__name__}; a torch.nn.Module is wanted"
        )
    return built


def name_own(network: Network) -> str:
    """Return ``package:Class``: as it was given, or what a class, function or module is called."""
    if isinstance(network, str):
        return network
    named = type(network) if isinstance(network, nn.Module) else network
    return f"{named.__module__}:{getattr(named, '__qualname__', type(named).__qualname__)}"


def short_name(network: Network) -> str:
    """Return the name of the class or function alone."""
    return name_own(network).rpartition(":")[2].rpartition(".")[2]


def shown(value: object) -> str:
    """Return a value as Python writes it, in a line and not at any length."""
    return " ".join(repr(value).split())[:80]


def in_a_line(error: BaseException) -> str:
    """Say what somebody else's error says, in a line and not at any length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _find(spec: str) -> object:
    """Import what ``package:Class`` or ``file.py:Class`` names."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(
            f"{spec}: package:Class or file.py:Class is wanted, such as mynet:Net or mynet.py:Net"
        )
    module = _import(spec, place)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{spec}: {place} has no {part}{nearest(part, _modules_in(found))}")
        found = getattr(found, part)
    return found


def _modules_in(place: object) -> list[str]:
    """Name the classes of networks that a module defines or imports."""
    return [
        name
        for name, value in vars(place).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    ]


def _import(spec: str, place: str) -> ModuleType:
    """Import a package or a file; what goes wrong in it is said in a line."""
    path = Path(place)
    if path.suffix == PYTHON and not path.is_file():
        raise ConfigError(f"{spec}: there is no file {path}")
    # where python itself would look; last, so that nothing here takes an installed one's place
    folder = str((path.parent if path.suffix == PYTHON else Path()).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return _load(path) if path.suffix == PYTHON else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and f"{place}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{spec}: there is no package {error.name} here, installed or in this folder; a "
                "file is named as path/to/file.py:Class"
            ) from error
        raise ConfigError(f"{spec}: importing {place} failed: {in_a_line(error)}") from error
    except SystemExit as error:
        raise ConfigError(
            f"{spec}: importing {place} ends the program; put what it does as a script under "
            "if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise ConfigError(f"{spec}: importing {place} failed: {in_a_line(error)}") from error


def _load(path: Path) -> ModuleType:
    """Run a file as a module of its own name; an installed one of that name stays as it is."""
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_your_own"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"{path}: Python cannot import this file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and the exporter look it up there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _require_arguments(
    what: str, make: Callable[..., object], arguments: Mapping[str, Any]
) -> None:
    try:
        signature = inspect.signature(make)
    except ValueError:  # written in C; it says itself what it misses
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"{what}: it cannot be built: {error} (it takes {known}); say what it is built with by "
            "model.arguments.NAME=VALUE where it is trained, or name a function that builds it"
        ) from error


def trial_sizes(preprocessor: Preprocessor) -> list[Size]:
    """Return sizes (height, width) of inputs to try a network on; all, where any may come."""
    sizes = [preprocessor.place(preprocessor.image_size or SMALL).padded]
    if preprocessor.keep_aspect_ratio or preprocessor.image_size is None:
        height, width = (-(-side // preprocessor.stride) * preprocessor.stride for side in SMALL)
        sizes.append((height, width))
    return sizes


def require_contract(
    network: nn.Module, size: Size, *, training: bool, channels: int = RGB_CHANNELS
) -> str | None:
    """Refuse a network that does not map images to logits of the same height and width.

    It sees one batch of noise, of which nothing stays: neither statistics nor random numbers.

    Args:
        network: Where it will compute.
        size: (height, width) of an input.
        training: Try it in training mode too, and require weights that learn.
        channels: Of an input.

    Returns:
        What is likely wrong with it all the same, in words.

    Raises:
        ConfigError: It fails, or has nothing to train.
        ShapeError: It returns something else.
    """
    name = type(network).__name__
    if training and not any(each.requires_grad for each in network.parameters()):
        raise ConfigError(f"{name}: it has no weights that could learn (requires_grad)")
    place = next(iter(network.parameters()), torch.empty(0)).device
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(place)
    before, buffers = network.training, [each.clone() for each in network.buffers()]
    answers = []
    try:
        with torch.no_grad(), keeping_random_numbers(place):
            for mode in (False, True) if training else (False,):
                network.train(mode)
                answers.append(_answer(network, images, mode=mode))
    finally:
        network.train(before)
        with torch.no_grad():
            for each, kept in zip(network.buffers(), buffers, strict=True):
                each.copy_(kept)
    if all(answer.min() > 0 and answer.max() < 1 for answer in answers):
        return (
            f"{name}: all it answers to noise lies between 0 and 1; if a sigmoid ends it, take "
            "that out: logits are wanted"
        )
    return None


def keeping_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Set the random numbers of PyTorch back to what they were, at the end."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _answer(network: nn.Module, images: Tensor, *, mode: bool) -> Tensor:
    name = f"{type(network).__name__} in {'training' if mode else 'evaluation'} mode"
    shape, wanted = tuple(images.shape), (images.shape[0], 1, *images.shape[2:])
    try:
        logits = network(images)
    except Exception as error:
        raise ConfigError(
            f"{name} fails on images of {shape}, whose sides are multiples of its stride "
            f"({stride_of(network)}): {in_a_line(error)}"
        ) from error
    if isinstance(logits, torch.Tensor) and tuple(logits.shape) == wanted:
        return logits
    found = (
        tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    )
    raise ShapeError(
        f"{name} returned {found} for images of {shape}; logits of {wanted} are wanted"
    )
