#!/usr/bin/env python
"""Speed and memory of training steps against their floors: the plain student's step and the teacher's forward pass."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports, which take seconds
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells when it starts, and that it found no GPU
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and that what was there before it started is not seen freed

from benchmarking.chart import benchmark_figure
from benchmarking.measuring import run_benchmark
from benchmarking.table import benchmark_text

from detkt.base.files import make_folder, write_atomically
from detkt.cli.shared import Parser, run_tool
from detkt.config import find_config, load_config
from detkt.visualization.panels import save_figure

DEFAULT_CONFIG = "configs/shapes.yaml"
EXAMPLE = (
    "example:\n  python tools/benchmark.py --config configs/voc_vgg16_alexnet.yaml --image-size 300 --random "
    "--against torchvision --json benchmark.json --chart benchmark.png"
)


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"of detectors or classifiers ({DEFAULT_CONFIG})")
    parser.add_argument("--methods", default="ktan,fitnet", help="comma-separated, or sums (default: ktan,fitnet)")
    parser.add_argument("--data-root", help="the data set's folder; where there is none, the pictures are noise")
    parser.add_argument("--random", action="store_true", help="noise even where there are pictures")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--image-size", type=int, metavar="N", help="shorter side of a detector's pictures, in pixels")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--workers", type=int, help="processes that load pictures")
    parser.add_argument("--repetitions", type=int, default=20, metavar="N", help="rounds to time (default: 20)")
    parser.add_argument("--against", default="", help="other training loops: torchvision,torchdistill")
    parser.add_argument("--cache-teacher", metavar="DIR", help="time the methods with the teacher's maps on disk, too")
    parser.add_argument("--compile", action="store_true", default=None, help="time them with compiled backbones, too")
    parser.add_argument("--profile", metavar="TRACE.json", help="profile the first method's last stage")
    parser.add_argument("--json", metavar="FILE", help="every number, with machine, versions and settings")
    parser.add_argument("--chart", metavar="FILE.png", help="bars, with the floor")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    arguments = parser.parse_intermixed_args(arguments)

    flags = {
        "data.root": arguments.data_root,
        "train.batch_size": arguments.batch_size,
        "train.precision": arguments.precision,
        "train.device": arguments.device,
        "train.workers": arguments.workers,
        "train.cache_teacher": arguments.cache_teacher,
        "train.compile": arguments.compile,
    }
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None]
    config = load_config(find_config(arguments.config), given + arguments.overrides)
    files = {flag: getattr(arguments, flag) for flag in ("json", "chart", "profile")}
    files = {flag: Path(path) for flag, path in files.items() if path}
    for flag, path in files.items():
        make_folder(path.parent, f"--{flag}")

    report = run_benchmark(
        config,
        _names(arguments.methods),
        against=_names(arguments.against),
        repetitions=arguments.repetitions,
        random=arguments.random,
        image_size=arguments.image_size,
        trace=files.get("profile"),
        quiet=arguments.quiet,
    )
    print(benchmark_text(report))
    if "profile" in report:
        print(f"\n{report['profile']}")
    if "json" in files:
        text = json.dumps(report, indent=1) + "\n"
        write_atomically(files["json"], lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if "chart" in files:
        save_figure(benchmark_figure(report), files["chart"])


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    run_tool(main)
