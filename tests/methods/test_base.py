"""The interface of methods: names, settings, layer pairs, and the small tools methods share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from detkt import methods
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Spec
from detkt.methods.base import STUDENT, LayerPair, Method, MethodConfig, Needs, Stage, Update, frozen, require_offered
from detkt.methods.ktan import DLN, KTAN
from detkt.methods.none import NoDistillation


@dataclass
class HintConfig(MethodConfig):
    weight: float = 2.0
    rounds: int = 3


class Hint(Method):
    """A method defined outside the package."""

    name = "hint"
    Config = HintConfig
    presets = {"default": {}, "paper": {"weight": 7.0, "rounds": 9}}


def spec(*outputs: str, num_classes: int = 4, classes: tuple[str, ...] = ()) -> Spec:
    return Spec({name: FeatureSpec(8, 4, 6, True) for name in outputs}, num_classes, classes)


def hint(student: Spec, teacher: Spec, **settings) -> Hint:
    return Hint(methods.method_config(Hint, settings), student, teacher)


def test_available_lists_the_named_classes_of_the_folder():
    names = methods.available()
    assert {"none", "ktan", "dln"} <= set(names)
    assert names == sorted(names)
    assert "" not in names  # Method and Sum have no name of their own
    assert "hint" not in names
    assert methods.method_class("dln") is DLN


def test_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown method 'ktn' \(did you mean 'ktan'\?\); there are: .*dln"):
        methods.method_class("ktn")
    with pytest.raises(InputError, match="unknown method ''"):
        methods.parse("ktan+")


def test_settings_go_over_the_preset_over_the_defaults():
    assert methods.method_config(Hint) == HintConfig("default", [], 2.0, 3)
    paper = methods.method_config(Hint, {"preset": "paper", "rounds": 1})
    assert paper == HintConfig("paper", [], 7.0, 1)
    assert isinstance(paper, HintConfig)
    assert methods.method_config(Hint, {"weight": 1, "layers": ["layer2"]}) == HintConfig("default", ["layer2"], 1.0, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wieght": 1.0}, r"unknown key 'methods\.hint\.wieght' \(did you mean 'weight'\?\)"),
        ({"mask": 1.0}, r"unknown key 'methods\.hint\.mask'; there are: preset, layers, .*weight"),
        ({"weight": "heavy"}, r"methods\.hint\.weight is 'heavy': it must be a number"),
        ({"weight": float("nan")}, r"methods\.hint\.weight is nan: it must be a finite number"),
        ({"balance": float("inf")}, r"methods\.hint\.balance is inf: it must be a finite number"),
        ({"weight": -1}, r"methods\.hint\.weight is -1.0: it must be 0 or more"),
        ({"rounds": 1.5}, r"methods\.hint\.rounds is 1.5: it must be a whole number"),
        ({"rounds": None}, r"methods\.hint\.rounds is empty: it must be a whole number"),
        ({"layers": 3}, r"methods\.hint\.layers: \S"),
        ({"preset": "papre"}, r"unknown methods.hint.preset 'papre' \(did you mean 'paper'\?\)"),
        (5, r"methods\.hint must hold 'key: value' settings, got 5"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message) as error:
        methods.method_config(Hint, settings)
    assert "\n" not in str(error.value)


def test_parse_takes_names_sums_and_classes():
    assert list(methods.parse("ktan")) == [KTAN]
    assert methods.parse(Hint, {"hint": {"weight": 4}}) == {Hint: HintConfig(weight=4.0)}
    # Sections of methods that are not in the sum may stand in a config file.
    both = methods.parse(" dln + ktan ", {"ktan": {"alpha": 9}, "none": {}, "dln": None})
    assert list(both) == [DLN, KTAN]
    assert both[KTAN].alpha == 9
    assert both[DLN].alpha == KTAN.Config().alpha


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ktan+ktan", None, "names a method twice"),
        ("ktan+none", None, "'none' adds nothing"),
        ("ktan+dnl", None, "unknown method 'dnl'"),
        ("dln", {"dnl": {}}, "unknown method in the settings 'dnl'"),
        # Settings of one method where a section a method was wanted.
        ("ktan+dln", {"beta": 5.0}, "unknown method in the settings 'beta'"),
    ],
)
def test_parse_refuses(name, settings, message):
    with pytest.raises(InputError, match=message):
        methods.parse(name, settings)


def test_build_makes_the_one_method():
    method = methods.build(methods.parse("none"), spec("output"), None)
    assert isinstance(method, NoDistillation)
    assert [stage.name for stage in method.stages()] == ["train"]


def test_layer_pairs():
    assert LayerPair.parse("layer3") == LayerPair("layer3", "layer3")
    assert LayerPair.parse(" features.28 = layer3 ") == LayerPair("features.28", "layer3")
    assert LayerPair("body.layer3", "x.y").key == "body_layer3"
    config = HintConfig(layers=["layer2", "layer3=body.layer2", "layer2=layer2"])
    expected = [LayerPair("layer2", "layer2"), LayerPair("layer3", "body.layer2")]
    assert methods.required_layers({Hint: config, KTAN: KTAN.Config(layers=["layer2"])}) == expected


def test_pairs_are_the_outputs_of_one_stride():
    """By size, never by name; the nearest, each once; what only one net has is left out."""

    def pyramid(*heights):
        return Spec({f"output.{i}": FeatureSpec(8, height, height, True) for i, height in enumerate(heights)})

    def paired(student, teacher):
        return [(pair.student, pair.teacher) for pair in hint(student, teacher).pairs()]

    same = [(f"output.{i}", f"output.{i}") for i in range(3)]
    assert paired(pyramid(64, 32, 16), pyramid(64, 32, 16, 8)) == same
    assert paired(pyramid(8, 4), pyramid(64, 32, 16, 8)) == [("output.0", "output.3")]
    assert paired(pyramid(63, 32, 16), pyramid(16, 31, 64)) == [(f"output.{i}", f"output.{2 - i}") for i in range(3)]
    assert paired(pyramid(2, 1, 1), pyramid(1, 1)) == [("output.1", "output.0"), ("output.2", "output.1")]
    c4 = Spec({"output": FeatureSpec(8, 16, 16, True), "layer1": FeatureSpec(8, 64, 64, True)})
    assert paired(pyramid(64, 32, 16, 8), c4) == [("output.2", "output")]
    assert paired(c4, Spec({"output": FeatureSpec(4, 5, 5, True)})) == [("output", "output")]
    assert hint(spec("output"), spec("output"), layers=["a=b"]).pairs() == [LayerPair("a", "b")]
    with pytest.raises(InputError, match=r"the student \(output\.0 64 x 64, output\.1 32 x 32\).*\(output 16 x 16\)"):
        hint(pyramid(64, 32), c4).pairs()


def test_layers_that_are_not_there_or_twice_are_refused():
    method = hint(spec("output", "layer2"), spec("output"), layers=["layer2=output.1"])
    with pytest.raises(InputError, match=r"the teacher has no map 'output\.1' \(did you mean 'output'\?\)"):
        method.pair_specs(method.pairs()[0])
    with pytest.raises(InputError, match=r"the student has no map 'output\.3'.*it has: output, layer2"):
        method.pair_specs(LayerPair("output.3", "output"))
    with pytest.raises(InputError, match="names a student's layer twice"):
        hint(spec("output"), spec("output"), layers=["layer2=layer1", "layer2=layer3"]).pairs()


def test_pair_specs_gives_the_students_first():
    student, teacher = FeatureSpec(8, 4, 6, True), FeatureSpec(32, 4, 6, True)
    method = hint(Spec({"output": student}), Spec({"output": teacher}))
    assert method.pair_specs(method.pairs()[0]) == (student, teacher)


def test_class_scores_are_compared_only_between_equal_class_lists():
    cats = ("cat", "dog", "cow")
    hint(spec(classes=cats), spec(classes=cats)).require_same_classes()
    hint(spec(classes=cats), spec()).require_same_classes()
    with pytest.raises(InputError, match="student has 4 classes and the teacher 6"):
        hint(spec(), spec(num_classes=6)).require_same_classes()
    with pytest.raises(InputError, match="student 'dog' where the teacher has 'cow'"):
        hint(spec(classes=cats), spec(classes=("cat", "cow", "dog"))).require_same_classes()


def test_stage_counts_towards_the_budget_if_the_student_runs():
    assert Stage("a", Needs.STUDENT | Needs.TEACHER_FEATURES).trains_student
    assert not Stage("a", Needs.TEACHER_FEATURES, ("net",), 3).trains_student


def test_a_stage_takes_turns_with_the_one_between():
    between = Stage("b", Needs.STUDENT)
    stage = Stage("a", Needs.STUDENT, every=3, between=between)
    assert [stage.turn(step).name for step in range(7)] == list("abbabba")
    assert [between.turn(step) for step in range(3)] == 3 * [between]
    for wrong in ({"every": 3}, {"every": 0}, {"between": between}):
        with pytest.raises(ValueError, match="stage 'c' has every=.* needs a stage between"):
            Stage("c", Needs.STUDENT, **wrong)
    for more in (
        Stage("d", Needs.STUDENT | Needs.TEACHER_FEATURES),
        Stage("d", Needs.STUDENT, (STUDENT, "net")),
        Stage("d", Needs.NOTHING),
        stage,
    ):
        with pytest.raises(ValueError, match="stage 'c': the stage '[ad]' between needs passes or players"):
            Stage("c", Needs.STUDENT, every=2, between=more)


def test_update_total_is_the_sum_in_single_precision():
    losses = {"a": torch.tensor(1.5), "b": torch.tensor(0.25, dtype=torch.bfloat16), "c": torch.tensor(-1.0)}
    total = Update("student", losses, {"ignored": torch.tensor(100.0)}).total
    assert total.item() == 0.75
    assert total.dtype == torch.float32


def test_frozen_lets_gradients_through_and_restores_what_was_on():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    inputs = torch.ones(2, 3, requires_grad=True)
    with frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
        output = net(inputs).sum()
    assert [p.requires_grad for p in net.parameters()] == before
    output.backward()
    assert torch.allclose(inputs.grad, (net[1].weight @ net[0].weight).expand(2, 3))
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ZeroDivisionError), frozen(net):
        raise ZeroDivisionError
    assert [p.requires_grad for p in net.parameters()] == before


@pytest.mark.parametrize(
    ("need", "what"), [(Needs.BOXES, "the boxes of objects"), (Needs.ANCHORS, "the student's anchors")]
)
def test_what_networks_do_not_have_is_refused(need, what, monkeypatch):
    """Also where only a later stage needs it."""
    method = hint(spec("output"), spec("output"))
    stages = [Stage("first", Needs.STUDENT, steps=3), Stage("second", Needs.STUDENT | need)]
    monkeypatch.setattr(Hint, "stages", lambda self: stages)
    require_offered(method, ~Needs.NOTHING)
    with pytest.raises(InputError, match=f"^method 'hint' needs {what}, which this student does not have; choose"):
        require_offered(method, ~need)
    monkeypatch.setattr(Hint, "stages", lambda self: stages[:1])
    require_offered(method, ~need)
