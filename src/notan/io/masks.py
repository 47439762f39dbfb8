"""Masks from files: one written rule for the many ways in which two classes are stored.

The rule looks at the values that a mask really holds. It accepts what can mean one thing only,
says what it decided, and refuses the rest: a mask read the wrong way round trains a wrong model
without any error.

*Several readings.* Pages, frames, or channels that are neither grey nor colours: refused, until
the owner says which one is the mask (``channel``). A transparency that varies: refused, unless it
says the same as the rest (a background that is transparent). WhiteIsZero in a TIFF: what is stored
counts where tifffile wrote it, what is shown in a fax compression; else refused. Where the owner
says what is foreground and what is ignored, nothing below is asked.

*One bit per pixel.* True is foreground.

*Grey values* (8 or 16 bit, integer or float). Full is the largest value of the type: 255, 65535,
or 1 for floats within 0..1; wider integers and whole floats count as 8 bit when they fit in it.

- Only 0: empty. Only 1, or only full: all foreground.
- Two values, one of them 0: the other one is foreground, whatever it is.
- One other value, two values without a 0, exactly three values, or a negative one: refused.
- Four values and more are a soft edge, cut at half of full, when the smallest lies within 5 % of 0
  and the largest within 5 % of full, at least 90 % of the pixels lie within 12 % of either end,
  more of them lie at the upper end than in between (instance labels fail here), and most of what
  is neither the lowest nor the highest value is no plain of one value (classes beside 255 for void
  fail here).
- However thin the foreground is, its edges are soft when nearly all values in between lie within 2
  pixels of the lower end, in a slope and not in a plain, and are connected with the upper end:
  instance labels are plains or lie apart, and a probability map's slopes are wider.
- Otherwise refused: instance labels, several classes or a probability map.

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

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from notan.config import Masks, TrimapBorder
from notan.errors import ConfigError, DataError, nearest
from notan.io.headers import (
    count_pages,
    header_choices,
    is_lossy,
    is_white_zero,
    read_header,
    stored_bits_count,
)
from notan.io.images import Raster, decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.io.headers import Header
    from notan.types import Mask

Grey: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

SOFT_END_FRACTION = 0.05
NEAR_END_FRACTION = 0.12
NEAR_END_SHARE = 0.90
SLOPE_SHARE = 0.95
"""Of the values between the ends, how many must lie in a thin slope; the rest is noise."""

CHROMA_NOISE = 8
LISTED_VALUES = 8

SAVE_AGAIN = "save it as a PNG of 0 (background) and 255 (foreground)"
CHOOSE = "say which are the foreground, such as --foreground {}"

FEW_VALUES = {
    1: (
        "one value alone does not tell foreground from background",
        "say what is the foreground, such as --foreground 255",
    ),
    2: ("neither is 0, so it is open which one is the foreground", CHOOSE),
    3: (
        "three values look like three classes",
        "read an Oxford-IIIT trimap (1 pet, 2 background, 3 border) as a trimap with a rule for "
        f"its border; otherwise {CHOOSE}, and what counts as neither with --ignore",
    ),
}
"""How many values that no exact rule knows -> why they are refused, and what to do."""

AS_IT_STANDS = Masks()

AS_STORED = ", WhiteIsZero as stored"
"""How the encoding ends where the mark of a TIFF was not followed."""

CHOSEN = "foreground "
"""How the encoding begins where the owner said what is foreground."""


class MaskReading(NamedTuple):
    """A mask and how its file was understood.

    Attributes:
        mask: bool, (height, width), True = foreground.
        encoding: What was decided: ``"empty"``, ``"full"``, ``"bool"``, ``"0/1"``, ``"0/255"``
            (or any other ``"0/k"``), ``"palette 0/k"``, ``"black/colour"``, ``"soft edges, cut at
            half"`` or ``"foreground K, ..."`` as the owner said.
        ignore: bool, (height, width), True = neither; None: nothing is.
    """

    mask: Mask
    encoding: str
    ignore: Mask | None = None


class _Counts(NamedTuple):
    """The different values of a mask, ascending, and how many pixels hold each."""

    values: Grey
    counts: npt.NDArray[np.int64]


def read_mask(path: Path, rule: Masks = AS_IT_STANDS) -> MaskReading:
    """Read a mask of two classes, upright, by the rule at the top of this file.

    Args:
        path: The mask.
        rule: What the owner says where a file has several readings.

    Returns:
        The mask, bool, (height, width), True = foreground; the encoding that was found; and what
        is ignored.

    Raises:
        DataError: The file is unreadable, or its values can mean more than one thing.
    """
    name = str(path)
    pixels, lossy = read_header(
        path, lambda header: (_decode_one(header, name, rule), is_lossy(header))
    )
    if pixels.alpha is None or pixels.alpha.min() == pixels.alpha.max():
        reading = _read_values(pixels, name, rule, lossy=lossy)
        is_said = pixels.white_is_zero and reading.encoding not in ("empty", "full")
        return reading._replace(encoding=reading.encoding + AS_STORED) if is_said else reading
    shown = pixels.alpha > 0
    with contextlib.suppress(DataError):
        reading = _read_values(pixels._replace(alpha=None), name, rule, lossy=lossy)
        if np.array_equal(reading.mask, shown):
            return reading  # what is transparent is the background: both say the same
    channel = 1 if pixels.values.ndim == 2 else 3
    raise _refusal(
        name,
        f"a transparency that varies ({pixels.alpha.min()} to {pixels.alpha.max()})",
        "either the colours or the transparency may be the mask",
        f"if it is the transparency, add --mask-channel {channel}; otherwise, without "
        f"transparency, {SAVE_AGAIN}",
    )


def _decode_one(header: Header, name: str, rule: Masks) -> Raster:
    """Decode the one page and channel that is the mask, or refuse several."""
    pages = count_pages(header, name)
    chosen = rule.channel
    if pages > 1 and chosen is None:
        raise _refusal(
            name,
            f"{pages} pages or frames",
            "each may be a class of its own, or a mask of another image",
            f"say which is the foreground, from --mask-channel 0 to --mask-channel {pages - 1}",
        )
    if pages > 1 and chosen is not None:
        if chosen >= pages:
            raise DataError(f"{name}: has pages 0 to {pages - 1}; --mask-channel {chosen} is none")
        pixels, chosen = decode(header, name, page=chosen), None
    else:
        pixels = decode(header, name)
    if chosen is None and any(what.startswith("channels") for what in header_choices(header)):
        raise _refusal(
            name,
            "colours and a further channel",
            "either may be the mask",
            "add --mask-channel 0, 1 or 2 for red, green or blue",
        )
    if pixels.white_is_zero and is_white_zero(header):
        pixels = _with_white_zero(pixels, header, name, rule)
    return pixels if chosen is None else _take_channel(pixels, chosen, name)


def _with_white_zero(pixels: Raster, header: Header, name: str, rule: Masks) -> Raster:
    """Return the values that count where a TIFF shows 0 as white: as stored, or as shown."""
    stored = stored_bits_count(header)
    if rule.white_is_zero is not None:
        stored = rule.white_is_zero == "stored"
    if stored is None:
        raise _refusal(
            name,
            "values marked WhiteIsZero, so what is stored and what is shown are opposites",
            "programs mean either by it",
            "say which one counts: data.masks.white_is_zero=stored, or =shown",
        )
    values = pixels.values
    if not stored:
        values = ~values if values.dtype == np.bool_ else _full(np.unique(values)) - values
    return pixels._replace(values=values, white_is_zero=stored)


def _take_channel(pixels: Raster, channel: int, name: str) -> Raster:
    """Return one channel as grey; behind the colours comes the transparency."""
    values = pixels.values if pixels.values.ndim == 3 else pixels.values[..., np.newaxis]
    count = values.shape[2] + (pixels.alpha is not None)
    if channel >= count:
        raise DataError(
            f"{name}: has {count} channel{'s' * (count > 1)}, counted from 0; "
            f"--mask-channel {channel} is none of them"
        )
    if channel == values.shape[2] and pixels.alpha is not None:
        return Raster(pixels.alpha)
    return Raster(values[..., channel], pixels.palette)


def _read_values(pixels: Raster, name: str, rule: Masks, *, lossy: bool) -> MaskReading:
    """Read values as two classes: as the owner says, else by the rule of this file."""
    values = pixels.values
    if values.ndim == 3 and values.shape[2] != 3:
        raise _refusal(
            name,
            f"{values.shape[2]} channels",
            "each may be a class of its own, so it is open which one is the foreground",
            f"say which, from --mask-channel 0 to --mask-channel {values.shape[2] - 1}",
        )
    ignore = _holds(pixels, rule.ignore, name) if rule.ignore else None
    if rule.foreground:
        mask = _holds(pixels, rule.foreground, name)
        words = ", ".join(map(str, rule.foreground))
        return MaskReading(mask if ignore is None else mask & ~ignore, f"{CHOSEN}{words}", ignore)
    if ignore is not None and ignore.any():
        pixels = _fill(pixels, ignore)
    reading = _read_two(pixels, name, lossy=lossy)
    if ignore is None:
        return reading
    return MaskReading(reading.mask & ~ignore, reading.encoding, ignore)


def _read_two(pixels: Raster, name: str, *, lossy: bool) -> MaskReading:
    values = pixels.values
    if values.dtype == np.bool_:
        encoding = "full" if values.all() else "bool" if values.any() else "empty"
        return MaskReading(values, encoding)
    if pixels.palette is not None:
        return _from_palette(values, pixels.palette, name)
    return (_from_grey if values.ndim == 2 else _from_colours)(values, name, lossy=lossy)


def _holds(pixels: Raster, wanted: Sequence[int | str], name: str) -> Mask:
    """Return where a mask holds one of these values, palette indices or colours."""
    numbers = [value for value in wanted if isinstance(value, int)]
    codes = [int(value[1:], 16) for value in wanted if isinstance(value, str)]
    values, colours = pixels.values, None
    if values.ndim == 3:
        if (values == values[..., :1]).all():
            grey: Grey = values[..., 0]
        elif numbers:
            raise _refusal(
                name,
                "colours",
                f"{numbers[0]} is no colour",
                "name colours, such as --foreground '#804080'",
            )
        colours = values
    else:
        grey = values
        if codes:
            is_palette = pixels.palette is not None
            colours = pixels.palette[values] if is_palette else np.repeat(values[..., None], 3, 2)  # type: ignore[index]
    held = np.isin(grey, numbers) if numbers else np.zeros(values.shape[:2], np.bool_)
    if codes and colours is not None:
        held |= np.isin(_code(colours), codes)
    return held


def _code(colours: Grey) -> npt.NDArray[np.uint32]:
    """Return colours as numbers, 0xRRGGBB."""
    return colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)


def _fill(pixels: Raster, ignore: Mask) -> Raster:
    """Give what is ignored the smallest of the other values, so that the rule does not see it."""
    values, others = pixels.values.copy(), pixels.values[~ignore]
    if not len(others):
        values[:] = 0
    elif values.ndim == 2:
        values[ignore] = others.min()
    else:
        values[ignore] = others[np.argmin(_code(others))]
    return pixels._replace(values=values)


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
    pixels = read_header(path, lambda header: _decode_one(header, name, AS_IT_STANDS))
    labels = pixels.values
    if labels.ndim == 3 or pixels.alpha is not None:
        raise DataError(
            f"{name}: an image of several channels; wanted a trimap of 1 (pet), 2 (background) and "
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
        why, todo = FEW_VALUES[len(values)]
        todo = todo.format(_number(values[1 % len(values)]))
        raise _refusal(name, _describe(values), why, todo + _shares(counts.counts))
    if lossy and values[-1] in (1, 2):
        why = "after lossy compression that is either noise or a ruined mask of 0 and 1"
        raise _refusal(name, _describe(values), why, f"from the original mask, {SAVE_AGAIN}")
    if not _has_soft_edges(grey, counts, full, lossy=lossy):
        why = "that looks like instance labels, several classes, a probability map or an image"
        todo = f"{CHOOSE.format(_number(values[-1]))}, or cut at a threshold and {SAVE_AGAIN}"
        raise _refusal(name, _describe(values), why, todo + _shares(counts.counts))
    return MaskReading(grey > full / 2, "soft edges, cut at half")


def _from_palette(indices: Grey, colours: Bytes, name: str) -> MaskReading:
    """Read a mask of palette indices: by the colours where they are greys, else by the index."""
    counts = _count(indices)
    labels = counts.values.tolist()
    seen = colours[labels]
    # a palette that is black all over says nothing; there the indices are the labels
    if (seen == seen[:, :1]).all() and len(np.unique(seen[:, 0])) == len(labels):
        return _from_grey(colours[indices, 0], name)
    if labels == [1]:
        return MaskReading(indices > 0, "full")
    if len(labels) != 2 or labels[0] != 0:
        found, todo = f"palette indices {_listing(labels)}", CHOOSE.format(labels[-1])
        why = "two classes are index 0 and one other"
        raise _refusal(name, found, why, todo + _shares(counts.counts))
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
    codes, numbers = np.unique(_code(rgb), return_counts=True)
    colours = [f"#{code:06x}" for code in codes.tolist()]
    raise _refusal(
        name,
        f"{'colour' if len(colours) == 1 else 'colours'} {_listing(colours)}",
        "two classes are black (background) and one other colour (foreground)",
        CHOOSE.format(f"'{colours[-1]}'") + _shares(numbers),
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


def _has_soft_edges(grey: Grey, counted: _Counts, full: int, *, lossy: bool) -> bool:
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
    if between < high and low + high >= NEAR_END_SHARE * counts.sum():
        return lossy or not _has_plains(grey, values)
    return _has_thin_slopes(grey, full)


def _has_plains(grey: Grey, values: Grey) -> bool:
    """Say whether most of what is neither the lowest nor the highest value lies in plains.

    Slopes and noise do not: such are the labels of classes, beside 255 for void.
    """
    others = (grey != values[0]) & (grey != values[-1])
    return bool((others & _plain(grey)).sum() > others.sum() / 2)


def _plain(grey: Grey) -> Mask:
    """Say of each pixel whether all its neighbours hold the same value."""
    level, around = grey.astype(np.float32), np.ones((3, 3), np.uint8)
    plain: Mask = np.asarray(cv2.dilate(level, around) == cv2.erode(level, around))
    return plain


def _has_thin_slopes(grey: Grey, full: int) -> bool:
    """Say whether all values between the ends are slopes of thin foreground.

    Antialiased lines and masks that were scaled down hold more of them than of full foreground.
    """
    low = grey <= NEAR_END_FRACTION * full
    high = grey >= (1 - NEAR_END_FRACTION) * full
    between = ~low & ~high
    around = np.ones((3, 3), np.uint8)
    near = cv2.dilate(low.astype(np.uint8), around, iterations=2) > 0
    _, pieces = cv2.connectedComponents((~low).astype(np.uint8), connectivity=8)
    joined = np.isin(pieces, np.unique(pieces[high]))
    slope = between & near & ~_plain(grey) & joined
    return bool(slope.sum() >= SLOPE_SHARE * between.sum())


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


def _shares(counts: npt.NDArray[np.int64]) -> str:
    """Say which share of the pixels holds each of a few values."""
    if not 2 <= len(counts) <= LISTED_VALUES:
        return ""
    shares = ", ".join(f"{share:.1%}" for share in counts / counts.sum())
    return f"; their shares of the pixels: {shares}"


def _number(value: float) -> str:
    """Write a whole number without a point and others with three digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"
