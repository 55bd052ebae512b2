"""Which cells of a padded batch's maps show picture, and where its objects are on them."""

from __future__ import annotations

import pytest
import torch

from detkt.knowledge import Knowledge


def test_no_padding_needs_no_mask():
    assert Knowledge().mask(torch.zeros(2, 3, 4, 5)) is None


def test_a_cell_counts_if_its_centre_is_inside_the_picture():
    # Rows have their centres at 1/8, 3/8, 5/8, 7/8; columns at 1/10, 3/10, ..., 9/10.
    mask = Knowledge(valid=[(1.0, 0.5), (0.6, 1.0), (0.63, 0.29)]).mask(torch.zeros(3, 7, 4, 5))
    assert mask.shape == (3, 1, 4, 5)
    first = torch.tensor([1.0, 1, 0, 0, 0]).expand(4, 5)  # 0.5 is a centre: on the edge is outside
    second = torch.tensor([[1.0], [1], [0], [0]]).expand(4, 5)
    third = torch.tensor([[1.0], [1], [1], [0]]) * torch.tensor([1.0, 0, 0, 0, 0])
    assert torch.equal(mask[:, 0], torch.stack([first, second, third]))


def test_a_sliver_of_a_picture_keeps_a_cell():
    mask = Knowledge(valid=[(0.01, 1.0), (1.0, 0.01), (0.01, 0.01)]).mask(torch.zeros(3, 1, 4, 6))
    assert mask.sum(dim=(1, 2, 3)).tolist() == [6, 4, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mask_does_not_depend_on_the_precision_of_the_map(dtype):
    """0.9 is 0.8984 in bfloat16, which would lose two rows of a thousand; float16 counts cells to 2048 alone."""
    mask = Knowledge(valid=[(0.9, 1.0)]).mask(torch.zeros(1, 2, 1000, 20, dtype=dtype))
    assert mask.dtype == torch.float32
    assert mask.sum().item() == 900 * 20


def test_maps_of_other_sizes_share_the_picture():
    knowledge = Knowledge(valid=[(0.5, 1.0)])
    for size in ((2, 3), (8, 5), (20, 30)):
        assert knowledge.mask(torch.zeros(1, 4, *size)).mean() == 0.5


def test_boxes_in_cells_keep_edges_between_cells():
    """Thirds of 6 columns are 2.0000002 in float32, which would reach into the next cell."""
    shares = [torch.tensor([[1 / 3, 0.25, 2 / 3, 0.5], [0, 0, 1, 1]]), torch.zeros(0, 4)]
    first, second = Knowledge(boxes=shares).boxes_on(torch.zeros(2, 7, 4, 6))
    assert first.tolist() == [[2, 1, 4, 2], [0, 0, 6, 4]]
    assert second.shape == (0, 4)
