"""Students that fit a device: candidates built with random weights and measured, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from detkt.base.errors import InputError
from detkt.export.batched import BatchedDetector
from detkt.export.measuring import Latency, latency, torch_threads
from detkt.export.onnx_file import GRAPHS, frozen, open_session, runner, trace
from detkt.models import build_detector
from detkt.models.options import parse_name, resolve_options

WIDTHS = (0.25, 0.5, 0.75)
SIDES = (192, 256, 320, 416, 512)
_LONGEST = 5 / 3
"""A picture's longer side may be so many times the shorter one, as in 600 by 1000."""
_ANCHORS = {"c4": (0.21, 0.43, 0.85), "fpn": (0.055, 0.11, 0.21, 0.43, 0.85)}
"""Anchors' sides, in parts of the picture's shorter side: 128, 256 and 512 of 600."""


@dataclass(frozen=True)
class Candidate:
    """A student: a detector's name and the options that differ from its defaults."""

    architecture: str
    options: dict[str, Any]

    def config_line(self) -> str:
        """What makes it the student of a training, as ``section.key=value``."""
        settings = {"student.architecture": self.architecture}
        settings |= {f"student.options.{key}": _text(value) for key, value in self.options.items()}
        return " ".join(f"{key}={value}" for key, value in settings.items())

    def check(self) -> None:
        """Raises InputError for an unknown detector, or options that it has not."""
        resolve_options(parse_name(self.architecture), self.options)

    def build(self, classes: int) -> nn.Module:
        """The network with random weights, for *classes* classes."""
        return build_detector(self.architecture, classes + 1, **self.options).eval()


@dataclass(frozen=True)
class Measured:
    """A candidate, the megabytes of its float32 weights, its parameters, and how long it takes for a picture."""

    candidate: Candidate
    megabytes: float
    parameters: int
    latency: Latency

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        about = {"megabytes": self.megabytes, "parameters": self.parameters, "config": self.candidate.config_line()}
        return asdict(self.candidate) | about | {"milliseconds": self.latency.numbers()}


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def candidates(architectures: Sequence[str] = (), sides: Sequence[int] = SIDES) -> list[Candidate]:
    """Students of the *architectures*, or of all small ones known here, for pictures of each of *sides*.

    ResNets of 10 and 18 layers and several widths, as C4, FPN, RetinaNet and FCOS; torchvision's SSDlite and its Faster
    R-CNN on MobileNet; and, where timm is installed, small nets of it, cut at stride 16.
    """
    names = list(architectures) or list(_known())
    found = []
    for name in names:
        if name.startswith(("ssdlite", "ssd300")):  # they have a size of their own
            found.append(Candidate(name, {}))
            continue
        for side in sides:
            options: dict[str, Any] = {"min_size": side, "max_size": round(side * _LONGEST)}
            if name.startswith("fasterrcnn") and "mobilenet" not in name:
                parts = _ANCHORS["fpn" if name.endswith("_fpn") else "c4"]
                options["anchor_sizes"] = [max(8, round(part * side)) for part in parts]
            found.append(Candidate(name, options))
    return found


def _known() -> Iterator[str]:
    for form in ("fasterrcnn_{}_c4", "fasterrcnn_{}_fpn", "retinanet_{}_fpn", "fcos_{}_fpn"):
        for depth in (10, 18):
            for width in WIDTHS:
                yield form.format(f"resnet{depth}x{width:g}")
    yield from ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
    try:
        import timm  # noqa: F401
    except ImportError:
        return
    for name in ("mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_lite0"):
        yield f"fasterrcnn_timm:{name}_c4"


def megabytes(candidate: Candidate, classes: int) -> tuple[float, int]:
    """Megabytes of float32 weights and parameters, without giving the network any memory."""
    with torch.device("meta"):
        model = build_detector(candidate.architecture, classes + 1, **candidate.options)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return numbers / 1e6, sum(parameter.numel() for parameter in model.parameters())


