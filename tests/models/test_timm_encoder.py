"""Networks of timm go under the U-Net as our own encoders do, or are refused in one line."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from notan.config import Model
from notan.errors import CheckpointError, ConfigError, MissingExtraError, StoppedBySignal
from notan.modelfile.card import load_checkpoint
from notan.models.base import encoder_of
from notan.models.blocks import MOMENTUM
from notan.models.build import build_model
from notan.models.encoder_weights import fit_inputs, save_encoder
from notan.models.encoders import build_encoder
from notan.models.timm_encoder import TimmEncoder
from notan.prediction.predictor import Predictor
from notan.training.build import TrainingSetup, prepare
from notan.training.optim import parameter_groups
from notan.training.trainer import Trainer
from runs import TRAINING, VALIDATION, ask_to_stop, before_step, resume_own, tiny, train_own
from stand_in_timm import CHANNELS, HALF, LEARNED, Shelf, fake_timm, full_weights

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from notan.config import Run
    from notan.models.base import Encoder

STRIDES = (2, 4, 8, 16, 32)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """timm, as far as the encoder needs it."""
    shelf = Shelf()
    monkeypatch.setitem(sys.modules, "timm", fake_timm(shelf))
    return shelf


needs_stand_ins = pytest.mark.usefixtures("shelf")


def on(encoder: str, **flags: object) -> Run:
    return tiny(model__encoder=encoder, preprocess__image_size=32, **flags)


def parts_of(run: Run) -> TrainingSetup:
    return prepare(run, training=TRAINING, validation=VALIDATION)


def encoder_in(parts: TrainingSetup) -> Encoder:
    encoder = encoder_of(parts.model)
    assert encoder is not None
    return encoder


def keeps_the_contract(name: str) -> None:
    encoder = build_encoder(name)
    features = encoder(torch.randn(2, 3, 64, 96))
    assert [each.shape for each in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    paces = {each.momentum for each in encoder.modules() if isinstance(each, nn.BatchNorm2d)}
    assert paces <= {MOMENTUM}, "as those of notan's own encoders"
    staged = [
        {weight for module in stage for weight in module.parameters()} for stage in encoder.stages()
    ]
    assert len(staged) == len(encoder.strides)
    assert sum(map(len, staged)) == len(set().union(*staged)) == len(list(encoder.parameters()))
    model = build_model(Model(encoder=name, width=1)).eval()
    for size in ((32, 32), (64, 96), (160, 32)):
        assert model(torch.randn(1, 3, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("name", ["timm:tiny", "timm:tiny.made_up", "timm:late"])
def test_a_network_of_timm_goes_under_the_unet(shelf: Shelf, name: str) -> None:
    keeps_the_contract(name)
    late = "late" in name
    encoder = build_encoder(name)
    assert encoder.strides == (STRIDES[1:] if late else STRIDES)
    assert encoder.channels == (CHANNELS[:4] if late else CHANNELS)
    assert not any(pretrained for _, pretrained in shelf.asked)


def import_torchvision() -> None:
    """Import torchvision, which timm needs.

    Its wheel of the plain index is made for CUDA: beside a CPU torch its compiled operators do not
    load, and it fails where it registers their fake kernels. With the schemas of these two declared
    first it imports, and timm uses neither.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _KEPT.append(library)  # its schemas go with it
        importlib.import_module("torchvision")


_KEPT: list[object] = []


@pytest.fixture(scope="session")
def real_timm() -> ModuleType:
    """timm itself."""
    try:
        import_torchvision()
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported here: {error}")


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "mobilenetv3_small_100", "regnety_002"]
)
def test_timm_itself_keeps_the_contract(real_timm: ModuleType, name: str) -> None:
    keeps_the_contract(f"timm:{name}")
    encoder = build_encoder(f"timm:{name}")
    told = real_timm.create_model(name, features_only=True, pretrained=False)
    assert encoder.channels == tuple(told.feature_info.channels())
    assert encoder.strides == tuple(told.feature_info.reduction())
    assert encoder.mean == told.pretrained_cfg["mean"]
    assert encoder.std == told.pretrained_cfg["std"]


@pytest.mark.usefixtures("real_timm")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timms_transformers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a convolutional network with maps at strides"):
        build_encoder(f"timm:{name}")


