"""eval_voc.py: intervals, and the comparison of two detectors; the tables it prints."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from detkt.cli.shared import own_reading, run_tool
from detkt.data.voc import VOCDetection
from detkt.evaluation.bootstrap import bootstrap_difference, bootstrap_map
from detkt.evaluation.detector import score
from detkt.evaluation.table import comparison_table, intervals_table, metrics_table
from detkt.evaluation.voc_results import read_results, write_results
from detkt.models import load_model, save_model

CLASSES = ["cross", "disc", "star"]
MEANS = ("map_voc07", "map_area", "map_coco")


@pytest.fixture(scope="module")
def dataset(voc_folder):
    return VOCDetection(voc_folder, "test", classes=CLASSES)


@pytest.fixture(scope="module")
def results(dataset, tmp_path_factory):
    """Folders of VOC result files: objects found twice, moved by a normal error ("good": of 2 pixels, "bad": of 6)."""
    root = tmp_path_factory.mktemp("results")
    for name, error in (("good", 2.0), ("bad", 6.0)):
        rng = np.random.default_rng(7)
        detections = {}
        for picture, record in dataset.annotations().items():
            boxes = np.repeat(record["boxes"], 2, axis=0)
            detections[picture] = {
                "boxes": boxes + rng.normal(0, error, boxes.shape),
                "scores": rng.random(len(boxes)),
                "labels": np.repeat(record["labels"], 2),
            }
        write_results(root / name, detections, CLASSES)
    return root


@pytest.fixture
def evaluate(tool, voc_folder, tmp_path, capsys):
    """``evaluate(*flags)``: exit status, standard output, error, and what was written as JSON (None: nothing)."""

    def call(*flags):
        path = tmp_path / "scores.json"
        path.unlink(missing_ok=True)
        common = ["--data-root", voc_folder, "--quiet", "--device", "cpu", "--json", path]
        status = 0
        try:
            run_tool(lambda _: tool("eval_voc").main([str(flag) for flag in [*common, *flags]]))
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr(), json.loads(path.read_text()) if path.exists() else None

    return call


def test_intervals_are_printed_and_written(evaluate, results, dataset):
    status, out, error, numbers = evaluate("--detections", results / "good", "--bootstrap", 150, "--seed", 3)
    assert (status, error) == (0, "")
    annotations = dataset.annotations()
    intervals = bootstrap_map(read_results(results / "good"), annotations, classes=CLASSES, resamples=150, seed=3)
    section = numbers["bootstrap"]
    assert {key: section[key] for key in ("pictures", "resamples", "confidence", "seed")} == {
        "pictures": 6,
        "resamples": 150,
        "confidence": 0.95,
        "seed": 3,
    }
    for key in MEANS[:2]:
        assert section[key] == intervals[key].numbers()
        assert section[key]["value"] == numbers[key]
        assert section[key]["low"] < numbers[key] < section[key]["high"]
    assert "compare" not in numbers
    assert out == f"{metrics_table(numbers)}\n\n{intervals_table(numbers)}\n"
    names = [line[:10].strip() for line in out.splitlines()]
    assert names[:10] == [
        "class",
        *CLASSES,
        "mean",
        "COCO AP50",
        "COCO AP75",
        "COCO small",
        "COCO mediu",
        "COCO large",
    ]
    assert names[-1] == "this"


def test_without_bootstrap_there_are_no_intervals(evaluate, results):
    _, out, _, numbers = evaluate("--detections", results / "good", "--bootstrap", 0)
    assert "bootstrap" not in numbers
    assert out == metrics_table(numbers) + "\n"


def test_a_thousand_resamples_are_the_default(evaluate, results):
    assert evaluate("--detections", results / "good")[3]["bootstrap"]["resamples"] == 1000


def test_two_detectors_are_compared(evaluate, results, dataset):
    good, bad = results / "good", results / "bad"
    status, out, error, numbers = evaluate("--detections", good, "--compare", bad, "--bootstrap", 150)
    assert (status, error) == (0, "")
    annotations, other = dataset.annotations(), numbers["compare"]
    first, second = read_results(good), read_results(bad)
    theirs = score(second, annotations, CLASSES)
    assert numbers["map_voc07"] > theirs["map_voc07"], "the comparison is about something"
    assert {key: other[key] for key in MEANS} == {key: theirs[key] for key in MEANS}
    assert other["other"] == str(bad)
    assert other["per_class"] == theirs["per_class"]
    pairs = bootstrap_difference(first, second, annotations, classes=CLASSES, resamples=150)
    for key in MEANS[:2]:
        assert numbers["bootstrap"][key] == pairs[key].first.numbers()
        assert other["bootstrap"][key] == pairs[key].second.numbers()
        assert other["difference"][key] == pairs[key].numbers()
        assert other["difference"][key]["value"] == numbers[key] - other[key]
    assert other["difference"]["map_coco"] == {"value": numbers["map_coco"] - other["map_coco"]}
    head = f"this:  {good}\nother: {bad}\n\n"
    assert out == head + f"{comparison_table(numbers, other)}\n\n{intervals_table(numbers)}\n"

    _, out, _, plain = evaluate("--detections", good, "--compare", bad, "--bootstrap", 0)
    assert out == head + comparison_table(numbers, other) + "\n"
    assert "bootstrap" not in plain and "bootstrap" not in plain["compare"]
    assert plain["compare"]["difference"] == {key: {"value": numbers[key] - other[key]} for key in MEANS}


def test_a_detector_compared_with_itself_differs_by_nothing(evaluate, results):
    _, out, _, numbers = evaluate("--detections", results / "bad", "--compare", results / "bad", "--bootstrap", 20)
    for key in MEANS[:2]:
        assert [numbers["compare"]["difference"][key][name] for name in ("value", "low", "high")] == [0, 0, 0]
    assert out.splitlines()[-2:] == [
        "difference    +0.0 [  +0.0,   +0.0]    +0.0 [  +0.0,   +0.0]",
        "not above the other in 100.0 % (VOC07) and 100.0 % (area) of the resamples",
    ]


def test_models_are_compared_whatever_the_order_of_their_classes(evaluate, results, tiny_student, tmp_path):
    """Renaming the outputs of a model is another detector, which here has its classes in another order, too."""
    model, _ = load_model(tiny_student)
    save_model(model, tmp_path / "turned", ["star", "cross", "disc"])
    flags = ["--compare", tmp_path / "turned", "--bootstrap", 0]
    _, _, _, numbers = evaluate("--detections", results / "good", *flags)
    _, _, _, alone = evaluate("--checkpoint", tmp_path / "turned", "--bootstrap", 0)
    assert {key: numbers["compare"][key] for key in MEANS} == {key: alone[key] for key in MEANS}
    _, _, _, both = evaluate("--checkpoint", tiny_student, *flags)
    assert both["compare"]["per_class"] == alone["per_class"]
    assert set(both["per_class"]) == set(CLASSES) and both["checkpoint"] == str(tiny_student)


# --- files of detections


@pytest.fixture(scope="module")
def bare_folder(voc_folder, tmp_path_factory):
    """The data set without a single picture."""
    root = tmp_path_factory.mktemp("bare")
    for part in ("Annotations", "ImageSets"):
        shutil.copytree(voc_folder / part, root / part)
    (root / "JPEGImages").mkdir()
    return root


def numbers_of(section):
    return {key: section[key] for key in (*MEANS, "coco", "per_class")}


def test_detections_go_through_coco_files_and_score_the_same(evaluate, results, tmp_path):
    """Folder -> COCO file -> folder -> COCO file with another data set's ids: the numbers stay, to the last bit."""
    flags = ["--bootstrap", 0]
    status, _, _, first = evaluate("--detections", results / "bad", "--save-detections", tmp_path / "a.json", *flags)
    assert status == 0 and first["map_voc07"] > 0.2
    _, _, _, second = evaluate("--detections", tmp_path / "a.json", "--save-detections", tmp_path / "b", *flags)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {f"comp4_det_test_{name}.txt" for name in CLASSES}
    names = sorted({entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())})
    dataset = {
        "images": [{"id": 100 - k, "file_name": f"JPEGImages/{name}.jpg"} for k, name in enumerate(names)],
        "categories": [{"id": 9 - k, "name": name} for k, name in enumerate(CLASSES)],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    ids = ["--coco-annotations", tmp_path / "dataset.json"]
    _, _, _, third = evaluate("--detections", tmp_path / "b", "--save-detections", tmp_path / "c.json", *ids, *flags)
    entries = json.loads((tmp_path / "c.json").read_text())
    assert {entry["category_id"] for entry in entries} == {7, 8, 9}
    assert {entry["image_id"] for entry in entries} == {100 - k for k in range(len(names))}
    _, _, _, fourth = evaluate("--detections", tmp_path / "c.json", *ids, *flags)
    assert numbers_of(first) == numbers_of(second) == numbers_of(third) == numbers_of(fourth)
    # A data set's ids without that data set are somebody else's.
    status, _, error, _ = evaluate("--detections", tmp_path / "c.json", *flags)
    assert status == 2 and error.count("\n") == 1
    assert "c.json, entry 0 (the first is 0): image_id 100 is the number of no picture" in error


def test_a_detector_is_saved_as_a_coco_file(evaluate, tiny_student, tmp_path):
    flags = ["--save-detections", tmp_path / "new" / "found.json", "--bootstrap", 0]
    _, _, _, direct = evaluate("--checkpoint", tiny_student, *flags)
    _, _, _, again = evaluate("--detections", tmp_path / "new" / "found.json", "--bootstrap", 0)
    assert len(json.loads((tmp_path / "new" / "found.json").read_text())) > 10
    assert numbers_of(again) == numbers_of(direct)


def test_files_are_compared_without_pictures(evaluate, results, bare_folder, tiny_student, tmp_path):
    evaluate("--detections", results / "bad", "--save-detections", tmp_path / "bad.json", "--bootstrap", 0)
    _, _, _, expected = evaluate("--detections", results / "good", "--compare", results / "bad", "--bootstrap", 20)
    flags = ["--data-root", bare_folder, "--bootstrap", 20]
    for first, second in (("good", results / "bad"), ("good", tmp_path / "bad.json")):
        status, _, error, numbers = evaluate("--detections", results / first, "--compare", second, *flags)
        assert (status, error) == (0, "")
        assert numbers_of(numbers) == numbers_of(expected)
        assert numbers["compare"]["difference"] == expected["compare"]["difference"]
    # A detector has to look at the pictures, as --compare or by itself.
    for source in (["--detections", results / "good", "--compare", tiny_student], ["--checkpoint", tiny_student]):
        status, _, error, _ = evaluate(*source, *flags)
        assert status == 2 and "no picture JPEGImages/" in error


def test_category_ids_follow_the_classes_given(evaluate, dataset, tmp_path):
    """A detector that finds every object, by numbers of a list of classes in an order of its own."""
    order = ["star", "cross", "disc"]
    entries = [
        {"image_id": picture, "category_id": order.index(name) + 1, "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]}
        for picture, record in dataset.annotations().items()
        for (x1, y1, x2, y2), name in zip(record["boxes"].tolist(), record["labels"], strict=True)
    ]
    (tmp_path / "all.json").write_text(json.dumps([entry | {"score": 1} for entry in entries]))
    flags = ["--detections", tmp_path / "all.json", "--bootstrap", 0]
    _, _, _, numbers = evaluate(*flags, "--classes", ",".join(order))
    assert list(numbers["per_class"]) == order and numbers["map_voc07"] == numbers["map_coco"] == 1
    assert evaluate(*flags)[3]["map_voc07"] < 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--coco-annotations {folder}/x.json", "--coco-annotations says what the ids of COCO result files (*.json)"),
        ("--compare {folder}/no.json", "--compare: no file {folder}/no.json"),
        ("--compare {folder}/dataset.json", "{folder}/dataset.json is a COCO data set without scores"),
        ("--save-detections {folder}/dataset.json/x", "{folder}/dataset.json is a file; choose another --save-detect"),
        ("--save-detections {folder}/dataset.json/x.json", "is a file; choose another --save-detections"),
        ("--save-detections {folder}/x.json --coco-annotations {folder}/no.json", "cannot read {folder}/no.json"),
        ("--save-detections {folder}/x.json --coco-annotations {folder}/dataset.json", "is not among the 'images' of"),
        ("--classes cross,disc", "unknown class; mend the file, or list it among the classes (data.classes)"),
    ],
)
def test_what_is_wrong_with_files_is_told(evaluate, results, tmp_path, flags, message):
    (tmp_path / "dataset.json").write_text('{"images": [], "categories": []}')
    flags = flags.format(folder=tmp_path).split()
    status, out, error, numbers = evaluate("--detections", results / "good", "--bootstrap", 0, *flags)
    assert (status, out, numbers) == (2, "", None)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(folder=tmp_path) in error


