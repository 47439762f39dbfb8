"""The same eight images, as the tools themselves wrote them, give the same masks in every format.

``annotations/README.md`` says which tool wrote what; ``truth/`` is 0, 1 for cell, 2 for nucleus.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from notan.checking import examine
from notan.config import Data, Masks
from notan.data.annotations.formats import read_annotations
from notan.data.folders import find_layout, has_test, open_split
from notan.data.survey import survey
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.data.samples import Sample

FILES = Path(__file__).parent.parent / "annotations"
CELL, NUCLEUS = 1, 2

NAMED = {
    "coco-polygons": "coco",
    "coco-rle": "coco",
    "coco-uncompressed": "coco",
    "coco-roboflow": "coco",
    "coco-datumaro": "coco",
    "labelme": "labelme",
    "labelme-windows": "labelme",
    "yolo": "yolo",
    "yolo-roboflow": "yolo",
    "yolo-supervision": "yolo",
    "voc": "voc",
    "voc-datumaro": "voc",
    "cvat-mask": "voc",
    "cvat-images": "cvat",
    "cvat-datumaro": "cvat",
    "label-studio": "label-studio",
    "label-studio-min": "label-studio",
    "label-studio-png": "label-studio",
    "nnunet": "nnunet",
    "geojson": "geojson",
    "geojson-qubalab": "geojson",
}
"""Folder -> its layout, where classes have names."""

VALUED = {"csv": "table", "parquet": "table", "parquet-hub": "table", "voc-void": "voc"}
"""Likewise where classes are the values of mask files."""

ALL = [*((name, True) for name in NAMED), *((name, False) for name in VALUED)]


def read(folder: Path, **masks: Any) -> dict[str, Sample]:
    """Return all samples, those of each part, by name."""
    if folder.name == "coco-datumaro":
        masks["crowd"] = "foreground"  # what is stored as runs is marked so
    data = Data(path=folder, masks=Masks(**masks))
    told = read_annotations(folder, find_layout(data)).pairs
    splits = ["all"] if "all" in told else ["train", "val"]
    parts = [open_split(data, split, seed=0) for split in splits]
    for part in parts:
        survey(part)
    return {sample.name: sample for part in parts for sample in part}


def truth(name: str, folder: str = "truth") -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(FILES / folder / f"{name}.png"))


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "named"), ALL)
@pytest.mark.parametrize("wanted", [CELL, NUCLEUS])
def test_every_format_gives_the_same_masks(name: str, named: bool, wanted: int) -> None:
    said = ("cell", "nucleus")[wanted - 1] if named else wanted
    samples = read(FILES / name, foreground=said)
    assert sorted(samples) == sorted(NUMBERS)
    for each in NUMBERS:
        sample = samples[each]
        if name == "voc-void":
            labels = truth(each, "truth-void")
            assert sample.ignore is not None or 255 not in labels
            if sample.ignore is not None:
                np.testing.assert_array_equal(sample.ignore, labels == 255)
        else:
            labels = truth(each)
            assert sample.ignore is None or not sample.ignore.any()
        np.testing.assert_array_equal(sample.mask, labels == wanted)


@pytest.mark.parametrize("name", [*NAMED, *VALUED])
def test_the_layout_is_recognised(name: str) -> None:
    assert find_layout(Data(path=FILES / name)) == (NAMED | VALUED)[name]


def test_both_classes_are_foreground_where_both_are_named() -> None:
    for name, sample in read(FILES / "coco-rle", foreground="cell,nucleus").items():
        np.testing.assert_array_equal(sample.mask, truth(name) > 0)


def test_an_ignored_class_is_neither() -> None:
    for folder in ("cvat-mask", "label-studio"):
        samples = read(FILES / folder, foreground="cell", ignore="nucleus")
        for name, sample in samples.items():
            np.testing.assert_array_equal(sample.mask, truth(name) == CELL)
            if (truth(name) == NUCLEUS).any():
                assert sample.ignore is not None
                np.testing.assert_array_equal(sample.ignore, truth(name) == NUCLEUS)


@pytest.mark.parametrize("name", ["labelme", "cvat-images", "label-studio", "geojson"])
def test_a_number_means_nothing_where_classes_have_names_only(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no class '1'; choose one of"):
        read(FILES / name, foreground=1)


def test_what_predict_writes_reads_back() -> None:
    for name, sample in read(FILES / "geojson-notan").items():
        np.testing.assert_array_equal(sample.mask, truth(name) > 0)


@pytest.mark.parametrize("name", [*NAMED, *VALUED])
def test_several_classes_without_a_choice_are_refused(name: str) -> None:
    words = "three values|values 1, 2|values 0, 1, 2" if VALUED.get(name) == "table" else "classes"
    with pytest.raises(DataError, match=words):
        read(FILES / name)


def test_the_refusal_says_how_large_the_classes_are() -> None:
    shares = [np.mean([(truth(name) == value).mean() for name in NUMBERS]) for value in (1, 2)]
    words = f"2 classes, .* of 8 images: cell {shares[0]:.2%}, nucleus {shares[1]:.2%}; say which"
    for name in ("coco-rle", "labelme", "cvat-mask", "nnunet"):
        with pytest.raises(DataError, match=words):
            read(FILES / name)


def test_a_crowd_is_ignored() -> None:
    samples = read(FILES / "coco-crowd", foreground="nucleus")
    for name, sample in samples.items():
        labels = truth(name, "truth-crowd")
        np.testing.assert_array_equal(sample.mask, labels == NUCLEUS)
        crowd = np.zeros_like(sample.mask) if sample.ignore is None else sample.ignore
        np.testing.assert_array_equal(crowd, labels == 255)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_gives_what_the_coco_api_gives() -> None:
    folder = FILES / "coco-supervision"
    api = COCO(folder / "annotations.json")
    samples = read(folder, foreground="cell,nucleus", crowd="foreground")
    for image in api.dataset["images"]:
        wanted = np.zeros((image["height"], image["width"]), np.bool_)
        for each in api.loadAnns(api.getAnnIds(image["id"])):
            wanted |= api.annToMask(each) > 0
        np.testing.assert_array_equal(samples[Path(image["file_name"]).stem].mask, wanted)


@pytest.mark.parametrize("name", [*NAMED, *VALUED])
def test_check_works_on_each(name: str) -> None:
    said: Sequence[int | str] = ("cell",) if name in NAMED else (1,)
    crowd = "foreground" if name == "coco-datumaro" else None
    masks = Masks.model_validate({"foreground": said, "crowd": crowd})
    diagnosis = examine(FILES / name, Data(masks=masks), progress=False)
    assert not [each for each in diagnosis.findings if each.severity == "error"]
    assert [each.kind for each in diagnosis.findings].count("recognised") == 1
    assert sum(split.masks for split in diagnosis.statistics) == 8


def test_a_data_set_is_a_file_of_it_too() -> None:
    files = {
        "coco-rle/annotations.json": 8,
        "coco-polygons/annotations/instances_train.json": 6,
        "coco-roboflow/train/_annotations.coco.json": 6,
        "yolo/data.yaml": 6,
        "cvat-images/annotations.xml": 8,
        "labelme-windows/labels/two.json": 1,
        "csv/data.csv": 6,
    }
    for path, count in files.items():
        named = not path.startswith("csv")
        data = Data(path=FILES / path, masks=Masks(foreground=("cell",) if named else (1,)))
        split = "train" if path.startswith(("yolo", "csv")) else "all"
        source = open_split(data, split, seed=0)
        assert len(source) == count
        for sample in source:
            np.testing.assert_array_equal(sample.mask, truth(sample.name) == CELL)


def test_the_parts_are_those_of_the_files() -> None:
    data = Data(path=FILES / "coco-roboflow", masks=Masks(foreground=("cell",)))
    assert set(open_split(data, "val", seed=0).names) == {"seven", "eight"}
    assert not has_test(data)


def test_groups_of_a_table_stay_together(caplog: pytest.LogCaptureFixture) -> None:
    data = Data(path=FILES / "csv", masks=Masks(foreground=(1,)))
    with caplog.at_level("INFO", logger="notan"):
        assert set(open_split(data, "val", seed=0).names) == {"seven", "eight"}
