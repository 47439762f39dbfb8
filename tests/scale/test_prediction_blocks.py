"""Blocks: whoever predicts them, how often and in what order, one process's files come of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from notan.errors import ConfigError, NotanError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.formats import Writers
from notan.prediction.inputs import find_inputs
from notan.prediction.items import items_of
from notan.prediction.pipeline import Pipeline
from notan.prediction.predictor import Predictor
from notan.prediction.table import PredictionTable, output_settings
from notan.scale import blocks as blocks_module
from notan.scale import ray_engine
from notan.scale.blocks import (
    Block,
    BlockJob,
    BlockWorker,
    Merged,
    begin_job,
    block_size,
    cut,
    given_up,
    predict_block,
    read_manifest,
    refuse_shared_files,
)
from notan.version import __version__
from video_files import write_video

if TYPE_CHECKING:
    from notan.prediction.inputs import Found
    from notan.scale.blocks import Manifest

FORMATS = ("mask", "overlay")
PLAIN = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def red_is_foreground() -> Predictor:
    return Predictor(lambda inputs: ((inputs[:, :1] - 0.5) * 20).astype(np.float32), PLAIN)


@pytest.fixture
def found(tmp_path: Path) -> list[Found]:
    """Nine images, one of them damaged, a video of several frames and two pages."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        saved(folder / f"p{number}.png", Image.fromarray(np.roll(photo(), number, axis=0)))
    (folder / "p4.png").write_bytes(b"no image")
    pages = [Image.fromarray(photo(10 + number, 12)) for number in range(2)]
    saved(folder / "scan.tif", pages[0], save_all=True, append_images=pages[1:])
    write_video(folder / "clip.mp4")
    return find_inputs([folder])


def job_at(out: Path, **other: Any) -> BlockJob:
    settings = output_settings(red_is_foreground())
    return dataclasses.replace(BlockJob(out, FORMATS, 3, settings), **other)


def in_one_process(found: list[Found], out: Path, *, resume: bool = False) -> PredictionTable:
    predictor = red_is_foreground()
    table = PredictionTable.begin(out, output_settings(predictor), resume=resume)
    items = (item for file in found for item in items_of(file, frame_step=3))
    Pipeline(predictor, Writers(FORMATS, out), table).run(items)
    return table


def in_blocks(
    found: list[Found], out: Path, *, size: int = 4, known: Any = (), backwards: bool = False
) -> PredictionTable:
    """Do all blocks, as a driver would that nothing befalls."""
    job = job_at(out)
    merged = Merged(PredictionTable.begin(out, job.settings, resume=bool(known)))
    blocks = cut(found, known, size)
    for block in reversed(blocks) if backwards else blocks:
        merged.note(block, done(job, block))
    shutil.rmtree(out / ".blocks")
    return merged.save()


def done(job: BlockJob, block: Block) -> Manifest:
    return predict_block(job, block, red_is_foreground(), batch_size=1, threads=1)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("backwards", [False, True])
def test_blocks_of_any_size_in_any_order_give_the_files_of_one_process(
    found: list[Found], tmp_path: Path, size: int, backwards: bool
) -> None:
    alone = in_one_process(found, tmp_path / "alone")
    merged = in_blocks(found, tmp_path / "blocks", size=size, backwards=backwards)
    wanted = files_in(tmp_path / "alone")
    assert len(wanted) > 20
    assert files_in(tmp_path / "blocks") == wanted
    assert (merged.predicted, merged.kept, merged.total) == (alone.predicted, 0, alone.total)
    assert [failure.name for failure in merged.failures] == ["p4"]


def test_what_one_process_began_goes_on_in_blocks_and_back(
    found: list[Found], tmp_path: Path
) -> None:
    in_one_process(found, tmp_path / "whole")
    out = tmp_path / "out"
    in_one_process(found[:5], out)
    first = PredictionTable.read(out).rows
    merged = in_blocks(found[:8], out, known=first)
    assert (merged.kept, merged.changed) == (len(first), 0)
    back = in_one_process(found, out, resume=True)
    assert back.kept == merged.kept + merged.predicted
    assert files_in(out) == files_in(tmp_path / "whole")


