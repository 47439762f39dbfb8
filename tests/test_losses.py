"""Losses against references written here in NumPy float64 from the papers' formulas."""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from notan import losses as losses_module
from notan.errors import ConfigError, ShapeError
from notan.losses import (
    BESIDE_OTHERS,
    LOSSES,
    Loss,
    LossTerm,
    bce,
    boundary,
    cldice,
    dice,
    focal,
    lovasz,
    squared_distances_on_device,
    tversky,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Array: TypeAlias = npt.NDArray[np.float64]
RGBImage: TypeAlias = tuple[Array, Array]  # logits and targets of one image's valid pixels

SHAPE = (3, 1, 9, 7)


class Batch(NamedTuple):
    logits: Tensor
    targets: Tensor
    valid: Tensor


def make_targets(kind: str) -> Tensor:
    if kind == "random":
        return (torch.rand(SHAPE) < 0.4).float()
    targets = torch.full(SHAPE, float(kind == "full"))
    if kind == "one pixel":
        targets[:, 0, 4, 2] = 1
    return targets


def make_batch(kind: str = "random", ignored: str = "some") -> Batch:
    torch.manual_seed(7)
    valid = torch.ones(SHAPE)
    if ignored != "none":
        valid = (torch.rand(SHAPE) < 0.7).float()
    if ignored == "one whole image":
        valid[1] = 0
    return Batch(3 * torch.randn(SHAPE), make_targets(kind), valid)


def valid_pixels(batch: Batch) -> list[RGBImage]:
    """The valid pixels of each image that has any, in float64."""
    logits, targets, valid = (tensor.double().numpy() for tensor in batch)
    kept = [mask > 0 for mask in valid]
    return [
        (x[keep], t[keep]) for x, t, keep in zip(logits, targets, kept, strict=True) if keep.any()
    ]


def sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def cross_entropy(x: Array, t: Array) -> Array:
    return np.asarray(np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))))


def reference_bce(images: list[RGBImage]) -> float:
    return float(np.concatenate([cross_entropy(x, t) for x, t in images]).mean())


def reference_focal(images: list[RGBImage], gamma: float, alpha: float | None) -> float:
    losses = []
    for x, t in images:
        right = np.where(t == 1, sigmoid(x), 1 - sigmoid(x))
        weight = np.ones_like(t) if alpha is None else np.where(t == 1, alpha, 1 - alpha)
        losses.append(weight * (1 - right) ** gamma * cross_entropy(x, t))
    return float(np.concatenate(losses).mean())


