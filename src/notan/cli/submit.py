"""``notan submit``: the file that a leaderboard takes, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from notan.cli.flags import DataPath, Device, Threshold, Tta, shows
from notan.errors import ConfigError, DataError

OUT = Path("submission.csv")


def submit(
    *,
    model: Annotated[Path | None, shows("none; needed", "FILE")] = None,
    data_path: DataPath = None,
    list: Annotated[Path | None, shows("none; needed", "FILE")] = None,  # noqa: A002 - the flag's name
    out: Annotated[Path | None, shows(OUT, "FILE")] = None,
    threshold: Threshold = None,
    tta: Tta = None,
    batch_size: Annotated[int, arg(metavar="N")] = 1,
    device: Device = "auto",
    check: Annotated[Path | None, shows("none", "FILE")] = None,
) -> None:
    """Write the masks of a list of images as a leaderboard takes them, or check such a file.

    Writes image_id,encoded_mask: the names and the order of the list, and Kaggle's run lengths at
    the images' own size (column by column, from 1; an empty mask is an empty cell). The images
    need no masks: they lie in the folder, in its images/ or in images/ of its train/, val/, test/.

    With --check FILE nothing is predicted: every row is read strictly, and all that is wrong is
    listed, with exit code 3. --list adds the names, --data-path the images' sizes.

    Args:
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        data_path: The folder with the images.
        list: One name a line, the first word of it, with or without the file's suffix.
        out: The file to write.
        threshold: Calibrated probability from which a pixel is foreground; leaves out what else
            validation chose for the mask.
        tta: Ask the network several views of each image and take the mean: hflip (left
            and right), vflip (top and bottom), rot90 (quarter turns), scale, or several:
            hflip,vflip. Slower by the number of views.
        batch_size: Images predicted at once.
        device: Where to compute.
        check: A file to check.
    """
    if check is not None:
        given = {
            "--model": model is not None,
            "--out": out is not None,
            "--threshold": threshold is not None,
            "--tta": tta is not None,
            "--batch-size": batch_size != 1,
            "--device": device != "auto",
        }
        _refuse_with_check([flag for flag, is_given in given.items() if is_given])
        _check(check, data_path, list)
        return
    if model is None or data_path is None or list is None:
        flags = {"--model": model, "--data-path": data_path, "--list": list}
        missing = ", ".join(flag for flag, value in flags.items() if value is None)
        raise ConfigError(f"{missing}: needed to write a submission; see notan submit --help")
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; 1 or more is wanted")
    _write(model, data_path, list, out or OUT, threshold, tta, batch_size, device)


def _write(
    model: Path,
    data_path: Path,
    listing: Path,
    out: Path,
    threshold: float | None,
    tta: str | None,
    batch_size: int,
    device: str,
) -> None:
    from tqdm import tqdm

    from notan.prediction.predictor import Predictor
    from notan.prediction.submission import (
        find_images,
        read_list,
        refuse_to_replace,
        write_submission,
    )
    from notan.prediction.tta import parse_augment

    refuse_to_replace(out, [model, listing])
    images = find_images(read_list(listing), data_path)
    augment = parse_augment(tta) if tta is not None else ()
    predictor = Predictor.load(model, device=device, threshold=threshold, augment=augment)
    with tqdm(total=len(images), unit="image", leave=False, disable=None) as bar:
        write_submission(predictor, images, out, batch_size=batch_size, progress=bar.update)
    print(f"{len(images)} images: {out}")


def _check(path: Path, data_path: Path | None, listing: Path | None) -> None:
    from notan.prediction.submission import check_submission, find_images, read_list, read_sizes

    names = read_list(listing) if listing is not None else None
    sizes = None
    if data_path is not None:
        if names is None:
            raise ConfigError("--data-path: needs --list, which says what the images are called")
        sizes = read_sizes(find_images(names, data_path))
    findings = check_submission(path, names, sizes)
    if findings.count:
        print(findings.in_words())
        problems = "1 problem" if findings.count == 1 else f"{findings.count} problems"
        raise DataError(f"{path}: {problems}, listed above; mend them before you submit it")
    print(f"fine: {findings.images} images")


def _refuse_with_check(flags: list[str]) -> None:
    if flags:
        raise ConfigError(
            f"{', '.join(flags)}: --check predicts nothing, so this has no meaning beside it; "
            "leave one of them out"
        )
