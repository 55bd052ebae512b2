"""COCO's AP leads wherever the data are COCO's: eval, compare, the difference and its page; VOC's elsewhere."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from three_formats import CLASSES, SCENES, WRITE

from detkt.cli import compare, diff, eval
from detkt.config import DataConfig, load_config
from detkt.data import test_set as open_test_set
from detkt.engine.run import train
from detkt.evaluation.coco import evaluate_coco
from detkt.kinds import detection_kind

SPLITS = {"train": SCENES["train"], "val": SCENES["train"]}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leads")
    return {name: WRITE[name](folder / name, SPLITS) for name in ("voc", "coco")}


def results(root, path, shift=0.0, missing=()):
    """What a detector found in ``train``: every object, *shift* pixels to the right, but those of *missing*."""
    content = json.loads((root / "annotations/instances_train.json").read_text())
    boxes = [
        {key: item[key] for key in ("image_id", "category_id")}
        | {"bbox": [item["bbox"][0] + shift, *item["bbox"][1:]], "score": 0.9 - 0.01 * number}
        for number, item in enumerate(content["annotations"])
        if number not in missing
    ]
    path.write_text(json.dumps(boxes))
    return path


def evaluated(root, data_format, *flags):
    path = root.parent / "scores.json"
    common = ["--data-root", root, "--split", "train", f"data.format={data_format}", "--json", path, "--quiet"]
    eval.main([str(flag) for flag in [*flags, *common, "--bootstrap", 20]])
    return json.loads(path.read_text())


def test_a_result_file_is_scored_by_the_splits_own_json(roots, tmp_path, capsys):
    """Ids with gaps, category 0: without the JSON 10 were no picture. The objects themselves score 1."""
    scores = evaluated(roots["coco"], "coco", "--detections", results(roots["coco"], tmp_path / "own.json"))
    out = capsys.readouterr().out.splitlines()
    assert scores["map_coco"] == scores["map_voc07"] == 1
    assert list(scores)[2:9] == ["map_coco", "ap_small", "ap_medium", "ap_large", "map_voc07", "map_area", "coco"]
    # Pixels: 30 x 41 is 27 * 36 < 32², 60 x 48 lies between 32² and 96².
    assert (scores["ap_small"], scores["ap_medium"], scores["ap_large"]) == (1, 1, None)
    assert out[0].split() == ["class", "COCO", "VOC07", "area"]
    rows = {line.split("  ")[0]: line.split()[1:] for line in out[1:]}
    assert rows["mean"] == ["100.0"] * 3
    assert rows["COCO small"] == ["small", "100.0"] and rows["COCO large"] == ["large", "-"]
    assert [line for line in out if "VOC07" in line][1].split() == ["COCO", "VOC07", "area"]
    assert list(scores["bootstrap"])[-3:] == ["map_coco", "map_voc07", "map_area"]


def test_the_moved_half_is_told_with_cocos_interval_first(roots, tmp_path, capsys):
    """Against boxes moved by a tenth of their width COCO's AP falls, VOC's at 0.5 does not."""
    ours = results(roots["coco"], tmp_path / "ours.json")
    theirs = results(roots["coco"], tmp_path / "theirs.json", shift=4.0)
    scores = evaluated(roots["coco"], "coco", "--detections", ours, "--compare", theirs)
    other, out = scores["compare"], capsys.readouterr().out
    assert other["map_voc07"] == 1 and 0.3 < other["map_coco"] < 0.9
    difference = other["difference"]
    assert list(difference)[:4] == ["map_coco", "ap_small", "ap_medium", "ap_large"]
    assert difference["map_coco"]["value"] == pytest.approx(1 - other["map_coco"])
    assert difference["map_coco"]["share_at_most_zero"] == 0
    assert "not above the other in 0.0 % (COCO), 100.0 % (VOC07) and 100.0 % (area) of the resamples" in out


def test_joined_splits_need_the_json_named(roots, tmp_path):
    own = results(roots["coco"], tmp_path / "own.json")
    dataset = open_test_set(DataConfig(format="coco", root=str(roots["coco"]), test="train"))
    assert dataset.annotation_file == roots["coco"] / "annotations/instances_train.json"
    dataset = open_test_set(DataConfig(format="voc", root=str(roots["voc"]), test="train"))
    assert dataset.annotation_file is None
    scores = evaluated(
        roots["voc"],
        "voc",
        "--detections",
        own,
        "--coco-annotations",
        roots["coco"] / "annotations/instances_train.json",
    )
    assert list(scores)[2:5] == ["map_voc07", "map_area", "map_coco"]
    assert list(scores["bootstrap"])[-2:] == ["map_voc07", "map_area"]


def test_names_are_read_too_where_a_split_has_ids(roots, tmp_path, capsys):
    """What ``detkt predict`` writes: names of pictures, and places of classes that their names correct."""
    own = json.loads(results(roots["coco"], tmp_path / "own.json").read_text())
    names = {10 + 3 * number: one.name for number, one in enumerate(SPLITS["train"])}
    for one in own:
        name = CLASSES[one["category_id"] // 7]
        one |= {"image_id": names[one["image_id"]], "category_id": CLASSES.index(name) + 1, "category_name": name}
    (tmp_path / "named.json").write_text(json.dumps(own))
    assert evaluated(roots["coco"], "coco", "--detections", tmp_path / "named.json")["map_coco"] == 1


@pytest.fixture(scope="module")
def runs(tiny_file, roots, tmp_path_factory):
    """A folder of two trained students on COCO's data: kd and none."""
    folder = tmp_path_factory.mktemp("coco-runs")
    content = yaml.safe_load(tiny_file.read_text())
    content["data"] = {"format": "coco", "root": str(roots["coco"]), "train": "train", "test": "val"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    for method in ("none", "kd"):
        config = load_config(folder / "tiny.yaml", [f"method={method}", "train.epochs=1", "train.batch_size=2"])
        train(config, folder / f"tiny-{method}-s0", quiet=True)
    return folder


def test_a_comparison_draws_the_pictures_for_cocos_ap(runs, tmp_path, capsys):
    paths = [str(runs / f"tiny-{method}-s0") for method in ("none", "kd")]
    compare.main(["--runs", *paths, "--output", str(tmp_path / "out"), "--quiet"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    assert titles[2:8] == ["AP", "AP small", "AP medium", "AP large", "mAP VOC07", "mAP area"]
    assert titles[8] == "Δ AP to none [95 %]"
    cells = next([cell.strip() for cell in row.strip("|").split("|")] for row in rows if "kd" in row)
    assert cells[9] == "pictures" and "[" in cells[8]


def test_the_difference_and_its_page_lead_with_cocos_ap(runs, tmp_path, capsys):
    for name in ("none", "kd"):
        shutil.copytree(runs / f"tiny-{name}-s0", tmp_path / name)
    flags = ["--student", tmp_path / "none", "--distilled", tmp_path / "kd", "--html", "--quiet", "--device", "cpu"]
    diff.main([str(flag) for flag in [*flags, "--pictures", 1, "--score", 0.01]])
    out = capsys.readouterr().out
    assert "gain of the distilled over the student: " in out and " mAP COCO, 95 % interval" in out
    assert next(line for line in out.splitlines() if line.startswith("model ")).split()[1:3] == ["mAP", "COCO"]
    changes = json.loads((tmp_path / "kd/diff/changes.json").read_text())
    assert list(changes["gain"])[2:] == ["map_coco", "map_voc07", "map_area"]
    own = changes["models"]["distilled"]
    metrics = json.loads((tmp_path / "kd/metrics.json").read_text())
    assert own["map_coco"] == pytest.approx(metrics["map_coco"])
    assert own["per_class"] == pytest.approx({k: v["coco"] for k, v in metrics["per_class"].items()})
    page = (tmp_path / "kd/diff/report/index.html").read_text()
    assert " mAP COCO" in page.split('class="big"')[1].split("</p>")[0]
    order = [page.index(f'value="{name}"') for name in ("coco", "voc07", "area")]
    assert order == sorted(order) and page.count(" checked") == 2
    assert 'value="coco" checked' in page


def test_the_kind_alone_says_which_score_leads(roots):
    dataset = open_test_set(DataConfig(format="coco", root=str(roots["coco"]), test="train"))
    kind = detection_kind(DataConfig(format="coco"))
    found = kind.score({}, dataset.annotations(), dataset.classes)
    assert list(found)[: len(kind.measures)] == list(kind.measures)
    assert next(iter(kind.measures)) == kind.resampled[0] == "map_coco"
    expected = evaluate_coco({}, dataset.annotations(), dataset.classes)
    assert (found["map_coco"], found["ap_small"]) == (expected.ap, expected.ap_small) == (0, 0)
    assert detection_kind(DataConfig(format="yolo")).resampled == ("map_voc07", "map_area")