def test_a_checkpoint_has_its_own_classes(evaluate, tiny_student):
    status, _, error, _ = evaluate("--checkpoint", tiny_student, "--classes", "a,b")
    assert (status, error) == (2, "error: --classes is for --detections: a checkpoint knows its own\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bootstrap -1", "--bootstrap and --seed must be 0 or more"),
        ("--seed -1", "--bootstrap and --seed must be 0 or more"),
        ("--bootstrap many", "invalid int value: 'many'"),
        ("--compare {results}/no", "--compare: no folder {results}/no"),
        ("--compare {results}", "--compare: {results} does not hold a trained model"),
    ],
)
def test_what_does_not_fit_is_refused(evaluate, results, flags, message):
    flags, message = flags.format(results=results).split(), message.format(results=results)
    status, out, error, numbers = evaluate("--detections", results / "good", *flags)
    assert (status, out, numbers) == (2, "", None)
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_model_of_other_classes_is_refused(evaluate, results, tiny_student, tmp_path):
    model, _ = load_model(tiny_student)
    save_model(model, tmp_path / "other", ["cross", "disc", "ring"])
    status, out, error, _ = evaluate("--detections", results / "good", "--compare", tmp_path / "other")
    assert (status, out) == (2, "")
    assert "other knows the classes cross, disc, ring, not cross, disc, star; compare detectors of the same" in error


