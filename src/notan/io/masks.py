"""Which pixels of a mask are foreground: one written rule for the many ways two classes are stored.

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

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Mask

Grey: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

SOFT_END_FRACTION = 0.05
NEAR_END_FRACTION = 0.12
NEAR_END_SHARE = 0.90
CHROMA_NOISE = 8
LISTED_VALUES = 8

SAVE_AGAIN = "save it as a PNG of 0 (background) and 255 (foreground)"


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


class _Tally(NamedTuple):
    """The different values of a mask, ascending, and how many pixels hold each."""

    values: Grey
    counts: npt.NDArray[np.int64]


def mask_from_bits(bits: Mask) -> MaskReading:
    """Read a mask of one bit per pixel; never refuses.

    Args:
        bits: bool, (height, width).
    """
    if bits.all():
        return MaskReading(bits, "full")
    return MaskReading(bits, "bool" if bits.any() else "empty")


def mask_from_grey(grey: Grey, *, name: str, lossy: bool = False) -> MaskReading:
    """Read a mask of grey values.

    Args:
        grey: (height, width); uint8, uint16, int32 or float32.
        name: The file, for the message of a refusal.
        lossy: Whether the file's compression may have changed values.

    Raises:
        DataError: The values can mean more than one thing; the message lists them.
    """
    tally = _tally(grey)
    _refuse_odd_numbers(tally, name)
    full = _full(tally)
    encoding = _exact_encoding(tally, full)
    if lossy and encoding not in ("empty", "full", f"0/{_number(full)}"):
        return _soft(grey, tally, full, name, lossy=True)
    if encoding is not None:
        return MaskReading(grey > 0, encoding)
    _refuse_few_values(tally, name)
    return _soft(grey, tally, full, name, lossy=False)


def mask_from_palette(indices: Bytes, colours: Bytes, *, name: str) -> MaskReading:
    """Read a mask of palette indices.

    Args:
        indices: uint8, (height, width).
        colours: uint8, (256, 3), RGB of each index.
        name: The file, for the message of a refusal.

    Raises:
        DataError: More than two indices, or colours and indices disagree.
    """
    used = _tally(indices).values
    seen = colours[used]
    is_grey = bool((seen == seen[:, :1]).all())
    # a palette that is black all over says nothing; there the indices are the labels
    if is_grey and len(np.unique(seen[:, 0])) == len(used):
        return mask_from_grey(colours[indices, 0], name=name)
    labels = used.tolist()
    if labels == [1]:
        return MaskReading(indices > 0, "full")
    if len(labels) != 2 or labels[0] != 0:
        found = f"palette indices {_listing(labels)}"
        raise _refusal(name, found, "two classes are index 0 and one other", SAVE_AGAIN)
    if seen[0].any() and not seen[1].any():
        found = f"palette index {labels[1]} in black and index 0 in {_hex(seen[0])}"
        raise _refusal(name, found, "colour and index disagree on the foreground", SAVE_AGAIN)
    return MaskReading(indices > 0, f"palette 0/{labels[1]}")


def mask_from_colours(rgb: Bytes, *, name: str, lossy: bool = False) -> MaskReading:
    """Read a mask of red, green and blue.

    Args:
        rgb: uint8, (height, width, 3).
        name: The file, for the message of a refusal.
        lossy: Whether the file's compression may have changed values.

    Raises:
        DataError: More colours than black and one other, or a refused grey.
    """
    red, green, blue = (rgb[..., channel] for channel in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    spread = int((brightest - np.minimum(np.minimum(red, green), blue)).max())
    if spread == 0:
        return mask_from_grey(red, name=name, lossy=lossy)
    if lossy and spread <= CHROMA_NOISE:
        mean = (red.astype(np.uint16) + green + blue + 1) // 3
        return mask_from_grey(mean.astype(np.uint8), name=name, lossy=True)
    return _black_and_colour(rgb, brightest > 0, name)


def refuse_varying_alpha(alpha: Bytes, *, name: str) -> None:
    """Refuse a mask whose transparency differs from pixel to pixel: it may be the real mask.

    Args:
        alpha: uint8, (height, width).
        name: The file, for the message.

    Raises:
        DataError: The transparency is not constant.
    """
    if alpha.min() != alpha.max():
        raise _refusal(
            name,
            f"a transparency that varies ({alpha.min()} to {alpha.max()})",
            "either the colours or the transparency may be the mask",
            f"keep the one that is meant, without transparency, and {SAVE_AGAIN}",
        )


def values_of(grey: Grey) -> list[float]:
    """Return the different values of a mask, ascending."""
    values: list[float] = _tally(grey).values.tolist()
    return values


def describe_values(values: Sequence[float]) -> str:
    """Say which values a mask holds: the first eight, and how many there are if more."""
    word = "value" if len(values) == 1 else "values"
    return f"{word} {_listing(values)}"


def _tally(grey: Grey) -> _Tally:
    """Count values; by histogram where the type is narrow, ten times faster than sorting."""
    if grey.dtype in (np.uint8, np.uint16):
        histogram = np.bincount(grey.ravel())
        values = np.flatnonzero(histogram)
        return _Tally(values, histogram[values])
    return _Tally(*np.unique(grey, return_counts=True))


def _full(tally: _Tally) -> int:
    """Return the value that stands for all foreground (see the module's text)."""
    values = tally.values
    if not np.array_equal(values, np.round(values)):
        return 1
    top = int(values[-1])
    if values.dtype.kind == "f" and top <= 1:
        return 1
    return 255 if top <= 255 else 65535


def _exact_encoding(tally: _Tally, full: int) -> str | None:
    """Name the encoding of a mask of at most two values, or None when there is none."""
    values = tally.values.tolist()
    if values == [0]:
        return "empty"
    if values in ([1], [full]):
        return "full"
    if len(values) == 2 and values[0] == 0:
        return f"0/{_number(values[1])}"
    return None


def _refuse_odd_numbers(tally: _Tally, name: str) -> None:
    """Refuse what no mask holds: NaN, infinity, negatives, fractions beyond 1."""
    values = tally.values
    if not np.isfinite(values).all():
        why = "not all of them are numbers"
    elif values[0] < 0:
        why = "a mask has no negative values"
    elif values[-1] > 1 and not np.array_equal(values, np.round(values)):
        why = "fractions are understood within 0..1 only"
    else:
        return
    raise _refusal(name, describe_values(values.tolist()), why, SAVE_AGAIN)


def _refuse_few_values(tally: _Tally, name: str) -> None:
    """Refuse one to three values that no exact rule knows."""
    values = tally.values.tolist()
    if len(values) > 3:
        return
    todo = SAVE_AGAIN
    if len(values) == 3:
        why = "three values look like three classes"
        todo = (
            "read an Oxford-IIIT trimap (1 pet, 2 background, 3 border) as a trimap with a rule "
            f"for its border; otherwise merge the classes into two and {SAVE_AGAIN}"
        )
    elif len(values) == 2:
        why = "neither is 0, so it is open which one is the foreground"
    else:
        why = "one value alone does not tell foreground from background"
    raise _refusal(name, describe_values(values), why, todo)


def _soft(grey: Grey, tally: _Tally, full: int, name: str, *, lossy: bool) -> MaskReading:
    """Cut a mask with soft edges at half of full, or refuse it."""
    found = describe_values(tally.values.tolist())
    if lossy and tally.values[-1] in (1, 2):
        why = "after lossy compression that is either noise or a ruined mask of 0 and 1"
        raise _refusal(name, found, why, f"from the original mask, {SAVE_AGAIN}")
    if not _has_soft_edges(tally, full, lossy=lossy):
        why = "that looks like instance labels, several classes, a probability map or an image"
        todo = f"choose which values are the foreground, or cut at a threshold, and {SAVE_AGAIN}"
        raise _refusal(name, found, why, todo)
    return MaskReading(grey > full / 2, "soft edges, cut at half")


def _has_soft_edges(tally: _Tally, full: int, *, lossy: bool) -> bool:
    """Say whether the values crowd at both ends, as two classes with blurred edges do."""
    values, counts = tally
    low = int(counts[values <= NEAR_END_FRACTION * full].sum())
    high = int(counts[values >= (1 - NEAR_END_FRACTION) * full].sum())
    between = int(counts.sum()) - low - high
    reaches_both = (
        values[0] <= SOFT_END_FRACTION * full and values[-1] >= (1 - SOFT_END_FRACTION) * full
    )
    if not reaches_both:
        return lossy and between == 0
    return between < high and low + high >= NEAR_END_SHARE * counts.sum()


def _black_and_colour(rgb: Bytes, lit: Mask, name: str) -> MaskReading:
    """Read black and one other colour, or refuse; comparing is far cheaper than sorting colours."""
    row, column = np.unravel_index(int(lit.argmax()), lit.shape)
    other = rgb[row, column]
    if not lit.all() and (rgb[lit] == other).all():
        return MaskReading(lit, "black/colour")
    codes = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colours = [f"#{code:06x}" for code in np.unique(codes).tolist()]
    word = "colour" if len(colours) == 1 else "colours"
    raise _refusal(
        name,
        f"{word} {_listing(colours)}",
        "two classes are black (background) and one other colour (foreground)",
        f"choose which colours are the foreground and {SAVE_AGAIN}",
    )


def _refusal(name: str, found: str, why: str, todo: str) -> DataError:
    return DataError(f"{name}: not a mask of two classes: it holds {found}; {why}; {todo}")


def _listing(values: Sequence[float | str]) -> str:
    shown = [value if isinstance(value, str) else _number(value) for value in values]
    text = ", ".join(shown[:LISTED_VALUES])
    return text if len(shown) <= LISTED_VALUES else f"{text}, ... ({len(shown)} values)"


def _number(value: float) -> str:
    """Write a whole number without a point and others with three digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"


def _hex(colour: Bytes) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour.tolist())
