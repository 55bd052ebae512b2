"""FGD: its masks, attentions, errors and relation, each against plain loops; padding, pictures without objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import make, one_update, random_map, rectangle_mask, spec
from torch import Tensor

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge, Scores
from detkt.methods import method_class
from detkt.methods.fgd import ContextBlock, attention, background_mask, focal_errors, foreground_mask
from detkt.methods.paired_maps import kind_of_weights
from detkt.methods.reductions import squared_error

SIZES = [(3, 7), (5, 2)]
NO_BOXES = torch.zeros(0, 4, dtype=torch.float64)


def boxes(*corners: tuple[float, ...]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def test_foreground_of_a_wide_box_by_hand():
    """Columns floor(1.5) to ceil(3.2), rows floor(0.5) to ceil(0.9): 2 x 4 cells of a map of 4 x 6."""
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[0:2, 1:5] = 1 / 8
    torch.testing.assert_close(foreground_mask(boxes((1.5, 0.5, 3.2, 0.9)), 4, 6), expected)
    torch.testing.assert_close(foreground_mask(boxes((0.5, 1.5, 0.9, 3.2)), 6, 4), expected.T)


def test_foreground_takes_the_smallest_box_over_a_cell():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, [7, 5], (3, 2, 2)) * [0.6, 1]
    given = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    expected = np.zeros((5, 7))
    for x1, y1, x2, y2 in given:
        left, top, right, bottom = np.floor(x1), np.floor(y1), np.ceil(x2), np.ceil(y2)
        for row, column in np.ndindex(expected.shape):
            if top <= row <= bottom and left <= column <= right:
                share = 1 / ((bottom - top + 1) * (right - left + 1))
                expected[row, column] = max(expected[row, column], share)
    np.testing.assert_allclose(foreground_mask(torch.from_numpy(given), 5, 7).numpy(), expected, atol=1e-12)
    assert (expected == 0).any()


def test_masks_of_a_picture_without_objects():
    foreground = foreground_mask(NO_BOXES, 3, 4)[None, None]
    assert foreground.shape == (1, 1, 3, 4)
    assert (foreground == 0).all()
    torch.testing.assert_close(background_mask(foreground), torch.full((1, 1, 3, 4), 1 / 12, dtype=torch.float64))


def test_background_is_a_mean_over_the_cells_that_show_picture_and_no_box():
    foreground = torch.stack([foreground_mask(boxes((0, 0, 1, 1)), 5, 7), torch.ones(5, 7).double()])[:, None]
    background = background_mask(foreground, rectangle_mask(5, 7, SIZES))
    expected = torch.zeros(5, 7, dtype=torch.float64)
    expected[:3] = 1 / 17  # 3 x 7 cells less 2 x 2
    expected[:2, :2] = 0
    torch.testing.assert_close(background[0, 0], expected)
    assert (background[1] == 0).all()  # a box over all of it


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_attention_equals_its_formula(sizes):
    feature = 2 * random_map(2, 3, 5, 7, seed=1)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    spatial, channel = attention(feature, 0.5, mask)
    assert spatial.shape == (2, 1, 5, 7)
    assert channel.shape == (2, 3, 1, 1)
    for i, (h, w) in enumerate(sizes):
        magnitude = np.abs(feature[i, :, :h, :w].numpy())
        over_cells = h * w * softmax(magnitude.mean(axis=0) / 0.5)
        np.testing.assert_allclose(spatial[i, 0, :h, :w].numpy(), over_cells, atol=1e-12)
        assert spatial[i].sum().item() == pytest.approx(h * w)
        over_channels = 3 * softmax(magnitude.mean(axis=(1, 2)) / 0.5)
        np.testing.assert_allclose(channel[i, :, 0, 0].numpy(), over_channels, atol=1e-12)


def test_focal_errors_equal_their_formula():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    foreground, background, spatial = (random_map(2, 1, 4, 6, seed=seed).abs() for seed in (3, 4, 5))
    channel = random_map(2, 3, 1, 1, seed=6).abs()
    expected = np.zeros((2, 2))
    for n, c, h, w in np.ndindex(2, 3, 4, 6):
        error = spatial[n, 0, h, w] * channel[n, c, 0, 0] * (student[n, c, h, w] - teacher[n, c, h, w]) ** 2
        expected[0, n] += foreground[n, 0, h, w] * error
        expected[1, n] += background[n, 0, h, w] * error
    found = focal_errors(student, teacher, foreground, background, spatial, channel)
    np.testing.assert_allclose(torch.stack(found).numpy(), expected, rtol=1e-12)


@pytest.fixture
def block() -> ContextBlock:
    """A context block that is no longer the identity."""
    torch.manual_seed(0)
    block = ContextBlock(4).double()
    for parameter in block.transform[-1].parameters():
        torch.nn.init.normal_(parameter)
    return block


def test_a_new_context_block_is_the_identity():
    feature = random_map(2, 5, 4, 6)
    assert torch.equal(ContextBlock(5).double()(feature), feature)


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_relation_equals_its_formula(block, sizes):
    feature = random_map(2, 4, 5, 7, seed=1)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    related = block(feature, mask).detach().numpy()
    values = {name: p.detach().numpy() for name, p in block.named_parameters()}
    for i, (h, w) in enumerate(sizes):
        x = feature[i, :, :h, :w].numpy()
        where = np.einsum("c,chw->hw", values["where.weight"][0, :, 0, 0], x) + values["where.bias"]
        context = np.einsum("hw,chw->c", softmax(where), x)
        hidden = values["transform.0.weight"][:, :, 0, 0] @ context + values["transform.0.bias"]
        normal = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        normal = normal * values["transform.1.weight"].ravel() + values["transform.1.bias"].ravel()
        added = values["transform.3.weight"][:, :, 0, 0] @ np.maximum(normal, 0) + values["transform.3.bias"]
        np.testing.assert_allclose(related[i, :, :h, :w], x + added[:, None, None], atol=1e-12)


def loss(block: ContextBlock, student: Tensor, teacher: Tensor, objects: list[Tensor], mask: Tensor | None) -> Tensor:
    """All four terms of each picture (N,), by weights of 1."""
    foreground = torch.stack([foreground_mask(found, *student.shape[2:]) for found in objects])[:, None]
    (ours, our_channels), (theirs, their_channels) = attention(student, 0.5, mask), attention(teacher, 0.5, mask)
    errors = focal_errors(student, teacher, foreground, background_mask(foreground, mask), theirs, their_channels)
    difference = (ours - theirs).abs().sum(dim=(1, 2, 3)) + (our_channels - their_channels).abs().sum(dim=(1, 2, 3))
    return sum(errors) + difference + squared_error(block(student, mask), block(teacher, mask), mask)


OBJECTS = [boxes((1, 0.5, 2.5, 2), (2, 2, 6.5, 3)), NO_BOXES]


def test_a_padded_batch_is_its_pictures_one_by_one(block):
    student, teacher = random_map(2, 4, 5, 7, seed=1), random_map(2, 4, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, SIZES)
    # What boxes cover beyond a picture's edge is padding: it counts for their size, but not for the error.
    whole = loss(block, student, teacher, OBJECTS, mask)
    for i, (h, w) in enumerate(SIZES):
        alone = loss(block, student[i : i + 1, :, :h, :w], teacher[i : i + 1, :, :h, :w], OBJECTS[i : i + 1], None)
        if i == 0:
            padded = foreground_mask(OBJECTS[0], 5, 7)[None, None] * mask[:1]
            torch.testing.assert_close(padded[0, 0, :h, :w], foreground_mask(OBJECTS[0], h, w))
        torch.testing.assert_close(whole[i : i + 1], alone)


def test_gradient(block):
    student, teacher = random_map(2, 4, 3, 4, seed=1, grad=True), random_map(2, 4, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: loss(block, s, teacher, OBJECTS, mask).sum(), student)
    loss(block, student, teacher, OBJECTS, mask).sum().backward()
    padding = (mask == 0).expand_as(student)
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()


def test_constant_maps_and_half_precision():
    constant = torch.full((1, 3, 4, 6), 3.3)
    spatial, channel = attention(constant)
    torch.testing.assert_close(spatial, torch.ones(1, 1, 4, 6))
    torch.testing.assert_close(channel, torch.ones(1, 3, 1, 1))
    narrow = random_map(2, 3, 30, 40, seed=1).bfloat16()
    for found, expected in zip(attention(narrow), attention(narrow.float()), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


SHAPES = {"output_0": (4, 6, 8), "output_1": (4, 3, 4)}
SHARES = [boxes((0.1, 0.2, 0.4, 0.9), (0.3, 0, 0.5, 0.3)), NO_BOXES]
VALID = [(1.0, 1.0), (1.0, 0.5)]


def knowledge(seed: int, valid: list[tuple[float, float]] | None) -> Knowledge:
    maps = {
        name.replace("_", "."): random_map(2, *shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())
    }
    return Knowledge(maps, boxes=SHARES, valid=valid)


@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_step_weighs_the_terms(valid, preset):
    """New context blocks are the identity. 48 + 12 cells show the first picture, half of them a padded second one."""
    student, teacher = knowledge(1, valid), knowledge(11, valid)
    terms = {
        name: torch.zeros(2, dtype=torch.float64) for name in ("foreground", "background", "attention", "relation")
    }
    cells = torch.tensor([60.0, 60 if valid is None else 30], dtype=torch.float64)
    channels, sums = (256 / 4, 89250 / cells) if preset == "default" else (1, 1)
    for name, ours in student.features.items():
        theirs, mask = teacher.features[name], student.mask(ours)
        scale = torch.tensor([ours.shape[3], ours.shape[2]] * 2)
        foreground = torch.stack([foreground_mask((b * scale).round(decimals=3), *ours.shape[2:]) for b in SHARES])
        spatial, channel = attention(theirs, 0.5, mask)
        our_spatial, our_channel = attention(ours, 0.5, mask)
        background = background_mask(foreground[:, None], mask)
        errors = focal_errors(ours, theirs, foreground[:, None], background, spatial, channel)
        terms["foreground"] += channels * errors[0]
        terms["background"] += channels * errors[1]
        terms["attention"] += channels * (our_channel - channel).abs().sum(dim=(1, 2, 3))
        terms["attention"] += sums * (our_spatial - spatial).abs().sum(dim=(1, 2, 3))
        terms["relation"] += channels * sums * squared_error(ours, theirs, mask)
    weights = {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7}
    update = one_update(make("fgd", spec(**SHAPES), spec(**SHAPES), preset=preset), student, teacher)
    expected = {f"fgd_{name}": weights[name] * values.mean() for name, values in terms.items()}
    assert all(value > 0 for value in expected.values())
    torch.testing.assert_close(update.metrics, expected)
    torch.testing.assert_close(update.losses["fgd"], sum(expected.values()))


def test_both_context_blocks_and_the_adapter_learn_with_the_student():
    torch.manual_seed(0)
    method = make("fgd", spec(output=(3, 6, 8)), spec(output=(5, 6, 8)))
    for block in (*method.student_context, *method.teacher_context):
        torch.nn.init.normal_(block.transform[-1].weight)
    ((name, player),) = method.players().items()
    assert name == "student"
    assert {id(p) for m in player.modules for p in m.parameters()} == {id(p) for p in method.parameters()}
    student = random_map(2, 3, 6, 8, grad=True)
    ours = Knowledge({"output": student}, boxes=SHARES)
    one_update(method, ours, Knowledge({"output": random_map(2, 5, 6, 8)})).losses["fgd"].backward()
    without = {name for name, p in method.named_parameters() if p.grad.abs().sum() <= 1e-12}
    # A shift of all cells does not move a softmax over them.
    assert without == {"student_context.0.where.bias", "teacher_context.0.where.bias"}
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("scores", "published"),
    [(Scores("regions"), (5e-5, 2.5e-5, 5e-5, 5e-7)), (Scores("anchors", True), (1e-3, 5e-4, 5e-4, 5e-6))],
)
def test_a_student_has_the_weights_that_were_published_for_its_kind(scores, published):
    nets = spec(scores=scores, output=(3, 4, 6)), spec(output=(3, 4, 6))
    names = ("foreground", "background", "attention", "relation")
    default, paper, own = (make("fgd", *nets, **given) for given in ({}, {"preset": "paper"}, {"relation": 0.0}))
    assert tuple(default.settings[name] for name in names) == published
    assert paper.settings == default.settings | {"cells": 0}
    assert own.settings == default.settings | {"relation": 0.0}
    assert default.settings["cells"] == method_class("mgd").published[kind_of_weights(nets[0])]["cells"]


@pytest.mark.parametrize("key", ["temperature", "cells", "foreground", "background", "attention", "relation"])
def test_bad_settings_are_refused(key):
    with pytest.raises(InputError, match=f"methods.fgd.{key} is -1"):
        make("fgd", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), **{key: -1})
