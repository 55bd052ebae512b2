"""Run (or collect) many methods with several seeds on one config: a table with mean ± spread, and a chart."""

from __future__ import annotations

import json
from pathlib import Path

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.cli.shared import Parser
from detkt.config import find_config, load_config
from detkt.engine.comparison import collect, markdown_table, run_missing, teacher_scores
from detkt.engine.jobs import job_of
from detkt.methods import absolute
from detkt.visualization.comparison_chart import comparison_figure
from detkt.visualization.panels import save_figure

TO_GO_ON = "run the same command again to go on"  # after a stop
EXAMPLE = "example:\n  %(prog)s --methods none,dln,ktan --seeds 0,1,2 --output runs/compare"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("compare"), description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--config", default="configs/shapes.yaml", help="default: configs/shapes.yaml")
    parser.add_argument("--methods", required=True, help="comma-separated, e.g. none,kd,ktan,ktan+kd")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: 0,1,2)")
    parser.add_argument("--output", default="runs/compare", metavar="DIR", help="a folder a run, kept if finished")
    parser.add_argument("--collect", action="store_true", help="train nothing, tabulate the runs that are finished")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    arguments = parser.parse_intermixed_args(argv)

    methods = [absolute(name) for name in arguments.methods.split(",") if name.strip()]
    config = load_config(find_config(arguments.config), arguments.overrides, methods)
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds '{arguments.seeds}' is not a comma-separated list of whole numbers") from None
    root = Path(arguments.output)
    if not arguments.collect:
        run_missing(config, methods, seeds, root, arguments.quiet)
    rows = collect(config, methods, seeds, root)
    if not rows:
        raise InputError(f"no finished run of {', '.join(methods)} below {root}; leave out --collect to train them")
    teacher = teacher_scores(config, root, arguments.quiet)
    measures = job_of(config).measures
    table = markdown_table(rows, measures, config.paper, teacher)
    numbers = json.dumps({row.method: row.runs for row in rows}, indent=1)
    write_atomically(root / "table.md", lambda temporary: temporary.write_text(table + "\n"))
    write_atomically(root / "table.json", lambda temporary: temporary.write_text(numbers + "\n"))
    save_figure(comparison_figure(rows, *next(iter(measures.items())), teacher), root / "chart.png")
    print(table)