def reference_dice(images: list[RGBImage], smooth: float) -> float:
    losses = []
    for x, t in images:
        p = sigmoid(x)
        losses.append(1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
    return float(np.mean(losses))


def reference_tversky(images: list[RGBImage], alpha: float, beta: float, smooth: float) -> float:
    losses = []
    for x, t in images:
        p = sigmoid(x)
        hit, alarm, miss = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        losses.append(1 - (hit + smooth) / (hit + alpha * alarm + beta * miss + smooth))
    return float(np.mean(losses))


def jaccard_loss(wrong: set[int], foreground: set[int]) -> float:
    """1 - Jaccard index as a function of the set of wrong pixels (Berman et al., equation 6)."""
    union = foreground | wrong
    return len(wrong) / len(union) if union else 0.0


def reference_lovasz(images: list[RGBImage]) -> float:
    """The Lovasz extension of the Jaccard loss, prefix set by prefix set, at the hinge errors."""
    losses = []
    for x, t in images:
        hinge = np.maximum(1 - x * np.where(t == 1, 1.0, -1.0), 0)
        foreground = {int(index) for index in np.flatnonzero(t == 1)}
        wrong: set[int] = set()
        loss = before = 0.0
        for index in np.argsort(-hinge):
            wrong.add(int(index))
            after = jaccard_loss(wrong, foreground)
            loss += float(hinge[index]) * (after - before)
            before = after
        losses.append(loss)
    return float(np.mean(losses))


REFERENCES: dict[str, tuple[LossTerm, Callable[[list[RGBImage]], float]]] = {
    "bce": (bce, reference_bce),
    "dice": (dice, partial(reference_dice, smooth=1.0)),
    "dice, smooth 0.1": (partial(dice, smooth=0.1), partial(reference_dice, smooth=0.1)),
    "focal": (focal, partial(reference_focal, gamma=2.0, alpha=None)),
    "focal, gamma 0.5 and alpha 0.25": (
        partial(focal, gamma=0.5, alpha=0.25),
        partial(reference_focal, gamma=0.5, alpha=0.25),
    ),
    "tversky": (tversky, partial(reference_tversky, alpha=0.3, beta=0.7, smooth=1.0)),
    "tversky, alpha 1 and beta 0": (
        partial(tversky, alpha=1.0, beta=0.0, smooth=2.0),
        partial(reference_tversky, alpha=1.0, beta=0.0, smooth=2.0),
    ),
    "lovasz": (lovasz, reference_lovasz),
}


CROSS = ndimage.generate_binary_structure(2, 1)
SQUARE = np.ones((3, 3), dtype=bool)


def planes(batch: Batch) -> list[tuple[Array, Array, Array]]:
    """Logits, targets and valid pixels of each image that has a valid one, (h, w), float64."""
    parts = [tensor[:, 0].double().numpy() for tensor in batch]
    return [(x, t, v) for x, t, v in zip(*parts, strict=True) if v.any()]


def reference_skeleton(plane: Array, valid: Array, iterations: int) -> Array:
    """Shit et al., algorithm 1, with SciPy's filters: what is ignored is neutral in both."""

    def eroded(image: Array) -> Array:
        inside = np.where(valid > 0, image, np.inf)
        found = ndimage.grey_erosion(inside, footprint=CROSS, mode="constant", cval=np.inf)
        return np.asarray(found)

    def opened(image: Array) -> Array:
        inside = np.where(valid > 0, eroded(image), -np.inf)
        found = ndimage.grey_dilation(inside, footprint=SQUARE, mode="constant", cval=-np.inf)
        return np.asarray(found)

    skeleton = np.where(valid > 0, np.maximum(plane - opened(plane), 0), 0)
    for _ in range(iterations):
        plane = eroded(plane)
        lost = np.where(valid > 0, np.maximum(plane - opened(plane), 0), 0)
        skeleton = skeleton + (1 - skeleton) * lost
    return np.asarray(skeleton)


def reference_cldice(batch: Batch, iterations: int, smooth: float) -> float:
    losses = []
    for x, t, v in planes(batch):
        p, truth = sigmoid(x) * v, t * v
        found, true = (reference_skeleton(plane, v, iterations) for plane in (p, truth))
        precision = ((found * truth).sum() + smooth) / (found.sum() + smooth)
        sensitivity = ((true * p).sum() + smooth) / (true.sum() + smooth)
        losses.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return float(np.mean(losses))


def reference_boundary(batch: Batch) -> float:
    """Kervadec et al.: the mean of probability x signed distance, less that of the truth itself."""
    costs = []
    for x, t, v in planes(batch):
        inside, outside = (t == 1) & (v > 0), (t == 0) & (v > 0)
        signed = np.zeros_like(x)
        if inside.any() and outside.any():
            signed += ndimage.distance_transform_edt(~inside) * outside
            signed -= (ndimage.distance_transform_edt(~outside) - 1) * inside
        costs.append((signed * (sigmoid(x) - t))[v > 0])
    return float(np.concatenate(costs).mean())


BESIDE_REFERENCES: dict[str, tuple[LossTerm, Callable[[Batch], float]]] = {
    "cldice": (cldice, partial(reference_cldice, iterations=3, smooth=1.0)),
    "cldice, 1 iteration and smooth 0.1": (
        partial(cldice, iterations=1, smooth=0.1),
        partial(reference_cldice, iterations=1, smooth=0.1),
    ),
    "boundary": (boundary, reference_boundary),
}

every_loss = pytest.mark.parametrize("term", LOSSES.values(), ids=LOSSES.keys())
lonely = {name: term for name, term in LOSSES.items() if name not in BESIDE_OTHERS}
every_loss_that_stands_alone = pytest.mark.parametrize("term", lonely.values(), ids=lonely.keys())
every_mask = pytest.mark.parametrize("kind", ["random", "empty", "full", "one pixel"])
every_ignored_area = pytest.mark.parametrize("ignored", ["none", "some", "one whole image"])


def gradient(term: LossTerm, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(term(leaf, targets, valid), leaf)[0]


@pytest.mark.parametrize("name", REFERENCES)
@every_mask
@every_ignored_area
def test_a_loss_agrees_with_its_reference(name: str, kind: str, ignored: str) -> None:
    term, reference = REFERENCES[name]
    batch = make_batch(kind, ignored)
    expected = reference(valid_pixels(batch))
    assert float(term(*batch)) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    in_double = term(batch.logits.double(), batch.targets, batch.valid)
    assert float(in_double) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", BESIDE_REFERENCES)
@every_mask
@every_ignored_area
def test_a_loss_of_forms_agrees_with_its_reference(name: str, kind: str, ignored: str) -> None:
    term, reference = BESIDE_REFERENCES[name]
    batch = make_batch(kind, ignored)
    expected = reference(batch)
    assert float(term(*batch)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    in_double = term(batch.logits.double(), batch.targets, batch.valid)
    assert float(in_double) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", BESIDE_OTHERS)
def test_ignored_padding_is_as_if_it_were_not_there(name: str) -> None:
    batch = make_batch("random", "none")
    padded = Batch(*(torch.nn.functional.pad(tensor, (3, 1, 0, 5)) for tensor in batch))
    padded = padded._replace(logits=padded.logits.masked_fill(padded.valid == 0, 9.0))
    torch.testing.assert_close(LOSSES[name](*padded), LOSSES[name](*batch))
    inner = gradient(LOSSES[name], *padded)[..., :-5, 3:-1]
    torch.testing.assert_close(inner, gradient(LOSSES[name], *batch))


def test_the_boundary_loss_is_the_same_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    expected = boundary(*batch)
    monkeypatch.setattr(losses_module, "_squared_distances", squared_distances_on_device)
    assert boundary(*batch) == expected


@pytest.mark.parametrize("name", BESIDE_OTHERS)
def test_a_loss_that_must_not_stand_alone_is_refused_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} alone .*another loss a weight too.*dice = 1.0"):
        Loss({name: 1.0, "bce": 0.0})
    assert list(Loss({name: 1.0, "dice": 0.1})(*make_batch()).terms) == [name, "dice"]


def test_lovasz_equals_the_jaccard_loss_where_every_hinge_error_is_0_or_1() -> None:
    batch = make_batch(ignored="none")
    wrong = torch.rand(SHAPE) < 0.3
    signs = 2 * batch.targets - 1
    logits = torch.where(wrong, torch.zeros(SHAPE), signs)
    expected = [
        float(bad.sum() / (bad | (target == 1)).sum())
        for bad, target in zip(wrong, batch.targets, strict=True)
    ]
    assert float(lovasz(logits, batch.targets, batch.valid)) == pytest.approx(np.mean(expected))


def test_lovasz_keeps_its_digits_on_a_large_image() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 600, 800)
    targets = (torch.rand(1, 1, 600, 800) < 0.5).float()
    valid = torch.ones_like(targets)
    single = gradient(lovasz, logits, targets, valid)
    double = gradient(lovasz, logits.double(), targets.double(), valid)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-12)


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    batch = make_batch()
    torch.testing.assert_close(focal(*batch, gamma=0.0), bce(*batch))


