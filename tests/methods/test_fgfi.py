"""FGFI: which cells are near objects, against plain loops; levels, padding, pictures without objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, spec, task_losses
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge
from detkt.methods.base import Needs
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
    """A box that is one anchor of 2 x 2: its neighbours overlap by 1/3, which exceeds 0.3, those across by 1/7."""
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


def test_a_box_that_no_anchor_touches_has_no_near_cells():
    """Its largest overlap is 0, which no cell exceeds."""
    box = torch.tensor([[10.0, 10, 11, 11]], dtype=torch.float64)
    assert not imitation_mask(box, grid(4, 5, 1, (2, 2))).any()


def test_loss_equals_its_formula():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    near = (random_map(2, 1, 4, 6, seed=3) > 0.5).double()
    cells = np.argwhere(near[:, 0].numpy())
    expected = sum(((student[n, :, h, w] - teacher[n, :, h, w]) ** 2).sum().item() for n, h, w in cells)
    assert imitation_loss([(student, teacher, near)]).item() == pytest.approx(expected / (2 * len(cells)), abs=1e-12)


def test_a_batch_counts_pictures_by_their_cells():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    near = torch.zeros(2, 1, 4, 6, dtype=torch.float64)
    near[0, 0, 1, 1:4], near[1, 0, 0, 0] = 1, 1
    first, second = (imitation_loss([(student[i : i + 1], teacher[i : i + 1], near[i : i + 1])]) for i in (0, 1))
    torch.testing.assert_close(imitation_loss([(student, teacher, near)]), (3 * first + second) / 4)


def test_gradient_reaches_near_cells_alone():
    student, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    near = (random_map(2, 1, 3, 4, seed=3) > 0).double()
    assert torch.autograd.gradcheck(lambda s: imitation_loss([(s, teacher, near)]), student)
    imitation_loss([(student, teacher, near)]).backward()
    assert torch.equal(student.grad != 0, near.bool().expand_as(student))
    nothing = imitation_loss([(student, teacher, 0 * near)])
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, student)[0] == 0).all()


def test_half_precision_is_summed_in_full():
    student = torch.full((1, 64, 40, 45), 300.0, dtype=torch.float16)
    loss = imitation_loss([(student, torch.zeros_like(student), torch.ones(1, 1, 40, 45))])
    assert loss.item() == pytest.approx(64 * 9e4 / 2)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        imitation_loss([(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5), torch.ones(2, 1, 4, 5))])


def test_levels_count_by_their_cells_and_channels_are_brought_to_a_number():
    student, teacher = random_map(1, 3, 4, 6, seed=1), random_map(1, 3, 4, 6, seed=2)
    near = torch.zeros(2, 1, 1, 4, 6, dtype=torch.float64)
    near[0, 0, 0, 1, 1:4], near[1, 0, 0, 0, 0] = 1, 1
    levels = [(student, teacher, near[0]), (teacher, 2 * student, near[1])]
    first, second = (imitation_loss([level]) for level in levels)
    torch.testing.assert_close(imitation_loss(levels), (3 * first + second) / 4)
    torch.testing.assert_close(imitation_loss(levels, 12), 4 * imitation_loss(levels))


BOXES = [torch.tensor([[1.0, 1, 3, 3], [4, 0, 6, 4]], dtype=torch.float64), NO_BOXES]
VALID = [(1.0, 1.0), (1.0, 0.5)]


def student_of(feature: Tensor, anchors: Tensor, **settings) -> Knowledge:
    """Shares of a map of 4 x 6 cells."""
    scale = torch.tensor([6.0, 4, 6, 4])
    return Knowledge(
        {"output": feature}, boxes=[b / scale for b in BOXES], anchors={"output": anchors / scale}, **settings
    )


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_step_imitates_near_objects(preset):
    torch.manual_seed(0)
    method = make("fgfi", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), preset=preset)
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2), task_losses()
    anchors = grid(4, 6, 1, (2, 2), (2, 4))
    ours = student_of(student, anchors, losses=losses, valid=VALID)
    (update,) = method.step(method.stages()[-1], ours, Knowledge({"output": teacher}, valid=VALID), None)
    near = torch.stack([imitation_mask(boxes, anchors) for boxes in BOXES]).unsqueeze(1).double()
    assert near[0].any() and not near[1].any()
    adapted = method.adapters[0](student * ours.mask(student))
    expected = 0.01 * imitation_loss([(adapted, teacher, near)]) * (512 / 5 if preset == "default" else 1)
    torch.testing.assert_close(added(update, losses, "fgfi"), expected)


def test_a_level_that_is_not_compared_takes_part_in_the_largest_overlap():
    """The large box has its anchor on the second level: nothing of the first is near it, compared alone or with it."""
    torch.manual_seed(0)
    maps = {"output_0": (3, 4, 6), "output_1": (3, 2, 3)}
    box = torch.tensor([[0.0, 0, 4, 4]], dtype=torch.float64)
    anchors = {"output.0": grid(4, 6, 1, (1, 1)), "output.1": grid(2, 3, 2, (4, 4))}
    features = {name: random_map(1, 3, *anchors[name].shape[:2], seed=1) for name in anchors}
    ours = Knowledge(features, boxes=[box], anchors=anchors)
    for layers in ([], ["output.0"]):
        method = make("fgfi", spec(**maps), spec(**maps), layers=layers)
        (update,) = method.step(method.stages()[-1], ours, Knowledge({n: 2 * f for n, f in features.items()}), None)
        assert (update.losses["fgfi"].item() > 0) == (not layers)


def test_the_adapter_starts_near_zero_and_ends_as_the_teachers_layer():
    method = make("fgfi", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)))
    (convolution,) = method.adapters
    assert convolution.kernel_size == (3, 3)
    assert 0 < convolution.weight.abs().max() < 1e-3
    assert (convolution.bias == 0).all()
    ends = method.adapter(FeatureSpec(3, 4, 6, True), FeatureSpec(3, 4, 6, True))
    assert (ends(torch.randn(1, 3, 4, 6)) >= 0).all()


def test_a_smaller_teacher_is_near_where_a_cell_that_it_covers_is():
    method = make("fgfi", spec(output=(3, 4, 6)), spec(output=(3, 2, 3)))
    student, teacher, anchors = (
        random_map(2, 3, 4, 6, seed=1),
        random_map(2, 3, 2, 3, seed=2),
        grid(4, 6, 1, (2, 2), (2, 4)),
    )
    near = torch.stack([imitation_mask(boxes, anchors) for boxes in BOXES]).double()
    coarse = near.unflatten(2, (3, 2)).unflatten(1, (2, 2)).amax(dim=(2, 4)).unsqueeze(1)
    pooled = method.adapters[0](student).unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean(dim=(3, 5))
    update = one_update(method, student_of(student, anchors), Knowledge({"output": teacher}))
    expected = 0.01 * imitation_loss([(pooled, teacher, coarse)], 512)
    torch.testing.assert_close(update.losses["fgfi"], expected)


@pytest.mark.parametrize("size", [(4, 6), (2, 3)])
def test_padding_neither_counts_nor_gets_a_gradient(size):
    """0.45 of the width: the third of six columns, none of the second of three. An object reaches up to the edge."""
    method = make("fgfi", spec(output=(3, 4, 6)), spec(output=(3, *size)))
    torch.nn.init.normal_(method.adapters[0].weight)
    student, teacher = random_map(2, 3, 4, 6, seed=1, grad=True), random_map(2, 3, *size, seed=2)
    valid, scale = [(1.0, 0.45), (1.0, 1.0)], torch.tensor([6.0, 4, 6, 4])
    # In the cells' corners: the best anchor of the first object stands on padding, and hides those in the picture.
    anchors = (grid(4, 6, 1, (1, 4)) - 0.5) / scale
    boxes = [torch.tensor([corners], dtype=torch.float64) / scale for corners in ([2.4, 0, 2.7, 4], [0.5, 0, 1.5, 4])]

    def loss(ours: Tensor, theirs: Tensor) -> Tensor:
        knowledge = Knowledge({"output": ours}, boxes=boxes, anchors={"output": anchors}, valid=valid)
        near = method._near(knowledge)[0][0, 0]
        assert torch.equal(near[:, :3], imitation_mask(boxes[0], anchors[:, :3]))
        assert near[:, 2].any() and not near[:, 3:].any()
        return one_update(method, knowledge, Knowledge({"output": theirs}, valid=valid)).losses["fgfi"]

    whole = loss(student, teacher)
    whole.backward()
    paddings = [(Knowledge(valid=valid).mask(feature) == 0).expand_as(feature) for feature in (student, teacher)]
    assert (student.grad[paddings[0]] == 0).all()
    assert (student.grad != 0).any()
    torch.testing.assert_close(loss(student.masked_fill(paddings[0], 9), teacher.masked_fill(paddings[1], -9)), whole)


def test_nothing_is_imitated_during_the_warm_up():
    method = make("fgfi", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), preset="paper")
    warmup, distill = method.stages()
    assert (warmup.steps, distill.steps) == (400, None)
    assert (warmup.needs, warmup.trains_student) == (Needs.STUDENT, True)
    assert list(method.step(warmup, Knowledge(losses=task_losses()), None, None)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["layer3=output"]}, "methods.fgfi.layers: the student has no anchors on 'layer3'; name outputs"),
        ({"threshold": 1.0}, "methods.fgfi.threshold is 1.0"),
        ({"warmup_steps": -1}, "methods.fgfi.warmup_steps is -1"),
        ({"channels": -1}, "methods.fgfi.channels is -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make("fgfi", spec(output=(3, 4, 6), layer3=(3, 4, 6)), spec(output=(3, 4, 6)), **settings)


class TwoMaps(nn.Module):
    """A body of two maps, a sixth and a third of a picture's width to a cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = [channels, channels]
        self.layer = nn.Conv2d(3, channels, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(i): F.adaptive_avg_pool2d(self.layer(images), size) for i, size in enumerate(((4, 6), (2, 3)))}


