"""Names are bytes: what is no text, what a terminal lacks, and what is very long."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from typing import TYPE_CHECKING, Literal

import pytest
from PIL import Image

from image_files import photo, saved
from needs import case
from notan.cli.main import main
from notan.io.write import as_named, as_written, replacing, write_bytes
from notan.modelfile.default import DEFAULT_MODEL
from notan.models.encoders import ENCODERS
from notan.prediction.submission import find_images, read_list
from runs import PATIENCE
from tiny_encoder import TinyEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = os.fsdecode(b"caf\xe9_03")
WRITTEN = "caf\\udce9_03"
TINY = ("--epochs", 1, "--image-size", 16, "--batch-size", 5, "model.width=2")
FORMATS = "mask,overlay,rle,coco-rle,polygons,geojson,contours"


def notan(*words: object) -> None:
    main([str(word) for word in words])


def as_archives_leave_it(folder: Path) -> Path:
    """Give a name the bytes that an archive from Windows would give it."""
    for part in ("images", "masks"):
        (folder / part / "cafe_03.png").rename(folder / part / f"{NAME}.png")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs, and with them again as parts of a folder that is no text either."""
    folder = tmp_path_factory.mktemp("names")
    for place in ("data", "d\udce9/train", "d\udce9/test"):
        shutil.copytree(case("01-nonutf8-name"), folder / place)
        as_archives_leave_it(folder / place)
    return folder


@pytest.fixture(scope="module")
def model(work: Path) -> Path:
    notan("train", "--data-path", work / "data", "--out", work / "run", *TINY)
    return work / "run" / "best.safetensors"


def test_a_training_names_what_it_set_aside_and_reports(work: Path, model: Path) -> None:
    names = (model.parent / "validation.txt").read_text(encoding="utf-8").split()
    assert all(as_named(name) in [NAME, *(f"p0{n}" for n in range(6))] for name in names)
    notan("report", model.parent, "--data-path", work / "data", "--out", work / "report")
    assert list((work / "report").glob("*.html"))


def test_check_writes_its_pages(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "data" / "images" / "p00.png").rename(work / "data" / "images" / "p00.tmp")
    saved(work / "data" / "images" / "p00.png", Image.fromarray(photo(10, 10)))
    try:
        with pytest.raises(SystemExit):
            notan("check", "--data-path", work / "data", "--out", work / "check")
    finally:
        (work / "data" / "images" / "p00.tmp").rename(work / "data" / "images" / "p00.png")
    json.loads((work / "check" / "check.json").read_text(encoding="utf-8"))
    (work / "check" / "check.html").read_text(encoding="utf-8")
    assert "p00" in capsys.readouterr().out


