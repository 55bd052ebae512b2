from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from detkt.base.errors import InputError
from detkt.data.transforms import TrainTransforms
from detkt.data.voc import VOC_CLASSES, VOCDetection

REAL = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).parents[2].parent / "shared/data"))
real_data = pytest.mark.skipif(not (REAL / "VOCdevkit/VOC2007/JPEGImages").is_dir(), reason="real data is not there")

WIDTH, HEIGHT = 40, 30


def write_xml(folder, identifier, objects, size=(WIDTH, HEIGHT)):
    """objects: (name, box, difficult)"""
    lines = ["<annotation>", f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for name, box, difficult in objects:
        sides = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        lines.append(f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>")
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{identifier}.xml").write_text("\n".join([*lines, "</annotation>"]))


def write_image(folder, name, value=0, size=(WIDTH, HEIGHT)):
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255, 0)).save(folder / "JPEGImages" / name)


def write_list(folder, split, text):
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main" / f"{split}.txt").write_bytes(text.encode())


OBJECTS = {
    "a": [("dog", (1, 1, 40, 30), 0), ("cat", (3, 4, 5, 6), 1), ("person", (7, 8, 7, 8), 0)],
    "b": [],
    "c": [("dog", (2, 2, 9, 9), 1)],
}


def voc(folder, objects=OBJECTS, split="train"):
    for value, (identifier, found) in enumerate(objects.items()):
        write_xml(folder, identifier, found)
        write_image(folder, f"{identifier}.png", 50 * value)
    write_list(folder, split, "".join(f"{identifier}\n" for identifier in objects))
    return folder


def refusal(*arguments, **options):
    with pytest.raises(InputError) as caught:
        VOCDetection(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_item(tmp_path):
    dataset = VOCDetection(voc(tmp_path), "train")
    assert len(dataset) == 3
    image, target = dataset[0]
    assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), torch.float32)
    assert image.is_contiguous()
    assert image[:, 5, 5].tolist() == [0, 1, 0]
    assert dataset[2][0][0, 0, 0] == torch.tensor(100 / 255)
    assert set(target) == {"boxes", "labels", "image_id", "flipped"}
    assert target["flipped"].dtype == torch.bool and not target["flipped"]
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [6, 7, 7, 8]]
    assert target["labels"].dtype == torch.int64
    assert target["labels"].tolist() == [VOC_CLASSES.index("dog") + 1, VOC_CLASSES.index("person") + 1]
    assert target["image_id"].dtype == torch.int64
    assert [int(target["image_id"]) for _, target in dataset] == [0, 1, 2]


@pytest.mark.parametrize("index", [1, 2])
def test_no_object_left(tmp_path, index):
    _, target = VOCDetection(voc(tmp_path), "train")[index]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_difficult_objects(tmp_path):
    dataset = VOCDetection(voc(tmp_path), "train", keep_difficult=True)
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 40, 30], [2, 3, 5, 6], [6, 7, 7, 8]]
    assert len(dataset[2][1]["labels"]) == 1


def test_attributes(tmp_path):
    dataset = VOCDetection(voc(tmp_path), "train")
    assert dataset.ids == ["a", "b", "c"]
    assert dataset.sizes == [(WIDTH, HEIGHT)] * 3
    assert dataset.classes == list(VOC_CLASSES)
    assert dataset.image_path(1) == tmp_path / "JPEGImages/b.png"
    annotations = dataset.annotations()
    assert list(annotations) == dataset.ids
    assert annotations["a"]["boxes"].tolist() == [[1, 1, 40, 30], [3, 4, 5, 6], [7, 8, 7, 8]]
    assert annotations["a"]["labels"] == ["dog", "cat", "person"]
    assert annotations["a"]["difficult"].tolist() == [False, True, False]
    assert annotations["b"]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_where_the_folder_may_lie(tmp_path, inner):
    voc(tmp_path / inner)
    assert VOCDetection(str(tmp_path), "train", year="2012").ids == ["a", "b", "c"]


