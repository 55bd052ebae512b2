"""What each method shows of the maps it compares: values, shapes and titles, from the teacher's to the student's."""

from __future__ import annotations

import pytest
import torch
from map_helpers import make, numpy_pool, random_map, rectangle_mask, spec

from detkt import methods
from detkt.knowledge import Knowledge
from detkt.methods.base import Method, MethodConfig

VALID = [(0.5, 1.0), (1.0, 1.0)]


@pytest.fixture
def networks():
    """Student's and teacher's knowledge: 3 and 5 channels, the first picture in the upper half of both."""
    maps = [{"output": random_map(2, channels, 4, 6, seed=channels)} for channels in (3, 5)]
    return [Knowledge(features, valid=VALID) for features in maps]


STUDENT, TEACHER = spec(output=(3, 4, 6)), spec(output=(5, 4, 6))


def views(name: str, networks, **settings) -> tuple[Method, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    method = make(name, STUDENT, TEACHER, **settings).eval()
    student, teacher = networks
    with torch.no_grad():
        found = method.views(student, teacher)
    assert found["teacher"] is teacher.features["output"]
    assert found["student"] is student.features["output"]
    return method, found


@pytest.mark.parametrize("name", ["kd", "nst", "kdgan"])
def test_by_default_these_are_the_outputs(name, networks):
    assert list(views(name, networks)[1]) == ["teacher", "student"]


def test_of_several_layers_each_is_named():
    layers = {"layer1": random_map(1, 2, 4, 4), "layer2": random_map(1, 3, 2, 2), "output": random_map(1, 4, 2, 2)}
    knowledge = Knowledge(layers)
    maps = {name: tuple(feature.shape[1:]) for name, feature in layers.items()}
    method = make("fsp", spec(**maps), spec(**maps), layers=["layer1", "layer2=output"])
    found = method.views(knowledge, knowledge)
    assert list(found) == ["teacher, layer1", "teacher", "student, layer1", "student, layer2"]
    assert found["student, layer2"] is layers["layer2"]
    pyramid = Knowledge({"output.0": layers["layer1"], "output.1": layers["layer2"], "conv1": layers["layer1"]})
    method = Method(MethodConfig(), spec(), None)
    assert list(method.views(pyramid, None)) == ["student, output.0", "student, output.1"]


def test_factor_transfer_shows_both_factors(networks):
    method, found = views("ft", networks, rate=0.8, num_layers=1)
    assert list(found) == ["teacher", "teacher factor", "student factor", "student"]
    student, teacher = (knowledge.features["output"] for knowledge in networks)
    mask = rectangle_mask(4, 6, [(2, 6), (4, 6)])
    scale = torch.cat([teacher[0, :, :2].flatten(), teacher[1].flatten()]).square().mean().sqrt()
    with torch.no_grad():
        expected = method.paraphrasers["output"].encoder(teacher * mask / scale)
        torch.testing.assert_close(found["teacher factor"], expected)
        torch.testing.assert_close(found["student factor"], method.translators["output"](student * mask))
    assert found["teacher factor"].shape == (2, 4, 4, 6)


@pytest.mark.parametrize("name", ["ktan", "dln"])
def test_ktan_shows_the_regressed_teacher(name, networks):
    method, found = views(name, networks)
    assert list(found) == ["teacher", "teacher, regressed", "student"]
    convolution = method.regressors["output"].convolution
    weight, bias = convolution.weight[:, :, 0, 0], convolution.bias
    expected = torch.einsum("oc,nchw->nohw", weight, networks[1].features["output"]) + bias[:, None, None]
    torch.testing.assert_close(found["teacher, regressed"], expected)


def test_fitnet_shows_the_regressed_student(networks):
    method, found = views("fitnet", networks)
    assert list(found) == ["teacher", "student, regressed", "student"]
    convolution = method.regressors[0].convolution
    student = networks[0].features["output"]
    expected = torch.einsum("oc,nchw->nohw", convolution.weight[:, :, 0, 0], student) + convolution.bias[:, None, None]
    torch.testing.assert_close(found["student, regressed"], expected)


def test_attention_shows_both_attention_maps():
    student, teacher = random_map(1, 3, 2, 3, seed=1), random_map(1, 5, 4, 6, seed=2)
    method = make("at", spec(output=(3, 2, 3)), spec(output=(5, 4, 6)), p=2)
    found = method.views(Knowledge({"output": student}), Knowledge({"output": teacher}))
    assert list(found) == ["teacher", "teacher, attention", "student, attention", "student"]
    for title, feature in (("student", student), ("teacher", torch.from_numpy(numpy_pool(teacher, (2, 3))))):
        attention = feature.square().sum(dim=1, keepdim=True)
        torch.testing.assert_close(found[f"{title}, attention"], attention / attention.square().sum().sqrt())


def test_knowledge_representing_shows_the_aggregated_teacher():
    layers = {f"layer3.{i}": (i + 1) * random_map(1, 5, 4, 6, seed=i) for i in range(2)}
    student = {"output": random_map(1, 3, 4, 6, seed=7)}
    teacher_spec = spec(layer3_0=(5, 4, 6), layer3_1=(5, 4, 6))
    method = make("kr", spec(output=(3, 4, 6)), teacher_spec, layers=["output=layer3.0+layer3.1"])
    with torch.no_grad():
        found = method.views(Knowledge(student), Knowledge(layers))
    titles = ["teacher, layer3.0", "teacher, layer3.1", "teacher, aggregated", "student, regressed", "student"]
    assert list(found) == titles
    mean = (layers["layer3.0"] + layers["layer3.1"]) / 2 / layers["layer3.1"].square().mean().sqrt()
    torch.testing.assert_close(found["teacher, aggregated"], mean)  # before it has learnt
    torch.testing.assert_close(found["student, regressed"], method.regressors[0](student["output"]))


def test_a_sum_shows_each_map_once_and_tells_equal_titles_apart(networks):
    settings = {"kr-dense": {"m": 1}, "fitnet": {}, "at": {}}
    configs = {methods.method_class(name): methods.method_config(name, settings[name]) for name in settings}
    method = methods.build(configs, STUDENT, TEACHER).double()
    with torch.no_grad():
        found = method.views(*networks)
    assert list(found) == [
        *("teacher", "teacher, aggregated", "student, regressed", "student"),
        *("student, regressed (fitnet)", "teacher, attention", "student, attention"),
    ]
    hints = method.methods["fitnet"].views(*networks)
    torch.testing.assert_close(found["student, regressed (fitnet)"], hints["student, regressed"])


@pytest.mark.parametrize("name", ["pkd", "cwd", "mgd", "fgd", "fgfi"])
def test_paired_maps_show_the_student_in_the_teachers_channels(name, networks):
    method, found = views(name, networks)
    assert list(found) == ["teacher", "student, adapted", "student"]
    student, _ = networks
    feature = student.features["output"] * student.mask(student.features["output"])
    adapted = found["student, adapted"]
    with torch.no_grad():
        expected = method.adapters[0](feature)
    torch.testing.assert_close(adapted * student.mask(adapted), expected * student.mask(adapted))
