"""Folders in COCO's and YOLO's format: what the check calls in order trains, and what it refuses does not.

The form is that of `test_agreement`: each oddity is written into a small folder, checked, and opened as training opens
it, every picture decoded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_agreement import train

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import training_set
from detkt.prepare.checking import check_dataset

SPLITS = {"train": ("a", "b", "c"), "val": ("d", "e")}


def agree(root: Path, data_format: str, **given) -> tuple[bool, str]:
    """Whether training goes on, which the check must say alike, with its notes, or its errors and the refusal."""
    data = DataConfig(**{"format": data_format, "root": str(root), "train": "train", "test": "val"} | given)
    findings = check_dataset(root, data, quiet=True)
    lines = " | ".join(finding.line for finding in findings.errors if finding.stops)
    try:
        train(data)
    except InputError as refusal:
        assert findings.stops, f"the check does not know of: {refusal}"
        assert "\n" not in str(refusal)
        return False, f"{lines} | {refusal}"
    assert not findings.stops, f"training goes on in spite of: {lines}"
    return True, " | ".join(finding.line for finding in findings.notes)


def draw(path: Path, size=(48, 36), orientation=1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, **({"exif": exif} if orientation != 1 else {}))


def coco(split: str) -> dict:
    """A data set of COCO, to be changed."""
    images = [{"id": n, "file_name": f"{name}.png", "width": 48, "height": 36} for n, name in enumerate(SPLITS[split])]
    box = {"bbox": [3, 3, 20, 20], "area": 400, "iscrowd": 0}
    annotations = [{"id": 1 + image["id"], "image_id": image["id"], "category_id": 1, **box} for image in images]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}


def write_coco(root: Path, change=None, place="annotations/instances_{}.json", pictures="images/{}") -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for split in SPLITS:
        content = coco(split)
        for image in content["images"]:
            draw(root / pictures.format(split) / image["file_name"])
        if change is not None and split == "train":
            content = change(content) or content
        path = root / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def of(part: str, **values):
    """Change the second item of a list."""
    return lambda content: content[part][1].update(values)


def renamed(name: str):
    def change(content: dict) -> None:
        content["images"][1]["file_name"] = name

    return change


def supercategory(content: dict) -> None:
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": "pets"},
        {"id": 2, "name": "cat", "supercategory": "pets"},
    ]


def ids_as_texts(content: dict) -> None:
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])


def category_zero(content: dict) -> None:
    content["categories"] = [{"id": 0, "name": "dog"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 0


GOOD_COCO = {
    "as it should be": lambda content: None,
    "no annotation": lambda content: content["annotations"].clear(),
    "category 0": category_zero,
    "supercategory that nobody uses": supercategory,
    "ids as texts": ids_as_texts,
    "no area, no iscrowd, no id": lambda c: [c["annotations"][1].pop(key) for key in ("id", "area", "iscrowd")][:0],
    "crowd": of("annotations", iscrowd=1, segmentation={"counts": [1, 2], "size": [36, 48]}),
    "outline": of("annotations", segmentation=[[1, 2, 3, 4, 5, 6]]),
    "nonsense for an outline": of("annotations", segmentation="?"),
    "no size": lambda content: [content["images"][1].pop(key) for key in ("width", "height")][:0],
    "box over the edge": of("annotations", bbox=[-5.5, 3, 80, 90]),
    "box of no width": of("annotations", bbox=[5, 3, 0, 9]),
    "box in parts of a pixel": of("annotations", bbox=[0.25, 0.125, 0.5, 0.25]),
    "more categories": lambda content: content["categories"].append({"id": 99, "name": "cat"}),
    "info and licences": lambda content: content | {"info": {"year": 2017}, "licenses": []},
}
BAD_COCO = {
    "negative width": (of("annotations", bbox=[9, 3, -4, 9]), "negative width or height"),
    "box outside": (of("annotations", bbox=[49, 3, 4, 9]), "lies wholly outside the picture of 48 x 36"),
    "three numbers": (of("annotations", bbox=[9, 3, 4]), "'bbox' is [9, 3, 4]; it must be"),
    "no box": (lambda content: content["annotations"][1].pop("bbox") and None, "'bbox' is None"),
    "box in words": (of("annotations", bbox=["a", 1, 2, 3]), "'bbox' is ['a', 1, 2, 3]"),
    "nan": (of("annotations", bbox=[1, 1, float("nan"), 3]), "finite numbers"),
    "unknown image": (of("annotations", image_id=77), "annotation 2: image_id 77 is not among the images"),
    "unknown category": (of("annotations", category_id=7), "category_id 7 is not among the categories"),
    "iscrowd 2": (of("annotations", iscrowd=2), "'iscrowd' is 2; it must be 0 or 1"),
    "another size": (of("images", width=49), "48 x 36 pixels, but"),
    "image id twice": (of("images", id=0), "'images' hold the id 0 twice"),
    "no file": (renamed("z.png"), "no picture z.png (1 of 3 are not there)"),
    "file twice": (renamed("a.png"), "file_name 'a.png' is that of image 0, too"),
    "no images": (lambda content: content.pop("images") and None, "must hold a list 'images'"),
    "no annotations": (lambda content: content.pop("annotations") and None, "must hold a list 'annotations'"),
    "no categories": (lambda content: content["categories"].clear(), "'categories' are empty"),
    "category twice": (lambda c: c["categories"].append({"id": 2, "name": "dog"}), "are both called 'dog'"),
    "a list": (lambda content: [content], "no COCO data set"),
}


@pytest.mark.parametrize("change", GOOD_COCO.values(), ids=GOOD_COCO)
def test_coco_that_trains(tmp_path, change):
    assert agree(write_coco(tmp_path / "own", change), "coco")[0]


@pytest.mark.parametrize(("change", "message"), BAD_COCO.values(), ids=BAD_COCO)
def test_coco_that_is_refused(tmp_path, change, message):
    trains, lines = agree(write_coco(tmp_path / "own", change), "coco")
    assert not trains
    assert all(message in line or "misplaced" in line for line in lines.split(" | ")), lines


@pytest.mark.parametrize("pictures", ["{}", "images/{}", "images", ".", "{}/images"])
@pytest.mark.parametrize("place", ["{}.json", "annotations/instances_{}.json", "annotations/{}.json"])
def test_where_files_of_coco_may_lie(tmp_path, place, pictures):
    if pictures == "{}/images":
        place, pictures = "{}/_annotations.coco.json", "{}"
    root = write_coco(tmp_path / "own", None, place, pictures)
    assert agree(root, "coco")[0]
    assert agree(root, "coco", train=place.format("train"))[0]
    trains, lines = agree(root, "coco", train="trian")
    assert not trains and "did you mean 'train'?" in lines and "the splits there: 'train', 'val'" in lines
    assert check_dataset(root, quiet=True).errors == []


def test_file_names_with_folders_and_from_elsewhere(tmp_path):
    root = write_coco(tmp_path / "own")
    (root / "images/train/b.png").rename(root / "images/b.png")
    for name in ("b.png", "images/b.png", "C:\\pictures\\b.png", "/kaggle/input/b.png", str(root / "images/b.png")):
        path = root / "annotations/instances_train.json"
        content = coco("train")
        content["images"][1]["file_name"] = name
        path.write_text(json.dumps(content))
        assert agree(root, "coco")[0], name
        ids, _ = train(DataConfig(format="coco", root=str(root), train="train", test="val"))
        assert ids[1] in ("b", "images/b")


def test_the_unused_supercategory_is_told_of_and_no_class(tmp_path):
    trains, notes = agree(write_coco(tmp_path / "own", supercategory), "coco")
    assert trains and "category 0 ('pets') has no object, and all others have it as their supercategory" in notes


def test_settings_are_those_of_training(tmp_path):
    over = of("annotations", bbox=[-5, 3, 80, 20])
    root = write_coco(tmp_path / "own", over)
    assert agree(root, "coco")[0] and not agree(root, "coco", boxes="refuse")[0]
    assert agree(root, "coco", classes=["cat", "dog"])[0]
    assert "not one of data.classes" in agree(root, "coco", classes=["cat"])[1]
    root = write_yolo(tmp_path / "own", "0 0.1 0.5 0.4 0.4")
    assert agree(root, "yolo")[0] and not agree(root, "yolo", boxes="refuse")[0]
    assert "not one of data.classes" in agree(root, "yolo", classes=["cat"])[1]


def test_another_format_is_named(tmp_path):
    root = write_yolo(tmp_path / "own")
    with pytest.raises(InputError, match=r"looks like one of data.format=yolo"):
        train(DataConfig(root=str(root)))
    root = write_coco(tmp_path / "other")
    with pytest.raises(InputError, match=r"looks like one of data.format=coco"):
        train(DataConfig(format="yolo", root=str(root)))


def write_yolo(root: Path, labels: str | None = "0 0.5 0.5 0.2 0.2", head: dict | None = None, **pictures) -> Path:
    """The second picture of "train" has *labels*; None: no file."""
    shutil.rmtree(root, ignore_errors=True)
    for split, names in SPLITS.items():
        for name in names:
            draw(root / f"images/{split}/{name}.png", **(pictures if name == "b" else {}))
            path = root / f"labels/{split}/{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != "b" or labels is not None:
                path.write_bytes(((labels or "") if name == "b" else "0 0.5 0.5 0.5 0.5\n").encode())
    content = {"train": "images/train", "val": "images/val", "names": ["dog", "cat"]} | (head or {})
    (root / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value != "-"}))
    return root


GOOD_LABELS = {
    "no file": None,
    "no line": "",
    "blank lines": "\n  \n0 0.5 0.5 0.2 0.2\n\n",
    "tabs and carriage returns": "0\t0.5 0.5\t0.2 0.2\r\n1 .5 .5 1e-1 1e-1\r\n",
    "byte order mark": "\ufeff0 0.5 0.5 0.2 0.2",
    "class with a point": "1.0 0.5 0.5 0.2 0.2",
    "whole picture": "0 0.5 0.5 1 1",
    "rounded over the edge": "0 0.5 0.5 1.000001 1",
    "over the edge": "0 0.1 0.1 0.5 0.5",
    "triangle": "0 0.1 0.1 0.5 0.1 0.3 0.6",
    "no width": "0 0.5 0.5 0 0.2",
}
BAD_LABELS = {
    "class beyond": ("2 0.5 0.5 0.2 0.2", ":1: class 2 is not one of the 2 that data.yaml names, 0 (dog) to 1 (cat)"),
    "class below": ("-1 0.5 0.5 0.2 0.2", ":1: class -1 is not one of"),
    "half a class": ("0.5 0.5 0.5 0.2 0.2", ":1: class 0.5 is not one of"),
    "class in words": ("\ndog 0.5 0.5 0.2 0.2", ":2: 'dog' is not a finite number"),
    "nan": ("0 nan 0.5 0.2 0.2", ":1: 'nan' is not a finite number"),
    "pixels": ("0 24 18 10 10", ":1: 24 is not in 0 to 1"),
    "below 0": ("0 -0.1 0.5 0.2 0.2", ":1: -0.1 is not in 0 to 1"),
    "four numbers": ("0 0.5 0.5 0.2", ":1: 4 numbers; a class, and 4 of a box"),
    "score behind": ("0 0.5 0.5 0.2 0.2 0.9", ":1: 6 numbers"),
    "half a corner": ("0 0.1 0.1 0.5 0.1 0.3 0.6 0.1", ":1: 8 numbers"),
}


@pytest.mark.parametrize("labels", GOOD_LABELS.values(), ids=GOOD_LABELS)
def test_labels_that_train(tmp_path, labels):
    assert agree(write_yolo(tmp_path / "own", labels), "yolo")[0]


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_refused(tmp_path, labels, message):
    trains, lines = agree(write_yolo(tmp_path / "own", labels), "yolo")
    assert not trains
    assert all(f"labels/train/b.txt{message}" in line for line in lines.split(" | ")), lines


GOOD_HEADS = {
    "names by number": {"names": {0: "dog", 1: "cat"}},
    "nc": {"nc": 2},
    "no names": {"nc": 2, "names": "-"},
    "path": {"path": "."},
    "path from elsewhere": {"path": "/content/datasets/own"},
    "Roboflow's dots": {"train": "../images/train", "val": "../images/val"},
    "several folders": {"train": ["images/train", "images/val"], "val": "images/val"},
    "more keys": {"download": "https://example.org", "roboflow": {"version": 1}},
}
BAD_HEADS = {
    "nc that is wrong": ({"nc": 3}, "'nc' is 3, but 2 classes are named"),
    "no classes": ({"names": "-"}, "'names' must be a list"),
    "name twice": ({"names": ["dog", "dog"]}, "two classes are called 'dog'"),
    "unquoted no": ({"names": ["dog", False]}, "put it in quotes"),
    "no such folder": ({"train": "pictures"}, "'train' is pictures, but there is no"),
    "no such split": ({"train": "-"}, "no split 'train'"),
    "empty folder": ({"train": "labels"}, "where there is no picture"),
}


@pytest.mark.parametrize("head", GOOD_HEADS.values(), ids=GOOD_HEADS)
def test_heads_that_train(tmp_path, head):
    assert agree(write_yolo(tmp_path / "own", head=head), "yolo")[0]


@pytest.mark.parametrize(("head", "message"), BAD_HEADS.values(), ids=BAD_HEADS)
def test_heads_that_are_refused(tmp_path, head, message):
    trains, lines = agree(write_yolo(tmp_path / "own", head=head), "yolo")
    assert not trains
    assert message in lines.split(" | ")[-1] and message in lines.split(" | ")[0], lines


def test_lists_of_pictures(tmp_path):
    root = write_yolo(tmp_path / "own", head={"train": "train.txt"})
    (root / "train.txt").write_text("./images/train/c.png\n\nimages/train/a.png\r\n")
    assert agree(root, "yolo")[0]
    ids, _ = train(DataConfig(format="yolo", root=str(root), train="train", test="val"))
    assert ids == ["train/c", "train/a"]
    (root / "train.txt").write_text("./images/train/c.png\nimages/train/z.png\n")
    trains, lines = agree(root, "yolo")
    assert not trains and "train.txt, line 2: no picture images/train/z.png" in lines


def test_pictures_turned_by_exif(tmp_path):
    """Boxes of YOLO's are parts of the picture as it is seen, as its own loader has it."""
    root = write_yolo(tmp_path / "own", orientation=6)
    assert agree(root, "yolo")[0]
    for exif, size in (("apply", (36, 48)), ("ignore", (48, 36))):
        dataset = training_set(DataConfig(format="yolo", root=str(root), train="train", test="val", exif=exif, flip=0))
        assert dataset.sizes[1] == size
        width, height = size
        expected = [0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height]
        np.testing.assert_allclose(dataset[1][1]["boxes"][0], expected, rtol=1e-6)


