"""evaluate: every image once, in order, at its own size, with the rules beside the numbers."""

from __future__ import annotations

import csv
import json
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from notan.config import Data, TrimapBorder
from notan.data.folders import open_split
from notan.data.samples import Sample, Source
from notan.data.synthetic import DrawnSource
from notan.errors import DataError, StorageError
from notan.evaluation import evaluate as evaluation
from notan.evaluation.evaluate import SUMMARY, TABLE, evaluate, write_score
from notan.metrics import BoundaryScore, Counts, Grouping, ScoreRules, Tally, Tolerance
from notan.metrics.probabilities import ProbabilityHistogram, Ranking, brier
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction import flow
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.prediction.backends import Array, Precision
    from notan.prediction.predictor import Prediction
    from notan.types import Mask

SMALL = Preprocessor(image_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
SIZES = ((20, 33), (16, 16), (47, 9), (16, 16), (1, 1))


class Listed(Source):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def drawn_sample(name: str, mask: Mask, ignore: Mask | None = None) -> Sample:
    """An image that is white where the mask is, so that a stub can answer it."""
    return Sample(name, np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask, ignore)


def random_source(sizes: Sequence[tuple[int, int]] = SIZES) -> Listed:
    rng = np.random.default_rng(3)
    return Listed(
        [
            drawn_sample(f"image-{number}", rng.random(size) > 0.6)
            for number, size in enumerate(sizes)
        ]
    )


def stub(sign: float = 1.0, offset: float = 0.0) -> Predictor:
    """Answers foreground where the image is white (or black: -1), plus the offset."""

    def backend(inputs: Array) -> Array:
        return ((inputs[:, :1] - 0.5) * 40 * sign + offset).astype(np.float32)

    plain = Preprocessor(image_size=None, mean=(0, 0, 0), std=(1, 1, 1))
    return Predictor(backend, plain)


def test_a_perfect_model_scores_one() -> None:
    score = evaluate(stub(), random_source(), split="test")
    assert score.mean_dice == score.mean_iou == score.pooled_dice == score.pooled_iou == 1


def test_all_background_scores_nothing_save_on_empty_images() -> None:
    full, empty = np.ones((8, 8), np.bool_), np.zeros((8, 8), np.bool_)
    source = Listed([drawn_sample("full", full), drawn_sample("empty", empty)])
    score = evaluate(stub(offset=-1000), source, split="test")
    assert [image.counts.dice for image in score.images] == [0, 1]
    assert score.empty_images == 1
    assert score.mean_dice == 0.5


def test_a_false_alarm_on_an_empty_image_scores_nothing() -> None:
    source = Listed([drawn_sample("empty", np.zeros((8, 8), np.bool_))])
    assert evaluate(stub(sign=-1), source, split="test").mean_dice == 0


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_batch_size_changes_no_score(small_checkpoint: Path, batch_size: int) -> None:
    predictor, source = Predictor.load(small_checkpoint), DrawnSource(7, size=(40, 48))
    many = evaluate(predictor, source, split="test", batch_size=batch_size)
    single = evaluate(predictor, source, split="test")
    for one, other in zip(many.images, single.images, strict=True):
        assert (one.name, one.counts, one.boundary_f) == (
            other.name,
            other.counts,
            other.boundary_f,
        )
        # another batch size may compute a probability's last bit in another order
        assert one.brier == pytest.approx(other.brier, rel=1e-5)
        assert one.average_precision == pytest.approx(other.average_precision, abs=1e-4)


def test_every_image_is_scored_at_its_own_size() -> None:
    source = random_source()
    small = Predictor(stub().backend, SMALL)
    score = evaluate(small, source, split="test", batch_size=4)
    for sample, image in zip(source, score.images, strict=True):
        assert (image.height, image.width) == sample.size
        counts = image.counts
        prediction = small(sample.image).mask
        assert counts == Counts.of(prediction, sample.mask)
    assert score.rules.size == "original size"


def test_an_ignored_area_counts_on_neither_side() -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[4:12, 4:12] = True
    ignore = np.zeros((16, 16), np.bool_)
    ignore[:8] = True
    wrong = drawn_sample("half", mask)
    image = wrong.image.copy()
    image[:8] = 255  # the stub answers foreground: wrong, but only where nobody looks
    source = Listed([Sample("half", image, mask, ignore)])
    score = evaluate(stub(), source, split="test", trimap_border="ignore")
    assert score.mean_dice == 1
    assert score.images[0].counts == Counts(32, 0, 0, 96)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_callback_sees_every_image_once_in_order_with_its_own_prediction(
    batch_size: int,
) -> None:
    source, seen = random_source(), []

    def keep(sample: Sample, prediction: Prediction) -> None:
        np.testing.assert_array_equal(prediction.mask, sample.mask)
        seen.append(sample.name)

    evaluate(stub(), source, split="test", batch_size=batch_size, on_prediction=keep)
    assert seen == source.names


def test_the_score_says_by_which_rules_it_was_taken() -> None:
    predictor = stub()
    predictor.postprocessing = Postprocessing(threshold=0.25)
    rules = evaluate(predictor, random_source(), split="val", trimap_border="background").rules
    assert (rules.split, rules.trimap_border, rules.threshold) == ("val", "background", 0.25)
    assert rules.postprocessing == "threshold 0.25"
    assert evaluate(predictor, random_source(), split="val").rules.trimap_border == "none"


def test_the_score_says_what_the_network_computed_in(small_checkpoint: Path) -> None:
    source = DrawnSource(3, size=(40, 48))
    cases: tuple[tuple[Precision, str], ...] = (("auto", "fp32"), ("bf16", "bf16"))
    for wanted, found in cases:
        predictor = Predictor.load(small_checkpoint, precision=wanted)
        score = evaluate(predictor, source, split="test")
        assert score.rules.precision == found
        assert ("computed in bf16" in score.summary()) is (found == "bf16")


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_the_score_is_the_same_to_the_last_digit_for_any_number_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rough = random_source(SIZES * 6), Predictor(stub().backend, SMALL)
    tally = Tally(ScoreRules(trimap_border="none", threshold=0.5, split="test"))
    for sample in source:
        prediction = rough(sample.image)
        tally.add(tally.measure(sample.name, prediction.mask, prediction.probability, sample.mask))
    expected = tally.score()
    monkeypatch.setattr(flow, "choose_threads", lambda *_, **__: threads)
    score = evaluate(rough, source, split="test", batch_size=4)
    for field in ("mean_dice", "pooled", "reliability", "threshold_sweep"):
        assert getattr(score, field) == getattr(expected, field)


def test_images_are_written_in_threads_each_once() -> None:
    source, written, threads = random_source(SIZES * 4), [], set()

    def write(sample: Sample, prediction: Prediction) -> None:
        np.testing.assert_array_equal(prediction.mask, sample.mask)
        written.append(sample.name)
        threads.add(threading.current_thread())

    evaluate(stub(), source, split="test", batch_size=3, write=write)
    assert sorted(written) == sorted(source.names)
    assert threading.main_thread() not in threads


def test_the_sample_that_cannot_be_read_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source, whole = random_source(SIZES * 4), Listed.__getitem__

    def damaged(self: Listed, index: int) -> Sample:
        if index == 7:
            raise DataError("image-7: is damaged")
        return whole(self, index)

    monkeypatch.setattr(Listed, "__getitem__", damaged)
    monkeypatch.setattr(Listed, "content_hashes", lambda _: [])
    seen: list[str] = []
    with pytest.raises(DataError, match="image-7: is damaged"):
        evaluate(
            stub(),
            source,
            split="test",
            batch_size=3,
            on_prediction=lambda sample, _: seen.append(sample.name),
        )
    assert seen == source.names[:7]


def test_samples_are_read_ahead_only_as_far_as_the_budget_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, fits = (700, 700), 3
    weight = flow.bytes_ahead(stub(), size)
    assert weight > flow.LEAST_AHEAD
    monkeypatch.setattr(evaluation, "BUDGET", fits * weight)
    read: list[int] = []
    whole, network = Listed.__getitem__, stub().backend
    too_many = threading.Event()

    def counted(self: Listed, index: int) -> Sample:
        read.append(index)
        if len(read) > predicted[0] + fits + 1:
            too_many.set()
        return whole(self, index)

    predicted = [0]

    def busy(inputs: Array) -> Array:
        assert not too_many.wait(0.03)
        predicted[0] += len(inputs)
        return network(inputs)

    monkeypatch.setattr(Listed, "__getitem__", counted)
    monkeypatch.setattr(Listed, "content_hashes", lambda _: [])
    source = random_source([size] * 10)
    evaluate(Predictor(busy, stub().preprocessor), source, split="test")
    assert len(read) == 10


def test_what_the_model_expects_stands_beside_what_it_reached() -> None:
    source, rough = random_source(), Predictor(stub().backend, SMALL)
    wary = rough.with_postprocessing(Postprocessing(review_below=0.5))
    score = evaluate(wary, source, split="test")
    for sample, image in zip(source, score.images, strict=True):
        prediction = wary(sample.image)
        assert image.expected_dice == prediction.expected_dice
        assert image.needs_review is (prediction.expected_dice < 0.5)
    assert score.expected is not None
    assert evaluate(rough, source, split="test").images[0].needs_review is None


def test_boundaries_and_probabilities_are_those_of_the_prediction() -> None:
    source, rough = random_source(), Predictor(stub().backend, SMALL)
    allowed = Tolerance(3, percent=False)
    score = evaluate(rough, source, split="test", tolerance=allowed)
    for sample, image in zip(source, score.images, strict=True):
        prediction = rough(sample.image)
        boundary = BoundaryScore.of(prediction.mask, sample.mask, tolerance=allowed)
        assert asdict(boundary).items() <= image.numbers().items()
        ranking = Ranking.of(prediction.probability, sample.mask)
        assert image.average_precision == ranking.average_precision()
        assert image.brier == brier(ProbabilityHistogram.of(ranking))
    assert score.rules.tolerance == allowed
    assert evaluate(rough, source, split="test").rules.tolerance == Tolerance()


def test_the_groups_that_are_given_are_scored() -> None:
    source = random_source()
    place = {name: "here" if name == "image-0" else "there" for name in source.names}
    score = evaluate(
        Predictor(stub().backend, SMALL),
        source,
        split="test",
        groupings=(Grouping("place", place, "a test"),),
    )
    assert score.groups["place"]["here"].mean == score.images[0].dice
    assert score.groups["place"]["there"].images == len(source) - 1


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to score: split 'test' holds no image"):
        evaluate(stub(), Listed([]), split="test")


def test_table_and_summary_read_back_to_the_score(tmp_path: Path) -> None:
    source = random_source()
    source.samples[0] = drawn_sample('a "name", with\na break', source.samples[0].mask)
    small = Predictor(stub().backend, SMALL)
    score = evaluate(small, source, split="test", trimap_border="foreground")
    write_score(tmp_path / "out", score)
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert summary["mean_dice"] == score.mean_dice
    assert summary["pooled_iou"] == score.pooled_iou
    assert summary["rules"]["trimap_border"] == "foreground"
    assert summary["rules"]["split"] == "test"
    with (tmp_path / "out" / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for table in (rows, summary["images"]):
        assert [row["name"] for row in table] == source.names
        for row, image in zip(table, score.images, strict=True):
            check_row(row, image.counts, (image.height, image.width))
            for measure, value in image.numbers().items():
                assert row[measure] in (value, "" if value is None else str(value))


def check_row(row: Mapping[str, str | float], counts: Counts, size: tuple[int, int]) -> None:
    assert float(row["dice"]) == counts.dice
    assert float(row["iou"]) == counts.iou
    assert float(row["recall"]) == counts.recall
    assert (int(row["height"]), int(row["width"])) == size
    assert int(row["true_positive"]) == counts.true_positive
    assert int(row["false_negative"]) == counts.false_negative


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match=r"taken/score\.json"):
        write_score(tmp_path / "taken", evaluate(stub(), random_source(), split="test"))


class Answers(Source):
    """Images of one source whose pixels are the masks of another: a model that knows them."""

    def __init__(self, truth: Source, answer: Source, count: int) -> None:
        self.truth, self.answer, self.count = truth, answer, count

    @property
    def names(self) -> Sequence[str]:
        return self.truth.names[: self.count]

    def __getitem__(self, index: int) -> Sample:
        truth, answer = self.truth[index], self.answer[index]
        image = drawn_sample(truth.name, answer.mask).image
        return Sample(truth.name, image, truth.mask, truth.ignore)


def test_the_border_rules_of_the_pets_are_worlds_apart(pets_folder: Path) -> None:
    """A perfect mask by one rule is far from perfect by another, so a score must say its rule."""

    def source(trimap_border: TrimapBorder) -> Source:
        return open_split(Data(path=pets_folder, trimap_border=trimap_border), "test", seed=0)

    dice = {
        (answer, truth): evaluate(
            stub(), Answers(source(truth), source(answer), 12), split="test", trimap_border=truth
        ).mean_dice
        for answer in ("background", "foreground")
        for truth in get_args(TrimapBorder)
    }
    assert dice["background", "background"] == dice["foreground", "foreground"] == 1
    assert dice["background", "ignore"] == dice["foreground", "ignore"] == 1
    assert 0.5 < dice["background", "foreground"] == dice["foreground", "background"] < 0.95
