"""Every network keeps the model contract, and has the size and the names it is known by."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from notan.config import Model
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError
from notan.losses import Loss
from notan.modelfile.preprocess import Preprocessor
from notan.models.base import RAREST, Encoder, SegmentationModel, stride_of
from notan.models.blocks import MOMENTUM, AttentionGate, Decoder
from notan.models.build import MODELS, build_model
from notan.models.encoders import ENCODERS, build_encoder
from notan.models.resnet34 import ResidualBlock, ResNet34Encoder
from notan.models.unet import UNet
from notan.prediction.backends import TorchBackend
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.types import Images, Size

NAMES = [*sorted(MODELS), *(f"unet on {name}" for name in sorted(ENCODERS))]
SMALL = 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small lose more by waiting for a second thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model(name: str, width: int = SMALL) -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(settings_of(name, width))


def settings_of(name: str, width: int) -> Model:
    model, _, encoder = name.partition(" on ")
    return Model(name=model, encoder=encoder or None, width=width)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_keep_up_with_the_weights(name: str) -> None:
    network = weightless(settings_of(name, SMALL))
    paces = {each.momentum for each in network.modules() if isinstance(each, _BatchNorm)}
    assert paces == {MOMENTUM}


@pytest.mark.parametrize("share", [0.0, 0.04, 0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_answers_are_as_much_foreground_as_is_expected(name: str, share: float) -> None:
    network = small_model(name)
    with torch.no_grad():
        network.head.weight.zero_()
    network.expect(share)
    found = torch.sigmoid(network.eval()(torch.zeros(1, 3, 64, 64)))
    wanted = min(max(share, RAREST), 1 - RAREST)
    torch.testing.assert_close(found, torch.full_like(found, wanted))


def weightless(model: Model) -> nn.Module:
    with torch.device("meta"):
        return build_model(model)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        (Model(name="unet"), 31_037_633),
        (Model(name="resnet34_unet"), 48_194_497),
        (Model(name="resnet34_unet", residual="report"), 48_198_721),
    ],
)
def test_the_published_networks_have_their_published_size(settings: Model, parameters: int) -> None:
    assert count_parameters(weightless(settings)) == parameters


def test_the_attention_unet_is_the_unet_and_three_gates() -> None:
    def gate(skip: int, coarse: int) -> int:
        to_inner = 4 * skip * skip + coarse * skip + skip
        return to_inner + (skip + 1) + (skip * skip + 2 * skip)

    gates = gate(512, 1024) + gate(256, 512) + gate(128, 256)
    assert count_parameters(weightless(Model(name="attention_unet"))) == 31_037_633 + gates


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_size_of_the_images_and_one_channel(name: str) -> None:
    model = small_model(name).eval()
    (bias,) = (each for key, each in model.named_parameters() if key == "head.bias")
    height, width = model.stride, 2 * model.stride
    with torch.no_grad():
        bias.fill_(-9)  # which no sigmoid behind it leaves below zero
        logits = model(torch.randn(2, 3, height, width))
    assert logits.shape == (2, 1, height, width)
    assert logits.dtype == torch.float32
    assert logits.min() < 0, "these look like probabilities"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_two_is_two_batches_of_one(name: str) -> None:
    model = small_model(name)
    images = torch.randn(2, 3, 128, 64)
    model(images)  # so that batch norm has statistics that are not its first ones
    model.eval()
    with torch.no_grad():
        together = model(images)
        apart = torch.cat([model(images[:1]), model(images[1:])])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def biases_before_batch_norm(model: nn.Module) -> set[str]:
    """Name the biases that the next layer subtracts again.

    Such a bias changes nothing, so its gradient is zero but for rounding: nothing to test.
    """
    return {
        f"{name}.{child}.bias"
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential)
        for (child, layer), (_, following) in itertools.pairwise(module.named_children())
        if isinstance(following, nn.BatchNorm2d) and getattr(layer, "bias", None) is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = small_model(name)
    images = torch.randn(2, 3, 128, 128)
    targets = (torch.rand(2, 1, 128, 128) > 0.5).float()
    value = nn.functional.binary_cross_entropy_with_logits(model(images), targets)
    value.backward()  # type: ignore[no-untyped-call]
    # a bias of a stage that is not handed out meets 1x1 convolutions before batch norm only
    inner = {f"encoder.parts.3.{block}.project.norm.bias" for block in range(4)}
    cancelled = biases_before_batch_norm(model) | inner
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter_name not in cancelled:
            assert parameter.grad.abs().max() > 1e-9, parameter_name


def test_only_steps_up_without_a_skip_have_a_bias_that_batch_norm_cancels() -> None:
    found = {name: biases_before_batch_norm(small_model(name)) for name in NAMES}
    steps = {"resnet34_unet": 2, **{name: 1 for name in NAMES if " on " in name}}
    assert {name: names for name, names in found.items() if names} == {
        name: {f"enlarge.{3 * step}.bias" for step in range(count)} for name, count in steps.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_one_batch_by_heart(name: str) -> None:
    model = small_model(name, width=8)
    preprocessor = Preprocessor(image_size=(32, 32), stride=model.stride)
    samples = list(DrawnSource(2, size=(32, 32), seed=3))
    images = torch.from_numpy(np.stack([preprocessor(sample.image)[0] for sample in samples]))
    masks = np.stack([preprocessor.mask(sample.mask) for sample in samples])[:, None]
    targets = torch.from_numpy(masks.astype(np.float32))
    loss = Loss({"bce": 1.0, "dice": 1.0})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    best = 0.0
    for _ in range(80):
        optimizer.zero_grad()
        logits = model(images)
        value = loss(logits, targets, torch.ones_like(targets)).total
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        foreground = (logits > 0).float()
        best = max(
            best, float(2 * (foreground * targets).sum() / (foreground.sum() + targets.sum()))
        )
        if best > 0.95:
            break
    assert best > 0.95


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (17, 33), (63, 65), (129, 5)])
@pytest.mark.parametrize("image_size", [None, (40, 56)])
@pytest.mark.parametrize("name", NAMES)
def test_size_in_is_size_out_through_the_predictor(
    name: str, image_size: Size | None, size: Size
) -> None:
    model = small_model(name, width=2)
    preprocessor = Preprocessor(image_size=image_size, stride=model.stride)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prediction = Predictor(TorchBackend(model), preprocessor)(image)
    assert prediction.probability.shape == prediction.mask.shape == size
    assert prediction.probability.dtype == np.float32
    assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_first_weights(name: str) -> None:
    one, same = small_model(name).state_dict(), small_model(name).state_dict()
    torch.manual_seed(1)
    other = build_model(settings_of(name, SMALL)).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def torchvision_shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of torchvision's ``resnet34().state_dict()`` without ``fc``."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def add_norm(name: str, channels: int) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{key}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    add_norm("bn1", 64)
    inputs = 64
    for layer, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (channels, inputs, 3, 3)
            add_norm(f"{prefix}.bn1", channels)
            shapes[f"{prefix}.conv2.weight"] = (channels, channels, 3, 3)
            add_norm(f"{prefix}.bn2", channels)
            if inputs != channels:
                shapes[f"{prefix}.downsample.0.weight"] = (channels, inputs, 1, 1)
                add_norm(f"{prefix}.downsample.1", channels)
            inputs = channels
    return shapes


def test_the_resnet_has_the_parameter_names_of_torchvision() -> None:
    with torch.device("meta"):
        encoder = ResNet34Encoder()
    ours = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert ours == torchvision_shapes()
    assert count_parameters(encoder) == 21_284_672  # torchvision's 21,797,672 less the classifier


def test_weights_under_the_names_of_torchvision_load() -> None:
    weights = {
        name: torch.full(shape, 0.5) if shape else torch.tensor(7)
        for name, shape in torchvision_shapes().items()
    }
    encoder = ResNet34Encoder()
    encoder.load_state_dict(weights)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_the_standard_block_rectifies_after_the_addition_and_the_reports_before() -> None:
    features = torch.randn(2, 4, 6, 6)
    standard = ResidualBlock(4, 4, project=False, residual="standard").eval()
    report = ResidualBlock(4, 4, project=False, residual="report").eval()
    report.load_state_dict(standard.state_dict())
    with torch.no_grad():
        inner = standard.conv2(torch.relu(standard.bn1(standard.conv1(features))))
        inner = standard.bn2(inner)
        torch.testing.assert_close(standard(features), torch.relu(inner + features))
        torch.testing.assert_close(report(features), torch.relu(inner) + features)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'unett': there is no such model; did you mean 'unet'"):
        build_model(Model(name="unett"))


def test_the_reports_residual_block_belongs_to_the_resnet_only() -> None:
    with pytest.raises(ConfigError, match="belongs to resnet34_unet; unet has no residual blocks"):
        build_model(Model(name="unet", residual="report"))


class Pyramid(Encoder):
    """An encoder of somebody's own: one convolution a level."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        self.channels = tuple(3 + number for number in range(len(strides)))
        self.levels = nn.ModuleList(
            nn.Conv2d(3, channels, 3, padding=1) for channels in self.channels
        )

    def stages(self) -> list[list[nn.Module]]:
        return [[level] for level in self.levels]

    def forward(self, images: Images) -> list[Images]:
        pooled = (nn.functional.avg_pool2d(images, stride) for stride in self.strides)
        return [level(images) for level, images in zip(self.levels, pooled, strict=True)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("strides", [(1, 2, 4), (2, 4, 8), (1, 2, 4, 8, 16, 32)])
def test_the_decoder_takes_any_encoder_whose_strides_double(
    strides: tuple[int, ...], gated: bool
) -> None:
    encoder = Pyramid(strides)
    channels = tuple(range(4 + len(strides), 5, -1))
    decoder = Decoder(encoder.channels, channels, gated=gated)
    result = decoder(encoder(torch.randn(2, 3, 64, 96)))
    assert result.shape == (2, channels[-1], 64 // strides[0], 96 // strides[0])
    result.square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_decoder_of_the_wrong_number_of_steps_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="a decoder of 3 steps on an encoder of 3 levels; 2 steps are wanted"
    ):
        Decoder((4, 8, 16), (16, 8, 4))


def test_every_skip_but_the_finest_is_gated() -> None:
    model = UNet(width=SMALL, attention=True)
    assert len(model.decoder.gates) == len(model.decoder.steps) - 1
    finest: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _, __, features: finest.append(features[0]))
    model.decoder.steps[-1].register_forward_hook(lambda _, given, __: seen.append(given[1]))
    model(torch.randn(1, 3, 32, 32))
    assert seen[0] is finest[0]