def test_evaluate_has_a_row_that_can_be_read_back(work: Path, model: Path) -> None:
    words = ("--split", "all", "--allow-training-images", "--out", work / "scores")
    notan("evaluate", "--model", model, "--data-path", work / "data", *words)
    (table,) = (work / "scores").glob("*.csv")
    with table.open(newline="", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert WRITTEN in names
    assert NAME in map(as_named, names)


def test_predict_writes_files_of_the_same_bytes_and_goes_on(
    work: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = work / "predictions"
    words = ("predict", work / "data" / "images", "--model", model, "--out", out)
    notan(*words, "--format", FORMATS)
    assert (out / "masks" / f"{NAME}.png").is_file()
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        found = {row["name"]: row["image"] for row in csv.DictReader(file)}
    assert as_named(found[WRITTEN]) == str(work / "data" / "images" / f"{NAME}.png")
    names = [row["file_name"] for row in json.loads((out / "coco-rle.json").read_bytes())]
    assert f"{NAME}.png" in names  # by JSON's own escapes
    assert WRITTEN in (out / "rle.csv").read_text(encoding="utf-8")
    capsys.readouterr()
    notan(*words, "--format", FORMATS, "--resume")
    assert "(6 were there already)" in capsys.readouterr().out


@pytest.mark.parametrize("line", [os.fsencode(NAME), os.fsencode(NAME) + b".png", WRITTEN.encode()])
def test_submit_takes_the_bytes_and_their_written_form(
    line: bytes, work: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_bytes(line + b"\np00.png\n")
    about = ("--data-path", work / "data", "--list", tmp_path / "list.txt")
    notan("submit", "--model", model, *about, "--out", tmp_path / "sent.csv")
    notan("submit", "--check", tmp_path / "sent.csv", *about)
    assert "fine: 2 images" in capsys.readouterr().out
    assert WRITTEN in (tmp_path / "sent.csv").read_text(encoding="utf-8")


def test_a_whole_folder_may_have_such_a_name(work: Path) -> None:
    folder = work / "d\udce9"
    notan("train", "--data-path", folder, "--out", folder / "run", *TINY)
    settings = (folder / "run" / "run.toml").read_text(encoding="utf-8")
    assert '/d\\\\udce9"' in settings
    notan("train", "--resume", folder / "run")
    model = folder / "run" / "best.safetensors"
    words = ("--allow-training-images", "--out", folder / "scores")
    notan("evaluate", "--model", model, "--data-path", folder, "--split", "test", *words)
    notan("predict", folder / "test" / "images", "--model", model, "--out", folder / "predictions")
    assert len(list((folder / "predictions" / "masks").iterdir())) == 6
    notan("report", folder / "run")


@pytest.fixture(scope="module")
def rival(work: Path) -> Path:
    """A second model, in a folder whose name is no text."""
    notan(
        "train",
        "--data-path",
        work / "data",
        "--out",
        work / "riv\udce9l",
        *TINY,
        "data.split_seed=0",
        "seed=1",
    )
    return work / "riv\udce9l" / "best.safetensors"


def test_models_are_compared_on_images_of_such_names(
    work: Path, model: Path, rival: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data-path", work / "data", "--split", "all", "--allow-training-images")
    notan("compare", model, rival, *words, "--out", work / "comp\udce9red")
    (work / "comp\udce9red" / "compare.html").read_text(encoding="utf-8")
    found = json.loads((work / "comp\udce9red" / "compare.json").read_text(encoding="utf-8"))
    told = [str(each) for each in _values(found)]
    assert WRITTEN in told
    assert "riv\\udce9l" in told
    assert str(rival) in map(as_named, told)
    assert "riv\\udce9l" in capsys.readouterr().out


def _values(told: object) -> Iterator[object]:
    if isinstance(told, dict | list):
        for each in told.values() if isinstance(told, dict) else told:
            yield from _values(each)
        yield from told
    else:
        yield told


def test_an_ensemble_of_models_of_such_names_is_made_and_used(
    work: Path, model: Path, rival: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = work / "b\udce9st.safetensors"
    notan("ensemble", model, rival, "--data-path", work / "data", "--out", out)
    assert "b\\udce9st.safetensors" in capsys.readouterr().out
    notan("predict", work / "data" / "images", "--model", out, "--out", work / "by-both")
    assert len(list((work / "by-both" / "masks").iterdir())) == 6


def test_masks_of_such_names_are_judged_by_networks(work: Path, rival: Path) -> None:
    out = work / "judg\udce9d"
    words = ("--model", rival, "--folds", 2, "--epochs", 1, "--out", out)
    notan("check", "--data-path", work / "data", *words)
    rows = json.loads((out / "check.json").read_text(encoding="utf-8"))["labels"]["ranking"]
    assert WRITTEN in {row["name"] for row in rows}
    assert len(list((out / "held-out").iterdir())) == 6
    notan("check", "--data-path", work / "data", *words)  # goes on with what is there


def test_an_encoder_learns_from_images_of_such_names_and_is_begun_with(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "tiny", TinyEncoder)
    out = work / "pretrain\udce9d"
    words = ("--encoder", "tiny", "--epochs", 1, "--image-size", 64, "--batch-size", 3)
    notan("pretrain", "--data-path", work / "data" / "images", "--out", out, *words)
    notan("pretrain", "--resume", out)
    start = ("--encoder", "tiny", "--encoder-weights", out / "encoder.safetensors", *TINY)
    notan("train", "--data-path", work / "data", "--out", work / "from-it", *start)
    assert (work / "from-it" / "report.html").is_file()


def test_an_unreadable_file_of_such_a_name_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{NAME}.png").write_bytes(b"no image at all")
    with pytest.raises(SystemExit) as stop:
        notan("predict", tmp_path / f"{NAME}.png", "--out", tmp_path / "out")
    assert stop.value.code == 3
    assert WRITTEN in (tmp_path / "out" / "failed.csv").read_text(encoding="utf-8")
    assert WRITTEN in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("name", ["16-narrow-stdout", "01-nonutf8-name"])
def test_output_of_a_narrow_encoding_ends_nothing(name: str, encoding: str, tmp_path: Path) -> None:
    photos = tmp_path / "图"
    shutil.copytree(case(name), photos)
    if name.startswith("01"):
        photos = as_archives_leave_it(photos) / "images"
    images = sorted(photos.glob("*.png"))
    words = ["predict", *map(str, images), "--out", str(tmp_path / "out-图")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}
    with (tmp_path / "said").open("wb") as said:
        code = subprocess.run(
            [sys.executable, "-m", "notan", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=PATIENCE,
            check=False,
        ).returncode
    text = (tmp_path / "said").read_text(encoding=encoding)
    assert code == 0, text
    assert f"{len(images)} of {len(images)} images: " in text
    assert {path.name for path in (tmp_path / "out-图" / "masks").iterdir()} == {
        path.name for path in images
    }


@pytest.mark.parametrize("letters", ["a" * 251, "é" * 125, "图" * 83])
def test_a_name_as_long_as_the_system_allows_can_be_written(letters: str, tmp_path: Path) -> None:
    path = tmp_path / f"{letters}.png"
    saved(path, Image.fromarray(photo(8, 8)))
    notan("predict", path, "--out", tmp_path / "out", "--format", "mask")
    assert [found.name for found in (tmp_path / "out" / "masks").iterdir()] == [path.name]


def test_two_long_names_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{'a' * 250}{number}.png" for number in range(2)]
    with replacing(paths[0]) as first, replacing(paths[1]) as second:
        first.write(b"0")
        second.write(b"1")
    assert [path.read_bytes() for path in paths] == [b"0", b"1"]
    write_bytes(paths[0], b"2")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name", [NAME, "plain", "图", "\udc80\udcff", "a b", "\U0001f600"], ids=ascii
)
def test_the_written_form_is_text_and_leads_back(name: str) -> None:
    assert as_named(as_written(name)) == name
    as_written(name).encode("utf-8")


def test_names_with_spaces_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case("14-list-with-spaces")
    (listing,) = folder.rglob("*.txt")
    about, sent = ("--data-path", folder, "--list", listing), tmp_path / "sent.csv"
    notan("submit", "--model", DEFAULT_MODEL, *about, "--out", sent)
    assert f"{len(list(folder.rglob('*.png')))} images" in capsys.readouterr().out
    notan("submit", "--check", sent, *about)
    notan("submit", "--check", sent, "--list", listing)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("Screenshot 2024-05-01 at 10.png", "Screenshot 2024-05-01 at 10.png"),
        ("Screenshot 2024-05-01 at 10", "Screenshot 2024-05-01 at 10.png"),
        ('"a b.png"', "a b.png"),
        ("'a b'", "a b.png"),
        ("a b.png   ", "a b.png"),
        ("  a b.png\r", "a b.png"),
        ("a b.png 1 1 1", "a b.png"),
        ("cat_1 1 1 1", "cat_1.png"),
        ("cat_1.png a tabby", "cat_1.png"),
        ("scan 10", "scan 10.png"),
        ("a.b c.PNG", "a.b c.png"),
        (unicodedata.normalize("NFC", "café au lait"), "café au lait.png"),
        (unicodedata.normalize("NFD", "café au lait.png"), "café au lait.png"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_images_decide_where_a_name_ends(
    line: str, file: str, form: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    path = saved(tmp_path / unicodedata.normalize(form, file), Image.fromarray(photo(8, 8)))
    (tmp_path / "list.txt").write_bytes(f"# a comment\n\n{line}\n".encode())
    names = read_list(tmp_path / "list.txt", tmp_path)
    assert list(find_images(names, tmp_path).values()) == [path]
