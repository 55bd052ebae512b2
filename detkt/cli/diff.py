"""Show what distillation changed: pictures (KTAN's Fig. 2), diagrams and tables of student, distilled and teacher."""

from __future__ import annotations

from pathlib import Path

from detkt.base.commands import command
from detkt.base.device import resolve_device
from detkt.base.files import check_folder, make_folder
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.config import data_config
from detkt.kinds import detection_kind
from detkt.visualization.difference import write_difference
from detkt.visualization.matching import (
    DISTILLED,
    STUDENT,
    TEACHER,
    check_choice,
    choice_text,
    choose_pictures,
    compare,
)
from detkt.visualization.report import write_report
from detkt.visualization.sources import (
    comparison_data,
    gain_text,
    models_table,
    open_dataset,
    open_sources,
    score_source,
    student_gain,
)
from detkt.visualization.tables import change_tables, tables_text

EXAMPLES = """examples:
  %(prog)s --student data/models/shapes-student --distilled runs/demo \\
      --teacher data/models/shapes-teacher
  %(prog)s --student runs/plain --distilled runs/ktan --data-root data/VOCdevkit --class dog
  %(prog)s --student results/before --distilled results/after --data-root data/VOCdevkit \\
      --output runs/compared --images 000004,000012

a model is a run's folder, its model.safetensors, a folder of VOC result files (*_det_test_CLASS.txt), or a COCO result
file (*.json; detkt eval --help says what its ids mean)

written to the output folder, over those of an earlier comparison:
  diff.png              rows truth, student, distilled, teacher; yellow: correct boxes gained, red: false boxes of the
                        student, blue: correct boxes lost, pink: new false boxes
  per_class_ap.png      AP of every class
  precision_recall.png  precision over recall of every class
  training_curves.png   of the runs that have a log.jsonl
  feature_maps.png      backbone maps on the first picture, and what the method of B compares of them (from its last.pt)
  changes.json          all counts; objects gained and lost, errors removed and new, picture by picture
  report/index.html     with --html: all pictures with filters, tables, a slider for the score; opens from disk"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("diff"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--student", metavar="A", required=True, help="the student without distillation")
    parser.add_argument("--distilled", metavar="B", required=True, help="the student with distillation")
    parser.add_argument("--teacher", metavar="C", help="the teacher (may be left out)")
    parser.add_argument("--data-root", metavar="DIR", help="of the data set (default: data.root in B's config.yaml)")
    parser.add_argument("--split", help="to compare on (default: data.test in B's config.yaml, or test)")
    parser.add_argument(
        "--year", help="which VOC<year> below the root (default: data.year in B's config.yaml, or 2007)"
    )
    parser.add_argument(
        "--coco-annotations",
        metavar="FILE.json",
        help="COCO data set whose ids the COCO result files have (default: the split's own, where data are COCO's)",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write to (default: B/diff)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="least score of a detection that counts (default: 0.5)"
    )
    parser.add_argument("--html", action="store_true", help="write a report to open in a browser, too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    chosen = parser.add_argument_group("which pictures are drawn")
    chosen.add_argument(
        "--pictures",
        metavar="N",
        type=int,
        default=6,
        help="how many (default: 6): a fair sample of those that changed, from gain to loss",
    )
    chosen.add_argument("--most", action="store_true", help="those that changed most, for the better or the worse")
    chosen.add_argument("--class", metavar="NAME", dest="class_name", help="only changes of this class count")
    chosen.add_argument("--images", metavar="ID,ID", help="these")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="how data are read: data.format=coco …")
    arguments = parser.parse_intermixed_args(argv)
    images = None if arguments.images is None else [name for name in arguments.images.split(",") if name]

    device = resolve_device(arguments.device)
    paths = {STUDENT: arguments.student, DISTILLED: arguments.distilled, TEACHER: arguments.teacher}
    paths = {role: resolve(path) for role, path in paths.items() if path is not None}
    sources = open_sources(paths, device)
    run = sources[DISTILLED].folder
    data = comparison_data(run, arguments.data_root, arguments.split, arguments.year)
    data = data_config(arguments.overrides, **vars(data))
    dataset, reading = open_dataset(data, sources, arguments.coco_annotations)
    choice = {"class_name": arguments.class_name, "images": images}
    check_choice(dataset.ids, dataset.classes, arguments.pictures, **choice)
    folder = Path(arguments.output) if arguments.output else run / "diff"
    check_folder(folder)

    scoring = {"quiet": arguments.quiet, "reading": reading, "metrics": detection_kind(data).resampled}
    scored = {role: score_source(source, dataset, device, **scoring) for role, source in sources.items()}
    comparison = compare(
        scored[STUDENT].detections,
        scored[DISTILLED].detections,
        teacher=scored[TEACHER].detections if TEACHER in scored else None,
        annotations=dataset.annotations(),
        score_threshold=arguments.score,
        classes=dataset.classes,
    )
    sample = not arguments.most
    shown = choose_pictures(comparison, arguments.pictures, **choice, sample=sample)
    how = choice_text(comparison, shown, **choice, sample=sample)
    gain = student_gain(scored, dataset)
    make_folder(folder)
    written = write_difference(folder, scored, comparison, dataset, shown, gain, how)
    print(f"{len(dataset)} pictures of {data.test}, detections with a score of at least {arguments.score:g}:")
    print(tables_text(change_tables(comparison)))
    print(f"\ndiff.png: {how}")
    print(f"written to {folder}: {', '.join(path.name for path in written)}")
    if arguments.html:
        page = write_report(folder / "report", scored, comparison, dataset, data.test, gain, quiet=arguments.quiet)
        print(f"open {page} in a browser")
    print()
    print(models_table(scored))
    print(gain_text(gain))
