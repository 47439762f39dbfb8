"""``notan train`` and ``notan pretrain``."""

from __future__ import annotations

import logging
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from notan.cli import BEGAN
from notan.cli.flags import (
    DEFAULT,
    READING,
    DataPath,
    DeviceSetting,
    ModelClass,
    Overrides,
    ReadingFlags,
    Switch,
    TimeLimit,
    flag,
    sets,
    settings_of,
)
from notan.config import Pretrain, Pretraining, load_run, load_settings, seconds_of
from notan.errors import ConfigError
from notan.modelfile.card import with_model_of_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notan.auto import Suggestion
    from notan.config import Run
    from notan.training import TrainResult
    from notan.training.ranks import Ranks
    from notan.training.time_limit import Overhead


@dataclass(frozen=True)
class MainFlags:
    """What is wanted every day.

    Attributes:
        time_limit: The time in which everything ends, from here to the report; the learning rate
            comes down by then, and --epochs is the most there may be.
        auto: Look at the training images and at this machine, choose the settings, say why, and
            keep them with the run as auto.toml; flags and settings given beside it stand.
        model: unet, resnet34_unet or attention_unet.
        encoder: resnet34, efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2, for unet
            and attention_unet to go down with; or timm:NAME, a convolutional network of timm where
            that is installed.
        pretrained: Start the encoder from its published weights, learned on ImageNet.
        image_size: Side of the square that images are resized to, in pixels.
        keep_aspect_ratio: Only shrink images that are larger than that, until they fit, in their
            own proportions; smaller ones keep their pixels.
        epochs: Passes over the training images.
        batch_size: Images in a step.
        learning_rate: Peak learning rate of AdamW.
        folds: Cross-validate: divide all images but the test part into so many folds, train on
            all but one of them in turn, and make one model of the networks, ensemble.safetensors.
        out: Where the run is kept.
        profile: Measure first, for about ten seconds, what the steps wait for and what to do about
            it; kept with the run as profile.md. The training is the same.
        resume: Go on with the run in this folder where it was stopped, with its own settings; other
            flags change them.
    """

    data_path: DataPath = sets("data.path")
    time_limit: TimeLimit = sets("train.time_limit_seconds", read=seconds_of)
    auto: Switch = False
    model: Annotated[str | None, flag("NAME", DEFAULT.model.name)] = sets("model.name")
    model_class: ModelClass = None
    encoder: Annotated[str | None, flag("NAME", "the model's own")] = sets("model.encoder")
    pretrained: Switch = sets("train.pretrained", default=False)
    image_size: Annotated[int | None, flag("PIXELS", DEFAULT.preprocess.image_size[0])] = sets(
        "preprocess.image_size"
    )
    keep_aspect_ratio: Switch = sets("preprocess.keep_aspect_ratio", default=False)
    epochs: Annotated[int | None, flag("N", DEFAULT.train.epochs)] = sets("train.epochs")
    batch_size: Annotated[int | None, flag("N", DEFAULT.train.batch_size)] = sets(
        "train.batch_size"
    )
    learning_rate: Annotated[float | None, flag("RATE", DEFAULT.train.learning_rate)] = sets(
        "train.learning_rate"
    )
    device: DeviceSetting = sets("device")
    folds: Annotated[int | None, flag("N")] = None
    out: Annotated[Path | None, flag("FOLDER", "a fresh folder under runs/")] = None
    profile: Switch = False
    resume: Annotated[Path | None, flag("FOLDER")] = None


