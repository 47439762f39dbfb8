"""Label Studio's ML backend protocol: masks as brushes, smart clicks, and training on annotations.

Source: label_studio/ml/api_connector.py of Label Studio 1.23.2, which asks ``/health``, ``/setup``,
    ``/predict`` and ``/webhook``; and its editor, which sends a smart click as a region with
    ``is_positive``. Differs from Label Studio's own backends: what a request holds beside that
    (host names, passwords, an access token) is neither used nor kept, and images are fetched from
    the one Label Studio that was named at the start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from xml.etree.ElementTree import ParseError

from anyio import CapacityLimiter, to_thread
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from notan.data.annotations.label_studio import encode_brush, paint_results
from notan.errors import DataError, NotanError
from notan.serve.jobs import Reply
from notan.serve.outputs import JSON
from notan.serve.prompts import BACKGROUND, FOREGROUND, MOST_POINTS, Prompts, prompted
from notan.serve.requests import read_json, validated
from notan.serve.service import GONE, REFUSALS
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notan.prediction.predictor import Prediction
    from notan.serve.origin import Origin
    from notan.serve.service import Service
    from notan.serve.teaching import Retrainer
    from notan.types import Mask, Size

logger = logging.getLogger("notan")

MOST_CONFIG = 65536
"""Characters of a labelling setup."""

MOST_TASKS = 10_000
MOST_BRUSH = 1_000_000
"""Bytes of a brush that a smart click brings along; each run of it takes a microsecond or two."""

SECONDS = 90.0
"""Of one call; Label Studio waits for 100. What is left by then has no prediction in it."""

FETCHING = 4
"""Threads that wait for images of Label Studio."""

START_TRAINING = "START_TRAINING"
COUNTED = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
"""Actions of a webhook after which there is more to learn from; of one annotation several come."""


@dataclass(frozen=True)
class LabelStudio:
    """What the routes of Label Studio work with.

    Attributes:
        origin: Where its images come from.
        label: The name of the foreground in its setup; None: there is one label.
        teacher: Trains on annotations; None: nobody does.
    """

    origin: Origin
    label: str | None = None
    teacher: Retrainer | None = None


class Control(NamedTuple):
    """Where a brush stands in a labelling setup.

    Attributes:
        from_name: The name of the brush.
        to_name: The name of the image.
        label: The label that means foreground.
        value: Under which key a task has its image.
    """

    from_name: str
    to_name: str
    label: str
    value: str


class Task(BaseModel):
    """A task, of which only the image matters."""

    data: dict[str, Any]


class Context(BaseModel):
    """What a person has drawn with smart tools."""

    result: Annotated[list[dict[str, Any]], Field(max_length=MOST_POINTS)] = []


class PredictParameters(BaseModel):
    """What stands beside the tasks."""

    context: Context | None = None


class PredictRequest(BaseModel):
    """What ``POST /predict`` is asked; Label Studio sends more, which is not read."""

    tasks: Annotated[list[Task], Field(min_length=1, max_length=MOST_TASKS)]
    label_config: Annotated[str, Field(max_length=MOST_CONFIG)]
    params: PredictParameters = PredictParameters()


class SetupRequest(BaseModel):
    """What ``POST /setup`` is asked."""

    label_config: Annotated[str, Field(max_length=MOST_CONFIG, alias="schema")]


class Numbered(BaseModel):
    """What a webhook tells of a project or an annotation: which it is."""

    id: int


class WebhookRequest(BaseModel):
    """What ``POST /webhook`` is told: something happened in a project."""

    action: str
    project: Numbered | None = None
    annotation: Numbered | list[Numbered] | None = None


def read_control(label_config: str, label: str | None) -> Control:
    """Find the brush of a labelling setup.

    Args:
        label_config: XML.
        label: The label that means foreground; None: there is only one.

    Raises:
        RefusedError: It is no such setup, or it is open which label is meant.
    """
    try:
        root = fromstring(label_config, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise RefusedError(422, f"the labelling setup is no XML ({error})") from error
    brush = next(root.iter("BrushLabels"), None)
    if brush is None:
        raise RefusedError(
            422, "the labelling setup has no brush; wanted <BrushLabels name=... toName=...>"
        )
    labels = [each.get("value", "") for each in brush.iter("Label")]
    if label is None and len(labels) != 1:
        raise RefusedError(
            422,
            f"the brush has {len(labels)} labels, and it is open which is the foreground; start "
            "the server with --label NAME",
        )
    if label is not None and label not in labels:
        raise RefusedError(422, f"the brush has no label '{label}', which --label names")
    to_name = brush.get("toName", "")
    image = next((each for each in root.iter("Image") if each.get("name") == to_name), None)
    value = "" if image is None else image.get("value", "")
    if not brush.get("name") or not value.startswith("$"):
        raise RefusedError(
            422,
            "the brush is not joined to an image; wanted <BrushLabels name=... toName=NAME> and "
            "<Image name=NAME value=$KEY>",
        )
    return Control(str(brush.get("name")), to_name, label or labels[0], value[1:])


def prompts_of(
    results: Sequence[Mapping[str, Any]], label: str, size: Size
) -> tuple[Prompts, Mask | None]:
    """Return what smart tools ask for: points, a box, and a mask to begin with.

    Args:
        results: Regions as the editor sends them; places are percent of the image.
        label: That means foreground; what has another says what is background.
        size: (height, width) of the image.

    Raises:
        RefusedError: A region is damaged.
        DataError: A brush is.
    """
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    given: dict[str, Any] = {}
    brushes = []
    for result in results:
        value, kind = result.get("value"), str(result.get("type", ""))
        if not isinstance(value, dict):
            raise RefusedError(422, "a region of the context has no value")
        if kind in ("keypointlabels", "keypoint"):
            points.append((_at(value, "x", size[1]), _at(value, "y", size[0])))
            named = value.get(kind) or value.get("labels") or [label]
            is_wanted = bool(result.get("is_positive", True)) and label in named
            labels.append(FOREGROUND if is_wanted else BACKGROUND)
        elif kind in ("rectanglelabels", "rectangle"):
            x, y = _at(value, "x", size[1]), _at(value, "y", size[0])
            right, lower = _share(value, "width") * size[1], _share(value, "height") * size[0]
            given["box"] = (x, y, min(x + right, size[1]), min(y + lower, size[0]))
        elif kind == "brushlabels" and len(value.get("rle", ())) <= MOST_BRUSH:
            brushes.append(result)
    initial = paint_results(brushes, label, size, "the context") if brushes else None
    return validated(Prompts, {"points": points, "labels": labels, **given}), initial


def _at(value: Mapping[str, Any], key: str, side: int) -> float:
    """Return a place in pixels; Label Studio lets one be clicked on the very edge."""
    return min(max(_share(value, key) * side, 0.0), math.nextafter(side, 0.0))


def _share(value: Mapping[str, Any], key: str) -> float:
    found = value.get(key)
    if not isinstance(found, int | float) or not math.isfinite(found):
        raise RefusedError(422, f"a region of the context has no number as its {key}")
    return found / 100


def prediction_of(
    prediction: Prediction, *, control: Control, version: str, context: Context | None
) -> Reply:
    """Return a prediction as Label Studio takes it, in JSON.

    The score is the expected Dice, so that its order by score brings first what the model is least
    sure of.

    Raises:
        RefusedError: What a person drew cannot be followed.
        DataError: Likewise.
    """
    probability, mask = prediction.probability, prediction.mask
    height, width = mask.shape
    if context is not None and context.result:
        asked, initial = prompts_of(context.result, control.label, (height, width))
        probability, mask = prompted(probability, prediction.postprocessing, asked, initial)
    score = round(prediction.postprocessing.expected_dice(probability, mask), 6)
    region = {
        "id": secrets.token_hex(5),
        "type": "brushlabels",
        "from_name": control.from_name,
        "to_name": control.to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": {"format": "rle", "brushlabels": [control.label]},
    }
    if mask.any():
        region["value"]["rle"] = encode_brush(mask)
    found = {"model_version": version, "score": score, "result": [region] if mask.any() else []}
    return Reply(json.dumps(found, separators=(",", ":")).encode(), JSON)


class MLBackend:
    """Answers Label Studio."""

    def __init__(self, service: Service, studio: LabelStudio) -> None:
        self.service, self.studio = service, studio
        self._limiter = CapacityLimiter(FETCHING)

    @property
    def version(self) -> str:
        """What tells the model from others: Label Studio asks again for what an older one said."""
        return f"{self.service.name}-{self.service.model_facts()['sha256'][:8]}"

    async def predict(self, request: Request, asked: PredictRequest) -> Response:
        """Predict tasks one after another.

        One that cannot be predicted has an empty list for its predictions, and the others stand.

        Raises:
            NotanError: None could be predicted; the first reason.
        """
        control = read_control(asked.label_config, self.studio.label)
        encoder = partial(
            prediction_of, control=control, version=self.version, context=asked.params.context
        )
        found: list[bytes] = []
        first: NotanError | None = None
        until = asyncio.get_running_loop().time() + SECONDS
        for number, task in enumerate(asked.tasks, start=1):
            if asyncio.get_running_loop().time() > until:
                first = first or RefusedError(504, f"it took longer than {SECONDS:g} seconds")
                left = len(asked.tasks) - number + 1
                logger.warning("Label Studio: no time was left for %s tasks; ask again", left)
                found += [b"[]"] * left
                break
            try:
                reply = await self._predict(request, task, control, encoder)
            except NotanError as error:
                logger.warning("Label Studio: a task has no prediction: %s", error)
                first = first or error
                found.append(b"[]")
                continue
            if reply is None:
                return Response(status_code=GONE)
            found.append(reply.content)
        if first is not None and all(each == b"[]" for each in found):
            raise first
        return Response(b'{"results":[' + b",".join(found) + b"]}", media_type=JSON)

    async def _predict(
        self, request: Request, task: Task, control: Control, encoder: Callable[[Prediction], Reply]
    ) -> Reply | None:
        if control.value not in task.data:
            raise DataError(f"a task has no '{control.value}', which is its image in the setup")
        fetch = partial(self.studio.origin.image, task.data[control.value])
        content = await to_thread.run_sync(fetch, limiter=self._limiter)
        return await self.service.reply(request.receive, content, encoder)

    def told(self, said: WebhookRequest) -> str:
        """Heed a webhook: ``training``, ``counted`` or ``ignored``.

        Raises:
            RefusedError: It wants a training, and there is none.
        """
        teacher = self.studio.teacher
        if teacher is None or said.project is None or said.project.id != teacher.project:
            if said.action == START_TRAINING:
                raise RefusedError(
                    409, "this server trains on no such project; start it with --train-project N"
                )
            return "ignored"
        if said.action == START_TRAINING:
            teacher.ask()
            return "training"
        if said.action in COUNTED:
            given = said.annotation or []
            for each in given if isinstance(given, list) else [given]:
                teacher.count(each.id)
            return "counted"
        return "ignored"


ANSWERS: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    409: {**REFUSALS[400], "description": "Nobody trains on this project."},
    502: {**REFUSALS[400], "description": "Label Studio did not send what was needed."},
}


def _taking(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a body of JSON that FastAPI does not read itself."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(found: Any) -> Any:  # noqa: ANN401 - any part of a schema
        if isinstance(found, dict):
            name = str(found.get("$ref", "")).rpartition("/")[2]
            return whole(parts[name]) if name else {key: whole(each) for key, each in found.items()}
        return [whole(each) for each in found] if isinstance(found, list) else found

    return {"requestBody": {"required": True, "content": {JSON: {"schema": whole(schema)}}}}


def add_label_studio(app: FastAPI, service: Service, studio: LabelStudio) -> None:
    """Add the routes that Label Studio asks."""
    backend = MLBackend(service, studio)

    @app.get("/health", summary="Say to Label Studio that the model is up")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "notan"}

    @app.post(
        "/setup",
        summary="Take Label Studio's labelling setup",
        responses=ANSWERS,
        openapi_extra=_taking(SetupRequest),
    )
    async def setup(request: Request) -> dict[str, str]:
        asked = read_json(await request.body(), SetupRequest)
        read_control(asked.label_config, studio.label)
        return {"model_version": backend.version}

    @app.post(
        "/predict",
        summary="Predict tasks of Label Studio",
        response_class=Response,
        responses={
            200: {"description": "One a task.", "content": {JSON: {"schema": {"type": "object"}}}},
            **ANSWERS,
        },
        openapi_extra=_taking(PredictRequest),
    )
    async def predict(request: Request) -> Response:
        asked = await service.in_thread(partial(read_json, await request.body(), PredictRequest))
        return await backend.predict(request, asked)

    @app.post(
        "/webhook",
        summary="Hear of annotations from Label Studio",
        responses=ANSWERS,
        openapi_extra=_taking(WebhookRequest),
    )
    async def webhook(request: Request) -> dict[str, str]:
        said = await service.in_thread(partial(read_json, await request.body(), WebhookRequest))
        return {"status": backend.told(said)}
