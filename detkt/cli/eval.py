"""Score a trained detector, or anybody's detections, on an annotated data set; compare it with another."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detkt.base.commands import command
from detkt.base.device import resolve_device
from detkt.base.errors import InputError, suggestion
from detkt.base.paths import resolve
from detkt.cli.shared import Parser, own_reading
from detkt.config import data_config
from detkt.data import coco_file, test_set
from detkt.engine.run_folder import versions, write_metrics
from detkt.evaluation.bootstrap import bootstrap_difference, bootstrap_map
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.detection_files import (
    check_names,
    check_writable,
    is_coco_file,
    other_classes,
    read_detections,
    write_detections,
)
from detkt.evaluation.detector import detect
from detkt.evaluation.records import Records
from detkt.evaluation.table import comparison_table, intervals_table, metrics_table
from detkt.export.runtime import open_model, parameter_count
from detkt.kinds import detection_kind
from detkt.visualization.sources import Source, open_sources, score_source

EXAMPLES = """examples:
  %(prog)s --checkpoint runs/shapes-ktan-s0 --data-root data/shapes
  %(prog)s --checkpoint runs/shapes-ktan-s0 --data-root data/shapes --compare runs/shapes-none-s0
  %(prog)s --detections results/VOC2007/Main --data-root data/VOCdevkit --json scores.json
  %(prog)s --detections results.json --data-root data/coco --split val2017 data.format=coco
  %(prog)s --detections results.json --coco-annotations pascal_test2007.json --data-root data/VOCdevkit

