from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data.annotations import parse_annotation
from detkt.data.voc import VOCDetection
from detkt.prepare.checking import check_dataset, check_source
from detkt.prepare.picture_checking import in_threads
from detkt.prepare.sources import SOURCES, PublishedSet, Version

REAL = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).parents[2].parent / "shared/data"))
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist

SIZE = 40, 30
BOX = (2, 3, 20, 15)


def xml(objects=(("dog", BOX),), size=SIZE, head="<filename>{name}.png</filename>"):
    """An annotation's text; objects: (name, box) or text."""
    lines = ["<annotation>", head, f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for found in objects:
        if not isinstance(found, str):
            sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), found[1], strict=True))
            found = f"<object><name>{found[0]}</name><bndbox>{sides}</bndbox></object>"
        lines.append(found)
    return "\n".join([*lines, "</annotation>"])


def photo(path, seed, size=SIZE):
    """A picture unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.fixture
def voc(tmp_path):
    """A folder without a flaw: a, b, c to learn from and d, e to be scored on."""
    for seed, name in enumerate("abcde"):
        photo(tmp_path / f"JPEGImages/{name}.png", seed)
        write(tmp_path / f"Annotations/{name}.xml", xml().format(name=name))
    write(tmp_path / "ImageSets/Main/train.txt", "a\nb\nc\n")
    write(tmp_path / "ImageSets/Main/test.txt", "d\ne\n")
    return tmp_path


def check(folder):
    """Errors and notes, each less the folder it begins with."""
    findings = check_dataset(folder, quiet=True)
    for finding in findings.errors + findings.notes:
        assert "\n" not in finding.line
        assert finding.line.startswith(str(finding.path))
    return tuple(
        [finding.line.removeprefix(f"{folder}/").removeprefix(str(folder)) for finding in found]
        for found in (findings.errors, findings.notes)
    )


def test_nothing_wrong(voc):
    assert check(voc) == ([], [])
    assert check_dataset(voc, quiet=True).summary == [
        f"{voc}: 5 pictures, 5 annotations, 5 objects of 1 class, 2 lists"
    ]


def test_drawn_shapes_are_in_order(voc_folder):
    errors, notes = check(voc_folder)
    assert errors == []
    assert all("difficult" in note or "val.txt: names no picture" in note for note in notes)


FLAWED = {
    "sound": xml(),
    "no object": xml(()),
    "malformed": "<annotation><size>",
    "entities": '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
    "no size": "<annotation></annotation>",
    "size of 0": xml(size=(0, 30)),
    "inverted": xml([("dog", (20, 3, 2, 15))]),
    "outside": xml([("dog", (2, 3, 60, 15))]),
    "a pixel beyond": xml([("dog", (0, 0, 41, 31))]),
    "a single pixel": xml([("dog", (5, 5, 5, 5))]),
    "no number": xml([("dog", ("x", 3, 20, 15))]),
    "no name": xml([("", BOX)]),
    "no box": xml(["<object><name>dog</name></object>"]),
    "flag": xml(["<object><name>dog</name><difficult>2</difficult></object>"]),
    "encoding": b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>',
}


@pytest.mark.parametrize("text", FLAWED.values(), ids=FLAWED)
def test_errors_of_an_annotation_are_those_of_its_reader(voc, text):
    path = voc / "Annotations/b.xml"
    write(path, text)
    errors, _ = check(voc)
    try:
        parse_annotation(path)
    except InputError as refusal:
        assert errors[0] == str(refusal).removeprefix(f"{voc}/")
    else:
        assert errors == [] or "single pixel" in errors[0]


def test_all_flaws_of_an_annotation(voc):
    bad = "<object><name></name><difficult>2</difficult><bndbox><xmin>2</xmin></bndbox></object>"
    write(voc / "Annotations/b.xml", xml([("dog", (20, 3, 2, 15)), ("dog", BOX), bad]))
    write(voc / "Annotations/d.xml", "nothing")
    errors, _ = check(voc)
    assert errors == [
        "Annotations/b.xml, line 4, object 1 ('dog'): box (20, 3, 2, 15) is inverted or empty: xmax must be at least "
        "xmin, and ymax at least ymin",
        "Annotations/b.xml, line 6, object 3: <name> is missing or empty",
        "Annotations/b.xml, line 6, object 3: <ymin> is missing or empty",
        "Annotations/b.xml, line 6, object 3: <difficult> is '2'; it must be 0 or 1",
        "Annotations/d.xml, line 1, column 1: malformed XML: syntax error",
    ]


def test_objects_of_an_annotation_without_size(voc):
    good = (
        "<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9000</xmax><ymax>9</ymax></bndbox></object>"
    )
    write(voc / "Annotations/b.xml", f"<annotation>\n{good}\n<object><name>dog</name></object></annotation>")
    errors, notes = check(voc)
    assert errors == ["Annotations/b.xml, line 3, object 2 ('dog'): the object has no <bndbox>"]
    assert notes == [
        "Annotations: 1 annotation without <size>, which is taken from the picture: 'b'",
        "Annotations: 1 annotation with 1 box reaching farther beyond the picture (data.boxes=refuse stops at them), "
        "which are clipped: 'b'",
    ]
    (voc / "JPEGImages/b.png").unlink()
    assert [error for error in check(voc)[0] if "b.xml" in error] == errors


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ((5, 6, 5, 6), "a single pixel"),
        ((5, 6, 9, 6), "only 1 pixel high"),
        ((5, 6, 5, 9), "only 1 pixel wide"),
    ],
)
def test_boxes_too_small(voc, box, what):
    write(voc / "Annotations/b.xml", xml([("dog", box)]).format(name="b"))
    shown = ", ".join(map(str, box))
    assert check(voc)[0] == [
        f"Annotations/b.xml, line 4, object 1 ('dog'): box ({shown}) is {what}: draw it anew, or remove it"
    ]
    write(voc / "Annotations/b.xml", xml([("dog", (5, 6, 6, 7))]).format(name="b"))
    assert check(voc) == ([], [])


def test_objects_marked_twice(voc):
    # 18 of 19 columns: 0.947; 17 of 20: 0.85.
    objects = [("dog", BOX), ("cat", (3, 3, 21, 15)), ("dog", (3, 3, 20, 15)), ("dog", (5, 3, 22, 15)), ("cat", BOX)]
    write(voc / "Annotations/b.xml", xml([*objects, ("dog", BOX)]).format(name="b"))
    write(voc / "Annotations/d.xml", xml([("cat", BOX)]).format(name="d"))
    errors, notes = check(voc)
    assert errors == [
        "Annotations/b.xml, line 9, object 6 ('dog'): the same class and box as object 1: remove one of them"
    ]
    assert notes == [
        "Annotations/b.xml, line 6, object 3 ('dog'): overlaps object 1 ('dog') by 0.95 (IoU): one object twice?",
        "Annotations/b.xml, line 8, object 5 ('cat'): the same box as object 1 ('dog'): one object of two classes?",
        "Annotations/b.xml, line 8, object 5 ('cat'): overlaps object 2 ('cat') by 0.90 (IoU): one object twice?",
        "Annotations/b.xml, line 9, object 6 ('dog'): overlaps object 3 ('dog') by 0.95 (IoU): one object twice?",
        "Annotations/b.xml, line 9, object 6 ('dog'): the same box as object 5 ('cat'): one object of two classes?",
    ]


def test_notes_of_annotations(voc):
    difficult = (
        xml([("dog", (0, 3, 20, 15))]).format(name="other").replace("</name>", "</name><difficult>1</difficult>")
    )
    write(voc / "Annotations/b.xml", difficult)
    write(voc / "Annotations/c.xml", xml((), head="<folder>Elsewhere</folder><path>C:\\data\\c.png</path>"))
    errors, notes = check(voc)
    assert errors == []
    assert notes == [
        "Annotations: 1 annotation with another picture's name in <filename> (the reader goes by the XML file's own "
        "name): 'b'",
        "Annotations: 1 annotation of another <folder> or <path> than the others, such as 'Elsewhere' and "
        "'C:/data': 'c'",
        "Annotations: 1 annotation without an object, which is allowed: 'c'",
        "Annotations: 1 annotation with 1 box reaching a pixel beyond the picture (counted from 0?), which are "
        "clipped: 'b'",
        "Annotations: 1 object marked difficult, neither learnt nor scored",
    ]


def test_missing_pictures_are_summed_up(voc):
    write(voc / "ImageSets/Main/train.txt", "a\n" + "".join(f"x{number}\n" for number in range(500)) + "b\nc\n")
    errors, notes = check(voc)
    assert errors == [
        f"ImageSets/Main/train.txt, line 2: 500 of 503 {what} not in {folder}: 'x0', 'x1', 'x2', … (500 in all)"
        for what, folder in (("pictures", "JPEGImages"), ("annotations", "Annotations"))
    ]
    assert notes == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("JPEGImages/a", "; the list must say 'a', without the folder"),
        ("A", "; 'a' is there, which differs in capitals"),
    ],
)
def test_names_in_lists_that_are_nearly_right(voc, name, hint):
    write(voc / "ImageSets/Main/train.txt", f"{name}\nb\nc\n")
    errors, notes = check(voc)
    assert errors[0] == f"ImageSets/Main/train.txt, line 1: 1 of 3 pictures not in JPEGImages: '{name}'{hint}"
    assert notes == [": 1 annotated picture in no list: 'a'"]


def test_lists_that_are_read_but_untidy(voc):
    write(voc / "ImageSets/Main/train.txt", "\ufeffa.png\r\n\r\n b\r\nc\r\nc\r\n")
    write(voc / "ImageSets/Main/val.txt", "\n")
    assert VOCDetection(voc, "test").ids == ["d", "e"]
    assert check(voc) == (
        [],
        [
            "ImageSets/Main/train.txt: begins with a byte order mark, has Windows' line ends, has 1 blank line, has 1 "
            "line with blanks around the name, has 1 name with a suffix, such as 'a.png', has 1 name more than once: "
            "'c'",
            "ImageSets/Main/val.txt: names no picture, has 1 blank line",
        ],
    )


def test_pictures_in_lists_that_must_be_apart(voc):
    write(voc / "ImageSets/Main/test.txt", "c\nd\ne\n")
    write(voc / "ImageSets/Main/val.txt", "d\n")
    write(voc / "ImageSets/Main/trainval.txt", "a\nb\nd\n")
    errors, notes = check(voc)
    assert errors == [
        "ImageSets/Main/test.txt: has 1 picture in common with train.txt: 'c'",
        "ImageSets/Main/test.txt: has 1 picture in common with trainval.txt: 'd'",
    ]
    assert notes == [
        "ImageSets/Main/test.txt: has 1 picture in common with val.txt: 'd'",
        "ImageSets/Main/trainval.txt: is not train and val together: it lacks 1 picture of them, and has 0 besides",
    ]


def test_lists_of_one_class(voc):
    write(voc / "ImageSets/Main/dog_train.txt", "a  1\nb -1\nc  0\n")
    assert check(voc) == ([], [])
    write(voc / "ImageSets/Main/dog_train.txt", "a  1\nb -1\nz  0\n")
    assert check(voc)[0] == ["ImageSets/Main/dog_train.txt: 1 picture without annotation: 'z'"]


def test_pictures_whose_names_look_like_those_of_a_class_list(voc):
    for part, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        (voc / part / f"a.{suffix}").rename(voc / part / f"scan 1.{suffix}")
    write(voc / "Annotations/scan 1.xml", xml().format(name="scan 1"))
    write(voc / "ImageSets/Main/train.txt", "scan 1\nb\nc\n")
    assert check(voc) == ([], [])


def test_list_that_cannot_be_read(voc):
    write(voc / "ImageSets/Main/train.txt", b"\xff\xfe")
    assert "train.txt: cannot read the list, which must be UTF-8 text" in check(voc)[0][0]


def test_folders_and_lists_that_are_missing(tmp_path):
    photo(tmp_path / "JPEGImages/a.png", 0)
    assert check(tmp_path)[0] == [
        f": holds no folder {part}, which a VOC-format data set must have" for part in ("Annotations", "ImageSets/Main")
    ]
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    assert "ImageSets/Main: holds no list of pictures, such as train.txt" in check(tmp_path)[0]


def test_files_that_belong_to_nothing(voc):
    photo(voc / "JPEGImages/alone.png", 7)
    write(voc / "Annotations/left.xml", xml(head=""))
    write(voc / "JPEGImages/.DS_Store", "")
    write(voc / "JPEGImages/c.Png", "")
    write(voc / "Annotations/a.xml~", "")
    write(voc / "ImageSets/Main/train.txt.bak", "")
    errors, notes = check(voc)
    assert errors == []
    assert notes == [
        "JPEGImages: 1 file whose names no reader looks for: '.DS_Store'",
        "Annotations: 1 file whose names no reader looks for: 'a.xml~'",
        "ImageSets/Main: 1 file whose names no reader looks for: 'train.txt.bak'",
        "JPEGImages/c.Png: never read, as c.png has the same id 'c'; remove one of them",
        "JPEGImages: 1 file without annotation, and in no list: 'alone'",
        "Annotations: 1 file without picture, and in no list: 'left'",
        "JPEGImages/c.Png: not a picture, or damaged at its start (read by no list)",
    ]


def test_pictures_that_cannot_be_read(voc):
    path = voc / "JPEGImages/b.png"
    path.write_bytes(path.read_bytes()[:-60])
    write(voc / "JPEGImages/c.png", "no picture")
    write(voc / "JPEGImages/d.png", "")
    photo(voc / "JPEGImages/e.png", 4, (30, 40))
    errors, notes = check(voc)
    assert [error.partition(":")[0] for error in errors] == [f"JPEGImages/{name}.png" for name in "bcde"]
    assert "truncated" in errors[0]
    assert errors[1] == "JPEGImages/c.png: not a picture, or damaged at its start"
    assert errors[3] == (
        f"JPEGImages/e.png: the picture is 30 x 40 pixels, but {voc}/Annotations/e.xml says 40 x 30; its boxes are "
        "misplaced"
    )
    assert notes == []


def test_pictures_that_are_something_else_or_there_twice(voc):
    (voc / "JPEGImages/b.png").rename(voc / "JPEGImages/b.jpg")
    photo(voc / "JPEGImages/c.jpg", 9)
    errors, notes = check(voc)
    assert errors == []
    assert notes == [
        "JPEGImages/c.png: never read, as c.jpg has the same id 'c'; remove one of them",
        "JPEGImages/b.jpg: is a PNG picture, whatever its suffix says; it is read as that",
        "Annotations: 1 annotation with another picture's name in <filename> (the reader goes by the XML file's own "
        "name): 'b'",
    ]


def test_same_picture_to_learn_from_and_to_be_scored_on(voc):
    shutil.copy(voc / "JPEGImages/a.png", voc / "JPEGImages/e.png")
    shutil.copy(voc / "JPEGImages/b.png", voc / "JPEGImages/c.png")
    errors, notes = check(voc)
    assert errors == [
        "JPEGImages/a.png: the same picture as 'e', and so in train.txt and test.txt: what is scored on was learnt"
    ]
    assert notes == ["JPEGImages/b.png: the same picture as 'c'"]


def test_nearly_the_same_picture(voc):
    # Brighter, and saved as another kind of file: no byte is the same.
    brighter = Image.open(voc / "JPEGImages/a.png").point(lambda value: value * 0.8 + 20)
    (voc / "JPEGImages/e.png").unlink()
    brighter.save(voc / "JPEGImages/e.jpg", quality=70)
    write(voc / "Annotations/e.xml", xml(head=""))
    errors, notes = check(voc)
    assert errors == []
    assert notes == [
        "JPEGImages/a.png: nearly the same as 'e' (0.99), one in train.txt and the other in test.txt: one scene?"
    ]


def test_misspelt_voc_class_is_what_the_reader_refuses(voc):
    many = [("person", (x, x, x + 5, x + 9)) for x in range(1, 12, 2)]
    write(voc / "Annotations/b.xml", xml([("persn", BOX), *many]).format(name="b"))
    with pytest.raises(InputError, match=r"unknown class \(did you mean 'person'\?\)"):
        VOCDetection(voc, "train")
    assert check(voc)[0] == [
        "Annotations/b.xml: 1 object of unknown class 'persn': 'person' is meant? (if not, list all classes in "
        "data.classes)"
    ]
    for listed in (["dog", "person", "persn"], ["dog", "person"]):
        data = DataConfig(train="", test="", classes=listed)
        found = [finding.line.removeprefix(f"{voc}/") for finding in check_dataset(voc, data, quiet=True).errors]
        if len(listed) == 3:
            assert found == []
            assert VOCDetection(voc, "train", classes=listed).classes == listed
        else:
            assert found == ["Annotations/b.xml: 1 object of class 'persn', not one of data.classes"]


@pytest.mark.parametrize(
    ("own", "known"),
    [("person?", "person"), ("cart", "car"), ("armchair", "chair"), ("goat", "cow"), ("bottle cap", "bottle")],
)
def test_classes_of_ones_own_that_resemble_vocs(voc, own, known):
    for name in "abcde":
        write(voc / f"Annotations/{name}.xml", xml([(own, BOX), (known, (1, 1, 9, 9))]).format(name=name))
    errors, notes = check(voc)
    assert errors == []
    assert [note.partition(",")[0] for note in notes] in ([f"Annotations/a.xml: class '{own}'"], [])
    dataset = VOCDetection(voc, "train")
    assert dataset.classes == sorted([own, known])
    assert len(dataset.notes) == len(notes)


def test_own_classes_under_two_names(voc):
    for name in "acde":
        write(voc / f"Annotations/{name}.xml", xml([("Red cell", BOX)]).format(name=name))
    write(voc / "Annotations/b.xml", xml([("red_cell", BOX)]).format(name="b"))
    assert check(voc)[0] == [
        "Annotations/b.xml: 1 object of class 'red_cell', 4 of class 'Red cell': one class under two names?"
    ]


def test_rare_class_that_may_be_a_slip(voc):
    many = [("Platelets", (x, y, x + 1, y + 1)) for x in range(1, 40, 2) for y in range(1, 30, 2)]
    write(voc / "Annotations/a.xml", xml(many).format(name="a"))
    for name in "cde":
        write(voc / f"Annotations/{name}.xml", xml([("RBC", BOX)]).format(name=name))
    write(voc / "Annotations/b.xml", xml([("Platelet", BOX), ("WBC", (1, 1, 9, 9))]).format(name="b"))
    assert check(voc) == (
        [],
        ["Annotations/b.xml: 1 object of class 'Platelet', 300 of class 'Platelets': a slip?"],
    )


def test_class_that_is_scored_but_not_learnt(voc):
    write(voc / "Annotations/e.xml", xml([("axolotl", BOX)]).format(name="e"))
    assert check(voc)[0] == [
        "Annotations/e.xml: class 'axolotl' is in the lists to score on, but in none to learn from"
    ]


def test_several_years(tmp_path, voc):
    devkit = tmp_path / "devkit"
    for year in ("2007", "2012"):
        for part in ("JPEGImages", "Annotations", "ImageSets"):
            shutil.copytree(voc / part, devkit / f"VOCdevkit/VOC{year}" / part)
    (devkit / "VOCdevkit/VOC2012/JPEGImages/a.png").unlink()
    errors, _ = check(devkit)
    assert errors == ["VOCdevkit/VOC2012/ImageSets/Main/train.txt, line 1: 1 of 3 pictures not in JPEGImages: 'a'"]


@pytest.mark.skipif(not (REAL / "BCCD").is_dir(), reason="real data is not there")
def test_blood_cells():
    errors, notes = check(REAL / "BCCD")
    assert errors == [
        f"Annotations/BloodImage_{name}.xml, line {line}, object {number} ('RBC'): box ({box}) is a single pixel: draw "
        "it anew, or remove it"
        for name, line, number, box in (
            ("00338", 158, 13, "504, 337, 504, 337"),
            ("00343", 50, 4, "181, 329, 181, 329"),
        )
    ]
    twice = (
        ("00020", 182, 15, 0.93),
        ("00100", 38, 3, 0.93),
        ("00104", 170, 14, 0.92),
        ("00251", 98, 8, 0.93),
        ("00284", 26, 2, 0.93),
        ("00331", 38, 3, 0.92),
        ("00403", 50, 4, 0.93),
    )
    assert notes == [
        *(
            f"Annotations/BloodImage_{name}.xml, line {line}, object {number} ('RBC'): overlaps object {number - 1} "
            f"('RBC') by {overlap:.2f} (IoU): one object twice?"
            for name, line, number, overlap in twice
        ),
        "Annotations: 3 annotations of another <folder> or <path> than the others, such as 'RBC' and "
        "'/Users/cosmic/WBC_CLASSIFICATION_ANNO/RBC': 'BloodImage_00171', 'BloodImage_00178', 'BloodImage_00228'",
        "JPEGImages/BloodImage_00038.jpg: nearly the same as 'BloodImage_00037' (0.97), one in train.txt and the other "
        "in val.txt: one scene?",
    ]


@pytest.mark.skipif(not (REAL / "VOCdevkit/VOC2007").is_dir(), reason="real data is not there")
@pytest.mark.slow
def test_part_of_voc2007():
    findings = check_source(SOURCES["voc2007"], REAL / "VOCdevkit", quiet=True)
    assert [finding.line.rpartition("Main/")[2].partition(" not in")[0] for finding in findings.errors] == [
        "test.txt, line 8: 4868 of 4952 pictures",
        "train.txt, line 1: 2427 of 2501 pictures",
        "trainval.txt, line 1: 4855 of 5011 pictures",
        "val.txt, line 1: 2428 of 2510 pictures",
    ]
    assert findings.sound
    assert not findings.complete
    assert len(findings.notes) == 4


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(("train/cat/1", "train/cat/2", "train/dog/1", "test/cat/1", "test/dog/1")):
        photo(tmp_path / f"{name}.png", seed)
    return tmp_path


def test_image_folder(photos):
    assert check(photos) == ([], [])
    assert check_dataset(photos, quiet=True).summary == [f"{photos}: pictures of 2 classes, 2 in test, 3 in train"]


def test_flaws_of_an_image_folder(photos):
    write(photos / "train/dog/2.png", "no picture")
    write(photos / "test/cat/1.png", "")
    (photos / "test/bird").mkdir()
    (photos / "train/.hidden").mkdir()
    write(photos / "train/dog/notes.txt", "")
    photo(photos / "train/loose.png", 9)
    errors, notes = check(photos)
    assert errors == [
        "test/bird: a class without a picture; add some, or remove the folder",
        "test: has classes that train has not: 'bird'",
        "test/cat/1.png: not a picture, or damaged at its start",
        "train/dog/2.png: not a picture, or damaged at its start",
    ]
    assert notes == [
        "train: 1 picture in no class folder, not read: 'loose.png'",
        "train/dog: 1 file not read, being no picture by the name",
    ]


def test_repeats_in_an_image_folder(photos):
    shutil.copy(photos / "train/cat/1.png", photos / "test/cat/9.png")
    shutil.copy(photos / "train/cat/2.png", photos / "train/dog/9.png")
    shutil.copy(photos / "train/dog/1.png", photos / "train/dog/8.png")
    errors, notes = check(photos)
    assert sorted(errors) == [
        ": 1 picture in test and train: what is scored on was learnt: 'test/cat/9.png'",
        "train/cat/2.png: the same picture in another class: 'train/dog/9.png'",
    ]
    assert notes == [": 1 picture more than once in a class: 'train/dog/1.png'"]


def test_folder_of_classes_without_splits(tmp_path):
    photo(tmp_path / "cat/1.png", 0)
    photo(tmp_path / "dog/1.png", 1)
    assert check(tmp_path)[0] == [
        ": holds no split: put its class folders into one, as in train/cat/1.jpg and test/cat/2.jpg"
    ]


def test_split_without_classes(photos):
    photo(photos / "val/1.png", 8)
    assert check(photos)[0] == [
        "val: holds no class folder: pictures must lie in SPLIT/CLASS/PICTURE, as in train/cat/1.jpg"
    ]


def test_folder_of_neither_kind(tmp_path):
    write(tmp_path / "a/b.txt", "")
    with pytest.raises(InputError, match="neither a VOC-format folder .* nor one of pictures"):
        check_dataset(tmp_path, quiet=True)


def test_folder_that_cannot_be_listed(voc, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(voc / "Annotations"))

    monkeypatch.setattr(os, "walk", denied)
    with pytest.raises(InputError, match=f"cannot read {voc}/Annotations: Permission denied"):
        check_dataset(voc, quiet=True)


def test_ctrl_c_does_not_wait_for_what_is_left():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), in_threads(work, range(1000), "work", quiet=True) as results:
        next(iter(results))
        raise KeyboardInterrupt
    assert len(begun) < 100


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def digits(tmp_path):
    """MNIST in small, and what is published of it."""
    files = {}
    for prefix, count in (("train", 5), ("t10k", 3)):
        files[f"{prefix}-images-idx3-ubyte"] = idx(np.arange(count * 16).reshape(count, 4, 4) % 256)
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count))
    for name, content in files.items():
        write(tmp_path / "MNIST/raw" / name, content)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    sizes = {name: len(content) for name, content in files.items()}
    version = Version(("MNIST/raw", "raw", "."), md5, sizes)
    return PublishedSet("mnist", "mnist", place="MNIST/raw", versions=(version,)), tmp_path


def lines(source, root):
    findings = check_source(source, root, quiet=True)
    return [(finding.line.removeprefix(f"{root}/"), finding.missing) for finding in findings.errors]


@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_published_files(digits, tmp_path_factory, place, zipped):
    source, there = digits
    root = tmp_path_factory.mktemp("root")
    for path in (there / "MNIST/raw").iterdir():
        content = path.read_bytes()
        write(root / place / f"{path.name}{'.gz' * zipped}", gzip.compress(content) if zipped else content)
    assert lines(source, root) == []


def test_flaws_of_published_files(digits):
    source, root = digits
    raw = root / "MNIST/raw"
    content = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(content[:-1] + b"x")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"123")
    (raw / "t10k-images-idx3-ubyte").unlink()
    labels = raw / "t10k-labels-idx1-ubyte"
    (raw / f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes())[:-3])
    labels.unlink()
    expected = source.versions[0].md5["train-images-idx3-ubyte"]
    assert lines(source, root) == [
        (
            "MNIST/raw/train-images-idx3-ubyte: damaged: the MD5 of its content is "
            f"{hashlib.md5(content[:-1] + b'x').hexdigest()} instead of {expected}; remove it, and get it anew",
            False,
        ),
        (
            "MNIST/raw/train-labels-idx1-ubyte: holds 3 bytes instead of 13: truncated, or another file; remove it, "
            "and get it anew",
            False,
        ),
        ("MNIST/raw/t10k-images-idx3-ubyte: there is no such file", True),
        (
            "MNIST/raw/t10k-labels-idx1-ubyte.gz: damaged or truncated (Compressed file ended before the end-of-stream "
            "marker was reached); remove it, and get it anew",
            False,
        ),
    ]


def test_what_the_reader_says_of_files_without_published_checksums(tmp_path):
    records = np.zeros((2, 3073), np.uint8)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    source = PublishedSet("cifar10", "cifar10", versions=(Version((".",), dict.fromkeys(names, ""), {}),))
    for name in names:
        write(tmp_path / name, records.tobytes())
    assert lines(source, tmp_path) == []
    records[1, 0] = 10
    write(tmp_path / "test_batch.bin", records.tobytes())
    assert [line.partition(" is none")[0] for line, _ in lines(source, tmp_path)] == [
        "test_batch.bin: label 10 of picture 1"
    ]


def test_file_of_another_data_set(digits, monkeypatch):
    source, root = digits
    monkeypatch.setitem(SOURCES, "mnist", source)
    images, labels = root / "MNIST/raw/train-images-idx3-ubyte", root / "MNIST/raw/train-labels-idx1-ubyte"
    fashion = Version(source.versions[0].places, source.versions[0].md5 | {images.name: "0" * 32}, {})
    other = PublishedSet("fashion-mnist", "fashion-mnist", versions=(fashion,))
    assert lines(other, root)[0][0] == (
        f"MNIST/raw/{images.name}: is a file of mnist, of another name or in the wrong folder; remove it"
    )
    assert labels.is_file()


@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_whole_fashion_mnist():
    assert lines(SOURCES["fashion-mnist"], FASHION) == []


@pytest.mark.parametrize("name", ["voc2007", "cifar10", "mnist", "imagenet", "shapes"])
def test_nothing_there(tmp_path, name):
    findings = check_source(SOURCES[name], tmp_path / "root", quiet=True)
    assert not findings.complete
    assert findings.sound
    assert findings.errors[0].line.endswith("there is no such folder")


def test_imagenet(tmp_path):
    for seed, name in enumerate(("train/n01440764/1", "val/n01440764/1", "val/n01443537/1")):
        photo(tmp_path / f"{name}.jpg", seed)
    cut = photo(tmp_path / "train/n01440764/2.jpg", 9)
    cut.write_bytes(cut.read_bytes()[:-40])
    assert [line for line, _ in lines(SOURCES["imagenet"], tmp_path)] == [
        "val: has classes that train has not: 'n01443537'",
        "train: holds 2 pictures of 1 class instead of 1281167 of 1000",
        "val: holds 2 pictures of 2 classes instead of 50000 of 1000",
        "train/n01440764/2.jpg: the picture is truncated: it does not end as a JPEG does",
    ]


def test_checksums_are_those_that_torchvision_publishes():
    from torchvision import datasets
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    md5 = {name: {archive.name: archive.md5 for archive in source.archives} for name, source in SOURCES.items()}
    for key, name in (("2007", "voc2007"), ("2007-test", "voc2007"), ("2012", "voc2012")):
        assert md5[name][DATASET_YEAR_DICT[key]["filename"]] == DATASET_YEAR_DICT[key]["md5"]
    for name, known in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert md5[name] == {known.filename: known.tgz_md5}
        files = dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])
        assert SOURCES[name].versions[1].md5 == files
        assert SOURCES[name].archives[0].inner == known.base_folder
        assert SOURCES[name].archives[0].urls[0] == known.url
    for name, known in (("mnist", datasets.MNIST), ("fashion-mnist", datasets.FashionMNIST)):
        assert md5[name] == dict(known.resources)
        assert SOURCES[name].archives[0].urls[0].startswith(known.mirrors[0])