# --- tables

FULL = {
    "per_class": {
        "cat": {"voc07": 0.5, "area": 0.123, "coco": 1.0},
        "aeroplane": {"voc07": math.nan, "area": None, "coco": 0.0},
    },
    "map_voc07": 0.5,
    "map_area": 0.1234,
    "map_coco": 0.99951,
    "coco": {"ap50": 0.75, "ap75": 0.5, "small": None, "medium": math.nan, "large": 1.0},
}
OTHER = {
    "per_class": {
        "cat": {"voc07": 0.25, "area": 0.2, "coco": 0.0},
        "aeroplane": {"voc07": math.nan, "area": None, "coco": 0.0},
    },
    "map_voc07": 0.25,
    "map_area": 0.2,
    "map_coco": 0.9,
    "coco": {"ap50": 0.75, "ap75": 0.25, "small": None, "medium": math.nan, "large": 0.0},
}


def test_sizes_stand_below_the_mean():
    assert metrics_table(FULL).splitlines() == [
        "class        VOC07   area   COCO",
        "cat           50.0   12.3  100.0",
        "aeroplane        -      -    0.0",
        "mean          50.0   12.3  100.0",
        "COCO AP50                   75.0",
        "COCO AP75                   50.0",
        "COCO small                     -",
        "COCO medium                    -",
        "COCO large                 100.0",
    ]