@pytest.mark.parametrize("data_format", ["coco", "yolo"])
@pytest.mark.parametrize("flaw", ["truncated", "text"])
def test_damaged_pictures(tmp_path, data_format, flaw):
    root = (write_coco if data_format == "coco" else write_yolo)(tmp_path / "own")
    path = root / "images/train/b.png"
    path.write_bytes(path.read_bytes()[:900] if flaw == "truncated" else b"no picture")
    assert not agree(root, data_format)[0]


number = st.sampled_from([0, 0.0, 0.5, 3, 35.5, 48, 60, -1, -60, 1e9, float("nan"), float("inf"), "3", None, True])
annotation = st.fixed_dictionaries(
    {},
    optional={
        "bbox": st.one_of(st.lists(number, min_size=3, max_size=5), st.just([1, 1, 9, 9]), st.none()),
        "image_id": st.sampled_from([0, 1, 2, "1", 9, None, True, 1.0, [1]]),
        "category_id": st.sampled_from([1, "1", 2, 0, None, {}]),
        "iscrowd": st.sampled_from([0, 1, True, 2, None, "0"]),
        "area": st.sampled_from([1, 0, -1, None, "big", float("nan")]),
        "difficult": st.sampled_from([0, 1, "yes"]),
        "segmentation": st.sampled_from([None, [], {}, [[1, 2]], 7]),
    },
)
image = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from([0, 1, 2, "b", 7, None, True]),
        "file_name": st.sampled_from(["b.png", "B.PNG", "x/b.png", "a.png", "", None, "../b.png", "b\0.png"]),
        "width": st.sampled_from([48, 48.0, 47, 0, None, "48"]),
        "height": st.sampled_from([36, 36.0, 48, -1, None]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=image, annotations=st.lists(annotation, max_size=2), boxes=st.sampled_from(["clip", "refuse"]))
