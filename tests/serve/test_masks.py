"""What comes back for an image: by Accept header, by prompts, and for what is no image."""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from damaged_files import bombs, damaged, foreign
from notan.data.synthetic import DrawnSource
from notan.prediction.pixels import encode_png
from notan.serve.outputs import choose_output
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    import httpx
    import numpy.typing as npt

    from notan.prediction.predictor import Predictor
    from web_server import Running

IMAGE = DrawnSource(1, size=(40, 48), seed=9)[0].image
JSON = "application/json"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def pixels(content: bytes) -> npt.NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(content)))


def ask(server: Running, accept: str = "image/png", **more: Any) -> httpx.Response:
    content = more.pop("content", encode_png(IMAGE))
    headers = {"accept": accept, **more.pop("headers", {})}
    return server.client.post("/v1/masks", content=content, headers=headers, **more)


def test_the_mask_is_the_predictors_own(served: Running, predictor: Predictor) -> None:
    answer = ask(served)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    mask = pixels(answer.content)
    wanted = predictor(IMAGE).mask
    assert 0 < wanted.sum() < wanted.size
    assert (mask == wanted * 255).all()
    assert answer.headers["vary"] == "accept"


def test_every_kind_of_answer_agrees_with_the_prediction(
    served: Running, predictor: Predictor
) -> None:
    wanted = predictor(IMAGE)
    cutout = pixels(ask(served, "image/png;output=cutout").content)
    assert (cutout == wanted.cutout()).all()
    probability = pixels(ask(served, "image/png; output=probability").content)
    assert np.abs(probability / 255 - wanted.probability).max() <= 0.5 / 255 + 1e-6
    found = ask(served, JSON).json()
    assert (found["height"], found["width"]) == (40, 48)
    assert found["expected_dice"] == pytest.approx(wanted.expected_dice, abs=1e-6)
    assert found["needs_review"] == wanted.needs_review
    assert found["foreground_fraction"] == pytest.approx(wanted.foreground_fraction, abs=1e-6)
    assert (coco.decode(found["rle"]) == wanted.mask).all()
    runs = coco.merge(coco.frPyObjects(found["polygons"]["segmentation"], 40, 48))
    assert (coco.decode(runs) == wanted.mask).all()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "mask"), ("", "mask"), ("*/*", "mask"), ("image/*", "mask"), ("image/png", "mask"),
        ("IMAGE/PNG;output=cutout", "cutout"), ('image/png; output="cutout"', "cutout"),
        ("application/json", "json"), ("application/*", "json"),
        ("application/json;q=0.4, image/png;output=probability;q=0.9", "probability"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "mask"),
        ("application/json, image/png", "json"), ("image/png;q=0, application/json;q=0.1", "json"),
    ],
)  # fmt: skip
def test_the_accept_header_chooses(accept: str | None, kind: str) -> None:
    assert choose_output(accept) == kind


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/jpeg", "image/png;output=mesk", "image/png;q=0", ";;", "a" * 999],
)
def test_what_is_not_offered_is_refused_with_what_is(accept: str) -> None:
    with pytest.raises(RefusedError, match=r"output=cutout.*application/json") as caught:
        choose_output(accept)
    assert caught.value.status == 406


def test_points_and_a_box_stand_in_the_query_or_in_json(served: Running) -> None:
    query = {"points": "20,20;5.5,3", "labels": "1,0", "box": "4,4,40,30"}
    by_query = ask(served, JSON, params=query).json()
    body = {
        "image": base64.b64encode(encode_png(IMAGE)).decode(),
        "points": [[20, 20], [5.5, 3]],
        "labels": [1, 0],
        "box": [4, 4, 40, 30],
    }
    headers = {"content-type": JSON}
    by_json = ask(served, JSON, content=json.dumps(body), headers=headers).json()
    assert by_query == by_json
    mask = coco.decode(by_query["rle"]).astype(bool)
    assert mask[20, 20]
    assert not mask[:4].any()
    assert not mask[:, 40:].any()


def test_an_initial_mask_moves_the_probability_its_way(served: Running) -> None:
    initial = np.zeros((40, 48), np.uint8)
    initial[:, :24] = 255
    body = {name: base64.b64encode(encode_png(each)).decode() for name, each in
            (("image", IMAGE), ("mask", initial))}  # fmt: skip
    accept, headers = "image/png;output=probability", {"content-type": JSON}
    after = pixels(ask(served, accept, content=json.dumps(body), headers=headers).content)
    before = pixels(ask(served, accept).content)
    assert (after[:, :24] >= before[:, :24]).all()
    assert (after[:, 24:] <= before[:, 24:]).all()
    assert (after != before).any()


SMALL_MASK = base64.b64encode(encode_png(np.zeros((9, 9), np.uint8))).decode()
IN_BASE64 = base64.b64encode(encode_png(IMAGE)).decode()


