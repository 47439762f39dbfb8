"""The names that an encoder's weights were published under, and whether a file's weights fit it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from notan.errors import CheckpointError
from notan.models.build import ENCODERS
from notan.models.efficientnet_lite0 import STAGES
from notan.models.timm_encoder import is_timm

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
PUBLISHED: Mapping[str, Dialect] = {
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
    elif name in PUBLISHED:
        dialects.append(PUBLISHED[name])
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
