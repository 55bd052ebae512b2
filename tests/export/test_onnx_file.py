"""ONNX graphs give what the networks give, on other pictures than the traced one; what does not is not written."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkt.base.errors import InputError
from detkt.data.random_pictures import noise, scenes
from detkt.export import agreement as agreeing
from detkt.export import onnx_file
from detkt.export.agreement import match_detections, split_batch
from detkt.export.batched import Preparation
from detkt.export.onnx_file import export_onnx, half_weights, open_session, trace
from detkt.models import build_classifier, build_detector, load_model, save_model
from detkt.models.card import ModelCard, add_card
from detkt.models.classifier import Classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["disc", "square", "star"]
OPTIONS = {
    "min_size": 64,
    "max_size": 96,
    "anchor_sizes": [16, 32],
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 30,
}
C4, FPN = "fasterrcnn_resnet10x0.125_c4", "fasterrcnn_resnet10x0.125_fpn"


def net(name=C4, **options) -> nn.Module:
    """A detector of random weights, so large that classes, boxes and proposals differ from place to place."""
    torch.manual_seed(0)
    model = build_detector(name, len(CLASSES) + 1, **{**OPTIONS, **options}).eval()
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(20)
    return model


def picture(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def torch_detections(model, image):
    with torch.no_grad():
        return {key: values.numpy() for key, values in model([image])[0].items()}


def onnx_detections(session, image):
    return onnx_batch(session, [image])[0]


def onnx_batch(session, images):
    return split_batch(session.run(None, {"images": torch.stack(images).numpy()}), len(images))


def assert_same(expected, found):
    """But for the order of scores that are equal up to rounding."""
    assert len(found["scores"]) == len(expected["scores"])
    if len(expected["scores"]):
        nearest = np.abs(expected["boxes"][:, None] - found["boxes"]).max(axis=2)
        order = (nearest + 1e4 * (expected["labels"][:, None] != found["labels"])).argmin(axis=1)
        assert sorted(order) == list(range(len(order)))
        assert np.abs(order - np.arange(len(order))).max() <= 1
        np.testing.assert_array_equal(found["labels"][order], expected["labels"])
        np.testing.assert_allclose(found["boxes"][order], expected["boxes"], atol=0.01)
        np.testing.assert_allclose(found["scores"][order], expected["scores"], atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A C4 detector and its graph, traced on the smallest picture here."""
    model, path = net(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path, CLASSES, [picture(40, 40)])
    return model, path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (FPN, {"anchor_sizes": [8, 16, 24, 32, 48]}),
        ("fasterrcnn_alexnet", {"head_features": 32}),
        ("fasterrcnn_vgg16", {"head_features": 32, "min_size": 32, "max_size": 48}),
        (C4, {"norm": "frozen", "roi_head_stride": 1, "roi_sampling_ratio": 0}),
        ("fasterrcnn_timm:test_efficientnet_c4", {"last_layer": "blocks.3", "head_features": 32}),
        ("fasterrcnn_timm:test_convnext_fpn", {"anchor_sizes": [8, 16, 24, 32, 48], "head_features": 32}),
    ],
)
def test_every_kind_of_detector(tmp_path, name, options):
    model, path = net(name, **options), tmp_path / "model.onnx"
    agreement = export_onnx(model, path, CLASSES, [picture(64, 64), picture(70, 90), picture(100, 40)])
    assert agreement.pictures == 3
    assert agreement.compared > 15
    assert agreement.box < 0.01
    assert agreement.score < 1e-4
    session = open_session(str(path))
    for image in (picture(61, 83, seed=2), picture(120, 96, seed=3)):
        expected = torch_detections(model, image)
        assert len(expected["scores"]) > 5
        assert_same(expected, onnx_detections(session, image))


def test_pictures_of_any_size(exported):
    model, path = exported
    session = open_session(str(path))
    for height, width in ((64, 96), (40, 40), (37, 111), (111, 37), (150, 200), (64, 65)):
        expected = torch_detections(model, picture(height, width))
        assert len(expected["scores"]) > 5
        assert_same(expected, onnx_detections(session, picture(height, width)))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_batches_of_any_length(exported, count):
    model, path = exported
    images = [(0.2 + 0.1 * seed) * picture(70, 90, seed) for seed in range(count)]
    found = onnx_batch(open_session(str(path)), images)
    for image, one in zip(images, found, strict=True):
        expected = torch_detections(model, image)
        assert len(expected["scores"]) > 5
        assert_same(expected, one)


