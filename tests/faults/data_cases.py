"""Detection data with something wrong in them."""

from __future__ import annotations

from commands import COMPARE, DETECTION_DATA, EVAL, EXPORT, TRAIN_DET, VISUALIZE
from faults import Case, Place, picture, rooted

LIST = "voc/ImageSets/Main/test.txt"
XML = "voc/Annotations/test_000002.xml"
JPEG = "voc/JPEGImages/test_000002.jpg"

# A root of one's own: {root}, which a case sets.
_ROOT = {
    "train_det": f"{TRAIN_DET} --data-root {{root}}",
    "eval_voc": EVAL.replace("{voc}", "{root}"),
    "visualize_diff": VISUALIZE.replace("{voc}", "{root}"),
    "compare": f"{COMPARE} data.root={{root}}",
}
_SPLIT = {
    "train_det": f"{TRAIN_DET} data.test=tset",
    "eval_voc": f"{EVAL} --split tset",
    "visualize_diff": f"{VISUALIZE} --split tset",
    "compare": f"{COMPARE} data.test=tset",
}


def _in_xml(old: str, new: str):
    return lambda place: place.replace(XML, old, new)


def _first(tag: str, value: str):
    """The first <tag> of the annotation's objects gets *value*."""

    def change(place: Place) -> None:
        place["voc"]
        text = (place.tmp / XML).read_text()
        before, after = text.split(f"<{tag}>", 1)
        place.write(XML, f"{before}<{tag}>{value}<{after.split('<', 1)[1]}")

    return change


def _first_object(place: Place, **sides: int) -> None:
    for side, value in sides.items():
        _first(side, str(value))(place)


BOMB = """<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation><folder>&c;</folder></annotation>"""
OUTSIDE = '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'