def test_default_boxes_of_an_ssd_by_hand():
    """All default boxes are 24 x 16 pixels of a picture of 96 x 64, with their centres in cells of 16 and 32 pixels.

    The object is that of the cell (1, 2) of the first map, whose centre is (40, 24): its neighbours in the row are 16
    pixels away and overlap it by 8 x 16, an IoU of 1/5; so does the one at (48, 16) of the second map, by 16 x 8.
    """
    boxes = DefaultBoxGenerator([[], []], scales=[0.25] * 3)
    student, teacher = (SSD(TwoMaps(channels), boxes, (96, 64), 2) for channels in (3, 5))
    targets = [{"boxes": torch.tensor([[28.0, 16, 52, 32]]), "labels": torch.tensor([1])}]
    images = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))]
    for threshold, first, second in ((0.5, [(1, 2)], []), (0.15, [(1, 1), (1, 2), (1, 3)], [(0, 1)])):
        with Distiller(student, teacher, "fgfi", {"threshold": threshold}) as distiller:
            knowledge, _, _ = distiller.task.run(images, targets, distiller.stages[0].needs)
            levels = distiller.method._near(knowledge)
            assert [level.squeeze().nonzero().tolist() for level in levels] == [
                [list(cell) for cell in cells] for cells in (first, second)
            ]
            assert distiller(images, targets)["fgfi"] > 0
