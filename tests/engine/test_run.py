"""What a run leaves in its folder, what it never touches, and what stops it before it starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data import DEFAULT_ROOTS
from detkt.engine import run
from detkt.engine.run import resolve_config, train
from detkt.engine.run_folder import RUN_FILES, write_metrics
from detkt.engine.trainer import Trainer
from detkt.evaluation.table import metrics_table
from detkt.methods.ktan import KTANConfig
from detkt.models import build_detector, load_model, save_model


@pytest.fixture
def no_training(monkeypatch):
    """Fails the test if training starts."""
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("training started"))


@pytest.fixture(scope="module")
def finished(tiny_file, tmp_path_factory):
    """A finished run with a teacher, its config and what train returned."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    config = load_config(tiny_file, ["method=ktan", "train.seed=3"])
    return folder, config, train(config, folder, quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- the contract ----------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_files_of_a_run_and_nothing_else(finished):
    names = {path.name for path in finished[0].iterdir()}
    assert {name for name in names if not name.startswith("events.out.tfevents.")} == set(RUN_FILES)


def test_the_config_is_resolved_and_reads_back(finished):
    folder, config, _ = finished
    found = load_config(folder / "config.yaml")
    assert found == resolve_config(config)
    # Defaults are written out, so that later ones do not change what this run was.
    assert found.methods["ktan"]["beta"] == KTANConfig().beta
    assert found.student.options["rpn_nms_thresh"] == 0.7
    assert (config.name, config.method, config.train.seed) == ("tiny", "ktan", 3)


def test_metrics_hold_every_key_and_no_nan(finished):
    folder, _, returned = finished

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["method"] == "ktan"
    assert metrics["dataset"] == "tiny"
    assert metrics["split"] == "test"
    assert metrics["seed"] == 3
    assert metrics["updates"] == 8
    for key in ("map_voc07", "map_area", "map_coco"):
        assert 0 <= metrics[key] <= 1
        assert metrics[key] == returned[key]
    assert list(metrics["per_class"]) == ["cross", "disc", "star"]
    assert all(set(values) == {"voc07", "area", "coco"} for values in metrics["per_class"].values())
    assert metrics["seconds"] > 0
    assert metrics["images_per_second"] == pytest.approx(11 * 4 / metrics["seconds"])
    assert metrics["milliseconds_per_picture"] > 0
    assert metrics["versions"]["torch"] == torch.__version__
    assert {"detkt", "python", "torchvision", "device"} < set(metrics["versions"])
    model = load_model(folder)[0]
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_model_is_the_student(finished):
    folder, config, _ = finished
    model, meta = load_model(folder)
    assert meta["architecture"] == config.student.architecture
    assert meta["classes"] == ["cross", "disc", "star"]
    assert meta["options"]["min_size"] == 64
    trained = torch.load(folder / "last.pt", weights_only=True)["distiller"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"student.{name}"])


def test_the_log_holds_a_line_a_logged_step(finished):
    lines = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("regressor", 3),
        ("warmup", 4),
        ("warmup", 6),
        ("adversarial", 8),
        ("adversarial", 11),
    ]
    for line in lines:
        assert {"epoch", "lr", "images_per_second"} < set(line)


def test_the_seed_decides(finished, tiny_config, tmp_path):
    folder, config, metrics = finished
    same = train(config, tmp_path / "same", quiet=True)
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert same["map_area"] == metrics["map_area"]
    train(tiny_config("method=ktan", "train.seed=4"), tmp_path / "other", quiet=True)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_a_teacher_is_trained_from_its_own_section(tiny_config, tmp_path, tiny_teacher):
    config = tiny_config("role=teacher", "teacher.checkpoint=null", "train.epochs=1")
    metrics = train(config, tmp_path / "run", quiet=True)
    assert load_model(tmp_path / "run")[1]["architecture"] == config.teacher.architecture
    teacher = load_model(tiny_teacher)[0]
    assert metrics["parameters"] == sum(parameter.numel() for parameter in teacher.parameters())


def test_a_checkpoint_is_where_training_starts(tiny_config, tmp_path, tiny_student, monkeypatch):
    starts = []
    monkeypatch.setattr(Trainer, "fit", lambda self: starts.append(self.distiller.student.state_dict()) or 1 / 0)
    config = tiny_config(f"student.checkpoint={tiny_student}")
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", quiet=True)
    for name, value in load_model(tiny_student)[0].state_dict().items():
        assert torch.equal(starts[0][name], value)


def test_numbers_json_does_not_know(tmp_path):
    metrics = {"a": float("nan"), "b": {"c": np.float32("inf"), "d": np.int64(3)}, "e": np.float64(0.5), "f": "x"}
    write_metrics(tmp_path / "m.json", metrics)
    expected = {"a": None, "b": {"c": None, "d": 3}, "e": 0.5, "f": "x"}
    assert json.loads((tmp_path / "m.json").read_text()) == expected