def test_a_closed_gate_shuts_its_skip_out() -> None:
    """With the attention at zero, the finished skip is the same for every image."""
    gate = AttentionGate(8, 16).eval()
    assert gate.weigh.bias is not None
    with torch.no_grad():
        gate.weigh.weight.zero_()
        gate.weigh.bias.fill_(-100.0)
        skip, coarse = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)
        assert torch.allclose(gate(skip, coarse), gate(2 * skip, coarse), atol=1e-6)
        gate.weigh.bias.fill_(100.0)
        torch.testing.assert_close(gate(skip, coarse), gate.finish(skip))


@pytest.mark.parametrize("stride", [None, 0, 2.0])
def test_a_module_without_a_usable_stride_is_refused(stride: object) -> None:
    model = nn.Conv2d(3, 1, 1)
    model.stride = stride  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"Conv2d states no stride; set self\.stride"):
        stride_of(model)


def test_a_module_of_ones_own_needs_a_stride_only() -> None:
    class Plain(nn.Module):
        stride = 4

    assert stride_of(Plain()) == 4
    with pytest.raises(ConfigError, match="Linear states no stride"):
        stride_of(nn.Linear(1, 1))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_hands_out_what_it_states(name: str) -> None:
    encoder = build_encoder(name)
    features = encoder(torch.randn(2, 3, 64, 96))
    assert encoder.strides == (2, 4, 8, 16, 32)
    assert [feature.shape for feature in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_of_an_encoder_is_in_one_of_its_stages(name: str) -> None:
    encoder = build_encoder(name)
    staged = [
        parameter
        for stage in encoder.stages()
        for module in stage
        for parameter in module.parameters()
    ]
    assert len(encoder.stages()) == len(encoder.strides)
    assert len(staged) == len({id(parameter) for parameter in staged})
    assert {id(parameter) for parameter in staged} == {id(each) for each in encoder.parameters()}


@pytest.mark.parametrize("strides", [(1, 2, 4), (2, 4, 8), (4, 8, 16)])
def test_a_unet_on_any_encoder_gives_logits_of_the_images_size(strides: tuple[int, ...]) -> None:
    model = UNet(Pyramid(strides), width=2).eval()
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 1, 32, 48)
    assert model.stride == strides[-1]