@dataclass(frozen=True)
class LearningFlags:
    """What is learned from, and how.

    Attributes:
        unlabelled: A folder of more such images, without masks, to learn from too: what the
            moving average of the weights says of them is taken for true, after the first steps.
            Copies of validation and test images are left out.
            loss.consistency=1 is its weight.
        weights: Go on from a model of notan's, such as one that was trained on fewer masks: the
            network and the size of its images are that model's, unless --recipe brings them.
        encoder_weights: Start the encoder from a file: a .pth of published weights, or a model of
            notan's with the same encoder.
        freeze_epochs: Epochs at the start in which the encoder stays as it came and the rest
            learns; then all of it does, the encoder at a lower rate with
            train.encoder_lr_multiplier=0.3.
        teacher: A model file, an ensemble's for example, to learn from beside the masks;
            loss.teacher=1 is its weight.
        group_by: Keep images of one group on one side where validation images are set aside: a
            regular expression that finds the group in their names, such as '^[^_]+', or
            FILE.csv:COLUMN. Copies of one image always stay together.
        patience: Stop after so many epochs without a better validation Dice.
        seed: Decides weights, order, augmentation and split.
        deterministic: Repeatable arithmetic on a GPU too, slower; on a CPU it always is.
        detect_anomaly: Stop at the very operation that made a NaN.
    """

    unlabelled: Annotated[Path | None, flag("FOLDER")] = sets("train.unlabelled")
    weights: Annotated[Path | None, flag("FILE")] = sets("train.weights")
    encoder_weights: Annotated[Path | None, flag("FILE")] = sets("train.encoder_weights")
    freeze_epochs: Annotated[int | None, flag("N", DEFAULT.train.freeze_epochs)] = sets(
        "train.freeze_epochs"
    )
    teacher: Annotated[Path | None, flag("FILE")] = sets("train.teacher")
    group_by: Annotated[str | None, flag("PATTERN")] = sets("data.group_by")
    patience: Annotated[int | None, flag("EPOCHS", "never stop early")] = sets("train.patience")
    seed: Annotated[int | None, flag("N", DEFAULT.seed)] = sets("seed")
    deterministic: Switch = sets("train.deterministic", default=False)
    detect_anomaly: Annotated[bool, arg(help_behavior_hint="(slow)")] = sets(
        "train.detect_anomaly", default=False
    )


@dataclass(frozen=True)
class RecipeFlags:
    """Where settings come from, and what may be changed.

    Attributes:
        recipe: A .toml file of settings, such as recipes/oxford-unet.toml.
        write_recipe: With --auto: write the recipe here and train nothing, to be looked at, changed
            and trained with --recipe.
        overwrite: Replace the run that is already in --out.
        allow_changes: Go on with --resume even if changed settings or images make it another run.
    """

    recipe: Annotated[Path | None, flag("FILE")] = None
    write_recipe: Annotated[Path | None, flag("FILE")] = None
    overwrite: Switch = False
    allow_changes: Switch = False


logger = logging.getLogger("notan")

REPORT_OVER_LOADING, LEAVING_OVER_LOADING = 1.5, 0.2
"""Time that a report takes beside scoring images, and that the process takes to end, over the
time that loading PyTorch takes."""

MAIN, LEARNING, RECIPE = MainFlags(), LearningFlags(), RecipeFlags()
"""Groups of which no flag is given."""


def train(
    overrides: Overrides = (),
    *,
    main: OmitArgPrefixes[MainFlags] = MAIN,
    reading: OmitArgPrefixes[ReadingFlags] = READING,
    learning: OmitArgPrefixes[LearningFlags] = LEARNING,
    recipe: OmitArgPrefixes[RecipeFlags] = RECIPE,
) -> None:
    """Train a model on images and masks.

    Keeps the best by validation Dice. The data folder is the Oxford-IIIT Pet dataset in its own
    layout, or any folder with images/ and masks/ (matched by name), alone or inside train/, val/
    and test/. No test image is read. The run folder receives best.safetensors, run.toml,
    history.jsonl, curves, and at the end report.html.

    Args:
        overrides: Any other setting: model.width=16 train.precision=bf16 data.limit=40
            train.schedule=cosine loss.focal=1 augment.enabled=false. The last word on a setting
            wins: defaults, then the recipe, then flags, then these.
    """
    flags = settings_of(main, reading, learning)
    _refuse_mixed(main, recipe)
    if with_folds := _is_of_folds(main):
        _refuse_for_folds(main, recipe)
    if recipe.recipe is None and main.resume is None:
        flags = with_model_of_weights(flags, overrides)
    if recipe.write_recipe is not None:
        _write_recipe(recipe.write_recipe, flags, overrides, overwrite=recipe.overwrite)
        return
    overhead = _overhead()
    if with_folds:
        _train_folds(main, recipe, flags, overrides, overhead)
        return
    from notan.training.ranks import joined

    with joined() as ranks:
        if not ranks.is_first:
            logger.setLevel(logging.ERROR)  # one of them tells what they all do
        result = _train(main, recipe, flags, overrides, overhead, ranks)
    if not ranks.is_first:
        return
    print(f"Best validation Dice: {result.dice:.4f} (epoch {result.epoch})\n{result.checkpoint}")
    _report_in_time(result, main.model_class, overhead)