def test_the_table_shows_percent_and_a_dash_for_none():
    per_class = {
        "cat": {"voc07": 0.5, "area": 0.123, "coco": 1.0},
        "aeroplane": {"voc07": float("nan"), "area": None, "coco": 0.0},
    }
    metrics = {"per_class": per_class, "map_voc07": 0.5, "map_area": 0.1234, "map_coco": 0.99951}
    assert metrics_table(metrics).splitlines() == [
        "class      VOC07   area   COCO",
        "cat         50.0   12.3  100.0",
        "aeroplane      -      -    0.0",
        "mean        50.0   12.3  100.0",
    ]


# -- folders that are taken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_folder_with_any_file_of_a_run_is_refused_and_left_alone(name, tiny_config, tmp_path, no_training):
    (tmp_path / name).write_text("of another run")
    with pytest.raises(InputError, match=rf"holds a run already \({name}\); go on with --resume, replace"):
        train(tiny_config(), tmp_path, quiet=True)
    assert contents(tmp_path) == {name: b"of another run"}


def test_overwrite_replaces_the_run_and_no_other_file(tiny_config, tmp_path):
    for name in (*RUN_FILES, "notes.txt", "events.out.tfevents.1.old"):
        (tmp_path / name).write_text("old")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("old")
    config = tiny_config("train.epochs=1")
    train(config, tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "notes.txt").read_text() == "old"
    assert (tmp_path / "pictures" / "a.png").read_text() == "old"
    assert not (tmp_path / "events.out.tfevents.1.old").exists()
    assert all((tmp_path / name).read_bytes() != b"old" for name in RUN_FILES)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_folder_with_other_files_is_not_taken(tiny_config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train(tiny_config("train.epochs=1"), tmp_path, quiet=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    ["data.root=/nowhere", "data.test=nowhere", "methods.ktan.warmup_steps=999", "teacher.checkpoint=/nowhere"],
)
def test_a_run_that_cannot_start_removes_nothing(wrong, tiny_config, tmp_path, no_training):
    old = {name: b"old" for name in RUN_FILES}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        train(tiny_config("method=ktan", wrong), tmp_path, overwrite=True, quiet=True)
    assert contents(tmp_path) == old
    with pytest.raises(InputError):
        train(tiny_config("method=ktan", wrong), tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_resumed_run_stays_out_of_another_runs_folder(finished, tiny_config, tmp_path, no_training):
    (tmp_path / "last.pt").write_text("of another run")
    with pytest.raises(InputError, match="holds a run already"):
        train(finished[1], tmp_path, resume=finished[0] / "last.pt", quiet=True)
    assert contents(tmp_path) == {"last.pt": b"of another run"}


def test_a_run_resumed_into_a_new_folder_takes_its_log_along(finished, tmp_path):
    folder, config, metrics = finished
    before = contents(folder)
    again = train(config, tmp_path / "copy", resume=folder / "last.pt", quiet=True)
    assert (tmp_path / "copy" / "log.jsonl").read_bytes() == before["log.jsonl"]
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert again["map_voc07"] == metrics["map_voc07"]
    assert contents(folder) == before


# -- folders that cannot be written ----------------------------------------------------------------------------------


def test_a_folder_below_a_file_is_refused(tiny_config, tmp_path, no_training):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run" / "deep"):
        with pytest.raises(InputError, match=r"output folder .* cannot be made: .*file is a file"):
            train(tiny_config(), folder, quiet=True)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_folder_that_is_not_writable_is_refused(tiny_config, tmp_path, no_training, monkeypatch):
    """The superuser, as whom tests may run, may write anywhere: the answer of the system is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    for folder in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(InputError, match="output folder .* is not writable; choose another --output"):
            train(tiny_config(), folder, quiet=True)


def test_a_folder_that_cannot_be_made_is_refused(tiny_config, tmp_path, no_training, monkeypatch):
    def mkdir(self, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(InputError, match="cannot make the output folder .*: Read-only file system"):
        train(tiny_config(), tmp_path / "run", quiet=True)


def test_a_disk_that_is_full_from_the_start_is_named(tiny_config, tmp_path, monkeypatch, no_training):
    def write_text(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(InputError, match=r"cannot write .*config\.yaml: No space left on device"):
        train(tiny_config(), tmp_path / "run", quiet=True)
    assert os.listdir(tmp_path / "run") == []


# -- settings that do not go together --------------------------------------------------------------------------------


def start(config, folder):
    """The message with which the run is refused before it leaves anything."""
    with pytest.raises(InputError) as refused:
        train(config, folder / "run", quiet=True)
    assert not (folder / "run").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_half_precision_needs_cuda(tiny_config, tmp_path, no_training):
    message = start(tiny_config("train.precision=fp16"), tmp_path)
    assert message == "precision fp16 needs a CUDA device; use --precision bf16 or fp32"


def test_a_method_needs_its_teacher_and_a_teacher_no_method(tiny_config, tmp_path, no_training):
    assert "method 'ktan' needs a trained teacher: give --teacher CKPT" in start(
        tiny_config("method=ktan", "teacher.checkpoint=null"), tmp_path
    )
    assert "use --method none, not ktan+kd" in start(tiny_config("method=ktan+kd", "role=teacher"), tmp_path)


def test_a_teacher_of_another_architecture_is_refused(tiny_config, tiny_student, tmp_path, no_training):
    message = start(tiny_config("method=ktan", f"teacher.checkpoint={tiny_student}"), tmp_path)
    assert f"checkpoint {tiny_student} is a fasterrcnn_resnet10x0.125_c4" in message
    assert "the teacher is to be a fasterrcnn_resnet10x0.25_c4" in message
    assert "set teacher.architecture=fasterrcnn_resnet10x0.125_c4" in message


@pytest.mark.parametrize("classes", [["disc", "cross", "star"], ["cross", "disc", "heart"], ["cross", "disc"]])
def test_a_start_of_other_classes_is_refused_and_a_teacher_of_such_is_not(classes, tiny_config, tmp_path, no_training):
    config = tiny_config("method=ktan", f"teacher.checkpoint={tmp_path / 'teacher'}")
    net = build_detector(config.teacher.architecture, len(classes) + 1, **config.teacher.options)
    save_model(net, tmp_path / "teacher", classes)
    with pytest.raises(pytest.fail.Exception, match="training started"):
        train(config, tmp_path / "goes-on", quiet=True)
    message = start(tiny_config("role=teacher", f"teacher.checkpoint={tmp_path / 'teacher'}"), tmp_path)
    assert f"knows the classes {', '.join(classes)}, but the data set has cross, disc, star" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.architecture=fasterrcnn_resnet11_c4", "unknown detector 'fasterrcnn_resnet11_c4'"),
        ("student.options.min_sise=64", "has no option 'min_sise' (did you mean 'min_size'?)"),
        ("student.weights=/nowhere.pth", "cannot read weights /nowhere.pth: No such file"),
        ("student.checkpoint=/nowhere", "/nowhere"),
        ("data.classes=[cross, disc]", "unknown class"),
    ],
)
def test_settings_that_name_nothing(override, message, tiny_config, tmp_path, no_training):
    assert message in start(tiny_config(override), tmp_path)


def test_weights_that_a_checkpoint_makes_useless_are_told_of(tiny_config, tiny_student, tmp_path, caplog):
    config = tiny_config(f"student.checkpoint={tiny_student}", "student.weights=imagenet", "train.epochs=1")
    train(config, tmp_path / "run", quiet=True)
    line = f"student.weights=imagenet is not used: the checkpoint {tiny_student} holds all weights"
    assert [record.getMessage() for record in caplog.records].count(line) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"preset": "paper", "balance": 1},
            "methods.dln.preset=paper: methods.dln.balance=1 holds the term to",
        ),
        ({"preset": "paper", "balance": 0}, None),
        ({"balance": 1}, None),
    ],
)
def test_a_preset_whose_weights_a_share_replaces_is_told_of(settings, told, tiny_config, tmp_path, caplog):
    quick = ["methods.dln.regressor_steps=1", "train.epochs=1"]
    own = [f"methods.dln.{key}={value}" for key, value in settings.items()]
    train(tiny_config("method=dln", *quick, *own), tmp_path / "run", quiet=True)
    lines = [line for record in caplog.records if "preset" in (line := record.getMessage())]
    assert len(lines) == (told is not None) and all(line.startswith(told) for line in lines)


def test_where_the_shapes_are_drawn_is_told(tiny_config, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="detkt")
    monkeypatch.setattr(Trainer, "fit", lambda self: 1 / 0)
    small = "{train: 4, test: 2, val: 0, image_size: 64, classes: [cross, disc, star]}"
    monkeypatch.setitem(DEFAULT_ROOTS, "shapes", str(tmp_path / "new"))
    config = tiny_config("data.format=shapes", "data.root=null", f"data.shapes={small}")
    for times in (1, 1):  # once, then they are there
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "run", quiet=True, overwrite=True)
        told = [record.getMessage() for record in caplog.records if "drawing" in record.getMessage()]
        assert told == [f"drawing the shapes into {tmp_path / 'new'}, which is not there yet"] * times


# -- devices ---------------------------------------------------------------------------------------------------------


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda:1' was asked for but torch sees no CUDA; use --device cpu"):
        resolve_device("cuda:1")
    for name in ("gpu", "cuda:x", "cuda:-1", ""):
        with pytest.raises(InputError, match=f"unknown device '{name}'"):
            resolve_device(name)
    for name in ("meta", "mps"):
        with pytest.raises(InputError, match=f"device '{name}' is not supported"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="'cuda:2' was asked for but there are 2 CUDA devices"):
        resolve_device("cuda:2")


def test_the_test_list_is_checked_before_training(tiny_config, tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(run, "build_net", lambda *a: pytest.fail("nets were built"))
    assert "no split 'tests' (did you mean 'test'?)" in start(tiny_config("data.test=tests"), tmp_path)
