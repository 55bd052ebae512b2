"""Knowledge representing: the properties its text states of aggregation and penalty, and the two optimizers' turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, numpy_pool, random_map, rectangle_mask, spec, task_losses

from detkt import Distiller, methods
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import LayerPair
from detkt.methods.knowledge_representing import (
    Aggregator,
    Threshold,
    deviation_weights,
    sparse_recoding_penalty,
    transport_cost,
)

VALID = [(1.0, 0.5), (0.75, 1.0)]
STAGES = {"layers": ["output=layer3.0+layer3.1+layer3.2"]}


def scalar(value: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def three_layers(name: str = "kr", size=(4, 6), teacher_sizes=((4, 6), (4, 6), (4, 6)), **settings):
    """A method between a student of 3 channels and three neighbouring teacher layers of 5."""
    maps = {f"layer3.{i}": (5, *teacher_size) for i, teacher_size in enumerate(teacher_sizes)}
    teacher = spec(**{key.replace(".", "_"): shape for key, shape in maps.items()})
    student = {"output": random_map(2, 3, *size, seed=1)}
    features = {key: (i + 1) * random_map(2, *shape, seed=2 + i) for i, (key, shape) in enumerate(maps.items())}
    torch.manual_seed(0)
    return make(name, spec(output=(3, *size)), teacher, **{**STAGES, **settings}), student, features


def updates(method, student: dict, teacher: dict, valid=None, losses=None):
    (stage,) = method.stages()
    networks = Knowledge(student, losses=losses or {}, valid=valid), Knowledge(teacher, valid=valid)
    return list(method.step(stage, *networks, heads=None))


def numpy_weights(maps: list[np.ndarray]) -> np.ndarray:
    deviations = np.array([feature.std() for feature in maps])
    return deviations / deviations.sum()


def numpy_penalty(gap: np.ndarray, threshold: float, gain: float) -> float:
    return gain / 2 * np.where(np.abs(gap) > threshold, gap**2, threshold**2).mean()


# Knowledge aggregation


def test_weights_are_the_layers_standard_deviations():
    maps = [random_map(2, 3, 4, 5, seed=i) * (i + 1) + 10 for i in range(3)]
    weights = deviation_weights(maps)
    np.testing.assert_allclose(weights, numpy_weights([x.numpy() for x in maps]), atol=1e-12)
    assert weights[2] > weights[1] > weights[0]  # more error, more weight
    mask = rectangle_mask(4, 5, [(4, 2), (3, 5)])
    kept = [np.concatenate([x[0, :, :4, :2].numpy().ravel(), x[1, :, :3].numpy().ravel()]) for x in maps]
    np.testing.assert_allclose(deviation_weights(maps, mask), numpy_weights(kept), atol=1e-12)
    constant = [torch.ones(1, 2, 3, 4), torch.full((1, 2, 3, 4), 7.0)]
    np.testing.assert_allclose(deviation_weights(constant), [0.5, 0.5])


def test_transport_cost_by_numpy():
    aggregated = random_map(2, 3, 4, 5, seed=9)
    maps = [random_map(2, 3, 4, 5, seed=i) * (i + 1) for i in range(3)]
    arrays = [x.numpy() for x in maps]
    weights = numpy_weights(arrays)
    expected = sum(w * ((aggregated.numpy() - x) ** 2).mean() for w, x in zip(weights, arrays, strict=True))
    assert transport_cost(aggregated, maps).item() == pytest.approx(expected, abs=1e-12)
    mask = rectangle_mask(4, 5, [(4, 2), (3, 5)])

    def cut(x):
        return np.concatenate([x[0, :, :4, :2].numpy().ravel(), x[1, :, :3].numpy().ravel()])

    weights = numpy_weights([cut(x) for x in maps])
    expected = sum(w * ((cut(aggregated) - cut(x)) ** 2).mean() for w, x in zip(weights, maps, strict=True))
    assert transport_cost(aggregated, maps, mask).item() == pytest.approx(expected, abs=1e-12)


def test_gradient_of_the_transport_cost():
    maps = [random_map(2, 2, 3, 4, seed=i) for i in range(2)]
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    aggregated = random_map(2, 2, 3, 4, seed=9, grad=True)
    assert torch.autograd.gradcheck(lambda k: transport_cost(k, maps, mask), aggregated)


def test_least_cost_is_at_the_weighted_mean_and_the_aggregator_gets_there():
    maps = [random_map(2, 3, 4, 5, seed=i) * (i + 1) for i in range(3)]
    aggregate = Aggregator(3, 3).double()
    torch.testing.assert_close(aggregate(maps), torch.stack(maps).mean(0))
    mean = sum(w * x for w, x in zip(deviation_weights(maps), maps, strict=True))
    least = transport_cost(mean, maps)
    assert transport_cost(mean + 0.01 * random_map(2, 3, 4, 5, seed=7), maps) > least
    optimizer = torch.optim.SGD(aggregate.parameters(), 0.1, 0.9)
    for _ in range(150):
        cost = transport_cost(aggregate(maps), maps)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    torch.testing.assert_close(aggregate(maps), mean, atol=1e-3, rtol=1e-3)
    assert cost.item() == pytest.approx(least.item(), abs=1e-5)


def test_identity_mappings_bring_the_layers_to_the_students_size():
    method, student, teacher = three_layers("kr-dense", (4, 6), ((8, 12), (5, 7), (4, 6)))
    maps = [numpy_pool(feature, (4, 6)) for feature in teacher.values()]
    maps = [x / np.sqrt((maps[-1] ** 2).mean()) for x in maps]
    mean = np.mean(maps, axis=0)
    expected = sum(w * ((mean - x) ** 2).mean() for w, x in zip(numpy_weights(maps), maps, strict=True))
    aggregation, _ = updates(method, student, teacher)
    assert aggregation.losses["kr-dense_transport"].item() == pytest.approx(expected, abs=1e-6)
    smaller = three_layers("kr-dense", (8, 12), ((2, 3), (4, 6), (8, 12)))
    assert all(np.isfinite(update.total.item()) for update in updates(*smaller))


# Sparse recoding penalty


@pytest.mark.parametrize("gain", [1.5, 2.0])
def test_penalty_by_numpy(gain):
    gap = random_map(2, 3, 4, 5, seed=1)
    expected = numpy_penalty(gap.numpy(), 0.8, gain)
    assert sparse_recoding_penalty(gap, scalar(0.8), gain).item() == pytest.approx(expected, abs=1e-12)
    mask = rectangle_mask(4, 5, [(4, 2), (3, 5)])
    cut = np.concatenate([gap[0, :, :4, :2].numpy().ravel(), gap[1, :, :3].numpy().ravel()])
    masked = sparse_recoding_penalty(gap, scalar(0.8), gain, mask)
    assert masked.item() == pytest.approx(numpy_penalty(cut, 0.8, gain), abs=1e-12)


def test_gradient_of_the_penalty():
    gap = random_map(2, 2, 3, 4, seed=1, grad=True)
    assert ((gap.abs() - 0.8).abs() > 1e-3).all()  # none at the kink
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    inputs = gap, scalar(0.8, grad=True)
    assert torch.autograd.gradcheck(lambda r, theta: sparse_recoding_penalty(r, theta, 2.0, mask), inputs)


def test_penalty_is_flat_inside_the_threshold_and_amplifies_outside():
    gap = torch.tensor([-2.0, -0.6, -0.4, 0, 0.2, 0.49, 0.51, 3], dtype=torch.float64).reshape(1, 1, 2, 4)
    gap.requires_grad_()
    values = [sparse_recoding_penalty(x.reshape(1, 1, 1, 1), scalar(0.5), 2.0).item() for x in gap.detach().flatten()]
    assert values[2:6] == 4 * [0.25]  # an equal reward
    assert min(values) == 0.25
    sparse_recoding_penalty(gap, scalar(0.5), 2.0).backward()
    recoded = 8 * gap.grad.flatten()  # the mean is over 8 elements; the dense gradient would be the gap itself
    expected = torch.tensor([-4.0, -1.2, 0, 0, 0, 0, 1.02, 6], dtype=torch.float64)
    torch.testing.assert_close(recoded, expected)


def test_penalty_without_jump_at_the_threshold():
    inside, outside = (sparse_recoding_penalty(scalar(x).reshape(1, 1, 1, 1), scalar(0.5)) for x in (0.5, 0.5 + 1e-9))
    assert outside.item() == pytest.approx(inside.item(), abs=1e-8)


def test_the_penalty_alone_would_pull_the_threshold_to_nothing():
    """Why the threshold has a signal of its own: the penalty's derivative, by hand, is never negative."""
    gap, threshold = random_map(2, 3, 4, 5, seed=1), scalar(0.8, grad=True)
    sparse_recoding_penalty(gap, threshold, 2.0).backward()
    inside = (gap.abs() <= 0.8).double().mean().item()
    assert threshold.grad.item() == pytest.approx(2 * 0.8 * inside)


