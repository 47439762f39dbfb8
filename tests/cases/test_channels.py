"""Images of other channels than RGB, of more than 8 bits or floats: from training to ONNX."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

import notan
from notan.auto.look import take_fingerprint
from notan.cli.main import main
from notan.config import Data, Pretrain, load_run
from notan.data.samples import Sample, Source
from notan.errors import ConfigError, DataError, NotanError, ShapeError
from notan.modelfile.card import read_card
from notan.modelfile.preprocess import Preprocessor
from notan.models.base import encoder_of
from notan.models.encoder_weights import read_weights, save_encoder
from notan.models.encoders import build_encoder
from notan.models.unet import UNet
from notan.prediction.backends import TorchBackend
from notan.prediction.inputs import Found
from notan.prediction.items import items_of
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import PixelsInMemory, Tiling
from notan.pretraining.masked_images import find_images
from notan.training import train
from notan.training.build import prepare
from runs import TINY, add_little
from video_files import write_video

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


WAYS: dict[str, tuple[Any, Any, dict[str, object]]] = {
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


@pytest.fixture
def four() -> Predictor:
    """A network of four channels that has learned nothing."""
    torch.manual_seed(5)
    network = UNet(width=2, channels=4)
    quarter = (0.25,) * 4
    preprocessor = Preprocessor(image_size=None, channels=4, mean=quarter, std=quarter)
    return Predictor(TorchBackend(network), preprocessor, tiling=Tiling(input_size=(64, 64)))


def test_arrays_tensors_files_and_tiles_of_four_channels_give_one_answer(
    four: Predictor, tmp_path: Path
) -> None:
    stack = bytes_of(drawn(3)[0])
    as_tiff(tmp_path / "a", stack)
    as_npy(tmp_path / "a", stack)
    as_rgba(tmp_path / "a", stack)
    expected = four(stack).probability
    assert expected.shape == (SIZE, SIZE)
    things: list[Any] = [tmp_path / name for name in ("a.tif", "a.npy", "a.png")]
    things += [(tmp_path / "a.npy").read_bytes(), Image.fromarray(stack), torch.tensor(stack)]
    things += [torch.tensor(stack.transpose(2, 0, 1)) / 255]
    for thing in things:
        np.testing.assert_array_equal(four(thing).probability, expected)
    large = np.tile(stack, (4, 4, 1))
    whole, tiled = four(large).probability, four.predict_bands(PixelsInMemory(large))
    assert np.concatenate([*tiled]).shape == whole.shape


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_another_number_of_channels_is_refused_and_the_wanted_one_named(
    four: Predictor, tmp_path: Path, channels: int
) -> None:
    stack = bytes_of(drawn(3, channels)[0])
    as_npy(tmp_path / "a", stack)
    counted = "1 channel" if channels == 1 else f"{channels} channels"
    with pytest.raises(DataError, match=rf"a\.npy: has {counted}; 4 wanted"):
        four(tmp_path / "a.npy")
    for thing in (stack, torch.tensor(stack)):
        with pytest.raises(ShapeError, match=r"\(height, width, 4\) is wanted"):
            four(thing)
    with pytest.raises(ShapeError, match=r"\(height, width, 4\) is wanted"):
        next(four.predict_many([stack]))
    (item,) = items_of(Found("a", tmp_path / "a.npy"), reading=four.preprocessor.reading)
    with pytest.raises(DataError, match="4 wanted"):
        item.read()


def test_a_video_has_three_channels(four: Predictor, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.avi")
    (item,) = items_of(Found("clip", video), reading=four.preprocessor.reading)
    with pytest.raises(DataError, match=r"clip\.avi: has 3 channels; 4 wanted"):
        item.read()


def test_images_of_the_users_own_bring_their_channels(tmp_path: Path) -> None:
    training, validation = OwnStacks(range(6)), OwnStacks(range(6, 9))
    run = load_run(flags=TINY)
    result = train(run, out=tmp_path / "run", training=training, validation=validation)
    preprocess = read_card(result.checkpoint).preprocess
    assert preprocess.channels == len(preprocess.mean) == 2
    assert Predictor.load(result.checkpoint)(training[0].image).mask.shape == (SIZE, SIZE)
    refused = load_run(flags={**TINY, "data.channels": 4})
    with pytest.raises(ConfigError, match=r"data\.channels = 4, and the first .* has 2"):
        train(refused, out=tmp_path / "no", training=training, validation=validation)


class OwnStacks(Source):
    """Images of two channels that lie in no folder."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    @property
    def names(self) -> list[str]:
        return [str(number) for number in self.numbers]

    def __getitem__(self, index: int) -> Sample:
        stack, mask = drawn(self.numbers[index], 2)
        return Sample(self.names[index], bytes_of(stack), mask)


