"""The package's functions: what the commands do, as one would write it in Python.

Each opens what it needs, so a few lines go from a folder to masks::

    import notan

    result = notan.train("cells/", time_limit="10m", encoder="resnet34")
    print(notan.evaluate(result.checkpoint, "cells/", split="test").summary())
    prediction = notan.predict("photo.jpg", result.checkpoint)

What stands in the rooms is below them: ``notan.training``, ``notan.evaluation`` and so on take
sources, modules and transforms of your own.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, overload

from notan.config import Run, load_run, seconds_of
from notan.errors import ConfigError, explaining_extras
from notan.modelfile.card import with_model_of_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, TypeAlias

    from notan.checking import Diagnosis
    from notan.comparison import Comparison
    from notan.config import TrimapBorder
    from notan.data.samples import Sample
    from notan.exporting.make import Kind
    from notan.metrics import Score
    from notan.prediction.backends import Precision
    from notan.prediction.inputs import ImageLike
    from notan.prediction.predictor import Prediction, Predictor
    from notan.prediction.tiles import Tiling
    from notan.training import (
        Network,
        OwnLogger,
        OwnLoss,
        OwnOptimizer,
        OwnSchedule,
        OwnTransform,
        Tracker,
        TrainResult,
    )
    from notan.types import ProgressCallback

    PathLike: TypeAlias = str | Path
    AnyImage = TypeVar("AnyImage", bound=ImageLike)

BEST = "best.safetensors"


def train(
    data: PathLike | Run,
    *,
    time_limit: str | float | None = None,
    auto: bool = False,
    recipe: PathLike | None = None,
    model: Network | None = None,
    encoder: str | None = None,
    pretrained: bool = False,
    image_size: int | tuple[int, int] | None = None,
    keep_aspect_ratio: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    trimap_border: TrimapBorder | None = None,
    overrides: Sequence[str] = (),
    loss: OwnLoss | None = None,
    optimizer: OwnOptimizer | None = None,
    schedule: OwnSchedule | None = None,
    transform: OwnTransform | None = None,
    logger: OwnLogger | Tracker | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainResult:
    """Train a model on images and masks, and keep the best by validation Dice.

    What is left out is as in the recipe, or else as ``Run`` has it. No report is written;
    ``notan report RUN`` makes one.

    Args:
        data: A folder of images and masks; or a whole ``Run``, which has the other settings too.
        time_limit: Seconds, or a time such as ``"10m"``, in which the training ends.
        auto: Choose the settings by a look at the images and the machine.
        recipe: A .toml file of settings.
        model: ``unet``, ``attention_unet`` or ``resnet34_unet``; or a network of your own, as a
            module, its class or ``package:Class``: (n, 3, h, w) to logits (n, 1, h, w), with an
            attribute ``stride``.
        encoder: Such as ``efficientnet_lite0``, for ``unet`` and ``attention_unet``.
        pretrained: Start the encoder from its published weights.
        image_size: Side of the square that images are resized to, in pixels; or (height, width).
        keep_aspect_ratio: Only shrink images, in their proportions, until they fit.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        learning_rate: Peak learning rate of AdamW.
        seed: Decides weights, order, augmentation and split.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        trimap_border: What the border of Oxford's trimaps counts as.
        overrides: Any other setting, such as ``["model.width=16", "data.limit=40"]``.
        loss: Of your own: ``loss(logits, mask, ignore)``, each (n, 1, h, w), returns a scalar.
        optimizer: Of your own: ``optimizer(weights)`` returns a ``torch.optim.Optimizer``.
        schedule: Of your own: ``schedule(step, steps)`` returns the learning rate's factor.
        transform: An augmentation of your own: ``transform(image=, mask=)`` returns both by name.
        logger: Called after every epoch with the line that history.jsonl gets; or a
            ``notan.training.Tracker`` of your own.
        out: The run folder; None takes a fresh one under ``runs/``.
        overwrite: Replace a run that is already in ``out``.
        progress: Called after each epoch with the number of those that are done, and of all; a
            time limit may end the training before.

    Returns:
        The best checkpoint, its epoch and its validation Dice.

    Raises:
        ConfigError: A setting does not exist or fit, a part of your own does not work, or the
            folder is taken.
        DataError: An image or mask is missing, unreadable or ambiguous.
        MissingExtraError: PyTorch is not installed.

    Example:
        >>> result = notan.train(
        ...     "cells/",
        ...     epochs=2,
        ...     image_size=32,
        ...     overrides=["model.width=8"],
        ...     out="runs/cells",
        ...     progress=lambda done, total: print(f"{done} of {total} epochs"),
        ... )
        1 of 2 epochs
        2 of 2 epochs
        >>> result.checkpoint.name
        'best.safetensors'
    """
    named = isinstance(model, str) and ":" not in model
    flags = {
        "train.time_limit_seconds": None if time_limit is None else seconds_of(time_limit),
        "model.name": model if named else None,
        "model.encoder": encoder,
        "train.pretrained": pretrained or None,
        "preprocess.image_size": image_size,
        "preprocess.keep_aspect_ratio": keep_aspect_ratio or None,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "seed": seed,
        "device": device,
        "data.trimap_border": trimap_border,
    }
    run, reasons = _settings(data, flags, overrides, recipe, auto=auto)
    with explaining_extras("training"):
        from notan.training import train as train_run

        return train_run(
            run,
            out=None if out is None else Path(out),
            overwrite=overwrite,
            recipe=reasons,
            model=None if named else model,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            transform=transform,
            logger=logger,
            progress=progress,
        )


def _settings(
    data: PathLike | Run,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    recipe: PathLike | None,
    *,
    auto: bool,
) -> tuple[Run, str | None]:
    """Return the settings of a training and, where they were chosen, the recipe that says why."""
    if isinstance(data, Run):
        given = [name for name, value in flags.items() if value is not None]
        if given or overrides or recipe or auto:
            also = ", ".join([*given, *overrides]) or ("recipe" if recipe else "auto")
            raise ConfigError(f"{also}: a Run has all settings; change it, or give a folder")
        return data, None
    flags = {"data.path": Path(data), **flags}
    if recipe is None:
        flags = dict(with_model_of_weights(flags, overrides))
    if not auto:
        path = None if recipe is None else Path(recipe)
        return load_run(path, flags=flags, overrides=overrides), None
    if recipe:
        raise ConfigError("auto chooses the settings and recipe brings them: leave one of the two")
    from notan.auto import suggest

    chosen = suggest(flags=flags, overrides=overrides)
    return chosen.run, chosen.recipe


def load(
    model: PathLike | None = None,
    *,
    network: Network | None = None,
    device: str = "auto",
    backend: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    threshold: float | None = None,
    tta: str | Sequence[str] = (),
    tiling: Tiling | None = None,
) -> Predictor:
    """Open a model to predict with; it never changes, so many threads may use one.

    Args:
        model: A checkpoint, an ONNX model or a run folder; None: the default model, which knows
            cats and dogs and needs no PyTorch.
        network: Where the checkpoint is of a class of your own: a fresh instance, the class, or
            ``package:Class``.
        device: ``auto`` takes a GPU where there is one and the model can use it.
        backend: ``torch``, ``onnxruntime``, ``openvino``, or the one that fits: ``auto``.
        precision: ``fp32``, ``bf16`` where the runtime can, or ``auto``: bf16 on a GPU that
            computes in it, where it may move pixels at the edge.
        threads: At most so many of the processor; None: the runtime's own choice.
        threshold: Instead of what validation chose.
        tta: Test-time augmentation: ``"hflip,vflip"``, or ``("hflip", "rot90", "scale")``.
        tiling: When and how an image is cut into tiles; None: where it is too large.

    Raises:
        CheckpointError: The file is missing, damaged or foreign.
        ConfigError: The file or the runtime cannot do what was asked for.
        MissingExtraError: The model is a checkpoint and PyTorch is not installed.

    Example:
        >>> predictor = notan.load()
        >>> predictor("cat.jpg").mask.dtype
        dtype('bool')
    """
    from notan.modelfile.default import DEFAULT_MODEL
    from notan.prediction.predictor import Predictor
    from notan.prediction.tta import parse_augment

    return Predictor.load(
        DEFAULT_MODEL if model is None else model_file(model),
        model=network,
        device=device,
        backend=backend,
        precision=precision,
        threads=threads,
        threshold=threshold,
        augment=parse_augment(tta) if isinstance(tta, str) else tta,
        tiling=tiling,
    )


def model_file(model: PathLike) -> Path:
    """Return the model file of a run folder; any other path is one itself."""
    path = Path(model)
    return path / BEST if path.is_dir() else path


@functools.cache
def _default_predictor() -> Predictor:
    """Return the default model, loaded once for the calls that name none."""
    return load()


def _opened(model: PathLike | Predictor | None, network: Network | None) -> Predictor:
    if isinstance(model, (str, Path)):
        return load(model, network=network)
    if network is not None:
        has = "the default model" if model is None else "a Predictor"
        raise ConfigError(f"network: {has} has its network already; give it to load beside a file")
    return _default_predictor() if model is None else model


@overload
def predict(
    images: ImageLike,
    model: PathLike | Predictor | None = None,
    *,
    network: Network | None = None,
    batch_size: int | None = None,
    progress: ProgressCallback | None = None,
) -> Prediction: ...
@overload
def predict(
    images: list[AnyImage] | tuple[AnyImage, ...],
    model: PathLike | Predictor | None = None,
    *,
    network: Network | None = None,
    batch_size: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[Prediction]: ...
def predict(
    images: ImageLike | list[AnyImage] | tuple[AnyImage, ...],
    model: PathLike | Predictor | None = None,
    *,
    network: Network | None = None,
    batch_size: int | None = None,
    progress: ProgressCallback | None = None,
) -> Prediction | list[Prediction]:
    """Segment an image, or several.

    Args:
        images: A path, an address, the bytes of a file, an open file, a Pillow image, a uint8
            array (height, width, 3) or a tensor; or a list of such.
        model: What ``load`` returned, or what it takes; None: the default model, for cats and dogs.
        network: As for ``load``.
        batch_size: Images to predict at once; None: one, on a GPU 32.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The probabilities and the mask at the image's own size; a list of them for a list. One
        that stands alone holds its image too, for ``cutout()`` and ``overlay()``; in a list it
        does where you gave an RGB array.

    Raises:
        CheckpointError: The model is missing, damaged or foreign.
        DataError: An image cannot be read.
        ShapeError: An array is no image.

    Example:
        >>> prediction = notan.predict("cat.jpg")
        >>> prediction.mask.shape == prediction.probability.shape
        True
        >>> two = notan.predict(["cat.jpg", "cat.jpg"], progress=print)
        1 2
        2 2
        >>> two[0].overlay(image="cat.jpg").shape
        (20, 30, 3)
    """
    from notan.prediction.inputs import as_image
    from notan.prediction.predictor import counted

    predictor = _opened(model, network)
    several = isinstance(images, (list, tuple))
    things = cast("Sequence[ImageLike]", images if several else [images])
    reading = predictor.preprocessor.reading
    read = (as_image(image, reading) for image in things)
    predictions = predictor.predict_many(read, batch_size=predictor.choose_batch_size(batch_size))
    found = []
    for thing, prediction in zip(things, counted(predictions, progress, len(things)), strict=True):
        # what was decoded here would stay in memory for as long as the list does
        keeps = not several or prediction.image is thing
        found.append(prediction if keeps else replace(prediction, image=None))
    return found if several else found[0]


def evaluate(
    model: PathLike | Predictor,
    data: PathLike | None,
    *,
    network: Network | None = None,
    split: str = "test",
    trimap_border: TrimapBorder | None = None,
    tolerance: str | None = None,
    groups: PathLike | None = None,
    allow_training_images: bool = False,
    batch_size: int | None = None,
    out: PathLike | None = None,
    write_images: bool = False,
    progress: ProgressCallback | None = None,
) -> Score:
    """Score a model on a split, at the images' own size.

    Args:
        model: What ``load`` returned, or what it takes.
        data: The folder of images and masks.
        network: As for ``load``.
        split: ``test``, ``val``, ``train``, or ``all`` of a folder that has no parts.
        trimap_border: What the border of Oxford's trimaps counts as; None: the model's own rule.
        tolerance: How far a boundary may lie off and still count as right: ``"2"`` (pixels) or
            ``"0.75%"`` (of the image's diagonal).
        groups: A .csv file with the images' names and one or more columns to divide them by.
        allow_training_images: Score images that the model was trained on, and mark the score.
        batch_size: Images to predict at once; changes the speed, and no score but by rounding.
            None: 8, on a GPU 32.
        out: A folder for score.json and images.csv; None: nothing is written.
        write_images: Write every mask and overlay into ``out`` too.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The scores of each image with the rules they were taken by; ``summary()`` says them.

    Raises:
        ConfigError: There is no such split, or the model has no card.
        DataError: The folder or an image cannot be read, or the model was trained on it.

    Example:
        >>> steps = []
        >>> score = notan.evaluate(
        ...     "runs/cells", "cells/", progress=lambda *step: steps.append(step)
        ... )
        >>> steps[-1]
        (6, 6)
        >>> 0 <= score.mean_dice <= 1
        True
    """
    from notan.evaluation.evaluate import BATCH_SIZE, open_data, write_score
    from notan.evaluation.evaluate import evaluate as score_all
    from notan.metrics import Tolerance
    from notan.prediction.formats import write_overlay_and_mask

    predictor = _opened(model, network)
    if predictor.card is None:
        raise ConfigError("a Predictor without a card says nothing of its data; give a model file")
    folder = None if out is None else Path(out)
    if write_images and folder is None:
        raise ConfigError("write_images: masks and overlays need a folder; give out=")
    found = open_data(
        predictor.card,
        split,
        data_path=None if data is None else Path(data),
        trimap_border=trimap_border,
        groups=None if groups is None else Path(groups),
    )

    def write(sample: Sample, prediction: Prediction) -> None:
        if folder:
            write_overlay_and_mask(folder, sample.name, sample.image, prediction.mask, sample.mask)

    score = score_all(
        predictor,
        found.source,
        split=split,
        trimap_border=found.trimap_border,
        batch_size=predictor.choose_batch_size(batch_size, on_processor=BATCH_SIZE),
        write=write if write_images else None,
        tolerance=None if tolerance is None else Tolerance.parse(tolerance),
        groupings=found.groupings,
        allow_training_images=allow_training_images,
        progress=progress,
    )
    if folder:
        write_score(folder, score)
    return score


def export(
    model: PathLike,
    out: PathLike | None = None,
    *,
    precision: Kind = "fp32",
    data: PathLike | None = None,
    network: Network | None = None,
    end_to_end: bool = False,
) -> Path:
    """Write an ONNX model of a checkpoint, after comparing its masks with the checkpoint's.

    Args:
        model: A checkpoint or a run folder.
        out: The file to write; None: beside the checkpoint, such as ``best.onnx``.
        precision: ``fp32``; ``half`` for a file half as large; ``int8`` for a quicker one.
        data: The folder of images to compare on; None: where the training found them.
        network: As for ``load``.
        end_to_end: Put all into the graph that lies between an image's pixels and its mask, for
            programs without notan.

    Returns:
        The file.

    Raises:
        ExportError: The network or, end to end, its rule for masks cannot be exported, or the
            masks would be others.
        MissingExtraError: PyTorch or ONNX is not installed.

    Example:
        >>> notan.export("runs/cells", "cells.onnx").name
        'cells.onnx'
    """
    with explaining_extras("export"):
        from notan.exporting import export as export_model

        path, _ = export_model(
            model_file(model),
            None if out is None else Path(out),
            precision=precision,
            data_path=None if data is None else Path(data),
            own_model=network,
            end_to_end=end_to_end,
        )
    return path


def check(
    folder: PathLike,
    *,
    trimap_border: TrimapBorder = "foreground",
    layout: Literal["auto", "pets", "folder"] = "auto",
    masks: Mapping[str, object] | None = None,
    exif_orientation: Literal["apply", "ignore"] = "apply",
) -> Diagnosis:
    """Look at every image and mask of a data folder once, and say what is wrong with them.

    Args:
        folder: A data folder.
        trimap_border: What the border of Oxford's trimaps counts as.
        layout: How the folder is arranged; ``auto`` looks.
        masks: What you say of masks with several readings, such as ``{"foreground": "17,19"}``;
            the settings under ``data.masks``.
        exif_orientation: ``ignore``: the masks were drawn on the images as they are stored.

    Returns:
        The findings, worst first; ``summary()`` says them.

    Raises:
        DataError: The folder is missing, of neither layout, or holds no image at all.

    Example:
        >>> print(notan.check("cells/").summary().splitlines()[-1])
        Nothing wrong found in 36 images.
    """
    from notan.checking import examine
    from notan.config import load_run

    flags = {
        "data.trimap_border": trimap_border,
        "data.layout": layout,
        "data.masks": masks,
        "data.exif_orientation": exif_orientation,
    }
    return examine(Path(folder), load_run(flags=flags).data)


def compare(
    models: Sequence[PathLike],
    *,
    data: PathLike | None = None,
    network: Network | list[Network] | tuple[Network, ...] | None = None,
    split: str = "test",
    trimap_border: TrimapBorder | None = None,
    allow_training_images: bool = False,
    batch_size: int = 8,
    device: str = "auto",
) -> Comparison:
    """Compare models on the same images, and say which differences are more than noise.

    Args:
        models: Run folders or model files, two or more; seeds of one run are taken together.
        data: The folder of images and masks; None: where the first model's training found them.
        network: As for ``load``; where models are of several classes of your own, a list of those.
        split: ``test``, ``val``, ``train`` or ``all``.
        trimap_border: What the border of Oxford's trimaps counts as; None: the models' own rule.
        allow_training_images: Score images that a model was trained on, and say so.
        batch_size: Images to predict at once.
        device: Where to compute.

    Returns:
        Each model's scores with intervals, and each pair's difference with a verdict.

    Raises:
        ConfigError: Fewer than two models, no data folder, or rules that do not fit each other.
        DataError: An image cannot be read, or a model was trained on it.

    Example:
        >>> comparison = notan.compare(["runs/cells", "cells.onnx"])
        >>> len(comparison.models)
        2
    """
    with explaining_extras("comparison"):
        from notan.comparison import compare as compare_models

        if not isinstance(network, (list, tuple)):
            network = () if network is None else (network,)
        return compare_models(
            [Path(model) for model in models],
            data_path=None if data is None else Path(data),
            split=split,
            trimap_border=trimap_border,
            device=device,
            batch_size=batch_size,
            allow_training_images=allow_training_images,
            networks=network,
        )
