"""Knowledge from detectors: torchvision's own losses, one transform, no pass too many, nothing kept."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from detkt.base.errors import InputError
from detkt.methods.base import Needs
from detkt.tasks.detection import DetectionTask, as_pyramid, named_outputs

EVERYTHING = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS


def make_task(student, teacher=None, student_layers=(), teacher_layers=(), **classes) -> DetectionTask:
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    task = DetectionTask(student, teacher, **classes)
    task.specs = task.reveal(student_layers, teacher_layers)
    return task


def spy(module, method: str, monkeypatch) -> list:
    """What *method* returns from now on, call by call."""
    returned, original = [], getattr(module, method)

    def call(*args, **kwargs):
        returned.append(original(*args, **kwargs))
        return returned[-1]

    monkeypatch.setattr(module, method, call)
    return returned


def state(*models: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for model in models for tensor in model.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def forbid(*args, **kwargs):
    raise AssertionError("this pass must not run")


@pytest.mark.parametrize("name", ["fasterrcnn_resnet10x0.125_c4", "fasterrcnn_resnet10x0.125_fpn"])
def test_student_losses_are_torchvisions_own(detector, batch, name):
    student = detector(name)
    student.transform.min_size = (48, 64, 80)  # drawn anew for every picture: the transform uses the seed, too
    reference = copy.deepcopy(student)
    task = make_task(student, detector(name, seed=1), ["layer2" if name.endswith("c4") else "body.layer2"])
    torch.manual_seed(3)
    expected = reference(*batch)
    torch.manual_seed(3)
    knowledge, _, _ = task.run(*batch, EVERYTHING)
    assert list(knowledge.losses) == list(expected)
    assert same(list(knowledge.losses.values()), list(expected.values()))
    assert knowledge.classification_loss in knowledge.losses
    assert same(state(student), state(reference))  # live batch norms moved alike
    sum(expected.values()).backward()
    sum(knowledge.losses.values()).backward()
    gradients = [[p.grad for p in model.parameters()] for model in (student, reference)]
    assert same(*gradients)


def test_only_the_passes_in_need_run(detector, batch, monkeypatch):
    task = make_task(detector(), detector(seed=1))
    monkeypatch.setattr(task.teacher.rpn, "forward", forbid)
    task.run(*batch, EVERYTHING)
    monkeypatch.setattr(task.teacher.roi_heads.box_head, "forward", forbid)
    student, teacher, _ = task.run(*batch, Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_FEATURES)
    assert student.logits is not None
    assert teacher.logits is None
    monkeypatch.setattr(task.teacher.backbone, "forward", forbid)
    student, teacher, _ = task.run(*batch, Needs.STUDENT)
    assert (teacher, student.logits, student.labels) == (None, None, None)
    monkeypatch.undo()
    monkeypatch.setattr(task.student.backbone, "forward", forbid)
    student, teacher, _ = task.run(*batch, Needs.TEACHER_FEATURES)
    assert student is None
    assert not teacher.losses


def test_both_nets_see_the_same_tensor(detector, batch, monkeypatch):
    task = make_task(detector(), detector(seed=1, min_size=32))
    monkeypatch.setattr(task.teacher.transform, "forward", forbid)
    seen = []
    for model in (task.student, task.teacher):
        model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task.run(*batch, EVERYTHING)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0].shape == (2, 3, 64, 96)


@pytest.mark.parametrize("teacher_name", ["fasterrcnn_resnet10x0.25_c4", "fasterrcnn_resnet10x0.125_fpn"])
def test_logits_are_of_the_students_sampled_rois(detector, batch, monkeypatch, teacher_name):
    task = make_task(detector(), detector(teacher_name, num_classes=6, seed=1))
    sampled = spy(task.student.roi_heads, "select_training_samples", monkeypatch)
    student, teacher, _ = task.run(*batch, EVERYTHING)
    (proposals, _, labels, _) = sampled[0]
    assert torch.equal(student.labels, torch.cat(labels))
    assert len(student.labels.unique()) == 4  # background and the three objects
    assert student.logits.shape == (len(student.labels), 4)
    loss = nn.functional.cross_entropy(student.logits, student.labels)
    assert torch.equal(loss, student.losses[student.classification_loss])

    heads, features = task.teacher.roi_heads, as_pyramid(teacher.features)
    pooled = heads.box_roi_pool(features, proposals, [(64, 80), (53, 96)])
    assert torch.equal(teacher.logits, heads.box_predictor(heads.box_head(pooled))[0])
    assert teacher.logits.shape == (len(student.labels), 6)


def test_a_picture_without_objects_has_background_alone(detector, batch):
    images, targets = batch
    targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    student, _, _ = make_task(detector(), detector(seed=1)).run(images, targets, EVERYTHING)
    assert torch.isfinite(sum(student.losses.values()))
    assert set(student.labels.tolist()) == {0, 2, 3}
    assert (student.labels[: len(student.labels) // 2] == 0).all()


def test_boxes_stay_in_single_precision_under_autocast(detector, batch, monkeypatch):
    """In bfloat16 a coordinate above 256 is a multiple of 2, and rounded anchors would stay in the model."""
    student = detector(anchor_sizes=[16, 300], min_size=288, max_size=432)
    task = make_task(student, detector(seed=1))
    anchors = spy(student.rpn.anchor_generator, "forward", monkeypatch)
    decoded = spy(student.rpn.box_coder, "decode", monkeypatch)
    sampled = spy(student.roi_heads, "select_training_samples", monkeypatch)
    with torch.no_grad():
        task.run(*batch, Needs.STUDENT)
        with torch.autocast("cpu", torch.bfloat16):
            knowledge, teacher, _ = task.run(*batch, EVERYTHING)
    assert knowledge.features["output"].dtype == torch.bfloat16  # the backbone ran in it
    assert torch.equal(anchors[1][0], anchors[0][0])
    assert anchors[1][0].dtype == decoded[1].dtype == torch.float32
    proposals, _, _, regression_targets = sampled[1]
    assert proposals[0].dtype == regression_targets[0].dtype == torch.float32
    assert {loss.dtype for loss in knowledge.losses.values()} == {torch.float32}
    assert knowledge.logits.dtype == teacher.logits.dtype == torch.float32
    assert student.rpn.anchor_generator.cell_anchors[0].dtype == torch.float32


def test_inner_layers_are_revealed_by_name(detector, batch):
    task = make_task(
        detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1), ["layer2", "output"], ["layer1.0.conv1"]
    )
    student_spec, teacher_spec = task.specs
    assert set(student_spec.features) == {"output", "layer2"}
    assert set(teacher_spec.features) == {"output", "layer1.0.conv1"}
    layer2 = student_spec.features["layer2"]
    assert (layer2.channels, layer2.height, layer2.width, layer2.nonnegative) == (16, 8, 12, True)
    assert not teacher_spec.features["layer1.0.conv1"].nonnegative
    student, teacher, _ = task.run(*batch, EVERYTHING)
    assert student.features["layer2"].shape == (2, 16, 8, 12)
    assert teacher.features["layer1.0.conv1"].shape == (2, 16, 16, 24)
    assert torch.equal(task.student.backbone.layer3(student.features["layer2"]), student.features["output"])
    assert student.features["output"].requires_grad
    assert not teacher.features["output"].requires_grad


def test_outputs_of_a_pyramid_are_named_by_level(detector, batch):
    task = make_task(detector("fasterrcnn_resnet10x0.125_fpn"), None, ["body.layer3"])
    levels = ["output.0", "output.1", "output.2", "output.3", "output.pool"]
    assert list(task.specs[0].features) == [*levels, "body.layer3"]
    student, _, _ = task.run(*batch, Needs.STUDENT)
    sizes = [student.features[name].shape[-2:] for name in levels]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert not task.specs[0].features["output.0"].nonnegative
    assert list(as_pyramid(student.features)) == ["0", "1", "2", "3", "pool"]
    assert list(as_pyramid(named_outputs(torch.zeros(1)))) == ["0"]


def test_the_probe_leaves_no_trace(detector):
    """Both nets are probed at the size they will see, the student's, and neither they nor the seed are changed."""
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1, min_size=96)
    student.backbone.layer1.eval()
    before, modes = state(student, teacher), [m.training for m in student.modules()]
    random = torch.get_rng_state()
    task = make_task(student, teacher)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(state(student, teacher), before)
    assert [m.training for m in student.modules()] == modes
    maps = [spec.features["output"] for spec in task.specs]
    assert [(m.channels, m.height, m.width) for m in maps] == [(32, 4, 6), (64, 4, 6)]
    assert [spec.num_classes for spec in task.specs] == [4, 4]


