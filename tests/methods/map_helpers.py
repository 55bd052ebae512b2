"""Maps, knowledge and independent NumPy pooling for the tests of methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detkt.knowledge import FeatureSpec, Knowledge, Scores, Spec
from detkt.methods import method_class, method_config
from detkt.methods.base import Method, Update


def random_map(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    """Normal float64 values of the given shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


def rectangle_mask(height: int, width: int, sizes: list[tuple[int, int]]) -> Tensor:
    """(N, 1, height, width), 1 in the upper left rectangle (rows, columns) of each picture."""
    mask = torch.zeros(len(sizes), 1, height, width, dtype=torch.float64)
    for i, (rows, columns) in enumerate(sizes):
        mask[i, 0, :rows, :columns] = 1
    return mask


def numpy_pool(
    feature: Tensor, size: tuple[int, int], mask: Tensor | None = None, reduce: Callable = np.mean
) -> np.ndarray:
    """Adaptive pooling over the cells of *mask*, cell by cell; cells that cover none of it are 0."""
    x = feature.detach().numpy()
    valid = np.ones((len(x), 1, *x.shape[2:])) if mask is None else mask.numpy()
    pooled = np.zeros((*x.shape[:2], *size))
    for n, c, i, j in np.ndindex(pooled.shape):
        rows = slice(i * x.shape[2] // size[0], -(-(i + 1) * x.shape[2] // size[0]))
        columns = slice(j * x.shape[3] // size[1], -(-(j + 1) * x.shape[3] // size[1]))
        values = x[n, c, rows, columns][valid[n, 0, rows, columns] == 1]
        pooled[n, c, i, j] = reduce(values) if values.size else 0
    return pooled


def spec(
    num_classes: int = 3, classes: tuple[str, ...] = (), scores: Scores | None = None, **maps: tuple[int, int, int]
) -> Spec:
    """A network's Spec; maps by name as (channels, height, width), ``output_0`` for ``output.0``."""
    features = {name.replace("_", "."): FeatureSpec(*shape, nonnegative=False) for name, shape in maps.items()}
    return Spec(features, num_classes, classes, **({} if scores is None else {"scores": scores}))


def make(name: str, student: Spec, teacher: Spec, **settings) -> Method:
    """The method called *name* in float64."""
    return method_class(name)(method_config(name, settings), student, teacher).double()


def task_losses() -> dict[str, Tensor]:
    return {
        "loss_classifier": torch.tensor(0.7, dtype=torch.float64),
        "loss_box": torch.tensor(0.2, dtype=torch.float64),
    }


def one_update(method: Method, student: Knowledge, teacher: Knowledge) -> Update:
    """The only update of the method's only stage, checked to be the student's."""
    (stage,) = method.stages()
    assert stage.trains_student
    assert stage.steps is None
    (update,) = method.step(stage, student, teacher, heads=None)
    assert update.player == "student"
    return update


def added(update: Update, losses: dict[str, Tensor], name: str) -> Tensor:
    """The term *name* that the method added to the task *losses*, which it must have left alone."""
    whole = update.with_task(losses).losses
    assert set(update.losses) == {name}
    assert set(whole) == {*losses, name}
    for term, loss in losses.items():
        torch.testing.assert_close(whole[term], loss)
    return update.losses[name]


def peak_megabytes(function: Callable[[], object], folder: Path) -> float:
    """Most memory that tensors allocated inside *function* hold at once, from the profiler's trace."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    trace = folder / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = np.cumsum([event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])])
    return held.max() / 1e6
