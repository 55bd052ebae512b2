from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import (
    added,
    make,
    numpy_pool,
    one_update,
    peak_megabytes,
    random_map,
    rectangle_mask,
    spec,
    task_losses,
)

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.adapters import max_pool
from detkt.methods.fsp import flow_matrix
from detkt.models import build_detector


def numpy_flow(first: np.ndarray, second: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    valid = np.ones((len(first), 1, *first.shape[2:])) if mask is None else mask
    flow = np.zeros((len(first), first.shape[1], second.shape[1]))
    for n, i, j in np.ndindex(flow.shape):
        flow[n, i, j] = (first[n, i] * second[n, j])[valid[n, 0] == 1].mean()
    return flow


def test_flow_equals_its_formula():
    first, second = random_map(2, 3, 4, 7, seed=1), random_map(2, 5, 4, 7, seed=2)
    flow = flow_matrix(first, second)
    assert flow.shape == (2, 3, 5)
    np.testing.assert_allclose(flow.numpy(), numpy_flow(first.numpy(), second.numpy()), atol=1e-12)


def test_flow_by_hand():
    first = torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 0.0, 6.0]]]], dtype=torch.float64)
    second = torch.tensor([[[[3.0, 0.0, 1.0]]]], dtype=torch.float64)
    assert flow_matrix(first, second).tolist() == [[[2.0], [2.0]]]


@pytest.mark.parametrize(("size", "second_size"), [((8, 14), (4, 7)), ((4, 5), (9, 11)), ((9, 4), (5, 7))])
def test_the_larger_map_is_max_pooled(size, second_size):
    first, second = random_map(2, 3, *size, seed=1), random_map(2, 5, *second_size, seed=2)
    smaller = tuple(map(min, size, second_size))
    expected = numpy_flow(numpy_pool(first, smaller, reduce=np.max), numpy_pool(second, smaller, reduce=np.max))
    np.testing.assert_allclose(flow_matrix(first, second).numpy(), expected, atol=1e-12)


def test_masked_and_pooled():
    # Below zero everywhere: padding set to 0 would be the maximum.
    first, second = -random_map(2, 3, 9, 11, seed=1).abs(), random_map(2, 2, 4, 6, seed=2)
    mask, second_mask = rectangle_mask(9, 11, [(9, 5), (6, 11)]), rectangle_mask(4, 6, [(4, 3), (3, 6)])
    pooled = numpy_pool(first, (4, 6), mask, np.max)
    valid = second_mask.numpy() * numpy_pool(mask, (4, 6), mask)
    flow = flow_matrix(first, second, mask, second_mask)
    np.testing.assert_allclose(flow.numpy(), numpy_flow(pooled, second.numpy(), valid), atol=1e-12)


def test_max_pool_leaves_padding_zero():
    feature, mask = -random_map(2, 3, 9, 11).abs(), rectangle_mask(9, 11, [(9, 5), (4, 11)])
    pooled, covered = max_pool(feature, mask, (4, 6))
    np.testing.assert_allclose(pooled.numpy(), numpy_pool(feature, (4, 6), mask, np.max), atol=1e-12)
    assert covered.tolist() == numpy_pool(mask, (4, 6), mask, np.max).tolist()
    assert (covered == 0).any()


@pytest.mark.parametrize("second_size", [(3, 4), (5, 7), (2, 3)])
def test_gradient(second_size):
    first, second = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 3, *second_size, seed=2, grad=True)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 3)])
    assert torch.autograd.gradcheck(lambda a, b: flow_matrix(a, b, mask), (first, second))


