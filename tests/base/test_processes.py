"""Two gloo processes train as one: the same order, averaged gradients, merged evaluation, one set of files."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import signal
import socket
import traceback

import pytest
import torch
from accelerate import PartialState
from torch import nn

from detkt.base.errors import InputError
from detkt.base.processes import Processes
from detkt.config import load_config
from detkt.data import test_set as held_out_set
from detkt.distiller import Distiller
from detkt.engine.run import build_net, train
from detkt.engine.synced_norm import sync_batch_norms
from detkt.engine.trainer import Interrupted, Trainer
from detkt.evaluation.detector import detect
from detkt.kinds import kind_of
from detkt.methods.base import Needs


@pytest.fixture
def together(tmp_path):
    """``together(function, count)``: what *function(rank)* returns in each of *count* processes."""

    def run(function, count=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        members = [
            context.Process(target=_member, args=(function, rank, count, port, tmp_path)) for rank in range(count)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join(120)
            member.kill()
        results = [pickle.loads((tmp_path / f"result-{rank}").read_bytes()) for rank in range(count)]
        for result in results:
            if isinstance(result, str) and result.startswith("Traceback"):
                pytest.fail(result)
        return results

    return run


def _member(function, rank, count, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count)}
    PartialState._reset_state()
    try:
        result = function(rank)
    except BaseException:
        result = traceback.format_exc()
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    os._exit(0)


def test_gradients_are_averaged_and_an_absent_one_counts_as_zero(together):
    def work(rank):
        processes = Processes(on_cpu=True)
        first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 1))
        first.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
        if rank == 1:
            second.grad = torch.tensor([[4.0], [6.0]])
        processes.average_gradients([first, second])
        norm = nn.BatchNorm2d(2)
        norm.running_mean += rank
        processes.average_buffers(norm)
        stopped = processes.largest(15 if rank == 1 else 0)
        return first.grad.tolist(), second.grad.tolist(), norm.running_mean.tolist(), processes.gather(rank), stopped

    for result in together(work):
        assert result == ([1.5, 3.0], [[2.0], [3.0]], [0.5, 0.5], [0, 1], 15)


class _Pictures:
    """Ten pictures whose values are their numbers."""

    ids = [f"picture {index}" for index in range(10)]
    classes = ["a"]

    def __len__(self):
        return 10

    def __getitem__(self, sample):
        return sample[0], sample[1]

    @staticmethod
    def collate(samples):
        return torch.tensor([float(index) for index, _ in samples]), {"image_id": torch.tensor([i for i, _ in samples])}


class _Line(nn.Module):
    """A student whose loss is mean (w x - 1)^2: its gradient is a mean over pictures."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))


def _fit_line(folder, config):
    from detkt.methods.base import STUDENT, Stage, Update

    student = _Line()

    class Distiller(nn.Module):
        stages = [Stage("distill", Needs.STUDENT)]
        method = type("Method", (), {"players": staticmethod(lambda: {}), "watches": staticmethod(lambda: [])})
        task = type("Task", (), {"pictures": staticmethod(lambda targets: targets["image_id"].tolist())})

        def __init__(self):
            super().__init__()
            self.student = student

        def player_parameters(self):
            return {STUDENT: [student.weight]}

        def updates(self, stage, images, targets):
            yield Update(STUDENT, {"square": ((student.weight * images / 10 - 1) ** 2).mean()})

    folder.mkdir(exist_ok=True)
    trainer = Trainer(Distiller(), _Pictures(), config.train, folder, quiet=True)
    trainer.fit()
    return student.weight.item()


def test_two_processes_and_accumulated_parts_do_what_one_does(together, tiny_config, tmp_path):
    """With a loss that is a mean over pictures the three ways are the same computation."""
    config = tiny_config("train.batch_size=4", "train.epochs=6", "train.lr_per_image=0.05", "train.warmup_steps=0")
    alone = _fit_line(tmp_path / "alone", config)
    assert alone != pytest.approx(0.1, abs=0.05)
    shared = together(lambda rank: _fit_line(tmp_path / "shared", config))
    assert shared == pytest.approx([alone, alone], rel=1e-5)
    config.train.accumulate = 2
    assert _fit_line(tmp_path / "parts", config) == pytest.approx(alone, rel=1e-5)
    assert together(lambda rank: _fit_line(tmp_path / "both", config)) == pytest.approx([alone, alone], rel=1e-5)
    logged = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("alone", "shared", "parts")]
    for line, theirs, parts in zip(*map(lambda lines: list(map(json.loads, lines)), logged), strict=True):
        for other in (theirs, parts):
            assert other["square"] == pytest.approx(line["square"], rel=1e-4)
            assert (other["step"], other["lr"]) == (line["step"], line["lr"])


def test_a_batch_that_cannot_be_shared_is_refused(tiny_config, tmp_path):
    config = tiny_config("train.batch_size=4", "train.accumulate=3")
    with pytest.raises(InputError, match=r"a batch of 4 pictures cannot be shared evenly .*3 part"):
        _fit_line(tmp_path / "run", config)


