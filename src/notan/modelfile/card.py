"""The card: all that a model file says of itself, as JSON in the metadata of its container.

A checkpoint is a safetensors file with a card, an exported model an ONNX file with the same one.
The card is read without torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from notan.config import Model, Run, TrimapBorder, asked_settings, first_problem
from notan.config.sections import Fraction, Section
from notan.errors import CheckpointError
from notan.io.digest import sha256
from notan.modelfile import onnx, safetensors
from notan.modelfile.onnx import is_onnx
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.modelfile.safetensors import hash_weights, read_weights, write_weights
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

FORMAT = 2
KEY = "notan"
"""The card's name in the metadata."""


class DataCard(Section):
    """Which images a model was trained and validated on."""

    layout: str
    training_images: int
    training_fingerprint: str
    validation_images: int
    validation_fingerprint: str
    training_hashes: tuple[str, ...] = ()
    """Of each image trained on; evaluation refuses to score a model on what it has learned."""
    validation_hashes: tuple[str, ...] = ()
    validation_names: tuple[str, ...] | None = None
    """The validation split, where it was made by us and not by the data's own layout; empty where
    the names are not told, and the images known by ``validation_hashes``."""
    unlabelled_images: int = 0
    """Images without masks that were learned from too."""
    unlabelled_fingerprint: str | None = None
    unlabelled_hashes: tuple[str, ...] = ()
    median_size: tuple[int, int] | None = None
    """(height, width) in pixels that half of the training images exceed; None in older cards."""


class Parity(Section):
    """How far the masks of an ONNX model agree with those of its checkpoint in float32.

    Attributes:
        runtime: What ran the file: ``onnxruntime`` or ``openvino``.
        images: Which, in words.
        mask_iou: Intersection over union of the two masks, over all pixels of all images.
        worst_iou: That of the image where it is lowest.
        largest_difference: Between the two calibrated probabilities of any pixel.
    """

    runtime: str
    images: str
    mask_iou: Fraction
    worst_iou: Fraction
    largest_difference: Fraction


class Quantized(Section):
    """How a network was brought to int8.

    Attributes:
        images: Which it was calibrated on, in words.
        layers: Convolutions in int8.
        float_layers: Names of the convolutions that stayed in float32.
        share: Of the network's multiplications that are done in int8.
    """

    images: str
    layers: int
    float_layers: tuple[str, ...]
    share: Fraction


class Exported(Section):
    """What export did to make an ONNX model.

    Attributes:
        checkpoint: SHA-256 of the weights it was made from.
        precision: ``fp32``, ``half`` (weights stored in float16) or ``int8``.
        opset: Version of ONNX's operators.
        parity: One for each runtime that was there.
        quantized: How, where the precision is ``int8``.
        end_to_end: Whether the graph takes an image's pixels and gives its mask.
    """

    checkpoint: str
    precision: Literal["fp32", "half", "int8"]
    opset: int
    parity: tuple[Parity, ...]
    quantized: Quantized | None = None
    end_to_end: bool = False


class Member(Section):
    """One network of an ensemble.

    Attributes:
        name: What it was called when it was joined.
        model: Settings to build it from.
        weight: Its share of the mean, above 0.
        temperature: What its logits are divided by.
        bias: What is added to them then.
        sha256: Of its weights, in the file that it came from.
    """

    name: str
    model: Model
    weight: Annotated[float, Field(gt=0.0, le=1.0)]
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    bias: float = 0.0
    sha256: str = ""


class Card(Section):
    """All that a model file says of itself.

    Attributes:
        format: Version of this card.
        model: Settings to build the network from; None for a module of the user's own, and for
            an ensemble.
        model_class: Name of the network's class.
        members: The networks of an ensemble; none otherwise.
        preprocess: How images become inputs, and masks come back.
        trimap_border: What the trimap's border counted as; None where the masks had none.
        postprocessing: How probabilities become a mask, as validation chose.
        choices: What was tried for it, and why it was taken or not.
        epoch: The epoch that these weights are from, counted from 1; of an ensemble, its members'
            latest.
        scores: Scores on the validation split, by name.
        data: The images.
        run: All settings of the training; of an ensemble, of its first member's.
        versions: Of notan, PyTorch and Python.
        parameters: Numbers that training changed; None in cards that do not say.
        hardware: What the training ran on, in words.
        precision: The arithmetic of the network and why, in words.
        pretrained: What the encoder's weights, or all, were learned from before this training, in
            words; None: nothing, it began from scratch.
        exported: How an ONNX model was made; None in a checkpoint.
        sha256: Of the weights; in an ONNX model of the whole network.
    """

    format: int = FORMAT
    model: Model | None
    model_class: str
    members: tuple[Member, ...] = ()
    preprocess: Preprocessor
    trimap_border: TrimapBorder | None
    postprocessing: Postprocessing = Postprocessing()
    choices: tuple[str, ...] = ()
    epoch: int
    scores: dict[str, float]
    data: DataCard
    run: Run
    versions: dict[str, str]
    parameters: int | None = None
    hardware: str = ""
    precision: str = ""
    pretrained: str | None = None
    exported: Exported | None = None
    sha256: str = ""

    def without_places(self) -> Card:
        """Return the card for a file that is given away: it names no folder and no image.

        Paths in the settings become a hash, so that runs with different files still differ; the
        validation images are known by their content. What a class of the user's own was built
        with stays, but for paths.
        """
        run, data = self.run, self.data
        hidden = {name: _hidden(getattr(run.train, name)) for name in PATHS}
        paths = {name: place and Path(place) for name, place in hidden.items()}
        model = run.model
        arguments = {
            name: _hidden(value) if isinstance(value, str) and is_path(value) else value
            for name, value in model.arguments.items()
        }
        told = {
            "data": run.data.model_copy(
                update={"path": None, "group_by": _hidden(run.data.group_by)}
            ),
            "train": run.train.model_copy(update=paths),
            "model": model.model_copy(
                update={
                    "class_path": model.class_path and Path(model.class_path).name,
                    "arguments": arguments,
                }
            ),
        }
        names = None if data.validation_names is None else ()
        members = (
            member.model_copy(update={"name": str(number)})
            for number, member in enumerate(self.members, start=1)
        )
        return self.model_copy(
            update={
                "run": run.model_copy(update=told),
                "data": data.model_copy(update={"validation_names": names}),
                "members": tuple(members),
            }
        )

    @property
    def beginning(self) -> str:
        """Where training began, as every score says it."""
        return f"pretrained: {self.pretrained}" if self.pretrained else "from scratch"


