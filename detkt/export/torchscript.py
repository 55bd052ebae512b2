"""Networks as TorchScript, for torch's C++ runtime: the traced graph of a batch, as in ONNX."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.base.files import write_atomically
from detkt.export.agreement import Agreement
from detkt.export.onnx_file import GRAPHS, frozen, one_by_one
from detkt.models.card import card_of

TORCHSCRIPT_FILE = "model.torchscript.pt"


def export_torchscript(
    model: nn.Module, path: Path, classes: Sequence[str], pictures: Sequence[Tensor], static: bool = False
) -> Agreement:
    """Write *model* as TorchScript, once it gives what the network gives; arguments and errors as for ONNX.

    Inputs and outputs are those of the ONNX file. What the file says of itself is in its extra file ``detkt.json``.
    A program that loads a detector needs torchvision's operators.
    """
    graphs = GRAPHS[card_of(model).task]
    model = frozen(model)
    example = pictures[0][None] if static else torch.stack([pictures[0]] * 2)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer: what it keeps is compared below
            traced = torch.jit.trace(graphs.batched(model).eval(), (example,), check_trace=False)
    except Exception as error:  # a layer that cannot be traced raises nearly anything
        raise InputError(f"torch {torch.__version__} cannot trace this net: {first_line(error, 160)}") from error

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = traced(torch.from_numpy(images))
        return [values.numpy() for values in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    agreement = graphs.compare(model, one_by_one(run) if static else run, pictures, "TorchScript")
    facts = json.dumps(graphs.about(model, classes), ensure_ascii=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        content = io.BytesIO()
        torch.jit.save(traced, content, _extra_files={"detkt.json": facts})
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
    return agreement
