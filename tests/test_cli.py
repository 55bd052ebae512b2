"""The tools as a user meets them: flags, error lines, exit codes; mostly run in this process."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detkt.base.errors import InputError
from detkt.cli.shared import run_tool, training_config, training_parser
from detkt.data.boxes import voc_to_corners
from detkt.data.voc import VOCDetection
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.trainer import Interrupted, Trainer
from detkt.evaluation.voc_results import read_results
from detkt.models import build_detector, save_model

PROJECT = Path(__file__).parent.parent


def exit_of(main) -> int:
    """The status with which a program ends whose main() is *main*."""
    with pytest.raises(SystemExit) as stopped:
        run_tool(main)
    return stopped.value.code


# -- exit codes ------------------------------------------------------------------------------------------------------


def test_exit_codes_and_lines(capsys):
    def raising(error):
        def main(arguments):
            assert arguments is None
            raise error

        return main

    assert exit_of(raising(InputError("no such file; give another"))) == 2
    assert capsys.readouterr() == ("", "error: no such file; give another\n")
    assert exit_of(raising(Interrupted(signal.SIGINT, Path("runs/a")))) == 130
    assert capsys.readouterr().err == "stopped by SIGINT; the checkpoint is saved, go on with --resume runs/a\n"
    assert exit_of(raising(Interrupted(signal.SIGTERM, Path("runs/a")))) == 143
    assert "SIGTERM" in capsys.readouterr().err
    assert exit_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert exit_of(raising(InputError("no\nsuch \x1b[31mfile"))) == 2
    assert capsys.readouterr().err == "error: no\\nsuch \\x1b[31mfile\n"
    assert exit_of(raising(OSError(36, "File name too long", "a\nb"))) == 2
    assert capsys.readouterr().err == "error: a\\nb: File name too long\n"
    assert exit_of(raising(OSError("the disk fails"))) == 2
    assert capsys.readouterr().err == "error: the disk fails\n"
    with pytest.raises(ZeroDivisionError):  # a fault of ours is no fault of the user's
        run_tool(raising(ZeroDivisionError()))
    assert run_tool(lambda arguments: None) is None


# -- flags -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(tiny_file):
    """``configured("--epochs", "3", ...)``: config, folder and checkpoint that the flags of a training mean."""
    parser = training_parser("train-det", "Train.", "train.py", "configs/shapes.yaml")

    def parse(*flags, config=tiny_file):
        flags = [*([] if config is None else ["--config", str(config)]), *flags]
        return training_config(parser.parse_intermixed_args(flags), "configs/shapes.yaml")

    return parse


def test_flags_set_what_they_name(configured):
    text = "--method=dln --data-root=/d --teacher=/t --student-init=/s --epochs=3 --batch-size=5 --seed=7 --workers=4"
    config, folder, resume = configured(*text.split(" "), "--device", "cuda:1", "--precision", "bf16", "--output", "/o")
    assert (config.method, config.data.root, config.teacher.checkpoint) == ("dln", "/d", "/t")
    assert config.student.checkpoint == "/s"
    train = config.train
    assert (train.epochs, train.batch_size, train.seed, train.workers) == (3, 5, 7, 4)
    assert (train.device, train.precision) == ("cuda:1", "bf16")
    assert (folder, resume) == (Path("/o"), None)


def test_overrides_may_stand_anywhere_and_win(configured):
    config, _, _ = configured("train.epochs=9", "--epochs", "3", "methods.ktan.beta=1.5", "--quiet", "data.flip=0")
    assert (config.train.epochs, config.methods["ktan"]["beta"], config.data.flip) == (9, 1.5, 0)


@pytest.mark.parametrize(
    "root", ["a: b", "123", "007", "yes", "~", "[x]", "#x", "{a}", 'q"q', "a\\b", "ü", "x=y", " x "]
)
def test_a_path_stays_as_it_is(configured, root):
    assert configured("--data-root", root)[0].data.root == root


def test_the_default_folder_names_the_run(configured):
    assert configured()[1] == Path("runs/tiny-none-s0")
    assert configured("--method", "ktan+kd", "--seed", "4")[1] == Path("runs/tiny-ktan+kd-s4")
    assert configured("--role", "teacher")[1] == Path("runs/tiny-teacher-none-s0")


def test_the_default_config_is_the_embedded_pair_wherever_one_is(configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, folder, _ = configured(config=None)
    assert (config.name, config.method, config.data.format) == ("shapes", "ktan", "shapes")
    assert folder == Path("runs/shapes-ktan-s0")
    assert configured(config="configs/shapes.yaml")[0] == config


def test_a_config_is_found_by_its_name(configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()  # a folder of this name is none
    for name in ("shapes", "shapes.yaml", str(PROJECT / "configs" / "shapes.yaml")):
        assert configured(config=name)[0] == configured(config=None)[0]
    (tmp_path / "shapes.yaml").write_text("train: {epochs: 77}\n")
    assert configured(config="shapes.yaml")[0].train.epochs == 77, "a file comes first"
    for name in ("shaps", "shaps.yaml"):
        with pytest.raises(InputError) as refused:
            configured(config=name)
        assert str(refused.value) == (
            f"config '{name}' is neither a file nor one of detkt's own (did you mean 'shapes'?); those are in "
            f"{PROJECT / 'configs'}"
        )


def test_where_networks_start(configured):
    assert configured("--student-init", "none", "student.checkpoint=/c")[0].student.checkpoint is None
    # The config's teacher is for distillation: a teacher that is trained starts as it is told to.
    assert configured("--role", "teacher")[0].teacher.checkpoint is None
    assert configured("--role", "teacher", "--student-init", "/s")[0].teacher.checkpoint == "/s"
    assert configured("--role", "teacher", "--student-init", "none")[0].teacher.checkpoint is None
    with pytest.raises(InputError, match="--teacher is for students"):
        configured("--role", "teacher", "--teacher", "/t")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--epochs", "0"], "'train.epochs' is 0: it must be greater than 0"),
        (["--seed", "-1"], "'train.seed' is -1: it must be 0 or more"),
        (["--role", "boss"], "--role: invalid choice: 'boss'"),
        (["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
        (["--metod", "ktan"], "unrecognized arguments: --metod"),
        (["--method", "ktann"], "unknown method 'ktann' (did you mean 'ktan'?)"),
        (["train.epoch=3"], "unknown key 'train.epoch' (did you mean 'epochs'?)"),
        (["some/folder"], "'some/folder' is not an override; write section.key=value"),
        (["--config", "configs/nowhere.yaml"], "configs/nowhere.yaml: No such file"),
        (["--resume"], "--resume needs to know the run"),
        (["--resume", "/nowhere"], "cannot be given with --resume"),  # the --config that the fixture gives
    ],
)
def test_flags_that_do_not_fit(configured, flags, message):
    with pytest.raises(InputError) as refused:
        configured(*flags)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_help_shows_an_example(tool, capsys):
    for name in ("train_det", "eval_voc"):
        with pytest.raises(SystemExit) as stopped:
            tool(name).main(["--help"])
        assert stopped.value.code == 0
        assert re.search(rf"examples?:\n  python tools/{name}\.py --", capsys.readouterr().out)


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_file, tool, tmp_path_factory):
    """The folder of a plain run of one epoch made by train_det.py, whose data has been resolved."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = ["--config", str(tiny_file), "--output", str(folder), "--epochs", "1", "--seed", "5", "--quiet"]
    tool("train_det").main(flags)
    return folder


