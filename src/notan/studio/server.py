"""The studio's server: a fixed table of routes over gallery, predictions and corrections.

The page is a few static files; everything else is under ``/api/``. Images are named by their ids.
"""

from __future__ import annotations

import json
import threading
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from notan.errors import DataError, StorageError
from notan.io.masks import read_mask
from notan.studio.edges import Cutter, edges_of, read_cut
from notan.studio.journal import ConflictError, read_entry
from notan.studio.raster import BY_HAND, mask_of, pack_raster, raster_of, unpack_raster
from notan.studio.shown import encode_image, outline, read_shown, thumbnail
from notan.web.answers import RefusedError, error_handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from notan.data.samples import Labels
    from notan.studio.gallery import Gallery, ListedImage
    from notan.studio.journal import Journal, Origin
    from notan.studio.predictions import Predictions
    from notan.studio.raster import MaskRaster
    from notan.studio.store import Corrections
    from notan.studio.teaching import Teaching
    from notan.types import Size

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
BYTES = "application/octet-stream"
KEPT_A_WHILE = {"cache-control": "private, max-age=600"}
ORIGINS: Mapping[str, Origin] = {"model": "model", "mask": "mask", "empty": "empty"}
MOST_DIGITS = 12
DECODED_AT_ONCE = 4
"""Images; each of the largest takes a few hundred megabytes."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page with their media types, by name; there are no others."""
    found = {}
    for each in files("notan.studio").joinpath("page").iterdir():
        kind = MEDIA_TYPES.get(each.name[each.name.rfind(".") :])
        if kind is not None:
            found[each.name] = (each.read_bytes(), kind)
    return found


class Annex(Protocol):
    """Something beside looking and correcting that the page may ask for."""

    def routes(self) -> list[Route]:
        """Return what answers."""


