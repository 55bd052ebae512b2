"""Exported ONNX graphs as OpenVINO's, for its runtime: an extra, ``pip install detkt[openvino]``.

A graph in INT8 is one that ONNX Runtime quantised: OpenVINO takes its scales over, but rounds otherwise, so it may need
more layers in float. One sweep says which are the worst for both.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from detkt.base.errors import InputError, first_line
from detkt.export.agreement import Runner

_FACTS = "detkt"


def package() -> ModuleType:
    """openvino; raises InputError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            f"OpenVINO needs a package that is not installed ({error}): pip install detkt[openvino]"
        ) from error
    return openvino


def convert(content: bytes, facts: dict[str, str]) -> Any:
    """OpenVINO's model of an ONNX graph; raises InputError where it does not take it."""
    openvino = package()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            model = openvino.convert_model(path)
        except Exception as error:  # its own have no common base
            raise InputError(f"OpenVINO {openvino.__version__} cannot convert it: {first_line(error, 160)}") from error
    model.set_rt_info(json.dumps(facts, ensure_ascii=False), [_FACTS])
    return model


def save(model: Any, path: Path, half: bool = False) -> None:
    """Write ``NAME.xml`` and ``NAME.bin``; *half*: weights as fp16, which are computed with in float32 on CPUs."""
    package().save_model(model, path, compress_to_fp16=half)


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """The model of an ``.xml`` that :func:`save` wrote, and its facts.

    Raises:
        InputError: no such file, damaged, or not written by detkt.
    """
    openvino = package()
    try:
        model = openvino.Core().read_model(path)
    except Exception as error:
        raise InputError(f"{path}: OpenVINO cannot read it: {first_line(error, 160)}") from error
    try:
        return model, json.loads(model.get_rt_info([_FACTS]).astype(str))
    except Exception as error:
        raise InputError(f"{path} does not say what it detects: it was not exported by detkt") from error


def runner(model: Any, threads: int | None = None) -> Runner:
    """*model* compiled for the CPU, as a function of pictures; raises InputError where OpenVINO fails."""
    openvino = package()
    settings = {"INFERENCE_NUM_THREADS": threads or torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    try:
        # In float32, also where the CPU would rather have bfloat16.
        compiled = openvino.Core().compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise InputError(f"OpenVINO {openvino.__version__} cannot load it: {first_line(error, 160)}") from error

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            found = compiled(images)
        except Exception as error:
            shape = " x ".join(map(str, images.shape))
            raise InputError(f"OpenVINO fails on pictures {shape}: {first_line(error, 160)}") from error
        return [np.array(found[output]) for output in compiled.outputs]

    return run
