"""Flags that several commands share: each is declared once, with its help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional, arg

from notan.config import Run
from notan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.prediction.predictor import Predictor
    from notan.prediction.tiles import Tiling

DEFAULT = Run()
SETTING, READ = "setting", "read"


def flag(metavar: str, default: object = None, *, help: str | None = None) -> Any:  # noqa: A002, ANN401 - as tyro calls it; tyro keeps the type private
    """Describe a flag that is None where it is not given.

    Args:
        metavar: What stands for its value in the help.
        default: What is taken then, in words; None: nothing worth saying.
        help: What the flag does; None: the docstring of its group says it.
    """
    hint = "" if default is None else f"(default: {default})"
    return arg(metavar=metavar, help_behavior_hint=hint, help=help)


IMAGES_AND_MASKS = "The folder with the images and masks, or a file of annotations."
DEVICES = "auto|cpu|cuda|cuda:1|mps"
BORDERS = "foreground|background|ignore"
BORDER_HELP = "What the border of Oxford's trimaps counts as; other masks have none."
COMPUTE = "Where to compute."
TrimapBorder: TypeAlias = Literal["foreground", "background", "ignore"]

Switch: TypeAlias = Annotated[bool, arg(help_behavior_hint="")]
DataPath: TypeAlias = Annotated[Path | None, flag("FOLDER", help=IMAGES_AND_MASKS)]
KnownDataPath: TypeAlias = Annotated[
    Path | None, flag("FOLDER", "where the training found them", help=IMAGES_AND_MASKS)
]
Device: TypeAlias = Annotated[str, arg(metavar=DEVICES, help=COMPUTE)]
DeviceSetting: TypeAlias = Annotated[str | None, flag(DEVICES, DEFAULT.device, help=COMPUTE)]
BATCH_SIZE_HELP = "Images predicted at once; changes the speed, and no mask but by rounding."
BatchSize: TypeAlias = Annotated[int, arg(metavar="N", help=BATCH_SIZE_HELP)]
ChosenBatchSize: TypeAlias = Annotated[
    int | None, flag("N", "chosen: on a GPU 32, fewer where memory is short", help=BATCH_SIZE_HELP)
]
TrimapBorderSetting: TypeAlias = Annotated[
    TrimapBorder | None, flag(BORDERS, DEFAULT.data.trimap_border, help=BORDER_HELP)
]
TrimapBorderRule: TypeAlias = Annotated[
    TrimapBorder | None, flag(BORDERS, "the model's own", help=BORDER_HELP)
]
AllowTrainingImages: TypeAlias = Annotated[
    bool,
    arg(
        help="Score images that a model was trained on too, and mark the score.",
        help_behavior_hint="",
    ),
]
Split: TypeAlias = Annotated[
    str,
    arg(
        metavar="test|val|train|all",
        help="Which images; all takes every image of a folder that has no parts.",
    ),
]
TimeLimit: TypeAlias = Annotated[str | None, flag("90s|10m|1.5h")]
ModelFile: TypeAlias = Annotated[
    Path,
    arg(
        metavar="FILE",
        help="A best.safetensors that train wrote, or an .onnx file that export made of one.",
    ),
]
ModelClass: TypeAlias = Annotated[
    str | None,
    flag(
        "PACKAGE:CLASS",
        "notan's own",
        help="A network of your own: package:Class or file.py:Class, a module from (n, 3, h, w) to "
        "logits (n, 1, h, w) that states its stride. Every command needs it anew, because no file "
        "makes notan import code.",
    ),
]
Models: TypeAlias = Positional[
    Annotated[
        tuple[Path, ...],
        flag("RUN RUN ...", help="Run folders or model files; two or more."),
    ]
]
Overrides: TypeAlias = Positional[Annotated[tuple[str, ...], flag("SECTION.KEY=VALUE ...")]]


def sets(
    setting: str, default: object = None, *, read: Callable[[Any], object] = lambda value: value
) -> Any:  # noqa: ANN401 - stands for any value
    """Give a flag its setting, by dotted name; one that is left at its default sets nothing.

    What was given is read by ``read``.
    """
    return field(default=default, metadata={SETTING: setting, READ: read})


def settings_of(*groups: object) -> Mapping[str, object]:
    """Return the settings that groups of flags ask for; None where a flag was not given."""
    return {
        each.metadata[SETTING]: None
        if value is None or value is False
        else each.metadata[READ](value)
        for group in groups
        for each in fields(group)  # type: ignore[arg-type]
        if SETTING in each.metadata
        for value in (getattr(group, each.name),)
    }


def only_data(overrides: tuple[str, ...], who: str) -> None:
    """Refuse settings that are not about the data, in the words of who takes none."""
    for word in overrides:
        if not word.startswith("data."):
            raise ConfigError(f"{word}: {who} settings of the data only, such as data.white")


@dataclass(frozen=True)
class ReadingFlags:
    """How images and masks are read, where files can be read in several ways.

    Attributes:
        foreground: Which classes are foreground: names, values, palette indices or colours.
        ignore: Which of them are left out of loss and score, such as 255 beside 0 and 1.
        mask_channel: Which channel or page of a mask file, from 0, is the mask.
        masks: The name of the folder that holds the masks, where several could.
        exif_orientation: ignore where the masks were drawn on the images as they are stored.
    """

    trimap_border: TrimapBorderSetting = sets("data.trimap_border")
    foreground: Annotated[str | None, flag("cat,dog|17,19|'#804080'", "there is one class")] = sets(
        "data.masks.foreground"
    )
    ignore: Annotated[str | None, flag("255", "nothing")] = sets("data.masks.ignore")
    mask_channel: Annotated[int | None, flag("N", "files have one")] = sets("data.masks.channel")
    masks: Annotated[str | None, flag("FOLDER_NAME", "as it is called")] = sets("data.masks.folder")
    exif_orientation: Annotated[
        Literal["apply", "ignore"] | None, flag("apply|ignore", DEFAULT.data.exif_orientation)
    ] = sets("data.exif_orientation")


@dataclass(frozen=True)
class MaskFlags:
    """How the masks are made.

    Attributes:
        threshold: Calibrated probability from which a pixel is foreground; leaves out what else
            validation chose for the mask.
        tta: Test-time augmentation: ask the network several views of each image and take the mean:
            hflip (left and right), vflip (top and bottom), rot90 (quarter turns), scale, or
            several: hflip,vflip. Slower by the number of views.
    """

    threshold: Annotated[float | None, flag("0..1", "as validation chose")] = None
    tta: Annotated[str | None, flag("hflip,vflip,rot90,scale")] = None


@dataclass(frozen=True)
class MachineFlags:
    """What runs the network.

    Attributes:
        backend: A checkpoint runs on torch, an .onnx file on openvino where it is installed, else
            on onnxruntime.
        precision: auto is bf16 on a GPU that computes in it, else fp32. bf16 is quicker on machines
            that know it and may move pixels at the edge; fp32 gives the same mask everywhere.
        threads: Of the processor, at most.
    """

    model_class: ModelClass = None
    batch_size: ChosenBatchSize = None
    device: Device = "auto"
    backend: Annotated[str, arg(metavar="auto|torch|onnxruntime|openvino")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], arg(metavar="auto|fp32|bf16")] = "auto"
    threads: Annotated[int | None, flag("N", "the runtime's own choice")] = None


READING, MASKS, MACHINE = ReadingFlags(), MaskFlags(), MachineFlags()
"""Groups of which no flag is given."""


def load_predictor(
    model: Path | None, masks: MaskFlags, machine: MachineFlags, *, tiling: Tiling | None = None
) -> Predictor:
    """Open a model as the flags ask for it; None: the default model."""
    from notan.api import load

    return load(
        model,
        network=machine.model_class,
        device=machine.device,
        backend=machine.backend,
        precision=machine.precision,
        threads=machine.threads,
        threshold=masks.threshold,
        tta=masks.tta or (),
        tiling=tiling,
    )