def test_classes_stand_side_by_side():
    assert comparison_table(FULL, OTHER).splitlines() == [
        "                     VOC07                   area                   COCO",
        "class          this  other    diff    this  other    diff    this  other    diff",
        "cat            50.0   25.0   +25.0    12.3   20.0    -7.7   100.0    0.0  +100.0",
        "aeroplane         -      -       -       -      -       -     0.0    0.0    +0.0",
        "mean           50.0   25.0   +25.0    12.3   20.0    -7.7   100.0   90.0   +10.0",
        "COCO AP50                                                    75.0   75.0    +0.0",
        "COCO AP75                                                    50.0   25.0   +25.0",
        "COCO small                                                      -      -       -",
        "COCO medium                                                     -      -       -",
        "COCO large                                                  100.0    0.0  +100.0",
    ]


def test_intervals_stand_in_rows():
    def ends(value, low, high):
        return {"value": value, "low": low, "high": high}

    about = {"pictures": 60, "resamples": 1000, "confidence": 0.95, "seed": 0}
    ours = {"map_voc07": ends(0.5, 0.4, 0.6), "map_area": ends(None, math.nan, None)}
    metrics = {"bootstrap": about | ours}
    lines = [
        "mAP and its 95 % interval: 1000 resamples of the 60 pictures",
        "                    VOC07                    area",
        "this          50.0 [  40.0,   60.0]       - [     -,      -]",
    ]
    assert intervals_table(metrics).splitlines() == lines
    difference = {
        "map_voc07": ends(0.25, -0.01, 0.4) | {"share_at_most_zero": 0.031, "two_sided_share": 0.062},
        "map_area": ends(None, None, None) | {"share_at_most_zero": None, "two_sided_share": None},
    }
    theirs = {"map_voc07": ends(0.25, 0.0, 1.0), "map_area": ends(0.0, 0.0, 0.0)}
    metrics["compare"] = {"bootstrap": theirs, "difference": difference}
    assert intervals_table(metrics).splitlines() == [
        *lines,
        "other         25.0 [   0.0,  100.0]     0.0 [   0.0,    0.0]",
        "difference   +25.0 [  -1.0,  +40.0]       - [     -,      -]",
        "not above the other in 3.1 % (VOC07) and - % (area) of the resamples",
    ]


