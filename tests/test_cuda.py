"""On a GPU: the CPU's losses and scores, finite gradients, runs that resume, and no waiting for the device.

Skipped without CUDA. ``DETKT_TEST_DEVICE=cpu`` rehearses it: the CPU is then compared with itself without oneDNN, which
rounds otherwise, as a GPU does. Random numbers are drawn on the host for every device, else nothing could be compared.

Two devices round otherwise, so that a proposal may be kept on one of them alone: losses are to agree to a hundredth.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from run_comparison import CLASSIFICATION_SETTINGS, DETECTION_SETTINGS, OF_OBJECTS, assert_same_run, read_log
from torch import Tensor
from torch.overrides import TorchFunctionMode

import detkt
from detkt import Distiller
from detkt.config import load_config
from detkt.data import shapes_config
from detkt.data.shapes import write_shapes
from detkt.data.voc import VOCDetection
from detkt.engine.run import build_net, train
from detkt.engine.teacher_cache import TeacherCache
from detkt.engine.trainer import Trainer
from detkt.evaluation import voc
from detkt.evaluation.detector import detect
from detkt.kinds import kind_of
from detkt.methods import available, balance
from detkt.models import build_classifier, build_detector, load_model

DEVICE = torch.device(os.environ.get("DETKT_TEST_DEVICE", "cuda"))
REHEARSED = DEVICE.type == "cpu"
pytestmark = pytest.mark.skipif(not REHEARSED and not torch.cuda.is_available(), reason="needs a CUDA device")

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-2
SETTINGS = {
    **{name: {"paraphraser_steps": 1} for name in ("ft", "rae")},
    "cae": {"paraphraser_steps": 1, "num_layers": 1},
    "ktan": {"regressor_steps": 1, "warmup_steps": 0, "adversary_every": 1},
    "dln": {"regressor_steps": 1},
    "fitnet": {"weighting": "score"},
}
LAYERS = {
    "c4": {name: {"layers": ["output=layer3.0.bn1+layer3"]} for name in ("kr", "kr-dense", "kr-l1")},
    "classifier": {
        **{name: {"layers": ["output=layer3.0+layer3.1"]} for name in ("kr", "kr-dense", "kr-l1")},
        "fsp": {"layers": ["layer2", "output"]},
        "fitnet": {"weighting": "uniform"},
    },
}
NAMES = [name for name in available() if name not in ("none", "crosskd", "fsp")]
CASES = [
    *(("c4", name) for name in (*NAMES, "ktan+kd")),
    *(("fpn", name) for name in ("fsp", "fgd", "fgfi", "kd", "ktan")),
    *(("retinanet", name) for name in ("crosskd", "kd", "mgd")),
    *(("classifier", name) for name in (*NAMES, "fsp") if name not in OF_OBJECTS),
]


class DrawnOnTheHost(TorchFunctionMode):
    """Random numbers of the host's generator, whatever device they are for."""

    DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)
    IN_PLACE = (Tensor.exponential_, Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func in self.IN_PLACE:
            return args[0].copy_(func(torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:], **kwargs))
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def full_precision():
    """No TF32, which has a thousandth of float32's precision: by default matrix products have none, convolutions do."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def reference() -> Iterator[torch.device]:
    """The CPU, with other rounding than where it is the device itself."""
    with torch.backends.mkldnn.flags(enabled=False) if REHEARSED else nullcontext():
        yield torch.device("cpu")


@contextmanager
def on_device() -> Iterator[torch.device]:
    yield DEVICE


def pair(kind: str, detector: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Student and teacher, the same ones every time; their scores differ from cell to cell."""
    if kind == "classifier":
        torch.manual_seed(0)
        return build_classifier("cifar_resnet8x0.25", 4), build_classifier("cifar_resnet14x0.5", 4)
    if kind == "retinanet":
        torch.manual_seed(0)
        options = {"min_size": 64, "max_size": 96, "anchor_sizes": [16, 24, 32, 48, 64], "fpn_channels": 16}
        nets = [build_detector(f"retinanet_resnet10x{width}_fpn", 4, **options) for width in (0.125, 0.25)]
        for layer in (layer for net in nets for layer in net.head.classification_head.modules()):
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
        return nets[0], nets[1]
    return detector(f"fasterrcnn_resnet10x0.125_{kind}"), detector(f"fasterrcnn_resnet10x0.25_{kind}", seed=1)


