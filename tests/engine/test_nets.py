"""Teachers from torchvision and from plain files, students that start from torchvision or from their teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from detkt.base.errors import InputError
from detkt.config import TeacherConfig, load_config
from detkt.engine.nets import build_teacher, inherit
from detkt.engine.run import train
from detkt.kinds import KINDS
from detkt.models import build_detector, load_model, save_model
from detkt.models.plain import classes_in
from detkt.models.published import published, published_classes, with_eps

SSDLITE = "ssdlite320_mobilenet_v3_large"
FPN = "fasterrcnn_resnet10x0.125_fpn"
CLASSES = ["cross", "disc", "star"]
DETECTION = KINDS["detection"]


@pytest.fixture(scope="module")
def coco_ssdlite(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A hub folder with a file of random weights in the place of torchvision's, and these."""
    hub = tmp_path_factory.mktemp("hub")
    torch.manual_seed(3)
    state = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict()
    (hub / "checkpoints").mkdir()
    torch.save(state, hub / "checkpoints" / published(SSDLITE).url.rpartition("/")[2])
    return hub, state


@pytest.fixture
def hub(coco_ssdlite, monkeypatch) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(coco_ssdlite[0]))
    return coco_ssdlite[1]


def refusal(**settings) -> str:
    with pytest.raises(InputError) as refused:
        build_teacher(DETECTION, TeacherConfig(**settings), CLASSES)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("checkpoint", [f"torchvision:{SSDLITE}", f"torchvision:{SSDLITE}@COCO_V1", None])
def test_a_teacher_of_torchvisions(hub, checkpoint):
    weights = None if checkpoint else "torchvision:COCO_V1"
    teacher, classes = build_teacher(DETECTION, TeacherConfig(SSDLITE, weights, checkpoint), CLASSES)
    assert len(classes) == len(set(classes)) == 90
    assert (classes[0], classes[11], classes[89]) == ("person", "N/A 12", "toothbrush")
    assert all(torch.equal(value, hub[name]) for name, value in teacher.state_dict().items())


def test_a_name_that_torchvision_does_not_have():
    assert "no trained detector 'ssdlite320' (did you mean" in refusal(checkpoint="torchvision:ssdlite320")
    message = refusal(checkpoint=f"torchvision:{SSDLITE}@COCO_V2")
    assert "has no weights 'COCO_V2' (did you mean 'COCO_V1'?)" in message


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    message = refusal(checkpoint=f"torchvision:{SSDLITE}")
    assert "no route" in message and f"put it into {tmp_path}/checkpoints" in message


def test_a_coco_teacher_serves_a_student_of_other_classes(hub, tiny_config, tmp_path):
    """Through the command's own way: the config's architecture and options give way to torchvision's."""
    config = tiny_config("method=fitnet", f"teacher.checkpoint=torchvision:{SSDLITE}", "train.epochs=1")
    assert (config.teacher.architecture, config.teacher.options) == (SSDLITE, {})
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["updates"] == 4
    kept = load_config(tmp_path / "run" / "config.yaml")
    assert kept.teacher.checkpoint == f"torchvision:{SSDLITE}"
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(line["fitnet"] > 0 for line in lines)


def test_score_methods_compare_the_classes_that_both_know(tiny_config, tiny_teacher, tmp_path, caplog):
    """The teacher knows four classes in another order; the config says which is the student's star."""
    caplog.set_level("INFO", logger="detkt")
    net = tiny_config().teacher
    torch.manual_seed(1)
    other = build_detector(net.architecture, 5, **net.options)
    save_model(other, tmp_path / "teacher", ["disc", "asterisk", "Cross", "heart"])
    settings = [f"teacher.checkpoint={tmp_path / 'teacher'}", "train.epochs=1", "teacher.class_map={star: asterisk}"]
    train(tiny_config("method=kd", *settings), tmp_path / "run", quiet=True)
    assert "scores are compared of the classes that the teacher knows, too: cross, disc, star" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(line["kd"] > 0 for line in lines)
    with pytest.raises(InputError, match=r"teacher.class_map: the teacher has no class 'nova'"):
        train(tiny_config("method=kd", *settings[:2], "teacher.class_map={star: nova}"), tmp_path / "b", quiet=True)


