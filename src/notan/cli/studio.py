"""The studio: ``notan studio`` opens a page to look at masks and to correct them."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from notan.api import model_file
from notan.cli.flags import (
    MACHINE,
    MASKS,
    READING,
    MachineFlags,
    MaskFlags,
    ReadingFlags,
    Switch,
    flag,
    load_predictor,
    settings_of,
)
from notan.config import Data, load_run
from notan.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from notan.modelfile.card import Card

FIRST_PORT, PORTS = 8421, 10
NOT_SAID = Data().masks


def studio(
    data: Positional[Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")]],
    *,
    model: Annotated[Path | None, flag("FILE", "the default model, for cats and dogs")] = None,
    compare: Annotated[Path | None, flag("FILE", "no other model")] = None,
    findings: Annotated[Path | None, flag("FILE", "looked for meanwhile")] = None,
    corrections: Annotated[Path | None, flag("FOLDER", "FOLDER-corrections")] = None,
    port: Annotated[int | None, flag("N", f"{FIRST_PORT}, or the next that is free")] = None,
    open_browser: Switch = False,
    reading: OmitArgPrefixes[ReadingFlags] = READING,
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
) -> None:
    """Look at a model's masks in the browser; mend them there.

    Prints an address that is good for one opening, on this machine alone; nothing leaves it. The
    page shows every image with the Dice that the model expects of its mask, the least sure first,
    and the mask's errors where the folder has masks too. Brush, eraser, polygon, outlines that snap
    to edges, a cut by colour and a wand that follows the model's own probability mend a mask; ? in
    the page lists the keys.

    Every stroke is on the disk before the page says "saved", and can be undone tomorrow. A mask
    that you accept (Enter) is written to FOLDER-corrections/masks, and corrections.csv names its
    image, so that notan train --data-path FOLDER-corrections learns from it. Your images and your
    own masks are never written.

    Teach in the page trains on all accepted masks, from this model anew each time, shows what it
    is worth on every fifth image, drawn at random and never trained on, and changes the model when
    you say so. That needs PyTorch; models go to FOLDER-corrections/models, and the one in use is
    remembered.

    Ctrl-C ends the studio; the same command goes on where you were.

    Args:
        data: The folder with the images; masks may be there for all, some or none of them.
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        compare: Another model: a divider in the page shows its mask to the right and the other's to
            the left, and the gallery may begin with the images on which they differ most.
        findings: A check.json that notan check wrote for this folder; the gallery sorts by it.
        corrections: Where accepted masks and strokes go.
        port: Where the page is served on this machine; 0 takes any that is free.
        open_browser: Open the page in this machine's browser.
    """
    try:
        from notan.studio.running import serve_studio
        from notan.studio.shelf import GivenModel
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"notan studio needs {error.name}: pip install 'notan[studio]'"
        ) from error
    if machine.batch_size is not None:
        raise ConfigError(
            "--batch-size: the studio predicts one image at a time, those first that you look at; "
            "leave the flag out"
        )
    predictor = load_predictor(model, mask, machine)
    given = GivenModel(
        model and model_file(model),
        load=lambda path: load_predictor(path, mask, replace(machine, backend="auto")),
        device=machine.device,
    )
    serve_studio(
        predictor,
        _settings(data, reading, predictor.card),
        corrections,
        given=given,
        compare=load_predictor(compare, mask, machine) if compare else None,
        report=findings,
        ports=range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,),
        on_ready=webbrowser.open if open_browser else None,
        say=print,
    )


def _settings(path: Path, reading: ReadingFlags, card: Card | None) -> Data:
    """Return how masks are read: as the flags say, and as the model's training read them."""
    from notan.data.folders import find_layout, holds_masks

    given = settings_of(reading)
    flags: dict[str, object] = {**given, "data.path": path}
    if card is not None:
        known = card.run.data
        border, turned = "data.trimap_border", "data.exif_orientation"
        flags[border] = given[border] or card.trimap_border
        flags[turned] = given[turned] or known.exif_orientation
    data = load_run(flags=flags).data
    if card is None or data.masks != NOT_SAID or not holds_masks(path):
        return data
    if find_layout(data) != card.data.layout:
        return data
    masks = card.run.data.masks.model_copy(update={"folder": None})
    return data.model_copy(update={"masks": masks})
