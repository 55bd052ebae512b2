"""The training loop: budgets, players, guards, checkpoints. (Runs that are stopped and go on: test_resume.py.)"""

from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import pairwise

import pytest
import torch
from run_comparison import assert_same, read_log

from detkt.base.errors import InputError
from detkt.data import loading, training_set
from detkt.data.loading import dead_workers_in_one_line
from detkt.distiller import Distiller
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.guards import SkippedUpdates
from detkt.engine.trainer import Interrupted, Trainer
from detkt.methods.base import STUDENT, Method, Needs, Player, Stage, Update
from detkt.methods.players import build_optimizer, match_layout, schedule_factor
from detkt.models import build_detector, load_model


def make_trainer(config, folder, method=None, budget=None):
    """The trainer of *config* without what surrounds it in a run; *method* may be a class."""
    folder.mkdir(exist_ok=True)
    dataset = training_set(config.data)
    torch.manual_seed(0)
    student = build_detector(config.student.architecture, len(dataset.classes) + 1, **config.student.options)
    method = method or config.method
    needs_teacher = method not in ("none",) and getattr(method, "needs_teacher", True)
    teacher = load_model(config.teacher.checkpoint)[0] if needs_teacher else None
    settings = config.methods.get(method) if isinstance(method, str) else None
    return Trainer(Distiller(student, teacher, method, settings), dataset, config.train, folder, quiet=True)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is saved."""


def kill():
    raise Killed


def test_after_a_crash_log_lines_beyond_the_checkpoint_are_dropped(tiny_config, tmp_path, at_step):
    config = tiny_config("train.log_every=2", "train.checkpoint_every=5")
    make_trainer(config, tmp_path / "whole").fit()
    at_step(8, kill)
    with pytest.raises(Killed):
        make_trainer(config, tmp_path / "run").fit()
    log = tmp_path / "run" / "log.jsonl"
    assert [line["step"] for line in read_log(log.parent)] == [2, 4, 6]
    with log.open("a") as file:
        file.write('{"stage": "train", "st')  # the last line was being written
    at_step(0, None)
    trainer = make_trainer(config, tmp_path / "run")
    trainer.resume(tmp_path / "run" / "last.pt")
    assert trainer.progress.step == 5
    trainer.fit()
    assert [line["step"] for line in read_log(log.parent)] == [2, 4, 6, 8]
    assert read_log(log.parent) == read_log(tmp_path / "whole")
    assert_same(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "whole")))


def test_seconds_add_up_over_a_stop(tiny_config, tmp_path, at_step):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    first = make_trainer(tiny_config(), tmp_path / "run")
    with pytest.raises(Interrupted):
        first.fit()
    second = make_trainer(tiny_config(), tmp_path / "run")
    second.resume(tmp_path / "run" / "last.pt")
    before = second.progress.seconds
    assert 0 < before <= first.progress.seconds
    second.fit()
    assert second.progress.seconds > before


def test_signals_are_handled_while_training_only_and_the_second_does_not_wait(tiny_config, tmp_path, at_step):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupt_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(2, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tiny_config(), tmp_path / "run").fit()
    assert not (tmp_path / "run" / "last.pt").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


# -- what cannot be resumed ------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tiny_config, tmp_path, at_step):
    """The checkpoint of a plain run stopped after 2 steps."""
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        make_trainer(tiny_config(), tmp_path / "stopped").fit()
    at_step(0, None)
    return tmp_path / "stopped" / "last.pt"


def test_a_checkpoint_of_another_method_or_model_is_refused(stopped, tiny_config, tmp_path):
    with pytest.raises(InputError, match=r"last\.pt is of another model or method"):
        make_trainer(tiny_config("method=dln"), tmp_path / "a").resume(stopped)
    wider = tiny_config("student.architecture=fasterrcnn_resnet10x0.25_c4")
    with pytest.raises(InputError, match=r"last\.pt is of another model or method") as refused:
        make_trainer(wider, tmp_path / "b").resume(stopped)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_other_pictures_is_refused(stopped, tiny_config, tmp_path):
    with pytest.raises(InputError, match=r"last\.pt is of a run on other pictures"):
        make_trainer(tiny_config("data.train=test"), tmp_path / "a").resume(stopped)


# -- losses that stop being numbers ----------------------------------------------------------------------------------


@pytest.fixture
def spoil(monkeypatch):
    """``spoil(n, change)``: the student's losses of the n-th step go through *change*; returns what it saw."""
    original = Distiller.updates

    def arrange(number, change):
        seen, count = {}, 0

        def updates(self, stage, images, targets):
            nonlocal count
            count += 1
            for update in original(self, stage, images, targets):
                if count == number and update.player == STUDENT:
                    seen["pictures"] = [int(target["image_id"]) for target in targets]
                    change(self, update.losses)
                yield update

        monkeypatch.setattr(Distiller, "updates", updates)
        return seen

    return arrange


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(value, tiny_config, tmp_path, spoil):
    kept = []

    def change(distiller, losses):
        kept.append((tmp_path / "run" / "last.pt").read_bytes())
        losses["loss_box_reg"] = losses["loss_box_reg"] * value

    seen = spoil(7, change)
    trainer = make_trainer(tiny_config("train.checkpoint_every=5", "train.log_every=1"), tmp_path / "run")
    with pytest.raises(InputError) as stopped:
        trainer.fit()
    message = str(stopped.value)
    assert "'loss_box_reg' became " in message
    assert "at step 7 " in message
    assert "\n" not in message
    pictures = ", ".join(trainer.dataset.ids[index] for index in seen["pictures"])
    assert f"(pictures {pictures})" in message
    assert (tmp_path / "run" / "last.pt").read_bytes() == kept[0]
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 5
    assert all(parameter.isfinite().all() for parameter in trainer.distiller.parameters()), "the step was not taken"
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("clip_norm", [10, 0])
def test_a_gradient_that_is_no_number_stops_the_run_before_the_step(clip_norm, tiny_config, tmp_path, spoil):
    """The gradient of a square root at 0 is infinite, the loss itself is 0."""
    kept = []

    def change(distiller, losses):
        kept.append((tmp_path / "run" / "last.pt").read_bytes())
        losses["distance"] = (distiller.student.backbone.conv1.weight * 0).sum().sqrt()

    seen = spoil(6, change)
    config = tiny_config("train.checkpoint_every=3", f"train.clip_norm={clip_norm}")
    trainer = make_trainer(config, tmp_path / "run")
    with pytest.raises(InputError) as stopped:
        trainer.fit()
    pictures = ", ".join(trainer.dataset.ids[index] for index in seen["pictures"])
    start = (
        f"the gradient of player 'student' became nan at step 6 (pictures {pictures}); the last good checkpoint is kept"
    )
    assert str(stopped.value).startswith(start)
    assert (tmp_path / "run" / "last.pt").read_bytes() == kept[0]
    assert all(parameter.isfinite().all() for parameter in trainer.distiller.parameters()), "the step was not taken"


