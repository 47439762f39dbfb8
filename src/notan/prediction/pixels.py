"""A prediction as pixels: mask, cut-out, overlay, probability; as PNG and as TIFF of any size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.errors import StorageError
from notan.io.images import shown
from notan.io.write import replacing, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from notan.types import Image8, Mask, Probability, RGBImage, Size

Pixels: TypeAlias = npt.NDArray[Any]
"""uint8 or uint16, (height, width) grey, (height, width, 3) RGB or (height, width, 4) RGBA."""

PREDICTION = (230, 159, 0)
TRUTH = (86, 180, 233)
"""Orange and sky blue of Okabe and Ito's palette, told apart by colour-blind readers."""

_TINTED = (0.6 * np.arange(256)[None, :, None] + 0.4 * np.array(PREDICTION)).astype(np.uint8)
"""What each grey level of red, green and blue becomes under the tint, (1, 256, 3)."""

TILE = 256
"""Side of the tiles of a TIFF that is written band by band, and so the height of the bands."""

CLASSIC_BYTES = 2**32 - 2**26
"""What a TIFF of the classic kind holds at most; pixels that will not compress need BigTIFF."""


def mask_image(mask: Mask) -> RGBImage:
    """Return a mask as grey levels: foreground 255, background 0."""
    return mask.astype(np.uint8) * 255


def overlay_image(image: Image8, mask: Mask, truth: Mask | None = None) -> RGBImage:
    """Tint the predicted foreground and outline it; outline the truth too where it is known.

    Args:
        image: uint8, (height, width, channels); of other channels than RGB the first are shown.
        mask: The predicted foreground, of the same size; orange.
        truth: The true foreground; outlined in sky blue.

    Returns:
        uint8, (height, width, 3), RGB.
    """
    image = shown(image)
    result = image.copy()
    cv2.copyTo(cv2.LUT(image, _TINTED), mask.astype(np.uint8), result)
    thickness = max(1, round(min(mask.shape) / 200))
    for outline, colour in ((truth, TRUTH), (mask, PREDICTION)):
        if outline is not None:
            contours, _ = cv2.findContours(
                outline.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(result, contours, -1, colour, thickness)
    return result


def cutout_image(image: Image8, mask: Mask) -> Pixels:
    """Return the foreground alone: what is background becomes transparent.

    The edge is hard on purpose. The mask is what validation chose the postprocessing for; a
    probability as transparency would let the background shine through wherever the network is
    less than sure, in the middle of the foreground too. The colours under the background are kept,
    so an editor can bring them back.

    Returns:
        uint8, (height, width, 4), RGBA; alpha is 255 on the foreground and 0 elsewhere.
    """
    return np.dstack([shown(image), mask_image(mask)])


def probability_image(
    probability: Probability | Mask, dtype: type[np.generic] = np.uint8
) -> Pixels:
    """Return probabilities, or a mask, as grey levels: 0 for 0 and the type's largest for 1.

    Args:
        probability: float32, (height, width), 0..1.
        dtype: uint8 (steps of 1/255), uint16 (steps of 1/65535), or float32 (as they are).
    """
    if dtype is np.float32:
        return probability
    top = np.iinfo(np.dtype(dtype)).max
    return np.rint(probability.astype(np.float64) * top).astype(dtype)


def encode_png(pixels: Pixels) -> bytes:
    """Return the bytes of a PNG file of grey, RGB or RGBA pixels of 8 or 16 bits.

    Raises:
        StorageError: PNG cannot hold them.
    """
    orders = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    swapped = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, orders[pixels.shape[2]])
    try:
        fine, encoded = cv2.imencode(".png", swapped)
    except cv2.error:  # such as a side that PNG's header has no room for
        fine = False
    if not fine:
        raise StorageError(f"{pixels.shape} pixels could not be encoded as PNG")
    return encoded.tobytes()


def encode_float_tiff(probability: Probability) -> bytes:
    """Return the bytes of a TIFF file of one float32 channel, compressed without loss."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, probability.astype(np.float32), compression="zlib", metadata=None)
    return file.getvalue()


def write_large_tiff(
    path: Path, size: Size, dtype: type[np.generic], bands: Iterable[Probability | Mask]
) -> None:
    """Write an image that is there band by band as a tiled TIFF, compressed by Deflate.

    It is written whole or not at all.

    Args:
        path: The file.
        size: (height, width) of the image.
        dtype: uint8, uint16 or float32, scaled as ``probability_image`` does.
        bands: The image from the top in bands of ``TILE`` rows, each (rows, width).

    Raises:
        StorageError: The file could not be written.
    """
    from tifffile import FileHandle, TiffWriter

    large = size[0] * size[1] * np.dtype(dtype).itemsize > CLASSIC_BYTES
    with (
        replacing(path) as file,
        TiffWriter(FileHandle(file, name=path.name), bigtiff=large) as tiff,  # it wants a name
    ):
        tiff.write(
            _tiles(probability_image(band, dtype) for band in bands),
            shape=size,
            dtype=np.dtype(dtype),
            tile=(TILE, TILE),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            maxworkers=1,  # more would compress many tiles ahead, and hold them
        )


def _tiles(bands: Iterable[Pixels]) -> Iterator[Pixels]:
    """Cut bands into tiles, filled up with zeros at the right and below."""
    for band in bands:
        full = np.pad(band, ((0, -len(band) % TILE), (0, -band.shape[1] % TILE)))
        for left in range(0, full.shape[1], TILE):
            yield np.ascontiguousarray(full[:, left : left + TILE])


def write_png(path: Path, image: Pixels) -> None:
    """Write grey, RGB or RGBA pixels as PNG, whole or not at all.

    Raises:
        StorageError: The file could not be written.
    """
    write_bytes(path, encode_png(image))


def write_overlay_and_mask(
    folder: Path, name: str, image: RGBImage, mask: Mask, truth: Mask | None = None
) -> None:
    """Write ``masks/NAME.png`` (0 / 255) and ``overlays/NAME.png`` into a folder.

    Raises:
        StorageError: A file could not be written.
    """
    write_png(folder / "masks" / f"{name}.png", mask_image(mask))
    write_png(folder / "overlays" / f"{name}.png", overlay_image(image, mask, truth))


def contact_sheet(images: Sequence[RGBImage], *, columns: int, gap: int = 4) -> RGBImage:
    """Lay images of one size out in rows on white.

    Args:
        images: uint8, (height, width, 3), RGB, all of one size; at least one.
        columns: Images in a row.
        gap: White pixels between them.

    Returns:
        uint8, (rows x height + gaps, columns x width + gaps, 3), RGB.
    """
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    down, across = height + gap, width + gap
    sheet = np.full((rows * down - gap, columns * across - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * down, number % columns * across
        sheet[top : top + height, left : left + width] = image
    return sheet
