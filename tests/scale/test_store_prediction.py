"""``notan predict`` into an S3 server: one process's files come of it, whatever fails."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from test_ray_engine import DEADLY_FILM, worker_processes
from test_ray_engine import ray_here as ray_here

from image_files import photo, saved
from needs import needs
from notan.cli import predict as predict_module
from notan.cli.main import main
from notan.errors import ConfigError, DataError, StorageError
from notan.io import remote
from notan.io.destinations import destination_of
from notan.io.remote import shown
from notan.scale import blocks
from object_store import BUCKET, NEEDS_S3, SECRET, Proxy, s3_server
from one_line import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notan.scale.blocks import Manifest
    from object_store import Fault

pytestmark = [
    NEEDS_S3,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # s3fs closes its sockets when it likes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES, FEW = 24, "p0[0-5].png"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(blocks, "IMAGES_IN_BLOCK", 4)


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def ray_with_keys(server: Proxy, request: pytest.FixtureRequest) -> object:
    """A Ray whose workers find the server and its keys, as they take our variables with them."""
    del server
    return request.getfixturevalue("ray_here")


@pytest.fixture
def s3(server: Proxy, request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, Path]]:
    """A server that does not fail yet, and an address of the test's own."""
    name = re.sub(r"\W+", "-", request.node.name)
    server.seen.clear()
    server.counts.clear()
    yield server, Path(f"s3://{BUCKET}/{name}/out")
    server.fault = lambda *_: None


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images, one of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        image = np.roll(photo(), number, axis=0)
        saved(folder / f"p{number:02d}.png", Image.fromarray(image))
    (folder / "p13.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def words(portable: Path) -> Callable[..., list[str]]:
    """The words of the command."""

    def command(*given: object, out: Path | str) -> list[str]:
        named = ["--model", str(portable), "--threads", "1", "--batch-size", "1"]
        place = shown(out) if isinstance(out, Path) else str(out)
        return ["predict", *map(str, given), *named, "--out", place]

    return command


@pytest.fixture
def predict(words: Callable[..., list[str]]) -> Callable[..., int]:
    """Run the command; returns its exit code."""

    def command(*given: object, out: Path) -> int:
        try:
            main(words(*given, out=out))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return command


@pytest.fixture(scope="module")
def few_alone(
    photos: Path, portable: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one process writes of a few images into a folder."""
    out = tmp_path_factory.mktemp("alone")
    words = [str(photos / FEW), "--model", str(portable), "--threads", "1", "--batch-size", "1"]
    main(["predict", *words, "--out", str(out)])
    return files_in(out)


def files_in(place: Path) -> dict[str, bytes]:
    """Return every file below a folder or an address."""
    store, name = fsspec.core.url_to_fs(shown(place))
    store.invalidate_cache()
    return {
        path.removeprefix(name).strip("/"): store.cat_file(path)
        for path in sorted(store.find(name))
    }


def test_a_store_holds_what_one_process_writes_into_a_folder(
    s3: tuple[Proxy, Path],
    photos: Path,
    tmp_path: Path,
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy, out = s3
    alone = tmp_path / "alone"
    assert predict(photos, out=alone) == 3
    capsys.readouterr()
    assert predict(photos, out=out) == 3
    wanted = files_in(alone)
    assert files_in(out) == wanted
    assert {"predict.json", "predictions.csv", "failed.csv"} < set(wanted)
    said = capsys.readouterr()
    assert f"{IMAGES - 1} of {IMAGES} images: {shown(out)}" in said.out
    told = [*wanted.values(), said.out.encode(), said.err.encode()]
    assert not any(SECRET.encode() in each for each in told)
    # of a block the manifest is put last, if there is none
    puts = [path.partition("/out/")[2] for path in proxy.of("PUT")]
    places = [place for place, path in enumerate(puts) if path.startswith(".blocks/")]
    assert len(places) == 6
    outputs = [path for path in puts[: places[0]] if "/" in path]
    kinds = ("masks", "overlays")
    assert sorted(outputs) == [f"{kind}/p0{number}.png" for kind in kinds for number in range(4)]


@pytest.mark.parametrize("fault", ["busy", "broken", "lost", "silent"])
def test_a_store_that_fails_for_a_moment_gets_the_same(
    s3: tuple[Proxy, Path],
    photos: Path,
    few_alone: dict[str, bytes],
    predict: Callable[..., int],
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.5)
    proxy, out = s3
    chosen = ("masks/p02", ".blocks", "predictions.csv", "predict.json")
    few = photos / FEW
    proxy.fault = lambda method, path, before: (
        fault if method == "PUT" and not before and any(part in path for part in chosen) else None
    )
    assert predict(few, out=out) == 0
    assert max(proxy.counts.values()) > 1
    assert files_in(out) == few_alone


@pytest.mark.parametrize("part", ["masks/p05", "predict.json", ".blocks", "predictions.csv"])
def test_a_store_that_goes_on_failing_is_one_line_and_the_job_goes_on_later(
    s3: tuple[Proxy, Path],
    photos: Path,
    few_alone: dict[str, bytes],
    words: Callable[..., list[str]],
    predict: Callable[..., int],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    proxy, out = s3
    few = photos / FEW
    proxy.fault = lambda method, path, _: "broken" if method == "PUT" and part in path else None
    code, line = refused(words(few, out=out), capsys)
    assert code == StorageError.exit_code
    assert line.startswith(f"{shown(out)}/{part}")
    assert "the store does not answer, asked 2 times within" in line
    proxy.fault = lambda *_: None
    assert predict(few, "--resume", out=out) == 0
    assert files_in(out) == few_alone


@pytest.mark.parametrize(
    ("out", "given", "reason"),
    [
        ("s3://nobodys/out", (), "make the bucket first, or choose another place with --out"),
        ("s3://me:hush@bucket/out", (), "holds a user, a password or a query"),
        ("s3://bucket/out?sig=hush", (), "holds a user, a password or a query"),
        ("s4://bucket/out", (), "is no address that fsspec knows"),
        ("zip://out::archive.zip", (), "archive.zip"),
        ("s3://bucket/out", ("--profile",), "--profile is kept in a folder"),
        ("s3://bucket/out", ("--format", "mask,rle"), "--format rle: one file of all images"),
        ("s3://bucket/out", ("--format", "masc"), "did you mean 'mask'"),
    ],
)
def test_a_wrong_place_is_one_line(
    server: Proxy,
    photos: Path,
    words: Callable[..., list[str]],
    out: str,
    given: tuple[str, ...],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del server
    _, line = refused(words(photos, *given, out=out), capsys)
    assert reason in line
    assert "hush" not in line


def test_outputs_never_replace_inputs(
    s3: tuple[Proxy, Path], words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = s3
    masks = out / "masks"
    remote.write_whole(masks / "p.png", saved_bytes())
    code, line = refused(words(shown(masks / "p.png"), out=out), capsys)
    assert code == ConfigError.exit_code
    assert line.startswith(f"{shown(masks / 'p.png')}: is an input")
    assert list(files_in(out)) == ["masks/p.png"]


def saved_bytes() -> bytes:
    import io

    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    return content.getvalue()


def test_another_model_and_damaged_tables_are_refused_and_begun_anew(
    s3: tuple[Proxy, Path],
    photos: Path,
    words: Callable[..., list[str]],
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out = s3
    few = photos / "p0[0-2].png"
    assert predict(few, out=out) == 0
    whole = files_in(out)
    code, line = refused(words(few, "--resume", "--tta", "hflip", out=out), capsys)
    assert code == ConfigError.exit_code
    assert line.startswith(f"{shown(out)}/predict.json: this folder was begun otherwise: tta was")
    for name in ("predict.json", "predictions.csv"):
        remote.write_whole(out / name, b"\xff torn")
        code, line = refused(words(few, "--resume", out=out), capsys)
        assert code == DataError.exit_code
        assert line.startswith(f"{shown(out / name)}: cannot be read")
        remote.write_whole(out / name, whole[name])
    remote.remove(out / "masks" / "p01.png")
    assert predict(few, "--resume", out=out) == 0
    assert "(2 were there already)" in capsys.readouterr().out
    assert files_in(out) == whole


def test_a_manifest_that_is_damaged_or_not_true_is_replaced(
    s3: tuple[Proxy, Path], photos: Path, portable: Path
) -> None:
    import notan
    from notan.prediction.inputs import find_inputs
    from notan.prediction.table import output_settings

    _, out = s3
    predictor = notan.load(portable, threads=1)
    job = blocks.BlockJob(out, ("mask",), 1, output_settings(predictor))
    [block] = blocks.cut(find_inputs([photos / "p0[0-2].png"]), (), 4)

    def done() -> Manifest:
        return blocks.predict_block(job, block, predictor, batch_size=1, threads=2)

    first, path = done(), job.manifest_of(block)
    assert blocks.read_manifest(path) == first
    remote.write_whole(path, b'{"rows": [')
    assert done() == first
    assert blocks.read_manifest(path) == first
    remote.write_whole(out / "masks" / "p01.png", b"another's")
    assert done() == first
    assert first.is_published(out)


@pytest.mark.parametrize("refusal", [NotImplementedError, TypeError, OSError(38, "A header ...")])
def test_a_store_that_puts_only_plainly_is_put_to_plainly(
    refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    real = MemoryFileSystem.pipe_file

    def plain(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise refusal
        real(self, path, value, mode=mode)

    path = Path("memory://bucket/manifest.json")
    place = destination_of(path)
    place.write_unless_there(path, b"first")
    place.write_unless_there(path, b"second")
    assert place.read(path) == b"first"
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", plain)
    place.write_unless_there(path, b"third")
    assert place.read(path) == b"third"
    MemoryFileSystem.store.clear()


def test_what_was_killed_in_the_middle_goes_on(
    s3: tuple[Proxy, Path],
    photos: Path,
    words: Callable[..., list[str]],
    tmp_path: Path,
    predict: Callable[..., int],
) -> None:
    proxy, out = s3
    script = (
        "import sys\nfrom notan.scale import blocks\nblocks.IMAGES_IN_BLOCK = 2\n"
        "from notan.cli.main import main\nmain(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *words(photos, out=out)], stderr=subprocess.DEVNULL
    ) as driver:
        limit = time.monotonic() + 100
        while len(proxy.of("PUT", ".blocks")) < 3 and driver.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    there = files_in(out)
    assert any(name.startswith(".blocks/") for name in there)
    assert "predictions.csv" not in there
    proxy.seen.clear()
    assert predict(photos, "--resume", out=out) == 3
    assert predict(photos, out=tmp_path / "alone") == 3
    assert files_in(out) == files_in(tmp_path / "alone")
    assert not proxy.of("PUT", "masks/p00.png")


@needs("ray")
@pytest.mark.usefixtures("ray_with_keys")
def test_a_job_goes_from_one_process_to_ray_and_back(
    s3: tuple[Proxy, Path],
    photos: Path,
    tmp_path: Path,
    predict: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Inputs lie in the store too."""
    _, out = s3
    place = stored(photos, out.with_name("photos"))
    assert predict(shown(place), out=tmp_path / "alone") == 3
    wanted = files_in(tmp_path / "alone")
    done: list[Manifest] = []
    block = predict_module._Progress.block

    def note(progress: Any, manifest: Manifest, files: int) -> None:
        block(progress, manifest, files)
        done.append(manifest)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict_module._Progress, "block", note)
    assert predict(shown(place), out=out) == 130
    assert "8 images are done and whole: give the same command" in capsys.readouterr().err
    assert predict(shown(place), "--resume", "--engine", "ray", out=out) == 3
    assert files_in(out) == wanted
    remote.remove(out / "overlays" / "p07.png")
    assert predict(shown(place), "--resume", out=out) == 3
    assert "(22 were there already)" in capsys.readouterr().out
    assert files_in(out) == wanted


@needs("ray")
@pytest.mark.usefixtures("ray_with_keys")
def test_whatever_dies_and_fails_every_image_is_there_once(
    s3: tuple[Proxy, Path],
    tmp_path: Path,
    predict: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 images in the store, one that no worker survives, five kills, and a store that fails."""
    proxy, out = s3
    (tmp_path / "photos").mkdir()
    for number in range(200):
        image = np.roll(photo(), number, axis=0)
        saved(tmp_path / "photos" / f"p{number:03d}.png", Image.fromarray(image))
    (tmp_path / "photos" / "p033.png").write_bytes(b"no image")
    (tmp_path / "photos" / "p099.png").unlink()
    assert predict(tmp_path / "photos", "--format", "mask", out=tmp_path / "alone") == 3
    (tmp_path / "photos" / DEADLY_FILM).write_bytes(b"RIFF\0\0\0\0AVI LIST")
    place = stored(tmp_path / "photos", out.with_name("photos"))
    killed: list[int] = []
    chance = random.Random(0)
    block = predict_module._Progress.block

    def note(progress: Any, manifest: Manifest, files: int) -> None:
        block(progress, manifest, files)
        if len(killed) < 5 and (there := worker_processes()):
            killed.append(chance.choice(there))
            os.kill(killed[-1], signal.SIGKILL)

    def fault(method: str, path: str, before: int) -> Fault | None:
        faults: dict[str, Fault] = {"GET": "busy", "PUT": "lost"}
        if before == 0 and path.endswith(("50.png", "00.png", "0.json")):
            return "broken" if path.endswith("0.json") else faults.get(method)
        return None

    monkeypatch.setattr(predict_module._Progress, "block", note)
    proxy.fault = fault
    assert predict(shown(place), "--format", "mask", "--engine", "ray", out=out) == 3
    proxy.fault = lambda *_: None
    assert len(set(killed)) == 5
    wanted, got = files_in(tmp_path / "alone"), files_in(out)
    masks = {name: content for name, content in wanted.items() if name.startswith("masks/")}
    assert {name: content for name, content in got.items() if name.startswith("masks/")} == masks
    assert len(masks) == 198
    failed = list(csv.DictReader(got["failed.csv"].decode().splitlines()))
    assert [row["name"] for row in failed] == ["p033", "p099"]
    assert "ended without a word, 3 times" in failed[1]["reason"]
    rows = list(csv.DictReader(got["predictions.csv"].decode().splitlines()))
    assert [f"masks/{row['name']}.png" for row in rows] == sorted(masks)


def stored(folder: Path, place: Path) -> Path:
    """Put the files of a folder into a store."""
    destination_of(place).take({path: place / path.name for path in folder.iterdir()})
    return place