def test_weights_that_are_no_numbers_do_not_replace_the_checkpoint(tiny_config, tmp_path, at_step):
    """Running statistics have neither loss nor gradient."""
    trainer = make_trainer(tiny_config("train.checkpoint_every=3"), tmp_path / "run")
    kept = []

    def change():
        kept.append((tmp_path / "run" / "last.pt").read_bytes())
        trainer.distiller.register_buffer("statistic", torch.tensor(float("inf")))

    at_step(6, change)
    with pytest.raises(InputError, match=r"'statistic' became NaN or infinite by step 6"):
        trainer.fit()
    assert (tmp_path / "run" / "last.pt").read_bytes() == kept[0]


@pytest.mark.parametrize("name", ["log.jsonl", ".last.pt.tmp"])
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(name, tiny_config, tmp_path, at_step):
    folder, kept = tmp_path / "run", []

    def fill():
        kept.append((folder / "last.pt").read_bytes())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/full")

    if name == "log.jsonl":  # is open all the time
        folder.mkdir()
        (folder / name).symlink_to("/dev/full")
    else:
        at_step(4, fill)
    trainer = make_trainer(tiny_config("train.checkpoint_every=3"), folder)
    with pytest.raises(InputError, match=f"cannot write .*{name.strip('.').removesuffix('.tmp')}: ") as stopped:
        trainer.fit()
    assert "\n" not in str(stopped.value)
    assert (folder / "last.pt").exists()
    assert load_checkpoint(folder / "last.pt")["step"] == 3
    assert not kept or (folder / "last.pt").read_bytes() == kept[0]
    assert not (folder / ".last.pt.tmp").is_symlink()


