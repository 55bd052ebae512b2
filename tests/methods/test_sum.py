"""The sum of methods: its loss is exact, its stages are cut where a part changes its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkt import methods
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.base import STUDENT, Method, MethodConfig, Needs, Player, Stage, Update
from detkt.methods.sum import Sum

SPEC = Spec({"output": FeatureSpec(8, 4, 6, True)}, 4)


class Rescaling(Method):
    """Scales a task loss (as KD does), drops others, adds a term; its net learns beforehand, for 4 steps."""

    name = "rescaling"
    warmup = 3

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.net = nn.Linear(1, 1)

    def stages(self):
        return [
            Stage("fit", Needs.TEACHER_FEATURES, ("regressor",), 4),
            Stage("warmup", Needs.STUDENT, steps=self.warmup),
            Stage("main", Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS),
        ]

    def players(self):
        return {"regressor": Player((self.net,))}

    def step(self, stage, student, teacher, heads):
        if stage.name == "fit":
            yield Update("regressor", {"rescaling_fit": self.net(torch.ones(1)).sum()})
        elif stage.name == "warmup":
            yield Update(STUDENT, {"hint": torch.tensor(4.0)})
        else:
            weights = {"classifier": 0.1, "box": 0.0, "rpn": 0.0}
            yield Update(STUDENT, {"hint": torch.tensor(2.0)}, {"temperature": torch.tensor(4.0)}, weights)


class Adversary(Method):
    """Adds a term to the losses as they are, after a step of its adversary; a net of its learns with the student."""

    name = "adversary"

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.judge, self.translator = nn.Linear(1, 1), nn.Linear(1, 1)

    def stages(self):
        return [
            Stage("prepare", Needs.TEACHER_FEATURES, ("judge",), 2),
            Stage("warmup", Needs.STUDENT | Needs.TEACHER_FEATURES, steps=5),
            Stage("fight", Needs.STUDENT | Needs.TEACHER_FEATURES, (STUDENT, "judge")),
        ]

    def players(self):
        return {"judge": Player((self.judge,), "adam", 0.5), STUDENT: Player((self.translator,))}

    def step(self, stage, student, teacher, heads):
        if stage.name == "fight":
            yield Update("judge", {"judge": self.judge(torch.ones(1)).sum()})
        yield Update(STUDENT, {"hint": torch.tensor(1.0), "fooled": torch.tensor(0.5)})


def summed(*classes: type[Method]) -> Sum:
    return Sum([cls(MethodConfig(), SPEC, SPEC) for cls in classes])


@pytest.fixture
def student() -> Knowledge:
    return Knowledge(losses={"classifier": torch.tensor(3.0), "box": torch.tensor(5.0), "rpn": torch.tensor(7.0)})


def test_stages_are_cut_where_a_part_changes_its_own():
    stages = summed(Rescaling, Adversary).stages()
    assert [(stage.name, stage.steps) for stage in stages] == [
        ("rescaling.fit", 4),
        ("adversary.prepare", 2),
        ("rescaling.warmup+adversary.warmup", 3),
        ("rescaling.main+adversary.warmup", 2),
        ("rescaling.main+adversary.fight", None),
    ]
    assert [stage.trains_student for stage in stages] == [False, False, True, True, True]
    assert [stage.players for stage in stages] == [
        ("regressor",),
        ("judge",),
        (STUDENT,),
        (STUDENT,),
        (STUDENT, "judge"),
    ]
    assert stages[0].needs == Needs.TEACHER_FEATURES
    assert stages[2].needs == Needs.STUDENT | Needs.TEACHER_FEATURES
    assert stages[3].needs == Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS | Needs.TEACHER_FEATURES


class Seldom(Method):
    """Adds 8 in every third step, 1 in those between."""

    name = "seldom"
    every = 3

    def stages(self):
        needs = Needs.STUDENT
        return [Stage("whole", needs, (STUDENT, "own"), every=self.every, between=Stage("little", needs))]

    def step(self, stage, student, teacher, heads):
        yield Update(STUDENT, {"seldom": torch.tensor(8.0 if stage.name == "whole" else 1.0)})


def test_a_part_keeps_its_rhythm(student):
    total = summed(Adversary, Seldom)
    fight = total.stages()[-1]
    assert (fight.every, fight.players) == (3, (STUDENT, "judge", "own"))
    added = []
    for step in range(4):
        *others, last = total.step(fight.turn(step), student, None, None)
        assert [update.player for update in others] == ["judge"]
        added.append(last.losses["seldom"].item())
    assert added == [8, 1, 1, 8]


def test_the_stage_between_may_have_the_same_name(student, monkeypatch):
    needs = Needs.STUDENT
    stage = Stage("whole", needs, (STUDENT, "own"), every=2, between=Stage("whole", needs))
    monkeypatch.setattr(Seldom, "stages", lambda self: [stage])
    monkeypatch.setattr(
        Seldom,
        "step",
        lambda self, stage, *_: iter([Update(STUDENT, {"seldom": torch.tensor(float(len(stage.players)))})]),
    )
    total = summed(Seldom, Adversary)
    last = total.stages()[-1]
    values = [list(total.step(last.turn(step), student, None, None))[-1].losses["seldom"] for step in range(3)]
    assert values == [2, 1, 2]


def test_parts_of_two_rhythms_are_refused():
    often = type("Often", (Seldom,), {"name": "often", "every": 2})
    with pytest.raises(InputError, match="seldom and often cannot be summed: one .* every 3 steps, the other every 2"):
        summed(Seldom, Adversary, often)


def test_parts_that_change_together_leave_no_empty_stage(monkeypatch):
    monkeypatch.setattr(Rescaling, "warmup", 5)
    stages = summed(Adversary, Rescaling).stages()
    assert [(stage.name, stage.steps) for stage in stages[2:]] == [
        ("adversary.warmup+rescaling.warmup", 5),
        ("adversary.fight+rescaling.main", None),
    ]


def test_the_loss_is_the_task_loss_and_what_each_part_adds_to_it(student):
    """rescaling: 0.3 + 2 against a task loss of 15; adversary: 15 + 1 + 0.5."""
    total = summed(Rescaling, Adversary)
    updates = list(total.step(total.stages()[-1], student, None, None))
    assert [update.player for update in updates] == ["judge", STUDENT]
    whole = updates[-1].with_task(student.losses)
    losses = {name: loss.item() for name, loss in whole.losses.items()}
    expected = {"classifier": 0.3, "box": 0.0, "rpn": 0.0, "hint": 3.0, "fooled": 0.5}
    assert losses == pytest.approx(expected)
    assert whole.total.item() == pytest.approx(15 + (2.3 - 15) + (16.5 - 15))
    assert updates[-1].metrics == {"temperature": torch.tensor(4.0)}


def test_each_stage_runs_its_own_parts(student):
    total = summed(Rescaling, Adversary)
    preparing, _, warmup, mixed, _ = total.stages()
    only = list(total.step(preparing, None, Knowledge(), None))
    assert [(update.player, list(update.losses)) for update in only] == [("regressor", ["rescaling_fit"])]
    (update,) = total.step(warmup, student, None, None)
    assert update.with_task(student.losses).total.item() == pytest.approx(15 + 4 + 1.5)
    (update,) = total.step(mixed, student, None, None)
    assert update.with_task(student.losses).total.item() == pytest.approx(15 + (2.3 - 15) + 1.5)


def test_losses_keep_their_graph(student):
    weight = torch.tensor(1.0, requires_grad=True)
    student.losses = {name: loss * weight for name, loss in student.losses.items()}
    total = summed(Rescaling, Adversary)
    *_, update = total.step(total.stages()[-1], student, None, None)
    update.with_task(student.losses).total.backward()
    assert weight.grad.item() == pytest.approx(0.3)


def test_what_two_parts_take_from_one_task_loss_is_taken_together():
    first = Update(STUDENT, {"a": torch.tensor(1.0)}, task_weights={"classifier": 0.6})
    second = Update(STUDENT, {"b": torch.tensor(2.0)}, task_weights={"classifier": 0.9, "box": 2.0})
    whole = (first + second).with_task({name: torch.tensor(10.0) for name in ("classifier", "box", "rpn")})
    losses = {name: loss.item() for name, loss in whole.losses.items()}
    assert losses == pytest.approx({"classifier": 5.0, "box": 20.0, "rpn": 10.0, "a": 1.0, "b": 2.0})
    assert whole.task_weights == {}


def test_players_are_those_of_all_parts():
    total = summed(Rescaling, Adversary)
    players = total.players()
    assert set(players) == {"regressor", "judge", STUDENT}
    assert players["judge"].modules == (total.methods["adversary"].judge,)
    assert (players["judge"].optimizer, players["judge"].lr) == ("adam", 0.5)
    assert total.name == "rescaling+adversary"
    assert {name.split(".")[1] for name in total.state_dict()} == {"rescaling", "adversary"}


def test_nets_that_learn_with_the_student_are_joined():
    class Other(Adversary):
        name = "other"

        def players(self):
            return {STUDENT: Player((self.judge, self.translator))}

    total = summed(Adversary, Other)
    modules = total.players()[STUDENT].modules
    other = total.methods["other"]
    assert modules == (total.methods["adversary"].translator, other.judge, other.translator)


def test_two_adversaries_of_one_name_cannot_be_summed():
    configs = methods.parse("ktan+dln")
    with pytest.raises(InputError, match="methods ktan and dln cannot be summed: both train a net called 'regressor'"):
        methods.build(configs, SPEC, SPEC)
