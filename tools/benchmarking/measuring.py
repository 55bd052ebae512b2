"""How long training steps take, and how much memory, against the floors they are to be held to.

The floor of a distillation step is a plain training step of the student and one forward of the teacher's backbone on
the same batch. Subjects take turns, one repetition each a round, in one process; a ratio is formed round by round, of
times that were taken within moments of each other, and its median is reported. So what else the machine does moves
times far more than ratios.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarking import baselines as benchmark_baselines
from benchmarking.memory import peak_rise, tensor_peak_rise
from benchmarking.subjects import STUDENT, TEACHER, Batch, Subjects, Work
from detkt.base.device import clock
from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.base.seeds import seed_everything
from detkt.config import Config
from detkt.engine.run_folder import versions
from detkt.kinds import kind_of

FORMAT = 1
WARM_UP = 4  # each of the batches once: what is compiled is compiled for their sizes
# Steps in a row a repetition, at least: on a GPU the processor runs ahead, as in training; there, waiting after each
# would cost.
BURST = {"cpu": 1, "cuda": 4}
MEMORY_REPETITIONS = 3
_CLOCKS = {"ratio": "seconds", "processor_ratio": "processor_seconds"}

Times = dict[str, dict[str, list[float]]]


def run_benchmark(
    config: Config,
    methods: Sequence[str],
    *,
    against: Sequence[str] = (),
    repetitions: int = 20,
    random: bool = False,
    image_size: int | None = None,
    trace: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Time the plain student, the teacher, every stage of *methods*, loading, evaluation and other training loops.

    Args:
        config, methods, random, image_size: see :class:`benchmarking.subjects.Subjects`.
        against: of :data:`benchmarking.baselines.BASELINES`.
        repetitions: rounds, after :data:`WARM_UP` that do not count.
        trace: where torch's profiler writes a trace of a few steps of the first method (Chrome's format).
        quiet: no progress bar.

    Returns:
        What the tool writes as JSON: machine, versions, settings, the seconds of every repetition ("times"), ratios to
        the floor and memory by method ("methods"), ratios to other loops ("against"), "loading", "profile".

    Raises:
        InputError: a setting, a data set or a network that cannot be used, or a baseline that is not installed.
    """
    if repetitions < 1:
        raise InputError(f"--repetitions {repetitions}: it must be 1 or more")
    benchmark_baselines.check(against, kind_of(config).task)
    if "torchdistill" in against and benchmark_baselines.HINT not in methods:
        methods = [*methods, benchmark_baselines.HINT]
    before = _load()
    subjects = Subjects(config, methods, random, image_size)
    works = {**subjects.works, **benchmark_baselines.build(against, subjects)}
    seed_everything(config.train.seed)
    burst = whole_cycles(BURST[subjects.device.type], subjects)
    times = interleave(works, subjects.batches, repetitions, subjects.device, burst, quiet)
    report = {
        "format": FORMAT,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": _machine(before),
        "versions": versions(subjects.device),
        "config": asdict(subjects.config),
        "pictures": subjects.pictures,
        "weights": subjects.weights,
        "input_shapes": [list(batch.tensors.shape) for batch in subjects.batches],
        "device": str(subjects.device),
        "precision": config.train.precision,
        "batch_size": subjects.plain.batch_size,
        "repetitions": repetitions,
        "steps_a_repetition": burst,
        "times": times,
        "methods": {name: _method(name, subjects, times) for name in subjects.last_stage if name != STUDENT},
        "against": _against(times, subjects, against),
        "loading": _loading(subjects, repetitions),
    }
    _add_memory(report, subjects)
    for name, trainer in subjects.trainers.items():
        try:
            trainer.guard.check()  # on a GPU nothing has looked so far: a student of NaN has no proposals, and is fast
        except InputError as error:
            raise InputError(f"{name}: {error}; give trained networks") from None
    if trace is not None:
        report["profile"] = _profile(subjects, next(name for name in subjects.last_stage if name != STUDENT), trace)
    return report


def whole_cycles(steps: int, subjects: Subjects) -> int:
    """At least *steps*, and so many that what a stage does in some steps alone has its share."""
    return math.ceil(steps / subjects.cycle) * subjects.cycle


def interleave(
    works: Mapping[str, Work],
    batches: Sequence[Batch],
    repetitions: int,
    device: torch.device,
    burst: int = 1,
    quiet: bool = True,
) -> Times:
    """Seconds a step of each of *works*, by name: *burst* steps a round, on the round's batch, in changing order.

    "seconds" are on the wall; "processor_seconds" those that this process computed, which leave out the time it waited
    for others (on the CPU alone, where they are what counts).
    """
    names = list(works)
    times: Times = {name: {"seconds": [], "processor_seconds": []} for name in names}
    rounds = tqdm(range(-WARM_UP, repetitions), desc="rounds", unit="round", disable=quiet, file=sys.stderr)
    for number in rounds:
        batch, first = batches[number % len(batches)], number % len(names)
        for name in names[first:] + names[:first]:
            started, computed = clock(device), time.process_time()
            for _ in range(burst):
                works[name](batch)
            seconds = clock(device) - started
            if number >= 0:
                times[name]["seconds"].append(seconds / burst)
                times[name]["processor_seconds"].append((time.process_time() - computed) / burst)
    return times


