"""Shares of the task's gradient: exact norms on one batch, steady ones over many, nothing of the padding."""

from __future__ import annotations

import math

import pytest
import torch

import detkt
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.balance import EVERY, LARGEST, MEMORY, Balance, gradient_share
from detkt.methods.base import STUDENT, Update


def batch(seed: int = 0):
    """Two maps, a task loss and two terms of known gradients at them."""
    torch.manual_seed(seed)
    maps = [torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 2, 3, requires_grad=True)]
    directions = {name: [torch.randn_like(feature) for feature in maps] for name in ("task", "hint", "adversary")}
    losses = {
        name: sum((feature * part).sum() for feature, part in zip(maps, parts, strict=True))
        for name, parts in directions.items()
    }
    vectors = {name: torch.cat([part.flatten() for part in parts]) for name, parts in directions.items()}
    task = {"classification": 0.25 * losses["task"], "box": 0.75 * losses["task"]}
    terms = {"hint": 30 * losses["hint"], "adversary": 0.01 * losses["adversary"], "free": 2 * losses["hint"]}
    return maps, task, terms, vectors


def gradient(loss, maps) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, maps, retain_graph=True)])


def test_terms_pull_with_their_share_of_the_task():
    maps, task, terms, vectors = batch()
    balance = Balance({"hint": 0.5, "adversary": 0.1})
    update = balance(Update(STUDENT, terms), task, maps, [None, None], measure=True)
    whole = vectors["task"].norm()
    for name, share in (("hint", 0.5), ("adversary", 0.1)):
        pulled = gradient(update.losses[name], maps)
        assert pulled.norm().item() == pytest.approx(share * whole.item(), rel=1e-5)
        assert update.metrics[f"{name}_share"].item() == pytest.approx(share, rel=1e-5)
        cosine = torch.cosine_similarity(vectors[name], vectors["task"], dim=0)
        assert update.metrics[f"{name}_cosine"].item() == pytest.approx(cosine.item(), abs=1e-5)
    assert update.losses["free"] is terms["free"]
    assert set(update.metrics) == {"hint_share", "hint_cosine", "adversary_share", "adversary_cosine"}


def test_padding_counts_neither_for_the_task_nor_for_the_term():
    maps, task, terms, vectors = batch()
    masks = [torch.zeros(2, 1, 4, 5), torch.ones(2, 1, 2, 3)]
    masks[0][:, :, :2] = 1
    cells = torch.cat([mask.expand_as(feature).flatten() for mask, feature in zip(masks, maps, strict=True)])
    update = Balance({"hint": 0.5})(Update(STUDENT, terms), task, maps, masks, measure=True)
    pulled = gradient(update.losses["hint"], maps) * cells
    assert pulled.norm().item() == pytest.approx(0.5 * (vectors["task"] * cells).norm().item(), rel=1e-5)


def test_between_two_measurements_the_factor_stays_and_nothing_is_computed():
    balance = Balance({"hint": 0.5})
    maps, task, terms, _ = batch()
    first = balance(Update(STUDENT, terms), task, maps, [None, None], measure=False)  # nothing known yet: it looks
    factor = (first.losses["hint"] / terms["hint"]).item()
    maps, task, terms, _ = batch(1)
    later = balance(Update(STUDENT, {"hint": 7 * terms["hint"]}), task, maps, [None, None], measure=False)
    assert (later.losses["hint"] / (7 * terms["hint"])).item() == pytest.approx(factor)
    assert later.metrics == {}


def test_the_ratio_is_a_running_geometric_mean_and_goes_with_the_state():
    balance = Balance({"hint": 1.0})
    ratios = []
    for seed in range(3):
        maps, task, terms, _ = batch(seed)
        scaled = {"hint": 10**seed * terms["hint"]}
        balance(Update(STUDENT, scaled), task, maps, [None, None], measure=True)
        ratios.append(
            math.log((gradient(sum(task.values()), maps).norm() / gradient(scaled["hint"], maps).norm()).item())
        )
    expected = ratios[0]
    for ratio in ratios[1:]:
        expected = MEMORY * expected + (1 - MEMORY) * ratio
    assert balance.ratios.item() == pytest.approx(expected, abs=1e-4)
    other = Balance({"hint": 1.0})
    other.load_state_dict(balance.state_dict())
    maps, task, terms, _ = batch(5)
    losses = [
        b(Update(STUDENT, terms), task, maps, [None, None], measure=False).losses["hint"] for b in (balance, other)
    ]
    assert losses[0] == losses[1]