def test_padding_is_told_by_picture(detector, batch):
    task = make_task(detector(), None)
    student, _, _ = task.run(*batch, Needs.STUDENT)
    assert student.valid == [(1.0, 80 / 96), (53 / 64, 1.0)]
    assert student.mask(student.features["output"]).sum(dim=(1, 2, 3)).tolist() == [4 * 5, 3 * 6]
    images, targets = batch
    whole = [nn.functional.interpolate(image[None], (64, 96))[0] for image in images]
    student, _, _ = task.run(whole, targets, Needs.STUDENT)
    assert student.valid is None


def test_heads_score_a_map_without_changing(detector, batch):
    student, teacher = detector(seed=1), detector()
    task = make_task(student, teacher)
    knowledge, _, heads = task.run(*batch, EVERYTHING)
    before, modes = state(student, teacher), [m.training for net in (student, teacher) for m in net.modules()]
    feature = knowledge.features["output"].detach().requires_grad_()
    for role in ("student", "teacher"):
        losses = heads.task_losses({"output": feature}, role)
        assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
        (gradient,) = torch.autograd.grad(sum(losses.values()), feature)
        assert gradient.abs().sum() > 0
    assert same(state(student, teacher), before)
    assert [m.training for net in (student, teacher) for m in net.modules()] == modes
    with pytest.raises(IndexError):
        heads.task_losses({"nothing": feature}, "teacher")
    assert [m.training for net in (student, teacher) for m in net.modules()] == modes


