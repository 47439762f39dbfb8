"""Training state: where a training stands, and everything that an exact resume needs.

A state is a tree of tensors and plain values, written as safetensors with the plain part as JSON in
the metadata and a SHA-256 over both; never a pickle. The newest two are kept, each written whole or
not at all, so that one intact state is always there.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from notan.errors import CheckpointError
from notan.io.digest import sha256
from notan.io.write import is_text, storage_errors, write_bytes
from notan.modelfile.safetensors import hash_weights, read_metadata, read_weights
from notan.training.steps import AverageMeter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from notan.training.build import Setup
    from notan.training.ranks import Ranks
    from notan.training.steps import Optimization

logger = logging.getLogger("notan")

KEPT = 2
TENSOR = "$tensor"
FORMAT = "2"

SHOWN, OWN_IMAGES = 3, "the images of your own"
"""Changed files that a message names, and how it calls those that lie in no folder."""


class StateFolder:
    """The states of a run, newest first; ``last/`` in the run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Write a state and drop all but the newest two.

        Args:
            step: Optimizer steps since the start of the run; orders the files.
            tree: Nested dicts and lists of tensors and JSON's plain values.

        Raises:
            StorageError: The state could not be written; the ones before are left as they were.
        """
        tensors: dict[str, torch.Tensor] = {}
        plain = json.dumps(_take_out(tree, "", tensors))
        metadata = {"format": FORMAT, "plain": plain, "sha256": _digest(plain, tensors)}
        write_bytes(self.folder / f"{step:09d}.safetensors", save(tensors, metadata))
        with storage_errors(self.folder):
            for old in self.files()[KEPT:]:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Read the newest intact state; None where there is none.

        One that is damaged or of another version is named in a warning, and the one before taken.
        """
        for path in self.files():
            try:
                return _read(path)
            except CheckpointError as error:
                logger.warning("%s; going back to the state before it", error)
        return None

    def files(self) -> list[Path]:
        """Return the states' files, newest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's random generators."""
    kind, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - see seed_everything
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(numbers).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the random generators to what ``random_states`` returned, perhaps through JSON."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's moments, each in its weight's own memory layout; settings stay.

    The layout decides in which order vector instructions run over the numbers, and so the last
    bit of the result.
    """
    moments_of = {int(key): value for key, value in state["state"].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments_of})
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value):
                same = value.shape == weight.shape
                moments[name] = torch.empty_like(weight if same else value).copy_(value)


def begin_anew(optimization: Optimization) -> None:
    """Make an optimizer forget what it knows of its weights.

    The moments stay where they are in memory: a captured step knows them by their place.
    """
    optimizer = optimization.optimizer
    if not optimization.own:
        for moments in optimizer.state.values():
            for moment in moments.values():
                moment.zero_()
        return
    optimizer.state.clear()
    if optimization.blank:  # some have moments from the start, and no step without them
        restore_optimizer(optimizer, {"state": optimization.blank})


def restore_groups(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer of the user's keeps beside each weight's moments.

    Of notan's own, the settings say it, which a resume may change.
    """
    for group, kept in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name in kept.keys() - {"params", "lr", "factor", "late"}:
            was_tuple = isinstance(group.get(name), tuple)
            group[name] = tuple(kept[name]) if was_tuple else kept[name]


