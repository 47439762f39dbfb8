"""Drawn data: seeded shapes on textured backgrounds with exact masks, for demos and tests.

The images are made so that neither a colour nor a shade gives the foreground away: both classes
take their colours from one palette, the background is littered with strokes in the foreground's
colour, and the foreground's pattern in turn borrows from the background. What tells them apart is
form and relief.

Cracks are the other kind: branching lines, 1 to 4 pixels wide and hardly darker than the grain of
the pavement that they run through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt

from notan.data.samples import Sample, Source
from notan.errors import ConfigError, DataError, nearest
from notan.io.write import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.types import Mask, RGBImage, Size

Plane = npt.NDArray[np.float32]
"""(height, width), one number for each pixel."""

Colours = npt.NDArray[np.float32]
"""(..., 3), RGB, 0..255."""

Pixels = npt.NDArray[np.integer | np.floating]  # as OpenCV declares what it returns

Kind = Literal["shapes", "cracks"]
"""What is drawn."""

MINIMUM_SIDE = 8
EMPTY_SHARE = 0.05
SUBPIXEL_BITS = 4  # OpenCV's fixed-point places: smooth strokes at small sizes
ANGLES = np.linspace(0, 2 * np.pi, 361)

PALETTE: Colours = np.array(
    [
        (43, 48, 66),  # ink
        (44, 78, 124),  # indigo
        (56, 126, 128),  # teal
        (98, 112, 70),  # moss
        (146, 166, 128),  # sage
        (112, 70, 98),  # plum
        (118, 132, 148),  # slate
        (204, 84, 62),  # vermilion
        (214, 164, 80),  # ochre
        (222, 156, 150),  # rose
        (216, 200, 166),  # sand
        (240, 228, 206),  # cream
    ],
    dtype=np.float32,
)
WIDEST_CRACK = 4  # pixels
NEAREST_PAIR = 75.0  # colours closer in RGB make foregrounds that people cannot see either


class PixelGrid(NamedTuple):
    """The pixels' places: centres in pixels, and the short side that everything scales with."""

    x: Plane
    y: Plane
    short: int


class Light(NamedTuple):
    """Where the light comes from: a unit vector in the image's plane."""

    x: float
    y: float