def test_joined_lists_of_several_years(tmp_path):
    devkit = tmp_path / "VOCdevkit"
    voc(devkit / "VOC2007", {"a": OBJECTS["a"], "b": []})
    write_list(devkit / "VOC2007", "val", "b\n")
    voc(devkit / "VOC2012", {"c": OBJECTS["c"]})
    assert VOCDetection(tmp_path, "2012:train+2007:train").ids == ["c", "a", "b"]
    assert VOCDetection(tmp_path, "val + train").ids == ["b", "a"]
    assert VOCDetection(tmp_path, "2007:val+train", year="2012").ids == ["b", "c"]
    assert VOCDetection(devkit / "VOC2007", "2007:val").ids == ["b"]
    assert "holds no VOC2012" in refusal(devkit / "VOC2007", "2012:train")
    write_xml(devkit / "VOC2012", "a", [])
    write_image(devkit / "VOC2012", "a.jpg")
    write_list(devkit / "VOC2012", "train", "a\n")
    assert "picture id 'a' is taken" in refusal(tmp_path, "2012:train+2007:train")


def test_untidy_lists(tmp_path):
    folder = voc(tmp_path)
    write_xml(folder, "scan 1", [])
    write_image(folder, "scan 1.JPG")
    write_xml(folder, "v1.2", [])
    write_image(folder, "v1.2.jpeg")
    write_list(folder, "train", "\ufeffc.png\r\n\r\n  a \t\r\nc\r\nscan 1\r\nv1.2\r\n\r\n")
    dataset = VOCDetection(folder, "train")
    assert dataset.notes == [f"{folder / 'ImageSets/Main/train.txt'}: 1 pictures are named more than once"]
    assert dataset.ids == ["c", "a", "scan 1", "v1.2"]
    assert dataset.image_path(2).name == "scan 1.JPG"


def test_list_of_one_class(tmp_path):
    write_list(voc(tmp_path), "dog_train", "a  1\nb -1\nc  0\n")
    assert VOCDetection(tmp_path, "dog_train").ids == ["a", "c"]


def test_own_classes(tmp_path):
    objects = {"a": [("RBC", (1, 1, 2, 2), 0), ("Platelets", (1, 1, 3, 3), 0)], "b": [("RBC", (1, 1, 2, 2), 1)]}
    folder = voc(tmp_path, objects)
    dataset = VOCDetection(folder, "train")
    assert dataset.classes == ["Platelets", "RBC"]
    assert dataset[0][1]["labels"].tolist() == [2, 1]
    given = VOCDetection(folder, "train", classes=["WBC", "RBC", "Platelets"])
    assert given.classes == ["WBC", "RBC", "Platelets"]
    assert given[0][1]["labels"].tolist() == [2, 3]


def test_unknown_class(tmp_path):
    folder = voc(tmp_path)
    message = refusal(folder, "train", classes=["dog", "cats"])
    assert message.startswith(f"{folder / 'Annotations/a.xml'}, line 4, object 2 ('cat')")
    assert "did you mean 'cats'?" in message
    for wrong in ([], ["dog", "dog"], [""]):
        assert "classes must be different names" in refusal(folder, "train", classes=wrong)


@pytest.mark.parametrize("name", ["persom", "Person"])
def test_a_misspelt_voc_class_is_no_new_class(tmp_path, name):
    few = [("dog", (1, 1, 2, 2), 0), (name, (1, 1, 2, 2), 0)]
    folder = voc(tmp_path, {"a": [*few, *[("person", (x, 1, x + 2, 9), 0) for x in range(1, 6)]]})
    assert f"object 2 ('{name}'): unknown class (did you mean 'person'?)" in refusal(folder, "train")
    assert VOCDetection(folder, "train", classes=["dog", "person", name]).classes == ["dog", "person", name]
    # Among four it may well be a class of its own.
    write_xml(folder, "a", [*few, *[("person", (x, 1, x + 2, 9), 0) for x in range(1, 5)]])
    assert VOCDetection(folder, "train").classes == sorted(["dog", "person", name])
    assert f"'{name}' taken for classes of their own" in VOCDetection(folder, "train").notes[0]


def test_own_classes_may_share_names_with_voc(tmp_path):
    folder = voc(tmp_path, {"a": [("dog", (1, 1, 2, 2), 0), ("zebra", (1, 1, 2, 2), 0)]})
    assert VOCDetection(folder, "train").classes == ["dog", "zebra"]


