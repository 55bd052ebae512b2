"""Make a paper's table: data, teacher, students of all rows, and the paper's numbers beside ours."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from detkt.base.commands import command
from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import load_json
from detkt.base.paths import resolve
from detkt.cli.compare import add_job_flags, failures, run_jobs, tell, whole_numbers
from detkt.cli.shared import Parser
from detkt.data import data_root
from detkt.engine.comparison import collect_jobs, teacher_scores
from detkt.engine.jobs import Job, job_lines, run_job
from detkt.engine.recipes import RECIPES, TEACHER, Plan, Recipe, find_recipe, plan
from detkt.engine.run_folder import versions
from detkt.engine.step_times import STEPS, seconds_expected
from detkt.kinds import kind_of
from detkt.prepare.preparing import prepare
from detkt.prepare.sources import SOURCES

TO_GO_ON = "run the same command again to go on"  # after a stop
EXAMPLE = """examples:
  %(prog)s --list
  %(prog)s voc2007-table2 --hours
  %(prog)s voc2007-table2 --seeds 0,1,2,3,4,5 --jobs 2
  %(prog)s voc2007-table2 --data-root photos --as-is --rows none,ktan train.epochs=2 data.train=2007:have_trainval

The last is a small one on pictures of your own: any setting of the config can follow, and holds for all runs. What is
finished is kept: the same command goes on where it was stopped."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("reproduce"), description=__doc__, epilog=EXAMPLE)
    parser.add_argument("table", nargs="?", metavar="TABLE", help="which; see --list")
    parser.add_argument("--list", action="store_true", help="tell the tables, and their rows")
    parser.add_argument("--data-root", metavar="DIR", help="the data set's folder (default: as detkt prepare has it)")
    parser.add_argument("--as-is", action="store_true", help="take the data as they are: neither download nor check")
    parser.add_argument("--rows", help="some of the table's rows, comma-separated (default: all)")
    parser.add_argument("--seeds", default="0", help="of the students, comma-separated (default: 0)")
    parser.add_argument("--output", metavar="DIR", help="where the runs go (default: runs/TABLE)")
    parser.add_argument("--hours", action="store_true", help="only tell the hours to expect, from a few steps")
    parser.add_argument("--no-hours", action="store_true", help="do not measure the hours to expect before starting")
    parser.add_argument("--only", metavar="RUN", help="make this run alone: teacher, or ROW-sSEED")
    add_job_flags(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.list:
        print(_list())
        return
    if arguments.table is None:
        parser.error("the following arguments are required: TABLE")
    recipe, root = find_recipe(arguments.table), Path(arguments.output or f"runs/{arguments.table}")
    rows = [name.strip() for name in (arguments.rows or "").split(",") if name.strip()] or recipe.methods()
    if arguments.data_root:
        arguments.overrides.insert(0, f"data.root={arguments.data_root}")
    seeds = whole_numbers("--seeds", arguments.seeds)
    made = plan(recipe, rows, seeds, root, arguments.overrides, _call(arguments, root))

    if arguments.print_jobs:
        _print_jobs(made, recipe, arguments)
    elif arguments.only:
        _make_one(made, arguments)
    else:
        _make(made, recipe, arguments, root)


def _make(made: Plan, recipe: Recipe, arguments: argparse.Namespace, root: Path) -> None:
    config = recipe.load(arguments.overrides)
    if recipe.data and not arguments.as_is:
        _prepare(recipe.data, data_root(config.data), arguments.quiet)
    missing = [job for job in made.jobs if not job.finished]
    if missing and not arguments.no_hours:
        _tell_hours(missing, arguments.jobs)
    if arguments.hours:
        return
    failed = run_jobs(made.first, arguments, root)
    if failed:
        raise InputError(f"{failures(failed, len(made.first))}; the other rows learn from them, and were not started")
    failed = run_jobs(made.then, arguments, root)
    if not arguments.train_only:
        rows = collect_jobs(made.students(), pictures=True, quiet=arguments.quiet)
        teacher = root / TEACHER / "metrics.json"
        scores = load_json(teacher) if teacher.exists() else teacher_scores(config, root, arguments.quiet)
        print(recipe.title)
        tell(rows, kind_of(config), config.paper, scores, root)
    if failed:
        raise InputError(failures(failed, len(made.jobs)))


def _make_one(made: Plan, arguments: argparse.Namespace) -> None:
    jobs = {job.folder.name: job for job in made.jobs}
    if arguments.only not in jobs:
        raise InputError(f"--only {arguments.only}: no such run; there are: {', '.join(jobs)}")
    job = jobs[arguments.only]
    read = [net.checkpoint for net in (job.config.teacher, job.config.student) if net.checkpoint]
    for other in made.first:
        if str(other.folder) in read and not other.finished:
            raise InputError(f"--only {arguments.only} reads the model of {other.folder}, which is not finished yet")
    run_job(job, arguments.quiet)


def _prepare(data: str, root: Path, quiet: bool) -> None:
    findings = prepare(SOURCES[data], resolve(root), quiet=quiet, progress=partial(tqdm, disable=quiet))
    if findings.errors:
        call = f"{command('prepare')} {data} --check --data-root {root}"
        raise InputError(f"{findings.verdict(root)}: see {call}; or give --as-is")


def _tell_hours(jobs: list[Job], at_once: int) -> None:
    """Measure each method once, and tell what all of *jobs* will take."""
    seconds: dict[str, float] = {}
    print(f"measuring {STEPS} steps of each stage of each method, to tell the hours to expect", flush=True)
    for job in jobs:
        name = TEACHER if job.config.role == TEACHER else job.config.method_name
        if name not in seconds:
            seconds[name] = seconds_expected(job.config)
            print(f"  {name}: {seconds[name] / 3600:.2f} h a run", flush=True)
    total = sum(seconds[TEACHER if job.config.role == TEACHER else job.config.method_name] for job in jobs)
    where = versions(resolve_device(jobs[0].config.train.device))["device"]
    threads = f" with {torch.get_num_threads()} threads" if not torch.cuda.is_available() else ""
    beside = f"; of {at_once} side by side each is slower than it was alone" if at_once > 1 else ""
    print(
        f"{len(jobs)} runs, {total / 3600:.2f} hours to expect one after the other on {where}{threads}, scoring not "
        f"counted{beside}",
        flush=True,
    )


def _print_jobs(made: Plan, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """The commands, one a line, in an order in which they can be run; standard error tells which lines have to wait."""
    root = f" --data-root {arguments.data_root}" if arguments.data_root else ""
    data = [] if arguments.as_is or not recipe.data else [f"{command('prepare')} {recipe.data}{root}"]
    groups = {
        "first, the data": data,
        f"{'then' if data else 'first'}, in any order": job_lines(made.first, arguments.jobs),
        "when all of those are finished, in any order": job_lines(made.then, arguments.jobs),
    }
    last = 0
    for when, lines in groups.items():
        if lines:
            first, last = last + 1, last + len(lines)
            print(f"# {f'line {last}' if first == last else f'lines {first}-{last}'}: {when}", file=sys.stderr)
            print("\n".join(lines), flush=True)
    print("# in the end the same command without --print-jobs, for the table", file=sys.stderr)


def _call(arguments: argparse.Namespace, root: Path) -> list[str]:
    """The command that makes one of the runs, less which."""
    flags = [arguments.table, "--as-is", "--seeds", arguments.seeds, "--output", str(root), "--quiet"]
    rows = ["--rows", arguments.rows] if arguments.rows else []
    return ["reproduce", *flags, *rows, *arguments.overrides]


def _list() -> str:
    lines = []
    for name, recipe in RECIPES.items():
        lines += [f"{name}: {recipe.title}", f"    rows {', '.join(recipe.methods())}; config {recipe.config}"]
    return "\n".join(lines)