def test_the_students_head_scores_as_in_training(detector, batch):
    task, random = make_task(detector(norm="frozen")), []
    task.student.rpn.register_forward_pre_hook(lambda module, inputs: random.append(torch.get_rng_state()))
    knowledge, _, heads = task.run(*batch, Needs.STUDENT)
    torch.set_rng_state(random[0])
    losses = heads.task_losses(knowledge.features, "student")
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in knowledge.losses.items()}


def assert_gradients_reach(feature, net, values):
    """Those of what *net*'s head made of *feature*: it, and no parameter."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    reached = torch.autograd.grad(values.sum(), [feature, *parameters], allow_unused=True)
    assert reached[0].abs().sum() > 0
    assert set(reached[1:]) <= {None}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_rows_are_those_of_the_students_regions(detector, batch, role):
    """The head's scores on a map are those of the pass itself, and gradients reach the map alone."""
    student, teacher = detector(norm="frozen"), detector(seed=1, norm="frozen")
    task = make_task(student, teacher)
    ours, theirs, heads = task.run(*batch, EVERYTHING)
    knowledge = {"student": ours, "teacher": theirs}[role]
    feature = knowledge.features["output"].detach().requires_grad_()
    requires = [p.requires_grad for net in (student, teacher) for p in net.parameters()]
    rows = heads.rows({"output": feature}, role)
    assert torch.allclose(rows.logits, knowledge.logits, atol=1e-6)
    assert torch.equal(rows.classes, ours.labels)
    net = {"student": student, "teacher": teacher}[role]
    assert torch.allclose(net.roi_heads.box_predictor(rows.vectors)[0], rows.logits, atol=1e-6)
    assert rows.vectors.shape[1] == task.specs[0].scores.width
    assert [p.requires_grad for net in (student, teacher) for p in net.parameters()] == requires
    assert_gradients_reach(feature, net, rows.logits)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_objectness_is_that_of_the_first_stage(detector, batch, role):
    """Of every anchor of every cell, before the sigmoid; gradients reach the map alone."""
    student, teacher = detector(norm="frozen"), detector(seed=1, norm="frozen")
    task = make_task(student, teacher)
    ours, theirs, heads = task.run(*batch, EVERYTHING)
    net = {"student": student, "teacher": teacher}[role]
    feature = {"student": ours, "teacher": theirs}[role].features["output"].detach().requires_grad_()
    requires = [p.requires_grad for p in net.parameters()]
    scores = heads.objectness({"output": feature}, role)["output"]
    assert torch.allclose(scores, net.rpn.head([feature])[0][0], atol=1e-6)
    assert scores.shape == (len(batch[0]), task.specs[0].scores.rpn_anchors, *feature.shape[2:])
    assert [p.requires_grad for p in net.parameters()] == requires
    assert_gradients_reach(feature, net, scores)


