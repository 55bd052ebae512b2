from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detkt.data.boxes import corners_to_voc, voc_to_corners


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_first_pixel_and_a_whole_picture(make):
    voc = make([[1.0, 1, 1, 1], [1, 1, 500, 375], [263, 211, 324, 339]])
    corners = voc_to_corners(voc)
    assert corners.tolist() == [[0, 0, 1, 1], [0, 0, 500, 375], [262, 210, 324, 339]]
    assert corners_to_voc(corners).tolist() == voc.tolist()
    assert voc[0].tolist() == [1, 1, 1, 1], "the argument must stay as it was"


def test_width_is_the_number_of_pixels():
    x1, y1, x2, y2 = voc_to_corners(np.array([5.0, 7, 9, 7]))
    assert (x2 - x1, y2 - y1) == (5, 1)


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.integers(0, 2**20)))
def test_round_trip_is_exact_for_pixels(boxes):
    for both in (boxes, torch.from_numpy(boxes)):
        back = corners_to_voc(voc_to_corners(both))
        assert back.dtype == both.dtype
        assert tuple(back.shape) == boxes.shape
        assert bool((back == both).all())


def test_whole_numbers_become_floating_point_and_do_not_wrap():
    assert voc_to_corners(np.array([[0, 1, 2, 3]], dtype=np.uint8)).tolist() == [[-1.0, 0.0, 2.0, 3.0]]
    assert voc_to_corners(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_shapes(make):
    assert tuple(voc_to_corners(make((0, 4))).shape) == (0, 4)
    assert tuple(corners_to_voc(make((2, 3, 4))).shape) == (2, 3, 4)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 4\)"):
        voc_to_corners(make((4, 5)))
