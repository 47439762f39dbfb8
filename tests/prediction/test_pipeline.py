"""Many images: order, memory, what cannot be read, and what is left when it ends early."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import saved
from notan.errors import DataError, DivergedError, ShapeError, StorageError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.flow import LEAST_AHEAD, bytes_ahead
from notan.prediction.formats import Writers
from notan.prediction.inputs import Found
from notan.prediction.items import Item, items_of
from notan.prediction.pipeline import Pipeline
from notan.prediction.predictor import Predictor
from notan.prediction.table import PredictionTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.prediction.predictor import Prediction
    from notan.types import RGBImage, Size

PLAIN = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def red_is_foreground() -> Predictor:
    return Predictor(lambda inputs: ((inputs[:, :1] - 0.5) * 20).astype(np.float32), PLAIN)


def image(number: int, size: Size = (8, 9)) -> RGBImage:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def item(number: int, *, size: Size = (8, 9), in_order: bool = False) -> Item:
    name = f"p{number:03d}"
    path = Path(f"{name}.png")
    return Item(name, path, size, lambda: image(number, size), in_order=in_order)


def broken(number: int) -> Item:
    def read() -> RGBImage:
        raise DataError(f"p{number:03d}.png: is damaged")

    return Item(f"p{number:03d}", Path(f"p{number:03d}.png"), None, read)


class Shelf(Writers):
    """Keeps what is written; may fail at an image or be told that some are there."""

    def __init__(self, *, fail_at: str = "", there: tuple[str, ...] = ()) -> None:
        super().__init__(["mask"], Path())
        self.masks: dict[str, Any] = {}
        self.fail_at = fail_at
        self.there = set(there)

    def add(self, name: str, path: Path, image: RGBImage, prediction: Prediction) -> None:
        if name == self.fail_at:
            raise StorageError(f"{name}: could not be written (No space left on device)")
        np.testing.assert_array_equal(prediction.mask, image[..., 0] > 127)
        assert path == Path(f"{name}.png")
        self.masks[name] = prediction.mask

    def has(self, name: str, *, is_large: bool = False) -> bool:
        return name in self.there or name in self.masks


def run(items: Any, folder: Path, shelf: Shelf | None = None, **options: Any) -> PredictionTable:
    table: PredictionTable = options.pop("table", None) or PredictionTable(folder)
    predictor = options.pop("predictor", None) or red_is_foreground()
    Pipeline(predictor, shelf or Shelf(), table, **options).run(items)
    return table


def names(folder: Path) -> list[str]:
    return [row.name for row in PredictionTable.read(folder).rows]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_image_gets_its_own_mask_and_its_row_in_order(
    tmp_path: Path, batch_size: int, in_order: bool
) -> None:
    items = [
        item(number, size=(8, 9) if number % 3 else (20, 7), in_order=in_order)
        for number in range(20)
    ]
    shelf = Shelf()
    outcome = run(items, tmp_path, shelf, batch_size=batch_size)
    assert (outcome.predicted, outcome.kept, outcome.total) == (20, 0, 20)
    assert sorted(shelf.masks) == names(tmp_path) == [item.name for item in items]
    assert not (tmp_path / "failed.csv").exists()


def test_what_cannot_be_read_is_listed_and_stops_nothing(tmp_path: Path) -> None:
    items = [item(0), broken(1), item(2), broken(3)]
    outcome = run(items, tmp_path, batch_size=2)
    assert [failure.name for failure in outcome.failures] == ["p001", "p003"]
    assert (outcome.predicted, outcome.total) == (2, 4)
    assert names(tmp_path) == ["p000", "p002"]
    assert (tmp_path / "failed.csv").read_text().splitlines() == [
        "name,image,reason",
        "p001,p001.png,p001.png: is damaged",
        "p003,p003.png,p003.png: is damaged",
    ]
    run([item(1)], tmp_path)
    assert not (tmp_path / "failed.csv").exists()


def test_nothing_but_failures_gives_no_table(tmp_path: Path) -> None:
    assert run([broken(0)], tmp_path).predicted == 0
    assert not (tmp_path / "predictions.csv").exists()


def test_an_image_that_fails_to_be_written_ends_the_run_with_whole_rows(tmp_path: Path) -> None:
    asked = 0

    def items() -> Iterator[Item]:
        nonlocal asked
        for number in range(2000):
            asked += 1
            yield item(number)

    shelf = Shelf(fail_at="p005")
    with pytest.raises(StorageError, match="p005: could not be written"):
        run(items(), tmp_path, shelf)
    assert "p005" not in names(tmp_path)
    assert set(names(tmp_path)) <= set(shelf.masks)
    assert names(tmp_path)[:5] == [f"p00{number}" for number in range(5)]
    assert asked < 2000


def test_the_last_image_that_fails_to_be_written_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="p002"):
        run([item(0), item(1), item(2)], tmp_path, Shelf(fail_at="p002"))
    assert names(tmp_path) == ["p000", "p001"]


def test_ctrl_c_keeps_what_is_done_and_resuming_gives_the_same_table(tmp_path: Path) -> None:
    items = [item(0), broken(1), *(item(number) for number in range(2, 12))]
    run(items, tmp_path / "whole")
    shelf, calls = Shelf(), 0
    predictor = red_is_foreground()

    def interrupted(inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return predictor.backend(inputs)

    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path / "stopped", shelf, predictor=Predictor(interrupted, PLAIN))
    done = names(tmp_path / "stopped")
    assert set(done) <= set(shelf.masks)
    assert 0 < len(done) < 11
    table = PredictionTable.read(tmp_path / "stopped")
    outcome = run(items, tmp_path / "stopped", shelf, table=table)
    assert (outcome.kept, outcome.predicted) == (len(done), 11 - len(done))
    for name in ("predictions.csv", "failed.csv"):
        texts = [(tmp_path / part / name).read_text() for part in ("whole", "stopped")]
        assert texts[0] == texts[1]


def test_what_is_done_is_not_read_again(tmp_path: Path) -> None:
    run([item(0), item(1)], tmp_path)

    def never() -> RGBImage:
        pytest.fail("an image that is done was read again")

    done = [Item(f"p00{n}", Path(f"p00{n}.png"), (8, 9), never, in_order=n == 0) for n in (0, 1)]
    shelf = Shelf(there=("p000", "p001"))
    outcome = run(done, tmp_path, shelf, table=PredictionTable.read(tmp_path))
    assert (outcome.kept, outcome.predicted) == (2, 0)
    assert names(tmp_path) == ["p000", "p001"]


@pytest.mark.parametrize("missing", ["row", "output", "image"])
def test_what_is_half_done_is_done_again(tmp_path: Path, missing: str) -> None:
    run([item(0), item(1)], tmp_path)
    table = PredictionTable.read(tmp_path)
    again = item(1)
    if missing == "row":
        table = PredictionTable(tmp_path, (row for row in table.rows if row.name != "p001"))
    if missing == "image":  # the row is of another file of that name
        table = PredictionTable(
            tmp_path,
            (type(row)(**{**vars(row), "image": "elsewhere/" + row.image}) for row in table.rows),
        )
    shelf = Shelf(there=("p000",) if missing == "output" else ("p000", "p001"))
    outcome = run([again], tmp_path, shelf, table=table)
    assert (outcome.kept, outcome.predicted) == (0, 1)
    assert "p001" in shelf.masks


def test_two_items_of_one_name_never_share_outputs(tmp_path: Path) -> None:
    shelf = Shelf()
    outcome = run([item(0), item(0)], tmp_path, shelf)
    assert outcome.predicted == 1
    assert "would replace those of another image, p000" in outcome.failures[0].reason


@pytest.mark.parametrize("batch_size", [1, 8])
def test_decoded_bytes_are_bounded_however_many_images_there_are(
    tmp_path: Path, batch_size: int
) -> None:
    """While the network is busy, no more is decoded than the budget before it, beside a chunk."""
    size, fits = (900, 700), 3
    read_so_far, given, ahead = 0, 0, list[int]()
    weight = bytes_ahead(red_is_foreground(), size)
    assert weight > LEAST_AHEAD

    def read() -> RGBImage:
        nonlocal read_so_far
        read_so_far += 1
        return np.zeros((*size, 3), np.uint8)

    def busy(inputs: Any) -> Any:
        nonlocal given
        given += len(inputs)
        time.sleep(0.05)
        ahead.append(read_so_far - given)
        return inputs[:, :1]

    items = (Item(f"{n}", Path(f"{n}.png"), size, read) for n in range(12))
    budget = fits * weight
    predictor = Predictor(busy, PLAIN)
    run(items, tmp_path, Anything(), predictor=predictor, budget=budget, batch_size=batch_size)
    assert read_so_far == 12
    assert max(ahead) <= 2 * fits  # waiting, and put together for the next batch


class Anything(Shelf):
    """Takes whatever it is given."""

    def add(self, name: str, path: Path, image: RGBImage, prediction: Prediction) -> None:
        self.masks[name] = prediction.mask


def test_an_image_larger_than_the_budget_passes_alone(tmp_path: Path) -> None:
    items = [item(number, size=(30, 40)) for number in range(5)]
    assert run(items, tmp_path, batch_size=4, budget=10).predicted == 5


def test_a_network_that_fails_ends_the_run(tmp_path: Path) -> None:
    nothing = Predictor(lambda inputs: np.full_like(inputs[:, :1], np.nan), PLAIN)
    with pytest.raises(DivergedError):
        run([item(n) for n in range(9)], tmp_path, predictor=nothing)
    assert not (tmp_path / "predictions.csv").exists()


def test_an_error_of_the_programme_is_not_swallowed(tmp_path: Path) -> None:
    def items() -> Iterator[Item]:
        yield item(0)
        raise ZeroDivisionError

    def wrong() -> RGBImage:
        return np.zeros((3, 3, 2), np.uint8)

    with pytest.raises(ZeroDivisionError):
        run(items(), tmp_path)
    with pytest.raises(ShapeError):
        run([Item("a", Path("a.png"), (3, 3), wrong)], tmp_path)


def test_no_thread_outlives_the_run(tmp_path: Path) -> None:
    before = threading.active_count()
    run([item(n) for n in range(9)], tmp_path)
    with pytest.raises(StorageError):
        run([item(n) for n in range(99)], tmp_path, Shelf(fail_at="p003"))
    assert threading.active_count() == before


def test_progress_is_told_of_every_item(tmp_path: Path) -> None:
    seen: list[str] = []
    items = [item(0), broken(1), item(2)]
    run(items, tmp_path, progress=lambda item: seen.append(item.name))
    assert sorted(seen) == ["p000", "p001", "p002"]


def test_files_that_wait_are_closed_when_it_ends_early(tmp_path: Path) -> None:
    items = [
        next(items_of(Found(f"p{n}", saved(tmp_path / f"p{n}.png", Image.fromarray(image(n))))))
        for n in range(9)
    ]

    def interrupted(inputs: Any) -> Any:
        raise KeyboardInterrupt(inputs.shape)

    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path, Anything(), predictor=Predictor(interrupted, PLAIN))
    for each in items:
        with pytest.raises(DataError, match="closed file"):
            each.read()
