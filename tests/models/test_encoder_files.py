"""Files of weights: what was saved comes back, and what is no weights is refused in one line."""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from notan.errors import CheckpointError
from notan.models.encoder_weights import read_weights, save_encoder
from notan.models.encoders import build_encoder

if TYPE_CHECKING:
    from pathlib import Path


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_an_encoder_comes_back_with_its_name_and_its_origin(tmp_path: Path) -> None:
    encoder, path = build_encoder("efficientnet_lite0"), tmp_path / "encoder.safetensors"
    save_encoder(path, "efficientnet_lite0", encoder, origin="300 images without masks")
    found = read_weights(path)
    assert found.encoder == "efficientnet_lite0"
    assert found.origin == "300 images without masks"
    assert len(found.sha256) == 64
    state = encoder.state_dict()
    assert found.weights.keys() == state.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in state.items())


def test_an_encoder_knows_its_images_and_a_file_that_garbles_them_is_refused(
    tmp_path: Path,
) -> None:
    encoder, path = build_encoder("efficientnet_lite0"), tmp_path / "encoder.safetensors"
    images = {"unlabelled_hashes": ("0123456789ab", "ba9876543210")}
    save_encoder(path, "efficientnet_lite0", encoder, images=images)
    assert read_weights(path).images == images
    save_encoder(path, "efficientnet_lite0", encoder)
    assert read_weights(path).images == {}
    for garbled in ("[1, 2]", "{", '{"unlabelled_hashes": 3}'):
        save_file(encoder.state_dict(), path, {"notan-encoder-images": garbled})
        with pytest.raises(CheckpointError, match="what the file says of its images cannot be"):
            read_weights(path).images  # noqa: B018 - asking is the test


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_either_age_of_pytorch_is_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    weights = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert torch.equal(found.weights["conv.weight"], weights["conv.weight"])
    assert found.encoder is None
    assert found.origin == ""


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>not found</html>", b"weights", b"\x00" * 64]
)
def test_what_is_no_file_of_weights_is_refused_with_its_beginning(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert f"not a file of weights (it begins with {content[:16]!r})" in message
    assert "give a .safetensors file" in message


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_file_that_was_cut_short_says_so(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_encoder(path, "efficientnet_lite0", build_encoder("efficientnet_lite0"))
    else:
        weights = {"conv.weight": torch.ones(1000)}
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "damaged or cut short; use another copy" in refusal(path)


@pytest.mark.parametrize("wrapped", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_not_opened(tmp_path: Path, wrapped: str) -> None:
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    content = {"conv.weight": Canary(canary)}
    if wrapped == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = refusal(path)
    assert "could run any code when opened, so it is not opened" in message
    assert "torch.save(network.state_dict(), FILE)" in message
    assert not canary.exists()
    if wrapped == "torch":
        assert "system" in message


def test_a_whole_module_is_not_opened_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    assert "more than weights (torch.nn.modules.linear.Linear)" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list, and a state dict is wanted"),
        ({}, "holds a dict, and a state dict is wanted"),
        ({"epoch": 3}, "'epoch' is a int, and a state dict of tensors alone is wanted"),
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict' is a dict, and a state dict of"),
        ({3: torch.ones(1)}, "3 is a Tensor, and a state dict of tensors alone"),
    ],
)
def test_anything_but_a_plain_state_dict_says_what_it_is(
    tmp_path: Path, content: object, words: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert words in refusal(path)


def test_an_archive_of_other_things_is_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    assert "cannot be read as weights" in refusal(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "there is no such file of weights" in refusal(tmp_path / "gone.pth")
    assert "Is a directory" in refusal(tmp_path)
