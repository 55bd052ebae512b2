"""A benchmark's report as text: what was timed on what, and tables in Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarking.subjects import EVALUATION, STUDENT

MEBIBYTE = 2**20


def benchmark_text(report: dict[str, Any]) -> str:
    """Headline, times and ratios, memory, loading and evaluation."""
    parts = [_headline(report), _times(report)]
    if report["against"]:
        parts.append(_against(report))
    parts += [_memory(report), _rest(report)]
    return "\n\n".join(parts)


def spread(ratio: dict[str, float]) -> str:
    """A median with the quartiles of the rounds: ``1.05 (1.04-1.07)``."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _headline(report: dict[str, Any]) -> str:
    machine, config, versions = report["machine"], report["config"], report["versions"]
    height, width = (max(shape[axis] for shape in report["input_shapes"]) for axis in (-2, -1))
    networks = " -> ".join(
        f"{config[role]['architecture']} ({report['weights'][role]} weights)" for role in ("teacher", "student")
    )
    device = versions["device"] if report["device"] != "cpu" else machine["processor"]
    return (
        f"{config['name']}: {networks}\n"
        f"batches of {report['batch_size']}, {height} x {width} at most, {report['precision']}; "
        f"pictures: {report['pictures']}\n"
        f"{report['device']}: {device}, {machine['threads']} threads of torch on {machine['processors']} processors, "
        f"{_load(machine)}; "
        f"torch {versions['torch']}, torchvision {versions['torchvision']}\n"
        f"medians of {report['repetitions']} rounds{_burst(report)}, in brackets their "
        "quartiles; the floor is student + teacher, "
        "without a teacher in the step the student alone"
    )


def _burst(report: dict[str, Any]) -> str:
    steps = report["steps_a_repetition"]
    return "" if steps == 1 else f" of {steps} steps"


def _load(machine: dict[str, Any]) -> str:
    if machine["load_before"] is None:
        return "load unknown"
    return f"load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"


def _times(report: dict[str, Any]) -> str:
    ratios = {method["stage"]: method for method in report["methods"].values()}
    rows = []
    for name, taken in report["times"].items():
        if name == EVALUATION:
            continue
        seconds = statistics.median(taken["seconds"])
        row = [name, f"{1000 * seconds:.1f}", f"{1000 * statistics.median(taken['processor_seconds']):.1f}"]
        row.append(f"{report['batch_size'] / seconds:.1f}")
        method = ratios.get(name)
        row += [spread(method["ratio"]), spread(method["processor_ratio"])] if method else ["", ""]
        row.append(f"{1000 * method['above_floor_seconds']['median']:.1f}" if method else "")
        rows.append(row)
    titles = ["step", "ms", "processor ms", "pictures/s", "step / floor", "by processor time", "ms above the floor"]
    return _table(titles, rows)


def _against(report: dict[str, Any]) -> str:
    rows = []
    for name, found in report["against"].items():
        rows.append([name, found["ours"], spread(found["ratio"]), spread(found["processor_ratio"])])
        rows += [[name, f"detkt's {method}", spread(value), ""] for method, value in found["methods"].items()]
    return _table(["loop", "compared with", "its time / ours", "by processor time"], rows)


def _memory(report: dict[str, Any]) -> str:
    memory, rows = report["memory"], []
    for name, found in memory["trainings"].items():
        row = [name, _mebibytes(found["held"])]
        for kind in ("tensors", "process"):
            allowed = report["methods"][name][f"{kind}_ratio"] if name != STUDENT else None
            row += [_mebibytes(found[kind]), "" if allowed is None else f"{allowed:.2f}"]
        rows.append(row)
    titles = ["training", "MiB held", "peak of tensors", "/ allowance", "peak of the process", "/ allowance"]
    sizes = f"{_mebibytes(memory['teacher_weights'])} and {_mebibytes(memory['teacher_map'])} MiB"
    return (
        f"{_table(titles, rows)}\n"
        "(held between steps: weights, optimizers; allowance: the student's peak, the teacher's weights and "
        f"one map of a batch, {sizes})"
    )


def _mebibytes(size: float | None) -> str:
    return "unknown" if size is None else f"{size / MEBIBYTE:.1f}"


def _rest(report: dict[str, Any]) -> str:
    seconds = statistics.median(report["times"][EVALUATION]["seconds"])
    lines = [f"evaluation of the student: {1000 * seconds / report['batch_size']:.1f} ms a picture"]
    loading = report["loading"]
    if loading:
        mean = 1000 * loading["mean"]
        lines.append(f"loading a batch alone, {loading['workers']} worker processes: {mean:.1f} ms on average")
    else:
        lines.append("loading: not measured, the pictures are noise")
    return "\n".join(lines)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown, with columns aligned for the eye."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )
