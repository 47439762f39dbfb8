"""Label Studio's ML backend protocol, with what it sends and with what nobody should."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from notan.data.annotations.label_studio import decode_brush, encode_brush
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError
from notan.prediction.pixels import encode_png
from notan.serve import make_app
from notan.serve.label_studio import LabelStudio, read_control
from notan.serve.origin import Origin
from notan.web.answers import RefusedError
from other_tools import run_theirs
from stand_in_label_studio import ACCESS, OLDER, PERSONAL, StandIn, stand_in
from web_server import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    import numpy.typing as npt

    from notan.prediction.predictor import Predictor
    from web_server import Running

CONFIG = """<View><Image name="picture" value="$image"/>
<BrushLabels name="tag" toName="picture"><Label value="cell"/></BrushLabels>
<KeyPointLabels name="k" toName="picture" smart="true"><Label value="cell"/></KeyPointLabels>
</View>"""
IMAGES = [each.image for each in DrawnSource(3, size=(40, 48), seed=9)]
PATH = "/data/upload/1/a1b2c3d4-cell%201.png"


@pytest.fixture(scope="module")
def studio() -> Iterator[StandIn]:
    with stand_in() as found:
        for number, image in enumerate(IMAGES):
            found.files[f"/data/upload/1/{number}.png"] = encode_png(image)
        found.files[PATH] = found.files["/data/local-files/?d=a/b.png"] = encode_png(IMAGES[0])
        found.files["/data/upload/1/damaged.png"] = encode_png(IMAGES[0])[:90]
        found.files["/data/upload/1/large.png"] = bytes(60_000)
        found.files["/data/upload/1/moved.png"] = "http://127.0.0.1:1/x.png"
        yield found


@pytest.fixture(scope="module")
def backend(predictor: Predictor, studio: StandIn) -> Iterator[Running]:
    theirs = LabelStudio(Origin(studio.url, OLDER, 50_000))
    with running(
        lambda address: make_app(predictor, address, name="small", label_studio=theirs)
    ) as server:
        yield server


def asked(*images: object, context: object = None, **more: object) -> dict[str, Any]:
    """What Label Studio 1.23.2 sends."""
    return {
        "tasks": [{"id": at, "data": {"image": each}} for at, each in enumerate(images)],
        "project": "7.1698",
        "label_config": CONFIG,
        "params": {"login": None, "password": "canary", "context": context},
        **more,
    }


def predict(server: Running, *images: object, **more: object) -> httpx.Response:
    return server.client.post("/predict", json=asked(*images, **more))


def mask_of(prediction: dict[str, Any]) -> npt.NDArray[np.bool_]:
    region = prediction["result"][0]
    assert (region["type"], region["from_name"], region["to_name"]) == (
        "brushlabels", "tag", "picture"
    )  # fmt: skip
    assert region["value"]["brushlabels"] == ["cell"]
    return decode_brush(
        region["value"]["rle"], (region["original_height"], region["original_width"])
    )


def test_it_is_up_and_takes_a_setup_that_has_a_brush(backend: Running) -> None:
    assert backend.client.get("/health").json()["status"] == "UP"
    setup = {"project": "7.1", "schema": CONFIG, "hostname": "http://h", "access_token": "canary",
             "extra_params": None}  # fmt: skip
    version = backend.client.post("/setup", json=setup).json()["model_version"]
    assert version.startswith("small-")
    setup["schema"] = "<View><Image name='a' value='$b'/></View>"
    answer = backend.client.post("/setup", json=setup)
    assert answer.status_code == 422
    assert "has no brush" in answer.json()["error"]


def test_tasks_are_predicted_in_their_order_as_the_model_says(
    backend: Running, predictor: Predictor
) -> None:
    answer = predict(backend, *(f"/data/upload/1/{number}.png" for number in range(3)))
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    for found, image in zip(results, IMAGES, strict=True):
        ours = predictor(image)
        assert (mask_of(found) == ours.mask).all()
        assert found["score"] == pytest.approx(ours.expected_dice, abs=1e-5)
        assert found["model_version"].startswith("small-")


def test_a_task_that_cannot_be_predicted_has_no_prediction_and_the_others_do(
    backend: Running, caplog: pytest.LogCaptureFixture
) -> None:
    results = predict(backend, "/data/upload/1/none.png", PATH).json()["results"]
    assert results[0] == []
    assert mask_of(results[1]).any()
    assert "answered 404" in caplog.text
    alone = predict(backend, "/data/upload/1/damaged.png")
    assert alone.status_code == 422


def point(x: float, y: float, **more: object) -> dict[str, Any]:
    return {"type": "keypointlabels", "value": {"x": x, "y": y, "labels": ["cell"]}, **more}


def test_a_smart_click_selects_and_a_negative_one_takes_away(
    backend: Running, predictor: Predictor
) -> None:
    mask = predictor(IMAGES[0]).mask
    row, column = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
    x, y = 100 * (column + 0.5) / 48, 100 * (row + 0.5) / 40
    clicked = {"result": [point(x, y, is_positive=True)]}
    chosen = mask_of(predict(backend, PATH, context=clicked).json()["results"][0])
    assert chosen[row, column]
    assert (chosen & ~mask).sum() == 0
    clicked = {"result": [point(x, y, is_positive=False)]}
    taken = predict(backend, PATH, context=clicked).json()["results"][0]
    assert not taken["result"] or not mask_of(taken)[row, column]


def test_a_box_bounds_and_a_brush_is_evidence(backend: Running) -> None:
    box = {"type": "rectanglelabels", "value": {"x": 50, "y": 0, "width": 50, "height": 100}}
    found = mask_of(predict(backend, PATH, context={"result": [box]}).json()["results"][0])
    assert not found[:, :24].any()
    drawn = np.zeros((40, 48), np.bool_)
    drawn[:5, :5] = True
    brush = {
        "type": "brushlabels", "original_width": 48, "original_height": 40,
        "value": {"rle": encode_brush(drawn), "brushlabels": ["cell"]},
    }  # fmt: skip
    plain = predict(backend, PATH).json()["results"][0]
    shifted = predict(backend, PATH, context={"result": [brush]}).json()["results"][0]
    assert shifted["score"] != plain["score"]


@pytest.mark.parametrize(
    ("region", "wanted"),
    [
        ({"type": "keypointlabels"}, "has no value"),
        (point(50, 50) | {"value": {"x": "a", "y": 1}}, "no number as its x"),
        (point(50, 50) | {"value": {"x": 1}}, "no number as its y"),
        ({"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 0, "height": 0}}, "empty"),
        (
            {"type": "brushlabels", "value": {"rle": [1, 2], "brushlabels": ["cell"]}},
            "end too soon",
        ),
        ({"type": "brushlabels", "value": {"rle": "x", "brushlabels": ["cell"]}}, "a list"),
    ],
)
def test_a_damaged_region_is_refused(backend: Running, region: dict[str, Any], wanted: str) -> None:
    region = {"original_width": 48, "original_height": 40, **region}
    answer = predict(backend, PATH, context={"result": [region]})
    assert answer.status_code == 422
    assert wanted in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"tasks": []}', b'{"tasks": [{"data": 3}]}', b"\x00" * 100,
        b'{"tasks": [{"data": {}}], "label_config": 3}',
        json.dumps(asked(PATH, label_config="x" * 70_000)).encode(),
        json.dumps(asked(PATH, context={"result": [point(1, 1)] * 65})).encode(),
        b'{"tasks": ' + b"[" * 100_000,
    ],
    ids=["none", "list", "cut", "no-task", "no-data", "zeros", "no-config", "long", "many", "deep"],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(backend: Running, body: bytes) -> None:
    for path in ("/predict", "/setup", "/webhook"):
        answer = backend.client.post(path, content=body)
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]


BOMB = '<!DOCTYPE a [<!ENTITY b "bb">]><View>&b;</View>'
TWO = CONFIG.replace('<Label value="cell"/></Br', '<Label value="cell"/><Label value="x"/></Br')


@pytest.mark.parametrize(
    ("config", "label", "wanted"),
    [
        ("<View>", None, "no XML"),
        (BOMB, None, "no XML"),
        (CONFIG.replace("$image", "image"), None, "not joined to an image"),
        (CONFIG.replace('toName="picture"', 'toName="other"'), None, "not joined to an image"),
        (TWO, None, "2 labels"),
        (CONFIG, "nucleus", "no label 'nucleus'"),
    ],
)
def test_a_setup_that_does_not_say_what_is_meant_is_refused(
    config: str, label: str | None, wanted: str
) -> None:
    with pytest.raises(RefusedError, match=wanted):
        read_control(config, label)
    assert read_control(TWO, "x") == ("tag", "picture", "x", "image")


HERE = "{url}/data/upload/1/0.png"
ELSEWHERE = (
    "http://127.0.0.1:1/data/upload/1/0.png", "//127.0.0.1:1/data/upload/1/0.png",
    "https://{place}/data/upload/1/0.png", "http://{place}@127.0.0.1:1/data/upload/1/0.png",
    "http://u:p@{place}/data/upload/1/0.png", "http://{place}.evil.test/data/upload/1/0.png",
    "http://169.254.169.254/data/upload/1/0.png", "file:///etc/passwd", "gopher://x/1",
    "ftp://{place}/data/upload/1/0.png", "http://[::1", "s3://bucket/0.png",
    "\\\\host\\share\\0.png",
)  # fmt: skip
NOT_KEPT = (
    "", "/", "/etc/passwd", "/api/users", "/data/upload/1/", "/data/upload/../api/users",
    "/data/upload/1/../2/0.png", "/data/upload/1/%2e%2e/0.png", "/data/upload/%2e%2e/0.png",
    "/data/upload/1/..%2f0.png", "/data/upload/1/a\\b.png", "/data/upload/1/0.png?x=1",
    "/data/upload/1/a%00.png", "/data/upload/1/a%0d%0aX:%20y.png", "/data/local-files/?d=../x.png",
    "/data/local-files/?d=/etc/passwd", "/data/local-files/?d=a&d=b", "/data/local-files/?e=a",
    "/data/local-files/", "/data/local-files/x?d=a", "x" * 5000, None, 3, ["a"], {"url": "x"},
)  # fmt: skip


@pytest.mark.parametrize("reference", [*ELSEWHERE, *NOT_KEPT])
def test_nothing_but_label_studios_own_files_is_asked_for(
    backend: Running, studio: StandIn, reference: object
) -> None:
    before = len(studio.asked)
    if isinstance(reference, str):
        place = studio.url.removeprefix("http://")
        reference = reference.format(place=place, url=studio.url)
    answer = predict(backend, reference)
    assert answer.status_code == 422
    assert "wanted a file that" in answer.json()["error"]
    assert len(studio.asked) == before


@pytest.mark.parametrize("reference", [PATH, HERE, "/data/local-files/?d=a/b.png"])
def test_label_studios_own_files_are_fetched_with_its_token(
    backend: Running, studio: StandIn, reference: str
) -> None:
    assert predict(backend, reference.format(url=studio.url)).status_code == 200
    assert studio.asked[-1][2] == f"Token {OLDER}"


def test_redirects_are_not_followed_and_large_files_not_taken(backend: Running) -> None:
    answer = predict(backend, "/data/upload/1/moved.png")
    assert (answer.status_code, "answered 302" in answer.text) == (502, True)
    answer = predict(backend, "/data/upload/1/large.png")
    assert (answer.status_code, "more than 50,000 bytes" in answer.text) == (413, True)


def test_a_personal_token_is_exchanged_and_again_when_it_has_run_out(studio: StandIn) -> None:
    origin = Origin(studio.url, PERSONAL, 50_000)
    studio.accepted.discard(f"Bearer {ACCESS}")
    assert origin.image(PATH) == studio.files[PATH]
    assert studio.asked[-1][2] == f"Bearer {ACCESS}"
    studio.accepted.discard(f"Bearer {ACCESS}")
    assert origin.image(PATH) == studio.files[PATH]
    assert studio.paths[-3:] == [PATH, "/api/token/refresh/", PATH]
    with pytest.raises(RefusedError, match="make a personal access token"):
        Origin(studio.url, "wrong-token", 50_000).image(PATH)


def test_a_label_studio_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RefusedError, match=r"did not send the image \(.*refused"):
        Origin("http://127.0.0.1:1", OLDER, 100).image(PATH)


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://x", "http://", "http://x/label", "http://x?a", "http://a@b",
            "http://x:99999", "http://x:0", "http://[::1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a Label Studio"):
        Origin(url, OLDER, 100)


def test_a_webhook_without_a_teacher_is_heard_and_a_training_refused(backend: Running) -> None:
    said = {"action": "ANNOTATION_CREATED", "project": {"id": 7}, "annotation": {"id": 1}}
    assert backend.client.post("/webhook", json=said).json() == {"status": "ignored"}
    said["action"] = "START_TRAINING"
    answer = backend.client.post("/webhook", json=said)
    assert (answer.status_code, "--train-project" in answer.text) == (409, True)


def test_what_label_studio_tells_in_confidence_stands_in_no_log(
    backend: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    predict(backend, PATH)
    predict(backend, "/data/upload/1/none.png")
    backend.client.post("/setup", json={"schema": CONFIG, "access_token": "canary"})
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("http")]
    assert not [line for line in ours if "canary" in line or OLDER in line]


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
@settings(deadline=None, max_examples=40)
def test_brushes_come_back(mask: npt.NDArray[np.bool_]) -> None:
    assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def test_runs_longer_than_a_brush_can_count_come_back() -> None:
    mask = np.zeros((300, 400), np.bool_)
    mask[200:, 7:] = True
    assert (decode_brush(encode_brush(mask), (300, 400)) == mask).all()


SDK = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
for mask, rle in json.load(sys.stdin):
    mask = np.array(mask, np.uint8)
    same = (decode_rle(rle).reshape(*mask.shape, 4)[..., 3] == mask * 255).all()
    print(json.dumps([bool(same), mask2rle(mask * 255)]))
"""


def test_label_studios_own_decoder_and_encoder_agree_with_ours() -> None:
    random = np.random.default_rng(4)
    kinds = (((1, 1), 1), ((3, 5), 0.5), ((40, 60), 0.1), ((150, 200), 0), ((150, 200), 1))
    masks = [random.random(size) < share for size, share in kinds]
    pairs = json.dumps([[each.astype(int).tolist(), encode_brush(each)] for each in masks])
    lines = run_theirs("label-studio", SDK, pairs).splitlines()
    for mask, line in zip(masks, lines, strict=True):
        is_same, theirs = json.loads(line)
        assert is_same
        assert (decode_brush(theirs, mask.shape) == mask).all()
        assert theirs == encode_brush(mask)