def test_a_term_without_a_gradient_keeps_its_weight_and_spoils_nothing():
    maps, task, terms, _ = batch()
    balance = Balance({"hint": 0.5, "absent": 1.0})
    update = balance(Update(STUDENT, {"hint": torch.zeros(())}), task, maps, [None, None], measure=True)
    assert update.losses["hint"] == 0 and update.metrics == {}  # a share of 0 would halve the mean that is logged
    assert not balance.known.any()
    assert balance.ratios.isfinite().all()  # else no checkpoint could be written
    tiny = balance(Update(STUDENT, {"hint": 1e-9 * terms["hint"]}), task, maps, [None, None], measure=True)
    assert (tiny.losses["hint"] / (1e-9 * terms["hint"])).item() == pytest.approx(0.5 * LARGEST, rel=1e-4)


def test_processes_share_one_factor():
    maps, task, terms, _ = batch()
    alone = Balance({"hint": 1.0})
    doubled = Balance({"hint": 1.0}, mean=lambda values: values * torch.tensor([2.0, 1.0, 1.0]))
    for balance in (alone, doubled):
        balance(Update(STUDENT, terms), task, maps, [None, None], measure=True)
    assert doubled.ratios.item() - alone.ratios.item() == pytest.approx(math.log(2), abs=1e-5)


def test_gradients_still_reach_the_student():
    maps, task, terms, _ = batch()
    update = Balance({"hint": 0.5})(Update(STUDENT, terms), task, maps, [None, None], measure=True)
    update.with_task(task).total.backward()
    assert all(feature.grad.abs().sum() > 0 for feature in maps)


# In a distiller


@pytest.mark.parametrize(
    ("method", "settings", "shares"),
    [
        ("fitnet", {"balance": 0.5}, {"fitnet": 0.5}),
        ("kd", {"balance": 0.25}, {"kd": 0.25}),
        (
            "ktan",
            {"balance": 0.5, "adversary_balance": 0.1, "regressor_steps": 1, "warmup_steps": 0},
            {"ktan_mse": 0.5, "ktan_generator": 0.1},
        ),
        ("at+kd", {"at": {"balance": 0.5}, "kd": {"balance": 0.25}}, {"at": 0.5, "kd": 0.25}),
    ],
)
def test_a_distiller_holds_its_terms_to_their_shares(detector, batch, monkeypatch, method, settings, shares):
    seen = []
    distiller = detkt.Distiller(detector(), detector(seed=1), method, settings).train()
    distiller.prepare([batch])
    original = distiller.task.run
    monkeypatch.setattr(distiller.task, "run", lambda *args: seen.append(original(*args)) or seen[-1])
    losses = distiller(*batch)
    student = seen[0][0]
    feature = student.features["output"]
    mask = student.mask(feature)

    def pull(loss):
        return (torch.autograd.grad(loss, feature, retain_graph=True)[0] * mask).norm().item()

    task = pull(sum(student.losses.values()))
    for name, share in shares.items():
        assert pull(losses[name]) == pytest.approx(share * task, rel=1e-3)
        assert distiller.metrics[f"{name}_share"].item() == pytest.approx(share, rel=1e-3)
        assert -1 <= distiller.metrics[f"{name}_cosine"].item() <= 1


