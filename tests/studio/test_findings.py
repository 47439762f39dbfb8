"""The data doctor in the studio: of a report or looked for meanwhile, at the images it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from notan.checking import examine
from notan.config import Data
from notan.errors import DataError
from notan.studio import findings as findings_module
from notan.studio.findings import read_report
from studio_runs import SIZE, Served, serving, wait_until, write_images

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
    monkeypatch.setattr(findings_module, "START_SECONDS", 0.0)
    return tmp_path / "cache" / "studio" / "findings"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write images of which one has a mask of another size, and one an empty mask."""
    folder = write_images(tmp_path / "cells", 6, masks=6)
    Image.new("1", (30, 20)).save(folder / "masks" / "spot-0001.png")
    Image.new("1", SIZE[::-1]).save(folder / "masks" / "spot-0003.png")
    return folder


def told(studio: Served) -> dict[str, Any]:
    answer = httpx.get(f"{studio.url}/api/findings", headers=studio.headers, timeout=20.0)
    found: dict[str, Any] = answer.json()
    return found


def when_known(studio: Served) -> dict[str, Any]:
    wait_until(lambda: told(studio)["state"] != "looking", 60.0)
    return told(studio)


def wanted(data: Path) -> dict[str, set[tuple[str, str]]]:
    """Return what notan check finds, by the names of images."""
    found: dict[str, set[tuple[str, str]]] = {}
    for each in examine(data, Data(path=data), progress=False).findings:
        for path in each.files:
            words = each.message.replace(f"{data}/", "")
            found.setdefault(path.stem, set()).add((each.kind, words))
    return found


def by_name(studio: Served, found: dict[str, Any]) -> dict[str, set[tuple[str, str]]]:
    names = {image.id: image.name for image in studio.gallery.images}
    return {
        names[image]: {(kind, message) for _, kind, message in each}
        for image, each in found["images"].items()
    }


def test_the_doctor_looks_meanwhile_and_its_findings_are_kept(
    data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = wanted(data)
    assert {"spot-0001", "spot-0003"} <= set(right)
    with serving(data, tmp_path / "c") as studio:
        found = when_known(studio)
        assert found["state"] == "known"
        assert by_name(studio, found) == right
        first = found["kinds"][0]
        assert first[0] == "error"
        assert sum(count for _, _, count in found["kinds"]) >= len(right)
    assert len(list(cache.glob("*.json"))) == 1
    monkeypatch.setattr(findings_module, "COMMAND", ("false",))
    with serving(data, tmp_path / "c") as studio:
        assert when_known(studio) == found
    Image.new("1", (31, 20)).save(data / "masks" / "spot-0001.png")
    with serving(data, tmp_path / "c") as studio:
        assert when_known(studio)["state"] == "failed"  # it would have looked again


def test_an_image_that_has_no_mask_yet_is_no_finding(tmp_path: Path) -> None:
    data = write_images(tmp_path / "cells", 5, masks=3)
    assert "spot-0004" in wanted(data)
    with serving(data, tmp_path / "c") as studio:
        found = when_known(studio)
        assert "without-mask" not in str(found)


def test_a_report_is_taken_from_wherever_the_folder_lay(data: Path, tmp_path: Path) -> None:
    diagnosis = examine(data, Data(path=data), progress=False)
    moved = data.rename(tmp_path / "moved")
    report = tmp_path / "check.json"
    report.write_text(diagnosis.to_json(labels={"anything": 1}))
    with serving(moved, tmp_path / "c", report=report) as studio:
        found = told(studio)
        assert found["state"] == "known"
        assert {"spot-0001", "spot-0003"} <= set(by_name(studio, found))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "could not be read"),
        ("", "no check.json"),
        ("[]", "no check.json"),
        ('{"folder": "x"}', "no check.json"),
        ('{"folder": "x", "findings": [{"kind": 3}]}', "no check.json"),
        (
            '{"folder": "x", "findings": [{"kind": "k", "severity": "error", "message": "m", '
            '"files": ["x/images/other.png"]}]}',
            "none of the files that it names is in",
        ),
    ],
)
def test_what_is_no_report_of_these_images_is_refused(
    data: Path, tmp_path: Path, content: str | None, words: str
) -> None:
    report = tmp_path / "check.json"
    if content is not None:
        report.write_text(content)
    with pytest.raises(DataError, match=words), serving(data, tmp_path / "c", report=report):
        pass


def test_a_report_that_names_other_files_than_images_is_one_of_these_data(
    data: Path, tmp_path: Path
) -> None:
    (data / "images" / "notes.txt").write_text("notes")
    finding = {"kind": "ignored-file", "severity": "note", "message": "m"}
    finding["files"] = [str(data / "images" / "notes.txt")]  # type: ignore[assignment]
    report = tmp_path / "check.json"
    report.write_text(json.dumps({"folder": str(data), "findings": [finding]}))
    with serving(data, tmp_path / "c", report=report) as studio:
        assert told(studio) == {"state": "known", "said": "", "kinds": [], "images": {}}


def test_a_report_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "MOST_REPORT_BYTES", 10)
    (tmp_path / "check.json").write_text(json.dumps({"folder": "x", "findings": []}))
    with pytest.raises(DataError, match="more than 10 bytes"):
        read_report(tmp_path / "check.json")


def test_without_masks_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    with serving(write_images(tmp_path / "cells", 2), tmp_path / "c") as studio:
        assert told(studio) == {"state": "none", "said": "", "kinds": [], "images": {}}


def test_a_doctor_who_takes_too_long_is_ended_and_it_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(findings_module, "COMMAND", command)
    monkeypatch.setattr(findings_module, "MOST_SECONDS", 0.2)
    with serving(data, tmp_path / "c") as studio:
        found = when_known(studio)
        assert found["state"] == "failed"
        assert "--findings" in found["said"]


def test_the_doctor_ends_with_whoever_began_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*findings_module.COMMAND, str(tmp_path / "out.json")], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        big = write_images(tmp_path / "big", 40, masks=40)
        process.stdin.write(Data(path=big).model_dump_json().encode() + b"\n")
        process.stdin.close()
        assert process.wait(30) != 0
    assert not (tmp_path / "out.json").exists()


def test_an_end_of_the_studio_ends_the_doctor(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    real = subprocess.Popen

    def note(*words: Any, **more: Any) -> Any:
        begun.append(real(*words, **more))
        return begun[-1]

    command = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(findings_module, "COMMAND", command)
    monkeypatch.setattr("subprocess.Popen", note)
    with serving(data, tmp_path / "c"):
        wait_until(lambda: bool(begun))
    assert begun[0].wait(5) != 0


def test_masks_of_one_file_of_annotations_have_findings_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    folder.mkdir()
    images, annotations = [], []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 60})
        if number:
            box = [5, 5, 40, 5, 40, 40, 5, 40]
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "segmentation": [box]}
            )
    told_of = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "c"}]}
    (folder / "all.json").write_text(json.dumps(told_of))
    with serving(folder, tmp_path / "c") as studio:
        found = by_name(studio, when_known(studio))
        assert any(kind == "empty-masks" or "empty" in kind for kind, _ in found.get("0", ()))