def test_nothing_outlives_the_step(detector, batch):
    """Without the garbage collector: a graph that lives until the next step doubles the memory."""
    task = make_task(detector(), detector(seed=1), ["layer2"], ["layer2"])
    student, teacher, heads = task.run(*batch, EVERYTHING)
    tensors = [*student.features.values(), *teacher.features.values(), student.logits, teacher.logits]
    tensors += list(heads.task_losses({"output": student.features["output"]}, "student").values())
    tensors += [heads.rows({"output": student.features["output"]}, "student").logits]
    tensors += list(heads.objectness({"output": student.features["output"]}, "student").values())
    kept = [weakref.ref(tensor) for tensor in tensors]
    del student, teacher, heads, tensors
    assert [ref() for ref in kept] == [None] * len(kept)
    # Nor does a pass of the student outside the task leave anything behind.
    logits = []
    task.student.roi_heads.box_predictor.register_forward_hook(lambda m, i, out: logits.append(weakref.ref(out[0])))
    task.student(*batch)
    assert logits[0]() is None


def test_the_teacher_sees_pictures_in_its_own_normalisation(detector, batch):
    """What it would see of the same picture alone, and zeros as padding."""
    student, teacher = detector(), detector(seed=1, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2])
    seen = []
    teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task = make_task(student, teacher)
    seen.clear()
    task.run(*batch, EVERYTHING)
    expected = teacher.transform([image.clone() for image in batch[0]])[0].tensors
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    assert (seen[0][1, :, 53:] == 0).all()
    rounded = detector(seed=1, image_mean=[0.4850001, 0.456, 0.406])
    assert DetectionTask(student, rounded)._to_teacher is None


def test_inputs_follow_the_student_to_its_device(detector, batch):
    moved = []

    class Elsewhere(torch.Tensor):
        def to(self, device, non_blocking):
            moved.append(device)
            return self.as_subclass(torch.Tensor)

    images, targets = batch
    target = {key: value.as_subclass(Elsewhere) for key, value in targets[0].items()}
    images = [images[0].as_subclass(Elsewhere)]
    make_task(detector()).run(images, [{**target, "image_id": 7}], Needs.STUDENT)
    assert moved == [torch.device("cpu")] * 3


def test_wrong_layers_are_named(detector):
    with pytest.raises(InputError, match=r"the student's backbone has no layer 'layer33' \(did you mean 'layer3'\?\)"):
        make_task(detector(), None, ["layer33"])
    teacher = detector("fasterrcnn_resnet10x0.125_fpn")
    with pytest.raises(InputError, match=r"the teacher's backbone has no layer 'layer3' \(did you mean 'body\.layer3'"):
        make_task(detector(), teacher, [], ["layer3"])
    with pytest.raises(InputError, match=r"layer 'body' of the student's backbone gives no map"):
        make_task(detector("fasterrcnn_resnet10x0.125_fpn"), None, ["body"])


def test_unfit_networks_are_refused(detector, batch):
    with pytest.raises(InputError, match="the student is a Linear, not a torchvision detector"):
        DetectionTask(nn.Linear(1, 1))
    with pytest.raises(InputError, match="the teacher is a Linear"):
        DetectionTask(detector(), nn.Linear(1, 1))
    student = detector()
    with pytest.raises(InputError, match="same object"):
        DetectionTask(student, student)
    shared = detector()
    shared.backbone = student.backbone
    with pytest.raises(InputError, match=r"share a parameter \('backbone\..*' and 'backbone\."):
        DetectionTask(student, shared)
    with pytest.raises(InputError, match="teacher_classes has 2 names, but the teacher has 4 classes"):
        make_task(student, detector(), student_classes=["a", "b", "c"], teacher_classes=["a", "b"])
    task = make_task(student, detector(), student_classes=["a", "b", "c"])
    assert [spec.classes for spec in task.specs] == [("a", "b", "c"), ()]
    student.eval()
    with pytest.raises(InputError, match="the student is in evaluation mode"):
        task.run(*batch, EVERYTHING)
    task.run(*batch, Needs.TEACHER_FEATURES)