def test_a_student_is_not_torchvisions(tiny_config, tmp_path):
    config = tiny_config(f"student.checkpoint=torchvision:{SSDLITE}")
    with pytest.raises(InputError, match=r"set student.architecture and student.weights=torchvision"):
        train(config, tmp_path / "run", quiet=True)


def test_a_student_from_torchvisions_weights_has_a_predictor_of_its_own(hub):
    student = build_detector(SSDLITE, 4, "torchvision")
    own = student.state_dict()
    for name, value in own.items():
        if "classification_head" in name and value.dim() and value.shape != hub[name].shape:
            assert name.endswith((".1.weight", ".1.bias"))
        else:
            assert torch.equal(value, hub[name]), name
    assert own["head.classification_head.module_list.0.1.weight"].shape[0] == 4 * 6
    with pytest.raises(InputError, match="no trained detector 'fasterrcnn_resnet101_fpn'"):
        build_detector("fasterrcnn_resnet101_fpn", 4, "torchvision")


def test_norms_without_eps_compute_the_same_with_one():
    """scale = w / sqrt(v): at v = 4e-5 and w = 3 the new weight is 3 sqrt(5e-5 / 4e-5) = 3.3541."""
    tensors = {"bn.weight": torch.tensor([3.0]), "bn.running_var": torch.tensor([4e-5]), "conv.weight": torch.ones(1)}
    found = with_eps(tensors)
    assert found["bn.weight"].item() == pytest.approx(3.3541, abs=1e-4)
    assert (found["bn.weight"] / (4e-5 + 1e-5) ** 0.5).item() == pytest.approx(3 / (4e-5) ** 0.5)
    assert tensors["bn.weight"].item() == 3.0


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_teacher) -> Path:
    """A state dict alone of the tiny teacher."""
    path = tmp_path_factory.mktemp("plain") / "weights.pth"
    torch.save({"model": load_model(tiny_teacher)[0].state_dict()}, path)
    return path