def _report_in_time(result: TrainResult, model_class: str | None, overhead: Overhead) -> None:
    """Write the report of a training, if its time limit leaves time for it."""
    folder = result.checkpoint.parent
    if result.time_for_report:
        left = math.inf if result.seconds_left is None else result.seconds_left
        ends = time.monotonic() + left - overhead.leaving_seconds
        _report(folder, model_class, ends=ends)
    else:
        again = f"notan report {shlex.quote(str(folder))}"
        logger.warning("the time limit left no time for the report; write it with: %s", again)


def _refuse_mixed(main: MainFlags, recipe: RecipeFlags) -> None:
    """Refuse flags of a new run beside one that goes on, and the other way round."""
    if main.auto and (recipe.recipe or main.resume):
        other = "--recipe" if recipe.recipe else "--resume"
        raise ConfigError(
            f"--auto chooses the settings and {other} brings them: leave one of the two"
        )
    mine = main.model_class
    if mine and (main.model or main.encoder or main.pretrained or main.auto):
        raise ConfigError(
            f"--model-class {mine}: a network of your own takes the place of --model, --encoder "
            "and --pretrained, and --auto chooses among notan's; leave one of them out"
        )
    if recipe.write_recipe and not main.auto:
        raise ConfigError("--write-recipe writes what --auto chooses: give --auto too")
    if recipe.write_recipe and main.profile:
        raise ConfigError("--write-recipe trains nothing, so there is nothing to --profile")
    if main.resume is None and recipe.allow_changes:
        raise ConfigError("--allow-changes goes with --resume FOLDER; there is no run to change")
    if main.resume is not None and (recipe.recipe or main.out or recipe.overwrite):
        raise ConfigError(
            "--resume takes settings and folder from the run: leave --recipe, --out and --overwrite"
        )


def _overhead() -> Overhead:
    """Say when the command began and what its report will take, for a time limit.

    Until here the command has loaded PyTorch, and the report will load and draw about as much
    again, at the speed that the machine has just shown.
    """
    from notan.training.time_limit import Overhead

    began = BEGAN.get()
    loading = min(time.monotonic() - began, time.process_time())  # other programs do not count
    return Overhead(began, REPORT_OVER_LOADING * loading, LEAVING_OVER_LOADING * loading)


def _report(folder: Path, model_class: str | None, *, ends: float) -> None:
    """Write the report; whatever hinders it, the training is done and stays so.

    Args:
        folder: The run's.
        model_class: Of the user's own.
        ends: The moment by which it has to be there, by ``time.monotonic()``.
    """
    from notan.report.run import write_report
    from notan.training.trackers import hand_in

    def between() -> None:
        if time.monotonic() > ends:
            raise TimeoutError("the time limit is over")

    try:
        run = load_run(folder / "run.toml")
        page = write_report(folder, device=run.device, network=model_class, between=between)
    except Exception as error:  # noqa: BLE001 - a page must not fail a training that went well
        mine = f" --model-class {shlex.quote(model_class)}" if model_class else ""
        again = f"notan report {shlex.quote(str(folder))}{mine}"
        logger.warning("there is no report (%s); try again with: %s", error, again)
    else:
        logger.info("report: %s", page)
        hand_in(run.train.trackers, folder, page)


def _train_folds(
    main: MainFlags,
    recipe: RecipeFlags,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    overhead: Overhead,
) -> None:
    """Begin a cross-validation, or go on with one."""
    from notan.training.ranks import processes

    if processes() > 1:
        raise ConfigError(
            "--folds trains each fold in one process: start it without torchrun; several GPUs take "
            "a fold each"
        )
    from notan.comparison.folds import resume_folds, train_folds
    from notan.io.write import fresh_folder
    from notan.run_folder import FOLD_SETTINGS

    def report(result: TrainResult) -> None:
        print(f"Best validation Dice: {result.dice:.4f} (epoch {result.epoch})", flush=True)
        _report_in_time(result, None, overhead)

    if main.resume is not None:
        run = load_run(main.resume / FOLD_SETTINGS, flags=flags, overrides=overrides)
        found = resume_folds(main.resume, run=run, overhead=overhead, on_trained=report)
    else:
        first = f"1/{main.folds}"
        run, reasons = _settings(main, recipe, {**flags, "data.fold": first}, overrides)
        if run.data.fold != first:
            raise ConfigError(f"data.fold = {run.data.fold}: the folds are said by --folds")
        found = train_folds(
            run,
            main.out or fresh_folder(Path("runs") / f"{run.model.name}-{main.folds}-folds"),
            overwrite=recipe.overwrite,
            recipe=reasons,
            overhead=overhead,
            on_trained=report,
        )
    print(f"{found.summary()}\n{found.ensemble}")


