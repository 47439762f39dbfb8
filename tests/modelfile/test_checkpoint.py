"""One safe file: what goes in comes out, and everything else is refused in words."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

import notan
from notan.config import Model
from notan.errors import CheckpointError, StorageError
from notan.modelfile.card import (
    FORMAT,
    KEY,
    Checkpoint,
    load_checkpoint,
    read_card,
    save_checkpoint,
)
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.safetensors import hash_weights
from notan.models.build import build_model
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run

WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked here")

sys.meta_path.insert(0, NoTorch())
import notan.config, notan.errors, notan.modelfile.preprocess, notan.metrics, notan.io.images
import notan.prediction.predictor
from pathlib import Path
from notan.modelfile.card import read_card
print(read_card(Path(sys.argv[1])).model_class, "torch" in sys.modules)
"""


class Trap:
    """A pickle of this touches a file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Tiny(nn.Module):
    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images)
        return logits


def with_card(
    checkpoint: Path, path: Path, changes: dict[str, object], without: tuple[str, ...] = ()
) -> Path:
    """Copy a checkpoint with some fields of its card changed or left out."""
    fields = json.loads(read_card(checkpoint).model_dump_json()) | changes
    card = json.dumps({name: value for name, value in fields.items() if name not in without})
    save_file(load_file(checkpoint), path, metadata={KEY: card})
    return path


def test_what_was_saved_is_loaded(small_checkpoint: Path, tmp_path: Path) -> None:
    first = load_checkpoint(small_checkpoint)
    save_checkpoint(tmp_path / "copy.safetensors", first)
    again = load_checkpoint(tmp_path / "copy.safetensors")
    assert again.card == first.card
    assert again.weights.keys() == first.weights.keys()
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, again.weights[name])


def test_the_same_model_is_the_same_bytes(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint, files = load_checkpoint(small_checkpoint), set()
    for number in range(8):  # an order of chance would show in one of two
        save_checkpoint(tmp_path / str(number), checkpoint)
        files.add((tmp_path / str(number)).read_bytes())
    assert len(files) == 1
    (content,) = files
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0  # as readers that map it want


def test_the_card_says_what_the_model_is_and_where_it_comes_from(
    small_checkpoint: Path, small_run: Run
) -> None:
    card = read_card(small_checkpoint)
    assert card.format == FORMAT
    assert card.model == small_run.model
    assert card.model_class == "UNet"
    assert card.run == small_run
    assert card.preprocess.image_size == (32, 32)
    assert card.preprocess.stride == 16
    assert card.trimap_border is None
    assert card.postprocessing != Postprocessing()  # validation has chosen
    assert card.postprocessing.review_below is not None
    assert card.choices[-1] == "6 images are too few to try other postprocessing"
    assert 1 <= card.epoch <= small_run.train.epochs
    assert set(card.scores) == {"dice", "iou", "plain_dice", "held_out_dice"}
    assert (card.data.layout, card.data.training_images) == ("folder", 24)
    assert card.data.validation_images == 6
    assert card.data.validation_names is None
    assert card.data.training_fingerprint != card.data.validation_fingerprint
    assert card.versions == {
        "notan": notan.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert card.sha256 == hash_weights(load_file(small_checkpoint))


def test_the_card_is_read_without_torch(small_checkpoint: Path) -> None:
    """So is everything that an ONNX model needs on a machine without torch."""
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(small_checkpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.stderr, answer.stdout) == ("", "UNet False\n")


def test_any_safetensors_reader_reads_the_weights(small_checkpoint: Path) -> None:
    weights = load_file(small_checkpoint)
    assert weights.keys() == build_model(Model(width=4)).state_dict().keys()
    assert hash_weights(weights) == read_card(small_checkpoint).sha256


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_one_flipped_bit_in_the_weights_is_noticed(
    small_checkpoint: Path, tmp_path: Path, place: float
) -> None:
    content = bytearray(small_checkpoint.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - start))] ^= 1
    path = tmp_path / "worn.safetensors"
    path.write_bytes(content)
    assert read_card(path) == read_card(small_checkpoint)
    with pytest.raises(CheckpointError, match=r"worn\.safetensors: the weights are not those"):
        load_checkpoint(path)


def test_a_file_cut_short_anywhere_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    content = small_checkpoint.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    places = {*range(10), start // 2, start - 1, start, start + 1, len(content) - 1}
    places |= {int(place) for place in np.linspace(0, len(content) - 1, 60)}
    path = tmp_path / "cut.safetensors"
    for place in sorted(places):
        path.write_bytes(content[:place])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: "):
            load_checkpoint(path)


def test_a_file_with_something_behind_its_end_is_refused(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(small_checkpoint.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="the weights cannot be read"):
        load_checkpoint(path)


def test_weights_of_somebody_else_are_said_to_have_no_card(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save({"w": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: weights without a notan"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_a_card_of_another_format_says_so(
    small_checkpoint: Path, tmp_path: Path, version: int
) -> None:
    path = with_card(
        small_checkpoint, tmp_path / "new.safetensors", {"format": version, "odd": "news"}
    )
    with pytest.raises(
        CheckpointError, match=r"card format \d; notan .* reads 2: .*newer notan, or before"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [{"odd": 1}, {"postprocessing": {"threshold": "high"}}, {"model": 7}, {"format": "x"}],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(
    small_checkpoint: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    path = with_card(small_checkpoint, tmp_path / "odd.safetensors", changes)
    with pytest.raises(CheckpointError, match="the card cannot be read") as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("card", ["no JSON", "[]", "null", "3", "[" * 100_000])
def test_a_card_that_is_no_card_is_refused(tmp_path: Path, card: str) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(save({"w": torch.zeros(2)}, metadata={KEY: card}))
    with pytest.raises(CheckpointError, match="the card cannot be read"):
        read_card(path)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickled_module_is_not_opened(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(Tiny(), path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match=r"model\.pth: this is a PyTorch pickle.*not opened"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pth", "best.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_trap_in_a_pickle_is_not_sprung(tmp_path: Path, name: str, protocol: int) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    path.write_bytes(pickle.dumps(Trap(canary), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"a notan \.safetensors file is wanted"):
        load_checkpoint(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 - that the trap would have worked
    assert canary.exists()


@pytest.mark.parametrize(
    "content", [b"", b"seven b", b"just some text, no model at all\n", b"\x89PNG\r\n\x1a\n" * 40]
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"notes\.txt: not a safetensors file, or a damaged"):
        read_card(path)


@pytest.mark.parametrize(
    "header", [b"{", b"[1]", b"\xff\xfe", b"{}", b'{"__metadata__": 3}', b"[" * 99_999]
)
def test_a_header_that_is_no_safetensors_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: "):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_say_what_a_model_file_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(CheckpointError, match=r"no such model file; .* RUN/best\.safetensors"):
            load_checkpoint(path)


def test_weights_of_another_network_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    wider = {"name": "unet", "width": 8, "residual": "standard"}
    path = with_card(small_checkpoint, tmp_path / "wide.safetensors", {"model": wider})
    with pytest.raises(CheckpointError, match="the weights do not fit UNet") as caught:
        Predictor.load(path)
    assert "\n" not in str(caught.value)


def test_a_class_of_the_users_own_needs_an_instance(small_checkpoint: Path, tmp_path: Path) -> None:
    card = read_card(small_checkpoint).model_copy(update={"model": None, "model_class": "Tiny"})
    path, tiny = tmp_path / "own.safetensors", Tiny()
    save_checkpoint(path, Checkpoint(card, tiny.state_dict()))
    with pytest.raises(CheckpointError, match=r"Tiny, a class of your own.*network=Tiny\)"):
        Predictor.load(path)
    fresh = Tiny()
    Predictor.load(path, model=fresh)
    assert torch.equal(fresh.layer.weight, tiny.layer.weight)
    with pytest.raises(CheckpointError, match="of the class Tiny, and the one given is UNet"):
        Predictor.load(path, model=build_model(Model(width=4)))


def test_tensors_of_any_type_layout_and_shape_survive(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    shared = torch.randn(4, 3)
    weights = {
        "half": torch.randn(3).to(torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "turned": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "tied": shared,
        "tied too": shared,
    }
    path = tmp_path / "any.safetensors"
    save_checkpoint(path, Checkpoint(read_card(small_checkpoint), weights))
    loaded = load_checkpoint(path).weights
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_the_hash_knows_names_shapes_types_and_values_but_no_order() -> None:
    one, two = torch.arange(6.0), torch.ones(2)
    base = hash_weights({"a": one, "b": two})
    assert base == hash_weights({"b": two, "a": one})
    others = [
        {"a": two, "b": one},
        {"a": one.reshape(2, 3), "b": two},
        {"a": one, "b": two.view(torch.int32)},
        {"a": one + 1, "b": two},
        {"a": one},
    ]
    assert len({base, *map(hash_weights, others)}) == 6


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, path = load_checkpoint(small_checkpoint), tmp_path / "best.safetensors"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"best\.safetensors: .*No space left"):
        save_checkpoint(path, Checkpoint(checkpoint.card, {"w": torch.ones(9)}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
