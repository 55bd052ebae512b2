"""Detectors and classifiers as ONNX graphs that give, with ONNX Runtime, what the networks give with torch.

Graphs are traced. The newer exporter, which reads the program, does not take them: see docs/guides/ship.md. What is
written was compared with the network before.
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
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.base.files import write_atomically
from detkt.base.version import __version__
from detkt.export.agreement import Agreement, Runner, compare_classifiers, compare_detectors
from detkt.export.batched import BatchedDetector
from detkt.models.card import ModelCard, card_of

ONNX_FILE = "model.onnx"
OPSETS = range(16, 21)
"""Versions of ONNX's operators: from the first that has torchvision's RoIAlign to the last that torch traces."""
DEFAULT_OPSET = 17
_FEW = 64  # numbers that are not worth a node
DETECTIONS = ("boxes", "labels", "scores", "pictures")

Normalisation = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Graphs:
    """How networks of one task become graphs.

    batched: the module to trace, from pictures (N, C, H, W) to *outputs*; compare: see
    :mod:`detkt.export.agreement`; lengths: what the first axis of each output counts; facts: what a file says of input
    and output; normalises: whether the graph does.
    """

    batched: Callable[[Any], nn.Module]
    compare: Callable[[nn.Module, Runner, Sequence[Tensor], str], Agreement]
    outputs: tuple[str, ...]
    length: str
    any_size: bool
    facts: dict[str, str]
    normalises: bool

    def axes(self, static: bool) -> dict[str, dict[int, str]]:
        """Axes of any length, of the input and then of every output."""
        sides = {2: "height", 3: "width"} if self.any_size else {}
        images = {} if static else {0: "batch", **sides}
        return {"images": images} | {
            name: {} if static and self.length == "batch" else {0: self.length} for name in self.outputs
        }

    def about(
        self, model: nn.Module, classes: Sequence[str], normalisation: Normalisation | None = None
    ) -> dict[str, str]:
        """What every exported file says of *model*, as text: task, architecture, classes, parameters, mean, std …"""
        card: ModelCard = card_of(model)
        facts = {**self.facts, "task": card.task, "architecture": card.architecture, "detkt": __version__}
        facts["classes"] = json.dumps(list(classes), ensure_ascii=False)
        facts["parameters"] = str(sum(parameter.numel() for parameter in model.parameters()))
        if self.normalises:
            transform: Any = model.transform
            normalisation = transform.image_mean, transform.image_std
        if normalisation is not None:
            facts |= {key: json.dumps(list(values)) for key, values in zip(("mean", "std"), normalisation, strict=True)}
        return facts


GRAPHS = {
    "detection": Graphs(
        BatchedDetector,
        compare_detectors,
        DETECTIONS,
        "detections",
        any_size=True,
        facts={
            "input": "images (batch, 3, height, width), RGB in [0, 1]; normalised and resized in the graph",
            "output": "boxes (n, 4): x1 y1 x2 y2, pixels from 0; labels (n,): 1 is the first class; scores (n,); "
            "pictures (n,): number in the batch",
        },
        normalises=True,
    ),
    "classification": Graphs(
        lambda model: model,
        compare_classifiers,
        ("logits",),
        "batch",
        any_size=False,
        facts={
            "input": "images (batch, channels, height, width), in [0, 1], less mean, divided by std",
            "output": "logits (batch, classes)",
        },
        normalises=False,
    ),
}
"""By the task that ``model.json`` names."""


def frozen(model: nn.Module) -> nn.Module:
    """A copy of *model* in float32 on the CPU that is not trained further."""
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)


def export_onnx(
    model: nn.Module,
    path: Path,
    classes: Sequence[str],
    pictures: Sequence[Tensor],
    *,
    opset: int = DEFAULT_OPSET,
    static: bool = False,
    normalisation: Normalisation | None = None,
) -> Agreement:
    """Write *model* as ONNX in float32, once ONNX's checker has passed it and ONNX Runtime agrees with torch.

    A detector's graph takes ``images`` (N, 3, H, W), RGB in [0, 1], any number of them, of any one height and width; it
    normalises, resizes and suppresses, and gives ``boxes`` (n, 4), x1 y1 x2 y2 in pixels of those pictures, ``labels``
    (n,), 1 being the first class, ``scores`` (n,), and ``pictures`` (n,), of which of the N each is. A classifier's
    takes ``images`` (N, C, H, W), any number of them, normalised and of the size of *pictures*, and gives ``logits``
    (N, K). The file's metadata say so, and name the classes.

    Args:
        model: built by :func:`detkt.models.build_detector` or :func:`detkt.models.build_classifier`; left as it is.
        path: replaced if all is well.
        classes: names; a detector's without the background.
        pictures: (C, H, W) each, what the two are compared on; the first is traced.
        opset: one of :data:`OPSETS`.
        static: the graph takes one picture of the first one's size and nothing else; all *pictures* have it.
        normalisation: mean and standard deviation a channel, of pixels in [0, 1], that a classifier's pictures are
            normalised with, for the metadata; None: not known. A detector has its own.

    Raises:
        InputError: onnx or onnxruntime is not installed, torch cannot trace the net, outputs differ by more than
            the tolerances of :mod:`detkt.export.agreement`, or the file cannot be written; *path* stays as it was.
    """
    onnx, onnxruntime = packages()
    if opset not in OPSETS:
        raise InputError(f"ONNX opset {opset} cannot be written: give one from {OPSETS[0]} to {OPSETS[-1]}")
    graphs = GRAPHS[card_of(model).task]
    model = frozen(model)
    # A batch of two, for a batch of one has axes of length one that torch takes for broadcast.
    example = pictures[0][None] if static else torch.stack([pictures[0]] * 2)
    proto = onnx.load_from_string(trace(graphs.batched(model).eval(), example, graphs.axes(static), opset))
    content = checked(proto, graphs.about(model, classes, normalisation))
    batches = one_by_one(runner(open_session(content))) if static else runner(open_session(content))
    agreement = graphs.compare(model, batches, pictures, "ONNX Runtime")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return agreement


def checked(proto: Any, facts: dict[str, str]) -> bytes:
    """The file of a graph with *facts* for metadata; raises InputError where ONNX's checker finds fault."""
    onnx, _ = packages()
    onnx.helper.set_model_props(proto, facts)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker's and the shape inference's own, and protobuf's
        raise InputError(
            f"torch {torch.__version__} made a faulty ONNX graph of it: {first_line(error, 160)}"
        ) from error
    return proto.SerializeToString()


