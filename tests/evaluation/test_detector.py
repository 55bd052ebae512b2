"""What a detector finds in a picture does not depend on the pictures beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from detkt.data.voc import VOCDetection
from detkt.evaluation.detector import detect, score

CLASSES = ["cross", "disc", "star"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Seven pictures of six sizes."""
    root = tmp_path_factory.mktemp("mixed")
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    sizes = [(64, 48), (48, 64), (96, 30), (64, 64), (40, 70), (64, 48), (90, 50)]
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{number}.png")
        (root / f"Annotations/{number}.xml").write_text("<annotation></annotation>")
    (root / "ImageSets/Main/test.txt").write_text("".join(f"{number}\n" for number in range(len(sizes))))
    return VOCDetection(root, "test", classes=CLASSES)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet10x0.125_c4", "fasterrcnn_resnet10x0.125_fpn"])
def test_detections_and_scores_do_not_depend_on_the_batch_size(mixed, detector, name):
    model = detector(name, box_score_thresh=0.0, rpn_post_nms_top_n_test=20).eval()
    found = {size: detect(model, mixed, torch.device("cpu"), batch_size=size, quiet=True)[0] for size in (1, 2, 5)}
    # Annotated with a share of what was found in a picture alone, so that scores are neither 0 nor 1.
    truth = {}
    for picture, own in found[1].items():
        best = np.argsort(-own["scores"])[:6:2]
        labels = [own["labels"][index] for index in best]
        truth[picture] = {"boxes": own["boxes"][best], "labels": labels, "difficult": np.zeros(len(best), bool)}
    scores = {size: score(own, truth, CLASSES) for size, own in found.items()}
    assert 0.05 < scores[1]["map_voc07"] < 1
    for size in (2, 5):
        assert list(found[size]) == mixed.ids
        for picture in mixed.ids:
            for key in ("boxes", "scores", "labels"):
                assert np.array_equal(found[size][picture][key], found[1][picture][key]), (size, picture, key)
        assert repr(scores[size]) == repr(scores[1])  # nan is not equal to itself


def test_padding_beside_a_larger_picture_would_have_changed_them(mixed, detector):
    """The reason: the same model on the pictures of a batch, all at once."""
    model = detector("fasterrcnn_resnet10x0.125_fpn", box_score_thresh=0.0).eval()
    images = [mixed[index][0] for index in range(len(mixed))]
    with torch.inference_mode():
        together, alone = model(images), [model([image])[0] for image in images]
    same = [
        len(one["boxes"]) == len(other["boxes"]) and bool((box_iou(one["boxes"], other["boxes"]).diag() > 0.999).all())
        for one, other in zip(together, alone, strict=True)
    ]
    assert not all(same)