def test_the_help_names_the_comparison(tool, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool("eval_voc").main(["--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    assert "--compare OTHER" in help_text and "95 % intervals" in " ".join(help_text.split())


# --- what other programs write


@pytest.fixture
def with_zebra(results, tmp_path):
    """Result files of a class, too, of which no picture has an object; ids are the names of the pictures' files."""
    folder = tmp_path / "zebra"
    shutil.copytree(results / "good", folder)
    for path in folder.glob("*.txt"):
        path.write_text("".join(line.replace(" ", ".jpg ", 1) + "\n" for line in path.read_text().splitlines()))
    (folder / "comp4_det_test_zebra.txt").write_text("test_000001.jpg 0.9 1 2 30 40\n")
    return folder


def test_classes_of_which_there_is_no_object_enter_no_mean(evaluate, results, with_zebra, dataset):
    expected = evaluate("--detections", results / "good", "--bootstrap", 0)[3]
    status, out, error, numbers = evaluate("--detections", with_zebra, "--bootstrap", 0)
    assert (status, error) == (0, "note: no object in test of zebra: not in the means\n")
    assert list(numbers["per_class"]) == [*CLASSES, "zebra"]
    assert set(numbers["per_class"].pop("zebra").values()) == {None}
    assert {key: numbers[key] for key in (*MEANS, "per_class")} == {key: expected[key] for key in (*MEANS, "per_class")}
    assert "zebra            -      -      -" in out
    left = evaluate("--detections", with_zebra, "--bootstrap", 0, "--leave-out-other-classes")
    assert left[:1] + left[2:3] == (0, "")
    assert left[3]["per_class"] == expected["per_class"]
    assert evaluate("--detections", results / "good", "--compare", with_zebra, "--bootstrap", 20)[0] == 0


def test_classes_from_a_file(evaluate, with_zebra, tmp_path):
    (tmp_path / "names.txt").write_text("star\ncross\n\ndisc\nzebra\n")
    flags = ["--detections", with_zebra, "--bootstrap", 0]
    status, _, error, numbers = evaluate(*flags, "--classes", tmp_path / "names.txt")
    assert (status, error) == (0, "")
    assert list(numbers["per_class"]) == ["star", "cross", "disc", "zebra"]
    assert evaluate(*flags, "--classes", "star,cross,disc")[0] == 2


def test_the_overlap_is_a_flag(evaluate, results, dataset):
    detections = read_results(results / "bad")
    for iou in (0.3, 0.75):
        flags = ["--detections", results / "bad", "--bootstrap", 20, "--iou", iou]
        status, out, _, numbers = evaluate(*flags)
        assert status == 0
        assert out.startswith(f"VOC07 and area at an overlap of {iou}\n")
        expected = score(detections, dataset.annotations(), CLASSES, iou)
        assert [numbers[key] for key in MEANS] == [expected[key] for key in MEANS]
        assert numbers["iou_threshold"] == iou
        assert numbers["bootstrap"]["map_area"]["value"] == expected["map_area"]
    assert expected["map_area"] < score(detections, dataset.annotations(), CLASSES)["map_area"]


def test_a_coco_data_set_with_scores_is_scored(evaluate, results, dataset, tmp_path):
    found = read_results(results / "good")
    images = {name: 7 * number for number, name in enumerate(found)}
    boxes = [(name, *row) for name, one in found.items() for row in zip(*one.values(), strict=True)]
    content = {
        "images": [{"id": number, "file_name": f"JPEGImages/{name}.jpg"} for name, number in images.items()],
        "categories": [{"id": 30 - number, "name": name} for number, name in enumerate([*CLASSES, "zebra"])],
        "annotations": [
            {
                "image_id": images[name],
                "category_id": 30 - CLASSES.index(label),
                "bbox": [box[0] - 1, box[1] - 1, box[2] - box[0] + 1, box[3] - box[1] + 1],
                "score": value,
            }
            for name, box, value, label in boxes
        ],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    expected = evaluate("--detections", results / "good", "--bootstrap", 0)[3]
    status, _, error, numbers = evaluate("--detections", tmp_path / "set.json", "--bootstrap", 0)
    assert (status, error) == (0, "")
    assert [numbers[key] for key in MEANS] == pytest.approx([expected[key] for key in MEANS])
    del content["annotations"][3]["score"]
    (tmp_path / "set.json").write_text(json.dumps(content))
    error = evaluate("--detections", tmp_path / "set.json", "--bootstrap", 0)[2]
    assert "set.json, entry 3 (the first is 0): it lacks 'score'" in error


def test_settings_of_the_data_can_be_given(evaluate, results):
    assert evaluate("--detections", results / "good", "--bootstrap", 0, "data.boxes=refuse")[0] == 0
    assert "unknown key 'data.boxs'" in evaluate("--detections", results / "good", "data.boxs=refuse")[2]
    assert "only settings of the data" in evaluate("--detections", results / "good", "train.seed=1")[2]


def test_nothing_is_saved_where_names_do_not_fit(evaluate, results, voc_folder, tmp_path):
    root = tmp_path / "voc"
    shutil.copytree(voc_folder, root)
    for part in ("JPEGImages/{}.jpg", "Annotations/{}.xml"):
        (root / part.format("test_000003")).rename(root / part.format("test 3"))
    names = root / "ImageSets/Main/test.txt"
    names.write_text(names.read_text().replace("test_000003", "test 3"))
    flags = ["--data-root", root, "--checkpoint", "no/such", "--save-detections", tmp_path / "out"]
    # Before any model is run, though it is opened first.
    assert "no/such" in evaluate(*flags)[2]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/comp4_det_test_disc.txt").write_text("")
    flags[2:4] = ["--detections", tmp_path / "empty"]
    assert "picture 'test 3': a VOC result file needs an id without white space" in evaluate(*flags)[2]
    assert not (tmp_path / "out").exists()


def test_neither_sizes_nor_pictures_are_needed_to_score_boxes(evaluate, results, voc_folder, tmp_path):
    root = tmp_path / "bare"
    for part in ("Annotations", "ImageSets"):
        shutil.copytree(voc_folder / part, root / part)
    for path in (root / "Annotations").glob("*.xml"):
        text = path.read_text()
        path.write_text(text[: text.index("<size>")] + text[text.index("</size>") + len("</size>") :])
    flags = ["--detections", results / "good", "--bootstrap", 0]
    expected, (status, _, error, numbers) = evaluate(*flags)[3], evaluate(*flags, "--data-root", root)
    assert (status, error) == (0, "")
    assert [numbers[key] for key in MEANS] == [expected[key] for key in MEANS]


def test_own_classes_are_all_of_the_folder_though_the_split_lacks_some(evaluate, voc_folder, tmp_path):
    root = tmp_path / "voc"
    shutil.copytree(voc_folder, root)
    for path in (root / "Annotations").glob("test_*.xml"):
        path.write_text(path.read_text().replace("<name>cross<", "<name>star<"))
    # The third class of the folder, but the second of those in the split.
    entry = {"image_id": "test_000000", "category_id": 3, "bbox": [1, 1, 9, 9], "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps([entry]))
    flags = ["--data-root", root, "--detections", tmp_path / "found.json", "--bootstrap", 0]
    status, _, error, numbers = evaluate(*flags)
    assert (status, error) == (0, "")
    assert list(numbers["per_class"]) == CLASSES
    assert numbers["per_class"]["cross"]["voc07"] is None


def test_a_runs_data_are_read_as_its_config_says(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert own_reading(run) == {}
    (run / "config.yaml").write_text("method: gone.py:Gone\ndata: {format: coco, exif: ignore, boxes: clip}\n")
    assert own_reading(run) == {"format": "coco", "exif": "ignore", "boxes": "clip"}
    assert own_reading(run / "model.safetensors") == own_reading(run)
    (run / "config.yaml").write_text("data: {format: shapes, exif: 3}\n")
    assert own_reading(run) == {}
    (run / "config.yaml").write_text("data: [")
    assert own_reading(run) == {}