def test_strips_are_run_and_agree(exported):
    """Pictures so flat that torch's sides round to a few pixels; of the flattest it would leave none."""
    model, path = exported
    session = open_session(str(path))
    for height, width in ((3, 190), (190, 3), (2, 96)):
        assert_same(torch_detections(model, picture(height, width)), onnx_detections(session, picture(height, width)))
    with pytest.raises(RuntimeError):
        torch_detections(model, picture(2, 500))
    assert np.isfinite(onnx_detections(session, picture(2, 500))["boxes"]).all()


def lively(model: nn.Module) -> nn.Module:
    """torchvision's net with batch norms that know their maps: else random weights make them the same everywhere."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.train().backbone(torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0)))
        for name, weight in model.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight")):
                weight.mul_(30)
            if name.endswith("cls_logits.bias"):
                weight.zero_()
    return model.eval()


ONE_STAGE = {
    "fcos_resnet10x0.25_fpn": {"min_size": 64, "max_size": 96, "anchor_sizes": [8, 16, 32, 64, 128]},
    "retinanet_resnet10x0.125_fpn": {"min_size": 64, "max_size": 96, "anchor_sizes": [8, 16, 32, 64, 128]},
    "ssdlite320_mobilenet_v3_large": {},
}


@pytest.mark.parametrize("name", ONE_STAGE)
def test_detectors_of_one_stage(tmp_path, name):
    torch.manual_seed(0)
    model = lively(build_detector(name, len(CLASSES) + 1, **ONE_STAGE[name]))
    model.score_thresh = 0.02
    agreement = export_onnx(
        model, tmp_path / "model.onnx", CLASSES, [picture(64, 64), picture(70, 90), picture(90, 40)]
    )
    assert agreement.compared > 100
    assert agreement.box < 0.01
    images = [picture(61, 83, seed) for seed in range(3)]
    for image, found in zip(images, onnx_batch(open_session(str(tmp_path / "model.onnx")), images), strict=True):
        expected = torch_detections(model, image)
        assert len(expected["scores"]) >= 90
        _, unmatched = match_detections(expected, found, model.score_thresh, model.detections_per_img)
        assert unmatched is None


def test_a_detector_of_another_form_is_refused(tmp_path):
    model = nn.Module()
    model.transform = GeneralizedRCNNTransform(64, 96, [0.5] * 3, [0.25] * 3)
    add_card(model, ModelCard("detection", "own", 3, {}))
    with pytest.raises(InputError, match="Module cannot be exported: give a torchvision FasterRCNN, RetinaNet"):
        export_onnx(model, tmp_path / "model.onnx", CLASSES, [picture(64, 64)])


def test_a_static_graph_takes_one_size(tmp_path):
    model, path = net(), tmp_path / "model.onnx"
    agreement = export_onnx(model, path, CLASSES, [picture(70, 90, seed) for seed in range(3)], static=True)
    assert (agreement.pictures, agreement.box < 0.01) == (3, True)
    session = open_session(str(path))
    assert session.get_inputs()[0].shape == [1, 3, 70, 90]
    assert_same(torch_detections(model, picture(70, 90, 9)), onnx_detections(session, picture(70, 90, 9)))


def test_half_weights_are_half_the_size_and_nearly_the_same(exported, tmp_path):
    model, path = exported
    content = path.read_bytes()
    halved = half_weights(content)
    assert len(halved) < 0.65 * len(content)  # half of the weights; the graph stays
    onnx.checker.check_model(onnx.load_from_string(halved), full_check=True)
    expected, found = (onnx_detections(open_session(graph), picture(70, 90)) for graph in (content, halved))
    nearest = np.abs(expected["boxes"][:, None] - found["boxes"]).max(2).min(1)
    assert np.median(nearest) < 0.5


def test_resized_sides_are_those_of_torch():
    # The first four torchvision, when traced, makes a pixel longer or shorter: it computes in float32.
    sizes = [(40, 61), (61, 40), (40, 173), (40, 194), (100, 120), (64, 64)]
    theirs = GeneralizedRCNNTransform(64, 96, [0.5] * 3, [0.25] * 3).eval()
    axes = {"images": {2: "h", 3: "w"}, "prepared": {2: "h", 3: "w"}, "size": {}}
    session = open_session(trace(Preparation(theirs).eval(), picture(64, 64)[None], axes, 17))
    for size in sizes:
        image = picture(*size)
        expected = theirs([image])[0]
        prepared, sides = session.run(None, {"images": image[None].numpy()})
        assert tuple(sides) == expected.image_sizes[0]
        np.testing.assert_allclose(prepared, expected.tensors, atol=1e-3)


def test_no_detection_one_and_many(tmp_path):
    model = net()
    pictures = [scale * picture(64, 96, seed) for seed in range(6) for scale in (0.0, 0.3, 1.0, 3.0)]
    model.roi_heads.score_thresh = 0.0
    scores = [torch_detections(model, image)["scores"] for image in pictures]
    # A threshold by which some of the pictures have none, some one, and some many.
    for threshold in np.linspace(0.3, 0.99, 200):
        counts = [int((found > threshold).sum()) for found in scores]
        if 0 in counts and 1 in counts and max(counts) >= 4:
            break
    assert 0 in counts and 1 in counts and max(counts) >= 4, counts
    model.roi_heads.score_thresh = float(threshold)
    # Traced on a picture without detections, which must not become what the graph gives for every picture.
    traced = pictures[counts.index(0)]
    export_onnx(model, tmp_path / "model.onnx", CLASSES, [traced])
    session = open_session(str(tmp_path / "model.onnx"))
    for image in pictures:
        expected = torch_detections(model, image)
        assert_same(expected, onnx_detections(session, image))


def test_a_full_list_of_detections_is_cut_alike(tmp_path):
    model = net(box_detections_per_img=5, rpn_post_nms_top_n_test=7, box_score_thresh=0.0)
    export_onnx(model, tmp_path / "model.onnx", CLASSES, [picture(40, 40)])
    session = open_session(str(tmp_path / "model.onnx"))
    for seed in range(3):
        expected = torch_detections(model, picture(80, 120, seed))
        assert len(expected["scores"]) == 5
        assert_same(expected, onnx_detections(session, picture(80, 120, seed)))


def test_metadata_of_a_detector(exported):
    _, path = exported
    proto = onnx.load(path)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["task"] == "detection"
    assert facts["architecture"] == C4
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(facts["std"]) == [0.229, 0.224, 0.225]
    assert [value.name for value in proto.graph.input] == ["images"]
    assert [value.name for value in proto.graph.output] == ["boxes", "labels", "scores", "pictures"]
    sizes = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    assert proto.opset_import[0].version == 17


def test_the_model_is_left_as_it_is(tmp_path):
    model = net().half().train()
    weight = model.backbone.conv1.weight.clone()
    export_onnx(model, tmp_path / "model.onnx", CLASSES, [picture(64, 64)])
    assert model.training
    assert model.backbone.conv1.weight.requires_grad
    assert torch.equal(model.backbone.conv1.weight, weight)
    assert type(model.transform) is GeneralizedRCNNTransform


@pytest.mark.parametrize("opset", [16, 20])
def test_classifier_takes_any_batch(tmp_path, opset):
    torch.manual_seed(0)
    model, path = build_classifier("cifar_resnet8", 3, in_channels=1).eval(), tmp_path / "model.onnx"
    pictures = noise((28, 28), channels=1)
    agreement = export_onnx(model, path, CLASSES, pictures, opset=opset, normalisation=((0.25,), (0.5,)))
    assert (agreement.pictures, agreement.compared, agreement.box) == (4, 15, None)
    session = open_session(str(path))
    for count in (1, 2, 7):
        images = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(count))
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-5)
    proto = onnx.load(path)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert (facts["task"], json.loads(facts["classes"])) == ("classification", CLASSES)
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == ([0.25], [0.5])
    assert proto.opset_import[0].version == opset


def detections(*rows):
    """Rows of x1, y1, x2, y2, label, score."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].astype(np.int64), "scores": table[:, 5]}


