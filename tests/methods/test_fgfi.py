"""FGFI: which cells are near objects, against plain loops; levels, padding, pictures without objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import random_map
from torch import Tensor

from detkt.methods.fgfi import imitation_loss, imitation_mask, imitation_masks

NO_BOXES = torch.zeros(0, 4, dtype=torch.float64)


def grid(height: int, width: int, stride: float, *sizes: tuple[float, float]) -> Tensor:
    """Anchors (H, W, A, 4) of *sizes* (width, height) in the middle of cells of *stride*."""
    anchors = torch.zeros(height, width, len(sizes), 4, dtype=torch.float64)
    for row, column, number in np.ndindex(*anchors.shape[:3]):
        x, y, (w, h) = (column + 0.5) * stride, (row + 0.5) * stride, sizes[number]
        anchors[row, column, number] = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return anchors


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return width * height / (areas - width * height)


def by_loops(boxes: Tensor, levels: list[Tensor], threshold: float) -> list[np.ndarray]:
    masks = [np.zeros(level.shape[:2], bool) for level in levels]
    for box in boxes.tolist():
        largest = max(overlap(anchor, box) for level in levels for anchor in level.reshape(-1, 4).tolist())
        for mask, level in zip(masks, levels, strict=True):
            for row, column in np.ndindex(mask.shape):
                best = max(overlap(anchor, box) for anchor in level[row, column].tolist())
                mask[row, column] |= best > threshold * largest
    return masks


def random_boxes(count: int, width: float, height: float) -> Tensor:
    corners = np.random.default_rng(3).uniform(0, [width, height], (count, 2, 2))
    return torch.from_numpy(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_a_map_of_its_own(threshold):
    boxes, anchors = random_boxes(3, 9, 5), grid(5, 9, 1, (1, 1), (3, 3), (2, 4))
    mask = imitation_mask(boxes, anchors, threshold)
    assert mask.shape == (5, 9)
    np.testing.assert_array_equal(mask.numpy(), by_loops(boxes, [anchors], threshold)[0])
    assert 0 < mask.sum() < 45


def test_by_hand():
    """A box that is one anchor of 2 x 2: the neighbours' overlap of 1/3 exceeds 0.3 of it, the diagonal ones' 1/7 not."""
    anchors, box = grid(4, 5, 1, (2, 2)), torch.tensor([[1.5, 0.5, 3.5, 2.5]], dtype=torch.float64)
    near = torch.zeros(4, 5, dtype=torch.bool)
    near[1, 2] = True
    assert torch.equal(imitation_mask(box, anchors), near)
    near[[0, 2, 1, 1], [2, 2, 1, 3]] = True
    assert torch.equal(imitation_mask(box, anchors, 0.3), near)


def test_the_unit_does_not_matter():
    """Shares of a map that is not square: rows and columns are scaled apart."""
    boxes, anchors = random_boxes(3, 9, 5), grid(5, 9, 1, (1, 1), (3, 3), (2, 4))
    scale = torch.tensor([9.0, 5, 9, 5])
    assert torch.equal(imitation_mask(boxes / scale, anchors / scale), imitation_mask(boxes, anchors))


def test_levels_share_the_largest_overlap():
    boxes = random_boxes(4, 16, 12)
    levels = [grid(12, 16, 1, (2, 2), (1, 3)), grid(6, 8, 2, (4, 4), (3, 6)), grid(3, 4, 4, (9, 8))]
    masks = imitation_masks(boxes, levels)
    for mask, expected in zip(masks, by_loops(boxes, levels, 0.5), strict=True):
        np.testing.assert_array_equal(mask.numpy(), expected)
    small = torch.tensor([[2.5, 2.5, 4.5, 4.5]], dtype=torch.float64)
    assert [mask.any().item() for mask in imitation_masks(small, levels)] == [True, False, False]


def test_a_padded_picture_is_the_picture_alone():
    """The best anchor of an object at the edge stands beyond it: alone there is none."""
    box, anchors = torch.tensor([[2.0, 0, 6, 4]], dtype=torch.float64), grid(5, 9, 1, (4, 4))
    valid = torch.zeros(5, 9, dtype=torch.float64)
    valid[:4, :3] = 1
    (padded,) = imitation_masks(box, [anchors], valid=[valid])
    alone = imitation_mask(box, anchors[:4, :3])
    assert torch.equal(padded[:4, :3], alone)
    assert padded.sum() == alone.sum() > 0
    assert not torch.equal(imitation_mask(box, anchors)[:4, :3], alone)


def test_a_picture_without_objects_has_no_near_cells():
    levels = [grid(4, 5, 1, (2, 2)), grid(2, 3, 2, (4, 4))]
    assert [mask.any().item() for mask in imitation_masks(NO_BOXES, levels)] == [False, False]


def test_loss_equals_its_formula():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    near = (random_map(2, 1, 4, 6, seed=3) > 0.5).double()
    cells = np.argwhere(near[:, 0].numpy())
    expected = sum(((student[n, :, h, w] - teacher[n, :, h, w]) ** 2).sum().item() for n, h, w in cells)
    assert imitation_loss(student, teacher, near).item() == pytest.approx(expected / (2 * len(cells)), abs=1e-12)


def test_a_batch_counts_pictures_by_their_cells():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    near = torch.zeros(2, 1, 4, 6, dtype=torch.float64)
    near[0, 0, 1, 1:4], near[1, 0, 0, 0] = 1, 1
    first, second = (imitation_loss(student[i : i + 1], teacher[i : i + 1], near[i : i + 1]) for i in (0, 1))
    torch.testing.assert_close(imitation_loss(student, teacher, near), (3 * first + second) / 4)


def test_gradient_reaches_near_cells_alone():
    student, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    near = (random_map(2, 1, 3, 4, seed=3) > 0).double()
    assert torch.autograd.gradcheck(lambda s: imitation_loss(s, teacher, near), student)
    imitation_loss(student, teacher, near).backward()
    assert torch.equal(student.grad != 0, near.bool().expand_as(student))
    nothing = imitation_loss(student, teacher, 0 * near)
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, student)[0] == 0).all()


def test_half_precision_is_summed_in_full():
    student = torch.full((1, 64, 40, 45), 300.0, dtype=torch.float16)
    loss = imitation_loss(student, torch.zeros_like(student), torch.ones(1, 1, 40, 45))
    assert loss.item() == pytest.approx(64 * 9e4 / 2)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        imitation_loss(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5), torch.ones(2, 1, 4, 5))