def with_model_of_weights(
    flags: Mapping[str, object], overrides: Sequence[str]
) -> Mapping[str, object]:
    """Add to flags what the model of ``train.weights`` was made with; what is asked for stands.

    Network, size of images and normalising come from its card, so that nobody has to repeat them.

    Args:
        flags: As for ``load_run``.
        overrides: As for ``load_run``.

    Raises:
        CheckpointError: The file is missing, damaged or no model of notan's.
        ConfigError: A setting does not exist or fit.
    """
    asked = asked_settings(flags=flags, overrides=overrides)
    path = asked.get("train.weights")
    if not isinstance(path, Path):
        return flags
    card = read_card(path)
    model, inputs = card.model, card.preprocess
    found: dict[str, object] = {
        "preprocess.image_size": inputs.image_size,
        "preprocess.keep_aspect_ratio": inputs.keep_aspect_ratio,
        "preprocess.mean": inputs.mean,
        "preprocess.std": inputs.std,
        "data.channels": inputs.channels,
    }
    if model is not None and model.class_path is None:
        found |= {f"model.{name}": value for name, value in model.model_dump().items()}
    given = {name: value for name, value in flags.items() if value is not None}
    return {**found, **given}


PATHS = ("teacher", "unlabelled", "encoder_weights", "weights")
"""Settings under ``train`` that are paths."""


def is_path(text: str) -> bool:
    """Say whether a text names a place on a disk."""
    return "/" in text or "\\" in text


def _hidden(place: object) -> str | None:
    return None if place is None else f"hidden-{sha256(str(place))[:12]}"


@dataclass(frozen=True)
class Checkpoint:
    """A card with its weights."""

    card: Card
    weights: Mapping[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        StorageError: The file could not be written; an older one is left as it was.
    """
    # Copies: safetensors refuses tensors that share memory, and tied weights do
    weights = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in checkpoint.weights.items()
    }
    card = checkpoint.card.model_copy(update={"sha256": hash_weights(weights)})
    write_weights(path, weights, {KEY: card.model_dump_json()})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check its weights against the card's SHA-256.

    Raises:
        CheckpointError: Missing, damaged, foreign or from a newer notan.
    """
    if is_onnx(path):
        raise CheckpointError(
            f"{path}: an ONNX model predicts, but its weights cannot be taken out again; give "
            "the .safetensors checkpoint that it was made from"
        )
    card = read_card(path)
    weights = read_weights(path)
    if hash_weights(weights) != card.sha256:
        raise CheckpointError(
            f"{path}: the weights are not those that were saved (SHA-256 differs): the file is "
            "damaged; use another copy"
        )
    return Checkpoint(card, weights)


def read_card(path: Path) -> Card:
    """Read the card alone, without torch.

    Of an ONNX model, which no library of its own checks, the whole network is checked against
    the card's SHA-256.

    Raises:
        CheckpointError: Missing, damaged, foreign or from a newer notan.
    """
    if not is_onnx(path):
        return _parse_card(path, safetensors.read_metadata(path).get(KEY))
    metadata, found = onnx.read_metadata(path)
    card = _parse_card(path, metadata.get(KEY))
    if found != card.sha256:
        raise CheckpointError(
            f"{path}: the network is not the one that was exported (SHA-256 differs): the file is "
            "damaged or was changed; use another copy, or export again"
        )
    return card


def _parse_card(path: Path, text: object) -> Card:
    if not isinstance(text, str):
        advice = "make one with notan export" if is_onnx(path) else "train with notan to get one"
        raise CheckpointError(f"{path}: weights without a notan card; {advice}")
    try:
        fields = json.loads(text)
        version = fields.get("format")
        if isinstance(version, int) and version != FORMAT:
            raise CheckpointError(
                f"{path}: card format {version}; notan {__version__} reads {FORMAT}: the file was "
                "written by a newer notan, or before 0.1.0"
            )
        return Card.model_validate(fields)
    except ValidationError as error:
        problem = first_problem(error, Card)
        raise CheckpointError(f"{path}: the card cannot be read: {problem}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: the card cannot be read ({reason})") from error
