"""The report's folder, what its data and page hold, and that names cannot do harm."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
from comparison_records import found, objects, write_voc_folder
from PIL import Image
from report_scene import EVIL_CLASS, EVIL_ID, make_scene

from detkt.base.errors import InputError
from detkt.evaluation import voc
from detkt.evaluation.voc_results import write_results
from detkt.visualization.matching import DISTILLED, STUDENT, TEACHER, compare, error_pairs
from detkt.visualization.report import count_cells, script_json
from detkt.visualization.tables import box_sizes, change_tables


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page = scene.write(folder)
    assert page == folder / "index.html"
    return folder


def data_of(folder):
    text = (folder / "data.js").read_text()
    assert text.startswith("window.reportData = JSON.parse(")
    return json.loads(json.loads(text.removeprefix("window.reportData = JSON.parse(").removesuffix(");\n")))


def test_folder_holds_all_that_the_page_needs_and_no_link_leaves_it(scene, folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pictures = {f"pictures/{number:06}.jpg" for number in range(24)}
    assert names == {"index.html", "data.js", "report.js", "style.css", *pictures}
    for name in ("index.html", "report.js", "style.css"):
        text = (folder / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text
        assert "//cdn" not in text
    image, _ = scene.dataset[5]
    copied = np.asarray(Image.open(folder / "pictures/000005.jpg"), dtype=float)
    assert copied.shape == (128, 128, 3)
    assert np.abs(copied - 255 * image.permute(1, 2, 0).numpy()).mean() < 6


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.55, 0.8])
def test_data_give_the_comparison_at_any_threshold(scene, folder, threshold):
    """The page's rules in short: leave out what scores less, then pair the errors that are left."""
    data, expected = data_of(folder), scene.compare(threshold)
    counted = 0
    for picture in data["pictures"]:
        changes = expected.pictures[picture["id"]]
        kept = [[row for row in rows if row[2] >= threshold] for rows in picture["detections"]]
        for rows, judged in zip(kept, changes.models.values(), strict=True):
            assert [data["classes"][row[0]] for row in rows] == judged.labels
            assert [data["sizes"][row[1]] for row in rows] == box_sizes(judged.boxes)
            assert [row[2] for row in rows] == judged.scores.tolist()
            assert [data["verdicts"][row[3]] for row in rows] == judged.verdicts
            assert [row[4] for row in rows] == judged.objects.tolist()
            drawn = np.array([row[6:] for row in rows]).reshape(-1, 4)
            assert np.allclose(drawn, judged.boxes - [1, 1, 0, 0], rtol=0, atol=0.051)
        taken = (set(), set())
        for pair in picture["pairs"]:
            if all(n < len(rows) and n not in used for n, rows, used in zip(pair, kept[:2], taken, strict=True)):
                for n, used in zip(pair, taken, strict=True):
                    used.add(n)
        before, after = changes.models[STUDENT], changes.models[DISTILLED]
        assert [i for i in before.errors if i not in taken[0]] == changes.removed.tolist()
        assert [j for j in after.errors if j not in taken[1]] == changes.new.tolist()
        counted += len(taken[0])
        sizes = box_sizes(changes.boxes)
        for (label, size, difficult, *box), name, long, flag, corners in zip(
            picture["objects"], changes.labels, sizes, changes.difficult, changes.boxes - [1, 1, 0, 0], strict=True
        ):
            assert (data["classes"][label], data["sizes"][size], bool(difficult)) == (name, long, flag)
            assert box == corners.tolist()
    assert counted > (0 if threshold == 0.8 else 5)  # of errors that both make


def test_pairs_are_of_one_class_and_by_falling_overlap(scene):
    first = objects(("dog", 0, 1, 1, 10, 10))
    error = ("cat", 0.9, 41, 41, 60, 60)
    student = found(error, ("cat", 0.8, 41, 41, 60, 58), ("dog", 0.7, 41, 41, 60, 60))
    distilled = found(("cat", 0.9, 41, 41, 60, 59), ("cat", 0.6, 41, 41, 60, 60), ("cow", 0.5, 41, 41, 60, 60))
    comparison = compare({"a": student}, {"a": distilled}, {"a": first}, classes=["cat", "cow", "dog"])
    # IoU 1, then 19/20, 18/19 and 18/20.
    models = comparison.pictures["a"].models
    assert error_pairs(models["student"], models["distilled"], 0.5) == [[0, 1], [0, 0], [1, 0], [1, 1]]
    assert error_pairs(models["student"], models["distilled"], 0.95) == [[0, 1], [0, 0]]
    models = scene.compare(2.0).pictures[scene.dataset.ids[1]].models
    assert error_pairs(models["student"], models["distilled"], 0.5) == []


def test_slider_begins_at_the_lower_threshold_and_reaches_all_scores(scene, tmp_path):
    def ends(threshold, scored=None):
        folder = tmp_path / f"report{threshold}"
        scene.write(folder, threshold, scored)
        data = data_of(folder)
        return data["least"], data["threshold"], data["most"]

    assert ends(0.5) == (0.1, 0.5, 1.0)
    assert ends(0.03) == (0.03, 0.03, 1.0)
    records = {key: one | {"scores": one["scores"] + 4} for key, one in scene.scored[TEACHER].detections.items()}
    scored = scene.scored | {TEACHER: replace(scene.scored[TEACHER], detections=records)}
    most = max(one["scores"].max() for one in records.values())
    assert ends(0.4, scored) == (0.1, 0.4, pytest.approx(most))


