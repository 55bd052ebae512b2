#!/usr/bin/env python
"""Score a trained detector, or anybody's VOC result files, on a VOC-format data set."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detkt.cli import Parser, run_tool
from detkt.config import DataConfig
from detkt.data import test_set
from detkt.engine.run import resolve_device, versions, write_metrics
from detkt.errors import InputError
from detkt.evaluation.detector import detect, score
from detkt.evaluation.table import metrics_table
from detkt.evaluation.voc_results import read_results, write_results
from detkt.models import load_model
from detkt.paths import resolve

EXAMPLES = """examples:
  python tools/eval_voc.py --checkpoint runs/shapes-ktan-s0 --data-root data/shapes
  python tools/eval_voc.py --detections results/VOC2007/Main --data-root data/VOCdevkit --json scores.json"""


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="CKPT", help="a run's folder or its model.safetensors")
    source.add_argument("--detections", metavar="DIR", help="VOC result files (*_det_test_CLASS.txt) to score")
    parser.add_argument("--data-root", required=True, help="VOC-format folder, or one that holds VOCdevkit/VOC<year>")
    parser.add_argument("--split", default="test", help="list in ImageSets/Main (default: test)")
    parser.add_argument("--year", default="2007", help="which VOC<year> below the root (default: 2007)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--save-detections", metavar="DIR", help="write the detections as VOC result files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(arguments)
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise InputError("--batch-size must be 1 or more and --workers 0 or more")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"--json {arguments.json}: there is no folder {Path(arguments.json).parent}")

    device = resolve_device(arguments.device)
    data = DataConfig(root=arguments.data_root, test=arguments.split, year=arguments.year)
    result = {"split": arguments.split}
    if arguments.checkpoint:
        model, meta = load_model(resolve(arguments.checkpoint), device)
        dataset = test_set(data, list(meta["classes"]))
        detections, milliseconds = detect(
            model, dataset, device, batch_size=arguments.batch_size, workers=arguments.workers, quiet=arguments.quiet
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        result |= {"checkpoint": arguments.checkpoint, "parameters": parameters}
        result["milliseconds_per_picture"] = milliseconds
    else:
        dataset = test_set(data)
        detections = read_results(arguments.detections, dataset.classes)
        result["detections"] = arguments.detections
    result |= score(detections, dataset.annotations(), list(dataset.classes))
    result["versions"] = versions(device)
    if arguments.save_detections:
        write_results(arguments.save_detections, detections, list(dataset.classes), arguments.split)
    if arguments.json:
        write_metrics(Path(arguments.json), result)
    print(metrics_table(result))


if __name__ == "__main__":
    run_tool(main)