# -- budget and schedule ---------------------------------------------------------------------------------------------


def test_preparatory_stages_come_on_top_of_the_students_budget(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config("method=ktan"), tmp_path)
    assert trainer.student_steps == 2 * (16 // 4)
    stages = dict(zip([stage.name for stage in trainer.distiller.stages], trainer.lengths, strict=True))
    assert stages == {"regressor": 3, "warmup": 3, "adversarial": 5}
    trainer = make_trainer(tiny_config("method=dln"), tmp_path)
    assert trainer.lengths == [3, 8]
    assert make_trainer(tiny_config(), tmp_path).lengths == [8]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.ktan.warmup_steps=9", "'warmup' needs 9 updates but only 8 of the budget of 8"),
        ("methods.ktan.warmup_steps=8", "'adversarial' needs 1 updates but only 0 of the budget of 8"),
        ("methods.ktan.warmup_steps=-2", "methods.ktan.warmup_steps is -2: it must be a number of at least 0"),
        ("methods.ktan.regressor_steps=-1", "methods.ktan.regressor_steps is -1: it must be a number of at least 0"),
    ],
)
def test_stages_that_do_not_fit_the_budget_are_refused_before_training(override, message, tiny_config, tmp_path):
    with pytest.raises(InputError, match=message):
        make_trainer(tiny_config("method=ktan", override), tmp_path)


def test_a_batch_larger_than_the_data_set_is_the_data_set(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config("train.batch_size=40", "data.train=test"), tmp_path)
    assert (trainer.batch_size, trainer.per_epoch, trainer.student_steps) == (6, 1, 2)
    assert trainer.learning_rate == pytest.approx(6 * 0.001)


def test_the_schedule_counts_the_students_updates_alone(tiny_config, tmp_path):
    """Warm-up over 2 updates from a tenth, a tenth again after 70 % of 20; 3 regressor steps go before."""
    make_trainer(tiny_config("method=ktan", "train.log_every=1", "train.epochs=5"), tmp_path / "run").fit()
    log = read_log(tmp_path / "run")
    assert [line["stage"] for line in log] == ["regressor"] * 3 + ["warmup"] * 3 + ["adversarial"] * 17
    assert [line["step"] for line in log] == list(range(1, 24))
    assert [line["epoch"] for line in log] == [step / 4 for step in range(1, 24)]
    factors = [0.1] * 3 + [0.1, 0.55] + [1.0] * 12 + [0.1] * 6
    assert [line["lr"] for line in log] == pytest.approx([0.004 * factor for factor in factors])


