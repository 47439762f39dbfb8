"""Run as a script: the ranks of a training, started by torchrun's own agent, in forks of itself.

``torchrun`` starts each rank as a program, which takes seconds to import PyTorch; what finds,
watches and starts them anew is the same ``elastic_launch`` here. For each line that it reads, a
job, it answers with the number of the agent's process, and once that has ended with its exit code.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import notan.training.build
from notan.cli.main import main
from notan.models.build import MODELS
from runs import add_little, little, no_report

if TYPE_CHECKING:
    from notan.config import Model
    from notan.models.base import SegmentationModel

Job = dict[str, Any]
"""``words``: of the command line, or for each rank its own; ``ranks``, ``restarts``; ``exact``:
compute in float64; ``kill``: the rank, and seconds after which it is killed, the first time;
``version``: of the second rank's notan; ``log``: where all of them write to."""


def exactly(network: torch.nn.Module, precision: object) -> None:
    """Have a network compute in float64, whatever it is given."""
    del precision
    network.double()
    network.register_forward_pre_hook(lambda _, given: (given[0].double(),))


def poisoned(settings: Model, channels: int = 3) -> SegmentationModel:
    """Build a network that answers two batches with NaN, on the second rank alone."""
    network, calls = little(settings, channels), itertools.count()

    def poison(module: torch.nn.Module, _: object, logits: torch.Tensor) -> torch.Tensor | None:
        if not module.training or os.environ["RANK"] != "1" or next(calls) not in (9, 10):
            return None
        return logits * torch.nan

    network.register_forward_hook(poison)
    return network


def rank(job: Job) -> None:
    """Do what one process of torchrun does."""
    number = int(os.environ["RANK"])
    torch.set_num_threads(1)
    add_little()
    MODELS["poisoned"] = poisoned  # type: ignore[index]
    notan.cli.train._report = no_report
    if job.get("exact"):
        notan.training.build.lay_out = exactly
    if number == 1 and "version" in job:
        vars(notan.training.build)["__version__"] = job["version"]
    killed, seconds = job.get("kill") or (None, 0)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    if number == killed and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        timer.start()
    words = job["words"]
    main(words if isinstance(words[0], str) else words[number])
    # what follows is the agent's: multiprocessing waits for ever for a process killed in there
    timer.cancel()


def launch(job: Job) -> None:
    """Start the ranks, and wait for them."""
    configuration = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job["ranks"],
        max_restarts=job.get("restarts", 0),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="fork",
        monitor_interval=0.05,
    )
    elastic_launch(configuration, rank)(job)


def agent(job: Job) -> int:
    """Be the process of torchrun; return its exit code."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        launch(job)
    except BaseException as error:  # noqa: BLE001 - the test reads it
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(agent(json.loads(line)))
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