def test_on_an_encoder_the_way_up_is_narrower_unless_its_width_is_given() -> None:
    assert Model(encoder="resnet34").width == 16
    assert Model(encoder="resnet34", width=8).width == 8
    assert Model().width == 64


def test_an_unknown_encoder_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no such encoder; did you mean 'resnet34'"):
        build_model(Model(encoder="resnet43"))


def test_a_model_with_an_encoder_of_its_own_takes_no_other() -> None:
    with pytest.raises(ConfigError, match="resnet34_unet has its own encoder; put another one"):
        build_model(Model(name="resnet34_unet", encoder="resnet34"))


@pytest.mark.parametrize("encoder", [None, Pyramid((1, 2, 4))])
def test_only_an_encoder_with_a_name_has_published_weights(encoder: Encoder | None) -> None:
    with pytest.raises(ConfigError, match="nobody has published weights of this encoder; name one"):
        UNet(encoder, pretrained=True)


def test_a_unet_of_no_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="a U-Net of width 0; give at least 1"):
        UNet(width=0)


@pytest.mark.parametrize("encoder", [None, *ENCODERS])
def test_a_unets_weights_have_the_names_that_saved_models_know(encoder: str | None) -> None:
    names = list(UNet(encoder, width=SMALL).state_dict())
    parts = [part for part, _ in itertools.groupby(name.partition(".")[0] for name in names)]
    assert parts == ["encoder", "decoder", *(["enlarge"] if encoder else []), "head"]