FIRST, SECOND = (10, 20, 50, 60, 1, 0.9), (30, 20, 70, 60, 2, 0.4)


def test_matching_takes_the_same_in_another_order():
    moved = (30.06, 20, 70, 59.95, 2, 0.4008)
    pairs, unmatched = match_detections(detections(FIRST, SECOND), detections(moved, FIRST), 0.05, 100)
    assert unmatched is None
    assert sorted(pairs.tolist()) == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    "other",
    [
        (30.11, 20, 70, 60, 2, 0.4),
        (30, 20, 70, 60, 2, 0.4011),
        (30, 20, 70, 60, 1, 0.4),
        (30, 20, 70, 60, 2, np.nan),
        (np.nan, 20, 70, 60, 2, 0.4),
    ],
)
def test_matching_tells_what_is_too_far_off(other):
    pairs, unmatched = match_detections(detections(FIRST, SECOND), detections(FIRST, other), 0.05, 100)
    assert pairs.tolist() == [[0, 0]]
    assert (
        unmatched == "torch finds label 2 with score 0.4000 at (30.0, 20.0, 70.0, 60.0), ONNX Runtime nothing like it"
    )


@pytest.mark.parametrize(
    ("score", "limit", "excused"), [(0.0509, 100, True), (0.0511, 100, False), (0.4009, 2, True), (0.4011, 2, False)]
)
def test_matching_excuses_what_is_at_a_threshold(score, limit, excused):
    last = (30, 20, 70, 60, 2, 0.05 if limit == 100 else 0.4)
    extra = (80, 80, 90, 90, 3, score)
    fewer, more = detections(FIRST, last), detections(FIRST, last, extra)
    if limit == 2:  # both lists are full, but for the extra one of either
        fewer, more = detections(FIRST, last), detections(FIRST, extra)
    _, unmatched = match_detections(fewer, more, 0.05, limit)
    assert (unmatched is None) == excused
    if not excused:
        assert unmatched.startswith("ONNX Runtime finds label 3")