@pytest.mark.parametrize("frozen", [("conv1", "bn1", "layer1"), ("conv1", "bn1", "layer1", "layer2", "layer3")])
def test_maps_of_frozen_stages_are_not_looked_at(detector, batch, frozen):
    student = detector()
    for name in frozen:
        getattr(student.backbone, name).requires_grad_(False)
    distiller = detkt.Distiller(student, detector(seed=1), "pkd", {"balance": 0.5, "layers": ["layer1", "layer2"]})
    if "layer2" in frozen:
        with pytest.raises(InputError, match="pkd: no share of the task's gradient.*backbone is frozen"):
            distiller.train()(*batch)
        return
    distiller.train()(*batch)
    assert distiller.metrics["pkd_share"].item() == pytest.approx(0.5, rel=1e-3)


def test_factors_and_rhythm_go_with_the_distillers_state(detector, batch):
    def new() -> detkt.Distiller:
        torch.manual_seed(0)
        return detkt.Distiller(detector(), detector(seed=1), "fitnet", {"balance": 0.5}).train()

    first, second = new(), new()
    for _ in range(3):
        first(*batch)
    second.load_state_dict(first.state_dict())
    told = []
    for distiller in (first, second):
        torch.manual_seed(4)
        losses, measured = [], []
        for _ in range(EVERY - 1):
            losses.append(distiller(*batch)["fitnet"].item())
            measured.append("fitnet_share" in distiller.metrics)
        told.append((losses, measured))
    assert told[0] == told[1]
    assert told[0][1].index(True) == EVERY - 3
    assert sum(told[0][1]) == 1


def test_without_a_share_nothing_changes(detector, batch):
    distiller = detkt.Distiller(detector(), detector(seed=1), "fitnet").train()
    assert distiller.balance is None
    distiller(*batch)
    assert distiller.metrics == {}


def test_a_validation_loss_is_weighed_and_not_looked_at(detector, batch):
    distiller = detkt.Distiller(detector(), detector(seed=1), "fitnet", {"balance": 0.5}).train()
    with torch.no_grad():
        assert distiller(*batch)["fitnet"].isfinite()
    assert not distiller.balance.known.any()


@pytest.mark.parametrize("share", [-0.5, math.inf])
def test_a_share_is_a_number_of_at_least_0(detector, share):
    with pytest.raises(InputError, match="balance.* is .*: it must be a (finite number|number of at least 0)"):
        detkt.Distiller(detector(), detector(seed=1), "fitnet", {"balance": share})


# What is told of terms of fixed weights


def test_the_terms_share_together_by_hand():
    """At the map (3, 4): the task pulls (3, 4), the terms (30, 0) and (0, -8): 31.05 to 5."""
    feature = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
    frozen = torch.ones(1, 1, 1, 2)
    task = {"half": 0.25 * (feature**2).sum(), "other": 0.25 * (feature**2).sum()}
    terms = {"hint": 30 * feature[..., 0].sum(), "adversary": -8 * feature[..., 1].sum()}
    student = Knowledge({"output": feature, "layer1": frozen}, losses=task)
    update = gradient_share(Update(STUDENT, terms, {"kept": torch.tensor(1.0)}), student)
    assert update.metrics["gradient_share"].item() == pytest.approx(math.hypot(30, 8) / 5)
    assert update.metrics["kept"].item() == 1
    assert update.losses is terms
    assert feature.grad is None
    padded = Knowledge({"output": feature}, losses=task, valid=[(1.0, 0.5)])  # the left cell alone
    assert gradient_share(Update(STUDENT, terms), padded).metrics["gradient_share"].item() == pytest.approx(10)
    nothing = gradient_share(Update(STUDENT, {}), student)
    assert nothing.metrics == {}


@pytest.mark.parametrize("method", ["fitnet", "kd", "at+kd"])
def test_looking_changes_no_bit_of_the_gradients(detector, batch, method):
    def gradients(compares: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        distiller = detkt.Distiller(detector(), detector(seed=1), method).train()
        distiller.compares_gradients = compares
        torch.manual_seed(1)
        sum(distiller(*batch).values()).backward()
        return [p.grad for p in distiller.student.parameters() if p.grad is not None], distiller.metrics

    with_it, without = gradients(True), gradients(False)
    assert with_it[1]["gradient_share"].item() > 0
    assert "gradient_share" not in without[1]
    assert all(torch.equal(*pair) for pair in zip(with_it[0], without[0], strict=True))