def test_autocast_does_not_reach_it():
    first, second = random_map(1, 4, 9, 11, seed=1).bfloat16(), random_map(1, 3, 9, 11, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        flow = flow_matrix(first, second)
    torch.testing.assert_close(flow.double(), flow_matrix(first.double(), second.double()), rtol=1e-4, atol=1e-6)


def test_memory_at_detection_size(tmp_path):
    """Forward and backward of the whole method on a picture, padded: ResNet's layer2 and layer3 at short side 600."""
    shapes = {"layer2": (512, 75, 125), "layer3": (1024, 38, 63)}
    method = make("fsp", spec(**shapes), spec(**shapes), layers=["layer2", "layer3"]).float()
    student = {name: torch.rand(1, *shape, requires_grad=True) for name, shape in shapes.items()}
    teacher = {name: torch.rand(1, *shape) for name, shape in shapes.items()}
    valid = [(0.9, 1.0)]

    def step():
        update = one_update(method, Knowledge(student, valid=valid), Knowledge(teacher, valid=valid))
        update.losses["fsp"].backward()

    assert peak_megabytes(step, tmp_path) < 200


LAYERS = ["layer1", "layer2", "output"]


def maps(channels: tuple[int, ...], scale: int, seed: int, grad: bool = False) -> dict[str, torch.Tensor]:
    sizes = [(8 * scale, 12 * scale), (4 * scale, 6 * scale), (4 * scale, 6 * scale)]
    shapes = zip(LAYERS, channels, sizes, strict=True)
    return {name: random_map(2, c, *size, seed=seed + c, grad=grad) for name, c, size in shapes}


def specs(*networks: dict[str, torch.Tensor]):
    return [spec(**{name: tuple(feature.shape[1:]) for name, feature in network.items()}) for network in networks]


def test_step_compares_neighbouring_layers():
    student, teacher, losses = maps((2, 3, 4), 1, seed=1), maps((2, 3, 4), 2, seed=9), task_losses()
    method = make("fsp", *specs(student, teacher), layers=LAYERS, weight=3.0)
    update = one_update(method, Knowledge(student, losses=losses), Knowledge(teacher))
    expected = 0.0
    for first, second in (("layer1", "layer2"), ("layer2", "output")):
        flows = []
        for network, size in ((student, (4, 6)), (teacher, (8, 12))):
            pooled = numpy_pool(network[first], size, reduce=np.max)
            flows.append(numpy_flow(pooled, network[second].numpy()))
        expected += ((flows[0] - flows[1]) ** 2).mean()
    assert added(update, losses, "fsp").item() == pytest.approx(3 * expected, abs=1e-9)
    assert list(method.parameters()) == []


def test_unequal_channels_get_adapters_that_learn_with_the_student():
    student, teacher = maps((2, 3, 4), 1, seed=1, grad=True), maps((2, 6, 8), 1, seed=9)
    method = make("fsp", *specs(student, teacher), layers=LAYERS)
    assert [tuple(p.shape) for p in method.parameters()] == [(6, 3, 1, 1), (8, 4, 1, 1)]
    assert [p for m in method.players()["student"].modules for p in m.parameters()] == list(method.parameters())
    update = one_update(method, Knowledge(student), Knowledge(teacher))
    update.losses["fsp"].backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in [*student.values(), *method.parameters()])

    def adapted(name, weight):
        return np.einsum("dc,nchw->ndhw", weight.detach().numpy()[:, :, 0, 0], student[name].detach().numpy())

    weights = list(method.parameters())
    layers = [student["layer1"], torch.from_numpy(adapted("layer2", weights[0])), adapted("output", weights[1])]
    first = numpy_flow(numpy_pool(layers[0], (4, 6), reduce=np.max), layers[1].numpy())
    second = numpy_flow(layers[1].numpy(), layers[2])
    target = numpy_flow(numpy_pool(teacher["layer1"], (4, 6), reduce=np.max), teacher["layer2"].numpy())
    expected = ((first - target) ** 2).mean()
    target = numpy_flow(teacher["layer2"].numpy(), teacher["output"].numpy())
    expected += ((second - target) ** 2).mean()
    assert update.losses["fsp"].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("channels", "scale"), [((2, 3, 4), 1), ((2, 6, 8), 2)])
def test_padding_carries_no_gradient(channels, scale):
    valid = [(1.0, 0.5), (0.7, 1.0)]
    student, teacher = maps((2, 3, 4), 2, seed=1, grad=True), maps(channels, scale, seed=9)
    method = make("fsp", *specs(student, teacher), layers=LAYERS)

    def loss(ours, theirs):
        return one_update(method, Knowledge(ours, valid=valid), Knowledge(theirs, valid=valid)).losses["fsp"]

    def repainted(network, value):
        masks = {name: Knowledge(valid=valid).mask(feature) == 0 for name, feature in network.items()}
        return {name: feature.detach().masked_fill(masks[name], value) for name, feature in network.items()}

    before = loss(student, teacher)
    before.backward()
    for feature in student.values():
        padding = (Knowledge(valid=valid).mask(feature) == 0).expand_as(feature)
        assert padding.any()
        assert (feature.grad[padding] == 0).all()
        assert (feature.grad[~padding] != 0).any()
    torch.testing.assert_close(loss(repainted(student, 99), repainted(teacher, 99)), before)


def test_a_pyramid_needs_no_layers():
    shapes = {"output_0": (3, 8, 12), "output_1": (3, 4, 6), "output_pool": (3, 2, 3)}
    method = make("fsp", spec(**shapes), spec(**shapes))
    student = {name.replace("_", "."): random_map(1, *shape, seed=1) for name, shape in shapes.items()}
    teacher = {name.replace("_", "."): random_map(1, *shape, seed=2) for name, shape in shapes.items()}
    assert one_update(method, Knowledge(student), Knowledge(teacher)).losses["fsp"] > 0


@pytest.mark.parametrize("settings", [{}, {"layers": ["output"]}])
def test_a_single_layer_is_an_error_that_says_what_to_set(settings):
    with pytest.raises(InputError, match=r"needs two or more, but has only 'output'.*methods\.fsp\.layers="):
        make("fsp", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), **settings)


def tiny(name: str):
    return build_detector(name, 3, min_size=64, max_size=80, box_batch_size_per_image=8, rpn_channels=16)


def test_stages_of_detectors_by_their_own_names():
    """A ResNet's stages are layer1 to layer3, a plain net's are numbered; ``output`` is the last map of either."""
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 80)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    teacher = tiny("fasterrcnn_resnet10x0.5_c4")
    for student, layers in (
        ("fasterrcnn_resnet10x0.25_c4", ["layer1", "layer2", "layer3"]),
        ("fasterrcnn_alexnet", ["5=layer2", "output"]),
    ):
        distiller = Distiller(tiny(student), teacher, method="fsp", settings={"layers": layers})
        losses = distiller(images, targets)
        assert losses["fsp"].isfinite()
        assert losses["fsp"] > 0
        assert len(losses) == 5
    with pytest.raises(InputError, match="has no layer 'layer9'"):
        Distiller(tiny("fasterrcnn_resnet10x0.25_c4"), teacher, method="fsp", settings={"layers": ["layer9", "layer3"]})
