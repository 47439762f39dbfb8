"""suggest: from what was asked for to a whole run, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.auto.choose import choose
from notan.auto.fingerprint import take_fingerprint
from notan.auto.machine import look_at_machine
from notan.auto.recipe import recipe_to_toml
from notan.config import asked_settings, load_run
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notan.config import Run


@dataclass(frozen=True)
class Suggestion:
    """Settings that were chosen, and why.

    Attributes:
        run: All settings, those that were asked for among them.
        recipe: TOML with a sentence above each; ``load_run`` reads it back to the same run.
        sentences: What was seen, and each choice in a line.
    """

    run: Run
    recipe: str
    sentences: str


def suggest(
    *, flags: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> Suggestion:
    """Look at a data folder and this machine, and choose how to train.

    Only training images are opened. What is asked for stands, and the other choices follow it.

    Args:
        flags: As for ``load_run``; ``data.path`` is needed, here or among the overrides.
        overrides: As for ``load_run``.

    Raises:
        ConfigError: No data folder was given, or a setting does not exist or fit.
        DataError: The data are missing or unreadable, or every mask is empty or all foreground.
    """
    wanted = load_run(flags=flags, overrides=overrides)
    machine = look_at_machine(wanted.device)
    images = take_fingerprint(wanted.data, seed=wanted.seed)
    choice = choose(images, machine, asked_settings(flags=flags, overrides=overrides))
    seen = (f"The data: {images.in_words()}.", f"The machine: {machine.in_words()}.")
    header = (
        f"Chosen by notan {__version__}, train --auto. Change what you like, and train it with:",
        "notan train --recipe THIS_FILE",
        "",
        *seen,
    )
    return Suggestion(
        run=load_run(flags=choice.settings, overrides=overrides),
        recipe=recipe_to_toml(choice, header),
        sentences="\n".join((*seen, choice.sentences())),
    )
