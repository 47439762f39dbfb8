"""Cross-validation: notan train --folds trains each fold, and makes one model of them."""

from __future__ import annotations

import json
import os
import signal
import threading
from queue import Queue
from statistics import fmean, stdev
from typing import TYPE_CHECKING, ClassVar

import pytest

from notan.cli.main import main
from notan.comparison import folds, make_ensemble, side_by_side
from notan.comparison.folds import fold_runs, resume_folds, train_folds
from notan.config import Data, load_run
from notan.data.folders import open_split
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DivergedError, NotanError, StoppedBySignal
from notan.evaluation.evaluate import find_seen
from notan.modelfile.card import read_card
from notan.training import resume
from notan.training.trainer import Trainer
from runs import PATIENCE, TINY, Server, ask_to_stop, before_step, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run

FOLDS = ("fold-1", "fold-2", "fold-3")
WORDS = [f"{name}={value or []}" for name, value in TINY.items()]

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in train/, three in val/ of which one has a name twice, and four in test/."""
    folder = tmp_path_factory.mktemp("images")
    for part, first, count in (("train", 0, 9), ("val", 9, 3), ("test", 12, 4)):
        write_folder(DrawnSource(count, size=(16, 20), first=first), folder / part)
    for kind in ("images", "masks"):
        (taken,) = (folder / "train" / kind).glob("drawn-0000.*")
        (other,) = (folder / "val" / kind).glob("drawn-0009.*")
        other.rename(other.with_name(taken.name))
    return folder


@pytest.fixture
def run(images: Path) -> Run:
    return load_run(flags={**TINY, "data.path": images, "data.fold": "1/3"})


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation that came to its end; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train_folds(load_run(flags={**TINY, "data.path": images, "data.fold": "1/3"}), out)
    return out


def parts(data: Data, seed: int = 0) -> tuple[set[str], set[str]]:
    training, validation = (open_split(data, part, seed=seed).names for part in ("train", "val"))
    assert len({*training}) + len({*validation}) == len(training) + len(validation)
    return {*training}, {*validation}


def test_every_image_validates_once_and_teaches_in_all_other_folds(run: Run) -> None:
    divided = [parts(each.data) for each in fold_runs(run).values()]
    everything = divided[0][0] | divided[0][1]
    assert len(everything) == 12
    assert {"train/drawn-0000", "val/drawn-0000", "drawn-0010"} < everything
    assert sum(len(validation) for _, validation in divided) == 12
    assert set.union(*(validation for _, validation in divided)) == everything
    for training, validation in divided:
        assert len(validation) == 4
        assert training == everything - validation
    assert parts(run.data, seed=1)[1] != divided[0][1]


def test_test_images_are_in_no_fold(run: Run) -> None:
    test = {*open_split(run.data, "test", seed=0).hashes()}
    assert len(test) == 4
    for part in ("train", "val"):
        assert not test & {*open_split(run.data, part, seed=0).hashes()}


def test_groups_and_copies_are_not_torn(tmp_path: Path) -> None:
    write_folder(DrawnSource(12, size=(16, 20)), tmp_path)
    for kind in ("images", "masks"):
        for number in range(3):
            (path,) = (tmp_path / kind).glob(f"drawn-000{number}.*")
            (path.with_stem(f"copy-000{number}")).write_bytes(path.read_bytes())
    for group_by, together in ((None, 3), (r"\d$", 10)):
        data = Data(path=tmp_path, group_by=group_by)
        divided = [parts(data.model_copy(update={"fold": f"{n}/3"}))[1] for n in (1, 2, 3)]
        pairs = [{f"drawn-000{n}", f"copy-000{n}"} for n in range(3)]
        pairs += [{"drawn-0000", "drawn-0010"}, {"drawn-0001", "drawn-0011"}][: together > 3 and 2]
        assert sum(map(len, divided)) == 15
        for pair in pairs:
            assert sum(pair <= fold for fold in divided) == 1, (pair, divided)


def test_images_without_foreground_are_shared_out(tmp_path: Path) -> None:
    source = DrawnSource(9, size=(16, 20))
    write_folder(source, tmp_path)
    from PIL import Image

    empty = sorted((tmp_path / "masks").iterdir())[:3]
    for path in empty:
        Image.new("L", (20, 16)).save(path)
    for number in (1, 2, 3):
        _, validation = parts(Data(path=tmp_path, fold=f"{number}/3"))
        assert len(validation & {path.stem for path in empty}) == 1


def test_the_pets_lists_are_divided_too(pets_folder: Path) -> None:
    data = Data(path=pets_folder)
    training, validation = parts(data)
    divided = [parts(data.model_copy(update={"fold": f"{n}/3"})) for n in (1, 2, 3)]
    assert set.union(*(fold for _, fold in divided)) == training | validation
    assert divided[0][0] | divided[0][1] == training | validation


def test_folds_become_one_model_that_evaluate_scores(
    whole: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names_in(whole) == {
        *(*FOLDS, "folds.toml", "folds.json", "folds.md"),
        "ensemble.safetensors",
    }
    summary = json.loads((whole / "folds.json").read_text())
    dice = [summary["folds"][name]["dice"] for name in FOLDS]
    cards = [read_card(whole / name / "best.safetensors") for name in FOLDS]
    assert dice == [card.scores["dice"] for card in cards]
    assert (summary["mean_dice"], summary["standard_deviation"]) == (fmean(dice), stdev(dice))
    card = read_card(whole / "ensemble.safetensors")
    assert [member.sha256 for member in card.members] == [each.sha256 for each in cards]
    assert summary["out_of_fold"] == {"dice": card.scores["dice"], "images": 12}
    assert card.choices[0].startswith("out of fold: each of 12 images was predicted by the one")
    assert f"| fold-2 | 1 | {dice[1]:.4f} |" in (whole / "folds.md").read_text()
    model = ["--model", str(whole / "ensemble.safetensors"), "--data-path", str(images)]
    main(["evaluate", *model, "--out", str(whole.parent / "scored")])
    printed = capsys.readouterr().out
    assert printed.startswith("4 images ")
    assert "the model has seen none of these images" in printed
    for split in ("train", "val"):  # each is known to some member
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *model, "--split", split])
        assert stop.value.code == 3


def test_what_the_ensemble_is_chosen_on_was_seen_by_none_that_answered(whole: Path) -> None:
    for name in FOLDS:
        card = read_card(whole / name / "best.safetensors")
        own = open_split(card.run.data, "val", seed=card.run.seed)
        assert len(own) == 4
        assert not find_seen(card, own).trained
        assert len(find_seen(card, own).chosen) == 4


def test_folds_that_are_put_together_by_hand_are_the_same_model(
    whole: Path, tmp_path: Path
) -> None:
    by_hand = make_ensemble([whole / name for name in FOLDS], tmp_path / "hand.safetensors")
    assert by_hand.path.read_bytes() == (whole / "ensemble.safetensors").read_bytes()


def test_a_fold_is_a_run_like_any_other(whole: Path, tmp_path: Path) -> None:
    words = ["train", "--recipe", str(whole / "folds.toml"), "data.fold=2/3"]
    main([*words, "--out", str(tmp_path / "second")])
    twice = [path / "best.safetensors" for path in (whole / "fold-2", tmp_path / "second")]
    assert read_card(twice[0]).sha256 == read_card(twice[1]).sha256
    assert resume(tmp_path / "second").epoch == 1


def test_killed_in_the_second_fold_and_resumed_it_gives_the_same_bytes(
    server: Server, images: Path, tmp_path: Path
) -> None:
    words = ["train", "--data-path", images, "--folds", 3, *WORDS]
    words += ["train.epochs=3", "train.batch_size=4", "train.checkpoint_every_steps=1"]
    out = [tmp_path / "undisturbed", tmp_path / "killed"]
    a_fold = len(server.run(*words, "--out", out[0]).steps) // 3
    assert a_fold == 6
    child = server.start(*words, "--out", out[1])
    assert child.wait_for_step(a_fold + 3)
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert not (out[1] / "ensemble.safetensors").exists()
    first = (out[1] / "fold-1" / "best.safetensors").stat().st_mtime_ns
    resumed = server.run("train", "--resume", out[1])
    assert resumed.steps[0] > 1  # the second goes on from its state
    assert resumed.steps[-6:] == [1, 2, 3, 4, 5, 6]
    assert "fold-1 has ended before" in resumed.read()
    assert (out[1] / "fold-1" / "best.safetensors").stat().st_mtime_ns == first
    undisturbed, killed = (path / "ensemble.safetensors" for path in out)
    assert killed.read_bytes() == undisturbed.read_bytes()
    assert names_in(out[1]) == names_in(out[0])


def test_a_signal_saves_the_fold_and_says_in_one_line_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal) as stop:
            train_folds(run, tmp_path / "out")
    assert str(stop.value) == (
        f"stopped and saved; go on with: notan train --resume {tmp_path / 'out'}"
    )
    main(["train", "--resume", str(tmp_path / "out")])
    assert (tmp_path / "out" / "ensemble.safetensors").exists()


def test_going_on_with_what_is_done_changes_nothing_and_a_lost_model_is_trained_again(
    run: Run, tmp_path: Path
) -> None:
    first = train_folds(run, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/best.safetensors")}
    model = first.ensemble.read_bytes()
    assert resume_folds(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (tmp_path / "fold-2" / "best.safetensors").unlink()
    assert resume_folds(tmp_path) == first
    assert first.ensemble.read_bytes() == model


def test_a_fold_that_diverges_is_left_out_and_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notan.training import train

    def diverges(run: Run, **more: object) -> object:
        if run.data.fold in bad:
            raise DivergedError("the loss is NaN")
        return train(run, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("notan.comparison.benchmark.train", diverges)
    bad = ["2/3"]
    found = train_folds(run, tmp_path / "one")
    assert found.notes == ("fold-2 diverged and is left out: the loss is NaN",)
    assert [*found.dice] == ["fold-1", "fold-3"]
    assert found.images == 8
    bad = ["1/3", "2/3"]
    with pytest.raises(DivergedError, match="fewer than two folds came to an end"):
        train_folds(run, tmp_path / "two")


def test_the_time_limit_is_for_all_and_divided_among_what_remains(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run.train.model_copy(update={"time_limit_seconds": 7.0, "epochs": 100_000})
    limits, tells = [], iter((4.0, 1.0, 0.5))

    def spend(run: Run, *_: object, **__: object) -> dict[str, float]:
        limits.append(run.train.time_limit_seconds)
        return {"dice": 0.5, "epoch": 1, "seconds": next(tells)}

    monkeypatch.setattr("notan.comparison.folds._train", spend)
    monkeypatch.setattr("notan.comparison.folds._put_together", lambda *_: None)
    train_folds(run.model_copy(update={"train": train}), tmp_path)
    assert limits == [7 / 3.5, 3 / 2.5, 2 / 1.5]


def test_a_time_limit_that_is_spent_leaves_a_model_all_the_same(
    images: Path, tmp_path: Path
) -> None:
    words = ["--data-path", str(images), "--folds", "3", "--time-limit", "0.001s", *WORDS]
    main(["train", *words, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "ensemble.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--folds", "1"], 2, "--folds 1: two or more are wanted"),
        (["--folds", "13"], 3, "12 images in 12 groups for 13 folds; copies and groups stay"),
        (["--folds", "3", "--group-by", "drawn"], 3, "in 1 groups by data.group_by = 'drawn' for"),
        (["--folds", "3", "--profile"], 2, "--profile looks at one training: give data.fold=1/5"),
        (["--folds", "3", "--auto", "--write-recipe", "r"], 2, "leave --folds out here, and give"),
        (["--folds", "3", "--model-class", "a:B"], 2, "can only hold notan's own networks"),
        (["--folds", "3", "data.fold=2/4"], 2, "data.fold = 2/4: the folds are said by --folds"),
        (["--folds", "3", "--out", "DONE"], 2, "or go on with it: --resume "),
        (["--resume", "DONE", "--folds", "3"], 2, "leave --folds out"),
        (["--resume", "DONE", "--profile"], 2, "--profile looks at one training"),
        (["--resume", "DONE", "--allow-changes"], 2, "change them all in a new --out"),
        (["--resume", "DONE", "--seed", "4"], 2, "seed (0 -> 4) would make it another run"),
        (["data.fold=4/3"], 2, "fold 4/3: one of two or more is wanted, such as 2/5"),
        (["data.fold=2"], 2, "fold 2: one of two or more is wanted, such as 2/5"),
    ],
)
def test_wrong_use_ends_in_one_line_before_anything_is_trained(
    whole: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(whole) if word == "DONE" else word for word in words]
    data = [] if "--resume" in words else ["--data-path", str(images), *WORDS]
    with pytest.raises(SystemExit) as stop:
        main(["train", *data, *given])
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == code
    assert said[-1].startswith("notan: ")
    assert message in said[-1]
    assert not names_in(tmp_path)


def test_a_summary_that_cannot_be_read_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "folds.toml").write_bytes((whole / "folds.toml").read_bytes())
    for content in ("{", "[]", '{"folds": {"fold-1": {}}}', '{"folds": 3}'):
        (tmp_path / "folds.json").write_text(content)
        with pytest.raises(ConfigError, match="does not say how the folds ended"):
            resume_folds(tmp_path)


def test_auto_chooses_once_for_all_folds(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notan.auto import suggest

    asked = []

    def count(**given: object) -> object:
        asked.append(given)
        return suggest(**given)  # type: ignore[arg-type]

    monkeypatch.setattr("notan.auto.suggest", count)
    words = ["--auto", "--epochs", "1", "model.name=little", "model.width=2"]
    words += ["preprocess.image_size=16", "train.trackers=[]"]
    out = tmp_path / "out"
    main(["train", "--data-path", str(images), "--folds", "3", *words, "--out", str(out)])
    assert len(asked) == 1
    assert (out / "auto.toml").is_file()
    settings = [load_run(out / name / "run.toml") for name in FOLDS]
    assert [each.data.fold for each in settings] == ["1/3", "2/3", "3/3"]
    same = {each.model_copy(update={"data": Data()}).model_dump_json() for each in settings}
    assert len(same) == 1


def test_overwriting_leaves_no_earlier_fold(run: Run, tmp_path: Path) -> None:
    train_folds(run, tmp_path)
    data = run.data.model_copy(update={"fold": "1/2"})
    train_folds(run.model_copy(update={"data": data}), tmp_path, overwrite=True)
    assert len(read_card(tmp_path / "ensemble.safetensors").members) == 2
    assert "best.safetensors" not in names_in(tmp_path / "fold-3")


def test_on_several_devices_folds_train_side_by_side_to_the_same_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the others too: more of them round otherwise
    flags = {**TINY, "model.name": "unet", "data.path": images, "data.fold": "1/2"}
    run = load_run(flags={**flags, "train.precision": "fp32"})  # the others would measure bf16
    alone = train_folds(run, tmp_path / "alone")
    monkeypatch.setattr(folds, "devices_at_hand", lambda _: ("5", "7"))
    beside = train_folds(run, tmp_path / "beside")
    assert beside.dice == alone.dice
    assert beside.ensemble.read_bytes() == alone.ensemble.read_bytes()
    for name in ("fold-1", "fold-2"):
        assert "done; best epoch 1" in (tmp_path / "beside" / f"{name}.log").read_text()
        assert (tmp_path / "beside" / name / "report.html").exists()


class Stub:
    """Stands in for a process: it notes its device, and ends with a code, or when it is stopped."""

    begun: ClassVar[list[Stub]] = []
    codes: ClassVar[dict[str, int | None]] = {}

    def __init__(
        self, words: list[str], log: Path, *, chosen_by: str, variables: dict[str, str]
    ) -> None:
        fold = next(word for word in words if word.startswith("data.fold=") or "fold-" in word)
        self.words, self.device = words, variables["CUDA_VISIBLE_DEVICES"]
        self.code = self.codes.get(fold.rpartition("=")[2])
        self.is_stopped = threading.Event()
        self.begun.append(self)

    def wait(self) -> int:
        if self.code is None:
            assert self.is_stopped.wait(PATIENCE)
        return self.code or 143

    def stop(self) -> None:
        self.is_stopped.set()

    def end(self) -> None:
        self.stop()

    def fault(self) -> str:
        return "the disk is full"


def test_when_one_of_several_fails_the_others_are_stopped_and_it_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "TrainingProcess", Stub)
    monkeypatch.setattr(folds, "devices_at_hand", lambda _: ("5", "7"))
    monkeypatch.setattr(Stub, "begun", [])
    monkeypatch.setattr(Stub, "codes", {str(tmp_path / "fold-1"): 9, "2/3": None})
    with pytest.raises(NotanError, match=r"fold-1 ended with an error: the disk is full \(see "):
        train_folds(run, tmp_path)
    assert [each.device for each in Stub.begun] == ["5", "7"]
    assert Stub.begun[1].is_stopped.is_set()


def test_a_signal_stops_all_of_several_and_says_in_one_line_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "TrainingProcess", Stub)
    monkeypatch.setattr(folds, "devices_at_hand", lambda _: ("5", "7"))
    monkeypatch.setattr(Stub, "begun", [])
    monkeypatch.setattr(Stub, "codes", {str(tmp_path / "fold-1"): None, "2/3": None})

    class Interrupted(Queue[object]):
        def get(self, *_: object) -> object:
            raise StoppedBySignal("", signal.SIGTERM)

    monkeypatch.setattr(side_by_side, "SimpleQueue", Interrupted)
    with pytest.raises(StoppedBySignal) as stop:
        train_folds(run, tmp_path)
    assert str(stop.value) == (f"stopped and saved; go on with: notan train --resume {tmp_path}")
    assert stop.value.number == signal.SIGTERM
    assert all(each.is_stopped.is_set() for each in Stub.begun)


@pytest.mark.parametrize(
    ("device", "visible", "count", "given"),
    [
        ("auto", "", 3, ["0", "1", "2"]),
        ("cuda", "4,GPU-6f", 2, ["4", "GPU-6f"]),
        ("cuda:1", "", 3, []),
        ("cpu", "", 3, []),
        ("auto", "", 0, []),
    ],
)
def test_the_devices_are_those_that_cuda_shows(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str, count: int, given: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert [*side_by_side.devices_at_hand(device)] == given
