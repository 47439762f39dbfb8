"""The whole story with a real Label Studio: import, predict, click, accept, train, predict better.

Label Studio is installed in an environment of its own, since it pins what it needs. This program
starts it on a folder that goes away again (the first start takes minutes: it builds its database),
starts ``notan serve`` with a model that has seen twelve drawn images, and does over its API what
its pages do. What Label Studio keeps as predictions is decoded by its own SDK.

    python3 -m venv label && label/bin/pip install label-studio
    python benchmarks/label_studio.py label/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from notan.data.synthetic import DrawnSource, write_folder
from notan.metrics.counts import Counts
from notan.prediction.pixels import encode_png
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from notan.types import Mask

SIDE, LEARNED, ANNOTATED, LEFT = 48, 12, 25, 10
"""Of the drawn images: their sides, and how many the first model knows, are annotated, and are
only predicted."""

PATIENCE = 1200.0
"""Seconds for Label Studio's first start, and for a training."""

LEGACY = "0123456789abcdef0123456789abcdef01234567"
"""Of a Label Studio that lives for minutes and on this machine alone."""

CONFIG = """<View>
  <Image name="shown" value="$image"/>
  <BrushLabels name="brush" toName="shown"><Label value="shape"/></BrushLabels>
  <KeyPointLabels name="point" toName="shown" smart="true"><Label value="shape"/></KeyPointLabels>
</View>"""

DECODE = """
import json, sys
from label_studio_sdk.converter.brush import decode_rle
print(json.dumps([decode_rle(each)[3::4].tolist() for each in json.load(sys.stdin)]))
"""
ENCODE = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import mask2rle
print(json.dumps([mask2rle(np.array(each, np.uint8)) for each in json.load(sys.stdin)]))
"""
VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps([version("label-studio"), version("label-studio-sdk")]))
"""


class Theirs:
    """The Python that Label Studio is installed for."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def run(self, program: str, given: object = None) -> Any:  # noqa: ANN401 - what it prints
        """Run a program of theirs on JSON, and return the JSON that it prints."""
        done = subprocess.run(  # noqa: S603 - a program of this file
            [self.python, "-c", program],
            input=json.dumps(given), capture_output=True, text=True, check=True, timeout=600,
        )  # fmt: skip
        return json.loads(done.stdout)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def wait_for(what: str, is_so: Callable[[], bool], seconds: float) -> float:
    """Wait until something is so, and return how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(httpx.TransportError):
            if is_so():
                return time.monotonic() - began
        time.sleep(0.5)
    raise SystemExit(f"{what} took longer than {seconds:g} seconds")


