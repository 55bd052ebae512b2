"""Detectors as raw graphs, for runtimes without non-maximum suppression and RoIAlign: TensorRT, CoreML, LiteRT.

A one-stage detector is one graph from a picture to class scores and box codes at all anchors. A two-stage one is two:
backbone and RPN, and the head on RoIs. What lies between and after is :mod:`detkt.export.postprocess`.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.base.files import load_json, write_atomically
from detkt.export.agreement import Agreement, compare_detectors
from detkt.export.batched import SSD, TwoStage, anchors_of, batched_network, flat_map, maps_of
from detkt.export.onnx_file import (
    DEFAULT_OPSET,
    GRAPHS,
    checked,
    frozen,
    one_by_one,
    open_session,
    packages,
    run_session,
    trace,
)
from detkt.export.postprocess import RawDetector, make_anchors

RAW_FILE, HEAD_FILE, SETTINGS_FILE = "model.raw.onnx", "model.raw-head.onnx", "model.raw.json"
PLAIN_OPERATORS = set(
    "Add AveragePool BatchNormalization Cast Clip Concat Constant Conv Div Erf Flatten Gather Gemm "  # noqa: SIM905
    "GlobalAveragePool HardSigmoid HardSwish Identity InstanceNormalization LRN MatMul MaxPool Mul Pad Pow ReduceMean "
    "Relu Reshape Resize Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze".split(" ")
)
"""All that a raw graph may hold: no suppression, no RoIAlign, no control flow, no shape that depends on values."""


class _Normalised(nn.Module):
    """Network on pictures in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        for name in ("mean", "std"):
            values = getattr(detector.transform, f"image_{name}")
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return maps_of(self.backbone, (images - self.mean) / self.std)


class _OneStage(_Normalised):
    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self.head = detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(list(self.maps(images).values())).values())


class _Proposals(_Normalised):
    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self.rpn_head, self.names = detector.rpn.head, detector.roi_heads.box_roi_pool.featmap_names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(images)
        objectness, codes = self.rpn_head(list(maps.values()))
        scores = torch.cat([flat_map(values, 1)[..., 0] for values in objectness], 1)
        return (
            scores,
            torch.cat([flat_map(values, 4) for values in codes], 1),
            *(one for name, one in maps.items() if name in self.names),
        )


