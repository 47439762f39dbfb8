"""The data doctor on real folders, on folders it cannot examine, and what it hands back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import notan
from doctor_folders import image_path, write, write_clean
from notan.checking import Diagnosis, Finding, Severity, examine
from notan.config import Data
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from notan.config import TrimapBorder

SEVEN_WARNINGS: tuple[Severity, ...] = ("warning",) * 7


@pytest.fixture(scope="module")
def pets(pets_folder: Path) -> Diagnosis:
    return examine(pets_folder)


@pytest.fixture
def small_pets(tmp_path: Path) -> Path:
    """Write four listed images and one unlisted one in the layout of the Oxford pets."""
    rng = np.random.default_rng(0)
    for folder in ("images", "annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("cat_1", "cat_2", "cat_3", "dog_1", "dog_2"):
        write(tmp_path / "images" / f"{name}.jpg", rng.integers(0, 255, (40, 40, 3)))
        trimap = np.full((40, 40), 2)
        trimap[8:30, 10:30] = 3
        trimap[10:28, 12:28] = 1
        write(tmp_path / "annotations" / "trimaps" / f"{name}.png", trimap)
    lists = {"trainval": ("cat_1", "cat_2", "cat_3"), "test": ("dog_1",)}
    for name, words in lists.items():
        lines = "".join(f"{word} 1 1 1\n" for word in words)
        (tmp_path / "annotations" / f"{name}.txt").write_text(lines)
    return tmp_path


def named(diagnosis: Diagnosis, kind: str) -> set[str]:
    return {path.name for each in diagnosis.findings if each.kind == kind for path in each.files}


def test_the_road_has_no_finding_above_a_note(road_folder: Path) -> None:
    diagnosis = examine(road_folder)
    assert {finding.severity for finding in diagnosis.findings} == {"note"}
    assert [split.images for split in diagnosis.statistics] == [92, 30]
    assert "Nothing wrong found in 122 images" in diagnosis.summary()


def test_the_nuclei_have_no_finding_above_a_note(nuclei_folder: Path) -> None:
    assert {finding.severity for finding in examine(nuclei_folder).findings} == {"note"}


def test_the_pets_that_are_not_what_their_names_say(pets: Diagnosis) -> None:
    assert named(pets, "wrong-type-for-name") == {"Abyssinian_34.jpg", "Abyssinian_5.jpg"}
    messages = [each.message for each in pets.findings if each.kind == "wrong-type-for-name"]
    assert "is a GIF file" in messages[0]
    assert "is a PNG file" in messages[1]


def test_the_pets_trimap_without_a_pet(pets: Diagnosis) -> None:
    assert named(pets, "empty-mask") == {"Abyssinian_34.png"}


def test_the_pets_trimaps_are_read_as_such(pets: Diagnosis) -> None:
    assert pets.layout == "pets"
    note = next(each for each in pets.findings if each.kind == "mask-encoding")
    assert (
        "451 masks trimap, trimap_border = foreground (1 is foreground, 2 background, 3 foreground)"
        in note.message
    )
    counts = {split.split: split.masks for split in pets.statistics}
    assert counts == {"train": 270, "validation": 30, "test": 149, "unlisted": 2}


def test_the_pets_unlisted_images_are_noted(pets: Diagnosis) -> None:
    listed_nowhere = {"Abyssinian_34.jpg", "Abyssinian_34.png", "Abyssinian_5.jpg"}
    assert listed_nowhere < named(pets, "unlisted")


def test_the_pets_real_copies_are_found_and_nothing_else_is(pets: Diagnosis) -> None:
    above = [each for each in pets.findings if each.severity != "note"]
    kinds = {each.kind for each in above}
    assert kinds == {"wrong-type-for-name", "empty-mask", "near-duplicate"}
    copies = [
        {path.stem.removeprefix("Abyssinian_") for path in each.files}
        for each in above
        if each.kind == "near-duplicate"
    ]
    assert copies == [{"11", "177"}, {"122", "172"}, {"24", "56"}, {"40", "63"}]


@pytest.mark.parametrize(
    ("trimap_border", "coverage"),
    [("foreground", 440 / 1600), ("background", 0.18), ("ignore", 288 / 1448)],
)
def test_coverage_follows_the_border_rule(
    small_pets: Path, trimap_border: TrimapBorder, coverage: float
) -> None:
    diagnosis = examine(small_pets, Data(trimap_border=trimap_border))
    train = next(each for each in diagnosis.statistics if each.split == "train")
    assert train.coverage == pytest.approx((coverage,) * 3, abs=1e-6)


def test_a_listed_image_and_a_listed_trimap_that_are_missing(small_pets: Path) -> None:
    (small_pets / "images" / "cat_2.jpg").unlink()
    (small_pets / "annotations" / "trimaps" / "dog_1.png").unlink()
    kinds = {finding.kind: finding for finding in examine(small_pets).findings}
    assert "list names cat_2" in kinds["mask-without-image"].message
    assert kinds["image-without-mask"].split == "test"


def test_a_missing_list_is_reported_once_and_the_rest_is_read(small_pets: Path) -> None:
    (small_pets / "annotations" / "trainval.txt").unlink()
    diagnosis = examine(small_pets)
    errors = [each for each in diagnosis.findings if each.severity == "error"]
    assert [each.kind for each in errors] == ["unreadable-list"]
    assert {split.split for split in diagnosis.statistics} == {"test", "unlisted"}


def test_a_fault_in_an_unlisted_file_is_no_error(small_pets: Path) -> None:
    (small_pets / "images" / "dog_2.jpg").write_text("hello")
    diagnosis = examine(small_pets)
    fault = next(each for each in diagnosis.findings if each.kind == "unreadable-image")
    assert fault.severity == "warning"
    assert diagnosis.exit_code() == 0


def test_a_copy_in_an_unlisted_file_is_only_noted(small_pets: Path) -> None:
    shutil.copy(small_pets / "images" / "cat_1.jpg", small_pets / "images" / "dog_2.jpg")
    copies = [each for each in examine(small_pets).findings if each.kind == "duplicate"]
    assert [each.severity for each in copies] == ["note"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        examine(tmp_path / "nowhere")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="this is a file"):
        examine(tmp_path / "file")


def test_a_folder_of_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images with masks here"):
        examine(tmp_path)


def test_a_folder_of_another_layout_than_asked_for_is_refused(small_pets: Path) -> None:
    with pytest.raises(DataError, match=r"wanted images/ and masks/"):
        examine(small_pets, Data(layout="folder"))


def test_a_folder_without_any_image_is_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no images and no masks here"):
        examine(tmp_path)


def test_an_unknown_border_rule_or_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.trimap_border: .*'foreground'.*found 'foregroun'"):
        notan.check(tmp_path, trimap_border="foregroun")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data.layout: .*'pets'.*found 'pet'"):
        notan.check(tmp_path, layout="pet")  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_listed_is_refused(
    small_pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("notan.checking.reading.image_files", refuse)
    with pytest.raises(DataError, match="could not be listed"):
        examine(small_pets)


def diagnosis_of(*severities: Severity) -> Diagnosis:
    findings = tuple(
        Finding("blank-image", severity, f"message {number}")
        for number, severity in enumerate(severities)
    )
    return Diagnosis(
        folder=Path("data"), layout="folder", trimap_border="foreground", findings=findings
    )


@pytest.mark.parametrize(
    ("severities", "code", "strict"),
    [
        ((), 0, 0),
        (("note",), 0, 0),
        (("note", "warning"), 0, 1),
        (("error", "warning"), 2, 2),
    ],
)
def test_the_exit_code(severities: tuple[Severity, ...], code: int, strict: int) -> None:
    diagnosis = diagnosis_of(*severities)
    assert diagnosis.exit_code() == code
    assert diagnosis.exit_code(strict=True) == strict


def test_the_summary_groups_findings_the_worst_first_and_shortens() -> None:
    text = diagnosis_of("note", *SEVEN_WARNINGS, "error").summary()
    assert text.index("error: blank-image (1)") < text.index("warning: blank-image (7)")
    assert "... and 2 more" in text
    assert text.endswith(
        "1 error, 7 warnings, 1 note in 0 images: mend the errors before training."
    )


def test_a_diagnosis_survives_json(tmp_path: Path) -> None:
    folder = write_clean(tmp_path / "data")
    image_path(folder, 1).write_text("hello")
    image_path(folder, 2).rename(folder / "train" / "images" / "émile.png")
    diagnosis = examine(folder)
    assert diagnosis.pairs
    assert Diagnosis.model_validate_json(diagnosis.to_json()) == diagnosis


def test_the_doctor_does_not_import_torch() -> None:
    script = "import sys, notan.checking, notan.report.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
