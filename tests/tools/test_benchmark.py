"""The benchmark: what it measures, and that what it reports follows from the times it took."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benchmarking.baselines import TorchvisionLoop, check
from benchmarking.chart import benchmark_figure
from benchmarking.measuring import WARM_UP, interleave, ratio, run_benchmark
from benchmarking.memory import peak_rise, tensor_bytes, tensor_peak_rise
from benchmarking.random_pictures import random_set
from benchmarking.subjects import Subjects
from benchmarking.table import benchmark_text

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.trainer import Trainer

CPU = torch.device("cpu")
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def report(tiny_file, tmp_path_factory):
    """Two rounds of KTAN and FitNet, and of FitNet with a cache, on noise."""
    cache = tmp_path_factory.mktemp("cache") / "maps"
    config = load_config(tiny_file, ["train.batch_size=2", f"train.cache_teacher={cache}"])
    return run_benchmark(config, ["fitnet"], against=["torchvision"], repetitions=3, random=True, quiet=True)


def test_the_peak_of_a_known_allocation():
    def work():
        block = bytearray(64 * MEBIBYTE)
        block[::1024] = b"x" * len(block[::1024])  # memory counts once it is touched

    rise = peak_rise(work, CPU)
    if rise is None:
        pytest.skip("this system does not tell a process's peak")
    assert rise == pytest.approx(64 * MEBIBYTE, rel=0.2)


def test_memory_that_was_in_use_before_does_not_count():
    kept = torch.ones(16 * MEBIBYTE)
    rise = peak_rise(lambda: kept.add_(1), CPU)
    if rise is None:
        pytest.skip("this system does not tell a process's peak")
    assert rise < 8 * MEBIBYTE


def test_the_peak_of_known_tensors():
    """40 MB and 20 MB at once, then 10 MB; what the work replaces counts as freed."""
    kept = []

    def work():
        kept.clear()
        kept.append(torch.empty(5_000_000, dtype=torch.float32))
        first = torch.empty(10_000_000, dtype=torch.float32)
        second = torch.empty(20_000_000, dtype=torch.uint8)
        del first, second
        torch.empty(10_000_000, dtype=torch.uint8)

    assert tensor_peak_rise(work, CPU) == pytest.approx(60_000_000, rel=0.01)


def test_tensors_that_share_memory_count_once():
    weights = torch.zeros(1000)
    assert tensor_bytes([weights, weights[10:20], weights.view(10, 100), torch.zeros(5, dtype=torch.int64)]) == 4040


def test_a_ratio_is_formed_round_by_round():
    """The machine was ten times slower in the second round: the ratio of the medians would be 40 / 13 = 3.1."""
    times = {
        "step": {"seconds": [4.0, 40.0, 66.0]},
        "student": {"seconds": [1.0, 10.0, 10.0]},
        "teacher": {"seconds": [1.0, 10.0, 12.0]},
    }
    assert ratio(times, "step", ["student", "teacher"]) == {"median": 2.0, "low": 2.0, "high": 2.5}
    assert ratio(times, "step", ["student"])["median"] == 4.0


def test_a_single_round_has_no_spread():
    times = {"step": {"seconds": [3.0]}, "student": {"seconds": [2.0]}}
    assert ratio(times, "step", ["student"]) == {"median": 1.5, "low": 1.5, "high": 1.5}


def test_subjects_take_turns_on_the_same_batch():
    calls = []
    works = {name: lambda batch, name=name: calls.append((name, batch)) for name in "abc"}
    times = interleave(works, ["first", "second"], 4, CPU)
    assert all(len(times[name][kind]) == 4 for name in "abc" for kind in ("seconds", "processor_seconds"))
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == WARM_UP + 4
    for called in rounds:
        assert sorted(name for name, _ in called) == ["a", "b", "c"]
        assert len({batch for _, batch in called}) == 1
    assert {called[0][0] for called in rounds} == {"a", "b", "c"}  # nobody always comes first
    assert [called[0][1] for called in rounds[WARM_UP:]] == ["first", "second", "first", "second"]


def test_a_repetition_is_a_step_of_each_turn(tiny_config):
    calls = []
    times = interleave({"a": calls.append, "b": lambda batch: None}, ["first", "second"], 2, CPU, burst=3)
    assert len(times["a"]["seconds"]) == 2
    assert calls[3 * WARM_UP :] == 3 * ["first"] + 3 * ["second"]
    subjects = Subjects(tiny_config("train.batch_size=2", "data.format=shapes"), ["fitnet", "ktan"], random=True)
    assert subjects.cycle == 2  # of the tiny KTAN's adversary
    name, batch = subjects.last_stage["ktan"], subjects.batches[0]
    logged = []
    subjects.trainers["ktan"].journal.add = lambda values, *_: logged.append("discriminator" in values)
    for _ in range(5):
        subjects.works[name](batch)
    assert logged == [True, False, True, False, True]


def test_times_are_those_of_one_step():
    times = interleave({"a": lambda batch: time.sleep(0.02)}, [None], 3, CPU, burst=4)
    assert 0.02 <= statistics.median(times["a"]["seconds"]) < 0.04


def test_memory_and_profile_are_of_whole_cycles(tiny_config, tmp_path, monkeypatch):
    turns, works, original = [], [], Trainer.train_step

    def step(trainer, stage, loader):
        turns.append(stage.name)
        original(trainer, stage, loader)

    def rise(work, device):
        turns.clear()
        work()
        works.append(sorted(turns))
        return 1

    monkeypatch.setattr(Trainer, "train_step", step)
    for name in ("peak_rise", "tensor_peak_rise"):
        monkeypatch.setattr(f"benchmarking.measuring.{name}", rise)
    config = tiny_config("train.batch_size=2", "methods.ktan.adversary_every=3")
    report = run_benchmark(config, ["ktan"], repetitions=1, random=True, trace=tmp_path / "trace.json", quiet=True)
    assert report["steps_a_repetition"] == 3
    assert works == 4 * [3 * ["train"]] + 4 * [["adversarial", "between", "between"]]
    assert turns[-6:] == 2 * ["adversarial", "between", "between"]  # 4 steps would not be two cycles
    assert len(turns) == 3 + 6


def test_only_the_time_of_the_work_counts():
    times = interleave({"long": lambda batch: sum(range(300_000)), "short": lambda batch: None}, [None], 5, CPU)
    for kind in ("seconds", "processor_seconds"):
        assert statistics.median(times["long"][kind]) > 20 * statistics.median(times["short"][kind])


def test_every_subject_has_its_times(report):
    assert set(report["times"]) == {
        "student", "teacher", "fitnet: distill", "fitnet, cached: distill", "evaluation", "torchvision",
    }  # fmt: skip
    for taken in report["times"].values():
        assert len(taken["seconds"]) == 3 and min(taken["seconds"]) > 0
    assert report["pictures"] == "random" and report["loading"] is None
    assert report["batch_size"] == 2 and report["repetitions"] == 3
    assert report["config"]["student"]["architecture"] == "fasterrcnn_resnet10x0.125_c4"
    assert report["machine"]["threads"] == 1
    assert report["versions"]["torch"] == torch.__version__
    json.dumps(report)


def test_ratios_follow_from_the_times(report):
    seconds = {name: taken["seconds"] for name, taken in report["times"].items()}
    rounds = list(zip(seconds["fitnet: distill"], seconds["student"], seconds["teacher"], strict=True))
    fitnet = report["methods"]["fitnet"]
    assert fitnet["stage"] == "fitnet: distill" and fitnet["floor"] == ["student", "teacher"]
    assert fitnet["ratio"]["median"] == statistics.median(step / (plain + forward) for step, plain, forward in rounds)
    assert fitnet["above_floor_seconds"]["median"] == pytest.approx(
        statistics.median(s - (p + f) for s, p, f in rounds)
    )
    cached = report["methods"]["fitnet, cached"]
    assert cached["floor"] == ["student"]
    assert cached["ratio"]["median"] == statistics.median(
        step / plain for step, plain in zip(seconds["fitnet, cached: distill"], seconds["student"], strict=True)
    )
    loop = report["against"]["torchvision"]
    assert loop["ours"] == "student"
    assert loop["ratio"]["median"] == statistics.median(
        theirs / ours for theirs, ours in zip(seconds["torchvision"], seconds["student"], strict=True)
    )


def test_memory_follows_from_the_networks(report, tiny_teacher):
    memory = report["memory"]
    trainings = memory["trainings"]
    assert set(trainings) == {"student", "fitnet", "fitnet, cached"}
    assert memory["teacher_map"] == 4 * 2 * 64 * 4 * 4  # two pictures of 64 x 64, 64 channels at stride 16
    # FitNet holds the teacher and a 1x1 regressor from 32 to 64 channels, with its momentum.
    regressor = 4 * 2 * (32 * 64 + 64)
    assert trainings["fitnet"]["held"] == trainings["student"]["held"] + memory["teacher_weights"] + regressor
    added = memory["teacher_weights"] + memory["teacher_map"]
    for kind in ("tensors", "process"):
        if trainings["student"][kind] is None:
            pytest.skip("this system does not tell a process's peak")
        assert trainings["student"][kind] > trainings["student"]["held"]
        expected = trainings["fitnet"][kind] / (trainings["student"][kind] + added)
        assert report["methods"]["fitnet"][f"{kind}_ratio"] == expected


def test_the_students_state_is_its_weights_and_momentum(tiny_config):
    subjects = Subjects(tiny_config("train.batch_size=2"), [], random=True)
    before = subjects.state_bytes("student")
    student = subjects.trainers["student"].distiller.student
    weights = sum(4 * p.numel() for p in student.parameters())
    buffers = sum(b.numel() * b.element_size() for b in student.buffers())
    assert before == weights + buffers
    subjects.works["student"](subjects.batches[0])
    assert subjects.state_bytes("student") == 2 * weights + buffers


def test_steps_leave_the_weights_as_they_are(tiny_config):
    """Else a later repetition would have other proposals than an earlier one."""
    subjects = Subjects(tiny_config("train.batch_size=2"), ["fitnet"], random=True)
    for name in ("student", "fitnet: distill"):
        subjects.works[name](subjects.batches[0])
    for trainer in subjects.trainers.values():
        for ours, first in zip(trainer.distiller.student.parameters(), subjects.student.parameters(), strict=True):
            torch.testing.assert_close(ours, first, rtol=1e-6, atol=1e-6)


def test_the_texts_and_the_chart_show_the_numbers(report):
    text = benchmark_text(report)
    fitnet = report["methods"]["fitnet"]
    milliseconds = 1000 * statistics.median(report["times"]["student"]["seconds"])
    assert f"| {milliseconds:.1f} " in text
    assert f"{fitnet['ratio']['median']:.2f} (" in text
    assert f"| {fitnet['tensors_ratio']:.2f} " in text
    axes = benchmark_figure(report).axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    names = ["student", "teacher", "fitnet: distill", "fitnet, cached: distill", "torchvision"]
    medians = [1000 * statistics.median(report["times"][name]["seconds"]) for name in names]
    assert heights == pytest.approx(medians)
    floor = medians[0] + medians[1]
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([floor, 1.1 * floor])


def test_real_pictures_and_trained_networks_are_taken_where_they_are(tiny_config, voc_folder, tiny_teacher):
    subjects = Subjects(tiny_config("train.batch_size=2"), ["fitnet"])
    assert subjects.pictures == f"trainval of {voc_folder}"
    assert subjects.weights == {"student": "random", "teacher": str(tiny_teacher)}
    missing = tiny_config("data.root=nowhere", "teacher.checkpoint=nowhere", "data.classes=[cross, disc, star]")
    subjects = Subjects(missing, ["fitnet"])
    assert subjects.pictures == "random" and subjects.weights == {"student": "random", "teacher": "random"}


def test_image_size_is_the_shorter_side(tiny_config):
    subjects = Subjects(tiny_config("train.batch_size=2", "data.classes=[cross, disc, star]"), [], True, image_size=96)
    # Noise of 500 x 333 and 500 x 375, 96 high at most, padded to a multiple of 32; the longer side was limited, too.
    assert {tuple(batch.tensors.shape[-2:]) for batch in subjects.batches} == {(96, 96)}


def test_ktan_has_a_time_for_every_stage(tiny_config):
    subjects = Subjects(tiny_config("train.batch_size=2"), ["ktan"], random=True)
    assert list(subjects.works) == [
        "student", "teacher", "ktan: regressor", "ktan: warmup", "ktan: adversarial", "evaluation",
    ]  # fmt: skip
    assert subjects.last_stage["ktan"] == "ktan: adversarial"
    for work in subjects.works.values():
        work(subjects.batches[0])


def test_classifiers_without_their_pictures(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "data: {format: fashion-mnist, root: nowhere}\n"
        "student: {architecture: cifar_resnet8x0.25, options: {in_channels: 1}}\n"
        "teacher: {architecture: cifar_resnet8x0.5, options: {in_channels: 1}}\n"
        "train: {batch_size: 4, workers: 0, device: cpu}\n"
    )
    report = run_benchmark(load_config(path), ["kd"], repetitions=1, quiet=True)
    assert report["input_shapes"] == 4 * [[4, 1, 28, 28]]
    assert report["methods"]["kd"]["stage"] == "kd: distill"
    assert "fasterrcnn" not in benchmark_text(report)


def test_a_dense_pair_with_and_without_the_cache(tiny_dense_file, tmp_path):
    """Methods that look into towers, at anchors and at scores; from the cache the floor is the student alone."""
    config = load_config(tiny_dense_file, ["train.batch_size=2", f"train.cache_teacher={tmp_path / 'maps'}"])
    methods = ["crosskd", "fgfi", "dkd"]
    report = run_benchmark(config, methods, repetitions=1, random=True, quiet=True)
    floors = {name: method["floor"] for name, method in report["methods"].items()}
    expected = dict.fromkeys(methods, ["student", "teacher"])
    assert floors == expected | dict.fromkeys((f"{name}, cached" for name in methods), ["student"])
    trainings = report["memory"]["trainings"]
    assert trainings["crosskd"]["held"] > trainings["student"]["held"] + report["memory"]["teacher_weights"]
    assert "crosskd, cached: distill" in benchmark_text(report)


def test_torchvisions_loop_trains_on_the_same_losses(tiny_config):
    subjects = Subjects(tiny_config("train.batch_size=2", "train.clip_norm=0"), [], random=True)
    loop, batch = TorchvisionLoop(subjects), subjects.batches[0]
    losses = []
    plain = subjects.trainers["student"]
    stage = plain.distiller.stages[0]
    for _ in range(2):
        torch.manual_seed(1)
        loop.step(batch)
        torch.manual_seed(1)
        update = next(plain.distiller.updates(stage, batch.images, batch.targets))
        losses.append(update.total.item())
    assert list(loop._meters["loss"]) == pytest.approx(losses, rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("torchdistill") is None, reason="torchdistill is not installed")
@pytest.mark.parametrize("student", ["fasterrcnn_resnet10x0.25_c4", "fasterrcnn_alexnet"])
def test_torchdistills_step_has_the_losses_of_fitnet(student, tiny_config):
    """AlexNet's map is a cell smaller than its teacher's."""
    from benchmarking.baselines import TorchdistillLoop

    # Equal pictures, since torchdistill masks no padding.
    config = tiny_config("train.batch_size=2", "data.format=shapes", f"student.architecture={student}")
    subjects = Subjects(config, ["fitnet"], random=True)
    batch = subjects.batches[0]
    trainer = subjects.trainers["fitnet"]
    torch.manual_seed(1)
    expected = next(trainer.distiller.updates(trainer.distiller.stages[0], batch.images, batch.targets)).total.item()
    for whole_teacher in (True, False):
        loop = TorchdistillLoop(subjects, whole_teacher)
        totals = []
        post = loop._box.post_forward_process
        loop._box.post_forward_process = lambda loss, totals=totals, post=post: (totals.append(loss.item()), post(loss))
        torch.manual_seed(1)
        loop.step(batch)
        assert totals == pytest.approx([expected], rel=1e-3)


def test_unknown_and_absent_baselines(monkeypatch):
    with pytest.raises(
        InputError, match=r"unknown baseline of --against 'torchvison' \(did you mean 'torchvision'\?\)"
    ):
        check(["torchvison"], "detection")
    with pytest.raises(InputError, match="give a detector's config"):
        check(["torchvision"], "classification")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torchdistill"):
        check(["torchdistill"], "detection")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["none"]}, "'none' has no teacher"),
        ({"methods": ["ktna"]}, "did you mean 'ktan'"),
        ({"methods": ["fitnet"], "repetitions": 0}, "--repetitions 0"),
        ({"methods": ["fitnet"], "image_size": 0}, "--image-size 0"),
    ],
)
def test_bad_settings(tiny_config, arguments, message):
    with pytest.raises(InputError, match=message):
        run_benchmark(tiny_config(), quiet=True, **arguments)


def test_random_pictures_depend_on_their_index_alone():
    config = load_config_of_format("voc")
    dataset = random_set(config.data, "detection", 8)
    assert len(dataset) == 8 and len(dataset.classes) == 20
    image, target = dataset[(1, 123)]
    assert image.shape == (3, 333, 500)
    assert torch.equal(image, dataset[1][0]) and torch.equal(target["boxes"], dataset[1][1]["boxes"])
    for index in range(8):
        image, target = dataset[index]
        boxes, (height, width) = target["boxes"], image.shape[-2:]
        assert (boxes[:, 2:] - boxes[:, :2] >= 40).all() and (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height] * 2)).all()
        assert ((target["labels"] >= 1) & (target["labels"] <= 20)).all() and target["image_id"] == index


def test_random_classifier_batches():
    config = load_config_of_format("cifar100")
    dataset = random_set(config.data, "classification", 6)
    images, targets = dataset.__getitems__([(4, 9), (0, 9)])
    assert images.shape == (2, 3, 32, 32) and targets["image_id"].tolist() == [4, 0]
    assert len(dataset.classes) == 100 and torch.equal(images[1], dataset.__getitems__([0])[0][0])


def load_config_of_format(name):
    return SimpleNamespace(data=replace(load_config("configs/shapes.yaml").data, format=name))


def test_the_tool_writes_its_files(tool, tiny_file, tmp_path, capsys):
    trace, numbers, chart = (tmp_path / "deep" / name for name in ("trace.json", "numbers.json", "chart.png"))
    tool("benchmark").main(
        [
            "--config", str(tiny_file), "--methods", "fitnet", "--random", "--repetitions", "1", "--batch-size", "2",
            "--json", str(numbers), "--chart", str(chart), "--profile", str(trace), "--quiet", "train.seed=3",
        ]
    )  # fmt: skip
    printed = capsys.readouterr().out
    report = json.loads(numbers.read_text())
    assert report["config"]["train"]["seed"] == 3 and report["batch_size"] == 2
    assert f"{report['methods']['fitnet']['ratio']['median']:.2f} (" in printed
    assert "convolution" in printed and json.loads(trace.read_text())["traceEvents"]
    assert chart.stat().st_size > 10_000