def test_tversky_with_equal_halves_is_dice() -> None:
    batch = make_batch()
    torch.testing.assert_close(tversky(*batch, alpha=0.5, beta=0.5, smooth=0.5), dice(*batch))


def test_tversky_charges_a_miss_more_than_a_false_alarm_by_default() -> None:
    targets = torch.zeros(1, 1, 4, 4)
    targets[0, 0, :2] = 1
    right = 20 * (2 * targets - 1)
    miss, alarm = right.clone(), right.clone()
    miss[0, 0, 0, 0], alarm[0, 0, 3, 3] = -20, 20
    valid = torch.ones_like(targets)
    assert tversky(miss, targets, valid) > tversky(alarm, targets, valid)


@pytest.mark.parametrize("term", [dice, tversky, lovasz])
def test_an_empty_image_pushes_down_its_false_alarm_whatever_else_is_in_the_batch(
    term: LossTerm,
) -> None:
    targets, valid = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    logits = torch.full_like(targets, -4.0)
    targets[1], logits[0, 0, 3, 3] = 1, 2.0
    together = gradient(term, logits, targets, valid)
    alone = gradient(term, logits[:1], targets[:1], valid[:1])
    assert alone[0, 0, 3, 3] > 0.01
    torch.testing.assert_close(together[:1], alone / 2)