class _Head(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head, self.predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        return self.predictor(self.head(pooled))


def default_canvas(model: Any) -> tuple[int, int]:
    """Height and width that a picture of landscape format fits in once it is resized."""
    transform = model.transform
    if transform.fixed_size is not None:
        return tuple(transform.fixed_size[::-1])
    divisor = transform.size_divisible
    return _up(transform.min_size[-1], divisor), _up(transform.max_size, divisor)


def _up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor


def export_raw(
    model: nn.Module,
    folder: Path,
    classes: Sequence[str],
    pictures: Sequence[Tensor],
    *,
    canvas: tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
) -> Agreement:
    """Write ``model.raw.onnx``, of a two-stage detector ``model.raw-head.onnx``, and ``model.raw.json``.

    They are compared, with NumPy's part, with torch on *pictures* on the same canvas.

    Args:
        model: a detector.
        folder: gets the files.
        classes: names without the background.
        pictures: (3, H, W) each, of any size.
        canvas: height and width of the graph's picture; None: :func:`default_canvas`.
        opset: of the graphs.

    Raises:
        InputError: a graph would hold an operator that is not among :data:`PLAIN_OPERATORS`, the canvas does not fit
            the net, results differ from torch's, or a file cannot be written. Nothing is left then.
    """
    facts = GRAPHS["detection"].about(model, classes)
    facts["input"] = "images (1, 3, height, width), RGB in [0, 1], resized; the rest of the canvas has the mean colour"
    detector: Any = frozen(model)
    canvas = canvas or default_canvas(detector)
    _check_canvas(detector, canvas)
    settings = settings_of(detector, canvas)
    images = torch.zeros(1, 3, *canvas)
    contents: dict[str, bytes] = {}
    if settings["family"] == "two-stage":
        names = ["objectness", "codes", *settings["pool"]["maps"]]
        contents[RAW_FILE] = _graph(
            _Proposals(detector), images, "images", names, opset, {**facts, "output": ", ".join(names)}
        )
        with torch.no_grad():
            channels = _Proposals(detector).eval()(images)[2].shape[1]
        rois = torch.zeros(2, channels, *settings["pool"]["size"])
        contents[HEAD_FILE] = _graph(
            _Head(detector),
            rois,
            "pooled",
            ["class_logits", "box_codes"],
            opset,
            facts | {"input": "pooled (R, C, h, w)", "output": "class_logits, box_codes"},
            any_number=True,
        )
    else:
        with torch.no_grad():
            outputs = list(detector.head(list(maps_of(detector.backbone, images).values())))
        contents[RAW_FILE] = _graph(
            _OneStage(detector), images, "images", outputs, opset, {**facts, "output": ", ".join(outputs)}
        )
    settings["facts"] = facts
    run = RawDetector(settings, *(by_name(open_session(content)) for content in contents.values()))
    agreement = compare_detectors(on_canvas(detector, canvas), raw_runner(run), pictures, "The raw graph")
    for name, content in contents.items():
        write_atomically(folder / name, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / SETTINGS_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return agreement


def _check_canvas(detector: Any, canvas: tuple[int, int]) -> None:
    fixed, divisor = detector.transform.fixed_size, detector.transform.size_divisible
    if fixed is not None and canvas != tuple(fixed[::-1]):
        raise InputError(f"--static {canvas[0]}x{canvas[1]}: this detector makes all pictures {fixed[1]}x{fixed[0]}")
    if fixed is None and any(side % divisor for side in canvas):
        wanted = "x".join(str(_up(side, divisor)) for side in canvas)
        raise InputError(
            f"--static {canvas[0]}x{canvas[1]}: a raw graph's sides are multiples of {divisor}; give {wanted}"
        )


def _graph(
    module: nn.Module,
    example: Tensor,
    given: str,
    outputs: Sequence[str],
    opset: int,
    facts: dict[str, str],
    any_number: bool = False,
) -> bytes:
    length = {0: "rois"} if any_number else {}
    axes = {given: length} | dict.fromkeys(outputs, length)
    proto = folded(trace(module.eval(), example, axes, opset))
    if more := operators(proto) - PLAIN_OPERATORS:
        raise InputError(
            f"the raw graph of this net would hold {', '.join(sorted(more))}, which is not plain; leave out --raw"
        )
    return checked(proto, facts)


def folded(content: bytes) -> Any:
    """The graph without what is the same for every picture: shapes, above all."""
    onnx, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def operators(proto: Any) -> set[str]:
    """Names of the operators in a graph."""
    return {node.op_type for node in proto.graph.node}


def by_name(session: Any) -> Any:
    """*session* as a function from its one input to its outputs by name."""
    given, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    return lambda values: dict(zip(names, run_session(session, {given: values}), strict=True))


def raw_runner(detector: RawDetector) -> Any:
    """*detector* for batches, as :data:`detkt.export.agreement.Runner`."""

    def one(images: np.ndarray) -> list[np.ndarray]:
        found = detector(images[0])
        return [found["boxes"], found["labels"], found["scores"], np.zeros(len(found["scores"]), np.int64)]

    return one_by_one(one)


def open_raw(folder: Path, threads: int | None = None) -> tuple[RawDetector, dict[str, Any]]:
    """The raw graphs of *folder* with ONNX Runtime, and their settings; raises InputError where they are no such."""
    settings = load_json(folder / SETTINGS_FILE)
    if not isinstance(settings, dict) or "levels" not in settings or "facts" not in settings:
        raise InputError(f"{folder / SETTINGS_FILE}: not the settings of a raw graph; export the model again")
    files = [RAW_FILE, HEAD_FILE] if settings.get("family") == "two-stage" else [RAW_FILE]
    for name in files:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file, which {SETTINGS_FILE} belongs to")
    sessions = (open_session(str(folder / name), threads) for name in files)
    return RawDetector(settings, *map(by_name, sessions)), settings


def on_canvas(detector: Any, canvas: tuple[int, int]) -> nn.Module:
    """A copy of *detector* that pads every picture to *canvas*, as a batch with a larger one would."""
    padded: Any = copy.copy(detector)
    padded._modules = dict(detector._modules)
    padded.transform = copy.deepcopy(detector.transform)

    def pad(images: list[Tensor], size_divisible: int = 32) -> Tensor:
        height, width = canvas
        return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images])

    def resize(image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        sides = image.shape[1:]
        shorter, longer = padded.transform.min_size[-1], padded.transform.max_size
        scale = min(
            shorter / min(sides), longer / max(sides), *(full / side for full, side in zip(canvas, sides, strict=True))
        )
        size = [max(1, int(side * scale)) for side in sides]
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    padded.transform.batch_images = pad
    if detector.transform.fixed_size is None:
        padded.transform.resize = resize
    return padded


def settings_of(detector: Any, canvas: tuple[int, int]) -> dict[str, Any]:
    """What :mod:`detkt.export.postprocess` has to know of *detector*, for JSON."""
    transform = detector.transform
    network = batched_network(detector)
    settings: dict[str, Any] = {
        "family": "two-stage" if isinstance(network, TwoStage) else "ssd" if isinstance(network, SSD) else "dense",
        "input": list(canvas),
        "mean": list(transform.image_mean),
        "std": list(transform.image_std),
    }
    if transform.fixed_size is not None:
        settings["resize"] = {"fixed": list(transform.fixed_size[::-1])}
    else:
        settings["resize"] = {"shorter": transform.min_size[-1], "longer": transform.max_size}
    images = torch.zeros(1, 3, *canvas)
    with torch.no_grad():
        named = maps_of(detector.backbone, images)
        maps = list(named.values())
        generator = detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator
        anchors = anchors_of(generator, images, maps)
    settings["levels"] = _levels(
        anchors, [(values.shape[2], values.shape[3]) for values in maps], generator.num_anchors_per_location()
    )
    if settings["family"] == "two-stage":
        rpn, heads = detector.rpn, detector.roi_heads
        settings["rpn"] = {
            "before": rpn.pre_nms_top_n(),
            "after": rpn.post_nms_top_n(),
            "iou": rpn.nms_thresh,
            "score": rpn.score_thresh,
            "smallest": rpn.min_size,
            "coder": _coder(rpn.box_coder),
        }
        pool = heads.box_roi_pool
        settings["pool"] = {
            "maps": [f"map_{name}" for name in named if name in pool.featmap_names],
            "scales": list(pool.scales),
            "size": list(pool.output_size),
            "samples": pool.sampling_ratio,
            "first": pool.map_levels.k_min,
            "last": pool.map_levels.k_max,
            "canonical_side": pool.map_levels.s0,
            "canonical_level": pool.map_levels.lvl0,
        }
    else:
        heads = detector
        settings["candidates"] = detector.topk_candidates
    settings |= {
        "coder": _coder(heads.box_coder),
        "score": heads.score_thresh,
        "iou": heads.nms_thresh,
        "limit": heads.detections_per_img,
    }
    return settings


def _coder(coder: Any) -> dict[str, Any]:
    if hasattr(coder, "weights"):
        return {"weights": list(coder.weights), "clip": coder.bbox_xform_clip}
    return {"by_size": coder.normalize_by_size}


def _levels(anchors: Tensor, grids: list[tuple[int, int]], per_cell: list[int]) -> list[dict[str, Any]]:
    """Each level's grid, stride and the anchors of its first cell; they must give *anchors* (A, 4) again."""
    levels, start = [], 0
    for (rows, columns), count in zip(grids, per_cell, strict=True):
        own = anchors[start : start + rows * columns * count].double().reshape(rows, columns, count, 4)
        start += rows * columns * count
        down = (own[-1, 0, 0, 1] - own[0, 0, 0, 1]).item() / max(1, rows - 1)
        right = (own[0, -1, 0, 0] - own[0, 0, 0, 0]).item() / max(1, columns - 1)
        levels.append({"grid": [rows, columns], "stride": [down, right], "cells": own[0, 0].tolist()})
    if np.abs(np.concatenate(make_anchors(levels)) - anchors.numpy()).max() > 1e-3:
        raise InputError("this net's anchors are not on a grid; leave out --raw")
    return levels
