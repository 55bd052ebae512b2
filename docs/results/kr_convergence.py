"""Knowledge Representing's figures of its penalty: its curves, kernels under it, and how fast the student converges.

The paper (section 4.1) shows the training loss on MNIST over the first 20,000 updates, with the sparse recoding penalty
below "the traditional penalties", structured sparsity and the L1 norm, and calls its kernels sparser. Here all students
of a seed start from the same weights and see the same batches; they differ in what they learn beside the labels:
nothing (none), FitNet's hints, or KR's aggregated teacher maps with gamma times |r| (kr-l1) or r^2 / 2 (kr-dense), or
sparse recoding (kr). Structured sparsity, a norm over groups of parameters, is not in the package.

Writes to the output folder, beside a folder a run (what is there is kept, and a run that was stopped goes on):
penalties.png (the paper's figure 2), kernels.png (4, of the first seed), convergence.png (5), and convergence.json.
"""

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from penalties import penalty_figure

from detkt.base.errors import InputError
from detkt.base.files import make_folder
from detkt.base.paths import resolve
from detkt.cli.shared import Parser, run_tool
from detkt.config import load_config
from detkt.data import classification_data
from detkt.engine.comparison import jobs_of, run_folder
from detkt.engine.jobs import run_job
from detkt.methods import parse
from detkt.methods.knowledge_representing import sparse_recoding_penalty
from detkt.visualization.curves import convergence_figure, mean_curve, read_log
from detkt.visualization.kernels import kernel_figure, near_zero_share
from detkt.visualization.panels import save_figure
from detkt.visualization.runs import titled_convolutions

EXAMPLE = """example:
  python docs/results/kr_convergence.py --data-root data/mnist --updates 20000
  python docs/results/kr_convergence.py --updates 2000 --teacher-epochs 3 data.format=fashion-mnist \\
      data.root=/usr/share/datasets/fashion-mnist"""

KEY = "cross_entropy"


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/mnist_resnet26_resnet8.yaml", help="data set, pair and schedule")
    parser.add_argument("--data-root", metavar="DIR", help="the data set's folder")
    parser.add_argument("--methods", default="none,fitnet,kr-l1,kr-dense,kr", help="comma-separated")
    parser.add_argument("--seeds", type=int, metavar="N", default=3, help="how many students a method (default: 3)")
    parser.add_argument("--updates", type=int, metavar="N", default=20000, help="of a student (default: 20000)")
    parser.add_argument("--teacher-epochs", type=int, metavar="N", default=10, help="default: 10")
    parser.add_argument("--output", default="runs/kr-convergence", metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    arguments = parser.parse_intermixed_args(arguments)
    if min(arguments.seeds, arguments.updates, arguments.teacher_epochs) < 1:
        raise InputError("--seeds, --updates and --teacher-epochs must be 1 or more")
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    root = Path(arguments.output)
    make_folder(root)
    data = [f"data.root={json.dumps(arguments.data_root)}"] if arguments.data_root else []
    config = load_config(resolve(arguments.config), [*data, *arguments.overrides])
    for name in methods:
        parse(name, config.methods)

    config.train.epochs, config.role = arguments.teacher_epochs, "teacher"
    for job in jobs_of(config, ["none"], [0], root / "teacher"):
        run_job(job, arguments.quiet)
    config.teacher.checkpoint = str(run_folder(root / "teacher", config, "none", 0))

    per_epoch = max(1, len(classification_data(config.data, train=True)) // config.train.batch_size)
    config.train.epochs, config.role = math.ceil(arguments.updates / per_epoch), "student"
    seeds = range(arguments.seeds)
    for job in jobs_of(config, methods, seeds, root):
        run_job(job, arguments.quiet)

    folders = {name: [run_folder(root, config, name, seed) for seed in seeds] for name in methods}
    logs = {name: [read_log(folder / "log.jsonl") for folder in runs] for name, runs in folders.items()}
    kernels = titled_convolutions([runs[0] for runs in folders.values()])
    save_figure(penalty_figure(penalties()), root / "penalties.png")
    save_figure(kernel_figure({name: weights[0].numpy() for name, weights in kernels.items()}), root / "kernels.png")
    save_figure(convergence_figure(logs, KEY), root / "convergence.png")
    report = {name: summary(runs, logs[name]) for name, runs in folders.items()}
    (root / "convergence.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\npenalties.png, kernels.png, convergence.png and convergence.json in {root}")


def penalties():
    """The norms beside sparse recoding for two thresholds, over one gap r (kr-l1, kr-dense: gamma times them)."""
    curves = {
        "L1: |r|": lambda gap: gap.abs().mean(),
        "L2: r²/2": lambda gap: gap.square().mean() / 2,
    }
    for threshold in (0.5, 1.0):
        fixed = torch.tensor(threshold, dtype=torch.float64)
        curves[f"sparse recoding, θ = {threshold:g}, γ = 2"] = partial(sparse_recoding_penalty, threshold=fixed)
    return curves


def summary(folders, logs):
    """A method's training loss a seed at a tenth, a quarter, half and all of the updates, top-1, near-zero weights."""
    steps, values = mean_curve(logs, KEY)
    shares = [near_zero_share(weights) for weights in titled_convolutions(folders).values()]
    losses = {}
    for part in (0.1, 0.25, 0.5, 1.0):
        index = min(len(steps) - 1, int((steps < part * steps[-1]).sum()))
        losses[int(steps[index])] = values[:, index].tolist()
    top1 = [json.loads((folder / "metrics.json").read_text())["top1"] for folder in folders]
    return {KEY: losses, "top1": top1, "near_zero_share": shares}


def table(report):
    """Means over the seeds, ± the sample standard deviation where there are several."""
    steps = list(next(iter(report.values()))[KEY])
    header = ["method", *(f"loss at {step}" for step in steps), "top-1 %", "near zero %"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, found in report.items():
        cells = [mean(values, 1, 4) for values in found[KEY].values()]
        cells += [mean(found["top1"], 100, 2), mean(found["near_zero_share"], 100, 1)]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def mean(values, factor, digits):
    values = factor * torch.tensor(values, dtype=torch.float64)
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


if __name__ == "__main__":
    run_tool(main)