@every_loss
@every_mask
def test_every_loss_is_a_finite_scalar_of_at_least_0(term: LossTerm, kind: str) -> None:
    loss = term(*make_batch(kind))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss)
    assert loss >= 0


@every_loss_that_stands_alone
@every_mask
def test_every_loss_sends_a_gradient_to_the_logits(term: LossTerm, kind: str) -> None:
    pushed = gradient(term, *make_batch(kind))
    assert pushed.isfinite().all()
    assert pushed.abs().sum() > 0


@every_loss_that_stands_alone
@every_mask
def test_every_loss_falls_as_the_prediction_improves(term: LossTerm, kind: str) -> None:
    batch = make_batch(kind)
    signs = 2 * batch.targets - 1
    losses = [float(term(margin * signs, batch.targets, batch.valid)) for margin in (-3, -1, 0, 1)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


@every_loss
@every_mask
@every_ignored_area
def test_a_perfect_prediction_costs_nothing(term: LossTerm, kind: str, ignored: str) -> None:
    batch = make_batch(kind, ignored)
    loss = term(30 * (2 * batch.targets - 1), batch.targets, batch.valid)
    assert float(loss) == pytest.approx(0, abs=1e-6)


@every_loss
def test_what_stands_at_ignored_pixels_does_not_matter(term: LossTerm) -> None:
    logits, targets, valid = make_batch()
    ignored = valid == 0
    junk = torch.where(torch.rand(SHAPE) < 0.5, torch.nan, 1e4)
    others = (torch.where(ignored, junk, logits), targets.masked_fill(ignored, 255.0), valid)
    assert term(*others) == term(logits, targets, valid)
    pushed = gradient(term, *others)
    assert torch.equal(pushed, gradient(term, logits, targets, valid))
    assert not pushed[ignored].any()


@every_loss
def test_an_image_that_is_ignored_whole_does_not_matter(term: LossTerm) -> None:
    logits, targets, valid = make_batch(ignored="one whole image")
    others = [0, 2]
    alone = term(logits[others], targets[others], valid[others])
    torch.testing.assert_close(term(logits, targets, valid), alone)


@every_loss
def test_a_batch_that_is_ignored_whole_costs_0_and_pushes_nothing(term: LossTerm) -> None:
    logits, targets, valid = make_batch()
    assert term(logits, targets, torch.zeros_like(valid)) == 0
    assert not gradient(term, logits, targets, torch.zeros_like(valid)).any()


@every_loss
def test_a_bool_valid_mask_means_the_same_as_numbers(term: LossTerm) -> None:
    logits, targets, valid = make_batch()
    assert term(logits, targets, valid.bool()) == term(logits, targets, valid)


@every_loss
@every_mask
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_keep_loss_and_gradient_finite(
    term: LossTerm, kind: str, size: float
) -> None:
    logits, targets, valid = make_batch(kind)
    for extreme in (torch.full(SHAPE, size), size * logits.sign(), size * (2 * targets - 1)):
        assert math.isfinite(term(extreme, targets, valid))
        assert gradient(term, extreme, targets, valid).isfinite().all()


def test_focal_gradient_is_finite_at_extreme_logits_for_a_gamma_below_1() -> None:
    _, targets, valid = make_batch()
    logits = 1e4 * (2 * targets - 1)
    assert gradient(partial(focal, gamma=0.5), logits, targets, valid).isfinite().all()


@every_loss
def test_half_precision_logits_are_computed_in_float32(term: LossTerm) -> None:
    logits, targets, valid = make_batch()
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = term(half, targets, valid)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(half.float(), targets, valid))
    assert gradient(term, half, targets, valid).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [*REFERENCES, *BESIDE_REFERENCES])