@pytest.mark.slow
def test_a_detector_trained_by_two_processes(together, tiny_config, tmp_path):
    """KTAN, all stages: both processes end with the same weights and metrics, and one of them writes the files."""
    config = tiny_config("method=ktan")

    def work(rank):
        metrics = train(copy.deepcopy(config), tmp_path / "run", quiet=True)
        return {key: metrics[key] for key in ("map_voc07", "map_area", "map_coco", "per_class", "updates")}

    first, second = together(work)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for key, value in first.items():
        assert second[key] == value
        assert written[key] == value
    names = [path.name for path in (tmp_path / "run").iterdir()]
    assert sorted(name for name in names if not name.startswith("events.out.tfevents.")) == [
        "config.yaml",
        "last.pt",
        "log.jsonl",
        "metrics.json",
        "model.json",
        "model.safetensors",
        "pictures.npz",
    ]
    assert first["updates"] == 8


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(together, tiny_config, tmp_path):
    """Two processes, both stopped (by a signal to one of them), then one alone to the end."""
    config = tiny_config("method=ktan", "train.log_every=2")
    folder = tmp_path / "run"

    def work(rank):
        original = Trainer.train_step

        def step(self, stage, loader):
            original(self, stage, loader)
            if rank == 1 and self.progress.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer.train_step = step
        try:
            train(copy.deepcopy(config), folder, quiet=True)
        except Interrupted as stop:
            return stop.signal
        return None

    assert together(work) == [signal.SIGTERM, signal.SIGTERM]
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 6
    metrics = train(load_config(folder / "config.yaml"), folder, resume=folder / "last.pt", quiet=True)
    assert metrics["updates"] == 8
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_sharded_detections_are_those_of_one_process(together, tiny_config):
    config = tiny_config()
    dataset = held_out_set(config.data)
    model = build_net(kind_of(config), config.teacher, "teacher", dataset.classes)
    alone, _ = detect(model, dataset, torch.device("cpu"), batch_size=1, quiet=True)

    def work(rank):
        return detect(model, dataset, torch.device("cpu"), batch_size=1, quiet=True, processes=Processes(on_cpu=True))[
            0
        ]

    for found in together(work):
        assert list(found) == list(alone) == dataset.ids
        for name, expected in alone.items():
            assert (found[name]["boxes"] == expected["boxes"]).all()
            assert (found[name]["scores"] == expected["scores"]).all()
            assert found[name]["labels"] == expected["labels"]


def test_a_gradient_that_no_process_has_stays_absent(together):
    """As zeros, weight decay would move its parameter, as it does not in one process."""

    def work(rank):
        processes = Processes(on_cpu=True)
        used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(1))
        used.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
        processes.average_gradients([used, unused])
        return used.grad.tolist(), unused.grad

    assert together(work) == [([1.5, 3.0], None)] * 2


def test_batch_norms_see_the_whole_batch(together):
    """Values, running statistics and averaged gradients of two processes with unequal parts are those of one."""
    generator = torch.Generator().manual_seed(0)
    batch = 3 + 2 * torch.randn(6, 4, 5, 3, generator=generator)
    weight = torch.randn(6, 4, 5, 3, generator=generator)
    parts = [slice(0, 2), slice(2, 6)]

    def network():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        for norm in (net[1], net[3]):
            nn.init.uniform_(norm.weight)
        return net

    def work(rank):
        processes, net = Processes(on_cpu=True), network()
        sync_batch_norms(net)
        found = net(batch[parts[rank]])
        (found * weight[parts[rank]]).sum().backward()
        processes.average_gradients(net.parameters())
        state = {name: value.tolist() for name, value in net.state_dict().items()}
        return found.tolist(), [p.grad.tolist() for p in net.parameters()], state

    whole = network()
    expected = whole(batch)
    ((expected * weight).sum() / 2).backward()
    results = together(work)
    for (found, gradients, state), part in zip(results, parts, strict=True):
        torch.testing.assert_close(torch.tensor(found), expected[part].detach(), rtol=1e-5, atol=1e-5)
        for gradient, parameter in zip(gradients, whole.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(gradient), parameter.grad, rtol=1e-4, atol=1e-4)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(torch.tensor(state[name]), value, rtol=1e-5, atol=1e-5)


def test_a_synchronised_norm_is_a_plain_one_in_evaluation():
    plain, synced = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3).eval()
    sync_batch_norms(synced)
    x = torch.randn(2, 3, 4, 4)
    assert type(synced) is not type(plain)
    assert torch.equal(plain(x), synced(x))
    assert list(synced.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_loop_of_ones_own_in_two_processes(together, detector, batch, wrapped_first):
    """Each process sees a picture of its own, and starts its players from another seed: all ends up alike."""
    settings = {"regressor_steps": 2, "warmup_steps": 0, "discriminator_width": 8, "adversary_every": 1}

    def work(rank):
        torch.distributed.init_process_group("gloo")
        student, teacher = detector(), detector(seed=1)
        torch.manual_seed(rank)
        distiller = Distiller(student, teacher, "ktan", settings).train()
        loader = [([image], [target]) for image, target in zip(*batch, strict=True)][rank::2]
        if not wrapped_first:
            distiller.prepare(loader)
        wrapped = nn.parallel.DistributedDataParallel(distiller)
        if wrapped_first:
            wrapped.module.prepare(loader)
        optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
        for _ in range(3):
            losses = wrapped(*loader[0])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        named = [*distiller.student.named_parameters(), *distiller.method.named_parameters()]
        return {name: value.detach().clone() for name, value in named}, losses["ktan_mse"].item()

    (ours, our_loss), (theirs, their_loss) = together(work)
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
    assert our_loss != their_loss
