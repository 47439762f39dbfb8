"""``notan benchmark-models``: train several models under one time limit, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import DEFAULT, DataPath, Overrides, TimeLimitFlag, seconds_of, shows

if TYPE_CHECKING:
    from collections.abc import Sequence

DECIDED = {
    "model.name": "--models",
    "train.epochs": "--epochs",
    "train.time_limit_seconds": "--time-limit",
}


def benchmark_models(
    overrides: Overrides = (),
    *,
    data_path: DataPath = None,
    models: Annotated[str, arg(metavar="NAME,NAME")],
    seeds: int = 3,
    time_limit: TimeLimitFlag = None,
    epochs: Annotated[int | None, shows("none", "N")] = None,
    recipe: Annotated[Path | None, shows("none", "FILE")] = None,
    trimap_border: Annotated[
        Literal["foreground", "background", "ignore"] | None,
        shows(DEFAULT.data.trimap_border, "foreground|background|ignore"),
    ] = None,
    device: Annotated[str | None, shows(DEFAULT.device, "auto|cpu|cuda|cuda:1|mps")] = None,
    out: Annotated[Path, shows("runs/benchmark", "FOLDER")] = Path("runs") / "benchmark",
) -> None:
    """Train several models with several seeds under one time limit, then compare them.

    Give the time limit as time for all runs together, divided equally, or as epochs for each run.
    The same command goes on where it was stopped: runs that have ended are kept, the others
    resumed.
    Ends with the comparison of notan compare on the test split, or on the validation split where
    there is none, and writes compare.json and compare.html beside the runs.

    Args:
        overrides: Any other setting for all runs, as for train: model.width=16
            preprocess.image_size=128 train.learning_rate=1e-3.
        data_path: The folder with the images and masks.
        models: Names with commas between them, say unet,resnet34_unet,attention_unet.
        seeds: Runs of each model, with the seeds 0, 1, 2 and so on; seed=5 starts at another.
        time_limit: Training time for all runs together; each ends within its share, its learning
            rate too where train.schedule=cosine is given.
        epochs: Passes over the training images for each run.
        recipe: A .toml file of settings for all runs.
        trimap_border: What the border of Oxford's trimaps counts as.
        device: Where to compute.
        out: Where the runs and the comparison go.
    """
    from notan.cli.compare import show
    from notan.comparison.benchmark import make_plan, run_benchmark
    from notan.config import load_run
    from notan.errors import ConfigError

    if (epochs is None) == (time_limit is None):
        given = "neither --time-limit nor --epochs was" if epochs is None else "both were"
        raise ConfigError(
            f"{given} given; give one: a time for all runs together (--time-limit 30m), or epochs "
            "for "
            "each run (--epochs 20)"
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
    show(run_benchmark(plan, out), out)


def _refuse_decided(overrides: Sequence[str]) -> None:
    """Refuse words on settings that the flags decide: they would do nothing."""
    from notan.errors import ConfigError

    for word in overrides:
        name = word.partition("=")[0].strip()
        if name in DECIDED:
            raise ConfigError(f"{word}: for a benchmark, {name} is said by {DECIDED[name]}")
