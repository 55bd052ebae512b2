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


def refusal(path):
    with pytest.raises(InputError) as caught:
        parse_annotation(path)
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
    assert (found.filename, found.width, found.height) == ("picture.jpg", 100, 50)
    assert found.names == ("dog", "cat")
    assert found.boxes.dtype == np.float64
    assert found.boxes.tolist() == [[1, 2, 100, 50], [45.70000076, 7, 60, 20]]
    assert found.difficult.tolist() == [True, False]
    assert found.truncated.tolist() == [False, True]


def test_no_object(tmp_path):
    found = parse_annotation(write(tmp_path))
    assert found.boxes.shape == (0, 4)
    assert found.names == ()
    assert found.difficult.dtype == found.truncated.dtype == bool


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


@pytest.mark.parametrize("outside", [(-1, 1, 9, 9), (1, -0.5, 9, 9), (1, 1, 101.5, 9), (1, 1, 9, 52), (300, 1, 310, 9)])
def test_box_outside_the_picture(tmp_path, outside):
    message = refusal(write(tmp_path, f"<name>dog</name>{box(1, 1, 2, 2)}", f"<name>cat</name>{box(*outside)}"))
    assert "line 5, object 2 ('cat')" in message
    assert "outside the picture of 100 x 50" in message


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
    ("size", "complaint"),
    [
        ("", "no <size>"),
        ("<size><width>100</width></size>", "<height> is missing"),
        ("<size><width>0</width><height>0</height></size>", "0 x 0"),
        ("<size><width>10.5</width><height>10</height></size>", "10.5 x 10"),
        ("<size><width>ten</width><height>10</height></size>", "<width> is 'ten'"),
    ],
)
def test_faulty_size(tmp_path, size, complaint):
    assert complaint in refusal(write(tmp_path, size=size))


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