def test_log_lines_hold_every_loss_and_their_means(tiny_config, tmp_path):
    make_trainer(tiny_config("method=ktan", "train.log_every=1"), tmp_path / "fine").fit()
    make_trainer(tiny_config("method=ktan", "train.log_every=4"), tmp_path / "coarse").fit()
    fine, coarse = read_log(tmp_path / "fine"), read_log(tmp_path / "coarse")
    task = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert {f"regressor_{name}" for name in task} < set(fine[0])
    assert task | {"ktan_mse", "loss"} < set(fine[3])
    assert {"discriminator", "discriminator_accuracy_teacher", "ktan_generator"} < set(fine[6])
    terms = task | {"ktan_mse", "ktan_generator"}
    assert fine[6]["loss"] == pytest.approx(sum(fine[6][name] for name in terms), rel=1e-5)
    # A line at every fourth step and at each stage's end.
    assert [line["step"] for line in coarse] == [3, 4, 6, 8, 11]
    for first, last in pairwise([0, 3, 4, 6, 8, 11]):
        line = next(line for line in coarse if line["step"] == last)
        for name in set(line) - {"stage", "step", "epoch", "lr", "gradient_share"}:  # the last: of one step
            values = [each[name] for each in fine[first:last] if name in each]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-6)
    assert ["discriminator" in each for each in fine[6:]] == [True, False, True, False, True]


def test_schedule_factor_by_value():
    def factors(*steps, total=100, milestones=(0.5, 0.8), gamma=0.1, warmup=10, power=0.0):
        return [schedule_factor(step, total, milestones, gamma, warmup, power) for step in steps]

    assert factors(0, 5, 10, 49) == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert factors(50, 79, 80, 99) == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert factors(0, 1, warmup=0) == [1.0, 1.0]
    # A decay within a long warm-up holds as well.
    assert factors(60, warmup=100) == pytest.approx([0.1 * (0.1 + 0.9 * 0.6)])
    # Polynomial: beside the others, and alone.
    assert factors(5, 75, power=2) == pytest.approx([0.55 * 0.95**2, 0.1 * 0.25**2])
    assert factors(0, 36, 99, milestones=(), warmup=0, power=0.5) == pytest.approx([1, 0.8, 0.1])


def test_the_students_rate_falls_as_configured(tiny_config, tmp_path):
    settings = ["train.poly_power=2", "train.milestones=[]", "train.warmup_steps=0", "train.lr_per_image=0.5"]
    trainer = make_trainer(tiny_config("method=none", *settings), tmp_path)
    trainer.progress.student_step = trainer.student_steps // 2
    left = 1 - trainer.progress.student_step / trainer.student_steps
    assert trainer._set_rates() == pytest.approx(trainer.learning_rate * left**2)