class Studio:
    """Answers what the page asks.

    Attributes:
        parts: What answers beside it.
        decoding: To be held while an image is decoded.
    """

    def __init__(
        self, gallery: Gallery, teaching: Teaching, corrections: Corrections, *, title: str
    ) -> None:
        """Join the parts.

        Args:
            gallery: The images.
            teaching: What teaches models, and has one in use.
            corrections: What people said.
            title: What the page is called; the name of the data folder.
        """
        self.gallery, self.teaching, self.corrections = gallery, teaching, corrections
        self.title = title
        self.parts: list[Annex] = []
        self._page = page_files()
        self._cutter = Cutter()
        self.decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)
        self._states = {image.id: (self._state_at_start(image), 0) for image in gallery.images}
        self._revision = 0

    @property
    def predictions(self) -> Predictions:
        """What the model in use says of the images."""
        return self.teaching.shelf.predictions

    def app(self) -> ASGIApp:
        """Return the application; a ``Guard`` belongs before it."""
        image = "/api/images/{image}"
        routes = [
            Route("/", self.front, methods=["GET"]),
            Route("/page/{name}", self.page, methods=["GET"]),
            *(route for part in self.parts for route in part.routes()),
            Route("/api/about", self.about, methods=["GET"]),
            Route("/api/images", self.images, methods=["GET"]),
            Route(image, self.image, methods=["GET"]),
            Route(f"{image}/thumbnail", self.thumbnail, methods=["GET"]),
            Route(f"{image}/outline", self.outline, methods=["GET"]),
            Route(f"{image}/pixels", self.pixels, methods=["GET"]),
            Route(f"{image}/probability", self.probability, methods=["GET"]),
            Route(f"{image}/model", self.model_mask, methods=["GET"]),
            Route(f"{image}/truth", self.truth, methods=["GET"]),
            Route(f"{image}/edges", self.edges, methods=["GET"]),
            Route(f"{image}/cut", self.cut, methods=["POST"]),
            Route(f"{image}/journal", self.begin, methods=["POST"]),
            Route(f"{image}/journal", self.begin_anew, methods=["DELETE"]),
            Route(f"{image}/entries", self.append, methods=["POST"]),
            Route("/api/draw", self.draw, methods=["GET"]),
            Route("/api/teach", self.taught, methods=["GET"]),
            *(
                Route(f"/api/teach/{name}", self._doing(deed), methods=["POST"])
                for name, deed in self.teaching.deeds.items()
            ),
        ]
        app = Starlette(routes=routes, exception_handlers=error_handlers())
        app.router.redirect_slashes = False  # a path is in the table, or there is nothing there
        return app

    def add(self, image: ListedImage) -> ListedImage:
        """List an image that came later; return it as it is listed."""
        self._states[image.id] = "open", 0  # whoever finds it in the gallery finds this too
        image = self.gallery.add(image)
        self.corrections.add(image)
        self.predictions.add(image)
        return image

    def front(self, request: Request) -> Response:
        """Return the page itself."""
        del request
        self.predictions.stay_calm()
        content, kind = self._page["index.html"]
        return Response(content, media_type=kind)

    def page(self, request: Request) -> Response:
        """Return a file of the page."""
        self.predictions.stay_calm()
        found = self._page.get(request.path_params["name"])
        if found is None:
            raise RefusedError(404, "there is no such file of the page")
        return Response(found[0], media_type=found[1])

    def about(self, request: Request) -> Response:
        """Return what the page says of itself: model, data, where corrections go."""
        del request
        card = self.predictions.predictor.card
        rule = self.predictions.predictor.postprocessing
        return _json(
            {
                "title": self.title,
                "images": len(self.gallery),
                "passed_over": self.gallery.passed_over,
                "corrections": str(self.corrections.folder),
                "model": self.predictions.model[:MOST_DIGITS],
                "network": card.run.model.name if card else "",
                "threshold": rule.threshold,
                "rule": rule.in_words(),
                "review_below": rule.review_below,
            }
        )

    def images(self, request: Request) -> Response:
        """Return what is known of every image that changed since two revisions."""
        since = number_in(request, "since"), number_in(request, "edits")
        now = self.predictions.revision, self._revision
        rows = []
        for image in self.gallery.images:
            outlook = self.predictions.outlook(image)
            state, edit = self._states[image.id]
            if since != (0, 0) and outlook.revision <= since[0] and edit <= since[1]:
                continue
            rows.append(
                [
                    *(image.id, image.name, image.mask is not None, outlook.size),
                    *(outlook.expected_dice, outlook.true_dice, outlook.needs_review),
                    *(outlook.fault, state),
                ]
            )
        model = self.predictions.model[:MOST_DIGITS]
        return _json({"revision": now[0], "edits": now[1], "model": model, "images": rows})

    def image(self, request: Request) -> Response:
        """Return what opens an image: its size, scores and the journal of its correction."""
        image = self.find(request)
        kept = self.predictions.get(image)
        outlook = self.predictions.outlook(image)
        journal = self._journal(image)
        return _json(
            {
                "id": image.id,
                "name": image.name,
                "height": kept.header.height,
                "width": kept.header.width,
                "threshold": kept.header.threshold,
                "expected_dice": outlook.expected_dice,
                "true_dice": outlook.true_dice,
                "has_truth": image.mask is not None,
                "state": self._states[image.id][0],
                "journal": None if journal is None else _journal_json(journal),
            }
        )

    def thumbnail(self, request: Request) -> Response:
        """Return a small JPEG; what is on a screen is predicted soon."""
        image = self.find(request)
        self.predictions.stay_calm()
        self.predictions.saw(image)
        with self.decoding:
            content = thumbnail(image, self.predictions.reading, self.predictions.cache)
        return Response(content, media_type="image/jpeg", headers=KEPT_A_WHILE)

    def outline(self, request: Request) -> Response:
        """Return the outline of the accepted mask, else of the model's, to lie on the thumbnail."""
        image = self.find(request)
        self.predictions.stay_calm()
        if self.corrections.row(image) is not None:
            mask = read_mask(self.corrections.mask_path(image)).mask
        else:
            kept = self.predictions.get(image)
            mask = mask_of(unpack_raster(kept.raster, kept.header.size))
        return Response(outline(mask), media_type="image/png")

    def pixels(self, request: Request) -> Response:
        """Return the image at its full size."""
        self.predictions.stay_calm()
        image = self.find(request)
        with self.decoding:
            content, kind = encode_image(image, self.predictions.reading)
        return Response(content, media_type=kind)

    def probability(self, request: Request) -> Response:
        """Return the model's probability, 0 to 255 for 0 to 1, row by row, compressed by zlib.

        Not as an image: a browser need not give the very pixels of one back.
        """
        kept = self.predictions.get(self.find(request))
        return Response(kept.probability, media_type=BYTES)

    def model_mask(self, request: Request) -> Response:
        """Return the model's mask as ``pack_raster`` makes it."""
        return Response(self.predictions.get(self.find(request)).raster, media_type=BYTES)

    def truth(self, request: Request) -> Response:
        """Return the mask in the data likewise; no content where there is none.

        The second plane is what the data leave out of the score.
        """
        image = self.find(request)
        if image.mask is None:
            return Response(status_code=204)
        labels = self._labels(image, self.predictions.get(image).header.size)
        raster = raster_of(labels.mask)
        if labels.ignore is not None:
            raster[labels.ignore] |= BY_HAND
        return Response(pack_raster(raster), media_type=BYTES)

    def edges(self, request: Request) -> Response:
        """Return the edges that an outline may snap to, a byte for each corner, compressed."""
        self.predictions.stay_calm()
        image = self.find(request)
        with self.decoding:
            found = edges_of(read_shown(image, self.predictions.reading))
        content = zlib.compress(found.tobytes(), 1)
        return Response(content, media_type=BYTES, headers=KEPT_A_WHILE)

    async def cut(self, request: Request) -> Response:
        """Tell foreground from background by colour in a crop; nothing is written."""
        image, crop = self.find(request), read_cut(await request.body())
        self.predictions.stay_calm()

        def work() -> Response:
            return _json(self._cutter.cut(image, self.predictions.reading, crop))

        return await run_in_threadpool(work)

    async def begin(self, request: Request) -> Response:
        """Begin the correction of an image, with the mask of the model, of the data, or none."""
        image = self.find(request)
        origin = ORIGINS.get(str((await _object(request, {"origin"})).get("origin")))
        if origin is None:
            raise RefusedError(400, f"origin: one of {', '.join(ORIGINS)} is wanted")

        def work() -> Response:
            raster = self._first(image, origin)
            model = self.predictions.model if origin == "model" else ""
            return _json(_journal_json(self.corrections.begin(image, raster, origin, model)))

        return await _writing(work)

    async def append(self, request: Request) -> Response:
        """Write an entry into the journal of an image."""
        image, version = self.find(request), number_in(request, "version")
        entry = read_entry(await request.body())

        def work() -> Response:
            if not self.corrections.has_journal(image):
                raise ConflictError("the correction of this image was not begun; reload the page")
            journal = self.corrections.append(image, entry, version=version)
            state = self._note_state(image, journal)
            return _json({"version": journal.version, "state": state})

        return await _writing(work)

    async def begin_anew(self, request: Request) -> Response:
        """Set the strokes of an image aside."""
        image = self.find(request)

        def work() -> Response:
            self.corrections.begin_anew(image)
            return _json({"state": self._note_state(image, None)})

        return await _writing(work)

    def draw(self, request: Request) -> Response:
        """Return the images that were drawn to score models on, in the order they are offered."""
        del request
        return _json({"drawn": self.corrections.draw.drawn})

    def taught(self, request: Request) -> Response:
        """Return what is taught, what was, and which model is in use."""
        del request
        return _json(self.teaching.status())

    def _doing(
        self, deed: Callable[[Mapping[str, Any]], None]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what does something about teaching, and tells how it stands then."""

        async def answer(request: Request) -> Response:
            asked = await _object(request, {"number", "seconds"})

            def work() -> Response:
                deed(asked)
                return _json(self.teaching.status())

            return await _writing(work)

        return answer

    def find(self, request: Request) -> ListedImage:
        """Return the image that a request names.

        Raises:
            RefusedError: There is none of this id.
        """
        image = self.gallery.find(request.path_params["image"])
        if image is None:
            raise RefusedError(404, "there is no image of this id")
        return image

    def _journal(self, image: ListedImage) -> Journal | None:
        return self.corrections.open(image) if self.corrections.has_journal(image) else None

    def _first(self, image: ListedImage, origin: Origin) -> MaskRaster:
        kept = self.predictions.get(image)
        size = kept.header.size
        raster = unpack_raster(kept.raster, size)
        if origin == "empty":
            return raster * 0
        if origin == "model":
            return raster
        return raster_of(self._labels(image, size).mask)

    def _labels(self, image: ListedImage, size: Size) -> Labels:
        """Return what the data say of an image of a size, or refuse what does not fit it."""
        labels = image.labels()
        if labels is None or labels.mask.shape != size:
            found = "none" if labels is None else "x".join(map(str, labels.mask.shape))
            raise DataError(
                f"{image.name}: the mask in the data is {found}, the image {size[0]}x{size[1]} "
                "(height x width); mend it, or begin with another"
            )
        return labels

    def _state_at_start(self, image: ListedImage) -> str:
        try:
            return self._state(image, self._journal(image))
        except DataError:  # whoever opens it hears of it
            return "draft"

    def _state(self, image: ListedImage, journal: Journal | None) -> str:
        is_changed = journal is not None and journal.is_changed
        if self.corrections.row(image) is not None:
            return "changed" if is_changed else "accepted"
        return "draft" if is_changed else "open"

    def _note_state(self, image: ListedImage, journal: Journal | None) -> str:
        state = self._state(image, journal)
        if state != self._states[image.id][0]:
            self._revision += 1
            self._states[image.id] = state, self._revision
        return state


def _journal_json(journal: Journal) -> dict[str, Any]:
    beginning = journal.beginning
    return {
        "origin": beginning.origin,
        "version": journal.version,
        "raster": beginning.raster,
        "applied": [_stroke_json(each) for each in journal.applied],
        "undone": [_stroke_json(each) for each in journal.undone],
    }


def _stroke_json(stroke: Any) -> dict[str, Any]:  # noqa: ANN401 - a Stroke
    tool, tiles, bits = stroke.tool, stroke.tiles, stroke.bits
    return {"tool": tool, "tiles": tiles, "bits": bits, "goes_on": stroke.goes_on}


async def _writing(work: Callable[[], Response]) -> Response:
    """Do what writes in a thread, and say in statuses what the page must tell apart."""
    try:
        return await run_in_threadpool(work)
    except ConflictError as error:
        raise RefusedError(409, str(error)) from error
    except StorageError as error:
        raise RefusedError(507, str(error)) from error


async def _object(request: Request, names: set[str]) -> dict[str, Any]:
    """Return the JSON object of a body, which holds nothing but what is known.

    Raises:
        RefusedError: It is none.
    """
    try:
        found = json.loads(await request.body())
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON ({error})") from error
    if not isinstance(found, dict) or set(found) - names:
        raise RefusedError(400, f"a JSON object of {', '.join(sorted(names))} is wanted")
    return found


def number_in(request: Request, name: str) -> int:
    """Return a whole number of the query; 0 where it is not given.

    Raises:
        RefusedError: It is no such number.
    """
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise RefusedError(400, f"{name}: a whole number is wanted")
    return int(text)


def _json(content: object) -> Response:
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return Response(body.encode("utf-8", "backslashreplace"), media_type="application/json")