@contextlib.contextmanager
def label_studio(theirs: Theirs, folder: Path) -> Iterator[httpx.Client]:
    """Start Label Studio; give a client that is let in."""
    port = free_port()
    settings = {
        "ML_BLOCK_LOCAL_IP": "false",  # its backend is on this machine
        "SSRF_PROTECTION_ENABLED": "false",  # and hears its webhooks
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "studio"),
        "LATEST_VERSION_CHECK": "false",
    }
    program = str(theirs.python.with_name("label-studio"))
    words = [program, "start", "--no-browser", "--port", str(port)]
    words += ["--internal-host", "127.0.0.1", "--username", "a@b.example", "--password", LEGACY]
    words += ["--user-token", LEGACY, "--enable-legacy-api-token"]
    with (folder / "studio.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **settings})  # noqa: S603
        try:
            with connected(f"http://127.0.0.1:{port}", LEGACY) as client:
                wait_for("the start of Label Studio",
                         lambda: client.get("/health").is_success, PATIENCE)  # fmt: skip
                yield client
        finally:
            process.terminate()
            process.wait(30)


def connected(url: str, token: str) -> httpx.Client:
    """Return a client of Label Studio."""
    return httpx.Client(
        base_url=url, headers={"Authorization": f"Token {token}"}, timeout=120, verify=False  # noqa: S501
    )  # fmt: skip


@contextlib.contextmanager
def notan_serve(words: Sequence[object], token: str, log: Path) -> Iterator[str]:
    """Start the server; give its address."""
    command = [sys.executable, "-m", "notan", "serve", "--port", "0", *map(str, words)]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own
            command, stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "LABEL_STUDIO_API_KEY": token},
        )  # fmt: skip
        try:
            assert process.stdout  # noqa: S101 - it is a pipe
            found = re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found, log.read_text()  # noqa: S101
            time.sleep(1)
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def sent(answer: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    """Return the JSON of an answer, which must be one of success."""
    if not answer.is_success:
        raise SystemExit(f"{answer.request.url}: {answer.status_code} {answer.text[:500]}")
    return answer.json() if answer.content else None


class Project:
    """A project of Label Studio with the drawn images as its tasks."""

    def __init__(self, studio: httpx.Client, source: DrawnSource) -> None:
        self.studio, self.source = studio, source
        made = sent(studio.post("/api/projects", json={"title": "drawn", "label_config": CONFIG}))
        self.id = int(made["id"])
        for name in source.names:
            image = encode_png(source[source.names.index(name)].image)
            files = {"file": (f"{name}.png", image, "image/png")}
            sent(studio.post(f"/api/projects/{self.id}/import", files=files))
        tasks = sent(studio.get("/api/tasks", params={"project": self.id, "page_size": 500}))
        found = {re.search(r"drawn-\d+", each["data"]["image"])[0]: each for each in tasks["tasks"]}  # type: ignore[index]
        self.tasks = [int(found[name]["id"]) for name in source.names]
        self.images = [str(found[name]["data"]["image"]) for name in source.names]

    def connect(self, url: str) -> int:
        """Connect the backend as Settings, Model does; return its number."""
        body = {"url": url, "project": self.id, "title": "notan", "is_interactive": True}
        return int(sent(self.studio.post("/api/ml", json=body))["id"])

    def hook(self, url: str) -> None:
        """Have annotations told, as Settings, Webhooks does."""
        actions = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"]
        body = {"url": f"{url}/webhook", "project": self.id, "send_payload": True,
                "send_for_all_actions": False, "actions": actions}  # fmt: skip
        sent(self.studio.post("/api/webhooks/", json=body))

    def predict(self) -> tuple[list[dict[str, Any]], float]:
        """Retrieve predictions as the list of tasks does; return the newest ones, and seconds."""
        began = time.monotonic()
        asked = {"selectedItems": {"all": True, "excluded": []}}
        action: dict[str, str | int] = {"id": "retrieve_tasks_predictions", "project": self.id}
        sent(self.studio.post("/api/dm/actions", params=action, json=asked))
        seconds = time.monotonic() - began
        newest: dict[int, dict[str, Any]] = {}
        for each in sent(self.studio.get("/api/predictions", params={"project": self.id})):
            known = newest.get(each["task"])
            if known is None or each["id"] > known["id"]:
                newest[each["task"]] = each
        return [newest[task] for task in self.tasks], seconds

    def click(self, backend: int, number: int, x: float, y: float, *, is_positive: bool) -> Any:  # noqa: ANN401
        """Click with the smart tool, as the editor does; return what Label Studio makes of it."""
        point = {
            "type": "keypointlabels", "from_name": "point", "to_name": "shown", "id": "p",
            "original_width": SIDE, "original_height": SIDE, "is_positive": is_positive,
            "value": {"x": x, "y": y, "width": 0.3, "labels": ["shape"]},
        }  # fmt: skip
        asked = {"task": self.tasks[number], "context": {"result": [point]}}
        return sent(self.studio.post(f"/api/ml/{backend}/interactive-annotating", json=asked))

    def accept(self, number: int, rle: list[int]) -> None:
        """Submit an annotation."""
        region = {
            "type": "brushlabels", "from_name": "brush", "to_name": "shown", "id": "r",
            "original_width": SIDE, "original_height": SIDE, "image_rotation": 0,
            "value": {"format": "rle", "rle": rle, "brushlabels": ["shape"]},
        }  # fmt: skip
        body = {"result": [region], "lead_time": 1.0}
        sent(self.studio.post(f"/api/tasks/{self.tasks[number]}/annotations", json=body))


def masks_of(theirs: Theirs, results: Sequence[list[dict[str, Any]]]) -> list[Mask]:
    """Return masks of results, as Label Studio's SDK decodes them."""
    given = [each[0]["value"]["rle"] for each in results if each]
    decoded = iter(theirs.run(DECODE, given))
    empty = np.zeros((SIDE, SIDE), np.bool_)
    return [np.array(next(decoded)).reshape(SIDE, SIDE) > 0 if each else empty for each in results]


def mean_dice(masks: Sequence[Mask], source: DrawnSource, numbers: Sequence[int]) -> float:
    """Return the mean Dice of some of the images."""
    scores = [Counts.of(masks[at], source[at].mask).dice for at in numbers]
    return float(np.mean(scores))


def same_as_ours(url: str, source: DrawnSource, masks: Sequence[Mask]) -> int:
    """Return in how many images a decoded mask differs from the one of ``POST /v1/masks``."""
    from notan.io.images import decode_image

    differing = 0
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:  # noqa: S501
        for number, mask in enumerate(masks):
            answer = client.post("/v1/masks", content=encode_png(source[number].image))
            ours: npt.NDArray[Any] = decode_image(answer.content, "mask")[..., 0] > 0
            differing += int((ours != mask).any())
    return differing


def story(studio: httpx.Client, theirs: Theirs, folder: Path) -> list[dict[str, object]]:
    """Do it all, and return what was seen."""
    source = DrawnSource(ANNOTATED + LEFT, size=(SIDE, SIDE), seed=5, first=LEARNED)
    base = folder / "base"
    write_folder(DrawnSource(LEARNED, size=(SIDE, SIDE), seed=5), folder / "few")
    words = ["train", "--data-path", folder / "few", "--out", base, "--image-size", SIDE]
    words += ["--epochs", 14, "--learning-rate", 0.01, "model.width=8"]
    with (folder / "base.log").open("wb") as log:
        command = [sys.executable, "-m", "notan", *map(str, words)]
        subprocess.run(command, check=True, stdout=log, stderr=log)  # noqa: S603 - our own
    project = Project(studio, source)
    made = studio.post("/api/token/")  # one that runs already may have its personal token
    token = made.json()["token"] if made.is_success else studio.headers["authorization"][6:]
    settings = ["--model", base, "--label-studio", str(studio.base_url), "--threads", 1]
    settings += ["--train-project", project.id, "--train-every", ANNOTATED]
    settings += ["--train-time-limit", "3m", "--train-out", folder / "taught"]
    with notan_serve(settings, token, folder / "serve.log") as url:
        backend = project.connect(url)
        project.hook(url)
        first, seconds = project.predict()
        masks = masks_of(theirs, [each["result"] for each in first])
        differing = same_as_ours(url, source, masks)
        clicks = [_clicked(project, theirs, backend, number) for number in range(10)]
        truths = [(source[at].mask * 255).tolist() for at in range(ANNOTATED)]
        for number, rle in enumerate(theirs.run(ENCODE, truths)):
            project.accept(number, rle)
        old = first[0]["model_version"]
        taught = wait_for("the training", lambda: _version(studio, backend) != old, PATIENCE)
        second, _ = project.predict()
        better = masks_of(theirs, [each["result"] for each in second])
        differing += same_as_ours(url, source, better)
        filled = sum(bool(mask.any()) for mask in [*masks, *better])
    left = range(ANNOTATED, ANNOTATED + LEFT)
    studio_version, sdk_version = theirs.run(VERSIONS)
    pause = float(np.median([seconds for seconds, _ in clicks]))
    hits = sum(is_hit for _, is_hit in clicks)
    return [
        {"what": "Label Studio", "value": studio_version},
        {"what": "its SDK", "value": sdk_version},
        {"what": "tasks that were predicted", "value": len(first)},
        {"what": "seconds for all of them", "value": seconds},
        {"what": "masks with foreground, of these and of the new model's", "value": filled},
        {"what": "masks that decoded to others than ours", "value": differing},
        {"what": "seconds of a smart click, median of ten", "value": pause},
        {"what": "clicks whose region holds the point", "value": hits},
        {"what": "images annotated", "value": ANNOTATED},
        {"what": "seconds from the last annotation to the new model", "value": taught},
        {"what": f"Dice of {LEFT} others before", "value": mean_dice(masks, source, left)},
        {"what": f"Dice of {LEFT} others after", "value": mean_dice(better, source, left)},
    ]  # fmt: skip


def _clicked(project: Project, theirs: Theirs, backend: int, number: int) -> tuple[float, bool]:
    """Click into the middle of an object; return the seconds, and whether that is selected."""
    from scipy import ndimage

    mask = np.pad(project.source[number].mask, 1)
    depth = ndimage.distance_transform_edt(mask)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = 100 * (column + 0.5) / SIDE, 100 * (row + 0.5) / SIDE
    began = time.monotonic()
    answer = project.click(backend, number, x, y, is_positive=True)
    seconds = time.monotonic() - began
    found = masks_of(theirs, [answer["data"]["result"]])[0]
    return seconds, bool(found[row, column])


def _version(studio: httpx.Client, backend: int) -> str:
    return str(sent(studio.get(f"/api/ml/{backend}"))["model_version"])


def main() -> None:
    """Run the story and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="of the environment that has label-studio")
    parser.add_argument("--url", help="a Label Studio that runs already")
    parser.add_argument("--token", default=LEGACY, help="of that one, of the older kind")
    parser.add_argument(
        "--keep", type=Path, help="folder for logs and runs, instead of one that goes"
    )
    arguments = parser.parse_args()
    theirs = Theirs(arguments.python.absolute())
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.url:
            studio = stack.enter_context(connected(arguments.url, arguments.token))
        else:
            studio = stack.enter_context(label_studio(theirs, folder))
        rows = story(studio, theirs, folder)
    write_results(
        "label_studio",
        "notan serve as the ML backend of a real Label Studio",
        rows,
        [
            f"drawn images of {SIDE}x{SIDE}; the first model knows {LEARNED} others; annotations "
            "are the exact masks, encoded by Label Studio's SDK; one core for all programs",
        ],
    )


if __name__ == "__main__":
    main()
