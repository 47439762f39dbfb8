"""Prediction under Ray: it starts workers and says when one dies; blocks are handed out here.

Ray's own part is what it does well: one actor a GPU or set of cores, on whichever machines there
are, and word of those that are lost. No pixels go through it, only which files are to be done and
what became of them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notan.errors import ConfigError, NotanError, explaining_extras
from notan.scale.blocks import BlockWorker
from notan.scale.driver import BlockPrediction
from notan.scale.driver import OneProcessPrediction as OneProcessPrediction
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from notan.prediction.inputs import Found
    from notan.prediction.table import PredictionTable
    from notan.scale.blocks import Block, BlockJob
    from notan.scale.driver import Ended

    Ray: TypeAlias = Any
    """The module, which need not be installed; its actors and references have no types of use."""
    Room: TypeAlias = tuple[Callable[[], Ray], int]

CORES = 4
"""A worker's where there is no GPU; one network hardly gains by more, several do."""

PATIENCE = {
    "RAY_py_gcs_connect_timeout_s": "8",
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Without them Ray tries what is no Ray for minutes, and says so at every turn; thus 19 seconds."""

TOKEN = Path("~/.ray/auth_token")
START_ONE = (
    "start one with: ray start --head, see that this machine has its token, or leave --address out "
    "for one on this machine"
)

PROBE_SECONDS, MOST_PROBES = 5.0, 3
"""How often the head node is looked at, and how often in turn it may not answer."""

NOBODY_SECONDS = 600.0
"""So long no worker may be alive; a spot machine comes back within minutes, or not at all."""

WAIT_SECONDS = 0.5
END_SECONDS = 10.0
MOST_DEATHS_IN_TURN = 20
"""Beside one for each worker, with nothing done between; to find one deadly file takes fifteen."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Nearly nothing goes through it, and Ray would take a third of the memory."""


class RayPrediction(BlockPrediction):
    """Predicts files on the workers of a Ray."""

    def run(
        self,
        found: Sequence[Found],
        *,
        address: str | None = None,
        device: str = "auto",
        cores: int | None = None,
        most_workers: int | None = None,
    ) -> PredictionTable:
        """Predict all files; one that cannot be read, or that no process survives, is noted.

        However this ends, by an error or by Ctrl-C, every output is whole or absent, and
        predictions.csv names those that are done.

        Args:
            found: The files.
            address: Of a Ray that runs, HOST:PORT or auto; None: one is started on this machine.
            device: What the workers compute on, as in ``notan.load``.
            cores: Of the processor, for a worker; None: chosen.
            most_workers: As many at most; None: as there is room for.

        Returns:
            What is done and what failed.

        Raises:
            ConfigError: There is no Ray at the address, or machines compute differently.
            MissingExtraError: Ray is not installed.
            StorageError: Something could not be written.
            NotanError: Ray was lost, or had no room for a worker; or whatever ended a worker.
        """
        with _ray_at(address) as ray:
            crew = _Crew(ray, self._room(ray, device, cores), most_workers)
            self.workers = crew.size
            try:
                return self._predict(crew, found)
            finally:
                crew.dismiss()

    def _room(self, ray: Ray, device: str, cores: int | None) -> Room:
        """Return what starts a worker, and for how many there is room."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
        most_cores = int(max((node.get("CPU", 0) for node in nodes), default=0))
        cores = max(1, min(cores or CORES, most_cores))
        sets = sum(int(node.get("CPU", 0)) // cores for node in nodes)
        needs = {"num_cpus": 1, "num_gpus": 1} if gpus else {"num_cpus": cores}
        actor = ray.remote(BlockWorker).options(**needs)
        start = functools.partial(
            actor.remote,
            self._load,
            Path.cwd(),
            cores=cores,
            batch_size=self._batch_size,
            version=__version__,
        )
        return start, gpus or max(1, sets)


class _Crew:
    """Workers, and what each of them is at.

    Attributes:
        idle: Those that have the model and nothing to do.
        size: How many there are.
    """

    def __init__(self, ray: Ray, room: Room, most: int | None) -> None:
        self._start, size = room
        self._ray = ray
        told = ray.exceptions
        self._deaths = (told.RayActorError, told.NodeDiedError, told.OutOfMemoryError)
        self.size = min(size, most or size)
        self.idle: list[Ray] = []
        self._workers: list[Ray] = []
        self._running: dict[Ray, tuple[Ray, Block | None]] = {}
        self._settings: dict[str, str] | None = None
        self._deaths_in_turn = 0
        self._alive_at = time.monotonic()
        self._head = _Head(ray.get_runtime_context().gcs_address)
        for _ in range(self.size):
            self._begin()

    @property
    def blocks(self) -> list[Block]:
        """What is being predicted."""
        return [block for _, block in self._running.values() if block is not None]

    def first_settings(self) -> dict[str, str]:
        """Wait until one worker has loaded the model, and return what it says of it."""
        while self._settings is None:
            self.wait()
        return self._settings

    def give(self, job: BlockJob, block: Block) -> None:
        """Hand a block to an idle worker."""
        worker = self.idle.pop()
        self._running[worker.predict.remote(job, block)] = (worker, block)

    def wait(self) -> list[Ended]:
        """Wait a moment, and return the blocks that ended: done, or None where a process died.

        Raises:
            NotanError: What a worker raised; Ray is lost; no worker can be started.
        """
        done, _ = self._ray.wait(list(self._running), timeout=WAIT_SECONDS)
        self._head.look()
        if done or self.idle or self.blocks:
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > NOBODY_SECONDS:
            raise NotanError(
                f"Ray has had no room for a worker for {NOBODY_SECONDS:.0f} s; see what runs there "
                "with: ray status; then give the same command with --resume"
            )
        ended = [self._ended(each, *self._running.pop(each)) for each in done]
        return [each for each in ended if each is not None]

    def dismiss(self) -> None:
        """End all workers at once; blocks that they are at stay undone."""
        for worker in self._workers:
            self._kill(worker)
        self._workers = []

    def _ended(self, what: Ray, worker: Ray, block: Block | None) -> Ended | None:
        try:
            result = self._ray.get(what)
        except self._deaths as death:
            self._replace(worker, death)
            return None if block is None else (block, None)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, NotanError) else error) from None
        self.idle.append(worker)
        self._deaths_in_turn = 0
        if block is not None:
            return block, result
        self._settings = self._settings or result
        return None

    def _replace(self, worker: Ray, death: Exception) -> None:
        """Start another worker, wherever there is room, or will be.

        Ray's own restart would do, but that it says the same of a call that ended a process and of
        one that came before the process was there.
        """
        self._deaths_in_turn += 1
        if self._deaths_in_turn > MOST_DEATHS_IN_TURN + self.size:
            said = " ".join(str(death).split())[:300]
            raise NotanError(f"Ray's workers end one after the other: {said}") from death
        self._kill(worker)  # it may only be out of reach
        self._workers.remove(worker)
        self._begin()

    def _begin(self) -> None:
        """Start a worker and have it load the model; until then it gets no block."""
        worker = self._start()
        self._workers.append(worker)
        self._running[worker.open.remote()] = (worker, None)

    def _kill(self, worker: Ray) -> None:
        with contextlib.suppress(Exception):  # it is dead, or a Ray that is lost has none
            self._ray.kill(worker)


class _Head:
    """Ray's head node, whose loss Ray itself notices after a minute, and then ends the process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._next_look = time.monotonic() + PROBE_SECONDS
        self._silent = 0

    def look(self) -> None:
        """See from time to time whether it answers.

        Raises:
            NotanError: It has not, several times in turn.
        """
        if time.monotonic() < self._next_look:
            return
        self._silent = 0 if _answers(self._address) else self._silent + 1
        if self._silent >= MOST_PROBES:
            raise NotanError(
                f"Ray's head node at {self._address} is gone; start Ray again and give the same "
                "command with --resume to go on"
            )
        self._next_look = time.monotonic() + PROBE_SECONDS


@contextlib.contextmanager
def _ray_at(address: str | None) -> Iterator[Ray]:
    """Connect to a Ray, or start one on this machine, and leave or end it afterwards.

    One that this process has begun already is taken as it is, and stays.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to Ray's makers
    if address is not None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        # Ray has a new cluster ask for a token where there is one, but does not show it by itself
        if "RAY_AUTH_TOKEN" in os.environ or TOKEN.expanduser().exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    with explaining_extras("--engine ray"):
        import ray
    logging.getLogger("ray").setLevel(logging.ERROR)
    # what Ray has to say of a process that died stands in its logs; its lines would be in ours
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _refuse_no_ray(address)
    handlers = _signal_handlers()
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **_QUIET,
            )
        else:
            with _without_standard_error():
                ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        where = "Ray could not be started here" if address is None else f"--address {address}"
        raise ConfigError(f"{where}: {said}; {START_ONE}") from error
    finally:
        for number, handler in handlers.items():  # Ray's own would end this process at once
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        # of a Ray whose head is gone it would wait for minutes
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(END_SECONDS)


_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "configure_logging": False,
    "logging_level": "ERROR",
}


@contextlib.contextmanager
def _without_standard_error() -> Iterator[None]:
    """Keep what Ray's core writes there while it connects, past Python, to itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _signal_handlers() -> dict[int, Any]:
    """Return the handlers that Ray would replace; only the main thread has any."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


def _refuse_no_ray(address: str) -> None:
    """Refuse an address at which nothing answers, which Ray would try for long.

    Raises:
        ConfigError: Nothing does.
    """
    if "://" in address:
        raise ConfigError(
            f"--address {address}: HOST:PORT or auto is wanted, as ray start printed it; give the "
            "command on a machine of the cluster"
        )
    if address != "auto" and not _answers(address):
        raise ConfigError(f"--address {address}: nothing answers there; {START_ONE}")


def _answers(address: str) -> bool:
    """Say whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
            return True
    except (OSError, OverflowError):
        return False