@every_mask
def test_gradients_agree_with_finite_differences(name: str, kind: str) -> None:
    term = {**REFERENCES, **BESIDE_REFERENCES}[name][0]
    logits, targets, valid = (tensor[:2, :, :4, :3].double() for tensor in make_batch(kind))
    assert torch.autograd.gradcheck(
        lambda x: term(x, targets, valid), (logits.clone().requires_grad_(),)
    )


@every_loss
def test_tensors_of_different_shapes_are_refused(term: LossTerm) -> None:
    logits, targets, valid = make_batch()
    with pytest.raises(ShapeError, match=r"\(3, 1, 9, 7\) and the targets \(3, 9, 7\)"):
        term(logits, targets[:, 0], valid)
    with pytest.raises(ShapeError, match=r"\(3, 1, 9, 7\) and the valid mask \(1, 1, 9, 7\)"):
        term(logits, targets, valid[:1])


@every_loss
def test_logits_of_two_channels_are_refused(term: LossTerm) -> None:
    two = torch.zeros(3, 2, 9, 7)
    with pytest.raises(ShapeError, match=r"\(3, 2, 9, 7\); a loss takes \(n, 1, h, w\)"):
        term(two, two, two)


def test_a_loss_is_the_weighted_sum_of_its_named_terms() -> None:
    batch = make_batch()
    weights = {"bce": 1.0, "dice": 0.5, "lovasz": 0.25, "focal": 2.0, "tversky": 3.0}
    value = Loss(weights)(*batch)
    assert list(value.terms) == list(weights)
    for name, term in value.terms.items():
        torch.testing.assert_close(term, LOSSES[name](*batch))
    expected = sum(weights[name] * float(term) for name, term in value.terms.items())
    assert float(value.total) == pytest.approx(expected)


def test_the_total_sends_back_the_weighted_sum_of_the_gradients() -> None:
    batch = make_batch()
    loss = Loss({"bce": 1.0, "dice": 0.5})
    total = gradient(lambda x, t, v: loss(x, t, v).total, *batch)
    torch.testing.assert_close(total, gradient(bce, *batch) + 0.5 * gradient(dice, *batch))


def test_a_term_of_weight_0_is_not_computed() -> None:
    assert list(Loss({"bce": 1.0, "lovasz": 0.0})(*make_batch()).terms) == ["bce"]


def test_settings_reach_their_terms() -> None:
    batch = make_batch()
    weights = {"focal": 1.0, "tversky": 1.0, "cldice": 1.0}
    settings = {"focal_gamma": 1.0, "tversky_alpha": 0.1, "tversky_beta": 0.9}
    terms = Loss(weights, **settings, cldice_iterations=1)(*batch).terms
    torch.testing.assert_close(terms["focal"], focal(*batch, gamma=1.0))
    torch.testing.assert_close(terms["tversky"], tversky(*batch, alpha=0.1, beta=0.9))
    torch.testing.assert_close(terms["cldice"], cldice(*batch, iterations=1))
    assert terms["cldice"] != cldice(*batch)


def test_a_loss_keeps_its_own_copy_of_the_weights() -> None:
    weights = {"bce": 1.0}
    loss = Loss(MappingProxyType(weights))
    weights["bce"] = 5.0
    assert loss.weights == {"bce": 1.0}


def test_an_unknown_loss_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no loss 'dise'; did you mean 'dice'\?"):
        Loss({"bce": 1.0, "dise": 1.0})


@pytest.mark.parametrize("weights", [{}, {"bce": 0.0, "dice": 0.0}])
def test_a_loss_without_a_positive_weight_is_refused(weights: Mapping[str, float]) -> None:
    with pytest.raises(ConfigError, match="no loss has a weight above 0"):
        Loss(weights)


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf])
def test_a_weight_that_is_negative_or_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"weight of loss 'dice' is .*at least 0"):
        Loss({"bce": 1.0, "dice": weight})


def test_a_negative_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"focal_gamma is -1.*at least 0"):
        Loss({"focal": 1.0}, focal_gamma=-1)
