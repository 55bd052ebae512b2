"""The frozen norm is torchvision's in value and gradient, and keeps the precision it is given."""

from __future__ import annotations

import pytest
import torch
from torchvision import ops

from detkt.models.frozen_norm import FrozenBatchNorm2d


def pair(channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = FrozenBatchNorm2d(channels).to(dtype), ops.FrozenBatchNorm2d(channels).to(dtype)
    for buffer in ours.buffers():
        buffer.copy_(torch.rand(channels, generator=generator) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(2, channels, 3, 4, generator=generator, dtype=dtype)


def test_values_and_gradients_are_torchvisions():
    ours, theirs, x = pair()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    for norm, leaf in ((ours, first), (theirs, second)):
        (norm(leaf).square() * weight).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradients", [False, True])
def test_half_precision_stays_half(gradients):
    ours, theirs, x = pair(dtype=torch.float32)
    half = x.bfloat16().requires_grad_(gradients)
    found = ours(half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), theirs(half.float()), rtol=2e-2, atol=2e-2)


def test_its_input_is_not_kept_for_gradients():
    ours, _, x = pair()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda packed: packed):
        ours(x.requires_grad_())
    assert all(tensor.numel() == 5 for tensor in saved)
