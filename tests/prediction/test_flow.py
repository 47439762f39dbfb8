"""The flow of many images: order, batches of one size, one batch ahead, and what it waited for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.errors import DataError, DivergedError, OutOfMemoryError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction import batches
from notan.prediction.batches import Answered, Batches, begin, computes_beside
from notan.prediction.flow import PATIENCE, REMEDIES, Flow, Job, Timing, choose_threads
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import Tiling
from notan.prediction.tta import AugmentedBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from notan.prediction.batches import Array
    from notan.prediction.predictor import Prediction
    from notan.types import Image8, ModelInput, Size

PLAIN = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def red(inputs: Array) -> Array:
    answer: Array = ((inputs[:, :1] - 0.5) * 20).astype(np.float32)
    return answer


def image(number: int, size: Size = (8, 9)) -> Image8:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


class Shapes:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Array) -> Array:
        self.shapes.append(inputs.shape)
        return red(inputs)


class Gpu:
    """Stands for a network on a GPU: notes when it is begun and when its answer is asked for.

    Has memory for a batch of ``most`` at once, those in flight included.
    """

    overlaps = True

    def __init__(self, *, most: int = 1000, seconds: float = 0.0) -> None:
        self.calls: list[str] = []
        self.most, self.seconds = most, seconds
        self.begun = self.in_flight = 0
        self.was_compiled = False

    def __call__(self, inputs: Array) -> Array:
        return self.begin(list(inputs))().logits

    def begin(self, inputs: Sequence[ModelInput]) -> Callable[[], Answered]:
        if len(inputs) + self.in_flight > self.most:
            self.calls.append(f"no memory for {len(inputs)}")
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        number, self.begun = self.begun, self.begun + 1
        self.in_flight += len(inputs)
        self.calls.append(f"begin {number}")

        def answer() -> Answered:
            self.calls.append(f"read {number}")
            self.in_flight -= len(inputs)
            return Answered(red(np.stack(inputs)), self.seconds)

        return answer

    def compiled(self) -> Gpu:
        self.was_compiled = True
        return self


def mask_of(_: Image8, prediction: Prediction) -> Any:
    return prediction.mask


def jobs(
    images: Sequence[Image8], finish: Callable[[Image8, Prediction], Any] = mask_of, **options: Any
) -> Callable[[int], Job[Any]]:
    def start(number: int) -> Job[Any]:
        return Job(lambda: images[number], finish, **options)

    return start


def run(predictor: Predictor, given: Sequence[Image8], **options: Any) -> list[Any]:
    """Return the masks in the order in which they came, checked against their own images."""
    finish = options.pop("finish", mask_of)
    flow: Flow[int, Any] = Flow(predictor, **{"batch_size": 1, **options})
    found = list(flow.run(range(len(given)), jobs(given, finish)))
    assert [number for number, _ in found] == list(range(len(given)))
    assert flow.timing.images == flow.timing.files == len(given)
    return [result for _, result in found]


MIXED = [image(n, [(8, 9), (20, 7), (33, 40)][n % 3]) for n in range(30)]


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("tiled", [False, True])
def test_masks_and_their_order_depend_neither_on_threads_nor_on_batches(
    threads: int, batch_size: int, tiled: bool
) -> None:
    tiling = Tiling(always=True, input_size=(16, 16)) if tiled else None
    predictor = Predictor(red, PLAIN, tiling=tiling)
    found = run(predictor, MIXED, threads=threads, batch_size=batch_size)
    for each, mask in zip(MIXED, found, strict=True):
        np.testing.assert_array_equal(mask, each[..., 0] > 127)


def test_images_of_one_input_size_go_together_though_others_lie_between() -> None:
    network = Shapes()
    run(Predictor(network, PLAIN), MIXED, batch_size=5)
    assert sorted(network.shapes) == sorted(
        [(5, 3, 16, 16)] * 2 + [(5, 3, 32, 16)] * 2 + [(5, 3, 48, 48)] * 2
    )


def test_an_image_of_a_rare_size_does_not_hold_the_results_up_to_the_end() -> None:
    images = [image(0, (40, 40)), *(image(n) for n in range(1, 60))]
    network = Shapes()
    run(Predictor(network, PLAIN), images, batch_size=4)
    assert network.shapes.index((1, 3, 48, 48)) == PATIENCE
    assert len(network.shapes) == 1 + -(-59 // 4)


def test_batches_are_no_larger_than_the_budget_allows() -> None:
    images = [image(n, (512, 512)) for n in range(6)]
    weight = 512 * 512 * (8 + 4 * 4)
    network = Shapes()
    run(Predictor(network, PLAIN), images, batch_size=6, budget=2 * weight)
    assert [shape[0] for shape in network.shapes] == [2, 2, 2]


def test_the_next_batch_is_begun_before_the_answer_to_the_last_is_read() -> None:
    network = Gpu()
    run(Predictor(network, PLAIN), [image(n) for n in range(10)], batch_size=2)
    assert network.calls == [
        *("begin 0", "begin 1", "read 0", "begin 2", "read 1", "begin 3", "read 2"),
        *("begin 4", "read 3", "read 4"),
    ]


def test_tiles_and_lists_are_one_batch_ahead_too() -> None:
    network = Gpu()
    list(Predictor(network, PLAIN).predict_many([image(n) for n in range(3)]))
    assert network.calls == ["begin 0", "begin 1", "read 0", "begin 2", "read 1", "read 2"]
    network = Gpu()
    tiling = Tiling(always=True, input_size=(16, 16), overlap=0)
    Predictor(network, PLAIN, tiling=tiling)(image(0, (16, 48)))
    assert network.calls == ["begin 0", "begin 1", "read 0", "begin 2", "read 1", "read 2"]


def test_all_views_of_a_batch_are_begun_before_an_answer_is_read() -> None:
    network = Gpu()
    augmented = AugmentedBackend(network, ["hflip"], stride=16)
    assert computes_beside(augmented)
    images = [image(n, (16, 16)) for n in range(2)]
    found = run(Predictor(augmented, PLAIN), images)
    assert network.calls == [
        *("begin 0", "begin 1", "begin 2", "begin 3"),
        *("read 0", "read 1", "read 2", "read 3"),
    ]
    plain = AugmentedBackend(red, ["hflip"], stride=16)
    assert not computes_beside(plain)
    for mask, other in zip(found, run(Predictor(plain, PLAIN), images), strict=True):
        np.testing.assert_array_equal(mask, other)


def test_a_network_on_the_processor_is_read_at_once() -> None:
    given: list[str] = []
    through: Batches[str] = Batches(red, 2)
    inputs = np.zeros((3, 16, 16), np.float32)
    for name in "abc":
        given += [key for key, _ in through.put([(name, inputs)])]
    assert given == ["a", "b", "c"]
    assert list(through.rest()) == []
    assert through.images == 3
    assert through.seconds > 0


def test_a_batch_that_the_memory_does_not_hold_is_halved_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Gpu(most=3)
    images = [image(n) for n in range(20)]
    found = run(Predictor(network, PLAIN), images, batch_size=16)
    for each, mask in zip(images, found, strict=True):
        np.testing.assert_array_equal(mask, each[..., 0] > 127)
    assert [line.message for line in caplog.records] == [
        "memory does not hold a batch of 16: smaller ones are taken"
    ]
    assert network.calls[:2] == ["no memory for 16", "no memory for 8"]
    # what is in flight is read first, since it takes memory too
    failed = [number for number, call in enumerate(network.calls) if call == "no memory for 2"]
    assert all(network.calls[number + 1].startswith("read") for number in failed)


def test_memory_that_does_not_hold_one_image_ends_the_job() -> None:
    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        run(Predictor(Gpu(most=0), PLAIN), [image(0), image(1)], batch_size=2)


@pytest.mark.parametrize(("left", "compiles"), [(None, False), (100, False), (10_000, True)])
def test_a_network_is_compiled_where_it_has_long_to_go(left: int | None, compiles: bool) -> None:
    network = Gpu(seconds=0.1)
    run(Predictor(network, PLAIN), [image(n) for n in range(12)], batch_size=2, images=left)
    assert network.was_compiled is compiles


def test_a_network_on_the_processor_is_never_compiled() -> None:
    network = Gpu(seconds=100.0)
    network.overlaps = False
    run(Predictor(network, PLAIN), [image(n) for n in range(12)], images=10_000)
    assert not network.was_compiled


def test_many_files_that_a_quick_network_does_soon_are_not_compiled_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Gpu(seconds=1e-4)
    run(Predictor(network, PLAIN), [image(n) for n in range(12)], images=100_000)
    assert not network.was_compiled
    monkeypatch.setattr(batches, "COMPILING_PAYS_SECONDS", 1.0)
    run(Predictor(network, PLAIN), [image(n) for n in range(12)], images=100_000)
    assert network.was_compiled


def test_images_are_made_ready_and_finished_in_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[str]] = {"prepare": set(), "finish": set(), "network": set()}

    def watched(name: str) -> Any:
        whole = getattr(Predictor, name)

        def method(self: Predictor, *given: Any) -> Any:
            seen[name].add(threading.current_thread().name.partition("_")[0])
            return whole(self, *given)

        return method

    def network(inputs: Array) -> Array:
        seen["network"].add(threading.current_thread().name)
        return red(inputs)

    for name in ("prepare", "finish"):
        monkeypatch.setattr(Predictor, name, watched(name))
    run(Predictor(network, PLAIN), [image(n) for n in range(9)], batch_size=2)
    here = threading.current_thread().name
    assert seen == {"prepare": {"read"}, "finish": {"finish"}, "network": {here}}


def slow_reading(number: int) -> Image8:
    time.sleep(0.02)
    return image(number)


def slow_network(inputs: Array) -> Array:
    time.sleep(0.02)
    return red(inputs)


def slow_writing(_: Image8, prediction: Prediction) -> Any:
    time.sleep(0.02)
    return prediction.mask


@pytest.mark.parametrize("slow", ["reading", "network", "writing"])
def test_what_is_slow_is_what_it_says_it_waited_for(slow: str) -> None:
    predictor = Predictor(slow_network if slow == "network" else red, PLAIN)
    read = slow_reading if slow == "reading" else image
    finish = slow_writing if slow == "writing" else mask_of
    flow: Flow[int, Any] = Flow(predictor, batch_size=1, threads=1)

    def start(number: int) -> Job[Any]:
        return Job(lambda: read(number), finish)

    assert len(list(flow.run(range(40), start))) == 40
    timing = flow.timing
    assert timing.waited_for == slow
    spent = {"reading": timing.reading, "network": timing.network, "writing": timing.writing}
    assert spent[slow] > 0.5 * timing.seconds
    assert sum(spent.values()) <= timing.seconds
    assert REMEDIES[slow] in timing.in_words()
    # a slow disk makes no slow network
    assert (timing.network_alone < 60) is (slow == "network")


def test_the_rates_are_said_in_one_sentence() -> None:
    timing = Timing(10.0, 8.0, 1.5, 0.5, computing=0.5, images=880, files=882)
    assert timing.in_words() == (
        "88.2 images a second from files to files, 1.76e+03 by the network alone; it waited for "
        "reading 80%, the network 15%, writing 5% of the time: reading is what holds it up; more "
        "cores, a quicker disk or smaller images help"
    )


def test_a_job_of_nothing_has_a_timing() -> None:
    flow: Flow[int, Any] = Flow(Predictor(red, PLAIN), batch_size=4)
    assert list(flow.run([], jobs([]))) == []
    assert flow.timing.files == flow.timing.images == 0
    assert flow.timing.network_alone == 0


@pytest.mark.parametrize(
    ("cores", "on_gpu", "threads"),
    [(1, False, 2), (2, False, 2), (16, False, 4), (1, True, 2), (2, True, 2), (16, True, 16)],
)
def test_all_cores_read_and_write_where_the_network_leaves_them(
    cores: int, on_gpu: bool, threads: int
) -> None:
    assert choose_threads(cores, leaves_processor_free=on_gpu) == threads


def test_a_bad_file_in_the_middle_of_a_batch_takes_its_own_place() -> None:
    def start(number: int) -> Job[Any]:
        def read() -> Image8:
            if number in (1, 4):
                raise DataError(f"{number} is damaged")
            return image(number)

        return Job(read, lambda *_: number)

    flow: Flow[int, Any] = Flow(Predictor(Gpu(), PLAIN), batch_size=3)
    found = [
        str(result) if isinstance(result, DataError) else result
        for _, result in flow.run(range(7), start)
    ]
    assert found == [0, "1 is damaged", 2, 3, "4 is damaged", 5, 6]
    assert (flow.timing.images, flow.timing.files) == (5, 7)


def test_an_error_in_a_thread_ends_it_and_the_rest_can_be_had() -> None:
    def start(number: int) -> Job[int]:
        def finish(*_: object) -> int:
            if number == 3:
                raise DivergedError("three")
            return number

        return Job(lambda: image(number), finish)

    flow: Flow[int, int] = Flow(Predictor(red, PLAIN), batch_size=8)
    found: list[Any] = []
    with pytest.raises(DivergedError, match="three"):
        found.extend(flow.run(range(8), start))
    found.extend(flow.rest())
    assert [number for number, _ in found] == [0, 1, 2, 4, 5, 6, 7]
    assert list(flow.rest()) == []


def test_what_is_not_read_any_more_is_discarded() -> None:
    discarded: list[int] = []
    read: list[int] = []

    def start(number: int) -> Job[int]:
        def reading() -> Image8:
            read.append(number)
            return image(number)

        return Job(reading, lambda *_: number)

    def things() -> Iterator[int]:
        yield from range(1000)

    flow: Flow[int, int] = Flow(Predictor(red, PLAIN), batch_size=1, threads=1)
    results = flow.run(things(), start, discard=discarded.append)
    next(results)
    results.close()
    assert set(read).isdisjoint(discarded)
    assert max(read) < 999
    assert sorted([*read, *discarded]) == list(range(len(read) + len(discarded)))


def test_one_function_begins_what_overlaps_and_what_does_not() -> None:
    inputs = [np.full((3, 16, 16), value, np.float32) for value in (0, 1)]
    for backend in (red, Gpu()):
        answered = begin(backend, inputs)()
        np.testing.assert_array_equal(answered.logits, red(np.stack(inputs)))
        assert answered.seconds >= 0
