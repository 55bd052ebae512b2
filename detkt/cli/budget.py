"""Find students that fit a device: measured on this machine, before any is trained."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.cli.shared import Parser
from detkt.engine.run_folder import versions, write_metrics
from detkt.export.budget import SIDES, budget_table, candidates, search
from detkt.export.measuring import all_threads, processor

EXAMPLES = """examples:
  %(prog)s --latency-ms 20 --size-mb 5
  %(prog)s --latency-ms 40 --size-mb 10 --candidates fasterrcnn_resnet18x0.5_fpn,fasterrcnn_resnet10x0.5_c4

Candidates get random weights: how well they learn, a training must tell. What is larger than --size-mb (weights in
float32; INT8 has a quarter) is left out before it is built, the rest is timed on a picture of its size. Those that fit
are printed, those that see the most pixels first and the largest of these, each with the settings that make it the
student of a training: detkt train-det --config FILE … SETTINGS."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("budget"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--latency-ms", type=float, required=True, metavar="MS", help="a picture may take, in median")
    parser.add_argument("--size-mb", type=float, required=True, metavar="MB", help="its float32 weights may have")
    parser.add_argument("--classes", type=int, default=20, metavar="N", help="that it is to know (default: 20)")
    parser.add_argument("--candidates", metavar="NAME,NAME", help="detectors to try (default: all small ones)")
    parser.add_argument(
        "--sides",
        metavar="N,N",
        default=",".join(map(str, SIDES)),
        help="shorter sides of pictures to try (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="0: all (default: 1)")
    parser.add_argument("--runtime", choices=("torch", "onnx"), default="torch", help="what to time (default: torch)")
    parser.add_argument("--seconds", type=float, default=90, help="begin no further candidate after (default: 90)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--quiet", action="store_true", help="do not tell of every candidate")
    arguments = parser.parse_args(argv)
    if not arguments.latency_ms > 0 or not arguments.size_mb > 0:
        raise InputError("--latency-ms and --size-mb must be above 0")
    if arguments.classes < 1 or arguments.threads < 0 or not arguments.seconds > 0:
        raise InputError("--classes must be 1 or more, --threads 0 or more and --seconds above 0")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"--json {arguments.json}: there is no folder {Path(arguments.json).parent}")
    try:
        sides = [int(side) for side in arguments.sides.split(",")]
    except ValueError:
        sides = []
    if not sides or min(sides) < 32:
        raise InputError(f"--sides {arguments.sides}: give whole numbers of pixels, 32 or more, such as 192,320")
    names = arguments.candidates.split(",") if arguments.candidates else []
    options = candidates(names, sides)
    for candidate in options if names else []:
        candidate.check()
    threads = arguments.threads or all_threads()

    found, skipped = search(
        options,
        milliseconds=arguments.latency_ms,
        size=arguments.size_mb,
        classes=arguments.classes,
        threads=threads,
        onnx=arguments.runtime == "onnx",
        limit=arguments.seconds,
        clock=time.monotonic,
        tell=lambda text: None if arguments.quiet else print(text, file=sys.stderr, flush=True),
    )
    if arguments.json:
        content = {
            "latency_ms": arguments.latency_ms,
            "size_mb": arguments.size_mb,
            "classes": arguments.classes,
            "runtime": arguments.runtime,
            "processor": processor(),
            "not_tried": skipped,
            "fitting": [one.numbers() for one in found],
            "versions": versions(torch.device("cpu")),
        }
        write_metrics(Path(arguments.json), content)
    if skipped:
        print(f"note: {skipped} candidates not tried within {arguments.seconds:g} s (--seconds)", file=sys.stderr)
    if not found:
        raise InputError(
            f"no candidate of {len(options)} fits {arguments.latency_ms:g} ms and {arguments.size_mb:g} MB here; give "
            "it more, or smaller pictures (--sides)"
        )
    print(budget_table(found))
    print(f"\n{arguments.runtime}, {threads} thread{'s' * (threads > 1)}, {processor()}")
