"""Candidates: the model files that are compared, and which of them are seeds of one run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.config import changed_settings
from notan.errors import CheckpointError, ConfigError
from notan.modelfile.card import Card, read_card
from notan.run_folder import BEST
from notan.training.start import HARMLESS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.config import TrimapBorder

FEWEST = 2
HOW_LONG = {"train.patience", "train.time_limit_seconds", "train.loss_guard", "train.max_rollbacks"}
BESIDE_THE_RECIPE = (HARMLESS - HOW_LONG) | {"seed"}
"""Settings in which two runs may differ and still be seeds of one: none decides what is learned."""

SEED_TAIL = re.compile(r"[-_. ]+(seed|s)?\d+$")


@dataclass(frozen=True)
class Candidate:
    """A model file that takes part.

    Attributes:
        name: Short, and its own among the candidates.
        path: The file.
        card: What it says of itself.
    """

    name: str
    path: Path
    card: Card


@dataclass(frozen=True)
class Group:
    """Candidates that are seeds of one run; most often a single one."""

    name: str
    members: tuple[Candidate, ...]


def open_candidates(models: Sequence[Path]) -> list[Candidate]:
    """Read the cards of run folders and model files.

    Raises:
        ConfigError: Fewer than two were given.
        CheckpointError: One is missing, damaged, a pickle, or a folder without a model.
    """
    if len(models) < FEWEST:
        given = f"only {models[0]} was" if models else "none was"
        raise ConfigError(
            f"a comparison wants two or more runs or model files; {given} given: "
            "notan compare runs/unet runs/attention_unet"
        )
    paths = [model_file(model) for model in models]
    names = distinct_names([path.parent if path.name == BEST else path for path in paths])
    return [Candidate(name, path, read_card(path)) for name, path in zip(names, paths, strict=True)]


def model_file(model: Path) -> Path:
    """Return the model file of a run folder; any other path is one itself.

    Raises:
        CheckpointError: A folder without a model.
    """
    if not model.is_dir():
        return model  # reading its card says what is wrong with it
    if not (model / BEST).is_file():
        raise CheckpointError(
            f"{model}: there is no {BEST} here; a run folder has one when its first epoch is over"
        )
    return model / BEST


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by as few of their last parts as tell them apart; number what is twice there."""
    parts = [
        path.resolve().with_suffix("").parts if path.is_file() else path.resolve().parts
        for path in paths
    ]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [
        f"{name} ({names[:number].count(name) + 1})" if name in names[:number] else name
        for number, name in enumerate(names)
    ]


def group_seeds(candidates: Sequence[Candidate]) -> list[Group]:
    """Put candidates together that were trained alike but for the seed.

    A seed that is there twice begins another group, so that two trainings with one seed can be
    compared; and where all would be one group, its seeds are compared with each other.
    """
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        for group in groups:
            if all(_differ_in_seed_only(candidate, member) for member in group):
                group.append(candidate)
                break
        else:
            groups.append([candidate])
    if len(groups) == 1:
        groups = [[candidate] for candidate in candidates]
    names = [_group_name(group) for group in groups]
    return [
        Group(name if names.count(name) == 1 else group[0].name, tuple(group))
        for name, group in zip(names, groups, strict=True)
    ]


def _differ_in_seed_only(one: Candidate, other: Candidate) -> bool:
    changed = changed_settings(one.card.run, other.card.run).keys()
    return (
        one.card.run.seed != other.card.run.seed
        and changed <= BESIDE_THE_RECIPE
        and one.card.model_class == other.card.model_class
        and not one.card.members  # what each was joined of is not told by the settings
        and _images(one) == _images(other)
    )


def _images(candidate: Candidate) -> object:
    """Return what tells training images apart, but for a split that the seed decided."""
    data = candidate.card.data
    by_seed = data.validation_names is not None and candidate.card.run.data.split_seed is None
    return data.training_images if by_seed else data.training_fingerprint


def _group_name(group: Sequence[Candidate]) -> str:
    if len(group) == 1:
        return group[0].name
    names = {SEED_TAIL.sub("", member.name) for member in group}
    return names.pop() if len(names) == 1 else group[0].card.run.model.name


def common_trimap_border(
    candidates: Sequence[Candidate], trimap_border: TrimapBorder | None
) -> TrimapBorder | None:
    """Return the border rule that all are scored by.

    Args:
        candidates: Each with the rule it was trained by.
        trimap_border: A rule that overrides theirs.

    Raises:
        ConfigError: Theirs differ and none was given.
    """
    rules = {candidate.card.trimap_border for candidate in candidates}
    if trimap_border or len(rules) == 1:
        return trimap_border or rules.pop()
    listed = ", ".join(f"{each.name} {each.card.trimap_border or 'none'}" for each in candidates)
    raise ConfigError(
        f"the models were trained by different rules for the trimap's border ({listed}); choose "
        "the one to score all of them by: --trimap-border foreground, --trimap-border background "
        "or --trimap-border ignore"
    )


def check_validation(candidates: Sequence[Candidate], split: str) -> None:
    """Refuse models that notan set different validation images aside for.

    Raises:
        ConfigError: They did, and the split is made of those images.
    """
    choices = {candidate.card.data.validation_names for candidate in candidates}
    if len(choices) > 1 and split not in ("test", "all"):
        raise ConfigError(
            f"--split {split}: the models set different images aside for validation, so some "
            "were trained on what others are scored on; compare them on --split test"
        )


def notes_on(candidates: Sequence[Candidate], trimap_border: TrimapBorder | None) -> list[str]:
    """Say what a reader must know of how the models came about, each in a sentence."""
    return [
        *_same_files(candidates),
        *_different_images(candidates),
        *(
            f"{each.name} was trained with trimap_border = {each.card.trimap_border} and is "
            "scored by "
            f"trimap_border = {trimap_border}."
            for each in candidates
            if trimap_border
            and each.card.trimap_border
            and each.card.trimap_border != trimap_border
        ),
    ]


def _same_files(candidates: Sequence[Candidate]) -> list[str]:
    notes = []
    for number, candidate in enumerate(candidates):
        for earlier in candidates[:number]:
            if candidate.path.resolve() == earlier.path.resolve():
                notes.append(f"{earlier.path} was given twice: it is compared with itself.")
            elif candidate.card.sha256 == earlier.card.sha256:
                notes.append(f"{earlier.name} and {candidate.name} hold the same weights.")
    return notes


def _different_images(candidates: Sequence[Candidate]) -> list[str]:
    trained_on: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        trained_on.setdefault(candidate.card.data.training_fingerprint, []).append(candidate)
    if len(trained_on) == 1:
        return []
    listed = "; ".join(
        f"{', '.join(each.name for each in together)} on {together[0].card.data.training_images}"
        for together in trained_on.values()
    )
    return [f"The models were trained on different images ({listed})."]
