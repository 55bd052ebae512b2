from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.data.annotations import locate_object, parse_annotation

REAL = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).parents[2].parent / "shared/data"))


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def write(tmp_path, *objects, size="<size><width>100</width><height>50</height><depth>3</depth></size>", head=""):
    path = tmp_path / "picture.xml"
    objects = "\n".join(f"<object>{content}</object>" for content in objects)
    path.write_text(f"{head}<annotation>\n<filename>picture.jpg</filename>\n{size}\n{objects}\n</annotation>")
    return path


def refusal(path, *options):
    with pytest.raises(InputError) as caught:
        parse_annotation(path, *options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_fields(tmp_path):
    path = write(
        tmp_path,
        f"<name> dog\n</name><difficult>1</difficult>{box(1, 2, 100, 50)}<truncated>0</truncated>",
        f"{box('45.70000076', 7, 60, 20)}<name>cat</name><truncated>1</truncated>",
    )
    found = parse_annotation(path)
    assert (found.size, found.stated) == ((100, 50), True)
    assert found.names == ("dog", "cat")
    assert found.boxes.dtype == np.float64
    assert found.boxes.tolist() == [[1, 2, 100, 50], [45.70000076, 7, 60, 20]]
    assert found.difficult.tolist() == [True, False]
    assert found.rows == (0, 1)


def test_no_object(tmp_path):
    found = parse_annotation(write(tmp_path))
    assert found.boxes.shape == (0, 4)
    assert found.names == ()
    assert found.difficult.dtype == bool


def test_parts_are_not_objects_and_their_boxes_not_the_objects(tmp_path):
    part = f"<part><name>head</name>{box(30, 5, 40, 10)}</part>"
    found = parse_annotation(write(tmp_path, f"{part}<name>person</name>{box(10, 5, 60, 40)}{part}"))
    assert found.names == ("person",)
    assert found.boxes.tolist() == [[10, 5, 60, 40]]
    assert "no <bndbox>" in refusal(write(tmp_path, f"<name>person</name>{part}"))


def test_nested_objects_do_not_count(tmp_path):
    path = write(tmp_path)
    inner = f"<object><name>dog</name>{box(1, 1, 2, 2)}</object>"
    path.write_text(path.read_text().replace("</annotation>", f"<group>{inner}</group></annotation>"))
    assert parse_annotation(path).names == ()


def test_a_single_pixel_is_a_box(tmp_path):
    assert parse_annotation(write(tmp_path, f"<name>dog</name>{box(7, 8, 7, 8)}")).boxes.tolist() == [[7, 8, 7, 8]]


@pytest.mark.parametrize(
    ("given", "clipped"),
    [((0, 0, 99, 49), (1, 1, 99, 49)), ((1, 1, 101, 51), (1, 1, 100, 50)), ((0, 0, 0, 0), (1, 1, 1, 1))],
)
def test_one_pixel_outside_is_clipped(tmp_path, given, clipped):
    assert parse_annotation(write(tmp_path, f"<name>dog</name>{box(*given)}")).boxes.tolist() == [list(clipped)]


BEYOND = [
    ((-1, 1, 9, 9), (1, 1, 9, 9)),
    ((1, -0.5, 9, 9), (1, 1, 9, 9)),
    ((1, 1, 101.5, 9), (1, 1, 100, 9)),
    ((1, 1, 9, 52), (1, 1, 9, 50)),
    ((-500, -500, 5000, 5000), (1, 1, 100, 50)),
    ((-7, 3, 1, 9), (1, 3, 1, 9)),
    ((99.5, 49, 300, 300), (99.5, 49, 100, 50)),
]


@pytest.mark.parametrize(("given", "clipped"), BEYOND)
def test_box_beyond_the_picture_is_clipped_or_refused_as_asked(tmp_path, given, clipped):
    path = write(tmp_path, f"<name>dog</name>{box(1, 1, 2, 2)}", f"<name>cat</name>{box(*given)}")
    found = parse_annotation(path)
    assert found.boxes.tolist() == [[1, 1, 2, 2], list(clipped)]
    assert found.given.tolist() == [[1, 1, 2, 2], list(given)]
    assert found.overshoot.tolist() == [0, max(abs(a - b) for a, b in zip(given, clipped, strict=True))]
    message = refusal(path, "refuse")
    assert "line 5, object 2 ('cat')" in message
    assert "reaches out of the picture of 100 x 50" in message


@pytest.mark.parametrize("boxes", ["clip", "refuse"])
@pytest.mark.parametrize("outside", [(-9, 1, -2, 9), (300, 1, 310, 9), (1, 52, 9, 60), (-9, 1, 0.5, 9), (1, -4, 9, 0)])
def test_box_of_which_nothing_is_in_the_picture(tmp_path, outside, boxes):
    message = refusal(write(tmp_path, f"<name>dog</name>{box(*outside)}"), boxes)
    assert "line 4, object 1 ('dog')" in message
    assert "wholly outside the picture of 100 x 50" in message


@pytest.mark.parametrize("inverted", [(9, 1, 8, 9), (1, 9, 9, 8)])
def test_inverted_box(tmp_path, inverted):
    message = refusal(write(tmp_path, f"<name>dog</name>{box(*inverted)}"))
    assert "line 4, object 1 ('dog')" in message
    assert "inverted or empty" in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (f"<name>dog</name>{box(1, 'nan', 2, 2)}", "<ymin> is 'nan', which is not a finite number"),
        (f"<name>dog</name>{box(1, 1, 'inf', 2)}", "<xmax> is 'inf'"),
        (f"<name>dog</name>{box(1, 1, 2, 'two')}", "<ymax> is 'two'"),
        (f"<name>dog</name>{box('', 1, 2, 2)}", "<xmin> is missing or empty"),
        ("<name>dog</name><bndbox><xmin>1</xmin></bndbox>", "<ymin> is missing"),
        (box(1, 1, 2, 2), "object 1: <name> is missing"),
        (f"<name> </name>{box(1, 1, 2, 2)}", "object 1: <name> is missing"),
        (f"<name>dog</name>{box(1, 1, 2, 2)}<difficult>2</difficult>", "<difficult> is '2'; it must be 0 or 1"),
    ],
)
def test_faulty_object(tmp_path, content, complaint):
    message = refusal(write(tmp_path, content))
    assert complaint in message
    assert "line 4, object 1" in message


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>100</width></size>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>10.5</width><height>10</height></size>",
        "<size><width>ten</width><height>10</height></size>",
        "<size><width>-3</width><height>nan</height></size>",
    ],
)
def test_a_size_that_says_nothing_is_the_pictures(tmp_path, size):
    path = write(tmp_path, f"<name>dog</name>{box(5, 5, 70, 70)}", size=size)
    found = parse_annotation(path, picture_size=lambda: (60, 40))
    assert (found.size, found.stated, found.boxes.tolist()) == ((60, 40), False, [[5, 5, 60, 40]])
    # Nobody knows what is inside.
    assert (parse_annotation(path).size, parse_annotation(path).boxes.tolist()) == (None, [[5, 5, 70, 70]])


