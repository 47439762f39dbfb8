"""Widths of foregrounds whose widths are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from notan.auto.look import WIDTHS, thickness


def with_line(width: int, *, side: int = 200) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[60 : 60 + width, 20:-20] = True
    return mask


@pytest.mark.parametrize("width", [2, 3, 5, 9, 20, 40])
def test_a_line_is_as_wide_as_it_is(width: int) -> None:
    (found,) = thickness(with_line(width), (0.5,))
    assert found == pytest.approx(width, rel=0.35, abs=1)


@pytest.mark.parametrize("diameter", [10, 24, 60])
def test_a_disc_is_as_wide_as_its_diameter(diameter: int) -> None:
    disc = np.zeros((160, 160), np.uint8)
    cv2.circle(disc, (80, 80), diameter // 2, 1, -1)
    (found,) = thickness(disc > 0, (0.5,))
    assert found == pytest.approx(diameter, rel=0.35)


def test_the_thin_share_sees_the_tail_and_the_usual_one_the_body() -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:80, 20:80] = True
    mask[100:104, 0:200] = True
    mask[150:154, 0:200] = True
    usual, thin = thickness(mask, (0.5, 0.2))
    assert thin < 8 < usual


def test_what_reaches_the_edge_goes_on_beyond_it() -> None:
    """The road at the bottom of an image is no thinner for being cut off there."""
    mask = np.zeros((200, 200), bool)
    mask[-10:] = True
    (found,) = thickness(mask, (0.5,))
    assert found > 40


def test_a_single_pixel_and_a_full_mask_have_widths_too() -> None:
    assert thickness(np.ones((1, 1), bool), (0.5, 0.2)) == (WIDTHS[-1], WIDTHS[-1])
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert thickness(dot, (0.5,))[0] <= 2


def test_of_a_giant_mask_the_part_with_the_foreground_is_measured() -> None:
    mask = np.zeros((2100, 4500), bool)
    mask[100:140, 4200:4400] = True
    (found,) = thickness(mask, (0.5,))
    assert found == pytest.approx(40, rel=0.35)