def _is_of_folds(main: MainFlags) -> bool:
    """Say whether all folds of a cross-validation are to be trained."""
    if main.folds is not None or main.resume is None:
        return main.folds is not None
    from notan.run_folder import FOLD_SETTINGS

    return (main.resume / FOLD_SETTINGS).is_file()


def _refuse_for_folds(main: MainFlags, recipe: RecipeFlags) -> None:
    """Refuse what has no meaning for a cross-validation as a whole."""
    if main.resume is not None and main.folds is not None:
        raise ConfigError("--resume finds the folds in their folder: leave --folds out")
    if recipe.write_recipe:
        raise ConfigError(
            "--write-recipe trains nothing: leave --folds out here, and give it with --recipe"
        )
    if main.folds is not None and main.folds < 2:
        raise ConfigError(
            f"--folds {main.folds}: two or more are wanted, so that each network validates on "
            "images that others were trained on"
        )
    if main.profile:
        raise ConfigError("--profile looks at one training: give data.fold=1/5 in place of --folds")
    if main.model_class:
        raise ConfigError(
            "--model-class: the model of all folds can only hold notan's own networks; train the "
            "folds one by one: data.fold=1/5, data.fold=2/5 ..."
        )
    if recipe.allow_changes:
        raise ConfigError(
            "--allow-changes would make one fold another run than the others: change them all in "
            "a new --out, or resume that fold's own folder"
        )


def _train(
    main: MainFlags,
    recipe: RecipeFlags,
    flags: Mapping[str, object],
    overrides: Sequence[str],
    overhead: Overhead,
    ranks: Ranks,
) -> TrainResult:
    """Begin a run, by settings that were given or chosen, or go on with one."""
    from notan.training import resume as resume_training
    from notan.training import train as run_training

    folder = main.resume or _begun_before(main, ranks)
    if folder is not None:
        stored = folder / "run.toml"
        run = load_run(stored, flags=flags, overrides=overrides) if stored.is_file() else None
        return resume_training(
            folder,
            run=run,
            allow_changes=recipe.allow_changes,
            model=main.model_class,
            overhead=overhead,
            profile=main.profile,
        )
    if main.auto:  # by the clock, too: one chooses for all
        run, reasons = ranks.first_does(lambda: _settings(main, recipe, flags, overrides))
    else:
        run, reasons = _settings(main, recipe, flags, overrides)
    return run_training(
        run,
        out=main.out,
        overwrite=recipe.overwrite,
        recipe=reasons,
        model=main.model_class,
        overhead=overhead,
        profile=main.profile,
    )


def _begun_before(main: MainFlags, ranks: Ranks) -> Path | None:
    """Return the run that torchrun has started all ranks anew for, once one of them was lost.

    Raises:
        ConfigError: It may do so, and nobody would know then where the run is.
    """
    from notan.training.ranks import restarts

    done, most = restarts()
    if most and main.out is None:
        raise ConfigError(
            f"--max-restarts {most}: give --out FOLDER too, where a restart finds the run"
        )
    begun = done > 0 and main.out is not None and (main.out / "run.toml").is_file()
    return main.out if ranks.of_first(begun) else None


def _settings(
    main: MainFlags, recipe: RecipeFlags, flags: Mapping[str, object], overrides: Sequence[str]
) -> tuple[Run, str | None]:
    """Return the settings of a new run and, where they were chosen, the recipe that says why."""
    if main.auto:
        chosen = _suggest(flags, overrides)
        return chosen.run, chosen.recipe
    return load_run(recipe.recipe, flags=flags, overrides=overrides), None


def _suggest(flags: Mapping[str, object], overrides: Sequence[str]) -> Suggestion:
    from notan.auto import suggest

    chosen = suggest(flags=flags, overrides=overrides)
    print(chosen.sentences, flush=True)
    return chosen


def _write_recipe(
    path: Path, flags: Mapping[str, object], overrides: Sequence[str], *, overwrite: bool
) -> None:
    from notan.io.write import write_bytes

    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: something is here already; choose another, or --overwrite it")
    write_bytes(path, _suggest(flags, overrides).recipe.encode())
    print(f"Train it with: notan train --recipe {shlex.quote(str(path))}")


