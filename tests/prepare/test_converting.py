"""Conversion between formats: nothing changes, or what is lost is named, and no folder is half written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import three_formats as three

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import test_set as open_test_set
from detkt.prepare.checking import check_dataset
from detkt.prepare.converting import FORMATS, convert

PAIRS = [(one, other) for one in FORMATS for other in FORMATS]


def opened(root: Path, data_format: str, split: str):
    return open_test_set(DataConfig(format=data_format, root=str(root), test=split))


def same(root: Path, other: Path, formats: tuple[str, str], splits=("train", "val")) -> None:
    for split in splits:
        one, two = (opened(place, name, split) for place, name in zip((root, other), formats, strict=True))
        assert (one.ids, one.classes, one.sizes) == (two.ids, two.classes, two.sizes)
        for a, b in zip(one.pictures, two.pictures, strict=True):
            assert tuple(a.names) == tuple(b.names)
            for key in ("boxes", "difficult", "crowd"):
                assert np.array_equal(getattr(a, key), getattr(b, key)), (split, a.id, key)
            assert a.image.read_bytes() == b.image.read_bytes() and a.image.suffix == b.image.suffix


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back_changes_nothing(tmp_path, source, target):
    root = three.WRITE[source](tmp_path / "own")
    done = convert(root, target, tmp_path / "there", DataConfig(train="", test=""), quiet=True)
    assert done.lost == [] and done.splits == {"train": 4, "val": 2} and done.objects == 9
    same(root, tmp_path / "there", (source, target))
    assert check_dataset(tmp_path / "there", quiet=True).errors == []
    convert(tmp_path / "there", source, tmp_path / "back", DataConfig(train="", test=""), quiet=True)
    same(root, tmp_path / "back", (source, source))
    convert(tmp_path / "back", target, tmp_path / "again", DataConfig(train="", test=""), quiet=True)
    files = {}
    for place in ("there", "again"):
        paths = [path for path in (tmp_path / place).rglob("*") if path.is_file()]
        files[place] = {str(path.relative_to(tmp_path / place)): path.read_bytes() for path in paths}
    assert files["there"] == files["again"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "back", "own", "there"]


def test_values_that_are_written(tmp_path):
    scenes = {"train": [three.Scene("a", (40, 20), [("cross", (2, 4, 12, 10))])]}
    root = three.write_voc(tmp_path / "own", scenes)
    for target in FORMATS:
        convert(root, target, tmp_path / target, DataConfig(train="train", test=""), quiet=True)
    assert (tmp_path / "yolo/labels/a.txt").read_text() == "0 0.175 0.35 0.25 0.3\n"
    content = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 4, 10, 6], "area": 60, "iscrowd": 0}
    ]
    assert content["categories"] == [{"id": 1, "name": "cross"}]
    xml = (tmp_path / "voc/Annotations/a.xml").read_text()
    assert "<xmin>3</xmin><ymin>5</ymin><xmax>12</xmax><ymax>10</ymax>" in xml
    assert not (tmp_path / "voc/classes.txt").exists()


def with_flags(root: Path) -> Path:
    """COCO data of which one object is a crowd, one difficult, one has an outline's area, one reaches out."""
    three.write_coco(root)
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    crowd, difficult, outlined, beyond = content["annotations"][:4]
    crowd["iscrowd"], difficult["difficult"], outlined["area"] = 1, 1, 12.5
    beyond["bbox"] = [30, 20, 40, 20]
    path.write_text(json.dumps(content))
    return root


def test_what_coco_knows_is_kept_in_coco(tmp_path):
    root = with_flags(tmp_path / "own")
    convert(root, "coco", tmp_path / "coco", DataConfig(train="", test=""), quiet=True)
    same(root, tmp_path / "coco", ("coco", "coco"))
    ours, theirs = (opened(place, "coco", "train").annotations() for place in (root, tmp_path / "coco"))
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert np.array_equal(one["measured"], other["measured"])


def test_what_is_lost_is_named(tmp_path):
    root = with_flags(tmp_path / "own")
    with pytest.raises(InputError) as refusal:
        convert(root, "yolo", tmp_path / "yolo", DataConfig(train="", test=""), quiet=True)
    lost = "1 difficult object, which is left out; 1 crowd, which is left out; 2 areas of outlines, or boxes beyond"
    assert all(part in str(refusal.value) for part in lost.split("; ")) and "give --lossy" in str(refusal.value)
    assert not (tmp_path / "yolo").exists()
    done = convert(root, "yolo", tmp_path / "yolo", DataConfig(train="", test=""), lossy=True, quiet=True)
    assert len(done.lost) == 3 and done.objects == 7
    done = convert(root, "voc", tmp_path / "voc", DataConfig(train="", test=""), lossy=True, quiet=True)
    assert len(done.lost) == 2 and "1 crowd, which becomes a difficult object" in done.lost
    kept = opened(tmp_path / "voc", "voc", "train").annotations()
    assert sum(one["difficult"].sum() for one in kept.values()) == 2
    assert [len(one["labels"]) for one in kept.values()] == [2, 1, 0, 2]