def test_a_resumed_run_has_its_own_settings(finished, configured):
    config, folder, resume = configured("--output", str(finished), "--resume", config=None)
    assert (folder, resume) == (finished, finished / "last.pt")
    assert (config.name, config.method, config.train.seed, config.train.epochs) == ("tiny", "none", 5, 1)
    for given in (finished, finished / "last.pt"):
        assert configured("--resume", str(given), config=None)[1:] == (finished, finished / "last.pt")
    elsewhere = configured("--resume", str(finished), "--output", "/o", "--workers", "3", config=None)
    assert elsewhere[1:] == (Path("/o"), finished / "last.pt")
    assert elsewhere[0].train.workers == 3


@pytest.mark.parametrize(
    "flags", [["--epochs", "9"], ["--seed", "0"], ["--method", "none"], ["--overwrite"], ["train.seed=0"]]
)
def test_a_resumed_runs_settings_cannot_be_changed(finished, configured, flags):
    with pytest.raises(InputError, match=f"{flags[0]} cannot be given with --resume"):
        configured("--resume", str(finished), *flags, config=None)


def test_a_checkpoint_that_is_not_there(configured, tmp_path):
    for given in (tmp_path, tmp_path / "last.pt", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no checkpoint at .*; nothing to resume"):
            configured("--resume", str(given), config=None)
    (tmp_path / "last.pt").write_text("")
    with pytest.raises(InputError, match=r"config\.yaml: No such file"):
        configured("--resume", str(tmp_path), config=None)


# -- training: what is refused before it starts ----------------------------------------------------------------------


@pytest.fixture
def refusal(tool, tiny_file, tmp_path, monkeypatch, capsys):
    """``refusal(*flags)``: the line with which train_det.py refuses them; nothing is trained or left behind."""
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("training started"))
    program = tool("train_det")

    def run(*flags, output=tmp_path / "run"):
        before = sorted(output.iterdir()) if output.exists() else None
        arguments = ["--config", str(tiny_file), "--output", str(output), "--quiet", *map(str, flags)]
        if "--resume" in flags:
            arguments = ["--output", str(output), "--quiet", *map(str, flags)]
        assert exit_of(lambda _: program.main(arguments)) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert (sorted(output.iterdir()) if output.exists() else None) == before
        return error

    return run


