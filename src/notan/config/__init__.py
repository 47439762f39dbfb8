"""Every setting of a run, and how a recipe, flags and overrides become one Run."""

from notan.config.load import (
    NONE,
    asked_settings,
    changed_settings,
    first_problem,
    load_run,
    load_settings,
    run_to_toml,
)
from notan.config.sections import (
    UNLIMITED_EPOCHS,
    Augment,
    Data,
    LossTerms,
    Masks,
    Model,
    Own,
    Preprocess,
    Pretrain,
    Pretraining,
    Run,
    Train,
    TrimapBorder,
)

__all__ = [
    "NONE",
    "UNLIMITED_EPOCHS",
    "Augment",
    "Data",
    "LossTerms",
    "Masks",
    "Model",
    "Own",
    "Preprocess",
    "Pretrain",
    "Pretraining",
    "Run",
    "Train",
    "TrimapBorder",
    "asked_settings",
    "changed_settings",
    "first_problem",
    "load_run",
    "load_settings",
    "run_to_toml",
]
