"""Detectors and classifiers as ONNX graphs that give, with ONNX Runtime, what the networks give with torch.

Graphs are traced. The newer exporter, which reads the program, does not take torchvision's detectors: torch 2.15 stops
at the number of proposals, which it does not know. What is written was compared with the network before.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx import operators
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkt.base.errors import InputError, first_line
from detkt.base.files import write_atomically
from detkt.base.version import __version__
from detkt.models.card import ModelCard, card_of

ONNX_FILE = "model.onnx"
OPSETS = range(16, 21)
"""Versions of ONNX's operators: from the first that has torchvision's RoIAlign to the last that torch traces."""
DEFAULT_OPSET = 17
BOX_TOLERANCE = 0.1
"""Pixels of the picture."""
SCORE_TOLERANCE = 1e-3

Detections = dict[str, np.ndarray]
_DETECTIONS = ("boxes", "labels", "scores")


@dataclass(frozen=True)
class Agreement:
    """How far ONNX Runtime and torch are apart on *pictures* pictures.

    compared: detections that both found, or logits.
    score: largest difference of a detection's score; of a logit, relative to the picture's largest if that is above 1.
    box: largest difference of a detection's corner, in pixels of the picture; None for classifiers.
    near_threshold: detections that one of them has and the other has not, because of the score threshold.
    rounded: of the pictures, those whose detections agree with torch's in float64 alone: in float32 torch suppressed
        another of two boxes, or took another of two proposals, that are equal up to rounding.
    """

    pictures: int
    compared: int
    score: float
    box: float | None = None
    near_threshold: int = 0
    rounded: int = 0

    def __str__(self) -> str:
        if self.box is None:
            return f"{self.pictures} pictures: logits differ by {self.score:.1e} at most"
        found = f"{self.pictures} pictures, {self.compared} detections"
        near = f"; {self.near_threshold} at the threshold found by one of them" if self.near_threshold else ""
        rounded = f"; {self.rounded} pictures agree with torch in float64 alone" if self.rounded else ""
        return f"{found}: boxes differ by {self.box:.1e} px at most, scores by {self.score:.1e}{near}{rounded}"


@dataclass(frozen=True)
class OnnxGraphs:
    """Networks of one family as ONNX graphs.

    trace: from the network, a picture and the opset to the serialised graph; compare: what the two give on pictures;
    random_pictures: from (height, width) and channels to pictures to compare on where there are none of a data set,
    the same ones each time; facts: what the file's metadata say of input and output; normalises: whether the graph
    does.
    """

    trace: Callable[[Any, Tensor, int], bytes]
    compare: Callable[[Any, Any, Sequence[Tensor]], Agreement]
    random_pictures: Callable[..., list[Tensor]]
    facts: dict[str, str]
    normalises: bool

    def export(
        self,
        model: nn.Module,
        path: Path,
        classes: Sequence[str],
        pictures: Sequence[Tensor],
        *,
        opset: int = DEFAULT_OPSET,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Agreement:
        """Write *model* as ONNX in float32, once ONNX's checker has passed it and ONNX Runtime agrees with torch.

        A detector's graph takes ``image`` (3, H, W), RGB in [0, 1], of any height and width; it normalises, resizes and
        suppresses, and gives ``boxes`` (n, 4), x1 y1 x2 y2 in pixels of that image, ``labels`` (n,), 1 being the first
        class, and ``scores`` (n,). A classifier's takes ``images`` (N, C, H, W), any number of them, normalised and of
        the size of *pictures*, and gives ``logits`` (N, K). The file's metadata say so, and name the classes.

        Args:
            model: built by :func:`detkt.models.build_detector` or :func:`detkt.models.build_classifier`; left as it is.
            path: replaced if all is well.
            classes: names; a detector's without the background.
            pictures: (C, H, W) each, what the two are compared on; the first is traced.
            opset: one of :data:`OPSETS`.
            normalisation: mean and standard deviation a channel, of pixels in [0, 1], that a classifier's pictures are
                normalised with, for the metadata; None: not known. A detector has its own.

        Raises:
            InputError: onnx or onnxruntime is not installed, torch cannot trace the net, outputs differ by more than
                :data:`BOX_TOLERANCE` or :data:`SCORE_TOLERANCE`, or the file cannot be written; *path* stays as it was.
        """
        onnx, _ = _packages()
        if opset not in OPSETS:
            raise InputError(f"ONNX opset {opset} cannot be written: give one from {OPSETS[0]} to {OPSETS[-1]}")
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        proto = onnx.load_from_string(self.trace(model, pictures[0], opset))
        onnx.helper.set_model_props(proto, self._metadata(card_of(model), classes, normalisation))
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:  # the checker's and the shape inference's own, and protobuf's
            raise InputError(
                f"torch {torch.__version__} made a faulty ONNX graph of it: {first_line(error, 160)}"
            ) from error
        content = proto.SerializeToString()
        agreement = self.compare(model, open_session(content), pictures)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        return agreement

    def _metadata(
        self, card: ModelCard, classes: Sequence[str], normalisation: tuple[Sequence[float], Sequence[float]] | None
    ) -> dict[str, str]:
        facts = {**self.facts, "task": card.task, "architecture": card.architecture, "detkt": __version__}
        facts["classes"] = json.dumps(list(classes), ensure_ascii=False)
        if self.normalises:
            normalisation = card.options["image_mean"], card.options["image_std"]
        if normalisation is not None:
            facts |= {key: json.dumps(list(values)) for key, values in zip(("mean", "std"), normalisation, strict=True)}
        return facts


def _scenes(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Noise, and noise with rectangles that a detector may take for objects, in [0, 1].

    Of *size* (height, width), of *size* turned and of an odd part of it.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    pictures = []
    for shape in ((height, width), (width, height), (2 * height // 3 + 1, width)):
        pictures.append(torch.rand(channels, *shape, generator=generator))
        # With noise over all of it: on an even ground anchors score the same, and rounding decides which is best.
        noise, scene = 0.1 * torch.rand(channels, *shape, generator=generator), torch.zeros(channels, *shape)
        for _ in range(8):
            top, left, high, wide = torch.rand(4, generator=generator).mul(torch.tensor([*shape, *shape]) / 2).int()
            colour = torch.rand(channels, 1, 1, generator=generator)
            scene[:, top : top + high + 8, left : left + wide + 8] = 0.9 * colour
        pictures.append(scene + noise)
    return pictures


def _noise(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Normalised noise of *size* (height, width)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(channels, *size, generator=generator) for _ in range(4)]


def open_session(model: bytes | str) -> Any:
    """ONNX Runtime's session on the CPU for a graph, or the file it is in, with as many threads as torch has.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot run the graph.
    """
    _, onnxruntime = _packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise InputError(f"ONNX Runtime {onnxruntime.__version__} cannot load it: {first_line(error, 160)}") from error


def compare_detectors(model: nn.Module, session: Any, pictures: Sequence[Tensor]) -> Agreement:
    """Detections of torch's *model* and of its graph on each of *pictures*; see :func:`match_detections`.

    A picture on which they differ is compared with torch's detections in float64, before it counts.

    Raises:
        InputError: they differ, or ONNX Runtime fails.
    """
    heads: Any = getattr(model, "roi_heads", model)
    threshold, limit = heads.score_thresh, heads.detections_per_img
    compared, near, rounded, boxes, scores = 0, 0, 0, 0.0, 0.0
    for number, picture in enumerate(pictures, start=1):
        expected = _detect(model, picture)
        found = dict(zip(_DETECTIONS, _run(session, {"image": picture.numpy()}), strict=True))
        pairs, unmatched = match_detections(expected, found, threshold, limit)
        if unmatched is not None:
            expected = _detect(copy.deepcopy(model).double(), picture.double())
            pairs, still_unmatched = match_detections(expected, found, threshold, limit)
            if still_unmatched is not None:
                raise InputError(
                    f"ONNX Runtime and torch differ on picture {number} of {len(pictures)} ({picture.shape[1]} x "
                    f"{picture.shape[2]}): {unmatched}; the ONNX file is not written"
                )
            rounded += 1
        first, second = pairs.T
        compared += len(pairs)
        near += len(expected["scores"]) + len(found["scores"]) - 2 * len(pairs)
        boxes = max(boxes, np.abs(expected["boxes"][first] - found["boxes"][second]).max(initial=0.0).item())
        scores = max(scores, np.abs(expected["scores"][first] - found["scores"][second]).max(initial=0.0).item())
    return Agreement(len(pictures), compared, scores, boxes, near, rounded)


def _detect(model: nn.Module, picture: Tensor) -> Detections:
    with torch.no_grad():
        return {key: values.numpy() for key, values in model([picture])[0].items()}


def match_detections(
    expected: Detections, found: Detections, threshold: float, limit: int
) -> tuple[np.ndarray, str | None]:
    """Pairs (k, 2) of indices of detections that are the same: of one label, nearest, and within the tolerances.

    Also says in words which detection has no partner and ought to have one, or None if there is none such. One need not
    have it whose score is at most :data:`SCORE_TOLERANCE` above the least that the other side gives out: *threshold*
    or, where that side has *limit* detections, the score of its last.
    """
    apart = np.abs(expected["boxes"][:, None] - found["boxes"]).max(axis=2)
    close = (apart <= BOX_TOLERANCE) & (expected["labels"][:, None] == found["labels"])
    close &= np.abs(expected["scores"][:, None] - found["scores"]) <= SCORE_TOLERANCE
    apart[~close] = np.inf
    matched: list[tuple[Any, Any]] = []
    while np.isfinite(apart).any():
        first, second = np.unravel_index(apart.argmin(), apart.shape)
        matched.append((first, second))
        apart[first], apart[:, second] = np.inf, np.inf
    pairs = np.array(matched, dtype=np.int64).reshape(-1, 2)
    for side, name, other in ((0, "torch", "ONNX Runtime"), (1, "ONNX Runtime", "torch")):
        detections, others = (expected, found)[side], (found, expected)[side]["scores"]
        scores = detections["scores"]
        least = others.min() if len(others) >= limit else threshold
        alone = np.setdiff1d(np.flatnonzero(~(scores <= least + SCORE_TOLERANCE)), pairs[:, side])
        if len(alone):
            label, score = detections["labels"][alone[0]], scores[alone[0]]
            box = ", ".join(f"{corner:.1f}" for corner in detections["boxes"][alone[0]])
            return pairs, f"{name} finds label {label} with score {score:.4f} at ({box}), {other} nothing like it"
    return pairs, None


def compare_classifiers(model: nn.Module, session: Any, pictures: Sequence[Tensor]) -> Agreement:
    """Logits of torch's *model* and of its graph, of the first picture alone and of all as one batch.

    Raises:
        InputError: they differ, or ONNX Runtime fails.
    """
    compared, largest = 0, 0.0
    for images in (torch.stack(list(pictures[:1])), torch.stack(list(pictures))):
        with torch.no_grad():
            expected = model(images).numpy()
        (found,) = _run(session, {"images": images.numpy()})
        scale = np.abs(expected).max(axis=1, keepdims=True).clip(min=1)
        difference = (np.abs(expected - found) / scale).max().item()
        if not difference <= SCORE_TOLERANCE:  # also where one of them is not a number
            raise InputError(
                f"ONNX Runtime and torch differ on a batch of {len(images)}: logits by {difference:.2g}; the ONNX file "
                "is not written"
            )
        compared, largest = compared + found.size, max(largest, difference)
    return Agreement(len(pictures), compared, largest)


class _ExportTransform(GeneralizedRCNNTransform):
    """torchvision's preparation of pictures, with the resized side as torch computes it when it is not traced.

    When traced torchvision computes it in float32, and then rounds down to another number of pixels for one size of
    picture in ten or so, which shifts every box.
    """

    def resize(self, image: Tensor, target: None = None) -> tuple[Tensor, None]:
        # One-element tensors: the exporter takes those without dimensions for Python's numbers, and makes them float32.
        sides = operators.shape_as_tensor(image)[-2:].double()
        to_shorter = sides.new_tensor([self.min_size[-1]]) / sides.amin(0, keepdim=True)
        to_longer = sides.new_tensor([self.max_size]) / sides.amax(0, keepdim=True)
        height, width = (sides * torch.minimum(to_shorter, to_longer)).floor().long()
        return F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0], target


class _DetectorGraph(nn.Module):
    """``(3, H, W)`` -> boxes, labels, scores."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        own = detector.transform
        self.detector = copy.copy(detector)  # whose parts are not copied
        self.detector._modules = dict(detector._modules)
        if own.fixed_size is None:
            self.detector.transform = _ExportTransform(
                own.min_size, own.max_size, own.image_mean, own.image_std, own.size_divisible
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detections = self.detector([image])[0]
        return tuple(detections[key] for key in _DETECTIONS)


def _trace_detector(model: nn.Module, picture: Tensor, opset: int) -> bytes:
    axes = {"image": {1: "height", 2: "width"}} | {name: {0: "detections"} for name in _DETECTIONS}
    return _trace(_DetectorGraph(model).eval(), picture, axes, opset)


def _trace_classifier(model: nn.Module, picture: Tensor, opset: int) -> bytes:
    return _trace(model, torch.stack([picture, picture]), {"images": {0: "batch"}, "logits": {0: "batch"}}, opset)


def _trace(graph: nn.Module, example: Tensor, axes: dict[str, dict[int, str]], opset: int) -> bytes:
    """The serialised graph; *axes*: names of the input and then of the outputs, with the axes of any length."""
    content = io.BytesIO()
    first, *others = axes
    try:
        with warnings.catch_warnings(), _silent():
            # Of the tracer, which is deprecated, and of torchvision's branches for it.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (example,),
                content,  # type: ignore[arg-type]  # which the exporter by tracing takes
                dynamo=False,
                opset_version=opset,
                input_names=[first],
                output_names=others,
                dynamic_axes=axes,
            )
    except Exception as error:  # a layer that ONNX has not raises nearly anything
        size = " x ".join(map(str, example.shape[-2:]))
        raise InputError(
            f"torch {torch.__version__} cannot export this net for pictures of {size} as ONNX: {first_line(error, 160)}"
        ) from error
    return content.getvalue()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep from the standard output what torch writes there from C++ when it fails: whole graphs."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _run(session: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(None, inputs)
    except Exception as error:  # its exceptions have no common base
        shapes = ", ".join(" x ".join(map(str, value.shape)) for value in inputs.values())
        raise InputError(f"ONNX Runtime fails on pictures {shapes}: {first_line(error, 160)}") from error


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX needs packages that are not installed ({error}): pip install detkt[onnx]") from error
    return onnx, onnxruntime


DETECTOR_GRAPHS = OnnxGraphs(
    _trace_detector,
    compare_detectors,
    _scenes,
    {
        "input": "image (3, height, width), RGB in [0, 1]; normalised and resized in the graph",
        "output": "boxes (n, 4): x1 y1 x2 y2, pixels from 0; labels (n,): 1 is the first class; scores (n,)",
    },
    normalises=True,
)
CLASSIFIER_GRAPHS = OnnxGraphs(
    _trace_classifier,
    compare_classifiers,
    _noise,
    {
        "input": "images (batch, channels, height, width), in [0, 1], less mean, divided by std",
        "output": "logits (batch, classes)",
    },
    normalises=False,
)
