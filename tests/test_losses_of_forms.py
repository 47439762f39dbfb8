"""What clDice and the boundary loss make of lines, gaps and distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from notan.errors import ConfigError
from notan.losses import Loss, boundary, cldice, squared_distances_on_device


def crossed_lines(gap: int = 0, width: int = 2) -> Tensor:
    """A cross of two lines on 24 x 24 pixels, one of them with a gap; 1 = foreground."""
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 6 : 6 + width, 2:22], mask[..., 2:22, 14 : 14 + width] = 1, 1
    mask[..., 6 : 6 + width, 8 - gap : 8] = 0
    return mask


def test_cldice_equals_its_authors_own_code_on_thin_lines() -> None:
    """1 - 2 * precision * sensitivity / sum, as ``soft_cldice(iter_=3)`` of their repository."""
    pool = torch.nn.functional.max_pool2d

    def erode(x: Tensor) -> Tensor:
        return torch.min(-pool(-x, (3, 1), 1, (1, 0)), -pool(-x, (1, 3), 1, (0, 1)))

    def skeleton(x: Tensor) -> Tensor:
        found = (x - pool(erode(x), 3, 1, 1)).relu()
        for _ in range(3):
            x = erode(x)
            lost = (x - pool(erode(x), 3, 1, 1)).relu()
            found = found + (lost - found * lost).relu()
        return found

    truth, torn = crossed_lines(), crossed_lines(gap=3)
    torch.manual_seed(3)
    logits = 4 * (2 * torn - 1) + torch.randn_like(torn)
    p = logits.sigmoid()
    precision = ((skeleton(p) * truth).sum() + 1) / (skeleton(p).sum() + 1)
    sensitivity = ((skeleton(truth) * p).sum() + 1) / (skeleton(truth).sum() + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    torch.testing.assert_close(cldice(logits, truth, torch.ones_like(truth)), expected)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_cldice_grows_with_a_gap_whatever_the_width_of_the_line(width: int) -> None:
    truth = crossed_lines(width=width)
    losses = [
        float(cldice(20 * (2 * crossed_lines(gap, width) - 1), truth, torch.ones_like(truth)))
        for gap in (0, 2, 4, 6)
    ]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses == sorted(losses)
    assert losses[-1] > 0.05


@pytest.mark.parametrize(("iterations", "widest"), [(1, 4), (3, 8), (5, 12)])
def test_cldice_sees_structures_of_twice_its_iterations_and_two(
    iterations: int, widest: int
) -> None:
    def missed(width: int) -> float:
        truth = torch.zeros(1, 1, 40, 40)
        truth[..., 10 : 10 + width, :] = 1
        nothing, valid = torch.full_like(truth, -20.0), torch.ones_like(truth)
        return float(cldice(nothing, truth, valid, iterations=iterations))

    assert missed(widest) > 0.5
    assert missed(widest + 1) == pytest.approx(0, abs=1e-6)


def test_the_boundary_loss_costs_an_error_by_its_distance() -> None:
    truth = torch.zeros(1, 1, 9, 32)
    truth[..., :8] = 1
    valid = torch.ones_like(truth)
    right = 40 * (2 * truth - 1)
    for column, distance in ((10, 3), (20, 13), (7, 0), (4, 3), (0, 7)):
        wrong = right.clone()
        wrong[..., 4, column] *= -1
        cost = float(boundary(wrong, truth, valid)) * truth.numel()
        assert cost == pytest.approx(distance, abs=1e-4), column


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 30), (64, 40)])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 1.0])
def test_a_device_finds_the_distances_that_scipy_finds(size: tuple[int, int], share: float) -> None:
    torch.manual_seed(1)
    places = torch.rand(2, 1, *size) < share
    found = squared_distances_on_device(places)
    for plane, squared in zip(places[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        if plane.any():
            expected = ndimage.distance_transform_edt(~plane) ** 2
            np.testing.assert_array_equal(squared, expected.round())
        else:
            assert squared.min() > max(size) ** 2


def test_both_losses_that_must_not_stand_alone_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="cldice and boundary alone"):
        Loss({"boundary": 1.0, "cldice": 1.0})


def test_cldice_without_an_iteration_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cldice_iterations is 0; give 1 or more"):
        Loss({"cldice": 1.0, "dice": 1.0}, cldice_iterations=0)