def test_a_whole_network_of_timm_fills_the_encoder(real_timm: ModuleType, tmp_path: Path) -> None:
    whole = real_timm.create_model("convnext_atto", pretrained=False).state_dict()
    torch.save(whole, tmp_path / "theirs.pth")
    run = on("timm:convnext_atto", train__encoder_weights=tmp_path / "theirs.pth")
    found = encoder_in(parts_of(run)).state_dict()
    name = "stages.3.blocks.0.conv_dw.weight"
    assert torch.equal(found[f"network.{name.replace('stages.', 'stages_')}"], whole[name])


def test_measuring_leaves_no_trace(shelf: Shelf) -> None:
    torch.manual_seed(1)
    wanted = shelf.make("tiny", pretrained=False).state_dict()
    torch.manual_seed(1)
    encoder = build_encoder("timm:tiny")
    encoder.stages()
    assert all(module.training for module in encoder.modules())
    found = encoder.state_dict()
    assert all(torch.equal(found[f"network.{name}"], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flat", r"its feature maps of an image of 64x96 are 4x6, 4x6, 4x6; a convolutional netw"),
        ("short", r"are 32x48, 16x24, 8x12; .* at strides 2, 4, 8, 16, 32, or from 4 on, is want"),
        ("swin", r"its feature maps of an image of 64x96 are "),
        ("vit", r"hands out no feature maps of an image of 64x96 \(Input height \(64\) doesn't m"),
        ("refuses", r"hands out no feature maps .*\(features_only not implemented for this net"),
    ],
)
@needs_stand_ins
def test_a_network_that_cannot_is_refused_with_what_it_has(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^timm:{name}: .*{words}") as caught:
        build_encoder(f"timm:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:tinny", r"'timm:tinny': there is no such encoder; did you mean 'tiny'\?"),
        ("timm:tiny.made_ip", r"did you mean 'tiny.made_up'\?"),
        ("timm:hf-hub:some/body", r"such encoder; timm.list_models\(\) has them all$"),
        ("tmim:tiny", r"those of timm are called timm:NAME$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(shelf: Shelf, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_encoder(name)
    assert not shelf.asked


def test_timm_is_offered_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    wanted = r"an encoder timm:NAME needs timm: pip install 'notan\[timm\]'"
    with pytest.raises(MissingExtraError, match=wanted):
        build_encoder("timm:resnet18")


def test_a_package_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (tmp_path / "timm.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = r"imported \(torchvision::nms does not exist\); .* made for torch .*'notan\[timm\]'$"
    with pytest.raises(MissingExtraError, match=wanted):
        build_encoder("timm:resnet18")


@needs_stand_ins
def test_an_image_reaches_timms_network_as_its_package_says() -> None:
    preprocessor = parts_of(on("timm:tiny")).preprocessor
    assert (preprocessor.mean, preprocessor.std) == (HALF, (0.25, 0.25, 0.25))


INPUTS = {"preprocess__mean": [0.5, 0.5, 0.5], "preprocess__std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:tiny", "timm:tiny, timm 9.8 tiny.made_up"),
        ("timm:tiny.made_up", "timm:tiny.made_up, timm 9.8 tiny.made_up"),
    ],
)
@needs_stand_ins
def test_published_weights_come_through_the_package_and_the_card_says_so(
    name: str, words: str
) -> None:
    parts = parts_of(on(name, train__pretrained=True, **INPUTS))
    assert all((weight == LEARNED).all() for weight in encoder_in(parts).parameters())
    assert parts.card(1, {}).pretrained == words


def test_a_failed_download_is_one_line_with_a_way_out(shelf: Shelf) -> None:
    shelf.offline = True
    wanted = r"cannot be fetched \(cannot reach the hub\); .*huggingface.co/\w.*weights FILE$"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        parts_of(on("timm:tiny", train__pretrained=True))
    assert "\n" not in str(caught.value)


@needs_stand_ins
def test_a_network_without_published_weights_says_so() -> None:
    with pytest.raises(ConfigError, match=r"weights of timm:untaught.*; leave --p"):
        parts_of(on("timm:untaught", train__pretrained=True))


def test_a_model_is_saved_loaded_and_resumed_without_fetching(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on("timm:tiny", train__pretrained=True, train__epochs=2, train__ema_decay=0.9, **INPUTS)
    whole = train_own(run, tmp_path / "whole").checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, tmp_path / "stopped")
    shelf.offline = True
    resumed = load_checkpoint(resume_own(tmp_path / "stopped").checkpoint)
    known = load_checkpoint(whole)
    assert all(torch.equal(resumed.weights[each], known.weights[each]) for each in known.weights)
    assert resumed.card.pretrained == known.card.pretrained
    image = np.random.default_rng(1).integers(0, 255, (21, 33, 3), dtype=np.uint8)
    found = Predictor.load(whole)(image)
    assert found.mask.shape == (21, 33)
    again = Predictor.load(tmp_path / "stopped" / "best.safetensors")(image)
    np.testing.assert_array_equal(found.probability, again.probability)


@needs_stand_ins
def test_a_file_in_timms_own_names_fills_the_encoder(tmp_path: Path) -> None:
    weights = full_weights()
    torch.save(weights, tmp_path / "theirs.pth")
    run = on("timm:tiny", train__encoder_weights=tmp_path / "theirs.pth")
    found = encoder_in(parts_of(run)).state_dict()
    assert torch.equal(found["network.layers_4.0.weight"], weights["layers.4.0.weight"])
    torch.save({**weights, "layers.9.weight": torch.ones(1)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"of timm:tiny: 1 are not of it \('layers.9.weight'"):
        parts_of(run)


@needs_stand_ins
def test_notans_own_file_fills_it_and_names_it(tmp_path: Path) -> None:
    path, encoder = tmp_path / "mine.safetensors", build_encoder("timm:tiny")
    save_encoder(path, "timm:tiny", encoder, origin="leaves")
    found = encoder_in(parts_of(on("timm:tiny", train__encoder_weights=path))).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match=r"weights of timm:tiny, .* --encoder timm:tiny"):
        parts_of(on("timm:tiny_two", train__encoder_weights=path))


@needs_stand_ins
def test_finer_stages_learn_more_slowly() -> None:
    run = on("timm:tiny", train__encoder_lr_multiplier=0.5, train__layer_lr_decay=0.5)
    groups = parameter_groups(parts_of(run).model, run.train)
    assert [group["factor"] for group in groups] == [0.5**power for power in range(5, -1, -1)]


@needs_stand_ins
def test_a_decay_over_stages_that_are_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.layer_lr_decay = 0.5: it is not known which of"):
        parts_of(on("timm:mixed", train__layer_lr_decay=0.5))
    run = on("timm:mixed", train__encoder_lr_multiplier=0.5)
    groups = parameter_groups(parts_of(run).model, run.train)
    assert [group["factor"] for group in groups] == [0.5, 1.0]


@needs_stand_ins
def test_batch_norm_keeps_the_statistics_that_it_came_with(tmp_path: Path) -> None:
    frozen = {"train__freeze_encoder_batchnorm": True, "train__pretrained": True}
    path = train_own(on("timm:tiny", **frozen), tmp_path / "run").checkpoint
    encoder = build_encoder("timm:tiny")
    came = {name: each for name, each in encoder.state_dict().items() if "running" in name}
    weights = load_checkpoint(path).weights
    assert came
    assert all(torch.equal(weights[f"encoder.{name}"], each) for name, each in came.items())


@needs_stand_ins
@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_is_made_for_the_channels_of_the_images(channels: int) -> None:
    network = build_model(Model(encoder="timm:tiny", width=1), channels)
    encoder = encoder_of(network)
    assert isinstance(encoder, TimmEncoder)
    assert network(torch.zeros(1, channels, 64, 96)).shape == (1, 1, 64, 96)
    assert len(encoder.stages()) == len(STRIDES)
    encoder.load_published()
    assert all(bool((weight == LEARNED).all()) for weight in encoder.parameters())


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_our_encoders_first_layer_is_fitted_as_timm_fits_its_own(
    real_timm: ModuleType, channels: int
) -> None:
    weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    theirs = real_timm.models.adapt_input_conv(channels, weight.clone())
    torch.testing.assert_close(fit_inputs(weight, channels), theirs)
    network = build_model(Model(encoder="timm:resnet18", width=1), channels).eval()
    assert network(torch.zeros(1, channels, 64, 64)).shape == (1, 1, 64, 64)