def test_page_holds_the_numbers(scene, folder):
    root = ElementTree.fromstring(as_xml((folder / "index.html").read_text()))
    tables = change_tables(scene.compare())
    rows = {f"class:{n}": tables["per_class"][name] for n, name in enumerate(scene.dataset.classes)}
    rows |= {f"size:{n}": tables["per_size"][size] for n, size in enumerate(("small", "medium", "large"))}
    rows |= {f"kind:{kind}": row for kind, row in tables["per_error"].items()} | {"total": tables["total"]}
    seen = set()
    for row in root.iterfind(".//*[@data-row]"):
        key = row.get("data-row")
        cells = {one.get("data-count"): int(one.text) for one in row.iterfind(".//*[@data-count]")}
        assert cells.items() <= count_cells(rows[key]).items()
        assert len(cells) >= 4
        seen.add(key)
    assert seen == set(rows)
    text = " ".join("".join(root.itertext()).split())
    one = scene.scored[DISTILLED]
    gain = 100 * (one.result.map - scene.scored[STUDENT].result.map)
    assert f"{100 * one.result.map:.1f} mAP VOC07 {gain:+.1f} vs. student" in text
    ends = scene.gain["map_voc07"].difference
    assert ends.low < gain / 100 < ends.high
    assert f"95 % interval of the change: {100 * ends.low:+.1f} to {100 * ends.high:+.1f}" in text.replace("−", "-")
    assert text.count("95 %") == 1
    assert all(name in text for name in ("small < 32²", "medium < 96²", "large ≥ 96²"))
    area = voc.evaluate(one.detections, scene.dataset.annotations(), use_07_metric=False)
    assert f"mAP area{100 * area.map:.1f} " in text
    assert "45.6 M" in text
    assert "38.2 ms" in text
    bodies = root.findall(".//*[@id='ap']//tbody/tr")
    for row, name in zip(bodies, scene.dataset.classes, strict=True):
        value = area.per_class[name]
        assert row.find("th").text == name
        cells = [cell for cell in row.findall("td") if cell.get("class").strip() == "area"]
        assert float(cells[1].get("data-value")) == pytest.approx(100 * value)
        assert cells[1].text == f"{100 * value:.1f}"


def test_names_do_no_harm(scene, folder):
    assert EVIL_CLASS in scene.dataset.classes
    assert EVIL_ID in scene.dataset.ids
    page, script = (folder / "index.html").read_text(), (folder / "data.js").read_text()
    assert EVIL_CLASS not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert EVIL_CLASS in unescape(page)
    assert not set("<>&") & set(script)
    assert EVIL_CLASS in data_of(folder)["classes"]
    assert [one["id"] for one in data_of(folder)["pictures"]] == scene.dataset.ids
    value = {"</script>": ["&amp;", "\u2028", 0.1]}
    assert json.loads(script_json(value)) == value
    assert "\u2028" not in script_json(value)


def test_tool_with_result_files_of_two_models(run, tmp_path):
    """A class without objects has no AP, result files no parameters; pictures of an earlier report are gone."""
    truth = {"a": objects(("dog", 0, 11, 11, 40, 40)), "b": objects(("dog", 1, 1, 1, 30, 30))}
    data = write_voc_folder(tmp_path / "data", truth)
    for name, detections in (("before", {}), ("after", {"a": found(("dog", 0.9, 11, 11, 40, 40))})):
        write_results(tmp_path / name, detections, ["cat", "dog"])
    report = tmp_path / "out" / "report"
    (report / "pictures").mkdir(parents=True)
    for name in ("000001.jpg", "000002.jpg", "mine.jpg"):
        (report / "pictures" / name).write_text("old")
    arguments = ["--student", tmp_path / "before", "--distilled", tmp_path / "after", "--data-root", data]
    status, output, errors = run("visualize_diff", *arguments, "--output", tmp_path / "out", "--quiet", "--html")
    assert (status, errors) == (0, "")
    assert f"open {report / 'index.html'} in a browser" in output
    assert {path.name for path in (report / "pictures").iterdir()} == {"000000.jpg", "000001.jpg", "mine.jpg"}
    assert Image.open(report / "pictures" / "000001.jpg").size == (100, 100)
    assert data_of(report)["titles"] == ["student", "distilled"]
    page = (report / "index.html").read_text()
    assert "teacher" not in page.split('class="legend"')[0]
    assert "nan" not in page.lower()


def test_folder_that_cannot_be_made(scene, tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(InputError, match="the output folder .* cannot be made: .* is a file"):
        scene.write(tmp_path / "report")


def as_xml(page: str) -> str:
    """The page with what HTML may leave open closed, so that a parser of XML reads it."""
    page = page.replace("<!DOCTYPE html>", "").replace(" defer", "").replace(" checked", "").replace(" hidden", "")
    for tag in ("meta", "link", "input"):
        parts = page.split(f"<{tag} ")
        page = f"<{tag} ".join([parts[0], *(part.replace(">", "/>", 1) for part in parts[1:])])
    return page