def test_one_channel_alone_is_asked_for_and_pretrained_encoders_take_it(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", as_tiff, lambda stack: bytes_of(stack)[..., -1])
    run = load_run(
        flags={
            **TINY,
            "data.path": data,
            "data.channels": 1,
            "preprocess.image_size": 32,
            "model.name": "unet",
            "model.encoder": "efficientnet_lite0",
        }
    )
    assert next(iter(prepare(run).training_batches)).images.shape[1] == 1
    name, path = "efficientnet_lite0", tmp_path / "colours.safetensors"
    save_encoder(path, name, build_encoder(name))
    begun = run.train.model_copy(update={"encoder_weights": path})
    encoder = encoder_of(prepare(run.model_copy(update={"train": begun})).model)
    assert encoder
    weight = encoder.state_dict()["stem.conv.weight"]
    learned = read_weights(path).weights["stem.conv.weight"]
    torch.testing.assert_close(weight.cpu(), learned.sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preprocess.mean": [0.5, 0.5, 0.5]}, r"preprocess\.mean has 3 values, .* 4 channels"),
        ({"preprocess.std": [0.5]}, r"preprocess\.std has 1 values, and the images 4 channels"),
        ({"data.channels": 3}, r"can be read as 4 channels; data\.channels = 3 was asked for"),
    ],
)
def test_settings_of_another_number_of_channels_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    data = folder_of(tmp_path / "data", as_npy, bytes_of, count=6)
    with pytest.raises(NotanError, match=words):
        prepare(load_run(flags={**TINY, **settings, "data.path": data}))


def test_auto_and_images_without_masks_see_all_channels(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", as_npy, floats, count=9)
    assert take_fingerprint(Data(path=data), seed=0).size == (SIZE, SIZE)
    unlabelled = data / "train" / "images"
    run = load_run(flags={**TINY, "data.path": data, "train.unlabelled": unlabelled})
    assert prepare(run).data_card.unlabelled_images == 6
    with pytest.raises(DataError, match="4 channels; an encoder learns without masks from grey or"):
        find_images(Pretrain(path=data))


def test_pretraining_reads_bits_as_training_does(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", as_tiff, lambda stack: twelve_bits(stack)[..., 0], count=6)
    source, _ = find_images(Pretrain(path=data))
    assert source.images.white == 4095
    assert source[0].image.max() > 200
    card = prepare(load_run(flags={**TINY, "data.path": data})).preprocessor
    assert card.reading == source.images


def test_predict_says_once_what_it_chose(
    tmp_path: Path, default_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    stack = bytes_of(drawn(1)[0])
    for name in "ab":
        as_rgba(folder / name, stack)
    as_tiff(folder / "deep", twelve_bits(drawn(1)[0])[..., 0])
    tifffile.imwrite(folder / "stack.tif", stack.transpose(2, 0, 1), photometric="minisblack")
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.INFO, "notan"):
        main(["predict", str(folder), "--model", str(default_model), "--out", str(tmp_path / "o")])
    said = [record.message for record in caplog.records if record.message.startswith("images: ")]
    assert said == [
        "images: transparency, which is dropped (2)",
        "images: more than 8 bits: integers within 0..65535, floats within 0..1 or 0..255 (1)",
        "images: several pages or frames; the first is read (1)",
        "images: pages of a TIFF, each an image of its own (4)",
    ]