def test_matching_of_nothing():
    assert match_detections(detections(), detections(), 0.05, 100)[1] is None
    assert match_detections(detections(FIRST), detections(), 0.05, 100)[1] is not None
    assert match_detections(detections(), detections(FIRST), 0.05, 100)[1].startswith("ONNX Runtime finds label 1")


def test_mismatch_is_an_error_and_nothing_is_written(tmp_path, monkeypatch):
    resized = Preparation.resized
    monkeypatch.setattr(Preparation, "resized", lambda self, images: resized(self, images) - 1)
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match=r"picture 1 of 2 \(64 x 64\): .* finds label . with score") as error:
        export_onnx(net(), path, CLASSES, [picture(64, 64), picture(40, 61)])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(InputError):
        export_onnx(net(), path, CLASSES, [picture(64, 64), picture(40, 61)])
    assert path.read_bytes() == b"old"


def test_float64_decides_where_float32_rounds_elsewhere(tmp_path, monkeypatch):
    detect = agreeing.detect

    def rounded_elsewhere(model, image):
        found = detect(model, image)
        return found if image.dtype == torch.float64 else found | {"boxes": found["boxes"] + 1}

    monkeypatch.setattr(agreeing, "detect", rounded_elsewhere)
    agreement = export_onnx(net(), tmp_path / "model.onnx", CLASSES, [picture(64, 64), picture(50, 70)])
    assert agreement.rounded == 2
    assert agreement.compared > 10
    assert agreement.box < 0.01
    assert str(agreement).endswith("; 2 pictures agree with torch in float64 alone")


def test_a_classifier_that_differs(tmp_path, monkeypatch):
    run = onnx_file.run_session
    monkeypatch.setattr(onnx_file, "run_session", lambda *inputs: [values + 0.002 for values in run(*inputs)])
    with pytest.raises(InputError, match="batch of 1: logits by 0.002"):
        pictures = [torch.zeros(3, 32, 32)] * 2
        export_onnx(build_classifier("cifar_resnet8", 3), tmp_path / "m", CLASSES, pictures)
    assert not list(tmp_path.iterdir())


