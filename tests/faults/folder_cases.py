"""Output folders, full disks, and runs to go on with."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from commands import COMPARE, EVAL, EXPORT, PREDICT, RESUME, SHORT, TRAIN_CLS, TRAIN_DET, VISUALIZE
from faults import Case, Place, Shell

from detkt.engine import run
from detkt.engine.checkpoint import load_checkpoint, save_checkpoint


def _not_writable(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """The superuser, as whom tests may run, may write anywhere: the system's answer is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == place.tmp and mode & os.W_OK))


def _full_log(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """The disk fills up once the folder is made."""

    def open_folder(folder: Path, resume: Path | None, original=run.open_folder) -> None:
        original(folder, resume)
        (folder / "log.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(run, "open_folder", open_folder)


def collected(place: Place) -> None:
    """{run} as one of those that compare.py has made in {out}."""
    place["out"].mkdir()
    place["run"].rename(place["out"] / "pair-none-s0")


_INTO = {
    "train_det": TRAIN_DET,
    "train_cls": TRAIN_CLS,
    "visualize_diff": VISUALIZE,
    "predict": PREDICT,
    "compare": COMPARE,
    "export": EXPORT,
}
_FULL = "there is no space left on the disk"
FOLDERS = [
    Case(
        "out-taken",
        "the folder of another run",
        {"train_det": TRAIN_DET.replace("{out}", "{run}"), "train_cls": TRAIN_CLS.replace("{out}", "{run}")},
        "the output folder run holds a run already (config.yaml); go on with --resume, replace it with "
        "--overwrite, or choose another --output",
    ),
    Case(
        "out-file",
        "a file where the output folder is to be",
        _INTO,
        "the output folder out… cannot be made: out is a file; choose another --output",
        lambda p: p.write("out", "x"),
    ),
    Case(
        "out-below",
        "an output folder below a file",
        {tool: line.replace("{out}", "{out}/deep") for tool, line in _INTO.items()},
        "the output folder out/deep… cannot be made: out is a file; choose another --output",
        lambda p: p.write("out", "x"),
    ),
    Case(
        "out-locked",
        "an output folder that may not be written",
        _INTO,
        "the output folder out… is not writable; choose another --output",
        patch=_not_writable,
    ),
    Case(
        "out-predict",
        "an output folder in which the pictures lie",
        {"predict": PREDICT.replace("{out}", "{pictures}")},
        "pictures/a.png is one of the pictures and would be overwritten; choose another --output",
    ),
    Case(
        "out-detections",
        "a file where the detections' folder is to be",
        {"eval_voc": f"{EVAL} --save-detections {{out}}"},
        "the output folder out cannot be made: out is a file; choose another --save-detections",
        lambda p: p.write("out", "x"),
    ),
    Case(
        "full-config",
        f"{_FULL} when the run starts",
        {"train_det": TRAIN_DET, "train_cls": TRAIN_CLS},
        "cannot write out/config.yaml: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.config.yaml.tmp"),
        leaves=("out/.config.yaml.tmp",),
    ),
    Case(
        "full-log",
        f"{_FULL} for the log",
        {"train_det": TRAIN_DET, "train_cls": TRAIN_CLS},
        "cannot write out/log.jsonl: No space left on device; free space, then go on with --resume",
        patch=_full_log,
        leaves=("out", "out/*"),
    ),
    Case(
        "full-last",
        f"{_FULL} for the checkpoint",
        {"train_det": f"{TRAIN_DET} train.log_every=1"},
        "cannot write out/last.pt: …; free space or choose another folder",
        lambda p: p.full("out/.last.pt.tmp"),
        leaves=("out/*",),
    ),
    Case(
        "full-model",
        f"{_FULL} for the model",
        {"export": EXPORT},
        "cannot write out/model.safetensors: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.model.safetensors.tmp"),
        leaves=("out/.model.safetensors.tmp",),
    ),
    Case(
        "full-scores",
        f"{_FULL} for the scores",
        {"eval_voc": f"{EVAL} --json {{tmp}}/m.json"},
        "cannot write m.json: No space left on device; free space or choose another folder",
        lambda p: p.full(".m.json.tmp"),
        leaves=(".m.json.tmp",),
    ),
    Case(
        "full-detections",
        f"{_FULL} for the detections",
        {"eval_voc": f"{EVAL} --save-detections {{tmp}}/d.json"},
        "cannot write d.json: No space left on device; free space or choose another folder",
        lambda p: p.full(".d.json.tmp"),
        leaves=(".d.json.tmp",),
    ),
    Case(
        "full-drawn",
        f"{_FULL} for a drawn picture",
        {"predict": PREDICT},
        "cannot write out/a.png: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.a.png.tmp"),
        leaves=("out/*",),
    ),
    Case(
        "full-predictions",
        f"{_FULL} for the predictions",
        {"predict": PREDICT},
        "cannot write out/detections.json: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.detections.json.tmp"),
        leaves=("out/*",),
    ),
    Case(
        "full-changes",
        f"{_FULL} for the changes",
        {"visualize_diff": VISUALIZE},
        "cannot write out/changes.json: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.changes.json.tmp"),
        leaves=("out/*",),
    ),
    Case(
        "full-figure",
        f"{_FULL} for a diagram",
        {"visualize_diff": VISUALIZE},
        "cannot write out/diff.png: No space left on device; free space or choose another folder",
        lambda p: p.full("out/.diff.png.tmp"),
        leaves=("out/*",),
    ),
    Case(
        "full-table",
        f"{_FULL} for the table",
        {"compare": f"{COMPARE} --collect {SHORT}"},
        "cannot write out/table.md: No space left on device; free space or choose another folder",
        lambda p: (collected(p), p.full("out/.table.md.tmp")),
        leaves=("out/*",),
    ),
]


