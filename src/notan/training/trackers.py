"""Trackers: what follows a training beside its run folder, TensorBoard and others, or one's own.

They are told of settings, curves, images, the model's card and the report. None reaches the network
or reports its own use unless the user's environment says so, and none that fails ends a training.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from notan.errors import EXTRAS, MissingExtraError
from notan.io.write import is_text, write_bytes
from notan.run_folder import EVENTS, MLFLOW, TRACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notan.types import RGBImage

    Ending: TypeAlias = Literal["finished", "stopped", "failed"]

logger = logging.getLogger("notan")

EPOCH = "epoch"
PROJECT = "notan"
"""What experiments and projects are called where the user's environment names none."""

QUIET = {
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # else it wants a database, which mlflow-skinny lacks
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # of a server that the user names; else it tries for
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # many minutes
    },
    "wandb": {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
        "WANDB_X_DISABLE_META": "true",  # the user's name, the command, the machine
        "WANDB_HOST": "-",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_X_SAVE_REQUIREMENTS": "false",
        "WANDB_INIT_TIMEOUT": "30",
    },
}
"""Variables that each reads, set before it is imported where the user has not set them."""


class Tracker:
    """What follows a training; override what you need, and give it to ``notan.train(logger=...)``.

    Whatever a method raises is said once; the training goes on without the tracker.
    """

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        """Open it.

        Args:
            settings: All of them, by dotted name.
            folder: The run folder.
            first_epoch: The epoch that comes next; above 1 the training goes on, and what was told
                of this epoch and of later ones is told again.
        """

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Take what history.jsonl gets of an epoch, such as ``validation/dice``."""

    def image(self, number: int, name: str, image: RGBImage) -> None:
        """Take a validation image with its prediction: uint8, (height, width, 3)."""

    def document(self, name: str, text: str) -> None:
        """Take a text file: ``card.json`` at the end, ``report.html`` where a command wrote it."""

    def end(self, how: Ending) -> None:
        """Close it; a training that was stopped or failed may go on later."""


class TensorBoard(Tracker):
    """Events in the run folder, for ``tensorboard --logdir``."""

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        """Open the events; those of epochs that come again are marked as void."""
        from torch.utils.tensorboard import SummaryWriter

        del settings
        place = folder / EVENTS
        if not is_text(place):
            raise ValueError("it wants a folder whose name is text")
        self._events: Any = SummaryWriter(str(place), purge_step=first_epoch)

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._events.add_scalar(name, value, number)

    def image(self, number: int, name: str, image: RGBImage) -> None:
        """Add an image."""
        self._events.add_image(f"validation/{name}", image, number, dataformats="HWC")

    def document(self, name: str, text: str) -> None:
        """Add the card as text; a page is none."""
        if not name.endswith(".html"):
            self._events.add_text(name, f"```\n{text}\n```")

    def end(self, how: Ending) -> None:
        """Write what is not written yet."""
        del how
        self._events.close()


MOST_PARAMETERS, LONGEST_PARAMETER = 100, 500
"""In one call of MLflow's, and in characters, which older servers allow."""

