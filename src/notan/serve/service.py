"""A predictor with its queue, and how a request waits for its answer."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fastapi.responses import Response

from notan.serve.jobs import MOST_WAITING, WORKERS, Jobs, MaskJob, Reply
from notan.serve.outputs import JSON, PNG
from notan.version import __version__
from notan.web.answers import RefusedError
from notan.web.guard import BodyLimits
from notan.web.uploads import MOST_PIXELS, upload_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request
    from starlette.types import Receive

    from notan.prediction.predictor import Prediction, Predictor

SECONDS = 30.0
HEADER_THREADS = 2
"""That read headers of uploads; beside them the event loop goes on."""

GONE = 499
"""What nginx notes for a client that did not wait for its answer."""


@dataclass(frozen=True)
class ServeSettings:
    """The limits of a server; the defaults hold.

    Attributes:
        limits: Of bodies.
        most_pixels: Of one image, height times width.
        most_waiting: Images that wait; one more is told to come again.
        seconds: From a whole body to its answer.
        batch_size: As ``Jobs`` has it.
        workers: Threads that predict.
    """

    limits: BodyLimits = field(default_factory=BodyLimits)
    most_pixels: int = MOST_PIXELS
    most_waiting: int = MOST_WAITING
    seconds: float = SECONDS
    batch_size: int | None = None
    workers: int = WORKERS


class Service:
    """A predictor with its queue: what the routes ask.

    Attributes:
        jobs: The queue.
    """

    def __init__(self, predictor: Predictor, name: str, settings: ServeSettings) -> None:
        self.name, self.settings = name, settings
        self.jobs = Jobs(
            predictor,
            batch_size=settings.batch_size,
            most_waiting=settings.most_waiting,
            most_pixels=settings.most_pixels,
            workers=settings.workers,
        )
        self._limiter = CapacityLimiter(HEADER_THREADS)

    @property
    def predictor(self) -> Predictor:
        """What predicts now."""
        return self.jobs.predictor

    async def predict(
        self, request: Request, content: bytes, encoder: Callable[[Prediction], Reply]
    ) -> Response:
        """Answer with what is encoded of the prediction of an image.

        Args:
            request: Watched for its client's leaving.
            content: The bytes of the image's file.
            encoder: Makes the reply, in the thread that predicts.

        Raises:
            RefusedError: The image is too large, too many wait, or it took too long.
            DataError: It is no image.
        """
        reply = await self.reply(request.receive, content, encoder)
        if reply is None:
            return Response(status_code=GONE)
        return Response(reply.content, media_type=reply.media_type, headers={"vary": "accept"})

    async def reply(
        self, receive: Receive, content: bytes, encoder: Callable[[Prediction], Reply]
    ) -> Reply | None:
        """Return what is encoded of the prediction of an image; None: its client has gone.

        Raises:
            RefusedError: As ``predict``.
            DataError: Likewise.
        """
        until = asyncio.get_running_loop().time() + self.settings.seconds
        most = self.settings.most_pixels
        size = await self.in_thread(partial(upload_size, content, most))
        job = MaskJob(content, size, encoder)
        self.jobs.put(job)
        try:
            await self._wait(job, receive, until)
        finally:
            self.jobs.leave(job)
        return job.reply.result() if job.reply.done() else None

    async def in_thread(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the work returns
        """Do what may take long beside the event loop."""
        return await to_thread.run_sync(work, limiter=self._limiter)

    async def _wait(self, job: MaskJob, receive: Receive, until: float) -> None:
        """Wait for a reply, or until its client has gone.

        Raises:
            RefusedError: It took too long.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

        job.reply.add_done_callback(tell)
        waiting = {asyncio.ensure_future(done.wait()), asyncio.ensure_future(_gone(receive))}
        try:
            ended, _ = await asyncio.wait(
                waiting, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for each in waiting:
                each.cancel()
        if not ended:
            raise RefusedError(
                504,
                f"it took longer than {self.settings.seconds:g} seconds; send a smaller image, or "
                "send it when the server has less to do",
            )

    def model_facts(self) -> dict[str, str]:
        """Return what tells the model from others."""
        sha256 = self.predictor.card.sha256 if self.predictor.card else ""
        return {"name": self.name, "sha256": sha256, "version": __version__}

    def card(self) -> dict[str, Any]:
        """Return the card of the model file, without the places that it names, and the limits."""
        card = self.predictor.card
        return {
            "name": self.name,
            "most_bytes": self.settings.limits.most_bytes,
            "most_pixels": self.settings.most_pixels,
            "postprocessing": self.predictor.postprocessing.in_words(),
            "card": card.without_places().model_dump(mode="json") if card else None,
        }


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


ERROR = {
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "string"}},
                "required": ["error"],
            }
        }
    }
}
IMAGE: dict[str, Any] = {PNG: {"schema": {"type": "string", "format": "binary"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": about, **ERROR}
    for status, about in {
        400: "Something that is not known here, or nothing at all.",
        401: "A token is wanted.",
        403: "A foreign Host or Origin.",
        406: "Nothing in the Accept header is offered.",
        408: "The body came too slowly.",
        413: "Too many bytes or pixels.",
        415: "A kind of file that is not read.",
        422: "No image, or a damaged one; or prompts that do not fit it.",
        429: "As many images wait as may; the Retry-After header says when to come again.",
        503: "The server is being stopped, or its memory has run out.",
        504: "It took too long.",
    }.items()
}
