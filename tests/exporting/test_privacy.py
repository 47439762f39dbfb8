"""An exported file names no folder and no image of the training; its splits work all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import notan
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import DataError
from notan.modelfile.card import read_card
from notan.training import train
from runs import tiny

NET = """
import torch
from torch import nn


class SecretNet(nn.Module):
    stride = 2

    def __init__(self, width, places):
        super().__init__()
        self.down = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(width, 1, 2, stride=2)

    def forward(self, images):
        logits = self.up(torch.relu(self.down(images)))
        return torch.where(logits > 9, logits * 0.5, logits)
"""
WORDS = ("acme-tumours", "patient-", "who-is-who", "confidential", "/scratch")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a telling name, two models trained in it, and their exported files."""
    folder = tmp_path_factory.mktemp("acme-tumours-of-2024")
    data = folder / "patients"
    write_folder(DrawnSource(20, size=(24, 20)), data)
    write_folder(DrawnSource(4, size=(24, 20), first=30), folder / "confidential-unlabelled")
    shutil.rmtree(folder / "confidential-unlabelled" / "masks")
    lines = ["image,who"]
    for number, image in enumerate(sorted((data / "images").iterdir())):
        name = f"patient-{number:03d}-confidential.png"
        image.rename(image.with_name(name))
        mask = data / "masks" / image.name
        mask.rename(mask.with_name(name))
        lines.append(f"{Path(name).stem},{number // 2}")
    (folder / "who-is-who.csv").write_text("\n".join(lines))
    small = {
        "data__path": data,
        "data__group_by": f"{folder / 'who-is-who.csv'}:who",
        "train__epochs": 2,
        "model__name": "unet",
    }
    plain = train(tiny(**small), out=folder / "plain").checkpoint
    unlabelled = folder / "confidential-unlabelled"
    run = tiny(**small, train__unlabelled=unlabelled, train__teacher=plain)
    taught = train(run, out=folder / "taught").checkpoint
    (folder / "confidential.py").write_text(NET)
    class_path = f"{folder / 'confidential.py'}:SecretNet"
    arguments = {"model.arguments.width": 3, "model.arguments.places": "/scratch/patients"}
    own = notan.train(
        data,
        model=class_path,
        image_size=16,
        epochs=1,
        overrides=[f"{name}={value}" for name, value in arguments.items()],
        out=folder / "own",
    ).checkpoint
    for name, model, network in (("taught", taught, None), ("own", own, class_path)):
        notan.export(model, folder / f"{name}.onnx", network=network)
    notan.export(taught, folder / "taught-int8.onnx", precision="int8")
    return folder


@pytest.mark.parametrize("name", ["taught.onnx", "taught-int8.onnx", "own.onnx"])
def test_an_exported_file_holds_no_name_of_a_folder_or_an_image(place: Path, name: str) -> None:
    content = (place / name).read_bytes()
    stems = [path.stem for path in (place / "patients" / "images").iterdir()]
    source = str(Path(notan.__file__).parent)
    told = [
        word
        for word in (*WORDS, *stems, str(place), place.name, str(Path.home()), source, "\\Users")
        if word.encode() in content.replace(b"confidential.py:SecretNet", b"")
    ]
    assert told == []
    kept = (place / name.partition("-")[0].partition(".")[0] / "best.safetensors").read_bytes()
    assert b"acme-tumours" in kept  # so that the test can fail: the owner's own file tells it


def test_settings_that_were_paths_still_tell_runs_apart(place: Path) -> None:
    card = read_card(place / "taught.onnx")
    train_settings = card.run.train
    assert str(train_settings.teacher).startswith("hidden-")
    assert str(train_settings.unlabelled).startswith("hidden-")
    assert train_settings.teacher != train_settings.unlabelled
    assert card.run.data.path is None
    assert card.data.validation_names == ()
    own = read_card(place / "own.onnx")
    assert own.run.model.class_path == "confidential.py:SecretNet"
    assert own.run.model.arguments["width"] == 3


@pytest.mark.parametrize("name", ["taught", "own"])
def test_the_validation_images_are_found_by_their_content(place: Path, name: str) -> None:
    stored = read_card(place / name / "best.safetensors").data.validation_names
    assert stored
    score = notan.evaluate(place / f"{name}.onnx", place / "patients", split="val")
    assert [image.name for image in score.images] == list(stored)
    assert score.rules.seen.startswith("flattering: epoch and threshold were chosen on 2 of 2")
    with pytest.raises(DataError, match="the model was trained on 18 of these 18 images"):
        notan.evaluate(place / f"{name}.onnx", place / "patients", split="train")


def test_a_folder_without_them_is_refused_in_a_line(place: Path, tmp_path: Path) -> None:
    write_folder(DrawnSource(6, size=(24, 20), first=50), tmp_path / "others")
    with pytest.raises(DataError, match=r"of the 2 images that were set aside .* 0 are in this"):
        notan.evaluate(place / "taught.onnx", tmp_path / "others", split="val")
    score = notan.evaluate(place / "taught.onnx", tmp_path / "others", split="all")
    assert len(score.images) == 6


def test_a_checkpoint_is_compared_with_its_exported_file_on_validation_images(
    place: Path,
) -> None:
    for models in ((place / "taught", place / "taught.onnx"), (place / "taught.onnx",) * 2):
        compared = notan.compare(models, data=place / "patients", split="val")
        assert len(compared.images) == 2
        assert compared.pairs[0].agreement > 0.999