def search(
    options: Sequence[Candidate],
    *,
    milliseconds: float,
    size: float,
    classes: int,
    threads: int = 1,
    onnx: bool = False,
    limit: float = 90.0,
    clock: Callable[[], float],
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Measured], int]:
    """The candidates that fit, the one of most parameters first, and how many were not looked at.

    What is too large is left out before it is built. A wider or deeper net on larger pictures is not tried where the
    same net on smaller ones is too slow already.

    Args:
        options: what to try.
        milliseconds: a picture may take, in the median.
        size: megabytes that float32 weights may have.
        classes: that it is to know, without the background.
        threads: to measure with.
        onnx: measure the ONNX graph with ONNX Runtime, not torch.
        limit: seconds after which no further candidate is begun.
        clock: seconds, such as ``time.monotonic``.
        tell: gets a line about every candidate.
    """
    found, skipped = [], 0
    too_slow: dict[str, int] = {}
    weights: dict[str, tuple[float, int]] = {}  # which the size of pictures does not change
    for candidate in options:
        if candidate.architecture not in weights:
            weights[candidate.architecture] = _size(candidate, classes)
    small = [(candidate, *weights[candidate.architecture]) for candidate in options]
    small = [entry for entry in small if entry[1] <= size]
    tell(f"{len(small)} of {len(options)} candidates have at most {size:g} MB")
    started = clock()
    # Small pictures first: what is too slow for them need not be tried on larger ones.
    for candidate, weight, parameters in sorted(small, key=lambda entry: entry[0].options.get("min_size", 320)):
        side = candidate.options.get("min_size", 320)
        if side > too_slow.get(candidate.architecture, side):
            continue
        if clock() - started > limit:
            skipped += 1
            continue
        try:
            taken = _measure(candidate, classes, threads, onnx)
        except (InputError, RuntimeError, ValueError) as error:
            tell(f"{candidate.architecture} at {side} px: left out, {str(error).splitlines()[0][:120]}")
            continue
        fits = taken.median <= milliseconds
        tell(f"{candidate.architecture} at {side} px: {weight:.2f} MB, {taken} ms{'' if fits else ', too slow'}")
        if fits:
            found.append(Measured(candidate, weight, parameters, taken))
        else:
            too_slow[candidate.architecture] = side
    return sorted(found, key=lambda one: (-one.candidate.options.get("min_size", 320), -one.parameters)), skipped


def _size(candidate: Candidate, classes: int) -> tuple[float, int]:
    try:
        return megabytes(candidate, classes)
    except (InputError, RuntimeError, ValueError):
        return float("inf"), 0


def _measure(candidate: Candidate, classes: int, threads: int, onnx: bool) -> Latency:
    torch.manual_seed(0)
    model = frozen(candidate.build(classes))
    height = candidate.options.get("min_size", 320)
    pictures = [torch.rand(3, height, round(height * 4 / 3))]
    if onnx:
        graph = trace(BatchedDetector(model).eval(), torch.stack(pictures * 2), GRAPHS["detection"].axes(False), 17)
        run = runner(open_session(graph, threads))
        return latency(lambda picture: run(picture.numpy()[None]), pictures, threads, seconds=1)
    with torch_threads(threads), torch.inference_mode():
        return latency(lambda picture: model([picture]), pictures, threads, seconds=1)


def budget_table(found: Sequence[Measured]) -> str:
    """A line a candidate, and below each the config line that makes it the student."""
    width = max([len("student"), *(len(one.candidate.architecture) for one in found)])
    lines = [f"{'student':<{width}}  pixels      MB  parameters  ms (quartiles)"]
    for one in found:
        side = one.candidate.options.get("min_size", "own")
        lines.append(
            f"{one.candidate.architecture:<{width}}  {side:>6}  {one.megabytes:>6.2f}  {one.parameters:>10,}  "
            f"{one.latency}"
        )
        lines.append(f"    {one.candidate.config_line()}")
    return "\n".join(lines)
