"""A training reads each image once, and its weights do not know where the images stay."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from notan.data.store import StoredSource
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import StoppedBySignal
from notan.io.images import read_channels
from notan.training import resume, train
from notan.training.build import prepare
from notan.training.trainer import Trainer
from runs import (
    TRAINING,
    VALIDATION,
    Crash,
    ask_to_stop,
    before_step,
    crash,
    fate,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from notan.config import Run

IMAGES, CHECKS, EPOCHS = 9, 3, 3


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to train and validate on, and some without masks; not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    write_folder(DrawnSource(IMAGES, size=(20, 26)), folder / "train")
    write_folder(DrawnSource(CHECKS, size=(20, 26), first=20), folder / "val")
    write_folder(DrawnSource(4, size=(20, 26), first=50), folder / "more")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each image is decoded in this process."""
    counts: Counter[str] = Counter()

    def counted(paths: Sequence[Path], *arguments: Any) -> npt.NDArray[Any]:
        counts["/".join(paths[0].parts[-3:])] += 1
        return read_channels(paths, *arguments)

    monkeypatch.setattr("notan.data.samples.read_channels", counted)
    return counts


def settings(folder: Path, **more: object) -> Run:
    return tiny(data__path=folder, train__epochs=EPOCHS, train__checkpoint_every_steps=1, **more)


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How a training ends that decodes each image in each epoch."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(settings(folder, data__cache="off"), out=out)
    return fate(out)


@pytest.mark.parametrize(
    ("cache", "workers"), [("auto", 0), ("memory", 2), ("disk", 0), ("disk", 2)]
)
def test_the_weights_do_not_know_where_images_stay(
    folder: Path, tmp_path: Path, plain: dict[str, Any], cache: str, workers: int
) -> None:
    run = settings(folder, data__cache=cache, data__workers=workers)
    for number in range(1 + (cache == "disk")):  # the second finds all of them
        train(run, out=tmp_path / f"run{number}")
        assert fate(tmp_path / f"run{number}") == plain


def test_each_image_is_decoded_once_from_the_first_step_to_the_choice_of_a_threshold(
    folder: Path, tmp_path: Path, decoded: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(settings(folder, data__cache="off"), out=tmp_path / "off")
    assert min(decoded.values()) > 1
    assert not [line for line in caplog.messages if "decoded images" in line]
    decoded.clear()
    train(settings(folder), out=tmp_path / "run")
    assert Counter(decoded.values()) == {1: IMAGES + CHECKS}
    (line,) = (line for line in caplog.messages if "decoded images" in line)
    assert line.startswith("12 decoded images, 1 MiB, stay in memory of which ")
    for name, count in (("one", IMAGES + CHECKS), ("two", 0)):
        decoded.clear()
        train(settings(folder, data__cache="disk"), out=tmp_path / name)
        assert decoded.total() == count


def test_the_start_decodes_nothing(folder: Path, decoded: Counter[str]) -> None:
    for cache in ("memory", "disk"):
        setup = prepare(settings(folder, data__cache=cache))
        assert isinstance(setup.training, StoredSource)
        assert isinstance(setup.validation, StoredSource)
    assert not decoded


def test_images_without_masks_are_decoded_once_too(
    folder: Path, tmp_path: Path, decoded: Counter[str]
) -> None:
    ends = []
    for cache in ("off", "memory", "disk"):
        decoded.clear()
        run = settings(folder, train__unlabelled=folder / "more", data__cache=cache)
        train(run, out=tmp_path / cache)
        ends.append(fate(tmp_path / cache))
        counts = [count for name, count in decoded.items() if name.startswith("more/")]
        assert len(counts) == 4
        assert min(counts) > 1 if cache == "off" else max(counts) == 1
    assert ends[0] == ends[1] == ends[2]


def test_images_of_the_users_own_are_left_as_they_are() -> None:
    setup = prepare(tiny(), training=TRAINING, validation=VALIDATION)
    assert setup.training is TRAINING
    assert setup.validation is VALIDATION


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ("memory", "disk", crash),
        ("disk", "off", ask_to_stop),
        ("off", "memory", crash),
        ("disk", "disk", crash),
    ],
)
def test_a_run_goes_on_bit_for_bit_wherever_images_stay_by_then(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain: dict[str, Any],
    before: str,
    after: str,
    action: Callable[[Trainer], None],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(5, action))
        with pytest.raises((StoppedBySignal, Crash)):
            train(settings(folder, data__cache=before), out=tmp_path / "run")
    resume(tmp_path / "run", run=settings(folder, data__cache=after))
    assert fate(tmp_path / "run") == plain


def test_a_transform_of_the_users_own_may_write_into_what_it_gets(
    folder: Path, tmp_path: Path
) -> None:
    def darken(image: npt.NDArray[Any], mask: npt.NDArray[Any]) -> dict[str, Any]:
        image //= 2
        mask[:3] = 0
        return {"image": image, "mask": mask}

    ends = []
    for cache in ("off", "memory", "disk"):
        train(settings(folder, data__cache=cache), out=tmp_path / cache, transform=darken)
        ends.append(fate(tmp_path / cache))
    assert ends[0] == ends[1] == ends[2]


def test_a_damaged_image_ends_the_training_as_ever(tmp_path: Path) -> None:
    words = []
    for cache in ("off", "memory", "disk"):
        write_folder(DrawnSource(IMAGES, size=(20, 26)), tmp_path / "data" / "train")
        write_folder(DrawnSource(CHECKS, size=(20, 26), first=20), tmp_path / "data" / "val")
        broken = sorted((tmp_path / "data" / "train" / "images").iterdir())[4]
        broken.write_bytes(broken.read_bytes()[:-100])
        with pytest.raises(Exception, match=broken.name) as error:
            train(settings(tmp_path / "data", data__cache=cache), out=tmp_path / cache)
        words.append((type(error.value), str(error.value)))
    assert words[0] == words[1] == words[2]


def test_own_images_say_nothing_of_a_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train_own(tiny(), tmp_path / "run")
    assert not [line for line in caplog.messages if "decoded images" in line]
