"""Masks from files: one written rule for the many ways in which two classes are stored.

The rule looks at the values that a mask really holds. It accepts what can mean one thing only,
says what it decided, and refuses the rest: a mask read the wrong way round trains a wrong model
without any error.

*One bit per pixel.* True is foreground.

*Grey values* (8 or 16 bit, integer or float). Full is the largest value of the type: 255, 65535,
or 1 for floats within 0..1; wider integers and whole floats count as 8 bit when they fit in it.

- Only 0: empty. Only 1, or only full: all foreground.
- Two values, one of them 0: the other one is foreground, whatever it is.
- One other value, two values without a 0, exactly three values, or a negative one: refused.
- Four values and more are a soft edge, cut at half of full, when the smallest lies within 5 % of 0
  and the largest within 5 % of full, at least 90 % of the pixels lie within 12 % of either end,
  and more of them lie at the upper end than in between (instance labels fail here). Otherwise
  refused: instance labels, several classes or a probability map.

*A lossy file* (JPEG and its like) holds noise, so of the exact rules only 0, full and both of
them hold. Other values are a soft edge; one that does not reach both ends is accepted when every
pixel lies within 12 % of an end, so that an empty mask with values 0..8 is empty. When its
brightest value is 1 or 2 it is refused: that may be noise or a ruined mask of 0 and 1.

*Palette.* When the colours in use are different greys, their grey values are read as above. Else
the indices count: 0 and k, index k is foreground; only 1, all foreground; more, refused. An index
k that is black while index 0 is not, or a lone coloured index 0, is refused: colour and index
disagree.

*Colour.* A constant alpha is ignored, a varying one refused. Channels that are equal everywhere
(in a lossy file: differ by at most 8) are read as grey. Black and one other colour: the other one
is foreground. Anything else is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from notan.config import TrimapBorder
from notan.errors import ConfigError, DataError, nearest
from notan.io.images import decode, is_lossy, read_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from notan.types import Mask

Grey: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

SOFT_END_FRACTION = 0.05
NEAR_END_FRACTION = 0.12
NEAR_END_SHARE = 0.90
CHROMA_NOISE = 8
LISTED_VALUES = 8

SAVE_AGAIN = "save it as a PNG of 0 (background) and 255 (foreground)"

FEW_VALUES = {
    1: ("one value alone does not tell foreground from background", SAVE_AGAIN),
    2: ("neither is 0, so it is open which one is the foreground", SAVE_AGAIN),
    3: (
        "three values look like three classes",
        "read an Oxford-IIIT trimap (1 pet, 2 background, 3 border) as a trimap with a rule for "
        f"its border; otherwise merge the classes into two and {SAVE_AGAIN}",
    ),
}
"""How many values that no exact rule knows -> why they are refused, and what to do."""


class MaskReading(NamedTuple):
    """A mask and how its file was understood.

    Attributes:
        mask: bool, (height, width), True = foreground.
        encoding: What was decided: ``"empty"``, ``"full"``, ``"bool"``, ``"0/1"``, ``"0/255"``
            (or any other ``"0/k"``), ``"palette 0/k"``, ``"black/colour"`` or
            ``"soft edges, cut at half"``.
    """

    mask: Mask
    encoding: str


class _Counts(NamedTuple):
    """The different values of a mask, ascending, and how many pixels hold each."""

    values: Grey
    counts: npt.NDArray[np.int64]


def read_mask(path: Path) -> MaskReading:
    """Read a mask of two classes, upright, by the rule at the top of this file.

    Returns:
        The mask, bool, (height, width), True = foreground; and the encoding that was found.

    Raises:
        DataError: The file is unreadable, or its values can mean more than one thing.
    """
    name = str(path)
    image, lossy = read_header(path, lambda header: (decode(header, name), is_lossy(header)))
    if image.mode == "1":
        bits = np.array(image)
        return MaskReading(bits, "full" if bits.all() else "bool" if bits.any() else "empty")
    if image.mode == "P":
        return _from_palette(image, name)
    pixels = _without_alpha(image, name)
    return (_from_grey if pixels.ndim == 2 else _from_colours)(pixels, name, lossy=lossy)


def read_trimap(path: Path, trimap_border: TrimapBorder) -> tuple[Mask, Mask | None]:
    """Read a trimap of the Oxford-IIIT pets: 1 = pet, 2 = background, 3 = border.

    Args:
        path: The trimap; grey values or palette indices.
        trimap_border: ``"foreground"``: the border belongs to the pet; ``"background"``: it does
            not; ``"ignore"``: it does not, and is left out of loss and score.

    Returns:
        The mask, bool, (height, width), True = foreground; and the ignored pixels, bool, of the
        same shape, or None when nothing is ignored.

    Raises:
        DataError: The file is unreadable or holds values other than 1, 2 and 3.
        ConfigError: There is no such border rule.
    """
    if trimap_border not in get_args(TrimapBorder):
        raise ConfigError(
            f"trimap_border = '{trimap_border}' is no "
            f"rule{nearest(trimap_border, get_args(TrimapBorder))}"
        )
    name = str(path)
    image = read_header(path, lambda header: decode(header, name))
    labels: Grey = np.asarray(image) if image.mode in ("P", "1") else _without_alpha(image, name)
    if labels.ndim == 3:
        raise DataError(
            f"{name}: a {image.mode} image; wanted a trimap of 1 (pet), 2 (background) and "
            "3 (border) in grey or palette; check that this is the trimap and not its image"
        )
    values = _count(labels).values.tolist()
    if not {1, 2, 3}.issuperset(values):
        raise DataError(
            f"{name}: holds {_describe(values)}; a trimap holds 1 (pet), 2 (background) and "
            "3 (border) only; read a mask of two classes as a folder of images and masks"
        )
    is_border = labels == 3
    mask = labels != 2 if trimap_border == "foreground" else labels == 1
    return mask, is_border if trimap_border == "ignore" else None


def _without_alpha(image: Image.Image, name: str) -> Grey:
    """Return grey as (height, width) or colour as (height, width, 3); refuse varying alpha."""
    pixels: Grey = np.asarray(image)
    if image.mode not in ("LA", "RGBA"):
        return pixels
    alpha = pixels[..., -1]
    if alpha.min() != alpha.max():
        raise _refusal(
            name,
            f"a transparency that varies ({alpha.min()} to {alpha.max()})",
            "either the colours or the transparency may be the mask",
            f"keep the one that is meant, without transparency, and {SAVE_AGAIN}",
        )
    return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]


def _from_grey(grey: Grey, name: str, *, lossy: bool = False) -> MaskReading:
    """Read a mask of grey values, (height, width): uint8, uint16, int32 or float32."""
    counts = _count(grey)
    values = counts.values.tolist()
    _refuse_odd_numbers(counts.values, name)
    full = _full(counts.values)
    encoding = None
    if values == [0]:
        encoding = "empty"
    elif values in ([1], [full]):
        encoding = "full"
    elif len(values) == 2 and values[0] == 0:
        encoding = f"0/{_number(values[1])}"
    if encoding in ("empty", "full", f"0/{full}") or (encoding and not lossy):
        return MaskReading(grey > 0, encoding)
    if len(values) in FEW_VALUES and not lossy:
        raise _refusal(name, _describe(values), *FEW_VALUES[len(values)])
    if lossy and values[-1] in (1, 2):
        why = "after lossy compression that is either noise or a ruined mask of 0 and 1"
        raise _refusal(name, _describe(values), why, f"from the original mask, {SAVE_AGAIN}")
    if not _has_soft_edges(counts, full, lossy=lossy):
        why = "that looks like instance labels, several classes, a probability map or an image"
        todo = f"choose which values are the foreground, or cut at a threshold, and {SAVE_AGAIN}"
        raise _refusal(name, _describe(values), why, todo)
    return MaskReading(grey > full / 2, "soft edges, cut at half")


def _from_palette(image: Image.Image, name: str) -> MaskReading:
    """Read a mask of palette indices: by the colours where they are greys, else by the index."""
    indices = np.asarray(image)
    colours = np.zeros((256, 3), dtype=np.uint8)  # a short palette is filled up with black
    flat = np.array(image.getpalette("RGB") or [], dtype=np.uint8)
    colours.reshape(-1)[: flat.size] = flat
    labels = _count(indices).values.tolist()
    seen = colours[labels]
    # a palette that is black all over says nothing; there the indices are the labels
    if (seen == seen[:, :1]).all() and len(np.unique(seen[:, 0])) == len(labels):
        return _from_grey(colours[indices, 0], name)
    if labels == [1]:
        return MaskReading(indices > 0, "full")
    if len(labels) != 2 or labels[0] != 0:
        found = f"palette indices {_listing(labels)}"
        raise _refusal(name, found, "two classes are index 0 and one other", SAVE_AGAIN)
    if seen[0].any() and not seen[1].any():
        found = f"palette index {labels[1]} in black and index 0 in #{seen[0].tobytes().hex()}"
        raise _refusal(name, found, "colour and index disagree on the foreground", SAVE_AGAIN)
    return MaskReading(indices > 0, f"palette 0/{labels[1]}")


def _from_colours(rgb: Bytes, name: str, *, lossy: bool) -> MaskReading:
    """Read a mask of red, green and blue, uint8, (height, width, 3)."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)  # ten times as fast as rgb.max(axis=2)
    spread = int((brightest - np.minimum(np.minimum(red, green), blue)).max())
    if spread == 0:
        return _from_grey(red, name, lossy=lossy)
    if lossy and spread <= CHROMA_NOISE:
        mean = (red.astype(np.uint16) + green + blue + 1) // 3
        return _from_grey(mean.astype(np.uint8), name, lossy=True)
    lit = brightest > 0
    row, column = np.unravel_index(int(lit.argmax()), lit.shape)
    # comparing with one colour is far cheaper than sorting colours
    if not lit.all() and (rgb[lit] == rgb[row, column]).all():
        return MaskReading(lit, "black/colour")
    codes = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colours = [f"#{code:06x}" for code in np.unique(codes).tolist()]
    raise _refusal(
        name,
        f"{'colour' if len(colours) == 1 else 'colours'} {_listing(colours)}",
        "two classes are black (background) and one other colour (foreground)",
        f"choose which colours are the foreground and {SAVE_AGAIN}",
    )


