"""All forms of a network that are asked for: written, measured after export, and refused where they lose too much."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.data.detection import DetectionSet
from detkt.evaluation.bootstrap import bootstrap_map
from detkt.evaluation.detector import detect
from detkt.export import int8, openvino
from detkt.export.measuring import Latency, all_threads, latency, torch_threads
from detkt.export.onnx_file import DEFAULT_OPSET, GRAPHS, ONNX_FILE, Normalisation, export_onnx, half_weights
from detkt.export.raw import HEAD_FILE, RAW_FILE, SETTINGS_FILE, export_raw
from detkt.export.runtime import open_exported
from detkt.export.table import EXACT, NEAR, Row, differing
from detkt.export.torchscript import TORCHSCRIPT_FILE, export_torchscript
from detkt.kinds import Detection
from detkt.models import save_model
from detkt.models.card import card_of
from detkt.models.saved import META_FILE
from detkt.models.weights import WEIGHTS_FILE

INT8_FILE, OPENVINO_FILE, OPENVINO_INT8_FILE = "model.int8.onnx", "model.xml", "model.int8.xml"
FORMATS = ("safetensors", "onnx", "int8", "openvino", "torchscript")
RESAMPLES = 1000
SECONDS = 2.0
"""For which each form is timed, with one thread and with all."""

Tell = Callable[[str], None]


@dataclass
class Request:
    """What to export, and with what to check it.

    formats: of :data:`FORMATS`. pictures: to compare each form with torch on. calibration: pictures for INT8. data: to
    score every form on; None: none is scored. kind: of the data, whose first measure counts. max_drop: points of it
    that a form may lose. half: weights are stored as fp16. static: graphs take one picture of this height and width.
    normalisation: of a classifier's pictures.
    """

    formats: Sequence[str]
    pictures: Sequence[Tensor]
    calibration: Sequence[Tensor] = ()
    data: DetectionSet | None = None
    kind: Detection = field(default_factory=Detection)
    max_drop: float = 1.0
    half: bool = False
    raw: bool = False
    static: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET
    normalisation: Normalisation | None = None
    tell: Tell = print
    quiet: bool = False

    @property
    def lead(self) -> str:
        """Key of the score that counts."""
        return next(iter(self.kind.measures))


@dataclass
class Shipment:
    """Forms of *model* in *folder*: :meth:`make` writes and measures them, :meth:`refused` takes out what must go."""

    model: nn.Module
    meta: dict[str, Any]
    folder: Path
    request: Request
    rows: list[Row] = field(default_factory=list)
    detections: dict[str, Any] = field(default_factory=dict)

    def make(self) -> list[Row]:
        """Write, compare, score and time everything; the first row is torch's."""
        request, classes = self.request, self.meta["classes"]
        is_detector = card_of(self.model).task == "detection"
        self._torch_row(is_detector)
        wanted = set(request.formats)
        with tempfile.TemporaryDirectory() as scratch:
            float_graph = Path(scratch) / ONNX_FILE
            if wanted & {"onnx", "int8", "openvino"}:
                agreement = export_onnx(
                    self.model,
                    float_graph,
                    classes,
                    request.pictures,
                    opset=request.opset,
                    static=request.static is not None,
                    normalisation=request.normalisation,
                )
                request.tell(f"{ONNX_FILE}: opset {request.opset}; ONNX Runtime and torch on {agreement}")
                if agreement.compared == 0:
                    request.tell("warning: nothing was detected, so no box was compared: give --data-root")
            if "onnx" in wanted:
                target = self.folder / ONNX_FILE
                content = float_graph.read_bytes()
                write_atomically(
                    target, lambda path: path.write_bytes(half_weights(content) if request.half else content)
                )
                self._add("ONNX", [target], is_detector, note="weights stored as fp16" if request.half else "")
            if "int8" in wanted:
                self._int8(float_graph.read_bytes())
            if "openvino" in wanted:
                note = "weights stored as fp16" if request.half else ""
                self._openvino(float_graph.read_bytes(), OPENVINO_FILE, "OpenVINO", note, request.half)
        if "torchscript" in wanted:
            target = self.folder / TORCHSCRIPT_FILE
            agreement = export_torchscript(
                self.model, target, classes, request.pictures, static=request.static is not None
            )
            request.tell(f"{TORCHSCRIPT_FILE}: TorchScript and torch on {agreement}")
            self.rows.append(Row("TorchScript", (target,), note=f"compared on {agreement}"))
        if request.raw:
            agreement = export_raw(
                self.model, self.folder, classes, request.pictures, canvas=request.static, opset=request.opset
            )
            request.tell(f"{RAW_FILE}: opset {request.opset}; with NumPy's part and torch on {agreement}")
            files = [self.folder / name for name in (RAW_FILE, HEAD_FILE, SETTINGS_FILE)]
            self._add("ONNX raw + NumPy", [path for path in files if path.exists()], True)
        if "safetensors" in wanted:
            self.save()
        return self.rows

    def save(self) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        model = copy.deepcopy(self.model).half() if self.request.half else self.model
        save_model(model, self.folder, self.meta["classes"], self.meta.get("extra"))
        files = self.folder / WEIGHTS_FILE, self.folder / META_FILE
        self.rows.append(Row("safetensors", files, note="weights stored as fp16" if self.request.half else ""))

    def refused(self) -> list[Row]:
        """The forms that lose more than may be, whose files are removed and rows taken out."""
        floor = self._floor()
        if floor is None:
            return []
        lead = self.request.lead
        lost = [row for row in self.rows[1:] if row.scores is not None and not row.scores[lead] >= floor]
        for row in lost:
            for path in row.files:
                path.unlink(missing_ok=True)
            self.rows.remove(row)
        return lost

    def _floor(self) -> float | None:
        scores = self.rows[0].scores
        return None if scores is None else scores[self.request.lead] - self.request.max_drop / 100 - 1e-9

    def _torch_row(self, is_detector: bool) -> None:
        model = self.model.float().eval()
        call = (lambda picture: model([picture])) if is_detector else (lambda picture: model(picture[None]))
        latencies = []
        for threads in self._threads():
            with torch_threads(threads), torch.inference_mode():
                latencies.append(latency(call, self._timed(), threads, SECONDS))
        row = Row("torch", latencies=tuple(latencies))
        self.rows.append(row)
        self._score(row, model)

    def _add(self, name: str, files: Sequence[Path], is_detector: bool, note: str = "") -> Row:
        row = Row(name, tuple(files), note=note)
        self.rows.append(row)
        if is_detector:
            row.latencies = tuple(self._latency(files[-1] if files[-1].name == SETTINGS_FILE else files[0]))
            self._score(row, open_exported(row.files[0])[0])
        return row

    def _int8(self, content: bytes) -> None:
        request = self.request
        floor = self._floor()
        if request.data is None or floor is None:
            raise InputError(
                "INT8 needs annotated pictures to calibrate and to score on: give --data-root of a data set"
            )
        target = self.folder / INT8_FILE
        calibration = list(request.calibration or request.pictures)

        def scored(name: str, graph: bytes) -> float:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / name
                if name == OPENVINO_INT8_FILE:
                    openvino.save(openvino.convert(graph, self._facts()), path)
                else:
                    path.write_bytes(graph)
                return self._scores(open_exported(path)[0])[0][request.lead]

        scores = {"ONNX INT8": partial(scored, INT8_FILE)}
        if "openvino" in request.formats:
            scores["OpenVINO INT8"] = partial(scored, OPENVINO_INT8_FILE)
        made = int8.quantise(content, calibration, scores, floor, request.tell)
        notes = {name: f"{one}; calibrated on {len(calibration)} pictures" for name, one in made.items()}
        for name, note in notes.items():
            request.tell(f"{name}: {note}")
        content = made["ONNX INT8"].content
        write_atomically(target, lambda path: path.write_bytes(content))
        self._add("ONNX INT8", [target], True, notes["ONNX INT8"])
        if "OpenVINO INT8" in made:
            name = "OpenVINO INT8"
            self._openvino(made[name].content, OPENVINO_INT8_FILE, name, notes[name])

    def _openvino(self, content: bytes, name: str, title: str, note: str = "", half: bool = False) -> None:
        path = self.folder / name
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            # Two files, which must not be seen one without the other.
            openvino.save(openvino.convert(content, self._facts()), Path(scratch) / name, half)
            weights = Path(name).with_suffix(".bin").name
            for part in (weights, name):
                shutil.move(Path(scratch) / part, self.folder / part)
        self._add(title, [path, self.folder / weights], True, note)

    def _facts(self) -> dict[str, str]:
        return GRAPHS["detection"].about(self.model, self.meta["classes"])

    def _threads(self) -> list[int]:
        return sorted({1, all_threads()})

    def _timed(self) -> Sequence[Tensor]:
        data = self.request.data
        return self.request.pictures if data is None else [data[index][0] for index in range(min(len(data), 16))]

    def _latency(self, path: Path) -> list[Latency]:
        found = []
        for threads in self._threads():
            found.append(latency(_one(open_exported(path, threads)[0]), self._timed(), threads, SECONDS))
        return found

    def _score(self, row: Row, model: nn.Module) -> None:
        data = self.request.data
        if data is None:
            return
        row.scores, detections = self._scores(model)
        options: dict[str, Any] = {
            "classes": data.classes,
            "resamples": RESAMPLES,
            "metrics": self.request.kind.resampled,
        }
        intervals = bootstrap_map(detections, data.annotations(), **options)
        row.intervals = {key: interval.numbers() for key, interval in intervals.items()}
        if row is self.rows[0]:
            self.detections = detections
        else:
            row.differing, row.boxes = differing(self.detections, detections, EXACT)
            row.moved, _ = differing(self.detections, detections, NEAR)

    def _scores(self, model: nn.Module) -> tuple[dict[str, Any], Any]:
        data = self.request.data
        assert data is not None
        detections, _ = detect(model, data, torch.device("cpu"), quiet=self.request.quiet)
        return self.request.kind.score(detections, data.annotations(), data.classes), detections


def _one(model: nn.Module) -> Callable[[Tensor], Any]:
    """*model* on a single picture."""
    return lambda picture: model([picture])
