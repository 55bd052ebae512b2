"""detkt export writes forms that are scored, timed, described and opened again; what loses too much is not kept."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.export import int8, shipping
from detkt.export.int8 import distance, quantise
from detkt.export.measuring import latency
from detkt.export.onnx_file import export_onnx, open_session
from detkt.export.runtime import ExportedDetector, is_exported, open_exported, open_model
from detkt.export.table import Row, differing, export_table
from detkt.models import build_detector, load_model
from detkt.prepare.converting import convert

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def shipped(tiny_student, voc_folder, tmp_path_factory):
    """The folder with everything that needs no extra."""
    from detkt.cli import export

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(shipping, "SECONDS", 0)
    folder = tmp_path_factory.mktemp("shipped")
    arguments = ["--checkpoint", str(tiny_student), "--data-root", str(voc_folder), "--output", str(folder), "--quiet"]
    arguments += ["--raw", "--calibration", "4", "--max-drop", "100", "--license", "mit"]
    export.main([*arguments, "--format", "safetensors,onnx,int8,torchscript"])
    monkeypatch.undo()
    return folder


def test_every_form_is_scored_like_torch(shipped):
    content = json.loads((shipped / "export.json").read_text())
    forms = {form["form"]: form for form in content["forms"]}
    assert list(forms) == ["torch", "ONNX", "ONNX INT8", "TorchScript", "ONNX raw + NumPy", "safetensors"]
    for name in ("ONNX", "ONNX raw + NumPy"):
        for key in ("map_voc07", "map_coco"):
            assert forms[name]["scores"][key] == pytest.approx(forms["torch"]["scores"][key], abs=0.001)
        assert forms[name]["boxes_that_differ"] == 0
    assert forms["ONNX"]["boxes"] > 10
    assert forms["ONNX INT8"]["bytes"] < forms["ONNX"]["bytes"]
    assert {one["threads"] for one in forms["ONNX"]["milliseconds"]} >= {1}
    assert all(one["lower"] <= one["median"] <= one["upper"] for one in forms["ONNX INT8"]["milliseconds"])
    assert (content["opset"], content["split"], content["pictures"]) == (17, "test", 6)


def test_the_card_has_the_head_of_a_model_repository(shipped):
    text = (shipped / "model.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["library_name"], head["pipeline_tag"], head["license"]) == ("detkt", "object-detection", "mit")
    metrics = head["model-index"][0]["results"][0]["metrics"]
    scores = json.loads((shipped / "export.json").read_text())["forms"][0]["scores"]
    assert metrics[0]["value"] == round(100 * scores["map_voc07"], 2)
    for path in shipped.iterdir():
        assert path.name in text or path.name in ("model.md", "export.json")


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", "model.raw.onnx", "model.raw.json"])
def test_exported_files_are_checkpoints(shipped, voc_folder, run, tmp_path, name):
    status, output, errors = run(
        "eval_voc", "--checkpoint", shipped / name, "--data-root", voc_folder, "--json", tmp_path / "x.json", "--quiet"
    )
    assert status == 0, errors
    found = json.loads((tmp_path / "x.json").read_text())
    forms = json.loads((shipped / "export.json").read_text())["forms"]
    expected = next(form for form in forms if name in form["files"])
    assert found["map_voc07"] == pytest.approx(expected["scores"]["map_voc07"])
    assert found["parameters"] == sum(p.numel() for p in load_model(shipped)[0].parameters())


def test_a_form_that_loses_too_much_is_not_kept(tiny_student, voc_folder, run, tmp_path, monkeypatch):
    scores = shipping.Shipment._scores
    monkeypatch.setattr(
        shipping.Shipment,
        "_scores",
        lambda self, model: (
            ({"map_voc07": 0.5, "map_coco": 0.3}, scores(self, model)[1])
            if not isinstance(model, ExportedDetector)
            else ({"map_voc07": 0.48, "map_coco": 0.3}, scores(self, model)[1])
        ),
    )
    status, output, errors = run(
        "export", "--checkpoint", tiny_student, "--data-root", voc_folder, "--output", tmp_path, "--format", "onnx"
    )
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: mAP VOC07 falls by more than 1 points: ONNX by 2.00; not kept in")
    assert not (tmp_path / "model.onnx").exists()
    assert "ONNX" in output


def test_cocos_ap_leads_where_the_data_are_cocos(tiny_student, voc_folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "SECONDS", 0)
    convert(voc_folder, "coco", tmp_path / "coco", DataConfig(), quiet=True)
    # The run's own reading is taken: nothing names the format here.
    checkpoint = tmp_path / "run"
    shutil.copytree(tiny_student, checkpoint)
    (checkpoint / "config.yaml").write_text("data: {format: coco}\n")
    arguments = ["--checkpoint", checkpoint, "--data-root", tmp_path / "coco", "--format", "onnx", "--quiet"]
    status, output, errors = run("export", *arguments, "--output", tmp_path / "kept")
    assert status == 0, errors
    titles = next(line for line in output.splitlines() if line.startswith("form")).split()
    assert titles.index("COCO") < titles.index("VOC07") < titles.index("change")
    torch_row = json.loads((tmp_path / "kept/export.json").read_text())["forms"][0]
    assert next(iter(torch_row["scores"])) == "map_coco" and "ap_small" in torch_row["scores"]
    assert torch_row["intervals"]["map_coco"]["value"] == torch_row["scores"]["map_coco"]
    card = (tmp_path / "kept/model.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["name"].startswith("mAP (COCO")
    assert "torch: mAP (COCO" in card
    scores = shipping.Shipment._scores
    lost = iter([0.5, 0.48])
    monkeypatch.setattr(
        shipping.Shipment,
        "_scores",
        lambda self, model: ({"map_voc07": 0.5, "map_coco": next(lost)}, scores(self, model)[1]),
    )
    status, output, errors = run("export", *arguments, "--output", tmp_path / "refused")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: AP falls by more than 1 points: ONNX by 2.00; not kept in")


def test_every_runtime_keeps_the_layers_in_float_that_it_needs(tiny_student, tmp_path, monkeypatch):
    model, meta = load_model(tiny_student)
    monkeypatch.setattr(shipping.openvino, "convert", lambda content, facts: content)
    monkeypatch.setattr(shipping.openvino, "save", lambda content, path, half=False: write_graph(path, content))
    monkeypatch.setattr(
        shipping, "open_exported", lambda path, threads=None: ({".onnx": 0.5, ".xml": 0.4}[path.suffix],)
    )
    monkeypatch.setattr(shipping.Shipment, "_scores", lambda self, score: ({"map_voc07": score}, {}))
    monkeypatch.setattr(shipping.Shipment, "_latency", lambda self, path: ())
    monkeypatch.setattr(shipping.Shipment, "_score", lambda self, row, model: None)

    def quantise(content, pictures, scores, enough, tell):
        assert {name: score(content) for name, score in scores.items()} == {"ONNX INT8": 0.5, "OpenVINO INT8": 0.4}
        assert enough == pytest.approx(0.54)
        return {name: int8.Int8(name.encode(), 3, (), {}, ()) for name in scores}

    monkeypatch.setattr(shipping.int8, "quantise", quantise)
    request = shipping.Request(["int8", "openvino"], (), data=object())
    shipment = shipping.Shipment(model, meta, tmp_path, request, [Row("torch", scores={"map_voc07": 0.55})])
    shipment._int8(b"graph")
    assert [row.name for row in shipment.rows[1:]] == ["ONNX INT8", "OpenVINO INT8"]
    assert (tmp_path / "model.int8.onnx").read_bytes() == b"ONNX INT8"
    assert (tmp_path / "model.int8.xml").read_bytes() == b"OpenVINO INT8"


def write_graph(path, content):
    for suffix in (".xml", ".bin"):
        path.with_suffix(suffix).write_bytes(content)


def test_layers_that_lose_most_stay_in_float(tiny_student, tmp_path):
    model, meta = load_model(tiny_student)
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    export_onnx(model, tmp_path / "model.onnx", meta["classes"], pictures)
    first, second = iter([0.1, 0.9]), iter([0.1, 0.2, 0.3, 0.95])
    told: list[str] = []
    scores = {"first": lambda graph: next(first), "second": lambda graph: next(second)}
    made = quantise((tmp_path / "model.onnx").read_bytes(), pictures, scores, 0.8, told.append)
    assert [(trial.kept, trial.score) for trial in made["first"].trials] == [(0, 0.1), (1, 0.9)]
    assert [(trial.kept, trial.score) for trial in made["second"].trials] == [(0, 0.1), (1, 0.2), (2, 0.3), (4, 0.95)]
    for one, kept in ((made["first"], 1), (made["second"], 4)):
        worst = sorted(one.losses.values(), reverse=True)
        assert [one.losses[name] for name in one.kept] == worst[:kept]
        assert f"{kept} of {one.layers} layers kept in float" in str(one)
        open_session(one.content)
    assert made["first"].content != made["second"].content
    assert len(made["first"].losses) == made["first"].layers == len([text for text in told if " alone: " in text])


def test_without_enough_the_best_is_taken(tiny_student, tmp_path):
    model, meta = load_model(tiny_student)
    pictures = [torch.rand(3, 64, 64)]
    export_onnx(model, tmp_path / "model.onnx", meta["classes"], pictures)
    scores = iter([0.1, 0.4, 0.3, 0.2, *[0.0] * 9])
    made = quantise((tmp_path / "model.onnx").read_bytes(), pictures, {"one": lambda graph: next(scores)}, 0.8)["one"]
    assert len(made.kept) == 1 and max(trial.score for trial in made.trials) == 0.4
    assert [trial.kept for trial in made.trials] == [0, *(2**n for n in range(len(made.trials) - 1))]
    assert 2 * made.trials[-1].kept >= made.layers > made.trials[-1].kept


def detections(*rows):
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4], "scores": table[:, 5]}


def test_distance_by_hand():
    one = detections((0, 0, 10, 10, 1, 0.8))
    assert distance([one], [one]) == 0
    assert distance([one], [detections()]) == 1
    assert distance([one], [detections((0, 0, 10, 10, 2, 0.8))]) == 1
    # IoU 0.5 and a score lower by 0.2: each lacks 0.7.
    assert distance([one], [detections((0, 0, 10, 5, 1, 0.6))]) == pytest.approx(0.7)


def test_boxes_that_differ_by_hand():
    one = {"a": detections((0, 0, 10, 10, 1, 0.8), (20, 20, 30, 30, 1, 0.5))}
    other = {"a": detections((0, 0.5, 10, 10, 1, 0.8)), "b": detections((0, 0, 1, 1, 2, 0.3))}
    assert differing(one, other, (0.01, 0.001)) == (4, 4)
    assert differing(one, other, (1.0, 0.05)) == (2, 4)
    assert differing(one, one, (0.01, 0.001)) == (0, 4)


def test_a_static_detector_makes_pictures_fit():
    seen = []

    def graph(images):
        seen.append(images)
        return [np.array([[4, 2, 20, 99]], np.float32), np.ones(1, int), np.ones(1, np.float32), np.zeros(1, int)]

    model = ExportedDetector(graph, {"mean": "[0.1, 0.2, 0.3]"}, (40, 60))
    (found,) = model([torch.ones(3, 20, 20)])
    assert seen[0].shape == (1, 3, 40, 60)
    assert seen[0][0, :, 39, 39].tolist() == [1, 1, 1]
    np.testing.assert_allclose(seen[0][0, :, 0, 41], [0.1, 0.2, 0.3])
    assert found["boxes"].tolist() == [[2, 1, 10, 20]]  # half as large, and within the picture


def test_a_file_that_is_no_detector(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    assert is_exported(tmp_path)
    with pytest.raises(InputError, match="cannot load it"):
        open_model(tmp_path)
    with pytest.raises(InputError, match="no file .*absent.onnx"):
        open_exported(tmp_path / "absent.onnx")


def test_latency_has_its_quartiles():
    found = latency(lambda picture: None, [torch.zeros(3, 4, 4)], threads=1, seconds=0)
    assert found.calls == 5
    assert found.lower <= found.median <= found.upper


def test_table_without_scores():
    lines = export_table([Row("torch"), Row("ONNX")]).splitlines()
    assert [line.split() for line in lines] == [["form", "MB"], ["torch", "0.00"], ["ONNX", "0.00"]]


def test_int8_needs_annotated_pictures(tiny_student, run, tmp_path):
    status, _, errors = run("export", "--checkpoint", tiny_student, "--output", tmp_path, "--format", "int8")
    assert status == 2
    assert "INT8 needs annotated pictures" in errors.splitlines()[-1]
    assert int8.QUANTISED == ("Conv", "Gemm", "MatMul")


def test_openvino_gives_the_same(tiny_student, tmp_path):
    pytest.importorskip("openvino")
    from detkt.export import openvino
    from detkt.export.onnx_file import GRAPHS

    model, meta = load_model(tiny_student)
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    export_onnx(model, tmp_path / "model.onnx", meta["classes"], [picture])
    facts = GRAPHS["detection"].about(model, meta["classes"])
    openvino.save(openvino.convert((tmp_path / "model.onnx").read_bytes(), facts), tmp_path / "model.xml")
    first, second = (open_exported(tmp_path / name)[0] for name in ("model.onnx", "model.xml"))
    images = [picture, picture[:, :50], torch.rand(3, 80, 64), torch.rand(3, 160, 200)]
    for one, other in zip(first(images), second(images), strict=True):
        assert len(one["scores"]) == len(other["scores"]) > 0
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=0.01, rtol=0)


def test_openvino_resizes_as_torchvision_does(tmp_path):
    """Its 2026.4 divides the wrong way round where the graph divides a single number."""
    openvino = pytest.importorskip("openvino")
    from detkt.export.batched import Preparation

    transform = build_detector("retinanet_resnet10x0.125_fpn", 3, min_size=192, max_size=256).transform.eval()
    path, sizes = tmp_path / "prepared.onnx", [(480, 640), (300, 500), (640, 480), (192, 256), (1000, 300)]
    axes = {"images": {0: "n", 2: "h", 3: "w"}}
    images = torch.rand(1, 3, 32, 32)
    torch.onnx.export(Preparation(transform), (images,), path, input_names=["images"], dynamic_axes=axes, dynamo=False)
    prepared = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for height, width in sizes:
        picture = torch.rand(3, height, width)
        expected = transform([picture])[0]
        image, size = prepared({"images": picture[None].numpy()}).values()
        assert tuple(size) == expected.image_sizes[0]
        torch.testing.assert_close(torch.from_numpy(image), expected.tensors, atol=1e-3, rtol=0)
