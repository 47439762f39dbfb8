"""Compare how quickly images come ready for a step: ours, Albumentations and torchvision v2.

Run by hand: OMP_NUM_THREADS=1 python benchmarks/data_path.py oxford-iiit-pet
Every way reads the same files (Oxford-IIIT Pet layout), varies image and mask by the same kind of
augmentation (flip, zoom, shift, rotation, resized crop, brightness and contrast, and holes where
the library has them), and ends with normalised float32 tensors at --size, in this one process. They
take turns of --images images. "Cached" is data.cache: what was decoded once stays decoded. Two rows
show the limit: what OpenCV takes for the area means and warps alone, and for decoding alone, which
no code around them can do without.
Albumentations and torchvision are asked for by this comparison alone.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image

from notan.config import load_run
from notan.data.folders import open_split
from notan.data.transforms import build_geometry
from notan.training.build import prepare
from results import spread, take_turns, timed, version_of, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[], object]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MISSING = "not installed: pip install {}"


def settings(asked: argparse.Namespace, cache: str) -> dict[str, object]:
    """Return the settings of our ways."""
    given: dict[str, object] = {
        "data.path": asked.data,
        "data.limit": asked.images,
        "data.workers": 0,
        "preprocess.image_size": asked.size,
        "model.width": 2,
        "train.batch_size": asked.batch,
    }
    return given | {"data.cache": cache}


def ours(asked: argparse.Namespace, cache: str) -> Way:
    """Return what reads an epoch as a training does."""
    loader = prepare(load_run(flags=settings(asked, cache))).training_batches
    epochs = iter(range(1, 1_000_000))

    def read() -> None:
        loader.set_epoch(next(epochs))
        for batch in loader:
            assert batch.images.shape[1] == 3  # noqa: S101

    return read


def warps_alone(asked: argparse.Namespace) -> Way:
    """Return what warps the decoded images and masks of an epoch, and does nothing else."""
    run = load_run(flags=settings(asked, "off"))
    source = open_split(run.data, "train", seed=0)
    samples = [source[index] for index in range(asked.images)]
    geometry = build_geometry(run.augment, prepare(run).preprocessor.fit)
    rng = np.random.default_rng(0)
    drawn = [geometry.draw(rng, sample.size) for sample in samples]
    return lambda: [geometry.apply(*pair) for pair in zip(samples, drawn, strict=True)]


def decoding_alone(files: list[tuple[Path, Path]]) -> Way:
    """Return what has OpenCV decode the files of an epoch, and does nothing else."""
    read: Any = cv2.imread
    return lambda: [read(str(file), cv2.IMREAD_UNCHANGED) for pair in files for file in pair]


def albumentations_way(asked: argparse.Namespace, files: list[tuple[Path, Path]]) -> Way:
    """Return what reads and varies with Albumentations, as its documentation does it."""
    import albumentations as library  # type: ignore[import-not-found, unused-ignore]
    from albumentations.pytorch import (  # type: ignore[import-not-found, unused-ignore]
        ToTensorV2,
    )

    size = (asked.size, asked.size)
    varied = library.Compose(
        [
            library.RandomScale(0.2, p=0.5),
            library.HorizontalFlip(p=0.5),
            library.Affine(
                scale=(0.8, 1.2),
                translate_percent=(-0.1, 0.1),
                rotate=(-30, 30),
                border_mode=cv2.BORDER_REFLECT_101,  # as for the trimap
                p=1.0,
            ),
            library.RandomResizedCrop(size, scale=(0.8, 1.0), p=0.5),
            library.Resize(*size),
            library.RandomBrightnessContrast(0.2, 0.2, p=0.5),
            library.GridDropout(ratio=0.3, p=0.5),
            library.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )

    def one(image: Path, mask: Path) -> tuple[torch.Tensor, torch.Tensor]:
        read: Any = cv2.imread
        pixels = cv2.cvtColor(read(str(image)), cv2.COLOR_BGR2RGB)
        truth = (read(str(mask), cv2.IMREAD_UNCHANGED) != 2).astype(np.uint8)
        made = varied(image=pixels, mask=truth)
        return made["image"], made["mask"][None].float()

    return partial(in_batches, one, files, asked.batch)


def torchvision_way(asked: argparse.Namespace, files: list[tuple[Path, Path]]) -> Way:
    """Return what reads and varies with torchvision's transforms v2."""
    import_beside_cpu_torch()
    from torchvision import tv_tensors  # type: ignore[import-not-found, unused-ignore]
    from torchvision.transforms import v2  # type: ignore[import-not-found, unused-ignore]

    varied = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomAffine(30, translate=(0.1, 0.1), scale=(0.8, 1.2)),
            v2.RandomResizedCrop(asked.size, scale=(0.8, 1.0)),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def one(image: Path, mask: Path) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(image) as opened:
            pixels = tv_tensors.Image(opened.convert("RGB"))
        with Image.open(mask) as opened:
            truth = tv_tensors.Mask(torch.from_numpy(np.array(opened) != 2)[None].to(torch.uint8))
        made: tuple[torch.Tensor, torch.Tensor] = varied(pixels, truth)
        return made[0], made[1].float()

    return partial(in_batches, one, files, asked.batch)


