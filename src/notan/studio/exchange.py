"""Bring and take: what comes in from the page as a file, and what goes out as one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from notan.data.layouts import SUFFIXES
from notan.errors import DataError, StorageError
from notan.io.images import read_image
from notan.io.masks import read_mask
from notan.io.write import portable_name
from notan.prediction.formats.shapes import encode_geojson
from notan.prediction.pixels import cutout_image, encode_png, mask_image
from notan.studio.brought import MOST_BYTES, Brought
from notan.studio.datasets import DATASETS, Corrected, about, zipped
from notan.studio.raster import mask_of, unpack_raster
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

    from notan.studio.gallery import ListedImage
    from notan.studio.server import Studio
    from notan.types import Mask

BRING = "/api/brought"
DATASET_NAME = "corrected"


class Exchange:
    """The routes by which files come and go."""

    def __init__(self, studio: Studio, brought: Brought) -> None:
        """Join the studio and the folder of what was brought."""
        self.studio, self.brought = studio, brought

    def routes(self) -> list[Route]:
        """Return them."""
        image = "/api/images/{image}"
        return [
            Route("/api/exchange", self.about, methods=["GET"]),
            Route(BRING, self.bring, methods=["POST"]),
            Route("/api/datasets/{name}", self.dataset, methods=["GET"]),
            Route(f"{image}/mask", self.mask, methods=["GET"]),
            Route(f"{image}/cutout", self.cutout, methods=["GET"]),
            Route(f"{image}/geojson", self.geojson, methods=["GET"]),
        ]

    def about(self, request: Request) -> Response:
        """Return what may be brought and what can be taken."""
        del request
        formats = [[name, each.title, each.loses] for name, each in DATASETS.items()]
        return JSONResponse(
            {"formats": formats, "suffixes": sorted(SUFFIXES), "most_bytes": MOST_BYTES}
        )

    async def bring(self, request: Request) -> Response:
        """Take one image file, whose bytes are the body; its name is a wish, not a place."""
        name, content = request.query_params.get("name", ""), await request.body()

        def work() -> Response:
            predictions = self.studio.predictions
            predictions.stay_calm()
            with self.studio.decoding:
                image, is_new = self.brought.take(name, content, predictions.reading)
            if is_new:
                image = self.studio.add(image)
            return JSONResponse({"id": image.id, "name": image.name, "is_new": is_new})

        try:
            return await run_in_threadpool(work)
        except StorageError as error:
            raise RefusedError(507, str(error)) from error

    def mask(self, request: Request) -> Response:
        """Return the mask of an image as it is now: PNG, 0 and 255."""
        image = self.studio.find(request)
        content = encode_png(mask_image(self._mask(image)))
        return _file(content, f"{image.name}-mask.png", "image/png")

    def cutout(self, request: Request) -> Response:
        """Return an image without its background: PNG with transparency."""
        image = self.studio.find(request)
        mask = self._mask(image)
        reading = self.studio.predictions.reading
        with self.studio.decoding:
            image.require_small_enough(upright=reading.upright)
            pixels = read_image(image.path, reading)
            _require_size(image, mask, pixels.shape[:2])
            content = encode_png(cutout_image(pixels, mask))
        return _file(content, f"{image.name}-cutout.png", "image/png")

    def geojson(self, request: Request) -> Response:
        """Return the outlines of an image's mask, for QuPath and GIS."""
        image = self.studio.find(request)
        content = encode_geojson(self._mask(image))
        return _file(content, f"{image.name}.geojson", "application/geo+json")

    def dataset(self, request: Request) -> Response:
        """Send all accepted masks, in one of the formats, as a zip that is made as it is sent."""
        name = request.path_params["name"]
        format_ = DATASETS.get(name)
        if format_ is None:
            raise RefusedError(404, f"there is no such format; there are {', '.join(DATASETS)}")
        found, gone = self._corrected()
        if not found:
            raise RefusedError(409, "no mask is accepted yet; accept one with Enter, then take it")
        members = format_.members(found)
        pieces = zipped([about(format_, found, gone), *members])
        headers = {"content-disposition": _attachment(f"{DATASET_NAME}-{name}.zip")}
        return StreamingResponse(pieces, headers=headers, media_type="application/zip")

    def _corrected(self) -> tuple[list[Corrected], list[str]]:
        """Return the images with accepted masks, and the names of those whose file is gone."""
        corrections = self.studio.corrections
        upright = self.studio.predictions.reading.upright
        found: list[Corrected] = []
        gone = []
        for image in self.studio.gallery.images:
            row = corrections.row(image)
            mask = corrections.mask_path(image)
            if row is not None and image.path.is_file() and mask.is_file():
                name = portable_name(f"{image.name}.png").removesuffix(".png")
                found.append(Corrected(name, image.path, mask, row, upright))
            elif row is not None:
                gone.append(image.name)
        same = Counter(each.name.casefold() for each in found)
        for place, each in enumerate(found):
            if same[each.name.casefold()] > 1:
                found[place] = each._replace(name=f"{each.name}-{place}")
        return found, gone

    def _mask(self, image: ListedImage) -> Mask:
        """Return the mask that the page shows of an image.

        That which is being corrected, else the accepted one, the data's, or the model's.
        """
        studio = self.studio
        if studio.corrections.has_journal(image):
            return mask_of(studio.corrections.open(image).raster())
        if studio.corrections.row(image) is not None:
            return read_mask(studio.corrections.mask_path(image)).mask
        labels = image.labels()
        if labels is not None:
            return labels.mask
        kept = studio.predictions.get(image)
        return mask_of(unpack_raster(kept.raster, kept.header.size))


def _require_size(image: ListedImage, mask: Mask, size: tuple[int, ...]) -> None:
    if mask.shape != size:
        raise DataError(
            f"{image.name}: the mask in the data is {mask.shape[0]}x{mask.shape[1]}, the image "
            f"{size[0]}x{size[1]} (height x width); mend it, or correct the model's mask"
        )


def _file(content: bytes, name: str, kind: str) -> Response:
    return Response(content, headers={"content-disposition": _attachment(name)}, media_type=kind)


def _attachment(name: str) -> str:
    """Return the header by which a browser saves a file, under a name that any system takes."""
    return f"attachment; filename*=UTF-8''{quote(portable_name(name), safe='')}"