def _count(grey: Grey) -> _Counts:
    """Count values; by histogram where the type is narrow, ten times faster than sorting."""
    if grey.dtype in (np.uint8, np.uint16):
        histogram = np.bincount(grey.ravel())
        values = np.flatnonzero(histogram)
        return _Counts(values, histogram[values])
    return _Counts(*np.unique(grey, return_counts=True))


def _full(values: Grey) -> int:
    """Return the value that stands for all foreground (see the module's text)."""
    if not np.array_equal(values, np.round(values)):
        return 1
    top = int(values[-1])
    if values.dtype.kind == "f" and top <= 1:
        return 1
    return 255 if top <= 255 else 65535


def _refuse_odd_numbers(values: Grey, name: str) -> None:
    """Refuse what no mask holds: NaN, infinity, negatives, fractions beyond 1."""
    if not np.isfinite(values).all():
        why = "not all of them are numbers"
    elif values[0] < 0:
        why = "a mask has no negative values"
    elif values[-1] > 1 and not np.array_equal(values, np.round(values)):
        why = "fractions are understood within 0..1 only"
    else:
        return
    raise _refusal(name, _describe(values.tolist()), why, SAVE_AGAIN)


def _has_soft_edges(counted: _Counts, full: int, *, lossy: bool) -> bool:
    """Say whether the values crowd at both ends, as two classes with blurred edges do."""
    values, counts = counted
    low = int(counts[values <= NEAR_END_FRACTION * full].sum())
    high = int(counts[values >= (1 - NEAR_END_FRACTION) * full].sum())
    between = int(counts.sum()) - low - high
    reaches_both = (
        values[0] <= SOFT_END_FRACTION * full and values[-1] >= (1 - SOFT_END_FRACTION) * full
    )
    if not reaches_both:
        return lossy and between == 0
    return between < high and low + high >= NEAR_END_SHARE * counts.sum()


def _refusal(name: str, found: str, why: str, todo: str) -> DataError:
    """Return the error of a mask that can mean more than one thing, or nothing."""
    return DataError(f"{name}: not a mask of two classes: it holds {found}; {why}; {todo}")


def _describe(values: Sequence[float]) -> str:
    return f"{'value' if len(values) == 1 else 'values'} {_listing(values)}"


def _listing(values: Sequence[float | str]) -> str:
    """Name the first eight values, and how many there are if more."""
    shown = [value if isinstance(value, str) else _number(value) for value in values]
    text = ", ".join(shown[:LISTED_VALUES])
    return text if len(shown) <= LISTED_VALUES else f"{text}, ... ({len(shown)} values)"


def _number(value: float) -> str:
    """Write a whole number without a point and others with three digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"
