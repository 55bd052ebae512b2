"""Detectors by name: every setting of the papers' tables on the objects that torchvision runs."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.ssd import SSD

from detkt.base.errors import InputError
from detkt.models import available_detectors, build_detector, card_of, default_options

SMALL = {"min_size": 128, "max_size": 128, "anchor_sizes": [16, 32, 64]}


def on_meta(name: str, **options) -> FasterRCNN:
    with torch.device("meta"):
        return build_detector(name, 21, **options)


@pytest.fixture(scope="module", params=["fasterrcnn_resnet50_c4", "fasterrcnn_vgg16", "fasterrcnn_alexnet"])
def single_level(request) -> FasterRCNN:
    return on_meta(request.param)


def test_images_are_resized_and_normalised_as_in_the_table(single_level):
    transform = single_level.transform
    assert transform.min_size == (600,)
    assert transform.max_size == 1000
    assert list(transform.image_mean) == [0.485, 0.456, 0.406]
    assert list(transform.image_std) == [0.229, 0.224, 0.225]


@pytest.mark.parametrize(("error", "original"), [(0.05, 0.05**2 / 2), (0.5, 0.5**2 / 2), (3.0, 3.0 - 0.5)])
def test_the_box_loss_is_steeper_than_the_original(error, original):
    """docs/fidelity.md: smooth L1 is quadratic up to 1/9 here, up to 1 in the original. One RoI of two counts."""
    boxes = torch.zeros(2, 8)
    boxes[0, 4] = error
    labels, targets = [torch.tensor([1, 0])], [torch.zeros(2, 4)]
    _, loss = fastrcnn_loss(torch.zeros(2, 2), boxes, labels, targets)
    ours = 9 * error**2 / 2 if error < 1 / 9 else error - 1 / 18
    assert loss.item() == pytest.approx(ours / 2)
    assert ours > original


def test_anchors_are_three_sizes_by_three_ratios_at_stride_16(single_level):
    generator = single_level.rpn.anchor_generator
    assert generator.sizes == ((128, 256, 512),)
    assert generator.aspect_ratios == ((0.5, 1.0, 2.0),)
    assert generator.num_anchors_per_location() == [9]
    assert generator.strides == (16,)


def test_rpn_settings(single_level):
    rpn = single_level.rpn
    assert rpn.proposal_matcher.high_threshold == 0.7
    assert rpn.proposal_matcher.low_threshold == 0.3
    assert rpn.fg_bg_sampler.batch_size_per_image == 256
    assert rpn.fg_bg_sampler.positive_fraction == 0.5
    assert rpn.nms_thresh == 0.7
    rpn.train()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (12000, 2000)
    rpn.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (6000, 300)


def test_rpn_head_is_one_3x3_convolution_to_512_channels(single_level):
    head = single_level.rpn.head
    convolutions = [layer for layer in head.conv.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 1
    assert convolutions[0].weight.shape == (512, single_level.backbone.out_channels, 3, 3)
    assert head.cls_logits.weight.shape == (9, 512, 1, 1)
    assert head.bbox_pred.weight.shape == (36, 512, 1, 1)


def test_roi_settings(single_level):
    heads = single_level.roi_heads
    assert heads.proposal_matcher.high_threshold == 0.5
    assert heads.proposal_matcher.low_threshold == 0.5
    assert heads.fg_bg_sampler.batch_size_per_image == 128
    assert heads.fg_bg_sampler.positive_fraction == 0.25
    assert heads.score_thresh == 0.05
    assert heads.nms_thresh == 0.3
    assert heads.detections_per_img == 100
    assert heads.box_predictor.cls_score.out_features == 21
    assert heads.box_predictor.bbox_pred.out_features == 84


@pytest.mark.parametrize(("name", "size"), [("resnet50_c4", 7), ("vgg16", 7), ("alexnet", 6)])
def test_roi_size(name, size):
    pool = on_meta(f"fasterrcnn_{name}").roi_heads.box_roi_pool
    assert pool.output_size == (size, size)
    assert pool.sampling_ratio == 2


def test_every_option_reaches_the_detector():
    options = {
        "min_size": 200,
        "max_size": 300,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "anchor_sizes": [8, 24],
        "aspect_ratios": [1.0],
        "rpn_channels": 7,
        "rpn_batch_size_per_image": 11,
        "rpn_positive_fraction": 0.4,
        "rpn_fg_iou_thresh": 0.6,
        "rpn_bg_iou_thresh": 0.2,
        "rpn_pre_nms_top_n_train": 12,
        "rpn_post_nms_top_n_train": 13,
        "rpn_pre_nms_top_n_test": 14,
        "rpn_post_nms_top_n_test": 15,
        "rpn_nms_thresh": 0.65,
        "roi_size": 5,
        "roi_sampling_ratio": 1,
        "box_batch_size_per_image": 16,
        "box_positive_fraction": 0.3,
        "box_fg_iou_thresh": 0.55,
        "box_bg_iou_thresh": 0.45,
        "box_score_thresh": 0.01,
        "box_nms_thresh": 0.35,
        "box_detections_per_img": 17,
        "frozen_stages": 3,
        "norm": "batch",
        "roi_head_stride": 1,
    }
    name = "fasterrcnn_resnet18_c4"
    assert options.keys() == default_options(name).keys()
    model = on_meta(name, **options)
    transform, rpn, heads = model.transform, model.rpn, model.roi_heads
    seen = {
        "min_size": transform.min_size[0],
        "max_size": transform.max_size,
        "image_mean": transform.image_mean,
        "image_std": transform.image_std,
        "anchor_sizes": list(rpn.anchor_generator.sizes[0]),
        "aspect_ratios": list(rpn.anchor_generator.aspect_ratios[0]),
        "rpn_channels": rpn.head.cls_logits.in_channels,
        "rpn_batch_size_per_image": rpn.fg_bg_sampler.batch_size_per_image,
        "rpn_positive_fraction": rpn.fg_bg_sampler.positive_fraction,
        "rpn_fg_iou_thresh": rpn.proposal_matcher.high_threshold,
        "rpn_bg_iou_thresh": rpn.proposal_matcher.low_threshold,
        "rpn_pre_nms_top_n_train": rpn._pre_nms_top_n["training"],
        "rpn_post_nms_top_n_train": rpn._post_nms_top_n["training"],
        "rpn_pre_nms_top_n_test": rpn._pre_nms_top_n["testing"],
        "rpn_post_nms_top_n_test": rpn._post_nms_top_n["testing"],
        "rpn_nms_thresh": rpn.nms_thresh,
        "roi_size": heads.box_roi_pool.output_size[0],
        "roi_sampling_ratio": heads.box_roi_pool.sampling_ratio,
        "box_batch_size_per_image": heads.fg_bg_sampler.batch_size_per_image,
        "box_positive_fraction": heads.fg_bg_sampler.positive_fraction,
        "box_fg_iou_thresh": heads.proposal_matcher.high_threshold,
        "box_bg_iou_thresh": heads.proposal_matcher.low_threshold,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "frozen_stages": 1 + sum(not next(layer.parameters()).requires_grad for layer in model.backbone[4:]),
        "norm": {"BatchNorm2d": "batch"}[type(model.backbone.layer3[0].bn1).__name__],
        "roi_head_stride": heads.box_head.layer4[0].conv1.stride[0],
    }
    assert seen == options


def test_fpn_has_one_anchor_size_and_one_pooling_scale_a_level():
    model = on_meta("fasterrcnn_resnet50_fpn")
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert model.rpn.anchor_generator.num_anchors_per_location() == [3] * 5
    assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert model.roi_heads.box_roi_pool.featmap_names == ["0", "1", "2", "3"]
    assert model.transform.min_size == (800,)
    assert model.roi_heads.nms_thresh == 0.5
    with pytest.raises(InputError, match="one size for each of 5 levels"):
        on_meta("fasterrcnn_resnet50_fpn", anchor_sizes=[16, 32, 64])


def test_anchors_stay_on_the_cells_of_a_net_without_padding():
    # AlexNet's map of a 128 px image is 7x7: torchvision alone would place anchors 128 // 7 = 18 px apart.
    model = build_detector("fasterrcnn_alexnet", 2, head_features=8, anchor_sizes=[32], aspect_ratios=[1.0])
    images = ImageList(torch.zeros(1, 3, 128, 128), [(128, 128)])
    feature = model.backbone(images.tensors)
    assert feature.shape[-2:] == (7, 7)
    anchors = model.rpn.anchor_generator(images, [feature])[0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[:7, 0].tolist() == [16 * i for i in range(7)]
    assert centres[::7, 1].tolist() == [16 * i for i in range(7)]


def test_pooling_scale_survives_a_first_picture_that_is_flat():
    # 33 px high is padded to 64: torchvision's guess from the first batch would be 1/8 for good.
    model = build_detector("fasterrcnn_resnet10x0.25_c4", 2, **(SMALL | {"min_size": 33, "max_size": 400}))
    model.eval()
    with torch.no_grad():
        model([torch.rand(3, 33, 330)])
    assert model.roi_heads.box_roi_pool.scales == [1 / 16]


def test_options_are_resolved_and_survive_json():
    model = on_meta("fasterrcnn_resnet18x0.5_c4", anchor_sizes=(16, 32, 64), box_score_thresh=0)
    described = json.loads(json.dumps(asdict(card_of(model)))) | {"random": ()}
    assert described == asdict(card_of(model))
    assert described["architecture"] == "fasterrcnn_resnet18x0.5_c4"
    assert described["num_classes"] == 21
    expected = default_options("fasterrcnn_resnet18x0.5_c4") | {
        "anchor_sizes": [16, 32, 64],
        "box_score_thresh": 0.0,
    }
    assert described["options"] == expected
    with torch.device("meta"):
        again = build_detector(described["architecture"], described["num_classes"], **described["options"])
    assert card_of(again) == card_of(model)


def test_default_options_are_a_copy():
    default_options("fasterrcnn_vgg16")["anchor_sizes"].append(1)
    assert default_options("fasterrcnn_vgg16")["anchor_sizes"] == [128, 256, 512]


def test_every_available_detector_builds():
    names = available_detectors()
    assert {"fasterrcnn_resnet152_c4", "fasterrcnn_resnet50_fpn", "fasterrcnn_vgg16"} <= set(names)
    for name in names:
        assert isinstance(on_meta(name), FasterRCNN | FCOS | RetinaNet | SSD)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fasterrcnn_resnet51_c4", "did you mean 'fasterrcnn_resnet"),
        ("fasterrcnn_vgg19", "did you mean 'fasterrcnn_vgg16'"),
        ("fasterrcnn_resnet50", "did you mean 'fasterrcnn_resnet50"),
        ("fasterrcnn_resnet18x_c4", "did you mean 'fasterrcnn_resnet18"),
        ("fasterrcnn_resnet18x0_c4", "above 0"),
        ("yolo", "unknown detector 'yolo'"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(InputError) as error:
        build_detector(name, 21)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_sise": 300}, r"no option 'min_sise' \(did you mean 'min_size'"),
        ({"head_features": 3}, "has no option 'head_features'"),
        ({"min_size": "600"}, "min_size must be a whole number"),
        ({"min_size": 600.5}, "min_size must be a whole number"),
        ({"rpn_channels": 0}, "rpn_channels must be above 0"),
        ({"rpn_channels": True}, "rpn_channels must be a number"),
        ({"min_size": 2000}, "min_size 2000 is above max_size 1000"),
        ({"anchor_sizes": 128}, "anchor_sizes must be a list of numbers"),
        ({"anchor_sizes": []}, "anchor_sizes must be a list of numbers"),
        ({"anchor_sizes": [16, -1]}, "anchor_sizes must be above 0"),
        ({"image_std": [1.0, 1.0]}, "three numbers"),
        ({"box_nms_thresh": 1.5}, "box_nms_thresh must be 0 or more and at most 1"),
        ({"box_nms_thresh": float("nan")}, "box_nms_thresh must be a number"),
        ({"rpn_bg_iou_thresh": 0.8}, "rpn_bg_iou_thresh 0.8 is above rpn_fg_iou_thresh 0.7"),
        ({"box_bg_iou_thresh": 0.8}, "box_bg_iou_thresh 0.8 is above box_fg_iou_thresh 0.5"),
        ({"norm": "group"}, "'frozen' or 'batch'"),
        ({"frozen_stages": 5}, "frozen_stages is 0 to 4"),
        ({"frozen_stages": -1}, "frozen_stages must be 0 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        build_detector("fasterrcnn_resnet18_c4", 21, **options)


@pytest.mark.parametrize("num_classes", [1, 0, "21", 3.0, True])
def test_bad_class_count(num_classes):
    with pytest.raises(InputError, match="num_classes"):
        build_detector("fasterrcnn_resnet18_c4", num_classes)


def test_predictor_starts_small():
    # Fast R-CNN, section 2.3: standard deviations 0.01 and 0.001.
    torch.manual_seed(0)
    predictor = build_detector("fasterrcnn_resnet18x0.5_c4", 200).roi_heads.box_predictor
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not predictor.cls_score.bias.any()


def test_a_training_step_reaches_every_parameter():
    torch.manual_seed(0)
    model = build_detector("fasterrcnn_resnet18x0.25_c4", 4, **SMALL)
    images = [torch.rand(3, 128, 128), torch.rand(3, 96, 128)]
    box = torch.tensor([[20.0, 20.0, 52.0, 52.0], [60.0, 10.0, 110.0, 70.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1, 3])}, {"boxes": box, "labels": torch.tensor([2, 2])}]
    losses = model(images, targets)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert losses["loss_classifier"].item() == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=0.1)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    quick = {"box_batch_size_per_image": 32, "roi_size": 4, "rpn_pre_nms_top_n_train": 200}
    model = build_detector("fasterrcnn_resnet10x0.25_c4", 3, **SMALL, **quick)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    image = torch.rand(3, 128, 128) * 0.2
    image[0, 30:70, 40:80] = 1.0
    targets = [{"boxes": torch.tensor([[40.0, 30.0, 80.0, 70.0]]), "labels": torch.tensor([2])}]
    history = []
    for _ in range(20):
        total = sum(model([image], targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert sum(history[-5:]) < 0.6 * sum(history[:5])
