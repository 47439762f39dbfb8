"""Training on what people annotate in Label Studio, while the server goes on with the model it has.

A webhook only says that there is more: the annotations themselves are fetched from Label Studio,
so nobody else can slip any in. Every fifth annotated image is kept for judging and never trained
on. A training is a process of ``notan train``, always from the model that the server began with,
on all annotations; its model is served from then on unless it is worse on the images for judging.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from notan.api import evaluate
from notan.data.annotations.label_studio import paint_results
from notan.data.layouts import SUFFIXES
from notan.errors import DataError, NotanError
from notan.io.write import fresh_folder, write_bytes
from notan.prediction.pixels import encode_png, mask_image
from notan.web.uploads import upload_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from notan.prediction.predictor import Predictor
    from notan.serve.jobs import Jobs
    from notan.serve.origin import Origin

logger = logging.getLogger("notan")

EVERY = 10
"""Annotations after which a training begins."""

SECONDS = 600.0
OVERTIME = 300.0
"""Seconds beyond its time limit after which a process has gone wrong."""

END_SECONDS = 5.0
"""That a process has to leave when the server is stopped."""

EVERY_JUDGED = 5
TRAIN, JUDGE = "train", "val"
SECRET = "LABEL_STUDIO_API_KEY"  # noqa: S105 - the variable's name
"""The environment variable that may hold the token; trainings are not told it."""


@dataclass(frozen=True)
class RetrainSettings:
    """What is trained on, and how.

    Attributes:
        project: The number of the project in Label Studio.
        base: The model file from which every training begins.
        folder: Where images, masks and runs go.
        label: That means foreground; None: whatever is drawn.
        every: Annotations after which a training begins.
        seconds: Of one training.
        device: As ``notan train`` has it.
        model_class: Likewise; None: a network of notan's.
    """

    project: int
    base: Path
    folder: Path
    label: str | None = None
    every: int = EVERY
    seconds: float = SECONDS
    device: str = "auto"
    model_class: str | None = None


class Retrainer:
    """Trains one model after another, one at a time, however often it is asked."""

    def __init__(
        self, origin: Origin, settings: RetrainSettings, load: Callable[[Path], Predictor]
    ) -> None:
        """Make it ready; nothing is trained before ``start``.

        Args:
            origin: Where annotations and images come from.
            settings: What is trained on.
            load: Opens a model file to predict with.
        """
        self.origin, self.settings, self._load = origin, settings, load
        self._changed = threading.Condition()
        self._annotated: set[int] = set()
        self._is_wanted, self._is_stopped = False, False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def project(self) -> int:
        """The project that is trained on."""
        return self.settings.project

    def start(self, jobs: Jobs) -> None:
        """Wait for work.

        Args:
            jobs: Whose model is to become better.
        """
        self._thread = threading.Thread(target=self._work, args=(jobs,), name="teach", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and end a training that runs."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def count(self, annotation: int) -> None:
        """Note that something was annotated, and train when there is enough of it.

        Args:
            annotation: Its number: Label Studio tells of one several times.
        """
        with self._changed:
            self._annotated.add(annotation)
            if len(self._annotated) >= self.settings.every:
                self._want()

    def ask(self) -> None:
        """Train as soon as the training that runs is done; once, however often it is asked."""
        with self._changed:
            self._want()

    def _want(self) -> None:
        self._is_wanted = True
        self._annotated.clear()
        self._changed.notify_all()

    def _work(self, jobs: Jobs) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_wanted or self._is_stopped)
                if self._is_stopped:
                    return
                self._is_wanted = False
            try:
                better = self.train(jobs.predictor)
                if better is not None:
                    jobs.use(better)
            except NotanError as error:
                logger.warning("Label Studio: the training came to nothing: %s", error)
            except Exception:
                logger.exception("a training ended in an error of notan's")

    def train(self, served: Predictor) -> Predictor | None:
        """Fetch, train and judge.

        Args:
            served: What answers now.

        Returns:
            The new model; None: it is worse than the one that is served.

        Raises:
            NotanError: Label Studio did not send what is needed, or it is too little; or a
                process failed.
        """
        counts = self.collect()
        logger.info("Label Studio: training on %s images, judging on %s", *counts)
        run = fresh_folder(self.settings.folder / "run")
        data = self.settings.folder / "data"
        words = ["train", "--data-path", data, "--weights", self.settings.base, "--out", run]
        words += ["--time-limit", f"{self.settings.seconds:g}s", "--device", self.settings.device]
        self._run(words, run.with_name(f"{run.name}.log"), self.settings.seconds + OVERTIME)
        found = run / "best.safetensors"
        new = self._load(found)
        before, after = self._judge(served), self._judge(new)
        is_better = after >= before
        verdict = "is served from now on" if is_better else "is worse, and the old one stays"
        logger.info(
            "Label Studio: Dice %.4f -> %.4f on %s images; %s: %s",
            before, after, counts[1], found, verdict,
        )  # fmt: skip
        return new if is_better else None

    def _judge(self, predictor: Predictor) -> float:
        """Return the mean Dice of a model on the images for judging."""
        score = evaluate(
            predictor,
            self.settings.folder / "data",
            split=JUDGE,
            allow_training_images=True,  # the base may have seen them; that is its advantage
            batch_size=1,  # the server has work beside it
        )
        return score.mean_dice

    def _run(self, words: Sequence[object], log: Path, seconds: float) -> None:
        """Run a command of notan's beside the server and wait for its end.

        Raises:
            NotanError: It failed, took too long, or the server is being stopped.
        """
        if self.settings.model_class is not None:
            words = [*words, "--model-class", self.settings.model_class]
        nice = ["nice", "-n", "10"] if shutil.which("nice") else []  # the server answers first
        command = [*nice, sys.executable, "-m", "notan", *map(str, words)]
        kept = {name: value for name, value in os.environ.items() if name != SECRET}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            with self._changed:
                if self._is_stopped:
                    raise NotanError("the server is being stopped")
                process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=kept
                )
                self._process = process
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise NotanError(f"it took longer than {seconds:g} seconds; {log}") from error
            finally:
                _end(process)
                self._process = None
        if code != 0:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise NotanError(f"{said[-1] if said else 'it ended'} (exit code {code}; {log})")

    def collect(self) -> tuple[int, int]:
        """Bring the data folder up to date with Label Studio.

        Returns:
            How many images there are to train on, and how many to judge on.

        Raises:
            NotanError: They cannot be had, or are too few.
        """
        found = dict(_annotated(self.origin.tasks(self.project)))
        places = {part: self.settings.folder / "data" / part for part in (TRAIN, JUDGE)}
        for folder in places.values():
            for kind in ("images", "masks"):
                (folder / kind).mkdir(parents=True, exist_ok=True)
        for task in sorted(found):
            try:
                self._keep(task, found[task], places)
            except NotanError as error:
                logger.warning("Label Studio: task %s is left out: %s", task, error)
        counts = {}
        for part, folder in places.items():
            for mask in (folder / "masks").glob("*.png"):
                if int(mask.stem) not in found:  # its annotation was taken back
                    for path in (mask, *(folder / "images").glob(f"{mask.stem}.*")):
                        path.unlink()
            counts[part] = len(list((folder / "masks").glob("*.png")))
        if not all(counts.values()):
            raise DataError(
                f"project {self.project}: {sum(counts.values())} images are annotated; 2 or more "
                "are wanted, since every fifth is kept for judging"
            )
        return counts[TRAIN], counts[JUDGE]

    def _keep(
        self, task: int, given: tuple[Mapping[str, Any], Sequence[Any]], places: Mapping[str, Path]
    ) -> None:
        """Write the image and the mask of a task; an image that is there stays where it is."""
        data, results = given
        known = [path for each in places.values() for path in (each / "images").glob(f"{task}.*")]
        if known:
            image, content = known[0], known[0].read_bytes()
        else:
            reference = next((each for each in data.values() if _is_image(each)), None)
            content = self.origin.image(reference)
            kept = {part: len(list((each / "masks").iterdir())) for part, each in places.items()}
            is_judged = kept[JUDGE] * EVERY_JUDGED <= kept[JUDGE] + kept[TRAIN]
            folder = places[JUDGE if is_judged and kept[TRAIN] else TRAIN]
            image = folder / "images" / f"{task}{_suffix(str(reference))}"
        size = upload_size(content)
        mask = paint_results(results, self.settings.label, size, f"task {task}")
        if not known:
            write_bytes(image, content)
        write_bytes(image.parent.parent / "masks" / f"{task}.png", encode_png(mask_image(mask)))


def _annotated(tasks: Sequence[Any]) -> Iterator[tuple[int, tuple[Mapping[str, Any], list[Any]]]]:
    """Give each annotated task: its number, its data, and what was drawn last."""
    for task in tasks:
        if not isinstance(task, dict) or not isinstance(task.get("id"), int):
            continue
        given = [
            each
            for each in task.get("annotations") or ()
            if isinstance(each, dict) and not each.get("was_cancelled")
        ]
        if given and isinstance(task.get("data"), dict):
            last = max(given, key=lambda each: str(each.get("updated_at", "")))
            results = [each for each in last.get("result") or () if isinstance(each, dict)]
            yield task["id"], (task["data"], results)


def _suffix(reference: str) -> str:
    suffix = Path(unquote(reference).rpartition("/")[2]).suffix.lower()
    return suffix if suffix in SUFFIXES else ".png"


def _is_image(value: object) -> bool:
    return isinstance(value, str) and "/data/" in value


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process: it may save what it has, then it must go."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