def test_threshold_is_a_running_mean_of_the_gaps_magnitude():
    threshold, mask = Threshold(0.25).double(), rectangle_mask(4, 5, [(4, 2), (3, 5)])
    gap = random_map(2, 3, 4, 5, seed=1)
    kept = np.concatenate([gap[0, :, :4, :2].numpy().ravel(), gap[1, :, :3].numpy().ravel()])
    first = np.abs(kept).mean()
    threshold.learn(gap, mask)
    assert threshold.value.item() == pytest.approx(first, abs=1e-12)
    threshold.learn(0.2 * gap, mask)
    assert threshold.value.item() == pytest.approx(first - 0.25 * (first - 0.2 * first), abs=1e-12)
    resumed = Threshold(0.25).double()
    resumed.load_state_dict(threshold.state_dict())
    resumed.learn(5 * gap)
    assert resumed.value.item() == pytest.approx(0.75 * threshold.value.item() + 1.25 * gap.abs().mean().item())


def test_threshold_goes_the_way_of_gradient_descent_on_its_own_loss():
    gap, threshold = random_map(2, 3, 4, 5, seed=1), Threshold(0.1).double()
    threshold.learn(gap)
    theta = threshold.value.clone().requires_grad_()
    ((theta - (3 * gap).abs().mean()).square() / 2).backward()
    threshold.learn(3 * gap)
    torch.testing.assert_close(threshold.value, theta.detach() - 0.1 * theta.grad)