def test_train_refuses_data_that_is_not_there(refusal, tmp_path):
    assert f"{tmp_path / 'no'}: no such folder" in refusal("--data-root", tmp_path / "no")
    assert "no split 'trainvel' (did you mean 'trainval'?)" in refusal("data.train=trainvel")
    (tmp_path / "empty").mkdir()
    assert "holds no VOC2007" in refusal("--data-root", tmp_path / "empty")


def test_train_refuses_a_list_that_names_a_missing_picture(refusal, voc_folder, tmp_path):
    root = shutil.copytree(voc_folder, tmp_path / "voc")
    with (root / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("test_999999\n")
    assert "test.txt, line 7: no picture JPEGImages/test_999999.jpg" in refusal("--data-root", root)


def test_train_refuses_a_folder_of_pictures_for_the_shapes(refusal, voc_folder, tmp_path):
    root = shutil.copytree(voc_folder, tmp_path / "voc")
    (root / "shapes.json").unlink()
    message = refusal("--data-root", root, "data.format=shapes")
    assert f"{root}: it holds no shapes, but the config asks for them" in message


def test_train_refuses_shapes_it_does_not_know(refusal, tmp_path):
    shapes = ["data.format=shapes", f"data.root={tmp_path / 'shapes'}"]
    assert "unknown key 'data.shapes.trian' (did you mean 'train'?)" in refusal(*shapes, "data.shapes.trian=3")
    assert "data.shapes.train is 'few': it must be a whole number" in refusal(*shapes, "data.shapes.train=few")
    assert "unknown class 'star-fish' (did you mean 'star'?)" in refusal(*shapes, "data.shapes.classes=[star-fish]")
    assert not (tmp_path / "shapes").exists()


def test_train_refuses_teachers(refusal, tiny_student, tiny_teacher, tmp_path):
    ktan = ["--method", "ktan", "--teacher"]
    assert f"{tmp_path / 'no'}" in refusal(*ktan, tmp_path / "no")
    assert "the teacher is to be a fasterrcnn_resnet10x0.25_c4" in refusal(*ktan, tiny_student)
    other = tmp_path / "other"
    save_model(build_detector("fasterrcnn_resnet10x0.25_c4", 3), other, ["cat", "dog"])
    # Its classes alone would do for a method that compares maps.
    assert "was built with [128, 256, 512]; a checkpoint keeps its options" in refusal(*ktan, other)
    truncated = Path(shutil.copytree(tiny_teacher, tmp_path / "truncated")) / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    assert f"{truncated}: damaged, truncated or not plain weights" in refusal(*ktan, truncated.parent)
    assert "needs a trained teacher" in refusal("--method", "ktan", "teacher.checkpoint=null")


def test_train_refuses_checkpoints(refusal, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    assert "last.pt is damaged" in refusal("--resume")
    (folder / "last.pt").write_bytes(pickle.dumps(os.getcwd))
    assert "holds pickled code, which is never run" in refusal("--resume")
    shutil.copyfile(folder / "model.safetensors", folder / "last.pt")
    assert "last.pt is damaged" in refusal("--resume")


def test_train_refuses_a_taken_folder_and_missing_hardware(refusal, finished, monkeypatch):
    before = (finished / "last.pt").read_bytes()
    assert f"{finished} holds a run already" in refusal(output=finished)
    assert (finished / "last.pt").read_bytes() == before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "'cuda' was asked for but torch sees no CUDA" in refusal("--device", "cuda")
    assert "fp16 needs a CUDA device" in refusal("--precision", "fp16")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_is_named_in_one_line(tool, voc_folder, tiny_file, tmp_path, workers):
    root = shutil.copytree(voc_folder, tmp_path / "voc")
    picture = root / "JPEGImages" / "trainval_000003.jpg"
    picture.write_bytes(picture.read_bytes()[:1000])
    flags = ["--config", tiny_file, "--data-root", root, "--output", tmp_path / "run", "--workers", workers, "--quiet"]
    with pytest.raises(InputError) as refused:
        tool("train_det").main([str(flag) for flag in flags])
    assert str(picture) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_train_prints_its_result(tool, finished, capsys):
    """A run that is resumed after its end is evaluated again."""
    metrics = json.loads((finished / "metrics.json").read_text())
    tool("train_det").main(["--output", str(finished), "--resume", "--quiet"])
    scores = [f"{100 * metrics[key]:.1f}" for key in ("map_voc07", "map_area", "map_coco")]
    assert capsys.readouterr().out.startswith(
        f"none on tiny, seed 5: mAP VOC07 {scores[0]}, mAP area {scores[1]}, mAP COCO {scores[2]} on test; 4 updates"
    )


# -- scoring ---------------------------------------------------------------------------------------------------------


class NearlyRight(torch.nn.Module):
    """Finds what is there, in order of the pictures: moved a little, once in a while as another class or twice."""

    def __init__(self, dataset):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(7))
        self.records = iter(dataset.annotations().values())
        self.numbers = {name: number for number, name in enumerate(dataset.classes, start=1)}
        self.random = np.random.default_rng(0)

    def forward(self, images):
        return [self.find(next(self.records)) for _ in images]

    def find(self, record):
        boxes = voc_to_corners(np.repeat(record["boxes"], 2, axis=0))
        boxes = boxes + self.random.normal(0, 2.5, boxes.shape)
        labels = np.repeat([self.numbers[name] for name in record["labels"]], 2)
        wrong = self.random.random(len(labels)) < 0.3
        labels = np.where(wrong, labels % len(self.numbers) + 1, labels)
        found = {"boxes": boxes, "scores": self.random.random(len(labels)), "labels": labels}
        return {key: torch.from_numpy(value) for key, value in found.items()}


def test_eval_scores_a_model_and_its_saved_detections_alike(tool, voc_folder, tmp_path, monkeypatch, capsys):
    program = tool("eval_voc")
    dataset = VOCDetection(voc_folder, "test", classes=["cross", "disc", "star"])
    monkeypatch.setattr(
        program, "open_model", lambda path, device: (NearlyRight(dataset), {"classes": dataset.classes})
    )
    common = ["--data-root", str(voc_folder), "--quiet", "--device", "cpu"]
    saved, first, second = (str(tmp_path / name) for name in ("found", "first.json", "second.json"))
    program.main(["--checkpoint", "c", *common, "--save-detections", saved, "--json", first, "--batch-size", "4"])
    table = capsys.readouterr().out
    program.main(["--detections", saved, *common, "--json", second])
    assert capsys.readouterr().out == table

    ours, theirs = (json.loads(Path(path).read_text()) for path in (first, second))
    assert 0.2 < ours["map_area"] < 0.95, "the comparison is about something"
    assert len({ours["map_voc07"], ours["map_area"], ours["map_coco"]}) == 3
    for key in ("map_voc07", "map_area", "map_coco", "coco"):
        assert theirs[key] == pytest.approx(ours[key], abs=1e-6)
    for name, values in ours["per_class"].items():
        assert theirs["per_class"][name] == pytest.approx(values, abs=1e-6)
    assert ours["split"] == theirs["split"] == "test"
    assert (ours["checkpoint"], ours["parameters"], theirs["detections"]) == ("c", 7, saved)
    assert ours["milliseconds_per_picture"] > 0
    assert ours["versions"]["torch"] == torch.__version__

    lines = table.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["class", "cross", "disc", "star", "mean"]
    assert lines[4].split()[1:] == [f"{100 * ours[key]:.1f}" for key in ("map_voc07", "map_area", "map_coco")]
    assert sorted(os.listdir(saved)) == [f"comp4_det_test_{name}.txt" for name in dataset.classes]
    assert set(read_results(saved)) == set(dataset.ids)


def test_eval_repeats_a_runs_own_score(tool, finished, voc_folder, tmp_path):
    flags = ["--checkpoint", finished, "--data-root", voc_folder, "--json", tmp_path / "m.json", "--quiet"]
    tool("eval_voc").main([str(flag) for flag in flags])
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "m.json", finished / "metrics.json"))
    for key in ("map_voc07", "map_area", "map_coco", "coco", "per_class", "parameters"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data-root {data}", "one of the arguments --checkpoint --detections is required"),
        ("--checkpoint {run} --detections {run} --data-root {data}", "not allowed with argument"),
        ("--checkpoint {run}", "the following arguments are required: --data-root"),
        ("--checkpoint {run}/no --data-root {data}", "{run}/no"),
        ("--checkpoint {run}/last.pt --data-root {data}", "last.pt is not a saved model: give the folder"),
        ("--checkpoint {run} --data-root {run}/no", "{run}/no: no such folder"),
        ("--checkpoint {run} --data-root {data} --split tset", "no split 'tset' (did you mean 'test'?)"),
        ("--checkpoint {run} --data-root {data} --batch-size 0", "--batch-size must be 1 or more"),
        ("--checkpoint {run} --data-root {data} --device cuda", "torch sees no CUDA"),
        ("--checkpoint {run} --data-root {data} --json {run}/no/m.json", "there is no folder {run}/no"),
        ("--detections {run}/no --data-root {data}", "no folder {run}/no"),
        ("--detections {run} --data-root {data}", "no result file"),
    ],
)
def test_eval_refuses(tool, finished, voc_folder, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {"run": finished, "data": voc_folder}
    assert exit_of(lambda _: tool("eval_voc").main(flags.format(**places).split())) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert message.format(**places) in error
    assert error.count("\n") == 1


def test_eval_refuses_a_model_of_other_classes(tool, voc_folder, tmp_path):
    save_model(build_detector("fasterrcnn_resnet10x0.125_c4", 3), tmp_path, ["cross", "disk"])
    with pytest.raises(InputError, match="unknown class"):
        tool("eval_voc").main(["--checkpoint", str(tmp_path), "--data-root", str(voc_folder), "--quiet"])


# -- as processes ----------------------------------------------------------------------------------------------------


def start(*flags, **options):
    command = [sys.executable, str(PROJECT / "tools" / "train_det.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_saves_itself(tiny_file, tmp_path, number, status):
    """Sent to the whole group, as a terminal does: the process that loads pictures must not die of it."""
    folder = tmp_path / "run"
    flags = ["--config", tiny_file, "--output", folder, "--workers", 1, "--epochs", 9999, "--quiet"]
    process = start(*flags, "train.log_every=1", start_new_session=True)
    deadline = time.monotonic() + 300
    while not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert error == f"stopped by {number.name}; the checkpoint is saved, go on with --resume {folder}\n"
    step = load_checkpoint(folder / "last.pt")["step"]
    assert step >= 1
    assert not (folder / "metrics.json").exists()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, step + 1))


@pytest.mark.slow
def test_a_process_refuses_in_one_line(tmp_path):
    process = start("--config", tmp_path / "no.yaml")
    out, error = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert error == f"error: config file {tmp_path / 'no.yaml'}: No such file or directory\n"