def test_no_such_root_or_split(tmp_path):
    assert refusal(tmp_path / "none", "train").startswith(f"{tmp_path / 'none'}: no such folder")
    assert "holds no VOC2007" in refusal(tmp_path, "train")
    voc(tmp_path / "VOC2012")
    message = refusal(tmp_path, "train")
    assert "holds no VOC2007" in message
    assert "the years that are there: '2012'" in message
    write_list(tmp_path / "VOC2012", "val", "a\n")
    write_list(tmp_path / "VOC2012", "dog_val", "a  1\n")
    message = refusal(tmp_path, "tran", "2012")
    assert "no split 'tran' (did you mean 'train'?)" in message
    assert "the splits there: 'train', 'val'" in message
    for split in ("", "train+", "train+nothing"):
        assert "no split" in refusal(tmp_path, split, "2012")
    write_list(tmp_path / "VOC2012", "empty", "\n\n")
    assert "names no picture" in refusal(tmp_path, "empty", "2012")


def test_incomplete_folder(tmp_path):
    voc(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    assert "holds no folder JPEGImages" in refusal(tmp_path, "train")


def test_missing_picture(tmp_path):
    folder = voc(tmp_path)
    write_list(folder, "have_train", "a\nc\n")
    (folder / "JPEGImages/b.png").unlink()
    message = refusal(folder, "train")
    assert message.startswith(f"{folder / 'ImageSets/Main/train.txt'}, line 2: no picture JPEGImages/b.jpg")
    assert "1 of 3" in message
    assert message.endswith("add them, or take their names away (all there: 'have_train')")


def test_missing_annotation(tmp_path):
    folder = voc(tmp_path)
    (folder / "Annotations/c.xml").unlink()
    message = refusal(folder, "train")
    assert "train.txt, line 3: no annotation Annotations/c.xml" in message
    assert "1 of 3" in message


def test_faulty_annotation_is_found_at_once(tmp_path):
    folder = voc(tmp_path)
    write_xml(folder, "c", [("dog", (50, 5, 60, 9), 0)])
    assert refusal(folder, "train").startswith(f"{folder / 'Annotations/c.xml'}, line 3, object 1 ('dog')")


def test_size_of_picture_and_annotation_must_agree(tmp_path):
    folder = voc(tmp_path)
    write_image(folder, "b.png", size=(HEIGHT, WIDTH))
    message = refusal(folder, "train")
    assert "b.png: the picture is 30 x 40 pixels" in message
    assert f"{folder / 'Annotations/b.xml'} says 40 x 30" in message


def test_picture_replaced_after_the_start(tmp_path):
    folder = voc(tmp_path)
    dataset = VOCDetection(folder, "train")
    write_image(folder, "a.png", size=(50, 50))
    with pytest.raises(InputError, match="the picture is 50 x 50"):
        dataset[0]


@pytest.mark.parametrize(("stored", "says"), [((40, 30), (30, 40)), ((40, 30), (40, 30))])
def test_exif_rotation_follows_the_annotation(tmp_path, stored, says):
    folder = voc(tmp_path, {"a": []})
    write_xml(folder, "a", [], size=says)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", stored).save(folder / "JPEGImages/a.png", exif=exif)
    assert VOCDetection(folder, "train")[0][0].shape == (3, says[1], says[0])


def test_pictures_that_are_none(tmp_path):
    folder = voc(tmp_path)
    (folder / "JPEGImages/b.png").write_text("<html>")
    assert "b.png: not a picture" in refusal(folder, "train")
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "JPEGImages/b.png")
    data = (folder / "JPEGImages/b.png").read_bytes()
    (folder / "JPEGImages/b.png").write_bytes(data[: len(data) // 2])
    dataset = VOCDetection(folder, "train")
    with pytest.raises(InputError, match=r"b\.png: the picture is truncated"):
        dataset[1]


def test_index_beyond_the_end(tmp_path):
    dataset = VOCDetection(voc(tmp_path), "train")
    with pytest.raises(IndexError):
        dataset[3]
    assert int(dataset[-1][1]["image_id"]) == 2


def test_sample_seed_reaches_the_transforms(tmp_path):
    calls = []

    def record(image, boxes, labels, seed):
        calls.append((image.dtype, image.shape, boxes.tolist(), labels.dtype, seed))
        return image[:, :10], boxes[:0], labels[:0], True

    dataset = VOCDetection(voc(tmp_path), "train", transforms=record)
    image, target = dataset[0, 77]
    assert calls == [(np.uint8, (HEIGHT, WIDTH, 3), [[0, 0, 40, 30], [6, 7, 7, 8]], np.int64, 77)]
    assert image.shape == (3, HEIGHT, 10)
    assert target["boxes"].shape == (0, 4)
    assert target["flipped"]
    dataset[-1]
    assert calls[-1][-1] == 2  # a plain index is its own seed


def test_the_plain_set_is_not_augmented_and_the_other_still_is(tmp_path):
    dataset = VOCDetection(voc(tmp_path), "train", transforms=TrainTransforms(flip=1))
    plain = dataset.plain()
    image, target = plain[0]
    assert torch.equal(image, VOCDetection(tmp_path, "train")[0][0])
    assert not target["flipped"]
    assert dataset[0][1]["flipped"]


def test_the_fingerprint_is_of_names_sizes_and_times(tmp_path):
    found = VOCDetection(voc(tmp_path), "train").fingerprint()
    dataset = VOCDetection(tmp_path, "train", transforms=TrainTransforms(flip=1))
    assert dataset.fingerprint() == found
    os.utime(tmp_path / "JPEGImages/b.png", ns=(1, 1))
    other = dataset.fingerprint()
    assert other != found
    write_list(tmp_path, "train", "a\nc\n")
    assert VOCDetection(tmp_path, "train").fingerprint() not in (found, other)
    (tmp_path / "JPEGImages/b.png").unlink()
    with pytest.raises(InputError, match="b.png: cannot read the picture"):
        dataset.fingerprint()


def test_same_pictures_whatever_the_workers(tmp_path):
    transforms = TrainTransforms(flip=0.5, color=0.5, scale=(0.5, 2.0))
    dataset = VOCDetection(voc(tmp_path), "train", transforms=transforms)
    batches = [[(0, 5), (1, 6)], [(2, 2**62), (0, 8)], [(0, 5), (2, 9)]]
    runs = [
        [
            sample
            for batch in DataLoader(dataset, batch_sampler=batches, num_workers=n, collate_fn=list)
            for sample in batch
        ]
        for n in (0, 2)
    ]
    for (image, target), (other_image, other_target) in zip(*runs, strict=True):
        assert torch.equal(image, other_image)
        assert all(torch.equal(target[key], other_target[key]) for key in target)
    assert torch.equal(runs[0][0][0], runs[0][4][0])  # the same index and seed, in another batch


@real_data
def test_real_voc2007_test_pictures():
    dataset = VOCDetection(REAL, "have_test")
    assert len(dataset) == 84
    assert dataset.classes == list(VOC_CLASSES)
    for index in range(0, 84, 12):
        image, target = dataset[index]
        assert image.shape[1:] == dataset.sizes[index][::-1]
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"][:, 2:] <= torch.tensor(dataset.sizes[index])).all()
    assert sum(len(found["labels"]) for found in dataset.annotations().values()) > 200


@real_data
def test_real_years_joined():
    dataset = VOCDetection(REAL, "2012:have_train+2007:have_trainval")
    assert len(dataset) == 578
    assert dataset.ids[0].startswith("20")
    assert dataset[577][0].ndim == 3


@real_data
def test_official_list_with_few_pictures_names_the_usable_ones():
    message = refusal(REAL, "trainval")
    assert "(4855 of 5011 pictures" in message
    assert "'have_trainval'" in message


@pytest.mark.skipif(not (REAL / "BCCD").is_dir(), reason="real data is not there")
def test_real_blood_cells():
    dataset = VOCDetection(REAL / "BCCD", "trainval+test", transforms=TrainTransforms(flip=1))
    assert len(dataset) == 364
    assert dataset.classes == ["Platelets", "RBC", "WBC"]
    found = dataset.annotations()
    counts = {name: sum(record["labels"].count(name) for record in found.values()) for name in dataset.classes}
    assert counts == {"Platelets": 361, "RBC": 4155, "WBC": 372}
    # Somebody clicked without dragging: a box of a single pixel is kept, and stays one pixel when flipped.
    index = dataset.ids.index("BloodImage_00338")
    assert [504, 337, 504, 337] in found["BloodImage_00338"]["boxes"].tolist()
    assert [640 - 504, 336, 640 - 503, 337] in dataset[index][1]["boxes"].tolist()
