"""``notan serve`` answers requests for masks over HTTP."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from notan.cli.flags import MACHINE, MASKS, MachineFlags, MaskFlags, flag, load_predictor
from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.serve.label_studio import LabelStudio

logger = logging.getLogger("notan")

MILLION = 1_000_000


@dataclass(frozen=True)
class AddressFlags:
    """Where the server listens, and who is let in.

    Attributes:
        host: Address to listen at; 127.0.0.1 is reached from this machine alone, and 0.0.0.0 from
            every machine that can reach this one, for which a token is needed.
        port: Port to listen at; 0 takes any that is free.
        token_file: File with a token of 16 characters or more on one line; programs then send the
            header Authorization: Bearer TOKEN.
        allow_host: What else the server may be called in a request's Host header, such as
            masks.example.org behind a proxy; may be given several times.
    """

    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    port: Annotated[int, arg(metavar="N")] = 8420
    token_file: Annotated[Path | None, flag("FILE", "no token")] = None
    allow_host: UseAppendAction[
        Annotated[tuple[str, ...], arg(metavar="NAME[:PORT]", help_behavior_hint="")]
    ] = ()


@dataclass(frozen=True)
class LimitFlags:
    """What a client may ask for; beyond it the answer is an error at once.

    Attributes:
        max_megabytes: Of one upload.
        max_megapixels: Of one image, read from its header; its answer takes up to
            45 bytes of memory for each pixel.
        max_waiting: Images that wait for their turn; one more is told to come again (status 429).
        deadline_seconds: From an upload to its answer (then status 504).
    """

    max_megabytes: Annotated[float, arg(metavar="MB")] = 25.0
    max_megapixels: Annotated[float, arg(metavar="MP")] = 40.0
    max_waiting: Annotated[int, arg(metavar="N")] = 16
    deadline_seconds: Annotated[float, arg(metavar="SECONDS")] = 30.0


@dataclass(frozen=True)
class LabelStudioFlags:
    """Being the ML backend of a Label Studio.

    Attributes:
        label_studio: Its address, such as http://localhost:8080; images are fetched from there and
            from nowhere else.
        label_studio_token_file: File with a token of Label Studio's on one line; without it, the
            environment variable LABEL_STUDIO_API_KEY.
        label: The brush's label that means foreground, where it has several.
        train_project: Train on the annotations of the project of this number, as its webhooks ask.
        train_every: Annotations after which a training begins.
        train_time_limit: Of one training.
        train_out: Folder for images, masks and runs.
    """

    label_studio: Annotated[str | None, flag("URL", "no Label Studio")] = None
    label_studio_token_file: Annotated[Path | None, flag("FILE")] = None
    label: Annotated[str | None, flag("NAME", "there is one label")] = None
    train_project: Annotated[int | None, flag("N", "train on nothing")] = None
    train_every: Annotated[int, arg(metavar="N")] = 10
    train_time_limit: Annotated[str, arg(metavar="90s|10m|1.5h")] = "10m"
    train_out: Annotated[Path | None, flag("FOLDER", "runs/label-studio-N")] = None


ADDRESS, LIMITS, LABEL_STUDIO = AddressFlags(), LimitFlags(), LabelStudioFlags()


def serve(
    *,
    model: Annotated[Path | None, flag("FILE", "the default model, for cats and dogs")] = None,
    address: OmitArgPrefixes[AddressFlags] = ADDRESS,
    limits: OmitArgPrefixes[LimitFlags] = LIMITS,
    label_studio: OmitArgPrefixes[LabelStudioFlags] = LABEL_STUDIO,
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
) -> None:
    """Answer requests for masks over HTTP.

    Send an image and get its mask: curl --data-binary @photo.jpg http://127.0.0.1:8420/v1/masks
    -o mask.png. The header Accept asks for something else: "image/png;output=cutout" (RGBA),
    "image/png;output=probability" or "application/json" (RLE, polygons, the expected Dice). POST
    /api/remove is rembg's, so its clients only change the address. The page /docs shows all routes;
    /v1/model says which model this is, /healthz that the server lives, /metrics what it did.

    Only programs on this machine are answered, unless you give a --host and a --token-file. Ctrl-C
    or SIGTERM lets what was begun finish, for at most ten seconds; a second one ends it at once.

    Args:
        model: A best.safetensors that train wrote, a run folder, or an .onnx file that export made
            of one, which needs no PyTorch.
    """
    from notan.api import model_file
    from notan.modelfile.default import WHAT_IT_KNOWS
    from notan.serve import ServeSettings, make_app
    from notan.web.addresses import listen
    from notan.web.guard import BodyLimits
    from notan.web.keys import Keys, read_token
    from notan.web.running import WebServer

    _refuse_odd(limits, machine)
    studio = _label_studio(label_studio, model, limits, mask, machine)
    keys = None if address.token_file is None else Keys(read_token(address.token_file))
    listener, where = listen(address.host, address.port, address.allow_host)
    with listener:
        if keys is None and not where.is_loopback:
            raise ConfigError(
                f"--host {address.host}: other machines could use the server; give a --token-file "
                "that they must know, or leave --host out"
            )
        if model is None:
            logger.info("no --model was given: %s", WHAT_IT_KNOWS)
        predictor = load_predictor(None if model is None else model_file(model), mask, machine)
        settings = ServeSettings(
            limits=BodyLimits(most_bytes=int(limits.max_megabytes * MILLION)),
            most_pixels=int(limits.max_megapixels * MILLION),
            most_waiting=limits.max_waiting,
            seconds=limits.deadline_seconds,
            batch_size=machine.batch_size,
        )
        name = "default" if model is None else model.name if model.is_dir() else model.stem
        app = make_app(
            predictor, where, name=name, keys=keys, settings=settings, label_studio=studio
        )
        print(f"{where.url} (all routes: {where.url}/docs)", flush=True)
        WebServer(app).run_on(listener)


def _label_studio(
    flags: LabelStudioFlags,
    model: Path | None,
    limits: LimitFlags,
    mask: MaskFlags,
    machine: MachineFlags,
) -> LabelStudio | None:
    """Return what the routes of Label Studio need, before the model is loaded.

    Raises:
        ConfigError: A flag is wrong, or lacks another one.
    """
    from notan.api import model_file
    from notan.config import seconds_of
    from notan.serve.label_studio import LabelStudio
    from notan.serve.origin import Origin
    from notan.serve.teaching import SECRET, Retrainer, RetrainSettings
    from notan.web.keys import read_token

    if flags.label_studio is None:
        for each in fields(LABEL_STUDIO):
            if getattr(flags, each.name) != each.default:
                name = f"--{each.name.replace('_', '-')}"
                raise ConfigError(f"{name} goes with --label-studio URL; give that too")
        return None
    file = flags.label_studio_token_file
    token = read_token(file) if file is not None else os.environ.get(SECRET, "")
    if not token:
        raise ConfigError(
            "--label-studio needs a token of Label Studio's (Account & Settings, Personal Access "
            f"Token): give a --label-studio-token-file, or set {SECRET}"
        )
    origin = Origin(flags.label_studio, token, int(limits.max_megabytes * MILLION))
    if flags.train_project is None:
        return LabelStudio(origin, flags.label)
    base = None if model is None else model_file(model)
    if base is None or base.suffix == ".onnx":
        raise ConfigError(
            "--train-project: trainings begin from the --model, which must be a best.safetensors "
            "that train wrote, or a run folder"
        )
    if flags.train_every < 1:
        raise ConfigError(f"--train-every is {flags.train_every}; 1 or more is wanted")
    settings = RetrainSettings(
        flags.train_project,
        base,
        flags.train_out or Path("runs") / f"label-studio-{flags.train_project}",
        label=flags.label,
        every=flags.train_every,
        seconds=seconds_of(flags.train_time_limit),
        device=machine.device,
        model_class=machine.model_class,
    )
    teacher = Retrainer(origin, settings, lambda path: load_predictor(path, mask, machine))
    return LabelStudio(origin, flags.label, teacher)


def _refuse_odd(limits: LimitFlags, machine: MachineFlags) -> None:
    """Refuse limits that nothing could keep, before the model is loaded."""
    for name, least in {
        "max_megabytes": 0.001,
        "max_megapixels": 0.001,
        "max_waiting": 1,
        "deadline_seconds": 0.001,
    }.items():
        value = getattr(limits, name)
        if not least <= value < float("inf"):
            flag_name = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag_name} is {value:g}; {least:g} or more is wanted")
    if machine.batch_size is not None and machine.batch_size < 1:
        raise ConfigError(f"--batch-size is {machine.batch_size}; 1 or more is wanted")
