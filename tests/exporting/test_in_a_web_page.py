"""The graph in a web page: onnxruntime-web in Chromium gives what predict gives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from browser import QUIET, find_browser
from without_notan import ANY, SIZES, graph_of, image_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTING = "NOTAN_ONNXRUNTIME_WEB"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "without-notan.md"
NUMBERS = range(0, len(SIZES) - 3, 2)
"""Every other image, but the largest."""

PATIENCE = 120.0  # seconds
SCRIPT = """<!doctype html><canvas></canvas><script src="/ort.wasm.min.js"></script><script>
async function all() {
  ort.env.wasm.numThreads = 1;
  for (let number = %s; number < %s; number += %s) {
    const bitmap = await createImageBitmap(await (await fetch(`/${number}.png`)).blob());
    const canvas = document.querySelector("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    %s
    await fetch(`/${number}`, { method: "POST", body: new Blob([probability.data, mask.data]) });
  }
}
const end = (body) => fetch("/end", { method: "POST", body });
all().then(() => end("fine"), (error) => end(String(error)));
</script>"""


@contextmanager
def served(folder: Path, package: Path) -> Iterator[tuple[str, dict[str, bytes], threading.Event]]:
    """Serve a folder and the package; yield the address, what the page posts, and its end."""
    posted: dict[str, bytes] = {}
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            places = (folder / name, package / "dist" / name)
            files = [each for each in places if each.is_file()]
            self.send_response(200 if files else 404)
            kinds = {".html": "text/html", ".wasm": "application/wasm", ".png": "image/png"}
            kind = kinds.get(Path(name).suffix, "text/javascript")
            self.send_header("Content-Type", kind)
            self.end_headers()
            if files:
                self.wfile.write(files[0].read_bytes())

        def do_POST(self) -> None:
            posted[self.path.lstrip("/")] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            if self.path == "/end":
                end.set()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html", posted, end
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_web_page_gives_what_predict_gives(portable: Path, tmp_path: Path) -> None:
    package = os.environ.get(SETTING)
    if not package:
        pytest.skip(f"onnxruntime-web is absent: unpack its npm package, and name it in {SETTING}")
    _, predictor = graph_of(portable, tmp_path / "best-end-to-end.onnx", **ANY)
    for number in NUMBERS:
        Image.fromarray(image_of(SIZES[number], number)).save(tmp_path / f"{number}.png")
    lines = re.search(r"```js\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert lines
    page = SCRIPT % (NUMBERS.start, NUMBERS.stop, NUMBERS.step, lines[1])
    (tmp_path / "index.html").write_text(page, "utf-8")
    with served(tmp_path, Path(package)) as (address, posted, end):
        browser = subprocess.Popen(
            [find_browser(), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", address],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert end.wait(PATIENCE), f"the page did not end; it posted {sorted(posted)}"
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert posted.pop("end") == b"fine"
    assert set(posted) == {str(number) for number in NUMBERS}
    for number in NUMBERS:
        expected = predictor(image_of(SIZES[number], number))
        values = posted[str(number)]
        pixels = expected.mask.size
        probability = np.frombuffer(values[: 4 * pixels], np.float32).reshape(expected.size)
        mask = np.frombuffer(values[4 * pixels :], np.bool_).reshape(expected.size)
        np.testing.assert_allclose(probability, expected.probability, rtol=0, atol=1 / 255)
        assert np.count_nonzero(mask != expected.mask) <= pixels / 1000
