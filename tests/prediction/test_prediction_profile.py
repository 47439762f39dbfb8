"""The profile of a prediction names the stage that takes the most, and leaves nothing behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import saved
from notan.cli.main import main
from notan.errors import DataError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction import profile as module
from notan.prediction.formats import Writers
from notan.prediction.inputs import Found
from notan.prediction.items import Item, items_of_all
from notan.prediction.predictor import Predictor
from notan.prediction.profile import (
    FILES,
    NETWORK,
    PREPARING,
    READING,
    RESTORING,
    WRITING,
    Repeated,
    Stages,
    profile_prediction,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)


@pytest.fixture
def found(tmp_path: Path) -> list[Found]:
    """Eight small images."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(8):
        path = tmp_path / "images" / f"p{number}.png"
        path.parent.mkdir(exist_ok=True)
        saved(path, Image.fromarray(rng.integers(0, 256, (16, 18, 3), dtype=np.uint8)))
        files.append(Found(path.stem, path))
    return files


def predictor(*, seconds: float = 0.0, each: float = 0.0) -> Predictor:
    """Return one whose network takes so long a batch, and for each of its images."""

    def network(inputs: Any) -> Any:
        time.sleep(seconds + each * len(inputs))
        return ((inputs[:, :1] - 0.5) * 20).astype(np.float32)

    return Predictor(network, PLAIN)


def test_a_slow_network_is_named_and_a_batch_that_helps(found: list[Found]) -> None:
    page = profile_prediction(predictor(seconds=0.02), found, ["mask"])
    assert page.bottleneck.startswith(f"Bottleneck: {NETWORK}, ")
    assert "--batch-size 8 makes it" in page.bottleneck
    assert page.shares[NETWORK] > 0.5
    assert page.facts["work"][NETWORK] >= 0.02
    assert page.timings["the network alone, 1 at once"].seconds >= 0.02
    assert page.timings["the network alone, 8 at once"].seconds < 0.01


def test_a_larger_batch_that_helps_nothing_is_not_recommended(found: list[Found]) -> None:
    page = profile_prediction(predictor(each=0.02), found, ["mask"])
    assert page.bottleneck.startswith(f"Bottleneck: {NETWORK}, ")
    assert "--batch-size" not in page.bottleneck
    large = profile_prediction(predictor(each=0.01), found, ["mask"], batch_size=8)
    assert "the network alone, 8 at once" in large.timings
    assert not any("1 at once" in name for name in large.timings)


def test_a_slow_decoder_is_named(found: list[Found], monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: Any, **named: Any) -> Iterator[Item]:
        for item in items_of_all(*given, **named):
            time.sleep(0.03)
            yield item

    monkeypatch.setattr(module, "items_of_all", slow)
    page = profile_prediction(predictor(), found, ["mask"])
    assert page.bottleneck.startswith(f"Bottleneck: {READING}, ")
    assert page.timings[READING].seconds >= 0.03
    assert page.timings[FILES].seconds >= 0.03  # one thread goes through the files


def test_the_heaviest_format_is_named(found: list[Found], monkeypatch: pytest.MonkeyPatch) -> None:
    add = Writers.add

    def slow(writers: Any, *given: Any) -> None:
        time.sleep(0.02 * ("overlay" in writers.names))
        add(writers, *given)

    monkeypatch.setattr(Writers, "add", slow)
    page = profile_prediction(predictor(), found, ["mask", "overlay"])
    assert page.bottleneck.startswith(f"Bottleneck: {WRITING}, ")
    assert "overlay takes the most of it: leave it out of --format" in page.bottleneck


def test_each_stage_has_a_remedy_of_its_own() -> None:
    same = Repeated(0.01, 0.01, 0.01)
    sentences = []
    for kind in (READING, PREPARING, NETWORK, RESTORING, WRITING):
        work = {
            **dict.fromkeys((READING, PREPARING, NETWORK, RESTORING, WRITING), 0.01),
            kind: 0.06,
        }
        page = module._report(predictor(), Stages(work, {"mask": 0.01}, same, same, same, 8), 1)
        assert page.bottleneck.startswith(f"Bottleneck: {kind}, 60% of the work on an image")
        assert "Files to files 100 images a second, the network alone 100." in page.bottleneck
        sentences.append(page.bottleneck)
    assert len({sentence.split(";", 1)[1] for sentence in sentences}) == 5


def test_a_damaged_file_is_left_out_and_of_none_nothing_is_said(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    saved(good, Image.new("RGB", (8, 8)))
    bad.write_bytes(good.read_bytes()[:40])
    page = profile_prediction(predictor(), [Found("bad", bad), Found("good", good)], ["mask"])
    assert page.facts["images"] == 1
    with pytest.raises(DataError, match="--profile: none of the first 64 images can be decoded"):
        profile_prediction(predictor(), [Found("bad", bad)], ["mask"])


def test_the_command_predicts_the_same_with_it(
    found: list[Found],
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(file.path) for file in found]
    main(["predict", *words, "--model", str(small_checkpoint), "--out", str(tmp_path / "a")])
    assert "Bottleneck" not in capsys.readouterr().out
    main(
        [
            "predict",
            *words,
            "--model",
            str(small_checkpoint),
            "--out",
            str(tmp_path / "b"),
            "--profile",
        ]
    )
    printed = capsys.readouterr().out
    page = (tmp_path / "b" / "profile.md").read_text()
    assert page in printed
    assert json.loads((tmp_path / "b" / "profile.json").read_text())["bottleneck"] in page
    left = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        files = (path for path in folder.rglob("*") if path.is_file())
        left.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert left[1].keys() - left[0].keys() == {Path("profile.md"), Path("profile.json")}
    assert all(left[1][path] == content for path, content in left[0].items())