def test_a_threshold_of_no_rate_stays_where_it_started():
    gap, threshold = random_map(2, 3, 4, 5, seed=1), Threshold(0.0).double()
    for scale in (1, 0.1, 7):
        threshold.learn(scale * gap)
        assert threshold.value.item() == pytest.approx(gap.abs().mean().item())


def test_over_a_run_the_threshold_falls_with_the_gap_and_never_vanishes():
    """The student's map is all that learns, as fast as it can: dominant gaps stay outside to the end."""
    method, student, teacher = three_layers("kr")
    ours = student["output"].requires_grad_()
    optimizer = torch.optim.SGD([ours, *method.regressors.parameters()], 0.5, 0.9)
    logged = []
    for _ in range(200):
        update = updates(method, student, teacher)[-1]
        optimizer.zero_grad()
        update.total.backward()
        optimizer.step()
        logged.append({name: value.item() for name, value in update.metrics.items()})
        with torch.no_grad():
            target = method.aggregators[0](method._stack(method.groups[0], Knowledge(student), Knowledge(teacher))[0])
            gap = (method.regressors[0](ours) - target).abs()
    assert logged[-1]["kr_threshold"] < 0.5 * logged[0]["kr_threshold"]
    assert logged[-1]["kr_threshold"] == pytest.approx(gap.mean().item(), rel=0.1)
    assert all(0.05 < entry["kr_active"] < 0.95 for entry in logged)


def test_a_loss_that_is_only_looked_at_moves_no_threshold():
    method, student, teacher = three_layers("kr")
    updates(method, student, teacher)
    before = method.thresholds[0].value.item()
    assert before > 0
    with torch.no_grad():
        updates(method, {"output": 9 * student["output"]}, teacher)
    assert method.thresholds[0].value.item() == before


# The method


@pytest.mark.parametrize("name", ["kr", "kr-dense", "kr-l1"])
def test_step_by_numpy(name):
    losses = task_losses()
    method, student, teacher = three_layers(name, weight=3.0)
    aggregation, update = updates(method, student, teacher, losses=losses)
    assert (aggregation.player, update.player) == ("aggregation", "student")
    maps = [feature.numpy() for feature in teacher.values()]
    maps = [x / np.sqrt((maps[-1] ** 2).mean()) for x in maps]
    convolution = method.regressors[0].convolution
    weight, bias = convolution.weight.detach().numpy()[:, :, 0, 0], convolution.bias.detach().numpy()
    ours = np.einsum("dc,nchw->ndhw", weight, student["output"].numpy()) + bias[None, :, None, None]
    gap = ours - np.mean(maps, axis=0)
    if name == "kr":
        expected = 3 * numpy_penalty(gap, np.abs(gap).mean(), 2.0)
        assert update.metrics["kr_threshold"].item() == pytest.approx(np.abs(gap).mean(), abs=1e-6)
        assert update.metrics["kr_active"].item() == pytest.approx((np.abs(gap) > np.abs(gap).mean()).mean())
    else:
        expected = 3 * 2 * (np.abs(gap).mean() if name == "kr-l1" else (gap**2).mean() / 2)
    assert added(update, losses, name).item() == pytest.approx(expected, abs=1e-6)