class DrawnSource(Source):
    """A stretch of an endless row of drawn images.

    Image ``i`` depends on the seed, on ``i`` and on the size, and on nothing else. Training,
    validation and test parts are therefore stretches of one seed that do not overlap.

    Args:
        count: How many images, at least 1.
        size: (height, width) in pixels, each at least 8.
        seed: Which row of images, 0 or more.
        first: The index of the first image in its row, 0 or more; it is part of the name.
        kind: ``shapes`` or ``cracks``.

    Raises:
        ConfigError: A number is below its least value, or there is no such kind.

    Example:
        >>> train = DrawnSource(200, size=(64, 64))
        >>> test = DrawnSource(50, size=(64, 64), first=200)
        >>> test.names[0], test[0].size
        ('drawn-0200', (64, 64))
    """

    def __init__(
        self,
        count: int,
        *,
        size: Size = (128, 128),
        seed: int = 0,
        first: int = 0,
        kind: Kind = "shapes",
    ) -> None:
        if kind not in get_args(Kind):
            kinds = get_args(Kind)
            raise ConfigError(
                f"drawn images: there is no kind '{kind}'{nearest(kind, kinds)}; "
                f"the kinds are {' and '.join(kinds)}"
            )
        for name, value, least in (
            ("count", count, 1),
            ("height", size[0], MINIMUM_SIDE),
            ("width", size[1], MINIMUM_SIDE),
            ("seed", seed, 0),
            ("first", first, 0),
        ):
            if value < least:
                raise ConfigError(f"drawn images: {name} is {value}; give {least} or more")
        self.size = size
        self.seed = seed
        self.kind = kind
        self._indices = range(first, first + count)

    @property
    def names(self) -> Sequence[str]:
        """``drawn-0000`` and so on, counted from ``first``."""
        return [_name(index) for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Draw one sample.

        Raises:
            IndexError: There is no such sample.
        """
        place = self._indices[index]
        draw = _draw_cracks if self.kind == "cracks" else _draw
        image, mask = draw(np.random.default_rng((self.seed, place)), self.size)
        return Sample(_name(place), image, mask)


def write_folder(source: Source, folder: Path) -> None:
    """Write any source as ``images/NAME.png`` and ``masks/NAME.png`` (foreground 255).

    Args:
        source: The samples to write.
        folder: Where to; made if missing. Files of the same names are replaced.

    Raises:
        DataError: A sample leaves an area out of the score, which such masks cannot express.
        StorageError: A file could not be written.
    """
    for sample in source:
        if sample.ignore is not None and sample.ignore.any():
            raise DataError(
                f"{sample.name}: its mask has an ignored area, for which 0/255 has no value; "
                'count that area as one of the classes (trimap_border = "foreground" or '
                '"background")'
            )
        bgr = cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
        write_bytes(folder / "images" / f"{sample.name}.png", _png(bgr))
        write_bytes(folder / "masks" / f"{sample.name}.png", _png(sample.mask * np.uint8(255)))


def _png(pixels: Pixels) -> bytes:
    _, encoded = cv2.imencode(".png", pixels)
    return encoded.tobytes()


def _name(index: int) -> str:
    return f"drawn-{index:04d}"


def _draw(rng: np.random.Generator, size: Size) -> tuple[RGBImage, Mask]:
    """Draw one image: background, then shapes over it, then one light and grain over both."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    grid = PixelGrid(x, y, min(size))
    background, foreground = _two_colours(rng)
    angle = rng.uniform(-2.6, -0.6)  # from above, as eyes expect
    light = Light(float(np.cos(angle)), float(np.sin(angle)))

    canvas = _background(rng, grid, background, foreground)
    mask: Mask = np.zeros(size, dtype=np.bool_)
    shapes = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 4))
    pattern = rng.choice(["dots", "stripes", "rings", "mottled"])
    for _ in range(shapes):
        distance = _distance_inside(rng, grid)
        canvas = _cast_shadow(canvas, distance, grid, light)
        coat = _coat(rng, grid, distance, pattern, foreground, background)
        coat *= _relief(distance, grid, light)[..., None]
        coverage = np.clip(distance + 0.5, 0, 1)[..., None]
        canvas += coverage * (coat - canvas)
        mask |= distance >= 0  # where the shape covers at least half of the pixel
    return _photograph(rng, canvas, grid), mask


def _two_colours(rng: np.random.Generator) -> tuple[Colours, Colours]:
    """Pick the background's and the foreground's colour; either may be the lighter one."""
    background = PALETTE[rng.integers(len(PALETTE))]
    others = PALETTE[np.linalg.norm(PALETTE - background, axis=1) > NEAREST_PAIR]
    foreground = others[rng.integers(len(others))]
    wobble = rng.normal(0, 7, size=(2, 3)).astype(np.float32)
    return background + wobble[0], foreground + wobble[1]


def _background(
    rng: np.random.Generator, grid: PixelGrid, background: Colours, foreground: Colours
) -> Colours:
    """Paint a blotched wash with raked ripples, sometimes a band across it, and clutter."""
    size = grid.x.shape
    other = PALETTE[rng.integers(len(PALETTE))]
    wash = np.clip(0.5 + 0.28 * _clouds(rng, size, 4), 0, 1)
    canvas = _blend(background, _blend(background, other, np.float32(0.35)), wash)
    if rng.random() < 0.4:
        edge = _along(grid, rng.uniform(0, np.pi)) + 0.12 * _clouds(rng, size, 4)
        band = np.clip((edge - rng.uniform(-0.3, 0.3)) * grid.short / 2, 0, 1)
        tone = _blend(background, foreground, np.float32(rng.uniform(0.3, 0.6)))
        canvas += band[..., None] * (tone - canvas)
    waves = _along(grid, rng.uniform(0, np.pi)) + 0.05 * _clouds(rng, size, 5)
    ripple = np.sin(waves * np.float32(2 * np.pi * rng.uniform(7, 13)))
    canvas *= 1 + np.float32(rng.uniform(0.02, 0.07)) * ripple[..., None]
    return _clutter(rng, canvas, (foreground, other), grid)