def test_large_pictures_pass_the_teacher_one_by_one(detector, batch, monkeypatch):
    """The maps are those of the batch; the student's pass comes after, when the teacher's activations are gone."""
    student, teacher = detector(), detector(seed=1)
    task, order = make_task(student, teacher, ["layer2"], ["layer2"]), []
    whole = task.run(*batch, EVERYTHING)[1].features
    student.backbone.register_forward_pre_hook(lambda module, inputs: order.append("student"))
    teacher.backbone.register_forward_pre_hook(lambda module, inputs: order.append(len(inputs[0])))
    monkeypatch.setattr("detkt.tasks.detection.PIXELS_AT_ONCE", 1)
    parts = task.run(*batch, EVERYTHING)[1].features
    assert order == [1, 1, "student"]
    assert list(parts) == list(whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


OBJECTS = Needs.STUDENT | Needs.BOXES | Needs.ANCHORS


def test_boxes_are_shares_of_the_padded_batch(detector, batch):
    images, targets = batch
    targets[1] |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    student, _, _ = make_task(detector()).run(images, targets, OBJECTS)
    first, second = student.boxes
    # The picture of 64 x 80 stays as it is, in a batch of 64 x 96.
    torch.testing.assert_close(first, torch.tensor([[5 / 96, 5 / 64, 35 / 96, 40 / 64]]))
    assert second.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "strides", "each"),
    [
        ("fasterrcnn_resnet10x0.125_c4", {"output": 16}, 6),
        (
            "fasterrcnn_resnet10x0.125_fpn",
            {"output.0": 4, "output.1": 8, "output.2": 16, "output.3": 32, "output.pool": 64},
            3,
        ),
    ],
)
def test_anchors_are_the_rpns_own_in_their_cells(detector, batch, monkeypatch, name, strides, each):
    task = make_task(detector(name))
    used = spy(task.student.rpn.anchor_generator, "forward", monkeypatch)
    student, _, _ = task.run(*batch, OBJECTS)
    assert list(student.anchors) == list(strides)
    size = torch.tensor([96.0, 64, 96, 64])
    flat = torch.cat([(anchors * size).reshape(-1, 4) for anchors in student.anchors.values()])
    torch.testing.assert_close(flat, used[0][0], atol=1e-4, rtol=0)
    for output, anchors in student.anchors.items():
        height, width = student.features[output].shape[2:]
        assert anchors.shape == (height, width, each, 4)
        assert strides[output] in (96 // width, 64 // height)  # the last level's cells are cut by the picture's edge
        centres = (anchors[..., :2] + anchors[..., 2:]) / 2 * size[:2]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        expected = torch.stack([columns, rows], dim=-1)[:, :, None] * torch.tensor([96.0 // width, 64 // height])
        torch.testing.assert_close(centres, expected.expand_as(centres), atol=1e-3, rtol=0)


def test_boxes_and_anchors_are_there_only_where_asked_for(detector, batch, monkeypatch):
    task = make_task(detector())
    student, _, _ = task.run(*batch, Needs.STUDENT)
    assert (student.boxes, student.anchors) == (None, {})
    used = spy(task.student.rpn.anchor_generator, "forward", monkeypatch)
    with torch.no_grad():
        student, _, _ = task.run(*batch, Needs.STUDENT | Needs.BOXES)
    assert len(student.boxes) == 2
    assert not student.anchors
    assert len(used) == 1  # for the student's own losses


def test_anchors_are_exact_whatever_the_precision(detector, batch):
    task = make_task(detector(min_size=160, max_size=240))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = task.run(*batch, OBJECTS)[0].anchors["output"]
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, task.run(*batch, OBJECTS)[0].anchors["output"])
