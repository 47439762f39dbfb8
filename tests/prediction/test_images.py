"""One image from Python: a path, bytes, a Pillow image, an array, and nothing else."""

from __future__ import annotations

import http.server
import io
import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from notan.errors import ConfigError, DataError, ShapeError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction import inputs
from notan.prediction.inputs import as_image
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def sideways(path: Path) -> Path:
    """An image that its EXIF turns by a quarter."""
    exif = Image.Exif()
    exif[274] = 6
    return saved(path, Image.fromarray(photo()), exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_kind_of_image_is_the_same_upright_image(tmp_path: Path, suffix: str) -> None:
    path = sideways(tmp_path / f"a.{suffix}")
    upright = as_image(path)
    assert upright.shape == (30, 20, 3)
    if suffix != "webp":
        np.testing.assert_array_equal(upright, np.rot90(photo(), 3))
    for thing in (str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path)):
        np.testing.assert_array_equal(as_image(thing), upright)
    np.testing.assert_array_equal(as_image(upright), upright)


def test_a_pillow_image_that_was_opened_is_not_changed(tmp_path: Path) -> None:
    with Image.open(sideways(tmp_path / "a.png")) as image:
        as_image(image)
        assert image.size == (30, 20)
        np.testing.assert_array_equal(as_image(image), np.rot90(photo(), 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_pillow_image_of_any_mode_is_read_as_from_a_file(tmp_path: Path, mode: str) -> None:
    grey = np.asarray(Image.fromarray(photo()).convert("L"))
    image = (
        Image.fromarray(grey.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(photo()).convert(mode)
    )
    path = saved(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(as_image(image), as_image(path))


def test_an_array_of_grey_or_with_alpha_is_taken_as_files_are() -> None:
    grey = photo()[..., 0]
    np.testing.assert_array_equal(as_image(grey), np.dstack([grey] * 3))
    with_alpha = np.dstack([photo(), np.zeros((20, 30), np.uint8)])
    np.testing.assert_array_equal(as_image(with_alpha), photo())


def test_a_view_of_an_array_is_as_good_as_a_copy() -> None:
    predictor = Predictor(lambda inputs: inputs[:, :1], Preprocessor(image_size=None))
    flipped = photo()[::-1, ::-1, ::-1]
    np.testing.assert_array_equal(
        predictor(flipped).probability, predictor(flipped.copy()).probability
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\) and type uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last: array\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), np.float32), r"give \(array \* 255\)\.round\(\)"),
        (np.zeros((8, 8), np.bool_), r"array\.astype\('uint8'\) \* 255"),
        (np.zeros((8, 8), np.uint16), r"give \(array / 257\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "several to predict_many"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 of shape \(height, width, 3\) is wanted"),
        (np.zeros(8, np.uint8), r"uint8 of shape \(height, width, 3\) is wanted"),
        (np.zeros((8, 8, 3), np.int64), r"uint8 of shape \(height, width, 3\) is wanted"),
    ],
)
def test_another_array_is_refused_with_advice(array: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        as_image(array)


@pytest.mark.parametrize("thing", [None, 7, [[1, 2]], {"a": 1}])
def test_what_holds_no_image_is_refused(thing: Any) -> None:
    with pytest.raises(ShapeError, match=f"a {type(thing).__name__} was given as an image"):
        as_image(thing)


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: there is no such file"):
        as_image(str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match="the bytes that were given: begins with b'text'"):
        as_image(b"text")
    with pytest.raises(DataError, match="the bytes that were given: is empty"):
        as_image(b"")
    path = saved(tmp_path / "cut.png", Image.fromarray(photo()))
    path.write_bytes(path.read_bytes()[:99])
    with (
        Image.open(path) as image,
        pytest.raises(DataError, match=r"cut\.png: is cut short"),
    ):
        as_image(image)


def test_a_pillow_image_of_too_large_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notan.io.headers.MAX_PIXELS", 599)
    with pytest.raises(DataError, match=r"the Pillow image: .* 600 pixels"):
        as_image(Image.fromarray(photo()))


def test_the_predictor_takes_all_of_them(tmp_path: Path, small_checkpoint: Path) -> None:
    predictor = Predictor.load(str(small_checkpoint))
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    wanted = predictor(photo()).probability
    for thing in (path, str(path), path.read_bytes(), Image.open(path), photo()):
        np.testing.assert_array_equal(predictor(thing).probability, wanted)


def test_a_binary_file_object_is_read_to_its_end(tmp_path: Path) -> None:
    path = sideways(tmp_path / "a.png")
    upright = as_image(path)
    np.testing.assert_array_equal(as_image(io.BytesIO(path.read_bytes())), upright)
    with path.open("rb") as file:
        np.testing.assert_array_equal(as_image(file), upright)


def test_a_file_object_that_holds_no_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ShapeError, match=r"read\(\) gave a str; .* mode 'rb'"):
        as_image(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the file object that was given: begins with b'text'"):
        as_image(io.BytesIO(b"text"))
    closed = io.BytesIO(b"text")
    closed.close()
    with pytest.raises(DataError, match="the file object that was given: could not be read"):
        as_image(closed)
    (tmp_path / "cut.png").write_bytes(sideways(tmp_path / "a.png").read_bytes()[:99])
    with (
        (tmp_path / "cut.png").open("rb") as file,
        pytest.raises(DataError, match=r"cut\.png: is cut short"),
    ):
        as_image(file)
    monkeypatch.setattr(inputs, "MAX_BYTES", 3)
    with pytest.raises(DataError, match="holds more than 3 bytes; give its path"):
        as_image(io.BytesIO(b"text"))


@pytest.mark.parametrize("kind", ["uint8", "float32", "bfloat16"])
@pytest.mark.parametrize("channels_first", [True, False])
def test_a_torch_tensor_may_have_its_channels_first_or_last(
    kind: str, channels_first: bool
) -> None:
    torch = pytest.importorskip("torch")
    levels = photo() // 255 * 255 if kind == "bfloat16" else photo()
    tensor = torch.from_numpy(levels)
    if kind != "uint8":
        tensor = (tensor / 255).to(getattr(torch, kind)).requires_grad_()
    if channels_first:
        tensor = tensor.permute(2, 0, 1)
    np.testing.assert_array_equal(as_image(tensor), levels)


def test_a_grey_tensor_is_taken_as_grey() -> None:
    torch = pytest.importorskip("torch")
    grey = photo()[..., 0]
    for tensor in (torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(as_image(tensor), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda torch: torch.zeros(1, 3, 8, 9), "several to predict_many"),
        (lambda torch: torch.full((3, 8, 9), 255.0), "floats from 255 to 255 was given; 0..1"),
        (lambda torch: torch.full((3, 8, 9), torch.nan), "floats from nan to nan was given"),
        (lambda torch: torch.zeros(3, 8, 9) - 2, "before any normalising"),
        (lambda torch: torch.zeros(3, 8, 9, dtype=torch.int64), "type int64 was given; uint8"),
        (lambda torch: torch.zeros(2, 8, 9), r"shape \(2, 8, 9\)"),
        (lambda torch: torch.zeros(3, 0, 9), r"shape \(0, 9, 3\)"),
    ],
)
def test_another_tensor_is_refused_with_advice(make: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        as_image(make(pytest.importorskip("torch")))


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves one image, and answers that are none."""

    content: bytes = b""

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/gone.png" else 200)
        claimed = len(self.content) + (9 if self.path == "/broken.png" else 0)
        self.send_header("Content-Length", str(claimed))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine that has ``a.png``; broken transfers are tried again at once."""
    monkeypatch.setattr("notan.io.download.RETRY_WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(Answers, "content", sideways(tmp_path / "a.png").read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_is_downloaded(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upright = as_image(tmp_path / "a.png")
    np.testing.assert_array_equal(as_image(f"{address}/a.png"), upright)
    with pytest.raises(DataError, match=r"/gone\.png: the server answered 404"):
        as_image(f"{address}/gone.png")
    with pytest.raises(DataError, match=r"/broken\.png: the download failed \(the connection"):
        as_image(f"{address}/broken.png")
    monkeypatch.setattr(Answers, "content", b"<html>")
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*/a\.png: is a web page"):
        as_image(f"{address}/a.png")
    monkeypatch.setattr(inputs, "MAX_BYTES", 3)
    with pytest.raises(DataError, match="holds more than 3 bytes"):
        as_image(f"{address}/a.png")


def test_an_address_without_a_network_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notan.io.download.RETRY_WAITS_SECONDS", ())
    with socket.socket() as free:  # bound and not listening, so that it refuses
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
        with pytest.raises(DataError, match=r"a\.png: the download failed .*check the address"):
            as_image(url)
    with pytest.raises(ConfigError, match="is not an address to download from"):
        as_image("http:///a.png")


class Trickle(io.RawIOBase):
    """A file object that gives a few bytes at a time and cannot be rewound, as sockets do."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        taken, self._rest = self._rest[: min(7, size)], self._rest[min(7, size) :]
        return taken


def test_a_file_object_that_gives_a_few_bytes_and_cannot_be_rewound(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    np.testing.assert_array_equal(as_image(Trickle(path.read_bytes())), photo())
    with path.open("rb") as file:
        np.testing.assert_array_equal(as_image(file), photo())
        with pytest.raises(DataError, match=r"a\.png: gave no bytes.*seek\(0\)"):
            as_image(file)


def test_a_file_object_that_does_not_wait_for_its_bytes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trickle, "read", lambda *_: None)
    with pytest.raises(ShapeError, match=r"read\(\) gave a NoneType.*let it wait"):
        as_image(Trickle(b""))