def test_anything_in_a_coco_file(tmp_path, image, annotations, boxes):
    def change(content: dict) -> None:
        content["images"][1] |= image
        for own, changes in zip(content["annotations"], annotations, strict=False):
            own |= changes

    trains, _ = agree(write_coco(tmp_path / "own", change), "coco", boxes=boxes)
    event("trains" if trains else "is refused")


word = st.sampled_from(["0", "1", "2", "-1", "0.5", "1", "0.25", "1.2", "1.0005", "nan", "x", "0.0", "1e-9", "0,5"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.lists(word, max_size=8).map(" ".join), max_size=2),
    names=st.sampled_from([["dog", "cat"], {0: "dog", 1: "cat"}, {0: "dog", 5: "cat"}, ["dog"], [], {"x": "dog"}]),
    size=st.sampled_from([(48, 36), (36, 48), (100, 2), (102, 2), (1, 1)]),
    orientation=st.sampled_from([1, 3, 6]),
    boxes=st.sampled_from(["clip", "refuse"]),
)
def test_anything_in_a_label_file(tmp_path, lines, names, size, orientation, boxes):
    root = write_yolo(tmp_path / "own", "\n".join(lines), {"names": names}, size=size, orientation=orientation)
    trains, _ = agree(root, "yolo", boxes=boxes)
    event("trains" if trains else "is refused")