def test_a_net_that_cannot_be_traced(tmp_path, capfd):
    # 7 x 7 of a 5 x 5 map, as VGG and AlexNet have it for pictures of another size than ImageNet's.
    model = Classifier(nn.Conv2d(3, 2, 1), nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(98, 3)))
    add_card(model, ModelCard("classification", "own", 3, {}))
    with pytest.raises(InputError, match="cannot export this net for pictures of 5 x 5 as ONNX: .*adaptive") as error:
        export_onnx(model, tmp_path / "model.onnx", CLASSES, [torch.zeros(3, 5, 5)])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    print("still heard")
    assert capfd.readouterr() == ("still heard\n", "")


@pytest.mark.parametrize("opset", [15, 21])
def test_opset_that_cannot_be_written(tmp_path, opset):
    with pytest.raises(InputError, match=f"opset {opset} .* from 16 to 20"):
        export_onnx(net(), tmp_path / "model.onnx", CLASSES, [picture(64, 64)], opset=opset)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_packages_that_are_not_installed(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install detkt\[onnx\]") as error:
        export_onnx(net(), tmp_path / "model.onnx", CLASSES, [picture(64, 64)])
    assert "\n" not in str(error.value)


def test_random_pictures_are_the_same_each_time():
    pictures = scenes((60, 90))
    assert [tuple(image.shape) for image in pictures] == [
        (3, *s) for s in [(60, 90)] * 2 + [(90, 60)] * 2 + [(41, 90)] * 2
    ]
    assert all(0 <= image.min() < image.max() <= 1 for image in pictures)
    assert all(torch.equal(*pair) for pair in zip(pictures, scenes((60, 90)), strict=True))


def test_tool_writes_both_formats(tmp_path, tool, voc_folder, capsys):
    save_model(net(), tmp_path / "run", CLASSES, extra={"method": "ktan"})
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--half"]
    tool("export").main([*arguments, "--format", "safetensors,onnx", "--data-root", str(voc_folder)])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "model.json",
        "model.md",
        "model.onnx",
        "model.safetensors",
    ]
    out = capsys.readouterr().out
    assert "opset 17; ONNX Runtime and torch on 14 pictures, " in out  # 6 random ones, 8 of the folder's 22
    # Both files hold the same weights, rounded to half precision.
    model, meta = load_model(tmp_path / "out")
    assert meta["extra"] == {"method": "ktan"}
    session = open_session(str(tmp_path / "out" / "model.onnx"))
    assert_same(torch_detections(model, picture(70, 90)), onnx_detections(session, picture(70, 90)))


def test_tool_exports_a_classifier_with_its_runs_normalisation(tmp_path, tool, capsys):
    from PIL import Image

    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            pixels = generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / name / "0.png")
    save_model(build_classifier("cifar_resnet8", 3), tmp_path / "run", CLASSES)
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--format", "onnx"]
    with pytest.raises(InputError, match="size of the classifier's pictures is not known: give --image-size H W"):
        tool("export").main(arguments)
    assert not list((tmp_path / "out").iterdir())

    tool("export").main([*arguments, "--image-size", "16", "24"])
    assert "mean and std are not in it" in capsys.readouterr().err
    assert open_session(str(tmp_path / "out" / "model.onnx")).get_inputs()[0].shape == ["batch", 3, 16, 24]

    config = f"data: {{format: folder, root: {tmp_path / 'data'}, mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}}\n"
    (tmp_path / "run" / "config.yaml").write_text(config + "student: {architecture: cifar_resnet8}\n")
    tool("export").main(arguments)
    assert "7 pictures: logits differ by" in capsys.readouterr().out  # 4 random ones, 3 of the test split
    proto = onnx.load(tmp_path / "out" / "model.onnx")
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert open_session(proto.SerializeToString()).get_inputs()[0].shape == ["batch", 3, 24, 20]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.md", "model.onnx"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "onxn"], "unknown 'onxn' .did you mean 'onnx'"),
        (["--opset", "17"], "--opset is for ONNX"),
        (["--data-root", "somewhere"], "--data-root is for ONNX"),
        (["--image-size", "3", "4"], "--image-size is for ONNX"),
        (["--format", "onnx", "--image-size", "0", "4"], "--image-size 0 4: give pixels above 0"),
        (["--format", "onnx", "--data-root", "no/such/place"], "no such folder, or no picture below it"),
    ],
)
def test_tool_refuses(tmp_path, tool, tiny_student, flags, message):
    with pytest.raises(InputError, match=message):
        tool("export").main(["--checkpoint", str(tiny_student), "--output", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