def test_dense_is_the_framework_without_the_penalty():
    """At one weight and gain: a threshold of 0, and the same pull at every gap outside a threshold."""
    gap = random_map(2, 3, 4, 5, seed=1, grad=True)
    (dense, _, _), (sparse, _, _) = three_layers("kr-dense", gain=3.0), three_layers("kr", gain=3.0)
    loss, _ = dense.penalize(0, gap, None)
    torch.testing.assert_close(loss, sparse_recoding_penalty(gap, scalar(0), 3.0))
    recoded, metrics = sparse.penalize(0, gap, None)
    pulls = [torch.autograd.grad(value, gap)[0] for value in (loss, recoded)]
    outside = gap.abs() > metrics["kr_threshold"]
    assert 0.1 < outside.double().mean() < 0.9
    torch.testing.assert_close(pulls[1], torch.where(outside, pulls[0], 0))
    assert dense.config.weight == sparse.config.weight
    assert {name for name, _ in dense.named_parameters()} == {
        "aggregators.0.weight",
        "regressors.0.convolution.weight",
        "regressors.0.convolution.bias",
    }


@pytest.mark.parametrize("name", ["kr", "kr-dense"])
def test_two_optimizers_alternate(name):
    """Aggregation moves its own weights alone, and the student's target is what it became by then."""
    method, student, teacher = three_layers(name)
    student["output"].requires_grad_()
    players = method.players()
    aggregation = players["aggregation"]
    assert (aggregation.optimizer, aggregation.lr, aggregation.momentum) == ("sgd", 0.1, 0.9)
    assert aggregation.weight_decay == 1e-5
    assert [stage.players for stage in method.stages()] == [("student", "aggregation")]
    own = [p for module in aggregation.modules for p in module.parameters()]
    learning = [p for module in players["student"].modules for p in module.parameters()]
    assert {id(p) for p in own + learning} == {id(p) for p in method.parameters()}

    (stage,) = method.stages()
    steps = method.step(stage, Knowledge(student), Knowledge(teacher), None)
    next(steps).total.backward()
    assert all(p.grad.abs().sum() > 0 for p in own)
    assert student["output"].grad is None
    assert all(p.grad is None for p in learning)
    for parameter in own:
        parameter.grad = None
        torch.nn.init.zeros_(parameter.data)  # a step so long that it shows: nothing of the teacher is left
    update = next(steps)
    ours = method.regressors[0](student["output"])
    expected, _ = method.penalize(0, ours, None)
    torch.testing.assert_close(update.losses[name], 4 * expected)
    update.total.backward()
    assert all(p.grad is None for p in own)
    assert all(p.grad is not None for p in learning)
    assert student["output"].grad.abs().sum() > 0
    assert next(steps, None) is None


@pytest.mark.parametrize("name", ["kr", "kr-dense"])
def test_padding_carries_neither_loss_nor_gradient(name):
    method, student, teacher = three_layers(name, (8, 10), ((8, 10), (16, 20), (9, 13)))
    ours = student["output"].requires_grad_()
    found = updates(method, student, teacher, VALID)
    found[-1].total.backward()
    padding = (Knowledge(valid=VALID).mask(ours) == 0).expand_as(ours)
    assert padding.any()
    assert (ours.grad[padding] == 0).all()
    assert (ours.grad[~padding] != 0).any()
    changed = {
        key: feature.masked_fill(Knowledge(valid=VALID).mask(feature) == 0, -9) for key, feature in teacher.items()
    }
    again = updates(method, {"output": ours.detach().masked_fill(padding, 9)}, changed, VALID)
    for before, after in zip(found, again, strict=True):
        torch.testing.assert_close(after.total, before.total)


def test_teachers_scale_is_irrelevant():
    method, student, teacher = three_layers("kr-dense")
    scaled = {key: 30 * feature for key, feature in teacher.items()}
    for before, after in zip(updates(method, student, teacher), updates(method, student, scaled), strict=True):
        torch.testing.assert_close(after.total, before.total)