def _clutter(
    rng: np.random.Generator, canvas: Colours, colours: tuple[Colours, ...], grid: PixelGrid
) -> Colours:
    """Scatter thin twigs and small dots: the foreground's colours without its form."""
    height, width = canvas.shape[:2]
    average = np.array(cv2.mean(canvas)[:3], dtype=np.float32)
    flat = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(4, 13)):
        colour = _blend(colours[rng.integers(2)], average, np.float32(0.15)).tolist()
        start = rng.uniform((0, 0), (width, height))
        if rng.random() < 0.4:
            radius = grid.short * rng.uniform(0.008, 0.022)
            turns = np.linspace(0, 2 * np.pi, 16)
            dot = _fixed_point(start + radius * _unit(turns))
            cv2.fillConvexPoly(flat, dot, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        else:
            headings = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-2, 2), 8)
            step = grid.short * rng.uniform(0.015, 0.05)
            twig = _fixed_point(start + step * np.cumsum(_unit(headings), axis=0))
            thick = max(1, round(grid.short * rng.uniform(0.006, 0.016)))
            cv2.polylines(flat, [twig], False, colour, thick, cv2.LINE_AA, SUBPIXEL_BITS)
    return flat.astype(np.float32)


def _unit(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _fixed_point(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    places: npt.NDArray[np.int32] = np.round(points * 2**SUBPIXEL_BITS).astype(np.int32)
    return places


def _distance_inside(rng: np.random.Generator, grid: PixelGrid) -> Plane:
    """Place one shape; return each pixel's distance from its outline, positive inside.

    Mask and smooth edge both come from this one plane, so they cannot disagree.
    """
    height, width = grid.x.shape
    radii = _outline(rng) * grid.short * rng.uniform(0.15, 0.29)
    centre_x, centre_y = rng.uniform(0.16, 0.84, size=2) * (width - 1, height - 1)
    reach, angle = cv2.cartToPolar(
        grid.x - np.float32(centre_x), grid.y - np.float32(centre_y), angleInDegrees=False
    )
    # A slanted outline is nearer than it looks along the ray from the centre.
    slant = np.hypot(1, np.gradient(radii, ANGLES) / radii)
    shrink = np.interp(angle, ANGLES, 1 / slant)
    distance: Plane = ((np.interp(angle, ANGLES, radii) - reach) * shrink).astype(np.float32)
    return distance


def _outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a closed outline as radii (about 1) over ANGLES: pebble, polygon, ellipse or star."""
    angles = ANGLES + rng.uniform(0, 2 * np.pi)
    corners = int(rng.integers(3, 7))
    kind = rng.choice(["pebble", "polygon", "ellipse", "star"], p=[0.4, 0.25, 0.2, 0.15])
    if kind == "pebble":
        waves = range(2, 6)
        radii = 1 + sum(
            rng.normal(0, 0.32 / wave) * np.cos(wave * angles + rng.uniform(0, 6)) for wave in waves
        )
        radii = np.maximum(radii, 0.45)
    elif kind == "polygon":
        turn = np.mod(angles, 2 * np.pi / corners) - np.pi / corners
        # The power mean of a polygon and a circle: straight sides, rounded corners.
        radii = (0.75 * (np.cos(np.pi / corners) / np.cos(turn)) ** -3 + 0.25) ** (-1 / 3) * 1.15
    elif kind == "star":
        radii = 1 + rng.uniform(0.2, 0.36) * np.cos((corners + 2) * angles)
    else:
        radii = np.ones_like(angles)
    aspect = rng.uniform(1.2, 1.9) if kind == "ellipse" else rng.uniform(1, 1.3)
    tilted = ANGLES + rng.uniform(0, np.pi)
    stretched: npt.NDArray[np.float64] = radii / np.hypot(
        np.cos(tilted) / aspect**0.5, np.sin(tilted) * aspect**0.5
    )
    return stretched


def _coat(
    rng: np.random.Generator,
    grid: PixelGrid,
    distance: Plane,
    pattern: str,
    foreground: Colours,
    background: Colours,
) -> Colours:
    """Colour a shape: the foreground's colour under a pattern that borrows from the background."""
    turn = rng.uniform(0, np.pi)
    pitch = np.float32(2 * np.pi * rng.uniform(5, 9))
    along, across = _along(grid, turn) * pitch, _along(grid, turn + np.pi / 2) * pitch
    if pattern == "dots":
        wave = np.cos(along) * np.cos(across) * 2.2 - 0.9
    elif pattern == "stripes":
        wave = np.sin(along) * 2 - 0.4
    elif pattern == "rings":
        wave = np.sin(distance / grid.short * pitch * np.float32(1.6)) * 2 - 0.4
    else:
        wave = _clouds(rng, grid.x.shape, 10) - 0.3
    accent = _blend(foreground, background, np.float32(rng.uniform(0.35, 0.75)))
    own = foreground * np.float32(rng.uniform(0.9, 1.1))
    return _blend(own, accent, np.clip(wave * 0.5 + 0.5, 0, 1).astype(np.float32))


def _relief(distance: Plane, grid: PixelGrid, light: Light) -> Plane:
    """Shade a shape like a pebble: bright where its shoulder faces the light, dark opposite."""
    depth = np.clip(distance / (0.13 * grid.short), 0, 1)
    height = np.sqrt(1 - (1 - depth) ** 2)
    soft = cv2.GaussianBlur(height, (0, 0), max(0.5, 0.02 * grid.short))
    slope_x = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=grid.short / 8)
    slope_y = cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=grid.short / 8)
    towards = -(slope_x * np.float32(light.x) + slope_y * np.float32(light.y))
    shade: Plane = 1 + 0.045 * np.clip(towards, -7, 7)
    return shade