def test_order_of_classes_outlives_voc(tmp_path):
    root = three.write_yolo(tmp_path / "own")
    head = (root / "data.yaml").read_text().replace("- cross\n- disc\n- star", "- star\n- cross\n- disc\n- never seen")
    (root / "data.yaml").write_text(head.replace("nc: 3", "nc: 4"))
    convert(root, "voc", tmp_path / "voc", DataConfig(train="", test=""), quiet=True)
    assert (tmp_path / "voc/classes.txt").read_text().split("\n") == ["star", "cross", "disc", "never seen", ""]
    same(root, tmp_path / "voc", ("yolo", "voc"))
    assert check_dataset(tmp_path / "voc", quiet=True).errors == []
    convert(tmp_path / "voc", "yolo", tmp_path / "back", DataConfig(train="", test=""), quiet=True)
    same(root, tmp_path / "back", ("yolo", "yolo"))


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    root = three.write_voc(tmp_path / "own")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=r"there is there already; give --output a folder that is not"):
        convert(root, "coco", tmp_path / "there", DataConfig(train="", test=""), quiet=True)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(InputError, match=r"cannot write .*new: No space left on device"):
        convert(root, "coco", tmp_path / "new", DataConfig(train="", test=""), quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "there"]


def test_pictures_are_copied_where_links_are_not_known(tmp_path, monkeypatch):
    root = three.write_voc(tmp_path / "own")
    convert(root, "coco", tmp_path / "linked", DataConfig(train="", test=""), quiet=True)
    assert (tmp_path / "linked/images/a.png").samefile(root / "JPEGImages/a.png")

    def unknown(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", unknown)
    convert(root, "coco", tmp_path / "copied", DataConfig(train="", test=""), quiet=True)
    assert not (tmp_path / "copied/images/a.png").samefile(root / "JPEGImages/a.png")
    same(root, tmp_path / "copied", ("voc", "coco"))


def test_pictures_of_one_name_in_two_splits(tmp_path):
    """train/1.png and val/1.png of YOLO's folders are two pictures."""
    root = three.write_yolo(tmp_path / "own", {"train": [three.Scene("1", (30, 20), [("disc", (1, 1, 9, 9))])]})
    for split in ("train", "val"):
        for part, suffix in (("images", "png"), ("labels", "txt")):
            (root / part / split).mkdir(parents=True)
            content = (root / part / f"1.{suffix}").read_bytes()
            (root / part / split / f"1.{suffix}").write_bytes(content)
    three.draw(root / "images/val/1.png", (30, 20), 9)
    (root / "data.yaml").write_text("names: [cross, disc, star]\ntrain: images/train\nval: images/val\n")
    assert opened(root, "yolo", "train").ids == opened(root, "yolo", "val").ids == ["1"]
    assert opened(root, "yolo", "train+val").ids == ["images/train/1", "images/val/1"]
    convert(root, "coco", tmp_path / "coco", DataConfig(train="", test=""), quiet=True)
    assert opened(tmp_path / "coco", "coco", "train").ids == ["1"]
    assert opened(tmp_path / "coco", "coco", "val").ids == ["val/1"]


def test_the_command(tool, tmp_path, capsys):
    root = with_flags(tmp_path / "own")
    prepare = tool("prepare_data").main
    for flags, message in (
        (["--convert", "voc"], "go together"),
        (["--output", "x"], "go together"),
        (["--lossy"], "--lossy is for --convert"),
        (["--convert", "voc", "--output", str(root)], "is there already"),
        (["--convert", "voc", "--output", str(tmp_path / "voc")], "give --lossy"),
    ):
        with pytest.raises(InputError, match=message):
            prepare([str(root), "--quiet", *flags])
    flags = ["--convert", "voc", "--output", str(tmp_path / "voc"), "--lossy", "data.train=train"]
    prepare([str(root), "--quiet", *flags])
    out = capsys.readouterr().out
    assert "lost: 1 crowd, which becomes a difficult object" in out
    assert out.splitlines()[-1] == f"{tmp_path / 'voc'}: voc, 5 objects, pictures of train (4)"
    prepare([str(tmp_path / "voc"), "--check", "--quiet", "data.train=train"])