def _flip(place: Place) -> None:
    content = bytearray((place["run"] / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    place.write("run/last.pt", bytes(content))


def _changed_checkpoint(**changes):
    def prepare(place: Place) -> None:
        state = load_checkpoint(place["run"] / "last.pt")
        save_checkpoint(place["run"] / "last.pt", {**state, **changes})

    return prepare


def _other_format(place: Place) -> None:
    torch.save({"format": 1}, place["run"] / "last.pt")


def _shell_checkpoint(place: Place) -> None:
    torch.save({"format": 2, "step": Shell()}, place["run"] / "last.pt")


_RESUME = {"train_det": RESUME}
RESUMING = [
    Case(
        "resume-nothing",
        "nothing to resume",
        {"train_det": "--output {out} --resume", "train_cls": "--output {out} --resume"},
        "no checkpoint at out/last.pt; nothing to resume",
    ),
    Case(
        "resume-what",
        "no run to resume",
        {"train_det": "--resume", "train_cls": "--resume"},
        "--resume needs to know the run: give its checkpoint, or --output with its folder",
    ),
    Case(
        "resume-settings",
        "other settings than the run's",
        {"train_det": f"{RESUME} --epochs 9", "train_cls": f"{RESUME} --epochs 9"},
        "--epochs cannot be given with --resume: the run goes on with its own settings; leave it out",
    ),
    Case(
        "resume-override",
        "an override of the run's settings",
        {"train_det": "--output {run} train.seed=3 --resume"},
        "train.seed=3 cannot be given with --resume: the run goes on with its own settings; leave it out",
    ),
    Case(
        "resume-config",
        "a run without its config",
        _RESUME,
        "config file run/config.yaml: No such file or directory",
        lambda p: p.remove("run/config.yaml"),
    ),
    Case(
        "resume-empty",
        "an empty checkpoint",
        _RESUME,
        "checkpoint run/last.pt is damaged or not a checkpoint; resume from another checkpoint of the run, or"
        " start it anew",
        lambda p: p.write("run/last.pt", ""),
    ),
    Case(
        "resume-truncated",
        "a checkpoint cut off",
        _RESUME,
        "checkpoint run/last.pt is damaged or not a checkpoint; resume from another checkpoint of the run, or"
        " start it anew",
        lambda p: p.truncate("run/last.pt"),
    ),
    Case(
        "resume-flipped",
        "a checkpoint with one flipped bit",
        _RESUME,
        "checkpoint run/last.pt is damaged: it is not what was written; resume from another checkpoint of the"
        " run, or start it anew",
        _flip,
    ),
    Case(
        "resume-code",
        "a checkpoint that would run a command",
        _RESUME,
        "checkpoint run/last.pt is damaged or holds pickled code, which is never run: only detkt's own "
        "checkpoints are resumed",
        _shell_checkpoint,
    ),
    Case(
        "resume-pickle",
        "a bare pickle that would run a command",
        _RESUME,
        "checkpoint run/last.pt is damaged or holds pickled code, which is never run: only detkt's own "
        "checkpoints are resumed",
        lambda p: p.write("run/last.pt", pickle.dumps(Shell())),
    ),
    Case(
        "resume-format",
        "a checkpoint of another version",
        _RESUME,
        "checkpoint run/last.pt was not written by this version of detkt (expected format …)",
        _other_format,
    ),
    Case(
        "resume-method",
        "a checkpoint of another method",
        _RESUME,
        "checkpoint run/last.pt is of another model or method: …",
        lambda p: p.replace("run/config.yaml", "method: none", "method: dln"),
    ),
    Case(
        "resume-pictures",
        "a checkpoint of a run on other pictures",
        _RESUME,
        "checkpoint run/last.pt is of a run on other pictures; give the data it was trained on",
        _changed_checkpoint(pictures=0),
    ),
    Case(
        "resume-taken",
        "a resumed run into another run's folder",
        {"train_det": "--output {out} --quiet --resume {run}"},
        "the output folder out holds a run already (last.pt); go on with --resume, replace it with "
        "--overwrite, or choose another --output",
        lambda p: p.write("out/last.pt", "of another run"),
    ),
]
SECTIONS = {"Output folders and full disks": FOLDERS, "Runs to go on with": RESUMING}
