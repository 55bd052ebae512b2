"""Folders as people have them: what the check calls in order trains, and what it refuses does not.

Each kind of oddity is written into a small folder, checked, and opened as training opens it: the first list with its
own classes, the second with those of the first, every picture decoded.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import test_set as open_test_set
from detkt.data import training_set
from detkt.prepare.checking import check_dataset

TRAIN, TEST = ("a", "b", "c"), ("d", "e")


@dataclass
class Picture:
    """One picture of the folder, and all that may be odd about it."""

    name: str
    size: tuple[int, int] = (48, 36)
    suffix: str = ".png"
    orientation: int = 1
    objects: list[tuple[str, tuple[float, ...]]] = field(default_factory=lambda: [("dog", (3, 3, 20, 20))])
    stated: tuple | None = "as it is"
    encoding: str = "utf-8"
    fields: str = ""
    flags: str = ""
    xml_suffix: str = ".xml"
    line: str | None = None
    form: str = "NFC"

    def write(self, pictures: Path, annotations: Path, number: int) -> None:
        for folder in (pictures, annotations):
            (folder / self.name).parent.mkdir(parents=True, exist_ok=True)
        name = normalize(self.form, self.name)
        pixels = np.random.default_rng(number).integers(0, 256, (*self.size[::-1], 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[274] = self.orientation
        options = {"exif": exif} if self.orientation != 1 else {}
        Image.fromarray(pixels).save(pictures / f"{name}{self.suffix}", **options)
        stated = self.size if self.stated == "as it is" else self.stated
        lines = [f"<?xml version='1.0' encoding='{self.encoding}'?>", "<annotation>", self.fields]
        if stated is not None:
            lines.append(f"<size><width>{stated[0]}</width><height>{stated[1]}</height></size>")
        for label, box in self.objects:
            sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            lines.append(f"<object><name>{label}</name>{self.flags}<bndbox>{sides}</bndbox></object>")
        text = "\n".join([*lines, "</annotation>"])
        (annotations / f"{name}{self.xml_suffix}").write_bytes(text.encode(self.encoding, "replace"))


def write_voc(root: Path, pictures: list[Picture], style: str = "{}\n") -> Path:
    """A VOC-format folder whose train list holds the first three of *pictures*, the test list the others."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.write(root / "JPEGImages", root / "Annotations", number)
    for name, part in (("train", pictures[:3]), ("test", pictures[3:])):
        lines = "".join(style.format(each.line or each.name) for each in part)
        (root / f"ImageSets/Main/{name}.txt").write_bytes(lines.encode())
    return root


def train(data: DataConfig) -> tuple[list, list]:
    """Open both lists and decode all of them; their ids."""
    learnt = training_set(data)
    scored = open_test_set(data, learnt.classes)
    for dataset in (learnt, scored):
        for index in range(len(dataset)):
            image, target = dataset[index]
            boxes = target["boxes"]
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= 0).all() and (boxes <= boxes.new_tensor([*image.shape[:0:-1]] * 2)).all()
    return learnt.ids, scored.ids


def agree(root: Path, train_split: str = "train", test_split: str = "test", **given) -> tuple[bool, str]:
    """Whether training goes on, which the check must say alike, with its errors or the refusal's line."""
    data = DataConfig(root=str(root), train=train_split, test=test_split, **given)
    findings = check_dataset(root, data, quiet=True)
    lines = " | ".join(finding.line for finding in findings.errors if finding.stops)
    try:
        train(data)
    except InputError as refusal:
        assert findings.stops, f"the check does not know of: {refusal}"
        return False, f"{lines} | {refusal}"
    assert not findings.stops, f"training goes on in spite of: {lines}"
    return True, " | ".join(finding.line for finding in findings.notes)


def pictures(**changes) -> list[Picture]:
    """Five of them, the second with *changes*."""
    return [Picture(**{"name": name} | (changes if name == "b" else {})) for name in (*TRAIN, *TEST)]