MLFLOW_ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """A run of MLflow's, in ``mlflow/`` of the run folder or where MLFLOW_TRACKING_URI says."""

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        """Begin a run, or go on with the one that the run folder names."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder / MLFLOW).absolute().as_uri()
        self._client, self._metric = MlflowClient(place), Metric
        del first_epoch  # the server knows better: a training that was killed repeats its last ones
        self._told = 0
        known = _tracked(folder).get("mlflow")
        if known:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            told = self._client.get_metric_history(known, EPOCH)
            self._told = max((point.step for point in told), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=folder.absolute().name).info.run_id
        _track(folder, "mlflow", self._run)
        given = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in settings.items()]
        for first in range(0, len(given), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=given[first : first + MOST_PARAMETERS])

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if number > self._told:
            named = {EPOCH: number, **values}
            moment = round(time.time() * 1000)
            points = [self._metric(name, each, moment, number) for name, each in named.items()]
            self._client.log_batch(self._run, metrics=points)

    def image(self, number: int, name: str, image: RGBImage) -> None:
        """Add an image as an artifact."""
        self._client.log_image(self._run, image, f"validation/{name}/{number:05d}.png")

    def document(self, name: str, text: str) -> None:
        """Add a file as an artifact."""
        self._client.log_text(self._run, text, name)

    def end(self, how: Ending) -> None:
        """End the run."""
        self._client.set_terminated(self._run, MLFLOW_ENDINGS[how])


class WandB(Tracker):
    """A run of Weights & Biases, offline in ``wandb/`` of the run folder unless WANDB_MODE says."""

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        """Begin a run, or one of the same name that ``wandb sync`` joins to what went before."""
        import wandb

        del first_epoch  # of a step that it knows already it keeps the first
        self._wandb: Any = wandb
        known = _tracked(folder).get("wandb") or uuid.uuid4().hex[:8]
        _track(folder, "wandb", known)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.absolute().name,
            id=known,
            resume="allow",
            dir=str(folder),
            config={name: _plain(value) for name, value in settings.items()},
            allow_val_change=True,
        )

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log({EPOCH: number, **values}, step=number)

    def image(self, number: int, name: str, image: RGBImage) -> None:
        """Add an image; it stands with the points of the same epoch."""
        self._run.log({f"validation/{name}": self._wandb.Image(image)}, step=number)

    def document(self, name: str, text: str) -> None:
        """Add a file to the run."""
        path = Path(self._run.dir) / name
        write_bytes(path, text.encode())
        self._run.save(str(path), base_path=self._run.dir, policy="now")

    def end(self, how: Ending) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if how == "finished" else 1)


class Called(Tracker):
    """A plain function of the user's: what it raises ends the training, as it may be meant to."""

    def __init__(self, function: Callable[[Mapping[str, float]], object]) -> None:
        self.function = function

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Call it with the line of the history."""
        self.function({EPOCH: number, **values})


NAMED: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _tracked(folder: Path) -> dict[str, str]:
    """Return what each tracker calls the run of a run folder."""
    try:
        known = json.loads((folder / TRACKED).read_bytes())
        return {name: str(run) for name, run in known.items()}
    except (OSError, ValueError, AttributeError):  # none yet, or spoilt: they begin runs anew
        return {}


def _track(folder: Path, name: str, run: str) -> None:
    known = {**_tracked(folder), name: run}
    write_bytes(folder / TRACKED, (json.dumps(known, indent=2) + "\n").encode())


def is_installed(name: str) -> bool:
    """Say whether a tracker's package is there; a folder of its name, as it leaves one, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def require_trackers(names: Sequence[str] | None) -> None:
    """Refuse trackers that were asked for and are absent, before anything is trained.

    Args:
        names: As the settings have them; None: whatever is installed.

    Raises:
        MissingExtraError: One is not installed.
    """
    for name in names or ():
        if not is_installed(name):
            raise MissingExtraError(
                f"train.trackers names {name}, which is not installed: pip install "
                f"'notan[{EXTRAS[name]}]', or leave it out"
            )


class Trackers:
    """All that follow one training; one that fails is left out from then on."""

    def __init__(self, names: Sequence[str] | None, own: Tracker | None = None) -> None:
        """Take their names.

        Args:
            names: As the settings have them; None: TensorBoard where it is installed.
            own: The user's, beside them.
        """
        if names is None:
            names = ("tensorboard",) if is_installed("tensorboard") else ()
        self._open: dict[str, Tracker] = {name: NAMED[name]() for name in names}
        if own is not None:
            self._open[type(own).__qualname__] = own
        for variables in (QUIET.get(name, {}) for name in names):
            for variable, value in variables.items():
                os.environ.setdefault(variable, value)

    @property
    def want_images(self) -> bool:
        """Whether images are of use to any; drawing them takes time."""
        return any(type(each).image is not Tracker.image for each in self._open.values())

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        """Open all; see ``Tracker`` for the arguments, here and below."""
        self._tell(lambda tracker: tracker.begin(settings, folder, first_epoch))

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Tell all of an epoch."""
        self._tell(lambda tracker: tracker.epoch(number, values))

    def image(self, number: int, name: str, image: RGBImage) -> None:
        """Show an image to all."""
        self._tell(lambda tracker: tracker.image(number, name, image))

    def document(self, name: str, text: str) -> None:
        """Give all a file."""
        self._tell(lambda tracker: tracker.document(name, text))

    def end(self, how: Ending) -> None:
        """Close all."""
        self._tell(lambda tracker: tracker.end(how))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._open.items()]:
            try:
                tell(tracker)
            except Exception as error:
                if isinstance(tracker, Called):
                    raise
                del self._open[name]
                said = " ".join(f"{type(error).__name__}: {error}".split())
                logger.warning("%s follows this training no longer: %s", name, said[:LONGEST_FAULT])


LONGEST_FAULT = 300
"""Characters of what went wrong in a tracker that a line repeats."""


def hand_in(names: Sequence[str] | None, folder: Path, page: Path) -> None:
    """Give a finished run's report to the trackers that take pages, if they know the run.

    Args:
        names: As the settings have them.
        folder: The run folder.
        page: The report.
    """
    known = [name for name in names or () if name in _tracked(folder)]
    if not known:
        return
    trackers = Trackers(known)
    trackers.begin({}, folder, first_epoch=1)
    trackers.document(page.name, page.read_text(encoding="utf-8"))
    trackers.end("finished")
