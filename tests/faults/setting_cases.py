"""Settings that name nothing, are out of range or do not go together; devices that are not there."""

from __future__ import annotations

import pytest
import torch
from commands import COMPARE, EVAL, PREDICT, TRAIN_CLS, TRAIN_DET, TRAINING, VISUALIZE, also
from faults import Case, Place


def _no_cuda(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _one_cuda(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def _device(name: str) -> dict[str, str]:
    return {
        "train_det": f"{TRAIN_DET} --device {name}",
        "train_cls": f"{TRAIN_CLS} --device {name}",
        "eval_voc": EVAL.replace("cpu", name),
        "visualize_diff": VISUALIZE.replace("cpu", name),
        "predict": PREDICT.replace("cpu", name),
        "compare": f"{COMPARE} train.device={name}",
    }


SETTINGS = [
    Case(
        "method-unknown",
        "an unknown method",
        {
            "train_det": f"{TRAIN_DET} --method ktam",
            "train_cls": f"{TRAIN_CLS} --method ktam",
            "compare": COMPARE.replace("none", "ktam"),
        },
        "unknown method 'ktam' (did you mean 'ktan'?); there are: …",
    ),
    Case(
        "method-twice",
        "a method added to itself",
        {"train_det": f"{TRAIN_DET} --method kd+kd"},
        "method 'kd+kd' names a method twice",
    ),
    Case(
        "method-none",
        "a sum with no method",
        {"train_det": f"{TRAIN_DET} --method kd+none"},
        "method 'kd+none': 'none' adds nothing to a sum; leave it out",
    ),
    Case(
        "method-key",
        "an unknown setting of a method",
        also(TRAINING, "methods.ktan.betta=1"),
        "unknown key 'methods.ktan.betta' (did you mean 'beta'?)",
    ),
    Case(
        "method-preset",
        "an unknown preset",
        also(TRAINING, "methods.ktan.preset=papper"),
        "unknown methods.ktan.preset 'papper' (did you mean 'paper'?); there are: default, paper",
    ),
    Case(
        "method-range",
        "a method's setting out of range",
        also(TRAINING, "methods.ktan.alpha=-1"),
        "methods.ktan.alpha is -1.0: it must be a number of at least 0",
    ),
    Case(
        "method-layer",
        "a layer that the net does not have",
        {"train_det": f"{TRAIN_DET} --method fitnet methods.fitnet.layers=[layer9]"},
        "the student's backbone has no layer 'layer9' (did you mean 'layer3'?); its stages are: conv1, bn1, "
        "relu, maxpool, layer1, layer2, layer3",
    ),
    Case(
        "method-objects",
        "a method that looks at objects, for pictures that have none",
        {"train_cls": f"{TRAIN_CLS} --method fgd"},
        "method 'fgd' needs the boxes of objects, which this student does not have; choose a method that compares maps "
        "or class scores",
    ),
    Case(
        "method-role",
        "a method to train a teacher with",
        {"train_det": f"{TRAIN_DET} --method ktan --role teacher"},
        "--role teacher trains on ground truth: use --method none, not ktan",
    ),
    Case(
        "method-budget",
        "stages that do not fit into the budget",
        {"train_det": f"{TRAIN_DET} --method ktan methods.ktan.warmup_steps=99"},
        "stage 'warmup' needs 99 updates but only 8 of the budget of 8 are left; train longer (--epochs) or "
        "shorten the method's earlier stages",
    ),
    Case(
        "train-zero",
        "no epochs",
        {
            "train_det": f"{TRAIN_DET} --epochs 0",
            "train_cls": f"{TRAIN_CLS} --epochs 0",
            "compare": f"{COMPARE} train.epochs=0",
        },
        "'train.epochs' is 0: it must be greater than 0",
    ),
    Case(
        "train-nan",
        "a learning rate that is no number",
        also(TRAINING, "train.lr_per_image=.nan"),
        "'train.lr_per_image' is nan: it must be greater than 0",
    ),
    Case(
        "train-keep",
        "no checkpoint to keep",
        {"train_det": f"{TRAIN_DET} --keep 0", "train_cls": f"{TRAIN_CLS} --keep 0"},
        "'train.keep' is 0: it must be greater than 0",
    ),
    Case(
        "train-milestones",
        "a milestone after the end",
        also(TRAINING, "train.milestones=[0.5,2]"),
        "'train.milestones' is [0.5, 2.0]: each must be a share of the budget in (0, 1]",
    ),
    Case(
        "train-accumulate",
        "a batch in uneven parts",
        also(TRAINING, "train.accumulate=3"),
        "a batch of 4 pictures cannot be shared evenly by 1 process(es) in 3 part(s) each; choose another "
        "--batch-size or train.accumulate",
    ),
    Case(
        "data-format",
        "an unknown data format",
        also(TRAINING, "data.format=vocc"),
        "unknown data.format 'vocc' (did you mean 'voc'?); there are: …",
    ),
    Case(
        "data-flip",
        "a probability above 1",
        {"train_det": f"{TRAIN_DET} data.flip=2"},
        "'data.flip' is 2.0: it must be in [0, 1]",
    ),
    Case(
        "data-val-test",
        "the test list to choose the best model by",
        also(TRAINING, "data.val=test"),
        "data.val=test and data.test=test share 6 pictures, such as test…: a model chosen by them would look "
        "better than it is; give a list of others",
    ),
    Case(
        "data-val-unknown",
        "a list to choose by that is not there",
        {"train_det": f"{TRAIN_DET} data.val=vall"},
        "voc/ImageSets/Main: no split 'vall' (did you mean 'val'?); the splits there: 'test', 'trainval', 'val'",
    ),
    Case(
        "data-classes",
        "a class list that lacks a class of the data",
        {"train_det": f"{TRAIN_DET} data.classes=[cross,disc]", "compare": f"{COMPARE} data.classes=[cross,disc]"},
        "voc/Annotations/trainval_000000.xml, line 26, object 2 ('star'): unknown class; mend the file, or "
        "list it among the classes (data.classes), which are 'cross', 'disc'",
    ),
    Case(
        "shapes-key",
        "an unknown setting of the shapes",
        {"train_det": f"{TRAIN_DET} data.format=shapes data.root={{tmp}}/shapes data.shapes.trian=3"},
        "unknown key 'data.shapes.trian' (did you mean 'train'?)",
    ),
    Case(
        "shapes-folder",
        "the shapes' config for a folder of one's own",
        {"train_det": f"{TRAIN_DET} data.format=shapes"},
        "voc: it holds no shapes, but the config asks for them (data.format=shapes): give the --config for "
        "pictures of your own, or draw the shapes into a new folder with: python tools/prepare_data.py shapes "
        "--data-root DIR",
        lambda p: p.remove("voc/shapes.json"),
    ),
    Case(
        "shapes-nowhere",
        "a mistyped folder with the shapes' config",
        {"train_det": f"{TRAIN_DET} data.format=shapes --data-root {{tmp}}/no/such"},
        "no/such: no such folder, but the config asks for them (data.format=shapes): give the --config for "
        "pictures of your own, or draw the shapes into a new folder with: python tools/prepare_data.py shapes "
        "--data-root DIR",
    ),
    Case(
        "shapes-new",
        "a folder beside one's own with the shapes' config",
        {"train_det": f"{TRAIN_DET} data.format=shapes --data-root {{tmp}}/bccd"},
        "bccd: no such folder, but the config asks for them (data.format=shapes): give the --config for "
        "pictures of your own, or draw the shapes into a new folder with: python tools/prepare_data.py shapes "
        "--data-root DIR",
    ),
    Case(
        "boxes-unknown",
        "an unknown way with boxes",
        {"train_det": f"{TRAIN_DET} data.boxes=clp"},
        "unknown data.boxes 'clp' (did you mean 'clip'?); there are: clip, refuse",
    ),
    Case(
        "exif-unknown",
        "an unknown way with EXIF",
        {"train_det": f"{TRAIN_DET} data.exif=never"},
        "unknown data.exif 'never'; there are: apply, ignore",
    ),
    Case(
        "pixels-none",
        "pictures of no pixel",
        {"train_det": f"{TRAIN_DET} data.max_pixels=0"},
        "'data.max_pixels' is 0.0: it must be 1 or more",
    ),
    Case(
        "net-unknown",
        "an unknown detector",
        {"train_det": f"{TRAIN_DET} student.architecture=fasterrcnn_resnet11_c4"},
        "unknown detector 'fasterrcnn_resnet11_c4' (did you mean 'fasterrcnn_resnet101_c4'?); known: …",
    ),
    Case(
        "net-classifier",
        "an unknown classifier",
        {"train_cls": f"{TRAIN_CLS} student.architecture=cifar_resnet9"},
        "cifar_resnet9: the depth must be 6 n + 2, as 8, 14, 20, 26, 32, 44, 56 or 110",
    ),
    Case(
        "net-option",
        "an unknown option of a net",
        {"train_det": f"{TRAIN_DET} student.options.min_sise=64"},
        "fasterrcnn_resnet10x0.125_c4 has no option 'min_sise' (did you mean 'min_size'?); it has: …",
    ),
]
DEVICES = [
    Case(
        "device-none",
        "CUDA on a machine without",
        _device("cuda"),
        "device 'cuda' was asked for but torch sees no CUDA; use --device cpu",
        patch=_no_cuda,
    ),
    Case(
        "device-number",
        "a CUDA device too many",
        _device("cuda:9"),
        "device 'cuda:9' was asked for but there are 1 CUDA devices",
        patch=_one_cuda,
    ),
    Case("device-unknown", "an unknown device", _device("gpu"), "unknown device 'gpu'; use cpu, cuda or cuda:N"),
    Case(
        "device-fp16",
        "fp16 on the CPU",
        {
            "train_det": f"{TRAIN_DET} --precision fp16",
            "train_cls": f"{TRAIN_CLS} --precision fp16",
            "compare": f"{COMPARE} train.precision=fp16",
        },
        "precision fp16 needs a CUDA device; use --precision bf16 or fp32",
    ),
]
TRAINED = [
    Case(
        "nan-loss",
        "a learning rate with which the loss becomes NaN",
        {"train_det": f"{TRAIN_DET} train.lr_per_image=1e30 train.warmup_steps=0 train.checkpoint_every=1"},
        "loss '…' became … at step … (pictures …); the last good checkpoint is kept: lower train.lr_per_image"
        " or the method's weight, or set train.clip_norm",
        leaves=("out", "out/*"),
    ),
]
SECTIONS = {"Settings": SETTINGS, "Devices": DEVICES, "While training": TRAINED}