@pytest.mark.parametrize(
    ("body", "status", "wanted"),
    [
        (b"", 422, "JSON"),
        (b"{", 422, "JSON"),
        (b"[]", 422, "object"),
        (b"{}", 422, "image: "),
        ({"image": 5}, 422, "image: a text in base64"),
        ({"image": "!" * 99}, 422, "image: it is no base64"),
        ({"image": ""}, 422, "image: "),
        ({"image": "AAAA"}, 422, "the image that was sent"),
        ({"image": IN_BASE64, "url": "http://evil.test/"}, 400, "url: there is no such thing"),
        ({"image": IN_BASE64, "points": [[1]]}, 422, "points.0"),
        ({"image": IN_BASE64, "points": [[-1, 0]]}, 422, "points.0"),
        ({"image": IN_BASE64, "points": [[48, 0]]}, 422, "outside the image of 40x48"),
        ({"image": IN_BASE64, "points": [[1, 1]] * 65}, 422, "points: "),
        ({"image": IN_BASE64, "points": [[1, 1]], "labels": [1, 0]}, 422, "2 labels for 1 points"),
        ({"image": IN_BASE64, "points": [[1, 1]], "labels": [2]}, 422, "labels.0"),
        ({"image": IN_BASE64, "box": [9, 9, 9, 20]}, 422, "the box is empty"),
        ({"image": IN_BASE64, "box": [50, 9, 60, 20]}, 422, "the box lies outside"),
        ({"image": IN_BASE64, "mask": IN_BASE64}, 422, "holds more than 0 and 255"),
        ({"image": IN_BASE64, "mask": SMALL_MASK}, 422, "the initial mask is 9x9"),
        (b'{"image": "AAAA", "points": [[NaN, 1]]}', 422, "points"),
        (b"[" * 100_000, 422, ""),
    ],
)  # fmt: skip
def test_json_that_is_not_as_it_must_be_is_one_line(
    served: Running, body: Any, status: int, wanted: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = ask(served, content=content, headers={"content-type": JSON})
    assert answer.status_code == status
    assert wanted in answer.json()["error"]
    assert len(answer.json()["error"]) < 400


@pytest.mark.parametrize(
    ("query", "status", "wanted"),
    [
        ("points=1", 422, "points.0"), ("points=", 422, "points.0"),
        ("points=a,b", 422, "points.0"), ("points=1,1&labels=1,1", 422, "2 labels"),
        ("labels=1", 422, "1 labels for 0 points"),
        ("points=1,1&labels=01", 422, "labels.0"), ("box=1,2,3", 422, "box"),
        ("points=inf,1", 422, "points.0"), ("box=0,0,nan,5", 422, "box"),
        ("pionts=1,1", 400, "did you mean 'points'"), ("model=/etc/passwd", 400, "no such thing"),
        ("url=http://evil.test", 400, "no such thing"), ("box=1,1,2,2&box=1,1,2,2", 400, "twice"),
    ],
)  # fmt: skip
def test_a_query_that_is_not_as_it_must_be_is_one_line(
    served: Running, query: str, status: int, wanted: str
) -> None:
    answer = served.client.post(f"/v1/masks?{query}", content=encode_png(IMAGE))
    assert answer.status_code == status
    assert wanted in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"", "image/png", 400),
        (b"no image", "image/png", 422),
        (encode_png(IMAGE)[:200], "image/png", 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 415),
        (encode_png(np.zeros((400, 300), np.uint8)), "image/png", 413),
        (b"x", "multipart/form-data; boundary=x", 415),
    ],
)
def test_what_is_no_image_or_too_large_a_one_is_refused(
    served: Running, content: bytes, media_type: str, status: int
) -> None:
    answer = ask(served, content=content, headers={"content-type": media_type})
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_images_of_every_mode_are_predicted_as_files_are(
    served: Running, predictor: Predictor, mode: str
) -> None:
    file = io.BytesIO()
    image = Image.fromarray(IMAGE)
    if mode == "I;16":
        image = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(file, "TIFF")
    mask = pixels(ask(served, content=file.getvalue()).content)
    assert (mask == predictor(file.getvalue()).mask * 255).all()


def test_damaged_foreign_and_malicious_files_never_end_the_server(served: Running) -> None:
    statuses: dict[int, int] = {}
    sent = [*itertools.islice(damaged(), 0, None, 5), *foreign(), *bombs()]
    for name, content in sent:
        answer = ask(served, content=content)
        assert answer.status_code in (200, 400, 413, 415, 422), (name, answer.text)
        if answer.status_code != 200:
            assert "\n" not in answer.json()["error"], name
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    assert served.client.get("/healthz").status_code == 200
    assert statuses[200] > 5
    assert statuses[422] > 50
