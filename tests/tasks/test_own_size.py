"""The teacher at its own size: what it sees, value by value, and that regions, padding, layers and losses follow."""

from __future__ import annotations

import copy

import pytest
import torch
from test_matrix import BATCH, NETS, SETTINGS

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.methods.base import Needs
from detkt.models import build_classifier
from detkt.tasks.detection import DetectionTask

EVERYTHING = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS
PLAIN = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}


@pytest.fixture
def task(detector):
    """``task(teacher's options, own_size)``: the task of a student at 64 to 96 pixels, and what its teacher saw."""

    def make(options, own_size=True, name="fasterrcnn_resnet10x0.125_c4"):
        student, teacher = detector(name), detector(name, seed=1, **options)
        seen = []
        teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        found = DetectionTask(student, teacher, own_size=own_size)
        found.specs = found.reveal([], [])
        seen.clear()
        return found, seen

    return make


def doubled(row):
    """Twice as many values of a line by bilinear interpolation with half pixels: by hand."""
    before, after = torch.cat([row[:1], row[:-1]]), torch.cat([row[1:], row[-1:]])
    return torch.stack([0.25 * before + 0.75 * row, 0.75 * row + 0.25 * after], dim=1).flatten()


def test_at_twice_the_size_it_sees_the_picture_interpolated(task):
    found, seen = task({"min_size": 128, "max_size": 192, **PLAIN})
    image = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))
    found.run([image], [BATCH["targets"][0]], EVERYTHING)
    rows = torch.stack([torch.stack([doubled(row) for row in channel]) for channel in image])
    expected = torch.stack([torch.stack([doubled(column) for column in channel.T]).T for channel in rows])
    # The student's batch is 64 x 96, of which the picture takes 80.
    assert seen[0].shape == (1, 3, 128, 192)
    torch.testing.assert_close(seen[0][0, :, :, :160], expected, rtol=0, atol=1e-6)
    assert not seen[0][0, :, :, 160:].any()
    assert doubled(torch.tensor([0.0, 4.0])).tolist() == [0, 1, 3, 4]


def test_no_detail_is_lost_where_the_picture_is_larger_than_the_students_view(task):
    """A picture of 128 x 128, of which the student sees 64 x 64, and the teacher all."""
    found, seen = task({"min_size": 128, "max_size": 192, **PLAIN})
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    found.run([image], [BATCH["targets"][0]], EVERYTHING)
    assert torch.equal(seen[0][0], image)


def test_equal_sizes_change_no_bit(task, batch):
    views, losses = [], []
    for own_size in (False, True):
        found, seen = task({"image_mean": [0.5, 0.4, 0.3]}, own_size)
        torch.manual_seed(0)
        student, teacher, _ = found.run(*batch, EVERYTHING)
        views.append(seen[0])
        losses.append([teacher.features["output"], teacher.logits, student.logits])
        assert found.own_size is None
    assert torch.equal(*views)
    assert all(torch.equal(*pair) for pair in zip(*losses, strict=True))


def test_padding_lies_where_the_students_lies(task, batch):
    """64 x 80 and 53 x 96 in 64 x 96; one and a half times that would be 96 x 144, of which 32 makes 96 x 128."""
    found, seen = task({"min_size": 96, "max_size": 144, **PLAIN})
    student, teacher, _ = found.run(*batch, EVERYTHING)
    assert seen[0].shape == (2, 3, 96, 128)
    for picture, (height, share) in zip(seen[0], ((96, 80 / 96), (round(96 * 53 / 64), 1)), strict=True):
        filled = picture.abs().sum(dim=0) > 0
        width = round(share * 128)
        assert filled[:height, :width].all()
        assert not filled[height:].any() and not filled[:, width:].any()
    assert student.valid == teacher.valid == [(1.0, 80 / 96), (53 / 64, 1.0)]


