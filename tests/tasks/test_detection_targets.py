"""Targets of one's own loop: what torchvision would turn into a traceback or garbage is refused in one line."""

from __future__ import annotations

import pytest
import torch

from detkt.base.errors import InputError
from detkt.methods.base import Needs
from detkt.tasks.detection import DetectionTask, _check_target

NEEDS = Needs.STUDENT
BOX = [5.0, 5.0, 30.0, 40.0]


@pytest.fixture
def run(detector):
    """``run(boxes, labels)``: a batch of two pictures, the second with these targets."""
    task = DetectionTask(detector().train())
    task.reveal([], [])
    good = {"boxes": torch.tensor([BOX]), "labels": torch.tensor([1])}

    def losses(boxes, labels):
        given = {"boxes": torch.as_tensor(boxes), "labels": torch.as_tensor(labels)}
        return task.run([torch.rand(3, 64, 64)] * 2, [good, given], NEEDS)[0].losses

    return losses


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([BOX, [30.0, 5, 5, 40]], [1, 2], r"box \[30.0, 5.0, 5.0, 40.0\] is inverted, empty or not finite"),
        ([[5.0, 40, 30, 5]], [1], r"box \[5.0, 40.0, 30.0, 5.0\] is inverted"),
        ([[5.0, 5, 5, 40]], [1], r"box \[5.0, 5.0, 5.0, 40.0\] is inverted, empty"),
        ([[5.0, 5, float("inf"), 40]], [1], r"box \[5.0, 5.0, inf, 40.0\] is"),
        ([[float("nan"), 5, 30, 40]], [1], r"box \[nan, 5.0, 30.0, 40.0\] is"),
        ([BOX], [4], r"labels \[4\]; they must be 1 to 3 \(0 is the background\)"),
        ([BOX, BOX], [0, 1], r"labels \[0, 1\]; they must be 1 to 3"),
        ([BOX], [-1], r"labels \[-1\]"),
        (BOX, [1], r"boxes of shape \(4,\) and labels of shape \(1,\); they must be \(n, 4\) and \(n,\)"),
        ([BOX[:3]], [1], r"boxes of shape \(1, 3\)"),
        ([BOX], [1, 2], r"boxes of shape \(1, 4\) and labels of shape \(2,\)"),
    ],
)
def test_faulty_targets_are_refused(run, boxes, labels, message):
    with pytest.raises(InputError, match=f"^target 1 of the batch: {message}") as refused:
        run(boxes, labels)
    assert "\n" not in str(refused.value)


def test_a_picture_without_objects_is_legal(run):
    losses = run(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert all(loss.isfinite() for loss in losses.values())


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on another device, where to look at its values would mean to wait."""

    is_cpu = False

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist):
            pytest.fail("it was waited for")
        return super().__torch_function__(function, types, arguments, options or {})


def test_values_on_another_device_are_not_looked_at():
    target = {"boxes": torch.tensor([[30.0, 5, 5, 40]]), "labels": torch.tensor([9])}
    _check_target({key: value.as_subclass(Elsewhere) for key, value in target.items()}, "target", 4)
    with pytest.raises(InputError, match="shape"):
        _check_target({"boxes": target["boxes"][0].as_subclass(Elsewhere), "labels": target["labels"]}, "target", 4)
