"""The bench against a plain recipe: what it runs, what it keeps, and what its table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

import ahead
import results
from ahead import OURS, YARDSTICK, Bench, Job
from notan.evaluation.evaluate import write_score
from notan.metrics import Counts
from notan.run_folder import HISTORY, STATES
from scores import score_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.metrics import Score

NAMES = ("a", "b", "c", "d")
DICE = {YARDSTICK: (0.5, 0.6, 0.7, 0.8), OURS: (0.6, 0.7, 0.75, 0.8), "wide": (0.4, 0.5, 0.6, 0.7)}


def score_with(names: Sequence[str], dice: Sequence[float]) -> Score:
    """The score of images of such a Dice, of whole hundredths."""
    hits = [round(100 * each) for each in dice]
    score = score_of(*(Counts(hit, 100 - hit, 100 - hit, 5) for hit in hits))
    images = zip(score.images, names, strict=True)
    named = tuple(image.model_copy(update={"name": name}) for image, name in images)
    return score.model_copy(update={"images": named})


class StandIn:
    """Leaves what a training would, at once.

    Attributes:
        seen: The folders of the trainings, in their order.
        stop_at: The number of trainings after which the user presses Ctrl-C.
        fails: The variant that fails.
        seconds: What each command says that it took.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop_at = 1000
        self.fails, self.seconds = "none", 60.0
        self.names = dict.fromkeys(DICE, NAMES)

    def __call__(self, command: Sequence[str], cores: set[int], log: Path) -> tuple[float, float]:
        folder = log.parent
        variant = folder.name.partition("-")[0]
        if "evaluate" not in command:
            self.seen.append(folder.name)
        if len(self.seen) > self.stop_at:
            raise KeyboardInterrupt
        if variant == self.fails:
            raise RuntimeError("failed with 1: no memory")
        shift = 0.02 * int(folder.name[-1])  # of the seed
        dice = [each + shift for each in DICE[variant]]
        if variant == YARDSTICK:
            found = {"dice": dict(zip(self.names[variant], dice, strict=True))}
            text = json.dumps({**found, "steps": 7, "epochs": 1.5})
            (folder / "scores.json").write_text(text)
        elif "evaluate" in command:
            write_score(folder / "score", score_with(self.names[variant], dice))
        else:
            (folder / "run" / STATES).mkdir(parents=True)
            for step in (8, 11):
                (folder / "run" / STATES / f"{step:09d}.safetensors").touch()
            (folder / "run" / HISTORY).write_text("{}\n{}\n")
        return self.seconds, 30.0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(ahead, "spend", stand_in)
    monkeypatch.setattr(ahead, "check_yardstick", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    for name in ("nuclei", "camvid-road"):
        (tmp_path / name).mkdir()
    (tmp_path / "peer.py").touch()
    return stand_in


def bench(folder: Path, *words: str) -> str:
    """Run the benchmark on one set and seed unless the words say otherwise; return its page."""
    where = ["--work", str(folder / "work"), "--data-root", str(folder)]
    where += ["--script", str(folder / "peer.py"), "--sets", "nuclei", "--seeds", "0"]
    ahead.main([*where, "--minutes", "1", "--threads", "1", *words])
    return (folder / "results" / "ahead.md").read_text()


def rows(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((folder / "results" / "ahead.json").read_text())[
        "rows"
    ]
    return found


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        bench(folder, *words)
    message = str(left.value.code)
    assert "\n" not in message
    assert capsys.readouterr().err == ""
    return message


def test_both_sides_are_run_in_turns_and_compared_by_image(tmp_path: Path, runs: StandIn) -> None:
    page = bench(tmp_path, "--seeds", "0", "1", "--try", "wide=model.width=32")
    assert runs.seen == [f"{each}-nuclei-1m-1t-s{seed}" for seed in (0, 1) for each in DICE]
    found = {row["variant"]: row for row in rows(tmp_path)}
    assert found[YARDSTICK]["Dice"] == "0.6600"
    assert found[OURS]["Dice"] == "0.7225"
    assert found[OURS]["Dice of each seed"] == "0.7125, 0.7325"
    assert found[OURS]["minus yardstick"] == "+0.0625"
    low, high = map(float, found[OURS]["interval of minus yardstick"].split(" .. "))
    assert 0 <= low < 0.0625 < high <= 0.1
    assert found[OURS]["images better, worse than yardstick"] == "3, 0"
    assert found["wide"]["minus yardstick"] == "-0.1000"
    assert found["wide"]["minus ours"] == "-0.1625"
    assert (found[OURS]["steps"], found[OURS]["epochs"]) == ("11, 11", "2.0, 2.0")
    assert (found[YARDSTICK]["steps"], found[YARDSTICK]["epochs"]) == ("7, 7", "1.5, 1.5")
    assert found[OURS]["had a processor"] == "50%, 50%"
    assert "wide: model.width=32" in page


def test_finished_runs_are_kept_until_they_are_asked_for_again(
    tmp_path: Path, runs: StandIn
) -> None:
    bench(tmp_path)
    bench(tmp_path)
    assert len(runs.seen) == 2
    bench(tmp_path, "--again", "--only", OURS)
    assert runs.seen[2:] == ["ours-nuclei-1m-1t-s0"]
    assert {row["variant"] for row in rows(tmp_path)} == {YARDSTICK, OURS}


def test_a_stop_loses_the_running_one_alone(
    tmp_path: Path, runs: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.stop_at = 1
    with pytest.raises(SystemExit, match="the same command goes on"):
        bench(tmp_path)
    assert runs.seen == ["yardstick-nuclei-1m-1t-s0", "ours-nuclei-1m-1t-s0"]
    assert "yardstick-nuclei-1m-1t-s0: Dice 0.6500 on 4 images" in capsys.readouterr().out
    runs.stop_at = 1000
    bench(tmp_path)
    assert runs.seen[2:] == ["ours-nuclei-1m-1t-s0"]


def test_what_another_process_runs_is_left_to_it(tmp_path: Path, runs: StandIn) -> None:
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / "yardstick-nuclei-1m-1t-s0.lock"):
        bench(tmp_path)
    assert runs.seen == ["ours-nuclei-1m-1t-s0"]
    assert [row["variant"] for row in rows(tmp_path)] == [OURS]


def test_a_run_that_fails_does_not_keep_the_others(
    tmp_path: Path, runs: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fails = YARDSTICK
    message = refusal(tmp_path, capsys)
    assert message == "ahead: 1 runs failed: yardstick-nuclei-1m-1t-s0 failed with 1: no memory"
    assert [row["variant"] for row in rows(tmp_path)] == [OURS]
    assert "FAILED: yardstick" in (tmp_path / "results" / "ahead.md").read_text()


def test_a_run_above_its_limit_is_marked_and_the_yardstick_never(
    tmp_path: Path, runs: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.seconds = 60.5
    bench(tmp_path)
    found = {row["variant"]: row["over the limit"] for row in rows(tmp_path)}
    assert found == {YARDSTICK: "", OURS: "1 of 1"}
    said = capsys.readouterr().out
    assert said.count("OVER THE LIMIT") == 1


@pytest.mark.usefixtures("runs")
def test_several_sets_have_a_mean_and_one_can_be_kept_back(tmp_path: Path) -> None:
    page = bench(tmp_path, "--sets", "nuclei", "camvid-road")
    assert "| mean of 2 sets |" in page
    assert rows(tmp_path)[-1]["minus yardstick"] == "+0.0625 (least +0.0625)"
    page = bench(tmp_path, "--sets", "nuclei", "camvid-road", "--leave-out", "nuclei")
    assert {row["data"] for row in rows(tmp_path)} == {"camvid-road"}
    assert "left out, to report on once the rules are chosen: nuclei" in page


@pytest.mark.usefixtures("runs")
def test_runs_of_different_code_are_called_mixed(tmp_path: Path) -> None:
    assert "MIXED" not in bench(tmp_path)
    (tmp_path / "peer.py").write_text("# another")
    page = bench(tmp_path, "--seeds", "0", "1")
    assert page.count("MIXED") == 1
    assert "MIXED: yardstick was run with different code" in page


@pytest.mark.usefixtures("runs")
def test_a_label_keeps_its_meaning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, "--try", "wide=model.width=32")
    capsys.readouterr()
    message = refusal(tmp_path, capsys, "--try", "wide=model.width=64")
    assert "was run as 'model.width=32'" in message
    assert "wide is now 'model.width=64': give it another label" in message


def test_scores_of_different_images_are_not_compared(tmp_path: Path, runs: StandIn) -> None:
    runs.names[OURS] = ("a", "b", "c", "e")
    with pytest.raises(SystemExit, match=r"scored on different images \(d, e\)"):
        bench(tmp_path)


@pytest.mark.usefixtures("runs")
def test_a_broken_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path)
    capsys.readouterr()
    path = tmp_path / "work" / "ours-nuclei-1m-1t-s0" / "result.json"
    path.write_text("{")
    assert f"{path}: this is no result of a run" in refusal(tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "cells"], "invalid choice: 'cells' (choose from "),
        (["--sets", "pets-background"], "pets-background: there is no folder "),
        (["--leave-out", "nuclei"], "no set is left"),
        (["--minutes", "0"], "--minutes wants numbers above 0"),
        (["--minutes", "nan"], "--minutes wants numbers above 0"),
        (["--minutes", "soon"], "invalid float value: 'soon'"),
        (["--seeds", "-1"], "--seeds from 0"),
        (["--threads", "4096"], "give fewer threads"),
        (["--try", "wide"], "wants LABEL=WORDS"),
        (["--try", "../wide=a=1"], "wants LABEL=WORDS"),
        (["--try", "wide=model.name='"], "No closing quotation"),
        (["--try", "ours=a=1"], "the label ours is taken"),
        (["--only", "theirs"], "--only theirs: the variants are yardstick, ours"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    runs: StandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refusal(tmp_path, capsys, *words)
    assert runs.seen == []


def make_bench(folder: Path, python: str = sys.executable) -> Bench:
    return Bench(folder / "work", folder, folder / "peer.py", python)


def test_an_environment_without_the_yardsticks_packages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"there is no script .*peer\.py; name it with --script"):
        ahead.check_yardstick(make_bench(tmp_path))
    (tmp_path / "peer.py").touch()
    with pytest.raises(SystemExit, match="--python-of-yardstick nobody: cannot be run"):
        ahead.check_yardstick(make_bench(tmp_path, "nobody"))
    monkeypatch.setattr(ahead, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(SystemExit, match="lacks no_such_package: name an interpreter"):
        ahead.check_yardstick(make_bench(tmp_path))


def test_commands_hold_the_limit_the_seed_and_the_rule_of_the_trimaps_border(
    tmp_path: Path,
) -> None:
    made = make_bench(tmp_path)

    def words(variant: str, data: str, *tried: str) -> str:
        return " ".join(made.command(Job(variant, data, 1.5, 2, 7, tried), tmp_path)[0])

    ours = words(OURS, "pets-background")
    for part in ("notan train", "--auto", "--time-limit 90s", "--seed 7"):
        assert part in ours
    assert "--trimap-border background" in ours
    assert "--trimap-border" not in words(OURS, "nuclei")
    assert "--auto" not in words("mine", "nuclei", "--recipe", "my.toml")
    assert "--threads 2" in words(YARDSTICK, "nuclei")
    assert "foreground" not in words(YARDSTICK, "pets-background")
    assert words(YARDSTICK, "pets-foreground").endswith("-border foreground")


def test_a_command_has_its_cores_and_its_failure_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    cores = ahead.cores_for(1)
    assert cores == {min(os.sched_getaffinity(0))}
    # the core is set once the process is there, before its interpreter has read a line
    seconds, computed = ahead.spend([sys.executable, "-c", code], cores, log)
    assert log.read_text() == f"{sorted(cores)} 1\n"
    assert computed > 0
    assert seconds > 0
    with pytest.raises(RuntimeError, match=r"failed with 1: too bad \(.*log\.txt\)"):
        ahead.spend([sys.executable, "-c", "raise SystemExit('too bad')"], cores, log)


SCRIPT = """
import argparse
from pathlib import Path
import numpy as np
import torch
import beside

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--test", type=Path)
parser.add_argument("--batch", type=int, default=8)
a = parser.parse_args()
torch.manual_seed(0)
random = np.random.default_rng(0)


def pairs(root, split):
    for name in ("b", "a"):
        yield root / f"{name}.png", None


train, step = [None] * 16, 3
with torch.autocast("cpu", torch.bfloat16):
    product = torch.ones(2, 2) @ torch.ones(2, 2)
scores = [(random.random(), 0.5), (torch.rand(1).item(), float(product.dtype == torch.float32))]
print(scores[1][1])
"""


def test_the_runner_gives_a_script_the_seed_and_takes_its_scores(tmp_path: Path) -> None:
    import numpy as np
    import torch

    (tmp_path / "beside.py").touch()  # a script imports what lies beside it
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for bf16, in_float32 in (("without", "1.0"), ("bf16", "0.0")):
        out = tmp_path / f"{bf16}.json"
        command = [sys.executable, str(ahead.RUNNER), str(script), str(out), "5", bf16]
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
        assert done.stdout == f"{in_float32}\n"
        found = json.loads(out.read_text())
        first = np.random.default_rng(5).random()
        second = torch.rand(1, generator=torch.Generator().manual_seed(5)).item()
        assert found["dice"] == {"b": first, "a": second}
        assert (found["steps"], found["epochs"]) == (3, 1.5)
