"""What rembg's clients send, and what they get."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from notan.data.synthetic import DrawnSource
from notan.prediction.pixels import encode_png
from notan.serve.rembg import RemoveOptions
from other_tools import run_theirs

if TYPE_CHECKING:
    import httpx
    import numpy.typing as npt

    from notan.prediction.predictor import Predictor
    from web_server import Running

IMAGE = DrawnSource(1, size=(40, 48), seed=9)[0].image
FILE = {"file": ("photo.jpg", encode_png(IMAGE), "image/jpeg")}


def remove(server: Running, **more: Any) -> httpx.Response:
    return server.client.post("/api/remove", **{"files": FILE, **more})


def pixels(answer: httpx.Response) -> npt.NDArray[Any]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_the_cutout_has_the_images_colours_and_a_soft_edge(
    served: Running, predictor: Predictor
) -> None:
    cutout = pixels(remove(served))
    mask = predictor(IMAGE).mask
    assert (cutout[..., :3] == IMAGE).all()
    alpha = cutout[..., 3]
    near = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_erosion(
        mask, iterations=4, border_value=1
    )
    assert set(np.unique(alpha[~near])) <= {0, 255}
    assert ((alpha > 127) == mask).mean() > 0.97
    assert len(np.unique(alpha)) > 2


def test_only_the_mask_and_a_hard_one(served: Running) -> None:
    soft = pixels(remove(served, data={"om": "true"}))
    hard = pixels(remove(served, data={"om": "true", "ppm": "true"}))
    assert soft.shape == hard.shape == (40, 48)
    assert len(np.unique(soft)) > 2
    assert set(np.unique(hard)) == {0, 255}
    by_query = pixels(remove(served, params={"om": "true", "ppm": "1"}))
    assert (by_query == hard).all()


def test_a_colour_lies_behind_the_foreground(served: Running) -> None:
    plain, red = pixels(remove(served)), pixels(remove(served, data={"bgc": "255,0,0,255"}))
    assert (red[..., 3] == 255).all()
    assert (red[plain[..., 3] == 0] == (255, 0, 0, 255)).all()
    assert (red[plain[..., 3] == 255] == plain[plain[..., 3] == 255]).all()


def test_what_a_client_sends_by_default_is_taken(served: Running) -> None:
    usual = {"model": "small", "a": "false", "af": "240", "ab": "10", "ae": "10", "om": "false"}
    usual |= {"ppm": "false", "bgc": "", "dc": "false", "vm": "false"}
    assert (pixels(remove(served, data=usual)) == pixels(remove(served))).all()


@pytest.mark.parametrize(
    ("fields", "status", "wanted"),
    [
        ({"model": "u2net"}, 400, "one model, 'small'"),
        ({"model": "/etc/passwd"}, 400, "one model, 'small'"),
        ({"model": "../small.onnx"}, 400, "one model, 'small'"),
        ({"extras": '{"model_path": "/etc/passwd"}'}, 400, "extras: there is no such thing"),
        ({"url": "http://127.0.0.1:1/"}, 400, "url: there is no such thing"),
        ({"a": "true"}, 422, "a: this is not offered"),
        ({"dc": "1"}, 422, "dc: this is not offered"),
        ({"vm": "yes"}, 422, "vm: this is not offered"),
        ({"om": "perhaps"}, 422, "om: "),
        ({"bgc": "1,2,3"}, 422, "bgc"),
        ({"bgc": "1,2,3,256"}, 422, "bgc.3"),
        ({"bgc": "red"}, 422, "bgc"),
        ({"om": ["true", "false"]}, 400, "twice"),
        ({"om": "x" * 5000}, 400, ""),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_in_one_line(
    served: Running, fields: dict[str, Any], status: int, wanted: str
) -> None:
    answer = remove(served, data=fields)
    assert answer.status_code == status
    assert wanted in answer.json()["error"]
    assert "passwd" not in answer.text
    if not any(isinstance(value, list) for value in fields.values()) and len(str(fields)) < 999:
        assert remove(served, params=fields).status_code == status


def many(count: int) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
    return b"".join(part % number for number in range(count)) + b"--x--\r\n"


NAMED = b'--x\r\nContent-Disposition: form-data; name="file"%s\r\n\r\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x--",
        b"\x00" * 1000,
        many(1),
        many(10_000),
        NAMED % b"" + b"text\r\n--x--\r\n",
        NAMED % b"" + b"x" * 10_000_000 + b"\r\n--x--\r\n",
        NAMED % b'; filename="a"' + b"no image\r\n--x--\r\n",
        NAMED % b'; filename="a"' + b"\r\n--x--\r\n",
        (NAMED % b'; filename="a"' + b"x\r\n") * 2 + b"--x--\r\n",
        NAMED % b'; filename="../../etc/passwd"' + b"x",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
        b"--x\r\n" + b"X-Header: y\r\n" * 50_000 + b"\r\nx\r\n--x--\r\n",
        b"--x\r\nX-Header: " + b"y" * 1_000_000 + b"\r\n\r\nx\r\n--x--\r\n",
    ],
    ids=["empty", "no-part", "zeros", "one-field", "10000-parts", "text", "large-text", "no-image",
         "no-content", "two-files", "cut-off", "no-name", "many-headers", "long-header"],
)  # fmt: skip
def test_a_form_that_is_none_is_refused_soon(served: Running, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = served.client.post("/api/remove", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]
    assert served.client.get("/healthz").status_code == 200


def test_what_is_no_form_is_refused(served: Running) -> None:
    assert served.client.post("/api/remove", content=encode_png(IMAGE)).status_code == 415
    answer = served.client.get("/api/remove", params={"url": "http://127.0.0.1:1/x.jpg"})
    assert answer.status_code == 405


THEIRS = """
import asyncio, importlib, io, json, sys
import httpx, numpy as np, uvicorn
from click.testing import CliRunner
from PIL import Image

