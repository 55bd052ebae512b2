#!/usr/bin/env python
"""Score a trained detector, or anybody's VOC result files, on a VOC-format data set; compare it with another."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detkt.cli import Parser, run_tool
from detkt.config import DataConfig
from detkt.data import test_set
from detkt.engine.run import resolve_device, versions, write_metrics
from detkt.errors import InputError
from detkt.evaluation.bootstrap import bootstrap_difference, bootstrap_map
from detkt.evaluation.detector import detect, score
from detkt.evaluation.table import comparison_table, intervals_table, metrics_table
from detkt.evaluation.voc_results import read_results, write_results
from detkt.models import load_model
from detkt.paths import resolve
from detkt.visualization.sources import open_sources, score_source

EXAMPLES = """examples:
  python tools/eval_voc.py --checkpoint runs/shapes-ktan-s0 --data-root data/shapes
  python tools/eval_voc.py --checkpoint runs/shapes-ktan-s0 --data-root data/shapes --compare runs/shapes-none-s0
  python tools/eval_voc.py --detections results/VOC2007/Main --data-root data/VOCdevkit --json scores.json"""


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="CKPT", help="a run's folder or its model.safetensors")
    source.add_argument("--detections", metavar="DIR", help="VOC result files (*_det_test_CLASS.txt) to score")
    parser.add_argument("--data-root", required=True, help="VOC-format folder, or one that holds VOCdevkit/VOC<year>")
    parser.add_argument("--split", default="test", help="list in ImageSets/Main (default: test)")
    parser.add_argument("--year", default="2007", help="which VOC<year> below the root (default: 2007)")
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        help="another run's folder, or folder of VOC result files, to score on the same pictures",
    )
    parser.add_argument(
        "--bootstrap",
        metavar="N",
        type=int,
        default=1000,
        help="resamples of the pictures for the 95 %% intervals of mAP (default: 1000; 0: no intervals)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--save-detections", metavar="DIR", help="write the detections as VOC result files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(arguments)
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise InputError("--batch-size must be 1 or more and --workers 0 or more")
    if arguments.bootstrap < 0 or arguments.seed < 0:
        raise InputError("--bootstrap and --seed must be 0 or more")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"--json {arguments.json}: there is no folder {Path(arguments.json).parent}")

    device = resolve_device(arguments.device)
    data = DataConfig(root=arguments.data_root, test=arguments.split, year=arguments.year)
    running = {"batch_size": arguments.batch_size, "workers": arguments.workers, "quiet": arguments.quiet}
    result = {"split": arguments.split}
    if arguments.checkpoint:
        model, meta = load_model(resolve(arguments.checkpoint), device)
        dataset = test_set(data, list(meta["classes"]))
    else:
        # Results of others are scored by the annotations alone, but for a model to compare with, which has to look.
        dataset = test_set(data, pictures=bool(arguments.compare))
    # Opened before any picture is looked at, so that a mistake is known at once.
    other = open_other(arguments.compare, dataset.classes, device) if arguments.compare else None
    if arguments.checkpoint:
        detections, milliseconds = detect(model, dataset, device, **running)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        result |= {"checkpoint": arguments.checkpoint, "parameters": parameters}
        result["milliseconds_per_picture"] = milliseconds
    else:
        detections = read_results(arguments.detections, dataset.classes)
        result["detections"] = arguments.detections
    annotations, classes = dataset.annotations(), list(dataset.classes)
    result |= score(detections, annotations, classes)
    result["versions"] = versions(device)
    rivals = None
    if other is not None:
        rivals = score_source(other, dataset, device, **running).detections
        result["compare"] = {"other": arguments.compare, **score(rivals, annotations, classes)}
        result["compare"]["difference"] = {
            key: {"value": result[key] - result["compare"][key]} for key in ("map_voc07", "map_area", "map_coco")
        }
    if arguments.bootstrap:
        options = {"resamples": arguments.bootstrap, "confidence": 0.95, "seed": arguments.seed}
        result["bootstrap"] = {"pictures": len(dataset), **options}
        add_intervals(result, detections, rivals, annotations, classes=classes, **options)
    if arguments.save_detections:
        write_results(arguments.save_detections, detections, classes, arguments.split)
    if arguments.json:
        write_metrics(Path(arguments.json), result)
    if other is None:
        print(metrics_table(result))
    else:
        print(f"this:  {arguments.checkpoint or arguments.detections}\nother: {arguments.compare}\n")
        print(comparison_table(result, result["compare"]))
    if arguments.bootstrap:
        print(f"\n{intervals_table(result)}")


def open_other(path, classes, device):
    """The detector to compare with; InputError if it knows other classes than this one."""
    other = open_sources({"--compare": resolve(path)}, device)["--compare"]
    if other.meta is not None and set(other.meta["classes"]) != set(classes):
        raise InputError(
            f"--compare {path} knows the classes {', '.join(other.meta['classes'])}, not {', '.join(classes)}; "
            "compare detectors of the same classes"
        )
    return other


def add_intervals(result, detections, rivals, annotations, **options):
    """Put the bootstrap's numbers into the sections of *result*."""
    if rivals is None:
        intervals = bootstrap_map(detections, annotations, **options)
        result["bootstrap"] |= {key: interval.numbers() for key, interval in intervals.items()}
        return
    pairs = bootstrap_difference(detections, rivals, annotations, **options)
    result["bootstrap"] |= {key: pair.first.numbers() for key, pair in pairs.items()}
    result["compare"]["bootstrap"] = {key: pair.second.numbers() for key, pair in pairs.items()}
    result["compare"]["difference"] |= {key: pair.numbers() for key, pair in pairs.items()}


if __name__ == "__main__":
    run_tool(main)
