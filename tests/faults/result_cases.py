"""Detections, pictures to predict, and runs to compare."""

from __future__ import annotations

import json

from commands import COMPARE, EVAL, PREDICT, SHORT, VISUALIZE
from faults import Case, Place, picture
from folder_cases import collected

_OF_TWO = ("JPEGImages/test_000002.jpg", "Annotations/test_000002.xml")
_FILE = "results/comp4_det_test_disc.txt"
_VOC = {
    "eval_voc": EVAL.replace("--checkpoint {student}", "--detections {results} --classes cross,disc,star"),
    "visualize_diff": VISUALIZE.replace("{student}", "{results}"),
}
_COCO = {
    "eval_voc": EVAL.replace("--checkpoint {student}", "--detections {coco} --classes cross,disc,star"),
    "visualize_diff": VISUALIZE.replace("{student}", "{coco}"),
}
_IDS = {
    "eval_voc": f"{_COCO['eval_voc']} --coco-annotations {{ids}}",
    "visualize_diff": f"{_COCO['visualize_diff']} --coco-annotations {{ids}}",
}


def _line(text: str):
    def add(place: Place) -> None:
        place["results"]
        place.write(_FILE, f"test_000000 0.5 1 2 3 4\n{text}\n")

    return add


def _entry(**changes):
    """The second entry of the COCO file with *changes*; None takes the key away."""

    def change(place: Place) -> None:
        entries = json.loads(place["coco"].read_text())
        entries[1] = {key: value for key, value in (entries[1] | changes).items() if value is not None}
        place.write("coco.json", json.dumps(entries))

    return change


def _ids(content) -> object:
    def prepare(place: Place) -> None:
        place.write("ids.json", json.dumps(content))
        place["ids"] = place.tmp / "ids.json"

    return prepare


