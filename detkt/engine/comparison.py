"""Many methods, several seeds, one config: which runs that makes, and what the finished ones scored."""

from __future__ import annotations

import copy
import logging
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import load_json
from detkt.config import Config, NetConfig, load_config
from detkt.engine.jobs import Job, check_settings
from detkt.engine.nets import build_net, build_teacher
from detkt.engine.run_folder import PICTURES, write_metrics
from detkt.evaluation.outcomes import Outcomes, read_outcomes, write_outcomes
from detkt.kinds import kind_of

log = logging.getLogger(__name__)


@dataclass
class Row:
    """All runs of one method, in the order of the seeds.

    Attributes:
        method: what the row is called.
        runs: their ``metrics.json``.
        outcomes: what each did picture by picture, None where that is not known.
    """

    method: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcomes | None] = field(default_factory=list)

    def mean(self, measure: str) -> float:
        """Over the seeds whose score is finite; nan where none is."""
        values = self._finite(measure)
        return statistics.fmean(values) if values else math.nan

    def spread(self, measure: str) -> float | None:
        """Sample standard deviation over the seeds whose score is finite; None of fewer than two."""
        values = self._finite(measure)
        return statistics.stdev(values) if len(values) > 1 else None

    def _finite(self, measure: str) -> list[float]:
        return [run[measure] for run in self.runs if math.isfinite(run[measure])]


def run_folder(root: Path, config: Config, method: str, seed: int) -> Path:
    """Where the run of *method* with *seed* is kept below *root*."""
    return root / run_config(config, method, seed).run_name


def run_config(config: Config, method: str, seed: int) -> Config:
    """*config* for one run, with the settings of its own methods only: it need not know where others are defined."""
    own = copy.deepcopy(config)
    own.method, own.train.seed = method, seed
    own.methods = {name: own.methods[name] for name in own.method_name.split("+") if name in own.methods}
    return own


def jobs_of(
    config: Config, methods: Iterable[str], seeds: Sequence[int], root: Path, call: Sequence[str] = ()
) -> list[Job]:
    """A run for each method and seed, seed by seed; *call* is the command that makes all, less both.

    Raises:
        InputError: two of them go to one folder.
    """
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for method in methods:
            wanted = run_config(config, method, seed)
            own = (*call[:1], "--methods", method, "--seeds", str(seed), *call[1:])
            job = Job(f"{wanted.label}, seed {seed}", wanted, run_folder(root, config, method, seed), own)
            if job.folder in jobs:
                raise InputError(f"{job.name}: asked for twice, and both would go to {job.folder}; name it once")
            jobs[job.folder] = job
    return list(jobs.values())


def collect(
    config: Config,
    methods: Iterable[str],
    seeds: Sequence[int],
    root: Path,
    *,
    pictures: bool = False,
    quiet: bool = True,
) -> list[Row]:
    """The finished runs below *root*, a row a method, best mean first; methods without one are left out.

    *pictures*: with what they did picture by picture; a run that has not kept it is looked at once.

    Raises:
        InputError: a run in the folder was made with other settings.
    """
    return collect_jobs(jobs_of(config, list(methods), seeds, root), pictures=pictures, quiet=quiet)


def collect_jobs(jobs: Sequence[Job], *, pictures: bool = False, quiet: bool = True) -> list[Row]:
    """What :func:`collect` returns, of any runs of one kind."""
    if not jobs:
        return []
    measures = kind_of(jobs[0].config).measures
    rows: dict[str, Row] = {}
    for job in jobs:
        if not job.finished:
            continue
        check_settings(job)
        row = rows.setdefault(job.config.label, Row(job.config.label))
        row.runs.append(read_scores(job.folder / "metrics.json", [*measures, "updates", "seconds"]))
        row.outcomes.append(find_outcomes(job.folder, quiet) if pictures else None)
    measure = next(iter(measures))
    return sorted(rows.values(), key=lambda row: row.mean(measure), reverse=True)


def read_scores(path: Path, keys: Sequence[str]) -> dict[str, Any]:
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


def find_outcomes(folder: Path, quiet: bool) -> Outcomes | None:
    """What the run in *folder* did picture by picture; where it has not kept that, its model is looked at once.

    None where there is neither that nor a model with its pictures.
    """
    path = folder / PICTURES
    if path.exists():
        return read_outcomes(path)
    if not (folder / "model.safetensors").exists():
        return None
    print(f"{folder}: its pictures are looked at, once", flush=True)
    try:
        config = load_config(folder / "config.yaml")
        kind, device = kind_of(config), resolve_device(config.train.device)
        held_out = kind.test_set(config.data)
        net = NetConfig(architecture=config.trained_net.architecture, checkpoint=str(folder))
        model = build_net(kind, net, config.role, held_out.classes).to(device)
        kind.evaluate(model, held_out, device, config.train, quiet, keep=partial(write_outcomes, path))
    except InputError as error:
        log.warning("%s: %s; its interval is that of the seeds alone", folder, error)
        return None
    return read_outcomes(path)


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
