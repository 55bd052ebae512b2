"""Trained models and weights that cannot be what they are given for."""

from __future__ import annotations

import json
import pickle

import torch
from commands import COMPARE, EVAL, EXPORT, PREDICT, TRAIN_CLS, TRAIN_DET, VISUALIZE
from faults import Case, Place, Shell

# A model that a case damages: {student} to look at pictures, {teacher} to learn from.
READING = {"eval_voc": EVAL, "visualize_diff": VISUALIZE, "predict": PREDICT, "export": EXPORT}
TEACHING = {
    "train_det": f"{TRAIN_DET} --method ktan --teacher {{teacher}}",
    "compare": f"{COMPARE.replace('none', 'ktan')} teacher.checkpoint={{teacher}}",
}
_LOOKING = {
    "eval_voc": EVAL,
    "predict": PREDICT,
    "export": EXPORT,
    "train_det": f"{TRAIN_DET} --student-init {{student}}",
}
_START = {"train_det": f"{TRAIN_DET} --student-init {{student}}"}
_WEIGHTS = {"train_det": f"{TRAIN_DET} student.weights={{weights}}"}


def _meta(place: Place, path: str, **changes) -> None:
    place[path.split("/")[0]]
    meta = json.loads((place.tmp / path).read_text())
    place.write(path, json.dumps({key: value for key, value in (meta | changes).items() if value is not None}))


def _case(id: str, given: str, damage, message: str, path: str = "student") -> Case:
    """The tools that read *path*; damage(place, path)."""
    tools = {"student": READING | _START, "teacher": TEACHING}[path]
    return Case(id, given, tools, message, lambda place: damage(place, path))


def _weights(content: bytes, suffix: str = ".pth"):
    def prepare(place: Place) -> None:
        place.write(f"weights{suffix}", content)
        place["weights"] = place.tmp / f"weights{suffix}"

    return prepare


def _pickled_weights(place: Place) -> None:
    torch.save({"conv1.weight": Shell()}, place.tmp / "weights.pth")
    place["weights"] = place.tmp / "weights.pth"


