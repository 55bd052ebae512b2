"""Shares of the task's gradient: exact norms on one batch, steady ones over many, nothing of the padding."""

from __future__ import annotations

import math

import pytest
import torch

import detkt
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.balance import EVERY, EXCESS, FIRST, LARGEST, MEMORY, Balance, gradient_share
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


def knowledge(maps, task, valid=None) -> Knowledge:
    return Knowledge({f"map{i}": feature for i, feature in enumerate(maps)}, losses=task, valid=valid)


def ratio_of(task, term, maps) -> float:
    return (gradient(sum(task.values()), maps).norm() / gradient(term, maps).norm()).item()


def test_terms_pull_with_their_share_of_the_task():
    maps, task, terms, vectors = batch()
    balance = Balance({"hint": 0.5, "adversary": 0.1})
    update = balance(Update(STUDENT, terms), knowledge(maps, task))
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
    student = knowledge(maps, task, [(0.5, 1.0), (1.0, 0.4)])
    cells = torch.cat([student.mask(feature).expand_as(feature).flatten() for feature in maps])
    assert 0 < cells.mean() < 0.6
    update = Balance({"hint": 0.5})(Update(STUDENT, terms), student)
    pulled = gradient(update.losses["hint"], maps) * cells
    assert pulled.norm().item() == pytest.approx(0.5 * (vectors["task"] * cells).norm().item(), rel=1e-5)


def test_every_batch_is_looked_at_first_and_one_in_ten_after():
    balance = Balance({"hint": 0.5})
    looked = []
    for seed in range(FIRST + 2 * EVERY + 1):
        maps, task, terms, _ = batch(seed)
        before = balance.ratios.clone()
        update = balance(Update(STUDENT, {"hint": terms["hint"]}), knowledge(maps, task))
        looked.append("hint_share" in update.metrics)
        if not looked[-1]:  # the factor stays
            assert torch.equal(balance.ratios, before)
            factor = (update.losses["hint"] / terms["hint"]).item()
            assert factor == pytest.approx(0.5 * math.exp(before.item()), rel=1e-5)
    assert looked == [i < FIRST or i % EVERY == 0 for i in range(len(looked))]


@pytest.mark.parametrize(("start", "every"), [(0, 4), (5, 4), (3, 5), (7, 2)])
def test_an_adversary_is_looked_at_in_turns_of_its_own(start, every):
    balance = Balance({"hint": 0.5, "adversary": 0.1})
    looked = []
    for step in range(start, start + every * (FIRST + EVERY + 1), 1):
        maps, task, terms, _ = batch(step)
        if turn := (step - start) % every == 0:
            update = balance(Update(STUDENT, terms), knowledge(maps, task))
            looked.append("adversary_share" in update.metrics)
        else:
            waiting = {**terms, "adversary": torch.zeros(())}
            update = balance(Update(STUDENT, waiting), knowledge(maps, task))
        assert ("adversary_share" in update.metrics) <= turn
    assert looked == [True] * FIRST + [True] + [False] * (EVERY - 1) + [True]


def test_the_ratio_is_a_running_geometric_mean_and_goes_with_the_state():
    balance = Balance({"hint": 1.0})
    expected = 0.0
    for seed in range(8):
        maps, task, terms, _ = batch(seed)
        scaled = {"hint": (1 + seed % 3) * terms["hint"]}
        balance(Update(STUDENT, scaled), knowledge(maps, task))
        weight = max(1 - MEMORY, 1 / (seed + 1))  # a mean of the first ones alike
        expected += weight * (math.log(ratio_of(task, scaled["hint"], maps)) - expected)
    assert balance.ratios.item() == pytest.approx(expected, abs=1e-4)
    other = Balance({"hint": 1.0})
    other.load_state_dict(balance.state_dict())
    maps, task, terms, _ = batch(5)
    losses = [b(Update(STUDENT, terms), knowledge(maps, task)).losses["hint"] for b in (balance, other)]
    assert losses[0] == losses[1]