def clone_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _take_out(node: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    """Return a tree without its tensors, which are put aside under the paths to them."""
    if torch.is_tensor(node):
        tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {TENSOR: name}
    if isinstance(node, dict):
        return {str(key): _take_out(value, f"{name}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_take_out(value, f"{name}/{number}", tensors) for number, value in enumerate(node)]
    return node


def _put_back(node: Any, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        if TENSOR in node:
            return tensors[node[TENSOR]]
        return {key: _put_back(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_put_back(value, tensors) for value in node]
    return node


def _read(path: Path) -> dict[str, Any]:
    try:
        if is_text(path):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            metadata, tensors = read_metadata(path), read_weights(path)
        if metadata["format"] != FORMAT:
            raise CheckpointError(f"{path}: the state was written by another version of notan")
        plain = metadata["plain"]
        if metadata["sha256"] != _digest(plain, tensors):
            raise CheckpointError(f"{path}: the state is damaged (SHA-256 differs)")
        tree: dict[str, Any] = _put_back(json.loads(plain), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the state is damaged ({error})") from error
    return tree


def _digest(plain: str, tensors: dict[str, torch.Tensor]) -> str:
    return sha256(f"{hash_weights(tensors)} {plain}")


@dataclass(frozen=True)
class Best:
    """The best epoch so far.

    Attributes:
        score: The validation Dice, a mean over images at their own size; of a pretraining the
            held-out loss, of which less is better.
        epoch: The epoch it is from, counted from 1.
        baseline: What the same answer for every image would score: all foreground; of a
            pretraining the mean colour in every gap.
        averaged: Whether the EMA of the weights scored it.
        steady_dice: See ``Validation``; None too in states of earlier versions.
    """

    score: float
    epoch: int
    baseline: float
    averaged: bool = False
    steady_dice: float | None = None


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch: The epoch that is being trained, counted from 1.
        batch: Batches of it that are done.
        step: Batches since the start of the run.
        seconds: Time spent on this epoch so far.
        earlier_seconds: Time spent on the epochs before it.
        means: Losses of this epoch so far.
        best: The best epoch so far.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    earlier_seconds: float = 0.0
    means: AverageMeter = field(default_factory=AverageMeter)
    best: Best | None = None

    def next_epoch(self) -> None:
        """Go on to the first batch of the next epoch."""
        self.earlier_seconds += self.seconds
        self.epoch += 1
        self.batch, self.seconds, self.means = 0, 0.0, AverageMeter()


def capture(setup: Setup, progress: Progress) -> dict[str, Any]:
    """Return what every training's future depends on, as a tree for a StateFolder.

    The optimizer's moments are no copies: save them before the next step.
    """
    optimization = setup.optimization
    schedule = optimization.schedule
    return {
        "encoder_start": setup.start and asdict(setup.start),
        "contents": setup.contents,
        "progress": asdict(progress),
        **weights_of(setup),
        "optimizer": optimization.optimizer.state_dict(),
        "optimizer_class": type(optimization.optimizer).__name__,
        "schedule": {
            "lowered": schedule.lowered,
            "steps": schedule.steps,
            "thawed": schedule.thawed,
        },
        "scaler": optimization.scaler.state_dict(),
        **_all_random_states(setup.ranks),
    }


def _all_random_states(ranks: Ranks) -> dict[str, Any]:
    """Return the random generators of this process, and of all where several train together."""
    states = ranks.gather(random_states())
    return {"random": states[0], **({} if ranks.is_alone else {"random_of_ranks": states})}


def changed_contents(setup: Setup, tree: Mapping[str, Any], path: Path | None) -> Iterator[str]:
    """Say which files of the names that a state knows hold something else by now.

    Nothing is said of states of earlier versions, which do not know.

    Args:
        setup: Of the training that goes on.
        tree: The state.
        path: Where its images are; None: in no folder.
    """
    sources = (setup.training, setup.validation)
    known = tree.get("contents", setup.contents)
    for source, stored, now in zip(sources, known, setup.contents, strict=True):
        if len(stored) != len(now):
            continue  # there are other names, too
        named = zip(source.names, stored, now, strict=True)
        changed = [name for name, before, after in named if before != after]
        if changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            yield (
                f"{path or OWN_IMAGES}: {len(changed)} of {len(now)} images or masks have changed "
                f"since the run began ({', '.join(changed[:SHOWN])}{more})"
            )


def weights_of(setup: Setup) -> dict[str, Any]:
    """Return copies of the weights and of their EMA."""
    average = setup.average
    return {"model": clone_weights(setup.model), "average": average and clone_weights(average)}


def restore(setup: Setup, tree: dict[str, Any]) -> Progress:
    """Put a training back to where ``capture`` found it, to the last bit."""
    restore_weights(setup, tree)
    optimization = setup.optimization
    if optimization.own:
        _require_same_optimizer(optimization.optimizer, tree)
        restore_groups(optimization.optimizer, tree["optimizer"])
    restore_optimizer(optimization.optimizer, tree["optimizer"])
    optimization.scaler.load_state_dict(tree["scaler"])
    schedule = optimization.schedule
    schedule.lowered, schedule.steps = tree["schedule"]["lowered"], tree["schedule"]["steps"]
    schedule.thawed = tree["schedule"].get("thawed")  # not in states of earlier versions
    schedule.apply()
    ranks, of_ranks = setup.ranks, tree.get("random_of_ranks", ())
    same = len(of_ranks) == ranks.count  # others begin from those of the first
    restore_random_states(of_ranks[ranks.number] if same else tree["random"])
    fields = tree["progress"]
    best = fields["best"]
    return Progress(
        **{**fields, "means": AverageMeter(**fields["means"]), "best": best and Best(**best)}
    )


def _require_same_optimizer(optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
    groups = [len(group["params"]) for group in optimizer.param_groups]
    kept = [len(group["params"]) for group in tree["optimizer"]["param_groups"]]
    now, before = type(optimizer).__name__, tree.get("optimizer_class")
    if (now, groups) != (before, kept):
        raise CheckpointError(
            f"the state of this run is of the optimizer {before} with groups of {kept} weights, "
            f"and optimizer= made {now} with groups of {groups}; give the one that it began with"
        )


def restore_weights(setup: Setup, tree: dict[str, Any]) -> None:
    """Put back what ``weights_of`` returned.

    Raises:
        CheckpointError: They are another network's.
    """
    try:
        setup.model.load_state_dict(tree["model"])
    except RuntimeError as error:
        raise CheckpointError(
            "the state of this run does not fit the network; resume with the model settings, "
            "or the module, that it was started with"
        ) from error
    if setup.average and tree["average"]:
        setup.average.load_state_dict(tree["average"])
