"""Several models: ``notan compare``, ``benchmark-models`` and ``ensemble``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from notan.cli.flags import (
    AllowTrainingImages,
    BatchSize,
    DataPath,
    Device,
    DeviceSetting,
    KnownDataPath,
    Models,
    Overrides,
    Split,
    TimeLimit,
    TrimapBorderRule,
    TrimapBorderSetting,
    flag,
)
from notan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.comparison import Comparison

JSON, PAGE = "compare.json", "compare.html"
DECIDED = {
    "model.name": "--models",
    "train.epochs": "--epochs",
    "train.time_limit_seconds": "--time-limit",
}


def compare(
    models: Models,
    *,
    model_class: Annotated[
        str | None,
        flag(
            "PACKAGE:CLASS,...",
            "notan's own",
            help="Networks of your own among the models, each as for evaluate.",
        ),
    ] = None,
    data_path: KnownDataPath = None,
    split: Split = "test",
    trimap_border: TrimapBorderRule = None,
    allow_training_images: AllowTrainingImages = False,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    out: Annotated[Path | None, flag("FOLDER", "a fresh folder, runs/compare")] = None,
) -> None:
    """Compare models on the same images.

    Prints each model's mean Dice with its interval, IoU, speed and size, and for each pair the
    difference with its interval, a test on the paired images and a verdict in words: which
    differences are more than noise. Runs that differ in the seed only are taken together. Writes
    compare.json and compare.html, a page with the images on which the models differ most.

    Args:
        out: Where compare.json and compare.html go.
    """
    import notan.report.compare  # noqa: F401 - what it lacks is said before the work
    from notan.comparison import compare as compare_models
    from notan.io.write import fresh_folder, require_writable

    folder = out or fresh_folder(Path("runs") / "compare")
    _refuse_taken(folder)
    require_writable(folder / JSON)
    comparison = compare_models(
        models,
        data_path=data_path,
        split=split,
        trimap_border=trimap_border,
        device=device,
        batch_size=batch_size,
        allow_training_images=allow_training_images,
        networks=[each.strip() for each in (model_class or "").split(",") if each.strip()],
    )
    _show(comparison, folder)


def _refuse_taken(out: Path) -> None:
    """Refuse a folder that holds a comparison, or is none, before all the work."""
    if (out / JSON).exists() or (out.exists() and not out.is_dir()):
        what = "an earlier comparison is" if out.is_dir() else "a file is"
        raise ConfigError(f"{out}: {what} here already; choose another --out")


def _show(comparison: Comparison, folder: Path) -> None:
    """Print a comparison, and write it as JSON and as a page."""
    from notan.comparison.comparison import text_of
    from notan.io.write import encoded, write_bytes
    from notan.report.compare import compare_page

    write_bytes(folder / JSON, encoded(comparison.model_dump_json(indent=2) + "\n"))
    write_bytes(folder / PAGE, encoded(compare_page(comparison)))
    print(text_of(comparison))
    print(folder / PAGE)


def benchmark_models(
    overrides: Overrides = (),
    *,
    data_path: DataPath = None,
    models: Annotated[str, arg(metavar="NAME,NAME")],
    seeds: int = 3,
    time_limit: TimeLimit = None,
    epochs: Annotated[int | None, flag("N")] = None,
    recipe: Annotated[Path | None, flag("FILE")] = None,
    trimap_border: TrimapBorderSetting = None,
    device: DeviceSetting = None,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs") / "benchmark",
) -> None:
    """Train several models in one time limit; compare them.

    Give the time limit as time for all runs together, divided equally, or as epochs for each run.
    The same command goes on where it was stopped: runs that have ended are kept, the others
    resumed. Ends with the comparison of notan compare on the test split, or on the validation split
    where there is none, and writes compare.json and compare.html beside the runs.

    Args:
        overrides: Any other setting for all runs, as for train: model.width=16
            preprocess.image_size=128 train.learning_rate=1e-3.
        models: Names with commas between them, say unet,resnet34_unet,attention_unet.
        seeds: Runs of each model, with the seeds 0, 1, 2 and so on; seed=5 starts at another.
        time_limit: Training time for all runs together; each ends within its share, its learning
            rate too where train.schedule=cosine is given.
        epochs: Passes over the training images for each run.
        recipe: A .toml file of settings for all runs.
        out: Where the runs and the comparison go.
    """
    from notan.comparison.benchmark import make_plan, run_benchmark
    from notan.config import load_run, seconds_of

    if (epochs is None) == (time_limit is None):
        given = "neither --time-limit nor --epochs was" if epochs is None else "both were"
        raise ConfigError(
            f"{given} given; give one: a time for all runs together (--time-limit 30m), or epochs "
            "for each run (--epochs 20)"
        )
    _refuse_decided(overrides)
    flags = {
        "data.path": data_path,
        "data.trimap_border": trimap_border,
        "device": device,
        "train.epochs": epochs,
    }
    run = load_run(recipe, flags=flags, overrides=overrides)
    names = [name.strip() for name in models.split(",") if name.strip()]
    seconds = None if time_limit is None else seconds_of(time_limit)
    plan = make_plan(run, names, seeds=seeds, time_limit_seconds=seconds)
    _show(run_benchmark(plan, out), out)


def _refuse_decided(overrides: Sequence[str]) -> None:
    """Refuse words on settings that the flags decide: they would do nothing."""
    for word in overrides:
        name = word.partition("=")[0].strip()
        if name in DECIDED:
            raise ConfigError(f"{word}: for a benchmark, {name} is said by {DECIDED[name]}")


def ensemble(
    models: Models,
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    data_path: KnownDataPath = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
) -> None:
    """Make one model file of several models.

    It answers with their weighted mean. Weights, calibration and threshold are chosen on the
    validation images of the first model, on which none of them may have been trained: give all
    trainings one split, data.split_seed=0, where the data have no val/ part. Folds of one
    cross-validation are chosen for by what each says of the images that it has not seen. The file
    is used like any other model, and takes the time of all its members.

    Args:
        out: The file to write, such as ensemble.safetensors.
    """
    from notan.comparison import make_ensemble
    from notan.io.write import require_writable

    require_writable(out)
    result = make_ensemble(models, out, data_path=data_path, device=device, batch_size=batch_size)
    print(f"{'':<32} weight  validation Dice")
    for name, weight in result.weights.items():
        dice = f"{result.dice[name]:.4f}" if name in result.dice else ""
        print(f"{name:<32} {weight:6.3f}  {dice}".rstrip())
    print(f"{'ensemble':<32} {'':6}  {result.dice['ensemble']:.4f}")
    for reason in result.card.choices:
        print(reason)
    print(result.path)
