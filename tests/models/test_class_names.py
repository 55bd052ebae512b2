"""Classes of a teacher and a student are matched by name."""

import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkt.base.errors import InputError
from detkt.data.voc import VOC_CLASSES
from detkt.models.class_names import class_map


def test_every_class_of_voc_is_found_among_coco_s():
    """The labels are those of torchvision's COCO detectors, as its weights list them: label 5 is an airplane."""
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    found = class_map(VOC_CLASSES, categories[1:])
    assert None not in found
    labels = dict(zip(VOC_CLASSES, (index + 1 for index in found if index is not None), strict=True))
    assert labels == {
        "aeroplane": 5, "bicycle": 2, "bird": 16, "boat": 9, "bottle": 44, "bus": 6, "car": 3, "cat": 17, "chair": 62,
        "cow": 21, "diningtable": 67, "dog": 18, "horse": 19, "motorbike": 4, "person": 1, "pottedplant": 64,
        "sheep": 20, "sofa": 63, "train": 7, "tvmonitor": 72,
    }  # fmt: skip


def test_the_other_way_and_unknown_classes():
    assert class_map(["tv", "kite", "airplane"], ["aeroplane", "tvmonitor"]) == [1, None, 0]


def test_case_and_separators_do_not_count_but_an_equal_name_comes_first():
    assert class_map(["Potted_Plant", "RBC"], ["rbc", "potted plant"]) == [1, 0]
    assert class_map(["rbc", "RBC"], ["RBC", "rbc"]) == [1, 0]


def test_the_config_s_map_comes_before_the_names():
    assert class_map(["van", "car", "person"], ["car", "person", "truck"], {"van": "truck", "person": None}) == [
        2,
        0,
        None,
    ]


@pytest.mark.parametrize(
    ("student", "extra", "said"),
    [
        (["van"], {"vna": "car"}, "teacher.class_map: the student has no class 'vna' (did you mean 'van'?)"),
        (["van"], {"van": "cra"}, "teacher.class_map: the teacher has no class 'cra'"),
        (["van", "car"], {"van": "car"}, "the student's classes 'van' and 'car' are both the teacher's 'car'"),
    ],
)
def test_a_map_that_cannot_be(student, extra, said):
    with pytest.raises(InputError) as refused:
        class_map(student, ["car", "person"], extra)
    assert said in str(refused.value)
