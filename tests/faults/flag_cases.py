"""Flags and config files that cannot be read."""

from __future__ import annotations

from commands import COMPARE, EVAL, EXPORT, PREDICT, TRAIN_CLS, TRAIN_DET, TRAINING, VISUALIZE, also
from faults import Case, Place

_OWN = {
    "train_det": TRAIN_DET.replace("{pair}", "{own}"),
    "train_cls": TRAIN_CLS.replace("{classifiers}", "{own}"),
    "compare": COMPARE.replace("{pair}", "{own}"),
}


def _config(content: str | bytes):
    def prepare(place: Place) -> None:
        place.write("own.yaml", content)
        place["own"] = place.tmp / "own.yaml"

    return prepare


FLAGS = [
    Case(
        "flag-unknown",
        "an unknown flag",
        also(
            {**TRAINING, "eval_voc": EVAL, "visualize_diff": VISUALIZE, "predict": PREDICT, "export": EXPORT},
            "--speed 3",
        ),
        "unrecognized arguments: --speed… (see --help)",
    ),
    Case(
        "flag-number",
        "a word for a number",
        {"train_det": f"{TRAIN_DET} --epochs many", "train_cls": f"{TRAIN_CLS} --epochs many"},
        "argument --epochs: invalid int value: 'many' (see --help)",
    ),
    Case(
        "flag-choice",
        "a word that is none of the choices",
        {"train_det": f"{TRAIN_DET} --precision fp8", "train_cls": f"{TRAIN_CLS} --precision fp8"},
        "argument --precision: invalid choice: 'fp8' (…) (see --help)",
    ),
    Case(
        "flag-required-eval",
        "nothing to score",
        {"eval_voc": "--data-root {voc}"},
        "one of the arguments --checkpoint --detections is required (see --help)",
    ),
    Case(
        "flag-required-root",
        "no data to score on",
        {"eval_voc": "--checkpoint {student}"},
        "the following arguments are required: --data-root (see --help)",
    ),
    Case(
        "flag-required-visualize",
        "nothing to compare",
        {"visualize_diff": "--student {student}"},
        "the following arguments are required: --distilled (see --help)",
    ),
    Case(
        "flag-required-predict",
        "no pictures",
        {"predict": "--checkpoint {student} --output {out}"},
        "the following arguments are required: PICTURE|FOLDER (see --help)",
    ),
    Case(
        "flag-required-export",
        "no folder to export to",
        {"export": "--checkpoint {student}"},
        "the following arguments are required: --output (see --help)",
    ),
    Case(
        "flag-required-compare",
        "no methods to compare",
        {"compare": "--output {out}"},
        "the following arguments are required: --methods (see --help)",
    ),
    Case(
        "flag-both",
        "two sources of detections",
        {"eval_voc": f"{EVAL} --detections {{results}}"},
        "argument --detections: not allowed with argument --checkpoint (see --help)",
    ),
    Case(
        "flag-batch",
        "a batch of no picture",
        {"eval_voc": f"{EVAL} --batch-size 0"},
        "--batch-size must be 1 or more and --workers 0 or more",
    ),
    Case(
        "flag-resamples",
        "fewer than no resamples",
        {"eval_voc": EVAL.replace("--bootstrap 0", "--bootstrap -1")},
        "--bootstrap and --seed must be 0 or more",
    ),
    Case(
        "flag-classes",
        "classes for a model that knows its own",
        {"eval_voc": f"{EVAL} --classes cross,disc,star"},
        "--classes is for --detections: a checkpoint knows its own",
    ),
    Case(
        "flag-json",
        "a JSON file in a folder that is not there",
        {"eval_voc": f"{EVAL} --json {{tmp}}/no/scores.json"},
        "--json no/scores.json: there is no folder no",
    ),
    Case(
        "flag-coco",
        "ids of a COCO file without a COCO file",
        {"eval_voc": f"{EVAL} --coco-annotations {{coco}}"},
        "--coco-annotations says what the ids of COCO result files (*.json) mean, but none is given",
    ),
    Case(
        "flag-score",
        "a score that is no number",
        {"predict": f"{PREDICT} --score nan"},
        "--score is nan; give a number, such as 0.5",
    ),
    Case(
        "flag-seeds",
        "seeds that are no numbers",
        {"compare": COMPARE.replace("--seeds 0", "--seeds 0,x")},
        "--seeds '0,x' is not a comma-separated list of whole numbers",
    ),
    Case(
        "flag-teacher-role",
        "a teacher for a teacher",
        {"train_det": f"{TRAIN_DET} --role teacher --teacher {{teacher}}"},
        "--teacher is for students; a teacher starts from a checkpoint with --student-init CKPT",
    ),
    Case(
        "flag-pictures",
        "fewer than no pictures to draw",
        {"visualize_diff": f"{VISUALIZE} --pictures -1"},
        "the number of pictures is -1; give 1 or more",
    ),
    Case(
        "flag-images",
        "a picture to draw that is not there",
        {"visualize_diff": f"{VISUALIZE} --images test_000001,test_0000002"},
        "no picture 'test_0000002' among the 6 of the split (did you mean 'test_000002'?)",
    ),
    Case(
        "flag-class",
        "a class to draw that is not there",
        {"visualize_diff": f"{VISUALIZE} --class stat"},
        "no class 'stat' (did you mean 'star'?); the classes are cross, disc, star",
    ),
]
CONFIGS = [
    Case(
        "config-missing",
        "a config file that is not there",
        _OWN,
        "config file nowhere.yaml: No such file or directory",
        lambda p: p.update(own=p.tmp / "nowhere.yaml"),
    ),
    Case(
        "config-binary",
        "a config file that is no text",
        _OWN,
        "config file own.yaml: not a text file",
        _config(b"\xff\xfe\x00"),
    ),
    Case(
        "config-yaml",
        "a config file that is no YAML",
        _OWN,
        "config file own.yaml, line 3: …",
        _config("data:\n  root: [1, 2\n"),
    ),
    Case(
        "config-list",
        "a config file without keys",
        _OWN,
        "config file own.yaml: expected 'key: value' lines, found a list",
        _config("- data\n- train\n"),
    ),
    Case(
        "config-twice",
        "a key given twice",
        _OWN,
        "config file own.yaml, line 2: key 'train' is given twice",
        _config("train: {epochs: 3}\ntrain: {seed: 1}\n"),
    ),
    Case(
        "config-key",
        "an unknown key",
        _OWN,
        "config file own.yaml: unknown key 'train.epoch' (did you mean 'epochs'?)",
        _config("train: {epoch: 3}\n"),
    ),
    Case(
        "config-type",
        "a value of the wrong type",
        _OWN,
        "config file own.yaml: 'train.epochs' is 'many': it must be a whole number",
        _config("train: {epochs: many}\n"),
    ),
    Case(
        "config-reference",
        "a reference that leads nowhere",
        _OWN,
        "config file own.yaml: …",
        _config("data: {root: '${here}'}\n"),
    ),
    Case(
        "override-key",
        "an unknown key in an override",
        also(TRAINING, "train.epoch=3"),
        "override: unknown key 'train.epoch' (did you mean 'epochs'?)",
    ),
    Case(
        "override-none",
        "a word that is no override",
        also(TRAINING, "epochs"),
        "'epochs' is not an override; write section.key=value",
    ),
    Case(
        "override-yaml",
        "an override whose value is no YAML",
        also(TRAINING, "train.epochs=[1"),
        "override 'train.epochs=[1': the value is not YAML",
    ),
    Case(
        "task-cls",
        "photos for train_det.py",
        {"train_det": "--config {classifiers} --output {out}"},
        "data.format=folder is for classification: use python tools/train_cls.py, or another --config",
    ),
    Case(
        "task-det",
        "detection data for train_cls.py",
        {"train_cls": "--config {pair} --output {out}"},
        "data.format=voc is for detection: use python tools/train_det.py, or another --config",
    ),
]
SECTIONS = {"Flags": FLAGS, "Config files and overrides": CONFIGS}