server = importlib.import_module("rembg.commands.s_command")

class Half:  # a model that knows that the upper half is foreground
    def predict(self, image, *args, **kwargs):
        mask = np.zeros(image.size[::-1], np.uint8)
        mask[: len(mask) // 2] = 255
        return [Image.fromarray(mask)]

found = []
uvicorn.run = lambda app, **_: found.append(app)
server.new_session = lambda *_, **__: Half()
CliRunner().invoke(server.s_command, ["--no-ui"], catch_exceptions=False)
request = json.load(sys.stdin)

async def ask():
    transport = httpx.ASGITransport(app=found[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://rembg") as client:
        image = bytes.fromhex(request["image"])
        for fields in request["fields"]:
            for place in ("data", "params"):
                answer = await client.post(
                    "/api/remove", files={"file": ("a.png", image)}, **{place: fields}
                )
                shown = None
                if answer.status_code == 200:
                    picture = Image.open(io.BytesIO(answer.content))
                    shown = [picture.format, picture.mode, picture.size]
                print(json.dumps([answer.status_code, answer.headers["content-type"], shown]))
    body = found[0].openapi()["components"]["schemas"]
    form = next(each for name, each in body.items() if name.startswith("Body"))
    print(json.dumps(sorted(form["properties"])))

asyncio.run(ask())
"""


def test_rembgs_own_server_answers_the_same_requests_alike(served: Running) -> None:
    """Of rembg's server, its model aside, which cannot be downloaded here."""
    fields = [{}, {"om": "true"}, {"ppm": "on"}, {"bgc": "1,2,3,255"}, {"om": "1", "ppm": "yes"},
              {"af": "300"}, {"ae": "-1"}, {"om": "perhaps"}, {"a": "no", "dc": "off"}]  # fmt: skip
    asked = {"image": encode_png(IMAGE).hex(), "fields": fields}
    *answers, form = map(json.loads, run_theirs("rembg", THEIRS, json.dumps(asked)).splitlines())
    ours = []
    for each in fields:
        for place in ("data", "params"):
            answer = remove(served, **{place: each})
            shown = None
            if answer.status_code == 200:
                picture = Image.open(io.BytesIO(answer.content))
                shown = [picture.format, picture.mode, list(picture.size)]
            ours.append([answer.status_code, answer.headers["content-type"], shown])
    # rembg heeds only the colour where a query comes with a form; ours heeds all of it
    of_query = [(their, our) for at, (their, our) in enumerate(zip(answers, ours, strict=True))
                if at % 2 == 0 or "om" not in fields[at // 2]]  # fmt: skip
    for their, our in of_query:
        assert our == their or (our[0], their[0]) == (422, 200)
    assert set(form) <= {"file", *RemoveOptions.model_fields}
