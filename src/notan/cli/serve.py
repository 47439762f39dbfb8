"""``notan serve`` answers requests for masks over HTTP."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from notan.cli.flags import MACHINE, MASKS, MachineFlags, MaskFlags, flag, load_predictor
from notan.errors import ConfigError

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


ADDRESS, LIMITS = AddressFlags(), LimitFlags()


def serve(
    *,
    model: Annotated[Path | None, flag("FILE", "the default model, for cats and dogs")] = None,
    address: OmitArgPrefixes[AddressFlags] = ADDRESS,
    limits: OmitArgPrefixes[LimitFlags] = LIMITS,
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
        app = make_app(predictor, where, name=name, keys=keys, settings=settings)
        print(f"{where.url} (all routes: {where.url}/docs)", flush=True)
        WebServer(app).run_on(listener)


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
