"""MGD: generator and loss against NumPy; blank cells; padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import make, one_update, random_map, rectangle_mask, spec

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge, Scores
from detkt.methods.mgd import Generator, random_cells
from detkt.methods.reductions import squared_error

SIZES = [(3, 7), (5, 2)]


def convolve(feature: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 convolution of (C, H, W) with zeros around."""
    padded = np.pad(feature, ((0, 0), (1, 1), (1, 1)))
    height, width = feature.shape[1:]
    result = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for y, x in np.ndindex(3, 3):
        result += np.einsum("oc,chw->ohw", weight[:, :, y, x], padded[:, y : y + height, x : x + width])
    return result


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(3).double()


def by_hand(generator: Generator, feature: np.ndarray) -> np.ndarray:
    first, second = (
        [p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in (generator.first, generator.second)
    )
    return convolve(np.maximum(convolve(feature, *first), 0), *second)


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_loss_of_the_generated_map(generator, sizes):
    """Each picture of a padded batch is generated as if it were alone, with zeros around."""
    student, teacher = random_map(2, 3, 5, 7, seed=1), random_map(2, 3, 5, 7, seed=2)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    expected = [
        ((by_hand(generator, student[i, :, :h, :w].numpy()) - teacher[i, :, :h, :w].numpy()) ** 2).sum()
        for i, (h, w) in enumerate(sizes)
    ]
    loss = squared_error(generator(student, mask), teacher, mask).mean()
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-9)


def test_padding_neither_counts_nor_gets_a_gradient(generator):
    student, teacher = random_map(2, 3, 5, 7, seed=1, grad=True), random_map(2, 3, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, SIZES)
    loss = squared_error(generator(student, mask), teacher, mask).mean()
    loss.backward()
    padding = (mask == 0).expand_as(student)
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    other = generator(student.masked_fill(padding, 100), mask)
    torch.testing.assert_close(squared_error(other, teacher.masked_fill(padding, -50), mask).mean(), loss)


def test_gradient(generator):
    student, teacher = random_map(2, 3, 3, 4, seed=1, grad=True), random_map(2, 3, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: squared_error(generator(s, mask), teacher, mask).mean(), student)


def test_random_cells_are_those_of_all_channels_in_their_share():
    torch.manual_seed(0)
    cells = random_cells(torch.zeros(8, 3, 50, 60), 0.45)
    assert cells.shape == (8, 1, 50, 60)
    assert set(cells.unique().tolist()) == {0, 1}
    # 24,000 cells: four standard deviations are 0.013.
    assert cells.mean().item() == pytest.approx(0.55, abs=0.013)
    assert not torch.equal(cells[0], cells[1])
    assert random_cells(torch.zeros(2, 3, 5, 6), 0.0).all()
    assert not random_cells(torch.zeros(2, 3, 5, 6), 1.0).any()


def test_half_precision_is_summed_in_full():
    generated = torch.full((1, 64, 40, 45), 300.0, dtype=torch.float16)
    assert squared_error(generated, torch.zeros_like(generated)).item() == pytest.approx(64 * 40 * 45 * 9e4)
    assert squared_error(generated.bfloat16(), generated.bfloat16()).dtype == torch.float32


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        squared_error(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5))


SHAPES = {"output_0": (3, 6, 8), "output_1": (3, 3, 4)}


def knowledge(seed: int, valid: list[tuple[float, float]] | None = None) -> Knowledge:
    maps = {
        name.replace("_", "."): random_map(2, *shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())
    }
    return Knowledge(maps, valid=valid)


@pytest.mark.parametrize("valid", [None, [(1.0, 1.0), (1.0, 0.5)]])
def test_step_by_default_is_a_mean_and_with_the_papers_settings_a_sum(valid):
    """Without blanks. 48 + 12 cells show the first picture, half of them the second of the padded ones."""
    torch.manual_seed(0)
    student, teacher = knowledge(1, valid), knowledge(11, valid)
    method = make("mgd", spec(**SHAPES), spec(**SHAPES), ratio=0.0)
    errors, generators = 0, method.generators.state_dict()
    for (name, feature), generator in zip(student.features.items(), method.generators, strict=True):
        mask = student.mask(feature)
        errors += squared_error(generator(feature, mask), teacher.features[name], mask)
    cells = torch.tensor([60.0, 60 if valid is None else 30], dtype=torch.float64)
    expected = 5e-7 * (256 / 3 * 89250 / cells * errors).mean()
    torch.testing.assert_close(one_update(method, student, teacher).losses["mgd"], expected)
    method = make("mgd", spec(**SHAPES), spec(**SHAPES), ratio=0.0, preset="paper")
    method.generators.load_state_dict(generators)
    torch.testing.assert_close(one_update(method, student, teacher).losses["mgd"], 5e-7 * errors.mean())


ANCHORS = Scores("anchors", sigmoid=True)


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(
    ("scores", "weights"),
    [(None, (5e-7, 0.45)), (Scores("regions"), (5e-7, 0.45)), (ANCHORS, (2e-5, 0.65))],
    ids=["pictures", "regions", "anchors"],
)
def test_a_student_has_the_weights_that_were_published_for_its_kind(scores, weights, preset):
    """Their sums are over P2 to P5, or P3 to P7, of 800 x 1344 pixels."""
    levels = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    cells = sum(h * w for h, w in (levels[1:] if scores is ANCHORS else levels[:4]))
    method = make("mgd", spec(scores=scores, **SHAPES), spec(**SHAPES), preset=preset)
    assert method.settings == dict(zip(("weight", "ratio"), weights, strict=True)) | {
        "cells": cells if preset == "default" else 0
    }


def test_what_is_set_stays():
    method = make("mgd", spec(scores=ANCHORS, **SHAPES), spec(**SHAPES), weight=0.0, cells=7)
    assert method.settings == {"weight": 0.0, "ratio": 0.65, "cells": 7}


def test_a_student_in_half_precision():
    """As the other methods on maps, it takes a network that was converted as a whole."""
    method = make("mgd", spec(**SHAPES), spec(**SHAPES)).bfloat16()
    student, teacher = (
        Knowledge({name: feature.bfloat16() for name, feature in knowledge(seed).features.items()}) for seed in (1, 11)
    )
    assert one_update(method, student, teacher).losses["mgd"].isfinite()


def test_blank_cells_are_drawn_anew():
    student, teacher = knowledge(1), knowledge(11)
    method = make("mgd", spec(**SHAPES), spec(**SHAPES))
    torch.manual_seed(1)
    first, second = (one_update(method, student, teacher).losses["mgd"].item() for _ in range(2))
    torch.manual_seed(1)
    assert one_update(method, student, teacher).losses["mgd"].item() == first != second


def test_generators_learn_with_the_student():
    method = make("mgd", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)))
    ((name, player),) = method.players().items()
    assert name == "student"
    assert {id(p) for m in player.modules for p in m.parameters()} == {id(p) for p in method.parameters()}
    student = random_map(1, 3, 4, 6, grad=True)
    update = one_update(method, Knowledge({"output": student}), Knowledge({"output": random_map(1, 5, 4, 6)}))
    update.losses["mgd"].backward()
    assert all(p.grad.abs().sum() > 0 for p in [student, *method.parameters()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ratio": 1.0}, "methods.mgd.ratio is 1.0: it must be 0 or more"), ({"cells": -1}, "methods.mgd.cells is -1")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make("mgd", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), **settings)