PRETRAIN = Pretrain()


@dataclass(frozen=True)
class PretrainFlags:
    """What learns, and how.

    Attributes:
        encoder: efficientnet_lite0 (or 1, 2), resnet34, timm:NAME: what learns.
        pretrained: Go on from the encoder's published weights, learned on ImageNet.
        encoder_weights: Go on from the weights in this file.
        epochs: Passes over the images; of a few hundred images, hundreds are wanted.
        batch_size: Images in a step.
        learning_rate: Peak learning rate of AdamW.
        image_size: Side of the square that images are cropped and resized to, in pixels; near
            what you will train at.
        seed: Decides weights, order, crops, what is hidden and which images are held out; give
            the training the same, so that both set the same validation images aside.
    """

    encoder: Annotated[str | None, flag("NAME", PRETRAIN.encoder)] = sets("pretrain.encoder")
    pretrained: Switch = sets("pretrain.train.pretrained", default=False)
    encoder_weights: Annotated[Path | None, flag("FILE")] = sets("pretrain.train.encoder_weights")
    epochs: Annotated[int | None, flag("N", PRETRAIN.train.epochs)] = sets("pretrain.train.epochs")
    batch_size: Annotated[int | None, flag("N", PRETRAIN.train.batch_size)] = sets(
        "pretrain.train.batch_size"
    )
    learning_rate: Annotated[float | None, flag("RATE", PRETRAIN.train.learning_rate)] = sets(
        "pretrain.train.learning_rate"
    )
    image_size: Annotated[int | None, flag("PIXELS", PRETRAIN.image_size)] = sets(
        "pretrain.image_size"
    )
    device: DeviceSetting = sets("pretrain.device")
    seed: Annotated[int | None, flag("N", PRETRAIN.seed)] = sets("pretrain.seed")


PRETRAINING = PretrainFlags()


def pretrain(
    overrides: Overrides = (),
    *,
    data_path: DataPath = None,
    out: Annotated[Path | None, flag("FOLDER", "a fresh folder under runs/")] = None,
    overwrite: Switch = False,
    resume: Annotated[Path | None, flag("FOLDER")] = None,
    learning: OmitArgPrefixes[PretrainFlags] = PRETRAINING,
) -> None:
    """Let an encoder learn from images without masks first.

    Squares of each image are hidden, and the network learns to fill them in: for that it has to
    know what your images show. It is of use where you have many more images than masks, and the
    images are of a kind that published weights have never seen. Start the training from it with:
    notan train --encoder NAME --encoder-weights RUN/encoder.safetensors.

    The data folder holds images; or it is one as train takes it, of which only the training images
    are used. The run folder receives encoder.safetensors, history.jsonl with the loss on images
    that were held out, and reconstructions.png: what is seen, what is filled in, and what was
    there.

    Args:
        overrides: Any other setting: pretrain.hidden_share=0.5 pretrain.patch=16
            pretrain.crop_area=0.3 pretrain.workers=4 pretrain.train.precision=bf16.
        out: Where the run is kept.
        overwrite: Replace the pretraining that is already in --out.
        resume: Go on with the pretraining in this folder where it was stopped, with its own
            settings; device, workers and a folder of images that was moved may be given anew.
    """
    from notan.pretraining import pretrain as run_pretraining
    from notan.pretraining import resume as resume_pretraining
    from notan.pretraining.pretrainer import run_folder

    if resume is not None and (out or overwrite):
        raise ConfigError(
            "--resume takes settings and folder from the run: leave --out and --overwrite"
        )
    stored = run_folder(resume).find_settings() if resume else None
    flags = {"pretrain.path": data_path, **settings_of(learning)}
    settings = load_settings(Pretraining, stored, flags=flags, overrides=overrides).pretrain
    result = (
        resume_pretraining(resume, settings=settings)
        if resume
        else run_pretraining(settings, out=out, overwrite=overwrite)
    )
    lowest = result.lowest
    print(
        f"Lowest held-out loss: {lowest.score:.4f} (epoch {lowest.epoch}); "
        f"grey in every gap: {lowest.baseline:.4f}\n{result.encoder}\n"
        f"Train from it: notan train --encoder {result.name} "
        f"--encoder-weights {shlex.quote(str(result.encoder))} --data-path FOLDER"
    )