def test_a_warm_up_is_a_tenth_of_the_run_at_most(tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", logger="detkt")
    config = tiny_config("method=none", "train.epochs=10", "train.warmup_steps=500")
    trainer = make_trainer(config, tmp_path)
    assert (trainer.student_steps, trainer.warmup_steps) == (40, 4)
    assert "warms up over 4 updates, a tenth of the run's 40, and not train.warmup_steps=500" in caplog.text
    rates = []
    for trainer.progress.student_step in range(6):
        rates.append(trainer._set_rates() / trainer.learning_rate)
    assert rates == pytest.approx([0.1, 0.325, 0.55, 0.775, 1, 1])
    caplog.clear()
    within = make_trainer(tiny_config("method=none", "train.epochs=10", "train.warmup_steps=4"), tmp_path)
    assert within.warmup_steps == 4 and "warms up" not in caplog.text


# -- players ---------------------------------------------------------------------------------------------------------


def test_players_have_optimizers_of_their_own(tiny_config, tmp_path):
    settings = ["methods.ktan.regressor_lr=0.02", "methods.ktan.discriminator_lr=0.03"]
    trainer = make_trainer(tiny_config("method=ktan", *settings), tmp_path)
    assert set(trainer.players.optimizers) == {STUDENT, "regressor", "discriminator"}
    assert trainer.players.optimizers["regressor"].param_groups[0]["lr"] == 0.02
    assert trainer.players.optimizers["discriminator"].param_groups[0]["lr"] == 0.03
    assert isinstance(trainer.players.optimizers["discriminator"], torch.optim.Adam)
    group = trainer.players.optimizers[STUDENT].param_groups[0]
    assert isinstance(trainer.players.optimizers[STUDENT], torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == pytest.approx((0.004, 0.9, 1e-4))
    owned = [id(p) for optimizer in trainer.players.optimizers.values() for p in optimizer.param_groups[0]["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in trainer.distiller.parameters() if p.requires_grad}


def test_player_optimizers_by_value():
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = build_optimizer(Player((), "sgd", lr=0.5, momentum=0.2, weight_decay=0.3), [weight])
    assert isinstance(sgd, torch.optim.SGD)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.5,
        "momentum": 0.2,
        "weight_decay": 0.3,
    }
    adam = build_optimizer(Player((), "adam", lr=0.5, betas=(0.1, 0.2)), [weight])
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["lr"], adam.defaults["betas"]) == (0.5, (0.1, 0.2))
    with pytest.raises(InputError, match="unknown optimizer 'adagrad'"):
        build_optimizer(Player((), "adagrad"), [weight])


class TwoPlayers(Method):
    """Both players' losses depend on both players' weights; each update may move its own alone."""

    name = "two_players"
    needs_teacher = False

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.own = torch.nn.Linear(1, 1)
        self.weight = None  # the student's first, set by the test

    def stages(self):
        return [Stage("both", Needs.STUDENT, (STUDENT, "own"))]

    def players(self):
        return {"own": Player((self.own,), lr=0.1, clip_norm=None)}

    def step(self, stage, student, teacher, heads):
        own, theirs = self.own.weight.detach().clone(), self.weight.detach().clone()
        yield Update("own", {"product": (self.own.weight * self.weight.sum()).sum()}, {"seen": self.weight.sum()})
        moved = self.own.weight.detach().clone()
        assert not torch.equal(moved, own), "applied before the method goes on"
        assert torch.equal(self.weight, theirs)
        assert torch.allclose(moved, own - 0.1 * theirs.sum()), "plain SGD at its own rate on its first step"
        yield Update(STUDENT, {"product": (self.own.weight * self.weight.sum()).sum()})
        assert torch.equal(self.own.weight, moved)
        assert not torch.equal(self.weight, theirs)


def test_an_update_moves_its_player_alone_and_at_once(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config("train.epochs=1", "train.batch_size=16"), tmp_path, TwoPlayers)
    trainer.distiller.method.weight = trainer.distiller.student.backbone.conv1.weight
    trainer.fit()
    assert trainer.progress.step == 1
    assert "seen" in read_log(tmp_path)[0]


class Turns(Method):
    """Notes what each part of a batch was run as, in a preparatory stage of 5 batches and in the student's."""

    name = "turns"
    needs_teacher = False

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.own, self.seen = torch.nn.Linear(1, 1), []

    def stages(self):
        passes, both = Needs.STUDENT, (STUDENT, "own")
        before = {"steps": 5, "every": 2, "between": Stage("unprepared", Needs.NOTHING, ("own",))}
        return [
            Stage("prepared", Needs.NOTHING, ("own",), **before),
            Stage("whole", passes, both, every=3, between=Stage("between", passes)),
        ]

    def players(self):
        return {"own": Player((self.own,))}

    def step(self, stage, student, teacher, heads):
        self.seen.append(stage.name)
        if "own" in stage.players:
            yield Update("own", {"own": self.own(torch.ones(1)).sum()})
        if stage.trains_student:
            yield Update(STUDENT, {})


def test_stages_take_turns_step_by_step_and_not_part_by_part(tiny_config, tmp_path):
    config = tiny_config("train.epochs=4", "train.batch_size=8", "train.accumulate=2", "train.log_every=1")
    trainer = make_trainer(config, tmp_path, Turns)
    weight = trainer.distiller.method.own.weight.item()
    trainer.fit()
    seen = trainer.distiller.method.seen
    assert seen[0::2] == seen[1::2], "both parts of a batch alike"
    names = ["prepared", "unprepared", "prepared", "unprepared", "prepared"]
    assert seen[0::2] == names + (["whole", "between", "between"] * trainer.student_steps)[: trainer.student_steps]
    assert trainer.student_steps >= 4
    logged = ["own" in line for line in read_log(tmp_path)]
    assert logged == 5 * [True] + [step % 3 == 0 for step in range(trainer.student_steps)]
    assert trainer.distiller.method.own.weight.item() < weight  # stepped, though its turn is not in every step


# -- clipping, workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.001, True), (0, False)])
def test_the_students_gradient_is_clipped(clip_norm, clipped, tiny_config, tmp_path):
    config = tiny_config("train.epochs=1", "train.batch_size=16", f"train.clip_norm={clip_norm}")
    trainer, norms = make_trainer(config, tmp_path), []

    def look(*_):
        norms.append(torch.cat([p.grad.flatten() for p in trainer.players.parameters[STUDENT]]).norm().item())

    trainer.players.optimizers[STUDENT].register_step_pre_hook(look)
    trainer.fit()
    (norm,) = norms
    assert all(p.grad is None for p in trainer.players.parameters[STUDENT]), "the next forward pass has their room"
    assert (norm == pytest.approx(0.001, rel=1e-3)) is clipped
    assert clipped or norm > 0.01


def test_a_dead_worker_is_reported_in_one_line(tiny_config, tmp_path, at_step):
    def kill_worker():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    at_step(1, kill_worker)
    with pytest.raises(InputError, match="DataLoader worker .* use --workers 0") as stopped:
        make_trainer(tiny_config("train.workers=1", "train.epochs=50"), tmp_path).fit()
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_whose_pipe_broke_first(error, monkeypatch):
    monkeypatch.setattr(loading, "SIGNAL_SECONDS", 0.0)
    with pytest.raises(InputError, match="connection lost; free memory or use --workers 0"), dead_workers_in_one_line():
        raise error


def test_a_worker_whose_death_is_told_after_its_pipe_broke(monkeypatch):
    """Torch raises from a signal's handler: outside, it would end the program with a traceback."""

    def told(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nMore")

    previous = signal.signal(signal.SIGALRM, told)
    try:
        message = r"died: DataLoader worker \(pid 7\) is killed by signal: Killed; free"
        with pytest.raises(InputError, match=message), dead_workers_in_one_line():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_a_long_row_of_skipped_half_precision_updates_is_told(tiny_config, tmp_path, monkeypatch):
    """An infinite gradient of a finite loss: in fp16 the update is skipped, and the scale halved, as it should be."""
    original = Distiller.updates

    def updates(self, *arguments):
        for update in original(self, *arguments):
            update.losses["distance"] = (self.student.backbone.conv1.weight * 0).sum().sqrt()
            yield update

    monkeypatch.setattr(Distiller, "updates", updates)
    monkeypatch.setattr(SkippedUpdates, "MANY", 6)
    trainer = make_trainer(tiny_config("train.precision=fp16", "train.log_every=1"), tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.players.parameters[STUDENT]]
    trainer.fit()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.players.parameters[STUDENT], strict=True))
    assert trainer.players._scalers[STUDENT].get_scale() == 2.0 ** (16 - 8)
    warned = {line["step"]: line["warning"] for line in read_log(tmp_path / "run") if "warning" in line}
    assert list(warned) == [6]
    assert warned[6].startswith("the last 6 updates of player 'student' were skipped")


def test_a_loaded_momentum_takes_the_order_of_its_parameter():
    """A fused optimizer walks both in the order of memory; of other orders it would mix up the weights, silently."""
    parameter = torch.nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    momentum = torch.randn(4, 3, 2, 2)
    optimizer.state[parameter]["momentum_buffer"] = momentum
    match_layout(optimizer)
    found = optimizer.state[parameter]["momentum_buffer"]
    assert torch.equal(found, momentum)
    assert found.stride() == parameter.stride() != momentum.stride()