def settings(kind: str, method: str, **more: Any) -> dict[str, Any]:
    """Of every method of a sum, by name; of a lone one, its own."""
    own = {name: {**SETTINGS.get(name, {}), **LAYERS.get(kind, {}).get(name, {}), **more} for name in method.split("+")}
    if "fitnet" in own and kind == "classifier":
        own["fitnet"]["weighting"] = "uniform"
    return own if "+" in method else own[method]


def pictures(kind: str, batch: Any) -> Any:
    if kind == "classifier":
        return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 3, 1, 3, 1, 2])
    return batch


def steps(
    device: torch.device, kind: str, method: str, nets: Any, batch: Any, count: int = 1, half: bool = False, **more: Any
) -> list:
    """Losses and metrics of *count* steps of a plain loop on *device*, whose gradients are finite.

    The batch comes from the host. *half*: in bfloat16.
    """
    student, teacher = (net.to(device) for net in nets)
    torch.manual_seed(2)
    told = []
    with Distiller(student, teacher, method, settings(kind, method, **more)) as distiller, DrawnOnTheHost():
        distiller.train().prepare([batch])
        optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-4)
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                losses = distiller(*batch)
            assert {loss.device.type for loss in losses.values()} == {device.type}
            optimizer.zero_grad()
            torch.stack([*losses.values()]).sum().backward()
            gradients = [p.grad for p in student.parameters() if p.grad is not None]
            assert gradients and all(gradient.isfinite().all() for gradient in gradients)
            optimizer.step()
            told.append({name: float(value.detach()) for name, value in (losses | distiller.metrics).items()})
    return told


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=1e-5)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_step_gives_the_cpus_losses(kind, method, detector, batch):
    given = pictures(kind, batch)
    with reference() as device:
        expected = steps(device, kind, method, pair(kind, detector), given)
    with on_device() as device:
        assert_alike(steps(device, kind, method, pair(kind, detector), given), expected)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("c4", "fitnet"), ("c4", "ktan+kd"), ("fpn", "pkd"), ("retinanet", "crosskd"), ("classifier", "cwd")],
)
def test_shares_of_the_gradient_are_the_cpus(kind, method, detector, batch):
    """Two steps: the second goes by what the first has measured."""
    given = pictures(kind, batch)
    with reference() as device:
        expected = steps(device, kind, method, pair(kind, detector), given, 2, balance=0.5)
    with on_device() as device:
        found = steps(device, kind, method, pair(kind, detector), given, 2, balance=0.5)
    assert_alike(found, expected)
    shares = {name: value for name, value in found[0].items() if name.endswith("_share")}
    assert shares and all(value == pytest.approx(0.5, rel=1e-3) for value in shares.values())


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_step_in_bfloat16_is_finite(kind, method, detector, batch):
    (told,) = steps(DEVICE, kind, method, pair(kind, detector), pictures(kind, batch), half=True)
    assert all(abs(value) < float("inf") for value in told.values()), told