def test_a_stated_size_is_not_asked_of_the_picture(tmp_path):
    assert parse_annotation(write(tmp_path), picture_size=lambda: 1 / 0).size == (100, 50)


@pytest.mark.parametrize("value", ["0.0597", "2", "very", "", "Unspecified", "\N{BLACK SQUARE}"])
def test_what_nothing_reads_stops_nothing(tmp_path, value):
    unread = "".join(f"<{key}>{value}</{key}>" for key in ("truncated", "occluded", "pose", "depth", "polygon"))
    path = write(tmp_path, f"<name>dog</name>{box(1, 1, 2, 2)}{unread}", size=f"<segmented>{value}</segmented>")
    assert parse_annotation(path).names == ("dog",)


@pytest.mark.parametrize(("text", "flag"), [("1", True), ("1.0", True), ("True", True), ("0.0", False), ("no", False)])
def test_flags_as_programs_write_them(tmp_path, text, flag):
    path = write(tmp_path, f"<name>dog</name>{box(1, 1, 2, 2)}<difficult> {text}\n</difficult>")
    assert parse_annotation(path).difficult.tolist() == [flag]


LETTERS = {
    "utf8": "caf\u00e9 \u4e2d\u6587",
    "UTF-8": "caf\u00e9 \u4e2d\u6587",
    "utf_16": "caf\u00e9 \u4e2d\u6587",
    "UTF-16LE": "caf\u00e9 \u4e2d\u6587",
    "utf-16-be": "caf\u00e9 \u4e2d\u6587",
    "utf-32": "caf\u00e9 \u4e2d\u6587",
    "gb2312": "\u4e2d\u6587",
    "GBK": "\u4e2d\u6587\u9f8d",
    "gb18030": "\u4e2d\u6587",
    "Big5": "\u4e2d\u6587",
    "Shift_JIS": "\u732b",
    "euc-jp": "\u732b",
    "EUC-KR": "\uace0\uc591\uc774",
    "koi8-r": "\u043a\u043e\u0442",
    "windows-1251": "\u043a\u043e\u0442",
    "latin1": "caf\u00e9",
    "iso-8859-15": "caf\u00e9 \u20ac",
    "cp037": "caf\u00e9",
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("encoding", LETTERS)
def test_any_encoding_that_python_knows(tmp_path, encoding, marked):
    name = LETTERS[encoding]
    mark = "\ufeff" if marked and encoding[:3].lower() == "utf" else ""

    def encoded(*objects):
        path = write(tmp_path, *objects)
        text = f"{mark}<?xml version='1.0' encoding='{encoding}'?>\n{path.read_text()}"
        path.write_bytes(text.encode(encoding))
        return path

    good = f"<name>{name}</name>{box(1, 1, 2, 2)}"
    assert parse_annotation(encoded(good)).names == (name,)
    assert f"line 6, object 2 ('{name}'): the object has no <bndbox>" in refusal(encoded(good, f"<name>{name}</name>"))


def test_an_encoding_declared_and_not_kept(tmp_path):
    path = write(tmp_path, f"<name>dog</name>{box(1, 1, 2, 2)}")
    plain = path.read_text().replace("picture.jpg", "C:\\\u7528\u6237\\a.jpg")
    # What nothing reads may hold anything; as may .NET's strings, which call themselves UTF-16 whatever they become.
    for declared, real in (("utf-8", "gbk"), ("gb2312", "gb18030"), ("ascii", "utf-8"), ("utf-16", "utf-8")):
        path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{plain}'.encode(real))
        assert parse_annotation(path).names == ("dog",)
    path.write_bytes(plain.replace("dog", "\u732b").encode("shift_jis", "replace"))
    assert "<name> is" in refusal(path)
    assert "save the file as UTF-8" in refusal(path)


@pytest.mark.parametrize("encoding", ["utf8", "utf-16", "gb18030", "utf-7", "shift_jis"])
def test_entity_bombs_in_any_encoding(tmp_path, encoding):
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    path = write(tmp_path, f"<name>&a9;</name>{box(1, 1, 2, 2)}", head=f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>')
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{path.read_text()}'.encode(encoding))
    start = time.process_time()
    assert "entities" in refusal(path)
    assert time.process_time() - start < 1


def test_names_are_composed(tmp_path):
    path = write(tmp_path, f"<name>cafe\u0301</name>{box(1, 1, 2, 2)}")
    assert parse_annotation(path).names == ("caf\u00e9",)


def test_something_else_than_an_annotation(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<html><body/></html>")
    assert "no VOC annotation: it holds <html>" in refusal(path)


def test_malformed_xml_names_the_line(tmp_path):
    path = write(tmp_path, "<name>dog</nam>")
    assert "line 4, column " in refusal(path)
    assert "mismatched tag" in refusal(path)
    path.write_bytes(b"")
    assert "no element found" in refusal(path)
    path.write_bytes(b'<?xml version="1.0" encoding="no-such-code"?><annotation/>')
    assert "malformed XML" in refusal(path)
    path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    assert "malformed XML" in refusal(path)


def test_entity_bomb_is_refused_at_once(tmp_path):
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    path = write(tmp_path, f"<name>&a9;</name>{box(1, 1, 2, 2)}", head=f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>')
    start = time.process_time()
    assert "entities" in refusal(path)
    assert time.process_time() - start < 1


def test_external_entity_is_refused(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("dog")
    head = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{secret}">]>'
    assert "entities" in refusal(write(tmp_path, f"<name>&a;</name>{box(1, 1, 2, 2)}", head=head))


def test_unreadable_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.xml")
    assert "Is a directory" in refusal(tmp_path)


def test_locate_object_counts_lines_of_direct_children(tmp_path):
    path = write(tmp_path, f"<name>dog</name>\n\n{box(1, 1, 2, 2)}", f"<name>cat</name>{box(1, 1, 2, 2)}")
    assert locate_object(path, 1) == f"{path}, line 7, object 2 ('cat')"


@pytest.mark.skipif(not (REAL / "VOCdevkit/VOC2007/Annotations").is_dir(), reason="real VOC2007 is not there")
def test_all_of_voc2007_parse_fast():
    paths = sorted((REAL / "VOCdevkit/VOC2007/Annotations").glob("*.xml"))
    start = time.process_time()
    found = [parse_annotation(path) for path in paths]
    assert time.process_time() - start < 6  # about 1 s on an idle core
    # The official statistics of VOC2007: 9,963 pictures with 24,640 objects, not counting difficult ones.
    assert len(found) == 9963
    assert sum(int((~annotation.difficult).sum()) for annotation in found) == 24640
    assert len({name for annotation in found for name in annotation.names}) == 20