GOOD = {
    "as it should be": {},
    "utf8": {"encoding": "utf8", "fields": "<path>caf\u00e9</path>"},
    "gb2312": {"encoding": "gb2312", "fields": "<path>\u4e2d\u6587</path>"},
    "big5": {"encoding": "Big5", "fields": "<path>\u4e2d\u6587</path>"},
    "shift_jis": {"encoding": "Shift_JIS", "fields": "<path>\u732b</path>"},
    "utf-16": {"encoding": "UTF-16", "fields": "<path>\u732b</path>"},
    "share of truncation": {"flags": "<truncated>0.0597</truncated><occluded>maybe</occluded><pose/>"},
    "size of 0": {"stated": (0, 0)},
    "no size": {"stated": None},
    "size in words": {"stated": ("wide", "high")},
    "box over the edges": {"objects": [("dog", (-2, 5, 50, 30))]},
    "box far over the edges": {"objects": [("dog", (-200, -300, 500, 600))]},
    "box over the edge, no size": {"objects": [("dog", (-2, 5, 50, 30))], "stated": None},
    "suffix .Jpg": {"suffix": ".Jpg"},
    "suffix .BMP": {"suffix": ".BMP"},
    "suffix .TIF": {"suffix": ".TIF"},
    "suffix .jp2": {"suffix": ".jp2"},
    "suffix .JFIF": {"suffix": ".JFIF"},
    "suffix .ppm": {"suffix": ".ppm"},
    "suffix .XML": {"xml_suffix": ".XML"},
    "decomposed files": {"name": "caf\u00e9_01", "form": "NFD"},
    "decomposed list": {"name": "caf\u00e9_01", "line": normalize("NFD", "caf\u00e9_01")},
    "blanks": {"name": "000004 (1)"},
    "blank and number": {"name": "scan 1"},
    "blank and flag": {"name": "scan -1", "line": "scan -1.png"},
    "dots": {"name": "v1.2.3"},
    "dots, suffix in the list": {"name": "v1.2.3", "line": "v1.2.3.png"},
    "several suffixes": {"name": "b.jpg", "line": "b.jpg.png"},
    "suffix of an annotation": {"xml_suffix": ".png.xml"},
    "suffix of an annotation, and in the list": {"xml_suffix": ".png.xml", "line": "b.png"},
    "Roboflow's name": {"name": "BloodImage_00000_jpg.rf.1a2b", "suffix": ".jpg"},
    "hash": {"name": "#1"},
    "folder in the name": {"name": "day 1/caf\u00e9.1", "form": "NFD"},
    "sideways, as stored": {"orientation": 6, "suffix": ".jpg"},
    "sideways, upright": {"orientation": 8, "suffix": ".jpg", "stated": (36, 48)},
    "mirrored square": {"orientation": 5, "size": (40, 40)},
    "upside down TIFF": {"orientation": 3, "suffix": ".tif"},
    "50 to 1": {"size": (100, 2), "objects": [("dog", (3, 1, 20, 2))]},
}
BAD = {
    "unknown encoding": (
        {"fields": "<!-- -->", "encoding": "utf-8"},
        "malformed XML",
        "encoding='utf-8'",
        "encoding='x-y'",
    ),
    "entities": ({}, "declares entities", "<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;"),
    "nothing left of a box": ({"objects": [("dog", (60, 5, 80, 30))]}, "wholly outside"),
    "nothing left of a box, no size": ({"objects": [("dog", (-9, 5, 0, 30))], "stated": None}, "wholly outside"),
    "another size": ({"stated": (48, 37)}, "36 pixels"),
    "strip": ({"size": (128, 1), "objects": []}, "flatter than 50 to 1"),
    "tall strip": ({"size": (8, 2000), "objects": []}, "flatter than 50 to 1"),
    "difficult": ({"flags": "<difficult>very</difficult>"}, "must be 0 or 1"),
    "class with a foreign letter": ({}, "not in the encoding", "<name>dog", b"<name>d\xffg"),
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_what_people_have_trains(tmp_path, changes):
    own = pictures(**changes)
    root = write_voc(tmp_path / "own", own)
    assert agree(root)[0]
    ids, _ = train(DataConfig(root=str(root), train="train", test="test"))
    assert ids == [normalize("NFC", each.name) for each in own[:3]]


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_cannot_be_right_is_refused(tmp_path, case):
    changes, message, *edit = case
    root = write_voc(tmp_path / "own", pictures(**changes))
    if edit:
        path = root / "Annotations/b.xml"
        old, new = (part if isinstance(part, bytes) else part.encode() for part in edit)
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    trains, lines = agree(root)
    assert not trains
    assert all(message in line for line in lines.split(" | ")), lines


STYLES = ["{}\n", "{}.png\n", "{}.PNG\r\n", "\n# one more\n  {} \n\n", "{} 1\n", "{}.png  1\nc -1\n", "{}  # a note\n"]


@pytest.mark.parametrize("style", STYLES)
def test_lists_of_every_style(tmp_path, style):
    root = write_voc(tmp_path / "own", pictures(), style)
    (root / "ImageSets/Main/train.txt").open("a").write("% the end\n")
    assert agree(root)[0]
    assert train(DataConfig(root=str(root), train="train", test="test")) == (list(TRAIN), list(TEST))


def test_lists_of_single_classes_alone(tmp_path):
    root = write_voc(tmp_path / "own", pictures())
    lists = root / "ImageSets/Main"
    for name in ("train", "test"):
        (lists / f"{name}.txt").rename(lists / f"dog_{name}.txt")
    (lists / "dog_train.txt").write_text("a.png 1\nb.png -1\na.png 1\nc.png 1\n")
    (lists / "dog_test.txt").write_text("d.png 1\ne.png 1\n")
    findings = check_dataset(root, quiet=True)
    assert findings.errors == []
    assert agree(root, "dog_train", "dog_test")[0]
    trains, lines = agree(root)
    assert not trains
    assert "no split 'train'" in lines and "the splits there: 'dog_test', 'dog_train'" in lines


def test_settings_are_those_of_training(tmp_path):
    root = write_voc(tmp_path / "own", pictures(objects=[("dog", (-2, 5, 50, 30)), ("cart", (1, 1, 9, 9))]))
    assert agree(root)[0]
    assert not agree(root, boxes="refuse")[0]
    assert agree(root, classes=["cart", "dog", "axolotl"])[0]
    assert "not one of data.classes" in agree(root, classes=["dog"])[1]
    assert agree(root, max_pixels=48 * 36)[0]
    assert "data.max_pixels" in agree(root, max_pixels=48 * 36 - 1)[1]


def test_exif_is_applied_or_not_as_set(tmp_path):
    root = write_voc(tmp_path / "own", pictures(orientation=6, size=(40, 40), suffix=".png"))
    both = {}
    for exif in ("apply", "ignore"):
        trains, notes = agree(root, exif=exif)
        assert trains
        assert "1 picture with an EXIF orientation that <size> does not decide" in notes
        data = DataConfig(root=str(root), train="train", test="test", exif=exif)
        dataset = open_test_set(DataConfig(root=str(root), test="train", exif=exif))
        assert "1 pictures whose EXIF orientation <size> does not decide" in dataset.notes[0]
        both[exif] = dataset[1][0]
        assert training_set(data).fingerprint() == dataset.fingerprint()
    stored = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_allclose(both["ignore"].permute(1, 2, 0).mul(255).round(), stored)
    np.testing.assert_allclose(both["apply"].permute(1, 2, 0).mul(255).round(), np.rot90(stored, -1))


def test_a_flaw_that_no_list_leads_to_stops_nothing(tmp_path):
    root = write_voc(tmp_path / "own", pictures())
    (root / "Annotations/spare.xml").write_text("<annotation>")
    (root / "JPEGImages/spare.png").write_text("no picture")
    trains, notes = agree(root)
    assert trains
    assert "spare.xml, line 1, column 13: malformed XML: no element found (read by no list)" in notes
    assert "spare.png: not a picture, or damaged at its start (read by no list)" in notes


def write_plain(root: Path, pictures_in: str, xml_in: str) -> Path:
    for number, name in enumerate((*TRAIN, *TEST)):
        split = "train" if name in TRAIN else "valid"
        places = (root / place.format(split=split) for place in (pictures_in, xml_in))
        Picture(name, objects=[("cell", (-9, 3, 20, 20))]).write(*places, number)
    return root


LAYOUTS = {
    "images and annotations": ("images", "annotations", "all"),
    "images and annots": ("images", "annots", "all"),
    "VOC's without lists": ("JPEGImages", "Annotations", "all"),
    "pictures beside a folder of XML": (".", "xml", "all"),
    "XML beside pictures": (".", ".", "all"),
    "Roboflow": ("{split}", "{split}", "train"),
    "Kaggle's zips": ("{split}_zip/{split}", "{split}_zip/{split}", "train_zip/train"),
    "folders in splits": ("{split}/images", "{split}/annotations", "train"),
    "splits in folders": ("images/{split}", "annotations/{split}", "all"),
}


@pytest.mark.parametrize(("pictures_in", "xml_in", "learn"), LAYOUTS.values(), ids=LAYOUTS)
def test_plain_folders_are_data_sets(tmp_path, pictures_in, xml_in, learn):
    root = write_plain(tmp_path / "own", pictures_in, xml_in)
    (root / "README.txt").write_text("not of it")
    findings = check_dataset(root, quiet=True)
    assert findings.errors == []
    advice = next(note.line for note in findings.notes if "it has no lists" in note.line)
    splits = (learn, learn.replace("train", "valid")) if learn != "all" else ("all[:-1]", "all[-1:]")
    assert f"data.train={learn}" in advice.replace("'", "")
    assert agree(root, *splits)[0]
    learnt, scored = train(DataConfig(root=str(root), train=splits[0], test=splits[1]))
    assert (len(learnt), len(scored)) == ((4, 1) if learn == "all" else (3, 2))
    assert {name.rpartition("/")[2] for name in (*learnt, *scored)} == {*TRAIN, *TEST}
    trains, lines = agree(root, "trainval", "test")
    assert not trains
    assert "no split 'trainval'" in lines


def test_plain_folder_with_a_picture_missing(tmp_path):
    root = write_plain(tmp_path / "own", "images", "annotations")
    (root / "images/b.png").unlink()
    trains, lines = agree(root, "all[:-1]", "all[-1:]")
    assert not trains
    assert "1 of 5 pictures not in images: 'b'" in lines


def test_folder_of_classes_is_still_one(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), name == "cat" and "red" or "blue").save(tmp_path / split / name / "1.png")
    assert check_dataset(tmp_path, quiet=True).summary[0].startswith(f"{tmp_path}: pictures of 2 classes")