def test_a_term_that_changes_a_hundredfold_never_drowns_the_task():
    """As an adapter that is new: its first steps change the term's gradient by far more than the task's."""
    balance, pulled = Balance({"hint": 1.0}), []
    for step in range(FIRST):
        maps, task, terms, _ = batch(step)
        scale = 100.0 if 2 <= step < 20 else 0.01
        term = {"hint": scale * terms["hint"]}
        update = balance(Update(STUDENT, term), knowledge(maps, task))
        pulled.append(1 / ratio_of(task, update.losses["hint"], maps))
        assert update.metrics["hint_share"].item() == pytest.approx(pulled[-1], rel=1e-3)
    assert max(pulled) <= EXCESS * 1.001
    assert pulled[:2] == pytest.approx([1, 1], rel=0.3)
    assert pulled[3:19] == pytest.approx([EXCESS] * 16, rel=1) and pulled[-1] == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_factor_of_the_whole(parts):
    whole, split = Balance({"hint": 0.5}), Balance({"hint": 0.5}, parts=parts)
    for step in range(6):
        torch.manual_seed(step)
        feature = torch.randn(4, 3, 2, 2, requires_grad=True)
        task, hint = torch.randn(4, 3, 2, 2), (10.0**step) * torch.randn(4, 3, 2, 2)

        def losses(rows: slice, feature=feature, task=task, hint=hint):
            part = feature[rows]  # the map of these pictures alone
            count = len(part)
            student = Knowledge({"output": part}, losses={"task": (part * task[rows]).sum() / count})
            return Update(STUDENT, {"hint": (part * hint[rows]).sum() / count}), student

        whole(*losses(slice(0, 4)))
        size = 4 // parts
        for part in range(parts):
            split(*losses(slice(part * size, (part + 1) * size)))
        assert split.ratios.item() == pytest.approx(whole.ratios.item(), abs=1e-4)


def test_a_term_without_a_gradient_keeps_its_weight_and_spoils_nothing():
    maps, task, terms, _ = batch()
    balance = Balance({"hint": 0.5, "absent": 1.0})
    update = balance(Update(STUDENT, {"hint": torch.zeros(())}), knowledge(maps, task))
    assert update.losses["hint"] == 0 and update.metrics == {}  # a share of 0 would halve the mean that is logged
    empty = balance(Update(STUDENT, {"hint": 0.0 * terms["hint"]}), knowledge(maps, task))  # as of an empty picture
    assert empty.losses["hint"] == 0 and empty.metrics["hint_share"] == empty.metrics["hint_cosine"] == 0
    assert not balance.known.any()
    assert balance.ratios.isfinite().all()  # else no checkpoint could be written
    tiny = balance(Update(STUDENT, {"hint": 1e-9 * terms["hint"]}), knowledge(maps, task))
    assert (tiny.losses["hint"] / (1e-9 * terms["hint"])).item() == pytest.approx(0.5 * LARGEST, rel=1e-4)


def test_processes_share_one_factor():
    maps, task, terms, _ = batch()
    alone = Balance({"hint": 1.0})
    doubled = Balance({"hint": 1.0}, mean=lambda squares: squares * torch.tensor([4.0, 1.0, 1.0]))
    for balance in (alone, doubled):
        balance(Update(STUDENT, terms), knowledge(maps, task))
    assert doubled.ratios.item() - alone.ratios.item() == pytest.approx(math.log(2), abs=1e-5)


def test_a_checkpoint_that_counted_once_for_all_terms_goes_on():
    balance = Balance({"hint": 0.5, "adversary": 0.1})
    balance.set_extra_state(torch.tensor(70))
    assert balance.get_extra_state().tolist() == [70, 70]


def test_gradients_still_reach_the_student():
    maps, task, terms, _ = batch()
    update = Balance({"hint": 0.5})(Update(STUDENT, terms), knowledge(maps, task))
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


def test_factors_and_rhythm_go_with_the_distillers_state(detector, batch, monkeypatch):
    monkeypatch.setattr("detkt.methods.balance.FIRST", 2)

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
