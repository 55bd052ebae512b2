"""Channels-last weights: same values, same parameters; a network that was scored can still be trained."""

from __future__ import annotations

import pickle

import torch

from detkt.data import test_set as held_out_set
from detkt.distiller import Distiller
from detkt.evaluation.detector import detect
from detkt.models.layout import channels_last


def test_values_parameters_and_shapes_stay(detector):
    network = detector().backbone
    parameters, values = list(network.parameters()), [p.detach().clone() for p in network.parameters()]
    channels_last(network)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, network.parameters(), strict=True))
    assert network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not network.conv1.weight.is_contiguous()
    network.to(memory_format=torch.contiguous_format)
    assert all(p.is_contiguous() for p in network.parameters())


def test_a_detector_that_was_scored_can_be_trained(detector, batch, tiny_config):
    student = detector()
    detect(student, held_out_set(tiny_config().data), torch.device("cpu"), batch_size=4, quiet=True)
    assert not any(p.is_inference() for p in student.parameters())
    losses = Distiller(student.train(), None, "none")(*batch)
    sum(losses.values()).backward()
    assert student.backbone.conv1.weight.grad is not None or not student.backbone.conv1.weight.requires_grad


def test_a_compiled_detector_can_be_pickled(detector):
    student = detector()
    distiller = Distiller(student, None, "none")
    distiller.task.compile()
    copied = pickle.loads(pickle.dumps(student))
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), student.parameters(), strict=True))