NAMES = st.sampled_from(
    ["a", "b c", "x.1", "x.1.jpg", "caf\u00e9", "#7", "k 1", "k -1", "in/side", "\u732b", "a%b", "1"]
)
ODD = st.builds(
    dict,
    size=st.sampled_from([(48, 36), (36, 48), (40, 40), (100, 2), (102, 2), (1, 64), (1, 1)]),
    suffix=st.sampled_from([".png", ".PNG", ".jpg", ".Jpeg", ".bmp", ".TIFF", ".webp"]),
    orientation=st.sampled_from([1, 1, 2, 3, 6, 7]),
    objects=st.lists(
        st.tuples(
            st.sampled_from(["dog", "dog", "dog", "person", "person?", "cell", "caf\u00e9"]),
            st.tuples(*[st.sampled_from([-40, -1, 0, 0.5, 1, 2, 30, 36, 37, 48, 49, 90, "nan"])] * 4),
        ),
        max_size=3,
    ),
    stated=st.sampled_from(["as it is", "as it is", "as it is", None, (0, 0), (48, 36), (36, 48)]),
    encoding=st.sampled_from(["utf-8", "utf8", "utf-16", "latin1", "shift_jis", "ascii"]),
    flags=st.sampled_from(["", "<truncated>x</truncated>", "<difficult>1</difficult>", "<difficult>x</difficult>"]),
    form=st.sampled_from(["NFC", "NFD"]),
)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    odd=st.lists(st.one_of(st.just({}), st.just({}), ODD), min_size=5, max_size=5),
    names=st.lists(NAMES, min_size=5, max_size=5, unique=True),
    style=st.sampled_from(STYLES[:4]),
    boxes=st.sampled_from(["clip", "clip", "refuse"]),
    exif=st.sampled_from(["apply", "ignore"]),
    classes=st.sampled_from([None, None, ["dog", "person", "person?", "cell", "caf\u00e9"]]),
)
def test_the_check_and_the_training_agree(tmp_path, odd, names, style, boxes, exif, classes):
    own = [Picture(name, **changes) for name, changes in zip(names, odd, strict=True)]
    style = "{}\n" if "." in style and any(each.suffix.lower() != ".png" for each in own) else style
    trains, _ = agree(write_voc(tmp_path / "own", own, style), boxes=boxes, exif=exif, classes=classes)
    event("trains" if trains else "is refused")