VOC_RESULTS = [
    Case(
        "results-missing",
        "a folder of detections that is not there",
        {"eval_voc": _VOC["eval_voc"]},
        "no folder nowhere; give the one that holds the result files '*_det_<split>_<class>.txt'",
        lambda p: p.update(results=p.tmp / "nowhere"),
    ),
    Case(
        "results-none",
        "a folder without detections",
        {"eval_voc": _VOC["eval_voc"]},
        "no result file '*_det_<split>_<class>.txt' in pictures; they are named as comp4_det_test_car.txt is",
        lambda p: p.update(results=p["pictures"]),
    ),
    Case(
        "results-fields",
        "a line with too few fields",
        _VOC,
        "results/comp4_det_test_disc.txt, line 2: 5 fields; expected 'image score x1 y1 x2 y2'",
        _line("test_000001 0.5 1 2 3"),
    ),
    Case(
        "results-word",
        "a word for a number",
        _VOC,
        "results/comp4_det_test_disc.txt, line 2: 'test_000001 high 1 2 3 4' holds a word for a number; "
        "expected 'image score x1 y1 x2 y2'",
        _line("test_000001 high 1 2 3 4"),
    ),
    Case(
        "results-infinite",
        "a number that is infinite",
        _VOC,
        "results/comp4_det_test_disc.txt, line 2: 'test_000001 0.5 1 2 inf 4' holds a number not finite; "
        "expected 'image score x1 y1 x2 y2'",
        _line("test_000001 0.5 1 2 inf 4"),
    ),
    Case(
        "results-binary",
        "a result file that is no text",
        _VOC,
        "results/comp4_det_test_disc.txt is not a text file (UTF-8); expected 'image score x1 y1 x2 y2' in every line",
        lambda p: p.write(_FILE, b"\xff\xfe\x00"),
    ),
    Case(
        "results-picture",
        "detections on a picture that is not in the split",
        _VOC,
        "results/comp4_det_test_disc.txt, line 2: picture 'test_00001' is not among the 6 of the split (did you mean "
        "'test_000001'?)",
        _line("test_00001 0.5 1 2 3 4"),
    ),
    Case(
        "results-class",
        "detections of an unknown class",
        _VOC,
        "results/comp4_det_test_disk.txt: class 'disk' is not among the classes cross, disc, star (did you "
        "mean 'disc'?); rename the file or take it away",
        lambda p: (p["results"] / "comp4_det_test_disc.txt").rename(p["results"] / "comp4_det_test_disk.txt"),
    ),
    Case(
        "results-blank",
        "pictures with blanks in their names, to be saved as VOC files",
        {"eval_voc": f"{EVAL} --save-detections {{out}}"},
        "picture 'test 2': a VOC result file needs an id without white space; rename it, or write a COCO result file "
        "(*.json)",
        lambda p: (
            p.replace("voc/ImageSets/Main/test.txt", "test_000002", "test 2"),
            *[(p["voc"] / f).rename(p["voc"] / f.replace("_00000", " ")) for f in _OF_TWO],
        ),
    ),
    Case(
        "results-slash",
        "a class with a slash, to be saved as a VOC file",
        {"eval_voc": _VOC["eval_voc"].replace("star", "star,and/or") + " --save-detections {out}"},
        "class 'and/or': no VOC result file can be named by it; write a COCO result file (*.json), or rename the class",
    ),
    Case(
        "results-iou",
        "an overlap of more than all",
        {"eval_voc": f"{_VOC['eval_voc']} --iou 50"},
        "--iou is 50.0; give a number above 0 and at most 1",
    ),
    Case(
        "results-twice",
        "two files of one class",
        _VOC,
        "results/comp3_det_test_disc.txt and results/comp4_det_test_disc.txt both hold class 'disc'; keep "
        "one, or give the split",
        lambda p: p.write("results/comp3_det_test_disc.txt", ""),
    ),
]
COCO_RESULTS = [
    Case(
        "coco-missing",
        "a COCO file that is not there",
        {"eval_voc": _COCO["eval_voc"]},
        "cannot read nowhere.json: No such file or directory",
        lambda p: p.update(coco=p.tmp / "nowhere.json"),
    ),
    Case(
        "coco-json",
        "a COCO file that is no JSON",
        _COCO,
        "coco.json, line 67, column 4 is not JSON: …",
        lambda p: p.truncate("coco.json"),
    ),
    Case(
        "coco-binary",
        "a COCO file that is no text",
        _COCO,
        "coco.json is not JSON: it is no text (UTF-8)",
        lambda p: p.write("coco.json", b"\xff\xfe\x00"),
    ),
    Case(
        "coco-object",
        "a COCO data set for its results",
        _COCO,
        'coco.json is a COCO data set without scores, and no results, which are a list [{"image_id": …, "category_id": '
        '…, "bbox": [x, y, width, height], "score": …}, …]',
        lambda p: p.write("coco.json", '{"images": []}'),
    ),
    Case(
        "coco-number",
        "a COCO file of something else",
        _COCO,
        'coco.json holds a number, but results are a list [{"image_id": …, "category_id": …, "bbox": [x, y, '
        'width, height], "score": …}, …]',
        lambda p: p.write("coco.json", "3"),
    ),
    Case(
        "coco-key",
        "a detection without a score",
        _COCO,
        'coco.json, entry 1 (the first is 0): it lacks \'score\'; expected [{"image_id": …, "category_id": …, '
        '"bbox": [x, y, width, height], "score": …}, …]',
        _entry(score=None),
    ),
    Case(
        "coco-box",
        "a box of three numbers",
        _COCO,
        "coco.json, entry 1 (the first is 0): bbox [1, 2, 3] is not of four finite numbers x, y, width, height",
        _entry(bbox=[1, 2, 3]),
    ),
    Case(
        "coco-negative",
        "a box of negative width",
        _COCO,
        "coco.json, entry 1 (the first is 0): bbox [1, 2, -3, 4] has a negative width or height; expected x, "
        "y, width, height",
        _entry(bbox=[1, 2, -3, 4]),
    ),
    Case(
        "coco-score",
        "a score that is no number",
        _COCO,
        "coco.json, entry 1 (the first is 0): score NaN is not a finite number",
        _entry(score=float("nan")),
    ),
    Case(
        "coco-id",
        "an image_id that is no id",
        _COCO,
        "coco.json, entry 1 (the first is 0): image_id [1] is neither a whole number nor a name",
        _entry(image_id=[1]),
    ),
    Case(
        "coco-picture",
        "a picture that is not in the split",
        _COCO,
        "coco.json, entry 1 (the first is 0): picture 'test_00001' is not among the 6 of the split (did you "
        "mean 'test_000001'?)",
        _entry(image_id="test_00001"),
    ),
    Case(
        "coco-category",
        "a category_id out of range",
        _COCO,
        "coco.json, entry 1 (the first is 0): category_id 4 is no number from 1 (cross) to 3 (star); give the"
        " JSON of the data set whose ids these are (--coco-annotations)",
        _entry(category_id=4),
    ),
    Case(
        "coco-name",
        "an unknown category_name",
        _COCO,
        "coco.json, entry 1 (the first is 0): class 'disk' is not among 'cross', 'disc', 'star' (did you mean 'disc'?)",
        _entry(category_name="disk"),
    ),
    Case(
        "ids-none",
        "ids of something else than a COCO data set",
        _IDS,
        "ids.json is no COCO data set; it must hold lists 'images' and 'categories'",
        _ids([1]),
    ),
    Case(
        "ids-item",
        "a COCO data set with an image without name",
        _IDS,
        "ids.json: 'images', item 0 (the first is 0), lacks 'id' or 'file_name'",
        _ids({"images": [{"id": 1}], "categories": []}),
    ),
    Case(
        "ids-picture",
        "ids that the COCO data set does not have",
        _IDS,
        "coco.json, entry 0 (the first is 0): category_id 2 is not among the 'categories' of ids.json",
        _ids({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}),
    ),
]
PREDICTED = [
    Case(
        "predict-missing",
        "a picture that is not there",
        {"predict": PREDICT.replace("{pictures}", "{tmp}/no.jpg")},
        "no.jpg: no such picture or folder",
    ),
    Case(
        "predict-empty",
        "a folder without pictures",
        {"predict": PREDICT.replace("{pictures}", "{results}")},
        "results: the folder holds no picture, by the suffix",
    ),
    Case(
        "predict-strips",
        "nothing but strips (each is warned of)",
        {"predict": PREDICT},
        "none of the 2 files could be read as a picture; see the warnings",
        lambda p: [p.write(f"pictures/{name}", picture("RGB", (500, 1))) for name in ("a.png", "b.jpg")],
        leaves=("out",),
    ),
    Case(
        "predict-none",
        "files none of which is a picture (each is warned of)",
        {"predict": PREDICT},
        "none of the 2 files could be read as a picture; see the warnings",
        lambda p: (p.write("pictures/a.png", "x"), p.truncate("pictures/b.jpg", 0.3)),
        leaves=("out",),
    ),
]