def one_by_one(run: Runner) -> Runner:
    """*run*, which takes a single picture, for batches."""

    def batch(images: np.ndarray) -> list[np.ndarray]:
        outputs = [list(run(image[None])) for image in images]
        for number, output in enumerate(outputs):
            if len(output) == len(DETECTIONS):
                output[-1] = output[-1] + number
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    return batch


def open_session(model: bytes | str, threads: int | None = None) -> Any:
    """ONNX Runtime's session on the CPU for a graph, or the file it is in, with as many *threads*, or as torch has.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot run the graph.
    """
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # it warns of shapes of empty outputs
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise InputError(f"ONNX Runtime {onnxruntime.__version__} cannot load it: {first_line(error, 160)}") from error


def runner(session: Any) -> Runner:
    """*session* as a function of pictures; it raises InputError where ONNX Runtime fails."""
    name = session.get_inputs()[0].name
    return lambda images: run_session(session, {name: images})


def run_session(session: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The session's outputs; raises InputError where ONNX Runtime fails."""
    try:
        return session.run(None, inputs)
    except Exception as error:  # its exceptions have no common base
        shapes = ", ".join(" x ".join(map(str, value.shape)) for value in inputs.values())
        raise InputError(f"ONNX Runtime fails on pictures {shapes}: {first_line(error, 160)}") from error


def trace(graph: nn.Module, example: Tensor, axes: dict[str, dict[int, str]], opset: int) -> bytes:
    """The serialised graph; *axes*: names of the input and then of the outputs, with the axes of any length."""
    content = io.BytesIO()
    first, *others = axes
    try:
        with warnings.catch_warnings(), silent():
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
                dynamic_axes={name: own for name, own in axes.items() if own},
            )
    except Exception as error:  # a layer that ONNX has not raises nearly anything
        size = " x ".join(map(str, example.shape[-2:]))
        raise InputError(
            f"torch {torch.__version__} cannot export this net for pictures of {size} as ONNX: {first_line(error, 160)}"
        ) from error
    return content.getvalue()


@contextlib.contextmanager
def silent() -> Iterator[None]:
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


def packages() -> tuple[ModuleType, ModuleType]:
    """onnx and onnxruntime; raises InputError where they are not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX needs packages that are not installed ({error}): pip install detkt[onnx]") from error
    return onnx, onnxruntime


def half_weights(content: bytes) -> bytes:
    """The graph with its large weights stored as fp16, half the size; they are computed with in float32."""
    onnx, _ = packages()
    proto = onnx.load_from_string(content)
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _FEW:
            continue
        stored = f"{tensor.name}_fp16"
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        casts.append(onnx.helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, stored))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()