def ratio(times: Times, over: str, under: Sequence[str], clock_name: str = "seconds") -> dict[str, float]:
    """Of the time of *over* to the sum of those of *under*: median of the rounds' ratios, and their quartiles."""
    sums = [sum(parts) for parts in zip(*(times[name][clock_name] for name in under), strict=True)]
    return _spread([a / b for a, b in zip(times[over][clock_name], sums, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": statistics.median(values), "low": low, "high": high}


def _method(name: str, subjects: Subjects, times: Times) -> dict[str, Any]:
    """Ratios of the method's last stage, in which the student learns most of the time."""
    last = subjects.last_stage[name]
    distiller = subjects.trainers[name].distiller
    runs_teacher = distiller.teacher is not None and name not in subjects.cached
    floor = [STUDENT, TEACHER] if runs_teacher else [STUDENT]
    own = [step - sum(parts) for step, *parts in zip(*(times[part]["seconds"] for part in (last, *floor)), strict=True)]
    return {
        "stage": last,
        "floor": floor,
        "ratio": ratio(times, last, floor),
        "processor_ratio": ratio(times, last, floor, "processor_seconds"),
        "above_floor_seconds": _spread(own),
    }


def _against(times: Times, subjects: Subjects, against: Sequence[str]) -> dict[str, Any]:
    """How many times as long as ours each other loop takes, and as each method's step."""
    result: dict[str, Any] = {}
    for name, ours in benchmark_baselines.compared(against).items():
        ours = subjects.last_stage[ours]
        result[name] = {"ours": ours, **{key: ratio(times, name, [ours], clock) for key, clock in _CLOCKS.items()}}
        result[name]["methods"] = {
            method: ratio(times, name, [last]) for method, last in subjects.last_stage.items() if method != STUDENT
        }
    return result


def _loading(subjects: Subjects, repetitions: int) -> dict[str, Any] | None:
    """Seconds a batch of the training pictures alone, with the config's workers; None for noise."""
    if subjects.pictures == "random":
        return None
    loader, seconds = subjects.loader(), []
    for number in range(WARM_UP + repetitions):
        started = time.perf_counter()
        next(loader)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    loader.close()
    # Of several workers' batches many come at once: the mean tells the rate, the median would not.
    return {"seconds": seconds, "mean": statistics.mean(seconds), "workers": subjects.config.train.workers}


def _add_memory(report: dict[str, Any], subjects: Subjects) -> None:
    """Peak of a step of each training: what it holds between steps and what a step takes beside.

    That of tensors, and on the CPU that of the process, too (None: this system does not tell).
    """
    batch = max(subjects.batches, key=lambda batch: batch.tensors.numel())
    teacher, one_map = subjects.teacher_bytes(), subjects.map_bytes(batch)
    trainings: dict[str, dict[str, float | None]] = {}
    for name, last in subjects.last_stage.items():

        def step(work: Work = subjects.works[last]) -> None:
            for _ in range(subjects.cycle):
                work(batch)

        rises = [peak_rise(step, subjects.device) for _ in range(MEMORY_REPETITIONS)]
        taken = tensor_peak_rise(step, subjects.device)
        held = subjects.state_bytes(name)
        trainings[name] = {
            "held": held,
            "tensors": held + taken,
            "process": None if None in rises else held + statistics.median(rises),
        }
    report["memory"] = {"teacher_weights": teacher, "teacher_map": one_map, "trainings": trainings}
    for name, method in report["methods"].items():
        for kind in ("tensors", "process"):
            peak, plain = trainings[name][kind], trainings[STUDENT][kind]
            method[f"{kind}_ratio"] = None if peak is None else peak / (plain + teacher + one_map)


def _profile(subjects: Subjects, method: str, trace: Path, steps: int = 4) -> str:
    """Write the trace of *steps* or more of the method's last stage, and return a table of the greatest operators."""
    work = subjects.works[subjects.last_stage[method]]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if subjects.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for number in range(whole_cycles(steps, subjects)):
            work(subjects.batches[number % len(subjects.batches)])
    # Where it cannot write, the profiler only logs so.
    write_atomically(trace, lambda temporary: profiler.export_chrome_trace(str(temporary)))
    by = "self_cuda_time_total" if subjects.device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=48)


def _machine(load_before: float | None) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "load_before": load_before,
        "load_after": _load(),
    }


def _load() -> float | None:
    """How many processes wanted a processor in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