FOLDERS = [
    Case(
        "root-missing",
        "a data root that is not there",
        _ROOT,
        "nowhere: no such folder; give the one that holds VOCdevkit, or Annotations and JPEGImages",
        rooted("nowhere"),
    ),
    Case(
        "root-file",
        "a file for a data root",
        _ROOT,
        "notes.txt: no such folder; give the one that holds VOCdevkit, or Annotations and JPEGImages",
        rooted("notes.txt", lambda p: p.write("notes.txt", "x")),
    ),
    Case(
        "root-empty",
        "an empty data root",
        _ROOT,
        "empty: holds no VOC2007 with Annotations, ImageSets/Main, JPEGImages; give the folder that holds them",
        rooted("empty", lambda p: (p.tmp / "empty").mkdir()),
    ),
    Case(
        "root-other-year",
        "a data root without the year that is asked for",
        _ROOT,
        "kit: holds no VOC2007 with Annotations, ImageSets/Main, JPEGImages; the years that are there: '2012'",
        rooted("kit", lambda p: p["voc"].rename((p.tmp / "kit").mkdir() or p.tmp / "kit" / "VOC2012")),
    ),
    Case(
        "plain-split",
        "a split that XML files beside their pictures do not have",
        _ROOT,
        "own: no split '…'; it has no lists, its splits are 'all': give data.train='all[:-3]' data.test='all[-3:]'",
        rooted("own", lambda p: (p.remove("voc/ImageSets"), p["voc"].rename(p.tmp / "own"))),
    ),
    Case("root-long", "a name too long for the system", _ROOT, "…: File name too long", rooted("x" * 300)),
    Case(
        "folder-missing",
        "a data set without its pictures' folder",
        DETECTION_DATA,
        "voc: holds no folder JPEGImages, which a VOC-format data set must have",
        lambda p: p.remove("voc/JPEGImages"),
    ),
    Case(
        "split-unknown",
        "a split that is not there",
        _SPLIT,
        "voc/ImageSets/Main: no split 'tset' (did you mean 'test'?); the splits there: 'test', 'trainval', 'val'",
    ),
    Case(
        "list-empty",
        "an empty list",
        DETECTION_DATA,
        "voc/ImageSets/Main/test.txt: the list names no picture",
        lambda p: p.write(LIST, "\n"),
    ),
    Case(
        "list-binary",
        "a list that is no text",
        DETECTION_DATA,
        "voc/ImageSets/Main/test.txt: cannot read the list, which must be UTF-8 text: …",
        lambda p: p.write(LIST, b"\xff\xfe\x00"),
    ),
    Case(
        "list-picture",
        "a list that names a picture that is not there",
        DETECTION_DATA,
        "voc/ImageSets/Main/test.txt, line 3: no picture JPEGImages/test_000002.jpg, nor with another suffix "
        "(1 of 6 pictures are not there); add them, or take their names away (all there: 'trainval')",
        lambda p: p.remove(JPEG),
    ),
    Case(
        "list-annotation",
        "a list that names a picture without annotation",
        DETECTION_DATA,
        "voc/ImageSets/Main/test.txt, line 3: no annotation Annotations/test_000002.xml (1 of 6 annotations "
        "are not there); add them, or take their names away",
        lambda p: p.remove(XML),
    ),
]
ANNOTATIONS = [
    Case(
        "xml-empty",
        "an empty annotation file",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 1, column 1: malformed XML: …",
        lambda p: p.write(XML, ""),
    ),
    Case(
        "xml-malformed",
        "an annotation that is cut off",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 24, column 3: malformed XML: …",
        lambda p: p.truncate(XML),
    ),
    Case(
        "xml-encoding",
        "an annotation in an unknown encoding",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml: malformed XML: …",
        lambda p: p.write(XML, '<?xml version="1.0" encoding="no-such"?><annotation/>'),
    ),
    Case(
        "xml-bomb",
        "an annotation that declares entities of entities",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml: the XML declares entities, which are refused as unsafe; remove them",
        lambda p: p.write(XML, BOMB),
    ),
    Case(
        "xml-external",
        "an annotation that asks for another file",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml: the XML declares entities, which are refused as unsafe; remove them",
        lambda p: p.write(XML, OUTSIDE),
    ),
    Case(
        "xml-none",
        "something else than an annotation",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml: no VOC annotation: it holds <html> instead of <annotation>",
        lambda p: p.write(XML, "<html><body/></html>"),
    ),
    Case(
        "xml-other-size",
        "an annotation of another size than the picture's",
        DETECTION_DATA,
        "voc/JPEGImages/test_000002.jpg: the picture is 64 x 64 pixels, but voc/Annotations/test_000002.xml "
        "says 96 x 64; its boxes would be misplaced: correct the <size> and the boxes, or restore the picture",
        _in_xml("<width>64", "<width>96"),
    ),
    Case(
        "object-name",
        "an object without a name",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1: <name> is missing or empty",
        _first("name", ""),
    ),
    Case(
        "object-class",
        "an object of an unknown class",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('strar'): unknown class (did you mean 'star'?); "
        "mend the file, or list it among the classes (data.classes), which are 'cross', 'disc', 'star'",
        _first("name", "strar"),
    ),
    Case(
        "object-box",
        "an object without a box",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): the object has no <bndbox>",
        _in_xml("bndbox>", "box>"),
    ),
    Case(
        "object-word",
        "a coordinate that is a word",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): <xmin> is 'left', which is not a finite number",
        _first("xmin", "left"),
    ),
    Case(
        "object-infinite",
        "a coordinate that is infinite",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): <xmax> is 'inf', which is not a finite number",
        _first("xmax", "inf"),
    ),
    Case(
        "object-outside",
        "a box of which nothing is in the picture",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): box (400, 1, 640, 28) lies wholly outside the "
        "picture of 64 x 64 pixels, counted from 1",
        lambda p: _first_object(p, xmin=400, xmax=640),
    ),
    Case(
        "object-negative",
        "a box that begins left of the picture, and is not to be cut",
        {"train_det": f"{TRAIN_DET} data.boxes=refuse", "eval_voc": f"{EVAL} data.boxes=refuse"},
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): box (-5, 1, 64, 28) reaches out of the "
        "picture of 64 x 64 pixels, counted from 1; correct it, or give data.boxes=clip",
        _first("xmin", "-5"),
    ),
    Case(
        "object-letters",
        "a class name that is not in the encoding of the file",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('d\ufffdsc'): <name> is 'd\ufffdsc', whose bytes are "
        "not in the encoding of the file; save the file as UTF-8",
        lambda p: p.write(XML, (p["voc"].parent / XML).read_bytes().replace(b"<name>disc", b"<name>d\xefsc", 1)),
    ),
    Case(
        "object-inverted",
        "an inverted box",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): box (60, 1, 5, 28) is inverted or "
        "empty: xmax must be at least xmin, and ymax at least ymin",
        lambda p: _first_object(p, xmin=60, xmax=5),
    ),
    Case(
        "object-difficult",
        "a flag that is neither 0 nor 1",
        DETECTION_DATA,
        "voc/Annotations/test_000002.xml, line 14, object 1 ('disc'): <difficult> is 'very'; it must be 0 or 1",
        _first("difficult", "very"),
    ),
]
PICTURES = [
    Case(
        "picture-empty",
        "an empty picture file",
        DETECTION_DATA,
        "voc/JPEGImages/test_000002.jpg: not a picture, or damaged at its start",
        lambda p: p.write(JPEG, ""),
    ),
    Case(
        "picture-none",
        "a text file for a picture",
        DETECTION_DATA,
        "voc/JPEGImages/test_000002.jpg: not a picture, or damaged at its start",
        lambda p: p.write(JPEG, "no picture"),
    ),
    Case(
        "picture-size",
        "a picture of another size than its annotation's",
        DETECTION_DATA,
        "voc/JPEGImages/test_000002.jpg: the picture is 64 x 48 pixels, but voc/Annotations/test_000002.xml "
        "says 64 x 64; its boxes would be misplaced: correct the <size> and the boxes, or restore the picture",
        lambda p: p.write(JPEG, picture("RGB", (64, 48), "JPEG")),
    ),
    Case(
        "picture-strip",
        "a picture so flat that a detector would see nothing of it",
        DETECTION_DATA,
        "voc/JPEGImages/test_000002.jpg: the picture is 640 x 5 pixels, a strip flatter than 50 to 1, of which a "
        "detector sees nothing; cut it into pieces, or leave it out",
        lambda p: (
            p.write(JPEG, picture("RGB", (640, 5), "JPEG")),
            p.write(XML, "<annotation><size><width>640</width><height>5</height></size></annotation>"),
        ),
    ),
    Case(
        "picture-strip-exported",
        "a strip to compare an exported detector on",
        {"export": f"{EXPORT} --format onnx --image-size 1 128"},
        "--image-size: the picture is 128 x 1 pixels, a strip flatter than 50 to 1, of which a detector sees nothing; "
        "cut it into pieces, or leave it out",
        leaves=("out",),
    ),
    Case(
        "picture-huge",
        "a picture of more pixels than are decoded",
        {"train_det": f"{TRAIN_DET} data.max_pixels=4e3", "eval_voc": f"{EVAL} data.max_pixels=4e3"},
        "voc/JPEGImages/t…_000000.jpg: the picture has 4,096 pixels, and 4,000 are the most that is decoded: cut it "
        "into tiles, or raise that limit (data.max_pixels, predict.py: --max-pixels)",
    ),
    Case(
        "picture-truncated",
        "a picture cut off, found when it is looked at",
        {"eval_voc": EVAL, "visualize_diff": VISUALIZE},
        "voc/JPEGImages/test_000002.jpg: the picture is truncated or damaged: …",
        lambda p: p.truncate(JPEG),
        leaves=("out",),
    ),
    Case(
        "picture-truncated-trained",
        "a training picture cut off",
        {"train_det": f"{TRAIN_DET} train.workers=1"},
        "voc/JPEGImages/trainval_000003.jpg: the picture is truncated or damaged: …",
        lambda p: p.truncate("voc/JPEGImages/trainval_000003.jpg"),
        leaves=("out", "out/config.yaml", "out/log.jsonl"),
    ),
    Case(
        "picture-float",
        "a picture of 32-bit floating point",
        {"eval_voc": EVAL},
        "voc/JPEGImages/test_000002.tif: pixels of 32-bit floating point have no known range; save the "
        "picture as 8-bit RGB",
        lambda p: (p.remove(JPEG), p.write(JPEG.replace(".jpg", ".tif"), picture("F", (64, 64), "TIFF"))),
    ),
]


SECTIONS = {"Folders and lists of detection data": FOLDERS, "Annotations": ANNOTATIONS, "Pictures": PICTURES}