def test_its_head_scores_the_students_regions_where_they_are_at_its_size(task, batch):
    found, _ = task({"min_size": 128, "max_size": 192})
    regions = []
    head = found.teacher.roi_heads
    pool = head.box_roi_pool
    pool.register_forward_pre_hook(lambda module, inputs: regions.append((inputs[1], inputs[2])))
    ours = []
    found.student.roi_heads.box_roi_pool.register_forward_pre_hook(lambda module, inputs: ours.append(inputs[1]))
    student, teacher, heads = found.run(*batch, EVERYTHING)
    (proposals,), ((theirs, sizes),) = ours, regions
    for one, other in zip(proposals, theirs, strict=True):
        torch.testing.assert_close(2 * one, other)
    assert sizes == [(128, 160), (106, 192)]
    pooled = pool({"0": teacher.features["output"]}, theirs, sizes)
    assert torch.equal(teacher.logits, head.box_predictor(head.box_head(pooled))[0])
    # What the teacher's own losses are on the batch at its size, with its boxes.
    boxes = []
    found.teacher.rpn.register_forward_pre_hook(lambda module, inputs: boxes.extend(one["boxes"] for one in inputs[2]))
    losses = heads.task_losses(teacher.features, "teacher")
    # 50 x 90 pixels are 53 x 96 in the student's batch.
    scale = torch.tensor([96 / 90, 53 / 50] * 2)
    expected = [2 * batch[1][0]["boxes"], 2 * scale * batch[1][1]["boxes"]]
    for one, other in zip(boxes, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert losses.keys() == student.losses.keys() and all(loss.isfinite() for loss in losses.values())


def test_layers_are_matched_by_stride_whatever_the_size(detector):
    name = "fasterrcnn_resnet10x0.125_fpn"
    nets = detector(name), detector(name, seed=1, min_size=128, max_size=192)
    with Distiller(*nets, "pkd", own_size=True) as distiller:
        assert all(pair.student == pair.teacher for pair in distiller.method.pairs())
        ours, theirs = distiller.method.student_spec, distiller.method.teacher_spec
        assert theirs.height == 2 * ours.height
        assert theirs.features["output.0"].height == 2 * ours.features["output.0"].height
    with Distiller(*nets, "pkd") as distiller:
        assert distiller.method.teacher_spec.height == distiller.method.student_spec.height


PAIRS = [("c4", "c4-teacher"), ("fpn", "fpn-teacher"), ("c4", "fpn-teacher"), ("fcos", "retinanet-teacher")]
METHODS = ["ktan", "kd", "dist", "fitnet", "at", "fgd", "pkd", "cwd", "mgd", "fgfi", "crosskd"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_a_step_or_a_refusal(student, teacher, method):
    ours, theirs = NETS[student](), NETS[teacher]()
    theirs.transform.min_size, theirs.transform.max_size = (96,), 144
    ours.train()
    arguments = (ours, theirs, method, SETTINGS.get(method))
    dense = student == "fcos"
    if method == "crosskd" or (dense and method in ("kd", "dist")):
        known = "needs the towers" if not dense else "with teacher.own_size the teacher's pictures have another size"
        with pytest.raises(InputError, match=known) as refused:
            Distiller(*arguments, own_size=True)
        assert "\n" not in str(refused.value)
        return
    before = copy.deepcopy(theirs.state_dict())
    with Distiller(*arguments, own_size=True) as distiller:
        distiller.train().prepare([(BATCH["images"], BATCH["targets"])])
        losses = distiller(BATCH["images"], BATCH["targets"])
        assert all(loss.isfinite() for loss in losses.values())
        added = [loss for name, loss in losses.items() if name.startswith(method)]
        assert added
        torch.stack(added).sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in ours.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_it_is_for_detectors(tiny_config, tiny_classifier_file):
    assert tiny_config("teacher.own_size=true").teacher.own_size
    with pytest.raises(InputError, match=r"'teacher.own_size' is for detectors; pictures of classifiers have the size"):
        load_config(tiny_classifier_file, ["teacher.own_size=true"])
    nets = [build_classifier("cifar_resnet8x0.25", 4) for _ in range(2)]
    with pytest.raises(InputError, match="own_size is for detectors, whose transforms"):
        Distiller(*nets, "kd", own_size=True)


def test_a_transform_of_its_own_ways_is_told(detector):
    student, teacher = detector(), detector(seed=1)
    teacher.transform.__dict__.pop("max_size")
    with pytest.raises(InputError, match=r"own_size: the teacher's transform is a GeneralizedRCNNTransform, not"):
        DetectionTask(student, teacher, own_size=True)