def whole_numbers_with_points(content: dict) -> None:
    for image in content["images"]:
        image["id"] = float(image["id"])
    for annotation in content["annotations"]:
        annotation.update(image_id=float(annotation["image_id"]), category_id=1.0)


@pytest.mark.parametrize(
    "change",
    [
        whole_numbers_with_points,
        of("annotations", iscrowd=None),
        of("images", width=10**400),
        lambda c: c["categories"].append({"id": 2, "name": "cat", "supercategory": []}),
    ],
    ids=["ids with points", "iscrowd null", "a width of 400 digits", "a list for a supercategory"],
)
def test_what_programs_write_into_coco_files(tmp_path, change):
    assert agree(write_coco(tmp_path / "own", change), "coco")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of("annotations", bbox=[1, 1, 10**400, 3]), "annotation 2: 'bbox' is"),
        (lambda c: c.update(annotations=5), "must hold a list 'annotations'"),
        (lambda c: c.update(images=[], annotations=[]), "'images' are empty"),
    ],
    ids=["a side of 400 digits", "annotations=5", "no images"],
)
def test_nonsense_in_coco_files_is_refused_in_a_line(tmp_path, change, message):
    trains, lines = agree(write_coco(tmp_path / "own", change), "coco")
    assert not trains and all(message in line for line in lines.split(" | "))