KEPT: list[object] = []
"""A library of operators is gone with the last reference to it."""


def import_beside_cpu_torch() -> None:
    """Let torchvision be imported whose wheel was made for CUDA: it lacks its own operators then.

    It refers to two of them while it is imported, and neither this comparison nor timm calls them.
    """
    if torch.version.cuda is None and not KEPT:
        library: Any = torch.library
        library = library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


def in_batches(
    one: Callable[[Path, Path], tuple[torch.Tensor, torch.Tensor]],
    files: list[tuple[Path, Path]],
    size: int,
) -> None:
    """Read all files, in batches."""
    for first in range(0, len(files), size):
        images, masks = zip(*(one(*pair) for pair in files[first : first + size]), strict=True)
        torch.stack(images)
        torch.stack(masks)


def main() -> None:
    """Let the ways take turns; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder in the layout of the Oxford-IIIT Pets")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    cv2.setNumThreads(torch.get_num_threads())
    run = load_run(flags=settings(asked, "off"))
    names = open_split(run.data, "train", seed=0).names[: asked.images]
    stems = [Path(name).stem for name in names]
    files = [
        (asked.data / "images" / f"{stem}.jpg", asked.data / "annotations/trimaps" / f"{stem}.png")
        for stem in stems
    ]
    ways: dict[str, Way] = {
        "notan, each file decoded in each epoch": ours(asked, "off"),
        "notan, decoded once (data.cache=memory)": ours(asked, "memory"),
        "the limit: OpenCV's area means and warps alone": warps_alone(asked),
        "the limit: OpenCV's decoding alone": decoding_alone(files),
    }
    missing = []
    peers: dict[str, Callable[..., Way]] = {
        "albumentations": albumentations_way,
        "torchvision": torchvision_way,
    }
    for package, make in peers.items():
        try:
            ways[f"{package} {version_of(package)}"] = make(asked, files)
        except ModuleNotFoundError:
            missing.append({"way": package, "images a second": MISSING.format(package)})
        except (ImportError, RuntimeError) as error:
            missing.append({"way": package, "images a second": f"does not import: {error}"})
    found = take_turns({name: timed(way) for name, way in ways.items()}, rounds=asked.rounds)
    peer = next((name for name in found if name.startswith("albumentations")), None)
    rows: list[dict[str, Any]] = []
    for name, times in found.items():
        row: dict[str, Any] = {"way": name}
        row["images a second"] = spread(times).per_second(len(files))
        if peer:
            pairs = zip(found[peer], times, strict=True)
            row["times Albumentations"] = spread([one / own for one, own in pairs])
        rows.append(row)
    write_results(
        "data_path",
        f"Images ready for a step a second, at {asked.size}x{asked.size}, in one process",
        [*rows, *missing],
        [
            f"{len(files)} images and trimaps of the Oxford-IIIT Pets in batches of {asked.batch}.",
            "The ratios are of neighbours in time. torchvision has no grid dropout, so its way "
            "makes no holes.",
        ],
    )


if __name__ == "__main__":
    main()