@pytest.fixture
def deterministic(monkeypatch):
    """Sums in one order, where there is such a kernel (RoIAlign's gradient has none)."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def stopped_and_whole(load: Any, folder: Path, at_step: Any) -> tuple[Path, Path]:
    """The folders of a run that was killed in its 7th step, saved after the 6th, and went on, and of a whole one."""
    ours, whole = folder / "stopped", folder / "whole"

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    train(load(), whole, quiet=True)
    at_step(7, kill)
    with pytest.raises(Killed):
        train(load(), ours, quiet=True)
    at_step(0, None)
    train(load(), ours, resume=ours / "last.pt", quiet=True)
    return ours, whole


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", ["ktan", "kr+kdgan"])
def test_a_classifiers_run_resumes_to_the_last_bit(method, tiny_classifier_file, tmp_path, at_step):
    own = (f"method={method}", f"train.device={DEVICE}", "train.checkpoint_every=6", "train.log_every=1")
    settings = [*CLASSIFICATION_SETTINGS, *own]
    assert_same_run(*stopped_and_whole(lambda: load_config(tiny_classifier_file, settings), tmp_path, at_step))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_detectors_run_resumes(precision, tiny_config, tmp_path, at_step):
    """Nearly: the gradient of RoIAlign is summed in any order on a GPU."""
    own = (f"train.precision={precision}", "train.checkpoint_every=6", "train.log_every=1", "methods.ktan.balance=0.5")
    ours, whole = stopped_and_whole(
        lambda: tiny_config("method=ktan", f"train.device={DEVICE}", *own), tmp_path, at_step
    )
    for found, expected in zip(read_log(ours), read_log(whole), strict=True):
        assert found.keys() == expected.keys()
        assert [found[key] for key in ("stage", "step", "lr")] == [expected[key] for key in ("stage", "step", "lr")]
        sum_of = "loss" if "loss" in found else "regressor_loss_classifier"
        assert found[sum_of] == pytest.approx(expected[sum_of], rel=0.05)


def test_the_caches_maps_are_the_teachers(tiny_config, tmp_path):
    """Made on the device and read there, rounded to bfloat16."""
    config = tiny_config("method=fitnet", f"train.device={DEVICE}")
    kind = kind_of(config)
    dataset = kind.training_set(config)
    nets = [build_net(kind, net, "net", dataset.classes).to(DEVICE) for net in (config.student, config.teacher)]
    cache = TeacherCache(tmp_path / "maps")
    with Distiller(*nets, "fitnet", config.method_settings(), dataset.classes, dataset.classes) as distiller:
        cache.fill(distiller, dataset, config, quiet=True)
        images = [dataset.plain()[index][0] for index in (3, 0)]
        expected = distiller.task.teacher_maps([images[0], images[1].flip(-1)])
    found = cache.read([3, 0], [False, True], DEVICE)
    assert found.keys() == expected.keys()
    for name, feature in found.items():
        assert feature.device.type == DEVICE.type
        torch.testing.assert_close(feature, expected[name], rtol=2**-7, atol=1e-3)


def test_a_cached_run_learns_what_an_uncached_one_does(tiny_config, tmp_path):
    logs = []
    for more in ((), (f"train.cache_teacher={tmp_path / 'maps'}",)):
        folder = tmp_path / f"run{len(logs)}"
        train(tiny_config("method=dln", f"train.device={DEVICE}", "train.log_every=1", *more), folder, quiet=True)
        logs.append([line for line in read_log(folder) if "dln_mse" in line])
    assert logs[0]
    for found, expected in zip(*logs, strict=True):
        assert found["dln_mse"] == pytest.approx(expected["dln_mse"], rel=0.05)


def test_a_checkpoints_scores_are_the_cpus(tmp_path):
    config = load_config(ROOT / "configs" / "shapes.yaml")
    scenes = replace(shapes_config(config.data), train=0, val=0, test=24)
    dataset = VOCDetection(write_shapes(tmp_path / "shapes", scenes), "test", classes=list(scenes.classes))
    scores, counts = [], []
    for place in (reference, on_device):
        with place() as device:
            model, _ = load_model(ROOT / "data" / "models" / "shapes-student", device=device)
            detections, _ = detect(model, dataset, device, quiet=True)
        scores.append(voc.evaluate(detections, dataset.annotations()).map)
        counts.append(sum((found["scores"] > 0.5).sum() for found in detections.values()))
    assert scores[0] > 0.5
    assert scores[1] == pytest.approx(scores[0], abs=0.005)
    assert counts[1] == pytest.approx(counts[0], abs=2)


# Who waits for the device

PLACES = {name: Path(package.__file__).parent for name, package in (("detkt", detkt), ("torchvision", torchvision))}


def whose(stack: list[traceback.FrameSummary]) -> tuple[str, str]:
    """Who waited, and where: detkt or torchvision, whichever is the inner frame; "backward" below a backward pass.

    What a backward pass waits for is told at its end, from where it was called.
    """
    called = ""
    for frame in reversed(stack):
        called = called or f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        if "autograd" in Path(frame.filename).parts:
            return "backward", called
        for name, folder in PLACES.items():
            if Path(frame.filename).is_relative_to(folder):
                return name, f"{Path(frame.filename).relative_to(folder)}:{frame.lineno} {frame.name}"
    return "other", called


@contextmanager
def waits() -> Iterator[Counter]:
    """How often the host waits in the block, by who and where."""
    found: Counter = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[whose(traceback.extract_stack())] += 1

    there = torch.cuda.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if there:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if there:
                torch.cuda.set_sync_debug_mode("default")


def of(found: Counter, who: str) -> dict[str, int]:
    return {where: count for (name, where), count in found.items() if name == who}


@pytest.fixture
def waits_of_steps(monkeypatch):
    """``waits_of_steps(config, folder)``: of a run, the waits of every student's step but the first two of a stage.

    In these what is used ever after is made. No step is logged.
    """

    def run(config: Any, folder: Path) -> list[Counter]:
        told: list[Counter] = []
        original = Trainer.train_step

        def train_step(self: Trainer, stage: Any, loader: Any) -> None:
            with waits() as found:
                original(self, stage, loader)
            if stage.trains_student and self.progress.stage_step > 1:
                told.append(found)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "train_step", train_step)
            train(config, folder, quiet=True)
        assert told
        return told

    return run


def sync_warning(*_: Any) -> None:
    warnings.warn("called a synchronizing CUDA operation", stacklevel=1)


def test_who_waits_is_told(detector, batch, monkeypatch):
    """The bookkeeping of the tests below, with warnings that are put where a GPU would give them."""
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    for owner in ("detkt.methods.fitnet.hint_loss", "torchvision.models.detection.rpn.concat_box_prediction_layers"):
        module, _, name = owner.rpartition(".")
        original = getattr(__import__(module, fromlist=[name]), name)
        monkeypatch.setattr(owner, lambda *given, original=original: sync_warning() or original(*given))

    class Late(torch.autograd.Function):
        forward = staticmethod(lambda _, x: x.clone())
        backward = staticmethod(lambda _, gradient: sync_warning() or gradient)

    with Distiller(student, teacher, "fitnet") as distiller, waits() as found:
        Late.apply(distiller.train()(*batch)["fitnet"]).backward()
    assert [(where.split(":")[0], count) for where, count in of(found, "detkt").items()] == [("methods/fitnet.py", 1)]
    assert {where.split(":")[0] for where in of(found, "torchvision")} == {"models/detection/rpn.py"}
    assert sum(of(found, "backward").values()) == 1


needs_cuda = pytest.mark.skipif(REHEARSED, reason="nothing waits for the CPU")
UNLOGGED = ("train.log_every=1000", "train.epochs=4")


@pytest.fixture
def plain_backward(waits_of_steps, tmp_path):
    """Waits in the backward pass of a plain step: torchvision's, whose operations these are."""

    def most(file: Path) -> int:
        config = load_config(file, ["method=none", f"train.device={DEVICE}", *UNLOGGED])
        return max(sum(of(found, "backward").values()) for found in waits_of_steps(config, tmp_path / "plain"))

    return most


@needs_cuda
@pytest.mark.parametrize("method", [*NAMES, "ktan+kd", "crosskd"])
def test_no_step_waits_for_the_device(method, waits_of_steps, plain_backward, tiny_file, tiny_dense_file, tmp_path):
    file = tiny_dense_file if method == "crosskd" else tiny_file
    own = DETECTION_SETTINGS if method != "crosskd" else ()
    config = load_config(file, [*own, f"method={method}", f"train.device={DEVICE}", *UNLOGGED])
    allowed = plain_backward(file)
    for found in waits_of_steps(config, tmp_path / "run"):
        assert not of(found, "detkt")
        assert sum(of(found, "backward").values()) <= allowed


@needs_cuda
def test_to_hold_a_share_waits_once(waits_of_steps, tiny_config, tmp_path, monkeypatch):
    """Where the looks at every batch are over, and it has to be known whether there was a gradient."""
    monkeypatch.setattr(balance, "FIRST", 4)
    config = tiny_config("method=fitnet", "methods.fitnet.balance=0.5", f"train.device={DEVICE}", *UNLOGGED)
    told = waits_of_steps(config, tmp_path / "run")
    assert len(told) > balance.EVERY
    assert sum(sum(of(found, "detkt").values()) for found in told) <= 1