def test_one_picture_is_not_taken_for_two(tmp_path):
    def folders(content: dict) -> None:
        for number in (0, 1):
            content["images"][number]["file_name"] = f"cam{number}/a.png"

    trains, lines = agree(write_coco(tmp_path / "own", folders), "coco")
    assert not trains and "image 1: no picture cam1/a.png but " in lines and "which is image 0" in lines


@pytest.mark.parametrize("name", ["my%20b.png", "https://example.org/images/my%20b.png?size=2"])
def test_file_names_written_as_addresses(tmp_path, name):
    root = write_coco(tmp_path / "own", renamed("my b.png"))
    (root / "images/train/b.png").rename(root / "images/train/my b.png")
    assert agree(root, "coco")[0]
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("my b.png", name))
    assert agree(root, "coco")[0]


def test_labels_in_another_place_are_missed(tmp_path):
    root = write_yolo(tmp_path / "own")
    (root / "labels").rename(root / "texts")
    trains, lines = agree(root, "yolo")
    assert (
        not trains and f"none of the 3 pictures of 'train' has a label file, such as {root}/labels/train/a.txt" in lines
    )


def test_the_folder_of_pictures_may_be_the_path(tmp_path):
    root = write_yolo(tmp_path / "own", head={"path": "images", "train": "train", "val": "val"})
    trains, notes = agree(root, "yolo")
    assert trains and "no label file" not in notes


def test_what_else_a_head_tells_is_no_split(tmp_path):
    root = write_yolo(tmp_path / "own", head={"license": "CC BY 4.0", "author": "me"})
    assert check_dataset(root, quiet=True).errors == []


def test_commas_between_numbers_are_told_of(tmp_path):
    assert "put spaces between the numbers" in agree(write_yolo(tmp_path / "own", "0,0.5,0.5,0.2,0.2"), "yolo")[1]


def test_labels_without_a_picture_and_pictures_without_labels_are_counted(tmp_path):
    """What is marked in a file alone is not learnt; classes.txt, as label programs leave it, is no label file."""
    root = write_yolo(tmp_path / "own", None)
    assert "without a picture" not in agree(root, "yolo")[1]
    for number in range(5):
        (root / f"labels/train/left{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "labels/train/classes.txt").write_text("dog\ncat\n")
    (root / "labels/train/notes.txt").write_text("")
    trains, lines = agree(root, "yolo")
    names = ", ".join(f"'labels/train/left{number}.txt'" for number in range(3))
    assert trains
    assert f"5 label files without a picture, so not read: {names}, … (5 in all); add the pictures, or remove" in lines
    assert "train: 1 of 3 pictures have no label file, and so no object: backgrounds" in lines


@pytest.mark.parametrize(
    ("key", "value"),
    [("bbox", [1] * 5000), ("category_id", "c" * 5000), ("image_id", 10**4000), ("iscrowd", "y" * 5000)],
)
def test_absurdly_long_values_are_cut(tmp_path, key, value):
    root = write_coco(tmp_path / "own")
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0][key] = value
    path.write_text(json.dumps(content))
    trains, lines = agree(root, "coco")
    assert not trains and key in lines and "… (" in lines
    assert all(len(line) < 500 for line in lines.split(" | "))
    content["images"][0]["file_name"], content["annotations"][0][key] = "n" * 5000 + ".png", 0
    path.write_text(json.dumps(content))
    assert all(len(line) < 1000 for line in agree(root, "coco")[1].split(" | "))
