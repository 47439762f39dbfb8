"""What a client asks for, read from its query, its JSON or its form; what is unknown is refused."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from notan.errors import nearest
from notan.io.headers import guarded, identify
from notan.io.images import decode
from notan.serve.prompts import Prompts
from notan.web.answers import RefusedError
from notan.web.uploads import upload_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

    from notan.types import Mask

M = TypeVar("M", bound=BaseModel)

INITIAL = "the initial mask"
MOST_FIELDS, MOST_FIELD_BYTES = 16, 4096
"""Of a form, the file aside."""


def _decoded(text: Any) -> Any:  # noqa: ANN401 - what a client sends
    if not isinstance(text, str):
        raise ValueError("a text in base64 is wanted")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("it is no base64") from error


Base64 = Annotated[
    bytes,
    BeforeValidator(_decoded),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class MaskRequest(Prompts):
    """What stands in the JSON of ``POST /v1/masks``.

    Attributes:
        image: The bytes of an image file, in base64.
        mask: The bytes of a PNG of the image's size, in base64: an initial mask of 0 and 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Annotated[Base64, Field(min_length=1)]
    mask: Base64 | None = None


def read_json(content: bytes, kind: type[M]) -> M:
    """Read a body of JSON.

    Raises:
        RefusedError: It is no JSON, or not as it must be.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _explained(error, kind) from error


def read_prompts(query: Mapping[str, str]) -> Prompts:
    """Read ``points=x,y;x,y``, ``labels=1,0`` and ``box=x0,y0,x1,y1`` from a query.

    Raises:
        RefusedError: They are not as they must be.
    """
    given: dict[str, Any] = {}
    if "points" in query:
        given["points"] = [each.split(",") for each in query["points"].split(";")]
    if "labels" in query:
        given["labels"] = [
            int(each) if each in ("0", "1") else each for each in _parts(query["labels"])
        ]
    if "box" in query:
        given["box"] = _parts(query["box"])
    return validated(Prompts, given)


def _parts(text: str) -> list[str]:
    return text.split(",")


def validated(kind: type[M], given: Mapping[str, Any]) -> M:
    """Make what is asked for of what was sent.

    Raises:
        RefusedError: It is not as it must be.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _explained(error, kind) from error


def _explained(error: ValidationError, kind: type[BaseModel]) -> RefusedError:
    """Say what is wrong with the first thing that is; what was sent may be large or secret."""
    problem = error.errors(include_input=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return RefusedError(400, f"{where}: there is no such thing{_offer(where, kind)}")
    said = problem["msg"].removeprefix("Value error, ")
    return RefusedError(422, f"{where}: {said}" if where else said)


def _offer(name: str, kind: type[BaseModel]) -> str:
    return nearest(name, kind.model_fields)


def refuse_unknown(request: Request, known: Iterable[str]) -> dict[str, str]:
    """Return the query of a request.

    Raises:
        RefusedError: It holds a name that means nothing here, or one twice.
    """
    names = set(known)
    query = request.query_params.multi_items()
    for name, _ in query:
        if name not in names:
            raise RefusedError(400, f"{name[:40]}: there is no such thing{nearest(name, names)}")
    if len(dict(query)) != len(query):
        raise RefusedError(400, "the query holds a name twice")
    return dict(query)


async def read_form(request: Request, kind: type[M]) -> tuple[bytes, M]:
    """Read rembg's form: the field ``file``, and options in the form or in the query.

    Returns:
        The file's content, and the options.

    Raises:
        RefusedError: It is no such form, or holds what is not known.
    """
    query = refuse_unknown(request, kind.model_fields)
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise RefusedError(415, "a form is wanted (multipart/form-data) with an image in 'file'")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary or not (await request.body()).rstrip().endswith(b"--" + boundary + b"--"):
        # the parser would take it for whole, and leave the file of its last part open
        raise RefusedError(400, "the form is cut off, or names no boundary; send it again")
    form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RefusedError(422, "the form has no file in its field 'file'")
        given = {name: value for name, value in form.multi_items() if name != "file"}
        if len(given) + 1 != len(form.multi_items()) or given.keys() & query.keys():
            raise RefusedError(400, "the form or the query holds a name twice")
        return await file.read(), validated(kind, {**query, **given})
    finally:
        await form.close()


def read_initial(content: bytes, most_pixels: int) -> Mask:
    """Read an initial mask as this server sends its masks.

    Returns:
        bool, (height, width).

    Raises:
        RefusedError: It is another kind of image.
        DataError: It is none, or damaged.
    """
    upload_size(content, most_pixels)
    raster = guarded(lambda: decode(identify(io.BytesIO(content), INITIAL), INITIAL), INITIAL)
    values = raster.values
    if values.dtype == np.bool_ and values.ndim == 2:
        return values
    if values.ndim != 2 or raster.palette is not None or not np.isin(values, (0, 255)).all():
        raise RefusedError(
            422,
            f"{INITIAL} holds more than 0 and 255; wanted a grey PNG of these, as this server "
            "sends it",
        )
    return np.asarray(values == 255, np.bool_)