def _other_backbone(place: Place) -> None:
    torch.save({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, place.tmp / "weights.pth")
    place["weights"] = place.tmp / "weights.pth"


MODELS = [
    Case(
        "model-missing",
        "a model that is not there",
        _LOOKING,
        "cannot read nowhere/model.json: No such file or directory; a saved model is a folder with model.json"
        " and model.safetensors",
        lambda p: p.update(student=p.tmp / "nowhere"),
    ),
    Case(
        "model-empty",
        "a folder without a model",
        _LOOKING,
        "cannot read pictures/model.json: No such file or directory; a saved model is a folder with "
        "model.json and model.safetensors",
        lambda p: p.update(student=p["pictures"]),
    ),
    Case(
        "source-missing",
        "neither a model nor detections",
        {"visualize_diff": VISUALIZE},
        "student: no folder nowhere; give one that holds a trained model (model.json, model.safetensors) or "
        "VOC result files (*_det_<split>_<class>.txt), or a COCO result file (*.json)",
        lambda p: p.update(student=p.tmp / "nowhere"),
    ),
    Case(
        "source-empty",
        "a folder with neither a model nor detections",
        {"visualize_diff": VISUALIZE},
        "student: pictures does not hold a trained model (model.json, model.safetensors) or VOC result files "
        "(*_det_<split>_<class>.txt); give a folder that does",
        lambda p: p.update(student=p["pictures"]),
    ),
    _case(
        "model-json",
        "a model.json cut off",
        lambda p, m: p.truncate(f"{m}/model.json"),
        "student/model.json: not JSON (…)",
    ),
    _case(
        "model-format",
        "a model.json of something else",
        lambda p, m: p.write(f"{m}/model.json", "[]"),
        "student/model.json: not a model description of format 1",
    ),
    Case(
        "model-task",
        "a classifier for a detector",
        {tool: line for tool, line in (READING | _START).items() if tool != "export"},
        "classifier/model.json: 'task' is 'classification', needed is a model for 'detection'",
        lambda p: p.update(student=p["classifier"]),
    ),
    _case(
        "model-architecture",
        "a model.json that names an unknown net",
        lambda p, m: _meta(p, f"{m}/model.json", architecture="fasterrcnn_resnet11_c4"),
        "student/model.json: unknown detector 'fasterrcnn_resnet11_c4' (did you mean "
        "'fasterrcnn_resnet101_c4'?); known: …",
    ),
    _case(
        "model-option",
        "a model.json with an unknown option",
        lambda p, m: _meta(p, f"{m}/model.json", options={"min_sise": 64}),
        "student/model.json: fasterrcnn_resnet10x0.125_c4 has no option 'min_sise' (did you mean "
        "'min_size'?); it has: …",
    ),
    _case(
        "model-classes",
        "a model.json that names fewer classes than the weights have",
        lambda p, m: _meta(p, f"{m}/model.json", classes=["cross", "disc"]),
        "student: model.json names 2 classes, model.safetensors has 3; the two files do not belong together",
    ),
    _case(
        "model-other",
        "weights of another net than model.json names",
        lambda p, m: _meta(p, f"{m}/model.json", architecture="fasterrcnn_resnet10x0.25_c4"),
        "student/model.safetensors: not the weights of fasterrcnn_resnet10x0.25_c4, which model.json names: …",
    ),
    _case(
        "weights-missing",
        "a model without its weights",
        lambda p, m: p.remove(f"{m}/model.safetensors"),
        "cannot read weights student/model.safetensors: No such file or directory",
    ),
    _case(
        "weights-empty",
        "an empty weights file",
        lambda p, m: p.write(f"{m}/model.safetensors", b""),
        "weights student/model.safetensors: the file is empty",
    ),
    _case(
        "weights-truncated",
        "weights cut off",
        lambda p, m: p.truncate(f"{m}/model.safetensors"),
        "weights student/model.safetensors: damaged, truncated or not plain weights (…); save a state dict of"
        " tensors with torch.save or safetensors",
    ),
    _case(
        "weights-pickle",
        "pickled code for weights",
        lambda p, m: p.write(f"{m}/model.safetensors", pickle.dumps(Shell())),
        "weights student/model.safetensors: damaged, truncated or not plain weights (…); save a state dict of"
        " tensors with torch.save or safetensors",
    ),
    _case(
        "weights-page",
        "a web page for weights",
        lambda p, m: p.write(f"{m}/model.safetensors", "<!DOCTYPE html><p>gone"),
        "weights student/model.safetensors: this is a web page, not weights; download the file itself",
    ),
    _case(
        "weights-lfs",
        "a Git LFS pointer for weights",
        lambda p, m: p.write(f"{m}/model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        "weights student/model.safetensors: this is a Git LFS pointer, not weights; run 'git lfs pull'",
    ),
    Case(
        "model-last",
        "last.pt for a model",
        {
            "eval_voc": EVAL.replace("{student}", "{run}/last.pt"),
            "predict": PREDICT.replace("{student}", "{run}/last.pt"),
            "export": EXPORT.replace("{student}", "{run}/last.pt"),
            "visualize_diff": VISUALIZE.replace("{student}", "{run}/last.pt"),
        },
        "run/last.pt is not a saved model: give the folder that holds model.safetensors, perhaps run",
    ),
    Case(
        "models-unlike",
        "models of different classes to look at",
        {"visualize_diff": VISUALIZE},
        "student student knows the classes cross, disc, star, but distilled run cross, disc, heart; compare "
        "models of the same classes",
        lambda p: _meta(p, "run/model.json", classes=["cross", "disc", "heart"]),
    ),
    Case(
        "models-compared",
        "a model of other classes to compare with",
        {"eval_voc": f"{EVAL} --compare {{run}}"},
        "--compare run knows the classes cross, disc, heart, not cross, disc, star; compare detectors of the "
        "same classes",
        lambda p: _meta(p, "run/model.json", classes=["cross", "disc", "heart"]),
    ),
]
TEACHERS = [
    _case(
        "teacher-missing",
        "a teacher that is not there",
        lambda p, m: p.update({m: p.tmp / "nowhere"}),
        "cannot read nowhere/model.json: No such file or directory; a saved model is a folder with model.json"
        " and model.safetensors",
        "teacher",
    ),
    _case(
        "teacher-truncated",
        "a teacher cut off",
        lambda p, m: p.truncate(f"{m}/model.safetensors"),
        "weights teacher/model.safetensors: damaged, truncated or not plain weights (…); save a state dict of"
        " tensors with torch.save or safetensors",
        "teacher",
    ),
    _case(
        "teacher-pickle",
        "pickled code for a teacher",
        lambda p, m: p.write(f"{m}/model.safetensors", pickle.dumps(Shell())),
        "weights teacher/model.safetensors: damaged, truncated or not plain weights (…); save a state dict of"
        " tensors with torch.save or safetensors",
        "teacher",
    ),
    _case(
        "teacher-architecture",
        "a teacher of another architecture",
        lambda p, m: p.update({m: p["student"]}),
        "checkpoint student is a fasterrcnn_resnet10x0.125_c4 but the teacher is to be a "
        "fasterrcnn_resnet10x0.25_c4; set teacher.architecture=fasterrcnn_resnet10x0.125_c4 or give another "
        "checkpoint",
        "teacher",
    ),
    _case(
        "teacher-options",
        "a teacher built with other options",
        lambda p, m: _meta(p, f"{m}/model.json", options={"min_size": 96}),
        "teacher/model.safetensors: not the weights of fasterrcnn_resnet10x0.25_c4, which model.json names: …",
        "teacher",
    ),
    Case(
        "teacher-none",
        "no teacher for a method that needs one",
        {
            "train_det": f"{TRAIN_DET} --method ktan teacher.checkpoint=null",
            "train_cls": f"{TRAIN_CLS} --method kd teacher.checkpoint=null",
            "compare": f"{COMPARE.replace('none', 'ktan')} teacher.checkpoint=null",
        },
        "method 'k…' needs a trained teacher: give --teacher CKPT (train one with --role teacher --method none)",
    ),
    Case(
        "teacher-detector",
        "a detector to teach a classifier",
        {"train_cls": f"{TRAIN_CLS} --method kd --teacher {{teacher}}"},
        "teacher/model.json: 'task' is 'detection', needed is a model for 'classification'",
    ),
    Case(
        "teacher-classifier",
        "a classifier to teach a detector",
        {"train_det": f"{TRAIN_DET} --method ktan --teacher {{classifier}}"},
        "classifier/model.json: 'task' is 'classification', needed is a model for 'detection'",
    ),
    Case(
        "student-architecture",
        "a student of another architecture to start from",
        {"train_det": f"{TRAIN_DET} --student-init {{teacher}}"},
        "checkpoint teacher is a fasterrcnn_resnet10x0.25_c4 but the student is to be a "
        "fasterrcnn_resnet10x0.125_c4; set student.architecture=fasterrcnn_resnet10x0.25_c4 or give another "
        "checkpoint",
    ),
    Case(
        "student-classes",
        "a student of other classes to start from",
        {"train_det": f"{TRAIN_DET} --student-init {{student}}"},
        "the student's checkpoint student knows the classes cross, star, disc, but the data set has cross, "
        "disc, star; train the student on this data set or give data.classes in its order",
        lambda place: _meta(place, "student/model.json", classes=["cross", "star", "disc"]),
    ),
]
WEIGHTS = [
    Case(
        "pth-missing",
        "a weights file that is not there",
        {"train_det": f"{TRAIN_DET} student.weights={{tmp}}/nowhere.pth"},
        "cannot read weights nowhere.pth: No such file or directory",
    ),
    Case(
        "pth-code",
        "a .pth that would run a command",
        _WEIGHTS,
        "weights weights.pth: no file of torch.save, or one with more than tensors, whose pickled code is "
        "never run; save a state dict of tensors with torch.save or safetensors",
        _pickled_weights,
    ),
    Case(
        "pth-raw",
        "a bare pickle that would run a command",
        _WEIGHTS,
        "weights weights.pth: no file of torch.save, or one with more than tensors, whose pickled code is "
        "never run; save a state dict of tensors with torch.save or safetensors",
        _weights(pickle.dumps(Shell())),
    ),
    Case(
        "pth-text",
        "a text file for weights",
        _WEIGHTS,
        "weights weights.pth: no file of torch.save, or one with more than tensors, whose pickled code is "
        "never run; save a state dict of tensors with torch.save or safetensors",
        _weights(b"weights"),
    ),
    Case(
        "pth-backbone",
        "weights of another backbone",
        _WEIGHTS,
        "weights.pth: these are weights of another backbone: backbone.conv1.weight is 64x3x7x7, needed is 8x3x7x7",
        _other_backbone,
    ),
]
SECTIONS = {"Trained models": MODELS, "Teachers": TEACHERS, "Files of weights": WEIGHTS}
