"""Run (or collect) many methods with several seeds: a table with differences, intervals and exact p, and charts."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.files import make_folder, write_atomically
from detkt.cli.shared import Parser
from detkt.config import find_config, load_config
from detkt.engine.collected import read_rows
from detkt.engine.comparison import Row, collect, jobs_of, teacher_scores
from detkt.engine.comparison_table import markdown_table
from detkt.engine.differences import check_against, compare
from detkt.engine.jobs import Job, job_lines, run_job, run_side_by_side
from detkt.engine.run_folder import strict_json
from detkt.kinds import Kind, kind_of
from detkt.methods import absolute
from detkt.visualization.comparison_chart import comparison_figure, learning_figure
from detkt.visualization.panels import save_figure

TO_GO_ON = "run the same command again to go on"  # after a stop
CONFIG, SEEDS, OUTPUT = "configs/shapes.yaml", "0,1,2", "runs/compare"
EXAMPLE = """examples:
  %(prog)s --methods none,dln,ktan --seeds 0,1,2,3,4,5 --jobs 2 --output runs/compare
  %(prog)s --methods none,dln,ktan --seeds 0,1,2,3,4,5 --print-jobs > jobs.txt
  %(prog)s --runs runs/photos --against plain

Every row is compared with the plain student (method none), or with --against, in pairs of one seed: the mean
difference, its 95 %% interval, which holds the draw of the test pictures and of the seeds, and the exact p of the
sign-flip test (* where below 0.05, which takes 6 seeds at least). The column about updates needs data.val; it
says never where that score was not reached, and – where a row was not validated."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("compare"), description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--config", help=f"default: {CONFIG}")
    parser.add_argument("--methods", help="comma-separated, e.g. none,kd,ktan,ktan+kd")
    parser.add_argument("--seeds", help=f"comma-separated (default: {SEEDS})")
    parser.add_argument(
        "--runs", nargs="+", metavar="PATH", help="finished runs: folders, or metrics.json files NAME-sSEED.json"
    )
    parser.add_argument("--output", metavar="DIR", help=f"a folder a run, kept if finished (default: {OUTPUT})")
    parser.add_argument(
        "--against", metavar="ROW", help="what all are compared with (default: none, the plain student)"
    )
    parser.add_argument(
        "--measure", metavar="KEY", help="which score (default: that of the data: map_voc07, map_coco, top1)"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing, tabulate the runs that are finished")
    add_job_flags(parser)
    parser.add_argument(
        "--seeds-only", action="store_true", help="intervals of the seeds alone: do not look at any picture again"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.runs:
        _compare_runs(arguments)
        return
    methods = [absolute(name) for name in (arguments.methods or "").split(",") if name.strip()]
    if not methods:
        parser.error("the following arguments are required: --methods")
    config = load_config(find_config(arguments.config or CONFIG), arguments.overrides, methods)
    seeds, root = whole_numbers("--seeds", arguments.seeds or SEEDS), Path(arguments.output or OUTPUT)
    jobs = jobs_of(config, methods, seeds, root, _call(arguments, root))
    _measure(kind_of(config), arguments.measure)
    check_against(arguments.against, list(dict.fromkeys(job.config.label for job in jobs)))
    if arguments.print_jobs:
        for line in job_lines(jobs, arguments.jobs):
            print(line)
        return
    failed = [] if arguments.collect else run_jobs(jobs, arguments, root)
    if arguments.train_only:
        return
    rows = collect(config, methods, seeds, root, pictures=not arguments.seeds_only, quiet=arguments.quiet)
    if not rows:
        if failed:
            raise InputError(failures(failed, len(jobs)))
        raise InputError(f"no finished run of {', '.join(methods)} below {root}; leave out --collect to train them")
    teacher = teacher_scores(config, root, arguments.quiet)
    tell(rows, kind_of(config), config.paper, teacher, root, arguments.measure, arguments.against)
    if failed:
        raise InputError(failures(failed, len(jobs)))


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """The flags about many runs."""
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="N runs side by side, each with 1/N of the cores"
    )
    parser.add_argument(
        "--print-jobs", action="store_true", help="only print the commands of the runs, one a line, for a cluster"
    )
    parser.add_argument("--train-only", action="store_true", help="train what is missing, and no table")


def run_jobs(jobs: list[Job], arguments: argparse.Namespace, root: Path) -> list[str]:
    """Make the runs as the flags say; returns a line for each that failed beside others."""
    if arguments.jobs < 0:
        raise InputError(f"--jobs is {arguments.jobs}; give 1 or more")
    if arguments.jobs:
        return run_side_by_side(jobs, arguments.jobs, root)
    for job in jobs:
        run_job(job, arguments.quiet)
    return []


def failures(failed: list[str], count: int) -> str:
    """What is told in the end of runs that failed."""
    return f"{len(failed)} of {count} runs failed, the others are finished: {'; '.join(failed)}"


def whole_numbers(flag: str, text: str) -> list[int]:
    """The numbers of a list such as 0,1,2."""
    try:
        return list(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        raise InputError(f"{flag} '{text}' is not a comma-separated list of whole numbers") from None


def tell(
    rows: list[Row],
    kind: Kind,
    paper: dict[str, float],
    teacher: dict | None,
    root: Path,
    measure: str | None = None,
    against: str | None = None,
) -> None:
    """Print the table, and write it with its numbers and charts below *root*."""
    measure = _measure(kind, measure)
    comparison = compare(rows, measure, against)
    table = markdown_table(comparison, kind.measures, paper, teacher)
    contents = {
        "table.md": table,
        "table.json": strict_json({row.method: row.runs for row in rows}, 1),
        "comparison.json": strict_json(comparison.numbers(), 1),
    }
    make_folder(root)
    for name, text in contents.items():
        write_atomically(root / name, partial(Path.write_text, data=f"{text}\n"))
    save_figure(comparison_figure(comparison, kind.measures[measure], teacher), root / "chart.png")
    if (curves := learning_figure(comparison, kind.measures[measure])) is not None:
        save_figure(curves, root / "curves.png")
    print(table)


def _measure(kind: Kind, asked: str | None) -> str:
    measure = asked or next(iter(kind.measures))
    if measure not in kind.measures:
        raise InputError(f"--measure {measure}: no such score; there are: {', '.join(kind.measures)}")
    return measure


def _compare_runs(arguments: argparse.Namespace) -> None:
    flags = ("config", "methods", "seeds", "collect", "jobs", "print_jobs", "train_only", "overrides")
    if given := [name for name in flags if getattr(arguments, name)]:
        raise InputError(f"--{given[0].replace('_', '-')} is for runs that are to be made; leave it out with --runs")
    paths = [Path(path) for path in arguments.runs]
    rows, teacher, kind = read_rows(paths, pictures=not arguments.seeds_only, quiet=arguments.quiet)
    root = Path(arguments.output or OUTPUT)
    tell(rows, kind, {}, teacher, root, arguments.measure, arguments.against)


def _call(arguments: argparse.Namespace, root: Path) -> list[str]:
    """The command that makes some of the runs and no table, less methods and seeds."""
    flags = ["--config", arguments.config] if arguments.config else []
    return ["compare", *flags, "--output", str(root), "--train-only", "--quiet", *arguments.overrides]