def _cast_shadow(canvas: Colours, distance: Plane, grid: PixelGrid, light: Light) -> Colours:
    """Darken what lies behind a shape, away from the light."""
    length = 0.035 * grid.short
    shift = np.array([[1, 0, -light.x * length], [0, 1, -light.y * length]], dtype=np.float32)
    height, width = distance.shape
    moved = cv2.warpAffine(distance, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
    shade = np.clip(0.5 + moved / (0.06 * grid.short), 0, 1)
    darker: Colours = canvas * (1 - 0.38 * shade[..., None])
    return darker


def _photograph(rng: np.random.Generator, canvas: Colours, grid: PixelGrid) -> RGBImage:
    """Lay one uneven light and fine grain over foreground and background alike."""
    fall = _along(grid, rng.uniform(0, 2 * np.pi)) * np.float32(rng.uniform(0.1, 0.45))
    grain = rng.normal(0, rng.uniform(2, 6), size=canvas.shape[:2]).astype(np.float32)
    exposed = canvas * (1 + fall[..., None]) + grain[..., None]
    image: RGBImage = np.clip(exposed, 0, 255).astype(np.uint8)
    return image


def _draw_cracks(rng: np.random.Generator, size: Size) -> tuple[RGBImage, Mask]:
    """Draw a pavement, then cracks a little darker than it is, then light and grain over both."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    grid = PixelGrid(x, y, min(size))
    tone = rng.uniform(95, 165) + rng.normal(0, 5, size=3).astype(np.float32)
    stains = 7 * _clouds(rng, size, 4) + 4 * _clouds(rng, size, 12)
    stones = cv2.GaussianBlur(rng.normal(0, 1, size).astype(np.float32), (0, 0), 0.8)
    grains = stains + np.float32(rng.uniform(14, 22)) * stones
    canvas = tone.astype(np.float32) + grains[..., None]
    canvas = _scratches(rng, canvas, grid)

    mask: Mask = np.zeros(size, dtype=np.bool_)
    for _ in range(0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 4))):
        start = rng.uniform((0, 0), (size[1], size[0]))
        inwards = np.array([size[1] / 2, size[0] / 2]) - start
        heading = float(np.arctan2(inwards[1], inwards[0])) + rng.normal(0, 0.4)
        width = rng.uniform(1.5, WIDEST_CRACK + 0.5)
        _crack(rng, mask, start, heading, grid.short * rng.uniform(0.5, 1.2), width, branches=2)
    depth = np.float32(rng.uniform(16, 30)) * np.clip(1 + 0.3 * _clouds(rng, size, 6), 0.4, 1.3)
    shade = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.5) * depth
    return _photograph(rng, canvas - shade[..., None], grid), mask


def _scratches(rng: np.random.Generator, canvas: Colours, grid: PixelGrid) -> Colours:
    """Lay short straight strokes and wide soft bands over a pavement: lines that are no cracks."""
    strokes: Plane = np.zeros(grid.x.shape, dtype=np.float32)
    for _ in range(rng.integers(3, 9)):
        start = rng.uniform((0, 0), grid.x.shape[::-1])
        reach = grid.short * rng.uniform(0.03, 0.1) * _unit(rng.uniform(0, 2 * np.pi, size=1))[0]
        ends = _fixed_point(np.stack([start, start + reach]))
        tone = float(rng.choice([-1, 1]) * rng.uniform(14, 26))
        cv2.polylines(strokes, [ends], False, tone, int(rng.integers(1, 4)), shift=SUBPIXEL_BITS)
    band = _along(grid, rng.uniform(0, np.pi)) - np.float32(rng.uniform(-0.4, 0.4))
    trace = np.exp(-((band / np.float32(rng.uniform(0.04, 0.1))) ** 2))
    shade = cv2.GaussianBlur(strokes, (0, 0), 0.5) - np.float32(rng.uniform(0, 16)) * trace
    laid: Colours = canvas + shade[..., None]
    return laid


def _crack(
    rng: np.random.Generator,
    mask: Mask,
    start: npt.NDArray[np.float64],
    heading: float,
    length: float,
    width: float,
    *,
    branches: int,
) -> None:
    """Mark a random walk in a mask, and the thinner walks that leave it.

    Args:
        rng: Where it goes.
        mask: Marked in place; what runs out of it is not seen.
        start: (x, y) in pixels.
        heading: Where to at first, in radians.
        length: In pixels.
        width: In pixels, about; nowhere outside of 1 to WIDEST_CRACK.
        branches: How many times more a branch may have branches.
    """
    steps = max(2, round(length / 4))
    turns = rng.normal(0, 0.45, size=steps)
    # drawn back to where it was heading, or it would curl up
    headings = heading + np.convolve(turns, 0.8 ** np.arange(6))[:steps]
    corners = np.vstack([start, start + 4 * np.cumsum(_unit(headings), axis=0)])
    places = np.arange(0, steps, 0.1)  # closer than half a pixel: no gap
    path = np.stack([np.interp(places, np.arange(steps + 1), side) for side in corners.T], axis=1)
    wobble = np.interp(places, np.arange(steps), rng.normal(0, 0.4, size=steps))
    widths = np.clip(np.round(width + wobble - 0.8 * places / steps), 1, WIDEST_CRACK)
    for brush in range(1, WIDEST_CRACK + 1):
        _dab(mask, path[widths == brush], brush)
    for at in range(2, steps - 1):
        if branches and rng.random() < 0.06:
            away = headings[at] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.2)
            rest = length * (1 - at / steps) * rng.uniform(0.4, 0.9)
            _crack(rng, mask, corners[at], away, rest, width - 1, branches=branches - 1)


def _dab(mask: Mask, path: npt.NDArray[np.float64], brush: int) -> None:
    """Mark a round dab of so many pixels across at each point of a path."""
    middle = (brush - 1) / 2
    corner = np.round(path - middle).astype(np.int64)
    for row in range(brush):
        for column in range(brush):
            if (row - middle) ** 2 + (column - middle) ** 2 <= brush**2 / 4:
                x, y = corner.T + np.array([[column], [row]])
                seen = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
                mask[y[seen], x[seen]] = True


def _along(grid: PixelGrid, angle: float) -> Plane:
    """Return how far each pixel lies from the middle along a direction, in short sides."""
    height, width = grid.x.shape
    x, y = grid.x - (width - 1) / 2, grid.y - (height - 1) / 2
    place: Plane = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    return place / np.float32(grid.short)


def _clouds(rng: np.random.Generator, size: tuple[int, ...], cells: int) -> Plane:
    """Return smooth noise of about unit deviation with ``cells`` lumps on a side."""
    coarse = rng.normal(size=(cells, cells)).astype(np.float32)
    clouds = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(clouds, dtype=np.float32)


def _blend(one: Colours, other: Colours, share: Plane | np.float32) -> Colours:
    """Mix two colours; ``share`` of the other, one number or a plane of them."""
    return one + np.asarray(share)[..., None] * (other - one)
