"""Validation that can judge: foreground in it, copies and groups on one side, and true advice."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from needs import case
from notan.checking.label_errors import divide
from notan.config import Data, Masks, load_run
from notan.data import dividing
from notan.data.annotations import labels
from notan.data.folders import open_split
from notan.data.splits import choose_folds, choose_validation, name_groups
from notan.data.survey import survey
from notan.errors import ConfigError, DataError
from notan.io.digest import sha256
from notan.io.masks import read_mask
from notan.training import resume, train

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SMALL = {
    "model.width": 4,
    "preprocess.image_size": 32,
    "train.epochs": 1,
    "train.batch_size": 8,
    "train.trackers": (),
    "train.log_images": 0,
    "device": "cpu",
}


def by_chance(names: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Choose as notan did when it knew names only."""
    ordered = sorted(names, key=lambda name: sha256(f"{seed}:{name}"))
    count = min(max(1, round(len(ordered) * fraction)), len(ordered) - 1)
    return frozenset(ordered[:count])


def draw(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """Draw an image of a few coarse patches, unlike that of another seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(patches).resize(size[::-1], Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image, *, empty: bool = False) -> None:
    mask = np.zeros(image.size[::-1], np.uint8)
    if not empty:
        mask[5:30, 9:40] = 255
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image.save(folder / "images" / name)
    Image.fromarray(mask).save(folder / "masks" / f"{name.partition('.')[0]}.png")


def parts(folder: Path, *, seed: int = 0, **settings: Any) -> tuple[set[str], set[str]]:
    data = Data(path=folder, **settings)
    training, validation = (open_split(data, part, seed=seed) for part in ("train", "val"))
    return set(training.names), set(validation.names)


def test_the_case_has_foreground_in_its_validation(caplog: pytest.LogCaptureFixture) -> None:
    data = Data(path=case("19-validation-without-figure"))
    with caplog.at_level("INFO"):
        training, validation = (open_split(data, part, seed=0) for part in ("train", "val"))
    assert (len(training), len(validation)) == (27, 3)
    has_foreground = [bool(sample.mask.any()) for sample in validation]
    assert has_foreground.count(True) == 2
    empty = by_chance([*training.names, *validation.names], 0.1, 0)
    assert not any(sample.mask.any() for sample in [*training, *validation] if sample.name in empty)


@pytest.mark.parametrize("name", ["nuclei", "camvid-road"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_real_images_without_copies_are_divided_as_before(
    nuclei_folder: Path, road_folder: Path, name: str, seed: int
) -> None:
    folder = {"nuclei": nuclei_folder, "camvid-road": road_folder}[name]
    training, validation = parts(folder, seed=seed)
    assert validation == by_chance(training | validation, 0.1, seed)


names_of = st.lists(st.text("abcdef0123", min_size=1, max_size=6), min_size=2, unique=True)


@settings(max_examples=200, deadline=None)
@given(names_of, st.floats(0.01, 0.99), st.integers(0, 9), st.data())
def test_empty_masks_are_set_aside_in_proportion(
    names: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    empty = data.draw(st.sets(st.sampled_from(names)))
    chosen = choose_validation(names, fraction=fraction, seed=seed, empty=empty)
    chance = by_chance(names, fraction, seed)
    assert len(chosen) == len(chance)
    foreground = set(names) - empty
    if len(foreground) > 1:
        assert foreground & chosen
        assert foreground - chosen
    share = len(chosen) * len(empty) / len(names)
    if len(foreground & chosen) > 1 and len(foreground - chosen) > 1:
        assert abs(len(empty & chosen) - share) < 1
    if chance & foreground and foreground - chance and abs(len(empty & chance) - share) < 1:
        assert chosen == chance


@settings(max_examples=200, deadline=None)
@given(names_of, st.floats(0.01, 0.99), st.integers(0, 9), st.data())
def test_groups_stay_whole_and_change_nothing_that_chance_kept_whole(
    names: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.sampled_from("xyz"), min_size=len(names), max_size=len(names)))
    grouped = data.draw(st.sets(st.sampled_from(names)))
    groups = {n: label for n, label in zip(names, labels, strict=True) if n in grouped}
    units = Counter(groups.get(name, f"- {name}") for name in names)
    empty = data.draw(st.sets(st.sampled_from(names)))
    for masks in (set[str](), empty):
        chosen = choose_validation(
            data.draw(st.permutations(names)),
            fraction=fraction,
            seed=seed,
            groups=groups,
            empty=masks,
        )
        assert 0 < len(chosen) < len(names)
        if len(units) > 1:
            assert not {groups.get(n) for n in chosen} & {
                groups.get(n) for n in names if n not in chosen
            } - {None}
        if not masks and len(units) > 1:
            whole = by_chance(names, fraction, seed)
            cut = {groups.get(n) for n in whole} & {groups.get(n) for n in set(names) - whole}
            if not cut - {None}:
                assert chosen == whole


def test_validation_of_groups_holds_foreground_where_two_groups_have_it() -> None:
    groups = {f"{video}-{frame}": video for video in "abcdef" for frame in range(10)}
    empty = {name for name in groups if name[0] not in "ae"}
    for seed in range(20):
        chosen = choose_validation(
            list(groups), fraction=0.1, seed=seed, groups=groups, empty=empty
        )
        assert 0 < len(chosen - empty) < 20
        assert len({groups[name] for name in chosen}) <= 2


def test_exports_of_one_photo_stay_on_one_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        photo = draw(number)
        save(tmp_path, f"{number}.png", photo)
        save(tmp_path, f"{number}_small.png", photo.resize((32, 24), Image.Resampling.BOX))
        photo.save(tmp_path / "images" / f"{number}_web.jpg", quality=80)
        mask = tmp_path / "masks" / f"{number}.png"
        (tmp_path / "masks" / f"{number}_web.png").write_bytes(mask.read_bytes())
    cut = 0
    for seed in range(5):
        with caplog.at_level("INFO"):
            training, validation = parts(tmp_path, seed=seed, validation_fraction=0.25)
        assert len(validation) == 9
        photos = [{name.split("_")[0] for name in side} for side in (training, validation)]
        assert not photos[0] & photos[1]
        chance = by_chance(training | validation, 0.25, seed)
        cut += any(name.split("_")[0] in photos[0] for name in chance)
    assert cut, "chance alone would have done; the test shows nothing"
    said = "9 of 36 images set aside for validation, from 12 groups; 36 are copies of each other"
    assert said in caplog.text


def test_blank_images_are_no_copies(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path, f"{number}.png", Image.new("RGB", (64, 48), (90, 90, 90)))
    training, validation = parts(tmp_path)
    assert validation == by_chance(training | validation, 0.1, 0)


def test_copies_of_a_single_image_are_divided_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        save(tmp_path, f"{number}.png", draw(0))
    training, validation = parts(tmp_path)
    assert (len(training), len(validation)) == (9, 1)
    assert "all images are copies of one, so validation sees what training saw" in caplog.text


def video(folder: Path) -> None:
    for number in range(24):
        save(folder, f"clip{number // 4}_frame{number % 4}.png", draw(number))


def videos_of(names: Iterable[str]) -> set[str]:
    return {name.split("_")[0] for name in names}


@pytest.mark.parametrize("pattern", ["^clip\\d+", "^(clip\\d+)_"])
def test_a_pattern_keeps_the_frames_of_a_video_together(
    tmp_path: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    video(tmp_path)
    for seed in range(5):
        with caplog.at_level("INFO"):
            training, validation = parts(tmp_path, seed=seed, group_by=pattern)
        assert (len(training), len(validation)) == (20, 4)
        assert not videos_of(training) & videos_of(validation)
    assert "4 of 24 images set aside for validation, from 6 groups" in caplog.text


def test_a_column_of_a_table_gives_the_groups(tmp_path: Path) -> None:
    video(tmp_path)
    table = tmp_path / "scans.csv"
    rows = [f"clip{n // 4}_frame{n % 4}.png,patient {n // 8}\n" for n in range(24)]
    table.write_text("image,patient\n" + "".join(rows))
    training, validation = parts(tmp_path, group_by=f"{table}:patient", validation_fraction=0.3)
    assert len(validation) == 8
    patients = [
        {int(v.removeprefix("clip")) // 2 for v in videos_of(s)} for s in (training, validation)
    ]
    assert not patients[0] & patients[1]
    with pytest.raises(DataError, match="no column 'slide'; it has image, patient"):
        parts(tmp_path, group_by=f"{table}:slide")
    table.write_text("image,patient\n" + "".join(rows[1:]))
    with pytest.raises(DataError, match="the image clip0_frame0 has no row"):
        parts(tmp_path, group_by=f"{table}:patient")
    with pytest.raises(DataError, match="groups cannot be read"):
        parts(tmp_path, group_by=f"{tmp_path / 'absent.csv'}:patient")


def test_a_pattern_that_groups_nothing_is_refused(tmp_path: Path) -> None:
    video(tmp_path)
    with pytest.raises(ConfigError, match="found in none of the 24 names, such as clip0_frame0"):
        parts(tmp_path, group_by="^slide")
    with pytest.raises(ConfigError, match="no regular expression"):
        parts(tmp_path, group_by="(")
    with pytest.raises(DataError, match="all 24 images are of one group"):
        parts(tmp_path, group_by="^clip")


def test_a_name_without_the_pattern_is_a_group_of_its_own() -> None:
    names = ["a_1", "a_2", "odd"]
    assert name_groups(names, "^(.)_") == {"a_1": "a", "a_2": "a"}


def test_folds_keep_groups_whole_and_are_as_before_without() -> None:
    names = [f"clip{number // 4}_frame{number % 4}" for number in range(24)]
    groups = name_groups(names, "^clip\\d+")
    for fold in divide(names, 3, run=load_run(), groups=groups):
        sides = [videos_of(side) for side in (fold.held_out, fold.training, fold.validation)]
        assert sum(map(len, sides)) == 6
        assert all(sides)
    drawn = sorted(names, key=lambda name: sha256(f"4:{name}"))
    before = tuple(frozenset(drawn[first::5]) for first in range(5))
    assert choose_folds(names, 5, seed=4) == before


def test_a_mask_is_read_once_for_the_split_and_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video(tmp_path)
    read: Counter[str] = Counter()
    real = read_mask

    def counted(path: Path, rule: Masks) -> Any:
        read[path.name] += 1
        return real(path, rule)

    monkeypatch.setattr(labels, "read_mask", counted)
    for part in ("train", "val"):
        survey(open_split(Data(path=tmp_path), part, seed=0))
    assert set(read.values()) == {1}
    assert len(read) == 24
    save(tmp_path, "clip0_frame0.png", draw(99), empty=True)
    survey(open_split(Data(path=tmp_path), "all", seed=0))
    assert read == {name: 2 if name == "clip0_frame0.png" else 1 for name in read}


def small(folder: Path, **more: Any) -> Any:
    flags: Mapping[str, Any] = {**SMALL, "data.path": folder, **more}
    return load_run(flags=flags)


def test_validation_without_foreground_gets_no_advice_about_the_learning_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        save(tmp_path / "data" / "train", f"{number}.png", draw(number))
    for number in range(12, 18):
        save(tmp_path / "data" / "val", f"{number}.png", draw(number), empty=True)
    with caplog.at_level(logging.INFO):
        train(small(tmp_path / "data"), out=tmp_path / "run")
    said = [record.getMessage() for record in caplog.records]
    assert (
        sum("no validation image has foreground, so that validation cannot" in s for s in said) == 2
    )
    assert not any("learning-rate" in text for text in said)


def test_a_single_mask_with_foreground_is_trained_on_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        save(tmp_path, f"{number}.png", draw(number), empty=number != 5)
    for seed in range(12):
        training, _ = parts(tmp_path, seed=seed)
        assert "5" in training
    assert "only one mask has foreground" in caplog.text


def test_a_resumed_run_keeps_the_validation_images_that_it_wrote_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    for number in range(12):
        save(data, f"{number}.png", draw(number))
    run = small(data, **{"data.validation_fraction": 0.25})
    with monkeypatch.context() as patch:  # as a version that chose otherwise had it
        patch.setattr(dividing, "choose_validation", lambda *_, **__: frozenset("048"))
        train(run, out=out)
    assert parts(data, validation_fraction=0.25)[1] != {"0", "4", "8"}
    longer = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 2})})
    result = resume(out, run=longer)
    assert result.epoch in (1, 2)
    assert (out / "validation.txt").read_text().split() == ["0", "4", "8"]