@pytest.mark.parametrize("what", ["content", "output"])
def test_what_is_no_longer_as_it_was_is_predicted_anew(
    found: list[Found], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    before = in_one_process(found, out)
    changed = next(file for file in found if file.name == "p2")
    if what == "content":
        saved(changed.path, Image.fromarray(photo(7, 5)))
    else:
        (out / "masks" / "p2.png").unlink()
    merged = in_blocks(found, out, known=before.rows)
    assert (merged.predicted, merged.changed) == (1, int(what == "content"))
    in_one_process(found, tmp_path / "anew")
    assert files_in(out) == files_in(tmp_path / "anew")


def test_blocks_are_small_where_there_are_few_files_and_never_large() -> None:
    assert [block_size(files, 2) for files in (1, 8, 9, 100, 10**6)] == [1, 1, 2, 13, 256]


def test_a_manifest_names_every_output_and_what_is_in_it(
    found: list[Found], tmp_path: Path
) -> None:
    job = job_at(tmp_path / "out")
    [block] = cut(found, (), 100)
    manifest = done(job, block)
    assert read_manifest(job.manifest_of(block)) == manifest
    assert manifest.is_published(job.out)
    published = {path for path in files_in(job.out) if not path.startswith(".blocks/")}
    assert set(manifest.outputs) == published
    assert manifest.images == len(manifest.rows) + 1
    assert list(job.place.iterdir()) == [job.manifest_of(block)]


def test_a_block_that_is_done_is_not_predicted_again(
    found: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_at(tmp_path / "out")
    [block] = cut(found, (), 100)
    first = done(job, block)
    with monkeypatch.context() as patch:
        patch.setattr(blocks_module, "_predict", lambda *_: pytest.fail("predicted again"))
        assert done(job, block) == first
    (job.out / "masks" / "p1.png").write_bytes(b"another's")
    assert done(job, block) == first
    assert first.is_published(job.out)


@pytest.mark.parametrize("damage", [b"", b'{"rows": [', b"[]", b"\xff\xfe", b'{"rows": [{}]}'])
def test_a_damaged_manifest_is_none_and_its_block_is_done_again(
    found: list[Found], tmp_path: Path, damage: bytes
) -> None:
    job = job_at(tmp_path / "out")
    [block] = cut(found, (), 100)
    first = done(job, block)
    job.manifest_of(block).write_bytes(damage)
    assert read_manifest(job.manifest_of(block)) is None
    assert done(job, block) == first
    assert read_manifest(job.manifest_of(block)) == first


def test_what_blocks_published_for_a_driver_that_was_killed_is_taken_up(
    found: list[Found], tmp_path: Path
) -> None:
    in_one_process(found, tmp_path / "whole")
    job = job_at(tmp_path / "out")
    assert begin_job(job, resume=False).rows == []
    first, second, third = cut(found, (), 4)
    rows = [row for block in (first, third) for row in done(job, block).rows]
    done(job, second)
    job.manifest_of(second).write_bytes(b"torn")
    assert sorted(row.name for row in begin_job(job, resume=True).rows) == sorted(
        row.name for row in rows
    )
    assert not (job.out / ".blocks").exists()
    alone = in_one_process(found, job.out, resume=True)
    assert alone.kept == len(rows)
    assert files_in(job.out) == files_in(tmp_path / "whole")
    done(job, first)
    assert begin_job(job, resume=False).rows == []
    assert not (job.out / ".blocks").exists()


def test_a_manifest_of_other_settings_is_another_jobs(found: list[Found], tmp_path: Path) -> None:
    job = job_at(tmp_path / "out")
    [block] = cut(found, (), 100)
    done(job, block)
    others = [
        job_at(job.out, formats=("mask",)),
        job_at(job.out, frame_step=1),
        job_at(job.out, settings={**job.settings, "tta": "hflip"}),
    ]
    for other in others:
        assert read_manifest(other.manifest_of(block)) is None
    begin_job(others[1], resume=False)
    assert begin_job(others[1], resume=True).rows == []


def test_two_workers_at_one_block_leave_what_one_leaves(
    found: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins and ends while the first is about to publish, or half through it."""
    in_one_process(found, tmp_path / "alone")
    job = job_at(tmp_path / "out")
    merged = Merged(PredictionTable.begin(job.out, job.settings, resume=False))
    [block] = cut(found, (), 100)
    publish = blocks_module.publish
    inner: list[bool] = []

    def late(*about: Any) -> None:
        if not inner:
            inner.append(True)
            done(job, block)
        publish(*about)

    monkeypatch.setattr(blocks_module, "publish", late)
    merged.note(block, done(job, block))
    merged.save()
    shutil.rmtree(job.out / ".blocks")
    assert inner
    assert files_in(job.out) == files_in(tmp_path / "alone")


def test_a_worker_that_dies_while_it_publishes_leaves_no_manifest_and_whole_files(
    found: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_process(found, tmp_path / "alone")
    job = job_at(tmp_path / "out")
    [block] = cut(found, (), 100)
    moved: list[Path] = []

    class DiedError(BaseException):
        pass

    def dying(path: Path, place: Path, real: Any = Path.replace) -> Path:
        if ".blocks" not in place.parts:  # it is published, not written
            if len(moved) == 5:
                raise DiedError
            moved.append(place)
        result: Path = real(path, place)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(DiedError):
            done(job, block)
    assert read_manifest(job.manifest_of(block)) is None
    assert len(moved) == 5
    wanted = files_in(tmp_path / "alone")
    assert all(path.read_bytes() == wanted[str(path.relative_to(job.out))] for path in moved)
    assert done(job, block).is_published(job.out)


def test_a_block_that_ends_its_process_is_split_until_the_file_is_found(
    found: list[Found],
) -> None:
    [block] = cut(found, (), 100)
    waiting, deaths, lost = [block], 0, []
    spared: list[str] = []
    while waiting:
        block = waiting.pop()
        if all(file.name != "p7" for file in block.files):
            spared += [file.name for file in block.files]
            continue
        deaths += 1
        parts = block.after_death()
        lost += [] if parts else [given_up(block)]
        waiting += parts
    assert sorted([*spared, "p7"]) == sorted(file.name for file in found)
    assert deaths == 3 + 2 + 3  # the whole, its halves and quarters, and the file alone
    [failure] = [failure for manifest in lost for failure in manifest.failures]
    assert failure.name == "p7"
    assert failure.reason.startswith(f"{failure.image}: the process that predicted it ended")


def test_the_halves_of_a_block_have_its_rows_and_places(found: list[Found], tmp_path: Path) -> None:
    known = in_one_process(found, tmp_path / "out").rows
    [block] = cut(found, known, 100)
    halves = dataclasses.replace(block, deaths=2).after_death()
    assert [half.start for half in halves] == [0, len(found) // 2]
    assert [file for half in halves for file in half.files] == found
    assert [row for half in halves for row in half.known] == list(block.known)
    assert all(half.known for half in halves)


@pytest.mark.parametrize("shared", ["rle", "coco-rle", "polygons"])
def test_formats_of_one_file_are_refused_with_those_that_go(shared: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--format {shared}: .*geojson, mask, overlay"):
        refuse_shared_files(["mask", shared])
    refuse_shared_files(["mask", "geojson", "contours", "probability-float"])


def test_a_worker_refuses_another_version_another_disk_and_other_settings(
    found: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def worker(folder: Path = tmp_path, version: str = __version__) -> BlockWorker:
        return BlockWorker(red_is_foreground, folder, cores=1, batch_size=None, version=version)

    with pytest.raises(ConfigError, match=r"job was begun with 0\.0\.1; install the same"):
        worker(version="0.0.1").open()
    with pytest.raises(ConfigError, match="does not see the folder"):
        worker(folder=tmp_path / "absent").open()
    [block] = cut(found, (), 100)
    job = job_at(tmp_path / "out")
    other = dataclasses.replace(job, settings={**job.settings, "precision": "bf16"})
    with pytest.raises(ConfigError, match=r"another precision \(fp32\).*\(bf16\)"):
        worker().predict(other, block)
    assert worker().open() == job.settings
    assert worker().predict(job, block).is_published(job.out)


def test_images_of_two_blocks_that_turn_out_to_have_one_name_are_both_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pages = [Image.fromarray(photo(10 + number, 12)) for number in range(2)]
    saved(folder / "scan.tif", pages[0], save_all=True, append_images=pages[1:])
    (folder / "scan.tif").rename(folder / "scan.jpg")  # its pages show when it is opened
    saved(folder / "scan-p0001.png", Image.fromarray(photo()))
    table = in_blocks(find_inputs([folder]), tmp_path / "out", size=1)
    assert [row.name for row in table.rows] == ["scan-p0002"]
    told = {(Path(each.image).name, each.name) for each in table.failures}
    assert told == {("scan.jpg", "scan-p0001"), ("scan-p0001.png", "scan-p0001")}
    assert all("alone, with an --out of its own" in each.reason for each in table.failures)


def test_workers_that_all_end_before_they_have_the_model_end_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class DiedError(Exception):
        pass

    def dies(_: object) -> None:
        raise DiedError("gone")

    ray = MagicMock()
    for name in ("RayActorError", "NodeDiedError", "OutOfMemoryError", "RayTaskError"):
        setattr(ray.exceptions, name, DiedError)
    ray.get = dies
    ray.wait = lambda running, **_: (running[:1], running[1:])
    crew = ray_engine._Crew(ray, (MagicMock, 2), None)
    monkeypatch.setattr(crew._head, "look", lambda: None)
    with pytest.raises(NotanError, match="end one after the other: gone"):
        crew.first_settings()