detections are either a folder of VOC result files, *_det_<split>_<class>.txt, of lines "image score x1 y1 x2 y2" in
1-based inclusive pixels, or a COCO result file (*.json), a list of {image_id, category_id, bbox, score}, bbox being
x, y, width, height from 0. What its ids mean says the JSON of the COCO data set (the split's own, where data are
COCO's, or --coco-annotations: the file_name of an image, the name of a category). Without it image_id is a picture's
name (000012, 000012.jpg) or the number made of its digits (12), and category_id the place among the classes from 1 on
(of VOC's 20: 1 is aeroplane, 20 tvmonitor), unless an entry names its class in category_name, as the files written here
do."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("eval"), description=__doc__, epilog=EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="CKPT", help="a run's folder, or an exported file")
    source.add_argument("--detections", metavar="DIR|FILE.json", help="VOC or COCO result files to score, see below")
    parser.add_argument("--data-root", required=True, help="its folder, or one that holds VOCdevkit/VOC<year>")
    parser.add_argument("--split", default="test", help="to score on (default: test); a part of it: 'test[:100]'")
    parser.add_argument("--year", default="2007", help="which VOC<year> below the root (default: 2007)")
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME|FILE",
        type=read_classes,
        help="of the detections, in the order of their category ids, or a file with one a line (default: VOC's 20, "
        "or all that the split holds, and those that the detections hold besides)",
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        help="another run's folder, or other result files, to score on the same pictures",
    )
    parser.add_argument(
        "--coco-annotations",
        metavar="FILE.json",
        help="COCO data set whose ids the COCO result files have (default: the split's own, where data are COCO's)",
    )
    parser.add_argument(
        "--leave-out-other-classes",
        action="store_true",
        help="leave out detections of classes of which the split has no object; else they are listed, without a score",
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, help="least overlap with an object for VOC's scores (default: 0.5)"
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
    parser.add_argument(
        "--save-detections", metavar="DIR|FILE.json", help="write the detections as VOC or as COCO result files"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="how data are read: data.format=coco …")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise InputError("--batch-size must be 1 or more and --workers 0 or more")
    if arguments.bootstrap < 0 or arguments.seed < 0:
        raise InputError("--bootstrap and --seed must be 0 or more")
    if not 0 < arguments.iou <= 1:
        raise InputError(f"--iou is {arguments.iou}; give a number above 0 and at most 1")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise InputError(f"--json {arguments.json}: there is no folder {Path(arguments.json).parent}")
    if arguments.classes and arguments.checkpoint:
        raise InputError("--classes is for --detections: a checkpoint knows its own")
    files = [path for path in (arguments.detections, arguments.compare, arguments.save_detections) if path]
    if arguments.coco_annotations and not any(map(is_coco_file, files)):
        raise InputError("--coco-annotations says what the ids of COCO result files (*.json) mean, but none is given")
    if arguments.save_detections:
        check_writable(arguments.save_detections, "--save-detections")

    device = resolve_device(arguments.device)
    given = {"root": arguments.data_root, "test": arguments.split, "year": arguments.year}
    if arguments.checkpoint:
        given = own_reading(resolve(arguments.checkpoint)) | given
    data = data_config(arguments.overrides, **given)
    kind = detection_kind(data)
    running = {"batch_size": arguments.batch_size, "workers": arguments.workers, "quiet": arguments.quiet}
    result: dict[str, Any] = {"split": arguments.split}
    # All is opened before any picture is looked at, so that a mistake is known at once.
    other = open_sources({"--compare": resolve(arguments.compare)}, device)["--compare"] if arguments.compare else None
    if arguments.checkpoint:
        model, meta = open_model(resolve(arguments.checkpoint), device)
        dataset = test_set(data, list(meta["classes"]))
    else:
        # Detections are scored by the annotations alone, but for a model to compare with, which has to look.
        dataset = test_set(data, arguments.classes, pictures=other is not None and other.model is not None)
        if not arguments.classes and other is None:
            dataset.classes = dataset.all_classes()
    check_classes(other, dataset.classes)
    annotations, classes = dataset.annotations(), list(dataset.classes)
    if arguments.save_detections:
        check_names(arguments.save_detections, dataset.ids, classes, arguments.split)
    # A misspelt class is told of where all are named; else result files may well know more than the split holds.
    others = "leave" if arguments.leave_out_other_classes else "keep" if not arguments.classes else "refuse"
    ids_of = arguments.coco_annotations or coco_file(data, dataset)
    reading: dict[str, Any] = {"dataset": ids_of, "others": others}
    if arguments.checkpoint:
        detections, milliseconds = detect(model, dataset, device, **running)
        result |= {"checkpoint": arguments.checkpoint, "parameters": parameter_count(model)}
        result["milliseconds_per_picture"] = milliseconds
    else:
        detections = read_detections(arguments.detections, coco_ids(dataset.ids, classes, **reading))
        result["detections"] = arguments.detections
    rivals = None
    if other is not None:
        rivals = score_source(other, dataset, device, **running, reading=reading).detections
    if more := sorted({*other_classes(detections, classes), *other_classes(rivals or {}, classes)}):
        near = [f"{name}{suggestion(name, classes)}" for name in more]
        print(f"note: no object in {arguments.split} of {', '.join(near)}: not in the means", file=sys.stderr)
        classes += more
    result |= kind.score(detections, annotations, classes, arguments.iou)
    result |= {"iou_threshold": arguments.iou, "versions": versions(device)}
    if rivals is not None:
        result["compare"] = {"other": arguments.compare, **kind.score(rivals, annotations, classes, arguments.iou)}
        result["compare"]["difference"] = {
            key: {"value": result[key] - result["compare"][key]} for key in kind.measures
        }
    if arguments.bootstrap:
        options = {"resamples": arguments.bootstrap, "confidence": 0.95, "seed": arguments.seed}
        options["iou_threshold"] = arguments.iou
        result["bootstrap"] = {"pictures": len(dataset), **options}
        options |= {"metrics": kind.resampled, "classes": classes}
        add_intervals(result, detections, rivals, annotations, **options)
    if arguments.save_detections:
        ids = coco_ids(dataset.ids, classes, ids_of)
        write_detections(arguments.save_detections, detections, ids, arguments.split)
    if arguments.json:
        write_metrics(Path(arguments.json), result)
    if arguments.iou != 0.5:
        print(f"VOC07 and area at an overlap of {arguments.iou:g}")
    if other is None:
        print(metrics_table(result))
    else:
        print(f"this:  {arguments.checkpoint or arguments.detections}\nother: {arguments.compare}\n")
        print(comparison_table(result, result["compare"]))
    if arguments.bootstrap:
        print(f"\n{intervals_table(result)}")


def read_classes(names: str) -> list[str]:
    """Those of "a,b,c", or of a text file with a name a line."""
    path = Path(names)
    if "," not in names and path.is_file():
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return names.split(",")


def check_classes(other: Source | None, classes: Iterable[str]) -> None:
    """InputError if the detector to compare with knows other classes than this one."""
    if other is not None and other.meta is not None and set(other.meta["classes"]) != set(classes):
        raise InputError(
            f"--compare {other.path} knows the classes {', '.join(other.meta['classes'])}, not {', '.join(classes)}; "
            "compare detectors of the same classes"
        )


def add_intervals(
    result: dict[str, Any],
    detections: Records,
    rivals: Records | None,
    annotations: Records,
    **options: Any,
) -> None:
    """Put the bootstrap's numbers into the sections of *result*."""
    if rivals is None:
        intervals = bootstrap_map(detections, annotations, **options)
        result["bootstrap"] |= {key: interval.numbers() for key, interval in intervals.items()}
        return
    pairs = bootstrap_difference(detections, rivals, annotations, **options)
    result["bootstrap"] |= {key: pair.first.numbers() for key, pair in pairs.items()}
    result["compare"]["bootstrap"] = {key: pair.second.numbers() for key, pair in pairs.items()}
    result["compare"]["difference"] |= {key: pair.numbers() for key, pair in pairs.items()}