@pytest.mark.parametrize("route", ["checkpoint", "weights"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_plain_weights_are_a_teacher(plain, tiny_config, tiny_teacher, tmp_path, route, suffix):
    net = tiny_config().teacher
    path = plain
    if suffix == ".safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(torch.load(plain)["model"], path)
    net.checkpoint, net.weights = (str(path), None) if route == "checkpoint" else (None, str(path))
    teacher, classes = build_teacher(DETECTION, net, CLASSES)
    assert classes == CLASSES
    expected = load_model(tiny_teacher)[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    assert DETECTION.has_trained(net)


def test_classes_of_plain_weights(plain, tiny_config):
    net = tiny_config(f"teacher.checkpoint={plain}").teacher
    with pytest.raises(InputError, match="has 3 classes besides the background; name them in teacher.classes"):
        build_teacher(DETECTION, net, ["disc", "star"])
    net.classes = ["a", "b", "c"]
    assert build_teacher(DETECTION, net, ["disc", "star"])[1] == ["a", "b", "c"]
    net.classes = ["a", "b"]
    with pytest.raises(InputError, match="has 3 classes besides the background; teacher.classes names 2"):
        build_teacher(DETECTION, net, ["disc", "star"])


def test_names_that_are_assumed_are_told(plain, tiny_config, caplog):
    """As many classes as the student has need not be the student's: a score method would compare cats with dogs."""
    net = tiny_config(f"teacher.checkpoint={plain}").teacher
    assert build_teacher(DETECTION, net, ["cat", "dog", "cow"])[1] == ["cat", "dog", "cow"]
    (told,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert told == (
        f"teacher {plain} names no classes: its 3 are taken to be the student's, in this order: 'cat', 'dog', 'cow'; "
        "name them in teacher.classes if they are others"
    )
    caplog.clear()
    net.classes = ["cow", "cat", "dog"]
    assert build_teacher(DETECTION, net, ["cat", "dog", "cow"])[1] == ["cow", "cat", "dog"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_weights_that_do_not_fill_the_teacher(plain, tiny_config, tmp_path):
    net = tiny_config(f"teacher.checkpoint={plain}").teacher
    state = torch.load(plain)["model"]
    del state["rpn.head.bbox_pred.bias"]
    net.checkpoint = str(tmp_path / "part.pth")
    torch.save(state, net.checkpoint)
    with pytest.raises(InputError, match=r"does not fill the teacher's rpn.head.bbox_pred.bias, and random"):
        build_teacher(DETECTION, net, CLASSES)


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn", SSDLITE, "ssd300_vgg16"])
def test_how_many_classes_a_head_scores(name):
    with torch.device("meta"):
        state = build_detector(name, 12).state_dict()
    assert classes_in(state, name, {}) == 12
    assert classes_in({f"module.{key}": value for key, value in state.items()}, name, {}) == 12
    assert classes_in({"backbone.x": torch.zeros(1)}, name, {}) is None


def nets(classes: int = 4) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    small = {"anchor_sizes": [8, 16, 32, 48, 64], "fpn_channels": 16, "rpn_channels": 16, "head_features": 32}
    return build_detector(FPN, 4, **small), build_detector("fasterrcnn_resnet10x0.25_fpn", classes, **small)


def test_neck_and_head_are_inherited_where_shapes_agree():
    student, teacher = nets()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    told = inherit(student, teacher, ["neck", "head"], same_classes=True)
    own, theirs = student.state_dict(), teacher.state_dict()
    taken = [
        name for name in own if name.startswith(("backbone.fpn.", "rpn.", "roi_heads."))
        and own[name].shape == theirs[name].shape
    ]  # fmt: skip
    # The teacher is twice as wide: its 1x1 convolutions into the pyramid have other shapes.
    assert "backbone.fpn.inner_blocks.0.0.weight" not in taken and "roi_heads.box_predictor.cls_score.weight" in taken
    assert told == {"modules": ["neck", "head"], "tensors": len(taken)}
    for name, value in own.items():
        assert torch.equal(value, theirs[name] if name in taken else before[name]), name
    assert not any(own[name].data_ptr() == theirs[name].data_ptr() for name in taken)


def test_a_predictor_of_other_classes_is_not_inherited():
    student, teacher = nets()
    before = student.roi_heads.box_predictor.cls_score.weight.clone()
    told = inherit(student, teacher, ["head"], same_classes=False)
    assert torch.equal(student.roi_heads.box_predictor.cls_score.weight, before)
    assert torch.equal(student.rpn.head.cls_logits.weight, teacher.rpn.head.cls_logits.weight)
    assert told["tensors"] == 6 + 4


def test_nothing_to_inherit():
    student, _ = nets()
    with torch.device("meta"):
        other = build_detector("fcos_resnet18_fpn", 4)
    with pytest.raises(InputError, match=r"student.inherit: no tensor of the student's head .* leave head out"):
        inherit(student, other, ["head"], same_classes=True)


@pytest.mark.parametrize("method", ["none", "fitnet"])
def test_results_tell_what_was_inherited(method, tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", logger="detkt")
    same = ["student.architecture=fasterrcnn_resnet10x0.25_c4", "train.epochs=1", "train.lr_per_image=1e-12"]
    config = tiny_config(f"method={method}", "student.inherit=[head]", *same)
    metrics = train(config, tmp_path / "run", quiet=True)
    assert metrics["inherited"]["modules"] == ["head"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["inherited"] == metrics["inherited"]
    count = metrics["inherited"]["tensors"]
    assert f"the student inherits {count} tensors of the teacher's head" in caplog.text
    teacher, student = load_model(config.teacher.checkpoint)[0], load_model(tmp_path / "run")[0]
    torch.testing.assert_close(student.rpn.head.cls_logits.weight, teacher.rpn.head.cls_logits.weight)
    assert config.label == f"{method}, inherits head"
    assert re.fullmatch(rf".*-{method}-inherits-head-s0", config.run_name)


def test_inherit_needs_a_teacher(tiny_config, tmp_path):
    for overrides, message in (
        (["teacher.checkpoint=null"], "student.inherit needs a trained teacher: give --teacher CKPT"),
        (["role=teacher"], "student.inherit is for students: leave it out with --role teacher"),
    ):
        with pytest.raises(InputError, match=message):
            train(tiny_config("student.inherit=[head]", *overrides), tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="student.inherit"):
        tiny_config("student.inherit=[body]")


def test_published_classes_of_keypoints():
    assert published_classes(published("keypointrcnn_resnet50_fpn")) == ["person"]