def test_several_groups_count_by_their_mean():
    names = [f"layer{i}.{j}" for i in (2, 3) for j in (0, 1)]
    teacher = {name: random_map(2, 5, 4, 6, seed=i) for i, name in enumerate(names)}
    student = {f"layer{i}": random_map(2, 3, 4, 6, seed=7 + i) for i in (2, 3)}
    specs = (
        spec(layer2=(3, 4, 6), layer3=(3, 4, 6)),
        spec(**{name.replace(".", "_"): (5, 4, 6) for name in names}),
    )
    both = make("kr-dense", *specs, m=2, layers=["layer2=layer2.1", "layer3=layer3.1"])
    found = [update.total for update in updates(both, student, teacher)]
    alone = []
    for i in (2, 3):
        method = make("kr-dense", *specs, m=2, layers=[f"layer{i}=layer{i}.1"])
        method.regressors[0].load_state_dict(both.regressors[i - 2].state_dict())
        alone.append([update.total for update in updates(method, student, teacher)])
    for total, first, second in zip(found, *alone, strict=True):
        torch.testing.assert_close(total, (first + second) / 2)


# Layers by name


@pytest.mark.parametrize(
    ("layers", "m", "teachers"),
    [
        (["output=layer3.22"], 3, ["layer3.20", "layer3.21", "layer3.22"]),
        (["output=layer3.10"], 4, ["layer3.7", "layer3.8", "layer3.9", "layer3.10"]),
        (["output=28"], 2, ["27", "28"]),
        (["output=layer3.0.bn1+layer3.0"], 3, ["layer3.0.bn1", "layer3.0"]),
        (["output=layer3"], 1, ["layer3"]),
        ([], 3, []),
    ],
)
def test_neighbours_are_named_or_counted_back(layers, m, teachers):
    (config,) = methods.parse("kr", {"kr": {"layers": layers, "m": m}}).values()
    assert methods.method_class("kr").layer_pairs(config) == [LayerPair("output", name) for name in teachers]


def test_levels_of_a_pyramid_are_neighbours():
    levels = {f"output_{i}": (4, 2 ** (5 - i), 2 ** (5 - i)) for i in range(4)}
    method = make("kr", spec(**levels), spec(**levels), m=2)
    assert [group.teachers for group in method.groups] == [
        ("output.0", "output.1"),
        ("output.0", "output.1"),
        ("output.1", "output.2"),
        ("output.2", "output.3"),
    ]


def test_a_lone_output_is_refused_unless_nothing_shall_be_aggregated():
    with pytest.raises(InputError, match=r"'kr-dense' aggregates 3 .* have one output, 'output'; .*layers=.*m=1"):
        make("kr-dense", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)))
    method = make("kr-dense", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), m=1)
    aggregation, _ = updates(method, {"output": random_map(1, 3, 4, 6)}, {"output": random_map(1, 5, 4, 6)})
    assert aggregation.total.item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": ["output=layer3.1"]},
            r"'layer3\.1' is not the last of 3 numbered teacher layers \(m=3\)",
        ),
        ({"layers": ["output=layer3"]}, r"'layer3' is not the last of 3 numbered"),
        ({"layers": ["output=layer3.2"], "m": 0}, r"methods\.kr\.m is 0"),
        ({"layers": ["output=layer3.0+layer9"]}, r"the teacher has no map 'layer9'"),
        (
            {"layers": ["output=layer3.0+layer2.0"]},
            r"layer3\.0, layer2\.0 cannot .* have 5, 4 channels",
        ),
        ({"layers": ["output=layer3.2", "output=layer3.2"]}, "names a student's layer twice"),
        ({**STAGES, "gain": 1.0}, r"methods\.kr\.gain is 1\.0: it must be greater than 1"),
        ({**STAGES, "threshold_rate": 1.5}, r"methods\.kr\.threshold_rate is 1\.5: it must be between 0 and 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    teacher = spec(layer2_0=(4, 4, 6), layer3_0=(5, 4, 6), layer3_1=(5, 4, 6), layer3_2=(5, 4, 6))
    with pytest.raises(InputError, match=message) as error:
        make("kr", spec(output=(3, 4, 6)), teacher, **settings)
    assert "\n" not in str(error.value)


def test_trains_a_detector_and_sums_with_kdgan(detector, batch):
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    settings = {"kr": {"layers": ["output=layer3.0.bn1+layer3.0"]}}
    distiller = Distiller(student, teacher, "kr+kdgan", settings)
    aggregators = distiller.method.methods["kr"].aggregators
    before = [p.clone() for p in aggregators.parameters()]
    losses = distiller(*batch)
    assert {"kr", "kdgan_distillation", "loss_box_reg"} <= set(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.trainable_parameters())
    assert all((p != old).any() for p, old in zip(aggregators.parameters(), before, strict=True))
    assert all(p.grad is None for p in teacher.parameters())
