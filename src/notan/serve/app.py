"""The application: routes, what stands before them, and what predicts for them."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response

from notan.serve import pages
from notan.serve.label_studio import add_label_studio
from notan.serve.metrics import TEXT_TYPE, Requests, metrics_text
from notan.serve.outputs import JSON, OFFERED, choose_output, encode
from notan.serve.prompts import Prompts, prompted
from notan.serve.rembg import RemoveOptions
from notan.serve.requests import (
    MaskRequest,
    read_form,
    read_initial,
    read_json,
    read_prompts,
    refuse_unknown,
)
from notan.serve.service import IMAGE, REFUSALS, ServeSettings, Service
from notan.version import __version__
from notan.web.answers import RefusedError, error_body, error_handlers
from notan.web.guard import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from notan.prediction.predictor import Prediction, Predictor
    from notan.serve.jobs import Reply
    from notan.serve.label_studio import LabelStudio
    from notan.types import Mask
    from notan.web.addresses import Address
    from notan.web.keys import Keys

HEALTH = "/healthz"
OPEN_PATHS = (HEALTH,)
"""What is answered without a token."""


def make_app(
    predictor: Predictor,
    address: Address,
    *,
    name: str = "model",
    keys: Keys | None = None,
    settings: ServeSettings | None = None,
    label_studio: LabelStudio | None = None,
) -> Requests:
    """Make the application of ASGI that serves a predictor.

    Args:
        predictor: What predicts.
        address: Where it will listen.
        name: What the model is called.
        keys: Who is let in; None: every program on this machine.
        settings: Limits.
        label_studio: Whom it is an ML backend for; None: nobody's.

    Returns:
        What counts requests, the guard behind it and the routes behind that.
    """
    settings = settings or ServeSettings()
    service = Service(predictor, name, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        teacher = None if label_studio is None else label_studio.teacher
        service.jobs.start()
        if teacher is not None:
            teacher.start(service.jobs)
        yield
        if teacher is not None:
            await to_thread.run_sync(teacher.stop)
        await to_thread.run_sync(service.jobs.stop)

    async def not_as_declared(_: Request, error: Exception) -> Response:
        problem = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        where = ".".join(map(str, problem.get("loc", ())))
        return Response(error_body(f"{where}: {problem.get('msg')}"), 422, media_type=JSON)

    app = FastAPI(
        title="notan serve",
        version=__version__,
        description="Foreground against background: an image in, its mask out.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
        exception_handlers={**error_handlers(), RequestValidationError: not_as_declared},
        redirect_slashes=False,
    )
    guard = Guard(app, address, keys=keys, open_paths=OPEN_PATHS, limits=settings.limits)
    counted = Requests(guard)
    _add_masks(app, service)
    _add_rembg(app, service)
    _add_facts(app, service, counted)
    if label_studio is not None:
        add_label_studio(app, service, label_studio)
    return counted


def _add_masks(app: FastAPI, service: Service) -> None:
    """Add ``POST /v1/masks``."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    schema = MaskRequest.model_json_schema()
    body = {"image/*": binary, "application/octet-stream": binary, JSON: {"schema": schema}}

    @app.post(
        "/v1/masks",
        summary="Predict the mask of an image",
        response_class=Response,
        responses={
            200: {
                "description": "At the image's own size: " + ", ".join(OFFERED) + ".",
                "content": {**IMAGE, JSON: {"schema": {"type": "object"}}},
            },
            **REFUSALS,
        },
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def masks(
        request: Request,
        points: Annotated[str | None, Query(description=f"x,y;x,y: {POINTS}")] = None,
        labels: Annotated[str | None, Query(description="1,0: of each point; 1 foreground")] = None,
        box: Annotated[str | None, Query(description="x0,y0,x1,y1: nothing outside it")] = None,
    ) -> Response:
        """Send the bytes of an image file as the body, or JSON with them in base64.

        Points, a box and an initial mask decide what is made of the model's probability: outside
        the box nothing is foreground; an initial mask is evidence, 9 to 1 on each pixel; a
        foreground point selects its region, a background point takes its region away.
        """
        del points, labels, box  # declared for the schema, and read where names are checked too
        query = refuse_unknown(request, ("points", "labels", "box"))
        kind = choose_output(request.headers.get("accept"))
        content, initial = await request.body(), None
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "multipart/form-data":
            raise RefusedError(
                415, "send the bytes of the file as the body; forms go to /api/remove"
            )
        prompts = read_prompts(query)
        if media_type == JSON:
            if query:
                raise RefusedError(400, "prompts stand in the JSON or in the query; leave one out")
            asked = await service.in_thread(partial(read_json, content, MaskRequest))
            content, prompts = asked.image, asked
            if asked.mask is not None:
                most = service.settings.most_pixels
                initial = await service.in_thread(partial(read_initial, asked.mask, most))
        encoder = partial(_encode, kind=kind, prompts=prompts, initial=initial)
        return await service.predict(request, content, encoder)


POINTS = "pixels of the upright image, x first"


def _encode(prediction: Prediction, *, kind: str, prompts: Prompts, initial: Mask | None) -> Reply:
    """Make the reply of a prediction, prompts and all, in the thread that predicted."""
    if not (prompts.points or prompts.box or initial is not None):
        return encode(kind, prediction, prediction.probability, prediction.mask)
    rule = prediction.postprocessing
    probability, mask = prompted(prediction.probability, rule, prompts, initial)
    return encode(kind, prediction, probability, mask)


def _add_rembg(app: FastAPI, service: Service) -> None:
    """Add rembg's ``POST /api/remove``."""
    schema = RemoveOptions.model_json_schema()
    file = {"file": {"type": "string", "format": "binary"}}
    form = {**schema, "properties": {**file, **schema["properties"]}, "required": ["file"]}

    @app.post(
        "/api/remove",
        summary="Cut the foreground out, as rembg does",
        response_class=Response,
        responses={200: {"description": "A PNG file.", "content": IMAGE}, **REFUSALS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": form}},
            }
        },
    )
    async def remove(request: Request) -> Response:
        """Send a form as rembg's clients do; they only change the address."""
        content, options = await read_form(request, RemoveOptions)
        if options.model not in (None, service.name):
            raise RefusedError(
                400, f"model: this server has one model, '{service.name}'; leave it out"
            )
        return await service.predict(request, content, options.encode)


def _add_facts(app: FastAPI, service: Service, counted: Requests) -> None:
    """Add the routes that say something of the server."""
    denied: dict[int | str, dict[str, Any]] = {
        status: REFUSALS[status] for status in (400, 401, 403)
    }

    @app.get("/v1/model", summary="Say which model this is, and what it was trained on")
    async def model() -> dict[str, Any]:
        return service.card()

    @app.get(HEALTH, summary="Say that the server lives, while it predicts too")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    text = {"text/plain": {"schema": {"type": "string"}}}

    @app.get(
        "/metrics",
        summary="Count requests, images and seconds for Prometheus",
        response_class=Response,
        responses={200: {"description": "Prometheus' text format.", "content": text}, **denied},
    )
    async def metrics() -> Response:
        said = metrics_text(counted, service.jobs, service.model_facts())
        return Response(said, media_type=TEXT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(pages.docs_page(app.openapi()), media_type="text/html; charset=utf-8")

    @app.get(pages.STYLE_PATH, include_in_schema=False)
    async def style() -> Response:
        return Response(pages.style(), media_type="text/css; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")
