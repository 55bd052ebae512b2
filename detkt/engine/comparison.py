"""Many methods, several seeds, one config: run what is missing, collect what is there, tabulate."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import load_json
from detkt.config import Config, load_config
from detkt.engine.nets import build_teacher
from detkt.engine.run import resolve_config, train
from detkt.engine.run_folder import write_metrics
from detkt.kinds import kind_of


@dataclass
class Row:
    """All runs of one method: their ``metrics.json`` in the order of the seeds."""

    method: str
    runs: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, measure: str) -> float:
        return statistics.fmean(run[measure] for run in self.runs)

    def spread(self, measure: str) -> float | None:
        """Sample standard deviation over the seeds; None of a single run."""
        values = [run[measure] for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None


def run_folder(root: Path, config: Config, method: str, seed: int) -> Path:
    """Where the run of *method* with *seed* is kept below *root*."""
    return root / _run_config(config, method, seed).run_name


def _run_config(config: Config, method: str, seed: int) -> Config:
    """*config* for one run, with the settings of its own methods only: it need not know where others are defined."""
    own = copy.deepcopy(config)
    own.method, own.train.seed = method, seed
    own.methods = {name: own.methods[name] for name in own.method_name.split("+") if name in own.methods}
    return own


def run_missing(config: Config, methods: Iterable[str], seeds: Sequence[int], root: Path, quiet: bool) -> None:
    """Train what has no ``metrics.json`` yet; a run that was stopped goes on from its checkpoint.

    Raises:
        InputError: a run in the folder was made with other settings.
    """
    for seed in seeds:
        for method in methods:
            folder, wanted = run_folder(root, config, method, seed), _run_config(config, method, seed)
            if (folder / "config.yaml").exists():
                _check_same(wanted, folder)
            if (folder / "metrics.json").exists():
                continue
            checkpoint = folder / "last.pt"
            resume = checkpoint if checkpoint.exists() else None
            print(f"{wanted.label}, seed {seed}: {'going on' if resume else 'training'} in {folder}", flush=True)
            train(wanted, folder, resume=resume, overwrite=resume is None, quiet=quiet)


def _check_same(wanted: Config, folder: Path) -> None:
    """A run made with other settings must not pass for this one. What does not change the result may differ."""
    # The run's own is resolved already: a setting that it lacks is younger than the run, and had no value then.
    found, wanted = load_config(folder / "config.yaml"), resolve_config(wanted)
    for config in (found, wanted):
        config.train.device, config.train.workers, config.data.root, config.paper = "", 0, None, {}
    if found != wanted:
        differing = [key for key, value in vars(wanted).items() if vars(found)[key] != value]
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(differing)}); choose another --output or remove it"
        )


def collect(config: Config, methods: Iterable[str], seeds: Sequence[int], root: Path) -> list[Row]:
    """The finished runs below *root*, a row a method, best mean first; methods without one are left out.

    Raises:
        InputError: a run in the folder was made with other settings.
    """
    rows = []
    for method in methods:
        runs = []
        for seed in seeds:
            folder, wanted = run_folder(root, config, method, seed), _run_config(config, method, seed)
            if (folder / "metrics.json").exists():
                _check_same(wanted, folder)
                runs.append(_read_scores(folder / "metrics.json", [*kind_of(config).measures, "updates", "seconds"]))
        if runs:
            rows.append(Row(wanted.label, runs))
    measure = next(iter(kind_of(config).measures))
    return sorted(rows, key=lambda row: row.mean(measure), reverse=True)


def _read_scores(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The ``metrics.json`` at *path*; InputError where it is damaged or holds no numbers under *keys*.

    What cannot be measured, as COCO's AP of small objects where there are none, is nan.
    """
    scores = load_json(path)
    for key in keys:
        if isinstance(scores, dict) and key.startswith("ap_") and scores.get(key, 0) is None:
            scores[key] = math.nan
        if not isinstance(scores, dict) or not isinstance(scores.get(key), int | float):
            raise InputError(f"{path} holds no number under '{key}'; remove the file, and the run will be scored anew")
    return scores


def _known_scores(path: Path) -> dict[str, Any]:
    """What was kept at *path*; nothing where it is not there, or damaged."""
    try:
        known = load_json(path)
    except InputError:
        return {}
    return known if isinstance(known, dict) else {}


def teacher_scores(config: Config, root: Path, quiet: bool = False) -> dict[str, Any] | None:
    """The trained teacher's scores on the same pictures, None without one; kept below *root*, as they do not change."""
    kind, net = kind_of(config), config.teacher
    if not kind.has_trained(net):
        return None
    path = root / f"teacher-{config.name}.json"
    source = {"checkpoint": str(net.checkpoint or net.weights), "split": config.data.test}
    known = _known_scores(path)
    if {key: known.get(key) for key in source} != source:
        device = resolve_device(config.train.device)
        held_out = kind.test_set(config.data)
        model, classes = build_teacher(kind, net, held_out.classes)
        if classes != list(held_out.classes):
            return None  # of classes that these pictures are not scored in
        model.to(device)
        write_metrics(path, {**kind.evaluate(model, held_out, device, config.train, quiet), **source})
        known = _known_scores(path)
    return known


def markdown_table(
    rows: Sequence[Row], measures: dict[str, str], paper: dict[str, float], teacher: dict[str, Any] | None = None
) -> str:
    """Mean ± standard deviation in percent, the budget, the wall time, and the paper's number where there is one.

    The wall time is the median run's: one that another process held up would move the mean.
    """
    header = ["method", "seeds", *measures.values(), "updates", "seconds", "paper"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [row.method, str(len(row.runs))]
        cells += [_with_spread(row.mean(measure), row.spread(measure)) for measure in measures]
        seconds = statistics.median(run["seconds"] for run in row.runs)
        cells += [f"{row.mean('updates'):.0f}", f"{seconds:.0f}", _paper(paper, row.method)]
        lines.append("| " + " | ".join(cells) + " |")
    if teacher is not None:
        scores = ["–" if teacher[measure] is None else f"{100 * teacher[measure]:.1f}" for measure in measures]
        cells = ["teacher", "1", *scores, "–", "–", _paper(paper, "teacher")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paper(paper: dict[str, float], method: str) -> str:
    return f"{paper[method]:.1f}" if method in paper else "–"


def _with_spread(mean: float, spread: float | None) -> str:
    if math.isnan(mean):
        return "–"
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"
