"""Networks in INT8: static quantisation by ONNX Runtime, with the layers that lose most kept in float.

Convolutions and matrix products get quantised weights, with a scale a channel, and quantised inputs; what is around
them, such as the decoding of boxes and the suppression, stays as it is. Weights have 7 bits, because sums of products
of 8 bits overflow, unnoticed, on CPUs without VNNI.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detkt.base.errors import InputError, first_line
from detkt.export.agreement import Detections, in_batches
from detkt.export.onnx_file import open_session, packages, runner
from detkt.export.raw import folded

QUANTISED = ("Conv", "Gemm", "MatMul")
SWEEP_PICTURES = 8
"""On which the sweep looks at every layer."""


@dataclass(frozen=True)
class Trial:
    """A quantised network: how many layers were kept in float for it, and its score."""

    kept: int
    score: float


@dataclass(frozen=True)
class Int8:
    """The quantised graph and how it was found.

    layers: how many there are; kept: names of those in float, the worst first; losses: of every layer, if all were
    looked at, how far the detections move when it alone is quantised, the worst first; trials: what was scored.
    """

    content: bytes
    layers: int
    kept: tuple[str, ...]
    losses: dict[str, float]
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        if not self.losses:
            return f"all {self.layers} layers in INT8"
        steps = ", ".join(f"{trial.kept}: {100 * trial.score:.2f}" for trial in self.trials)
        worst = ", ".join(f"{name} ({self.losses[name]:.3f})" for name in self.kept[:5])
        more = f" and {len(self.kept) - 5} more" if len(self.kept) > 5 else ""
        kept = f"{len(self.kept)} of {self.layers} layers kept in float: {worst}{more}"
        return f"{kept}; score by layers kept in float: {steps}"


class Quantiser:
    """A float graph and the ranges of its tensors on calibration pictures, for as many trials as wanted."""

    def __init__(self, content: bytes, pictures: Sequence[Tensor], folder: Path, name: str = "images") -> None:
        """
        Args:
            content: the serialised graph.
            pictures: (C, H, W) each.
            folder: for temporary files; it stays for as long as this is used.
            name: of the graph's input.
        """
        onnx, _ = packages()
        # Shapes and constants folded, and batch norms in their convolutions: else they would be quantised apart.
        self.model = folded(content)
        # It forgets what the file says of itself.
        self.facts = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
        for number, node in enumerate(self.model.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        weights = {tensor.name for tensor in self.model.graph.initializer}
        self.layers = [
            node.name
            for node in self.model.graph.node
            if node.op_type in QUANTISED and any(given in weights for given in node.input)
        ]
        self.pictures, self.folder, self.name = pictures, folder, name

    def quantised(self, layers: Sequence[str]) -> bytes:
        """The graph with *layers* in INT8.

        Raises:
            InputError: ONNX Runtime cannot quantise it.
        """
        onnx, _ = packages()
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization.quantize import quantize_static

        target = self.folder / "int8.onnx"
        try:
            with _quiet():
                quantize_static(
                    copy.deepcopy(self.model),  # of which it moves the weights into a file of its own
                    target,
                    _Reader(self.pictures, self.name),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTISED),
                    nodes_to_quantize=list(layers),
                    per_channel=True,
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_cache_path=self.folder / "ranges.json",
                )
        except Exception as error:  # its own have no common base
            raise InputError(f"ONNX Runtime cannot quantise this net: {first_line(error, 160)}") from error
        proto = onnx.load(target)
        onnx.helper.set_model_props(proto, self.facts)
        return proto.SerializeToString()

    def losses(self, tell: Callable[[str], None]) -> dict[str, float]:
        """How far the detections, or logits, move when one layer alone is quantised; the worst first."""
        pictures = self.pictures[:SWEEP_PICTURES]
        expected = _outputs(self.model.SerializeToString(), pictures)
        found = {}
        for number, layer in enumerate(self.layers, start=1):
            found[layer] = distance(expected, _outputs(self.quantised([layer]), pictures))
            tell(f"layer {number} of {len(self.layers)} in INT8 alone: {layer} moves detections by {found[layer]:.4f}")
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def quantise(
    content: bytes,
    pictures: Sequence[Tensor],
    scores: Mapping[str, Callable[[bytes], float]],
    enough: float,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Int8]:
    """Quantise every layer; if that costs too much, keep the 1, 2, 4, 8 … worst in float until it does not.

    Args:
        content: the float graph, serialised.
        pictures: to calibrate on.
        scores: by runtime, its score of a graph. Runtimes round otherwise, so each has its own choice.
        enough: the score to be reached.
        tell: gets a line about every step.

    Returns:
        By runtime, the graph with the fewest layers in float that reaches *enough*, else the best one.

    Raises:
        InputError: ONNX Runtime cannot quantise it.
    """
    graphs: dict[int, bytes] = {}
    losses: dict[str, float] = {}
    trials: dict[str, list[Trial]] = {name: [] for name in scores}
    with tempfile.TemporaryDirectory() as folder:
        quantiser = Quantiser(content, pictures, Path(folder))
        layers = quantiser.layers
        kept = 0
        while True:
            graphs[kept] = quantiser.quantised(list(losses)[kept:] if kept else layers)
            how = f"the {kept} worst of {len(layers)} layers in float" if kept else f"all {len(layers)} layers in INT8"
            for name, score in scores.items():
                if not (trials[name] and trials[name][-1].score >= enough):
                    trials[name].append(Trial(kept, score(graphs[kept])))
                    tell(f"{name}, {how}: {100 * trials[name][-1].score:.2f}")
            done = all(tried[-1].score >= enough for tried in trials.values())
            kept = max(1, 2 * kept)
            if done or kept >= len(layers):
                break
            losses = losses or quantiser.losses(tell)
    found = {}
    for name, tried in trials.items():
        best = max(tried, key=lambda trial: trial.score)
        kept_layers = tuple(losses)[: best.kept]
        found[name] = Int8(graphs[best.kept], len(layers), kept_layers, losses if len(tried) > 1 else {}, tuple(tried))
    return found


def distance(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """How far *found* is from *expected*, a picture each: 0 the same, 1 nothing in common.

    Of detections, the mean, weighted by score, of what each lacks to its best partner of the same label: 1 - IoU, and
    the difference of scores. Of logits the mean difference relative to the largest.
    """
    total = weight = 0.0
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, np.ndarray):
            total += float(np.abs(one - other).mean() / max(1e-6, np.abs(one).max()))
            weight += 1
            continue
        for first, second in ((one, other), (other, one)):
            for box, label, score in zip(first["boxes"], first["labels"], first["scores"], strict=True):
                own = second["labels"] == label
                overlap = box_iou(*map(torch.from_numpy, (box[None], second["boxes"][own])))[0].nan_to_num().numpy()
                lack = 1.0
                if len(overlap):
                    best = int(overlap.argmax())
                    lack = min(1.0, 1 - overlap[best] + abs(score - second["scores"][own][best]))
                total += float(score * lack)
                weight += float(score)
    return total / weight if weight else 0.0


def _outputs(content: bytes, pictures: Sequence[Tensor]) -> list[Detections] | list[np.ndarray]:
    run = runner(open_session(content))
    if len(run(pictures[0].numpy()[None])) == 1:
        return [run(picture.numpy()[None])[0] for picture in pictures]
    return in_batches(run, pictures)


class _Reader:
    """Calibration pictures one after the other, as ONNX Runtime asks for them."""

    def __init__(self, pictures: Sequence[Tensor], name: str) -> None:
        self.pictures: Iterator[Tensor] = iter(pictures)
        self.name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self.pictures, None)
        return None if picture is None else {self.name: picture.numpy()[None]}

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if (found := self.get_next()) is None:
            raise StopIteration
        return found


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises on the root logger what is done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