_COLLECT = {"compare": f"{COMPARE} --collect {SHORT}"}
COMPARED = [
    Case(
        "visualize-root",
        "a model from nowhere, and no data root",
        {"visualize_diff": "--student {student} --distilled {teacher} --quiet"},
        "teacher holds no config.yaml that would name the data set; give --data-root DIR",
    ),
    Case(
        "visualize-log",
        "a damaged log",
        {"visualize_diff": VISUALIZE},
        "run/log.jsonl, line 2: expected a JSON object with a 'step'; mend or remove the line",
        lambda p: p.write("run/log.jsonl", '{"step": 1}\n[1]\n{"step": 3}\n'),
        leaves=("out",),
    ),
    Case(
        "compare-nothing",
        "nothing to collect",
        {"compare": f"{COMPARE} --collect"},
        "no finished run of none below out; leave out --collect to train them",
    ),
    Case(
        "compare-settings",
        "a run that was made with other settings",
        {"compare": f"{COMPARE} --collect train.seed=0 train.epochs=9"},
        "out/pair-none-s0 holds a run with other settings (train); choose another --output or remove it",
        collected,
    ),
    Case(
        "compare-metrics",
        "a finished run whose scores are damaged",
        _COLLECT,
        "out/pair-none-s0/metrics.json, line … is not JSON: …",
        lambda p: (collected(p), p.truncate("out/pair-none-s0/metrics.json")),
    ),
    Case(
        "compare-keys",
        "a finished run that lacks its scores",
        _COLLECT,
        "out/pair-none-s0/metrics.json holds no number under 'map_voc07'; remove the file, and the run will "
        "be scored anew",
        lambda p: (collected(p), p.write("out/pair-none-s0/metrics.json", "{}")),
    ),
    Case(
        "compare-checkpoint",
        "a stopped run whose checkpoint is damaged",
        {
            "compare": f"{COMPARE} {SHORT}",
        },
        "checkpoint out/pair-none-s0/last.pt is damaged or not a checkpoint; resume from another checkpoint of the "
        "run, or start it anew",
        lambda p: (collected(p), p.remove("out/pair-none-s0/metrics.json"), p.truncate("out/pair-none-s0/last.pt")),
    ),
]
SECTIONS = {
    "VOC result files": VOC_RESULTS,
    "COCO result files": COCO_RESULTS,
    "Pictures to predict": PREDICTED,
    "Comparisons": COMPARED,
}
