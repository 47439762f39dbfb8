"""Images of other channels than RGB, of more than 8 bits or floats: from training to ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

import notan
from notan.cli.main import main
from notan.config import load_run
from notan.modelfile.card import read_card
from notan.training import train
from runs import TINY, add_little

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

add_little()
SIZE = 24
LEARNING = {**TINY, "model.width": 8, "preprocess.image_size": SIZE, "train.epochs": 40}
LEARNING |= {"train.batch_size": 4, "train.learning_rate": 0.02, "augment.enabled": False}

Stack = npt.NDArray[np.float64]


def drawn(number: int, channels: int = 4) -> tuple[Stack, npt.NDArray[np.bool_]]:
    """Return channels of noise, 0..1, of which the last is brighter on a disc, and the disc."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    down, across = rng.uniform(7, SIZE - 7, 2)
    mask = np.hypot(rows - down, columns - across) < 5
    stack = rng.uniform(0, 1, (SIZE, SIZE, channels))
    stack[..., -1] = np.where(mask, 0.9, 0.1) + stack[..., -1] / 10
    return stack, mask


def as_tiff(path: Path, values: npt.NDArray[Any]) -> None:
    """Write channels side by side, as grey ones."""
    tifffile.imwrite(
        path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig"
    )


def as_pages(path: Path, values: npt.NDArray[Any]) -> None:
    """Write channels as ImageJ does: a page each, and a note that they are channels."""
    pages = np.ascontiguousarray(values.transpose(2, 0, 1))
    tifffile.imwrite(path.with_suffix(".tif"), pages, imagej=True, metadata={"axes": "CYX"})


def as_npy(path: Path, values: npt.NDArray[Any]) -> None:
    np.save(path.with_suffix(".npy"), values)


def as_npy_channels_first(path: Path, values: npt.NDArray[Any]) -> None:
    np.save(path.with_suffix(".npy"), values.transpose(2, 0, 1))


def as_rgba(path: Path, values: npt.NDArray[Any]) -> None:
    Image.fromarray(values).save(path.with_suffix(".png"))


def folder_of(
    folder: Path,
    write: Callable[[Path, npt.NDArray[Any]], None],
    scale: Callable[[Stack], npt.NDArray[Any]],
    *,
    count: int = 12,
    channels: int = 4,
) -> Path:
    """Write a data folder with a part to train on and one to validate on."""
    for number in range(count):
        part = folder / ("train" if number % 3 else "val")
        for kind in ("images", "masks"):
            (part / kind).mkdir(parents=True, exist_ok=True)
        stack, mask = drawn(number, channels)
        write(part / "images" / f"p{number:02d}", scale(stack))
        Image.fromarray(mask).save(part / "masks" / f"p{number:02d}.png")
    return folder


def bytes_of(stack: Stack) -> npt.NDArray[Any]:
    return (stack * 255).astype(np.uint8)


def twelve_bits(stack: Stack) -> npt.NDArray[Any]:
    return (stack * 4000).astype(np.uint16)


def floats(stack: Stack) -> npt.NDArray[Any]:
    """Return values around 0, and the last channel on a scale a thousand times as small."""
    return ((stack - 0.3) * [900, 900, 900, 0.9]).astype(np.float32)


WAYS = {
    "tiff": (as_tiff, twelve_bits, {}),
    "npy": (as_npy, floats, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_fourth_channel_alone_tells_foreground_up_to_the_onnx_model(
    tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write, scale, settings = WAYS[way]
    data = folder_of(tmp_path / "data", write, scale)
    run = load_run(flags={**LEARNING, **settings, "data.path": data})
    checkpoint = train(run, out=tmp_path / "run").checkpoint
    card = read_card(checkpoint)
    assert card.preprocess.channels == 4
    assert len(card.preprocess.mean) == len(card.preprocess.std) == 4
    score = notan.evaluate(checkpoint, data, split="val")
    assert score.mean_dice > 0.9
    exported = notan.export(checkpoint)
    images = data / "val" / "images"
    for model in (checkpoint, exported):
        out = tmp_path / model.suffix[1:]
        main(["predict", str(images), "--model", str(model), "--out", str(out)])
    capsys.readouterr()
    masks = sorted((tmp_path / "safetensors" / "masks").iterdir())
    assert len(masks) == 4
    for path in masks:
        ours = np.asarray(Image.open(path))
        np.testing.assert_array_equal(
            ours, np.asarray(Image.open(tmp_path / "onnx" / "masks" / path.name))
        )
        truth = np.asarray(Image.open(data / "val" / "masks" / path.name))
        assert (ours > 0)[truth > 0].mean() > 0.8
