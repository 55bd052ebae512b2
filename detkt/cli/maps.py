"""Pictures of trained networks: the maps a method compares, first kernels of several students, training curves."""

from __future__ import annotations

import argparse
from pathlib import Path

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.visualization.curves import convergence_figure
from detkt.visualization.feature_maps import channel_figure, feature_map_figure
from detkt.visualization.kernels import NEAR_ZERO, kernel_figure, near_zero_share
from detkt.visualization.method_maps import choose_indices, open_run, picture_maps
from detkt.visualization.panels import save_figure
from detkt.visualization.runs import titled_convolutions, titled_logs

EXAMPLES = """examples:
  %(prog)s maps --checkpoint runs/fashion_tiny-ft-s0 --pictures 6
  %(prog)s maps --checkpoint runs/shapes-ft-s0 --images test_000000,test_000250 --channels 8
  %(prog)s kernels --checkpoint runs/mnist-kr --against runs/mnist-kr-dense runs/mnist-fitnet
  %(prog)s curves runs/mnist-kr runs/mnist-none --key cross_entropy --output curves.png

a RUN is the folder of a run of detkt train-det or train-cls"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("maps"), description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="maps|kernels|curves")

    maps = commands.add_parser("maps", help="teacher's, student's and the method's own maps beside their pictures")
    maps.add_argument("--checkpoint", metavar="RUN", required=True, help="a finished run (config.yaml, last.pt)")
    maps.add_argument("--pictures", metavar="N", type=int, default=4, help="how many of the test list (default: 4)")
    maps.add_argument("--images", metavar="ID,ID", help="these pictures of the test list")
    maps.add_argument("--channels", metavar="K", type=int, help="single channels: the K that vary most")
    maps.add_argument("--data-root", metavar="DIR", help="the data set's folder (default: as in the run's config.yaml)")
    maps.add_argument("--output", metavar="FILE.png", help="default: RUN/maps.png")
    maps.set_defaults(show=show_maps)

    kernels = commands.add_parser("kernels", help="kernels of the first convolution, side by side on one scale")
    kernels.add_argument("--checkpoint", metavar="RUN", required=True, help="a run, or a folder of detkt export")
    kernels.add_argument("--against", metavar="RUN", nargs="+", default=[], help="others to compare with")
    kernels.add_argument("--output", metavar="FILE.png", help="default: RUN/kernels.png")
    kernels.set_defaults(show=show_kernels)

    curves = commands.add_parser("curves", help="one logged quantity of several runs, over the student's updates")
    curves.add_argument("runs", metavar="RUN", nargs="+")
    curves.add_argument("--key", default="loss", help="what to draw, as log.jsonl calls it (default: loss)")
    curves.add_argument("--output", metavar="FILE.png", help="default: curves.png in the first RUN")
    curves.set_defaults(show=show_curves)

    arguments = parser.parse_args(argv)
    arguments.show(arguments)


def show_maps(arguments: argparse.Namespace) -> None:
    images = None if arguments.images is None else [name for name in arguments.images.split(",") if name]
    run = resolve(arguments.checkpoint)
    output = output_file(arguments.output, run / "maps.png")
    distiller, dataset = open_run(run, arguments.data_root)
    rows = [picture_maps(distiller, dataset, index) for index in choose_indices(dataset, arguments.pictures, images)]
    figure = feature_map_figure(rows) if arguments.channels is None else channel_figure(rows, arguments.channels)
    save_figure(figure, output)
    print(f"{distiller.method.name}: {' | '.join(rows[0].maps)} of {len(rows)} pictures in {output}")


def show_kernels(arguments: argparse.Namespace) -> None:
    runs = [resolve(run) for run in (arguments.checkpoint, *arguments.against)]
    output = output_file(arguments.output, runs[0] / "kernels.png")
    convolutions = titled_convolutions(runs)
    save_figure(kernel_figure({title: weights[0].numpy() for title, weights in convolutions.items()}), output)
    width = max(map(len, convolutions))
    print(f"share of weights below {NEAR_ZERO:g} of their layer's root mean square, in percent")
    print(f"{'':<{width}}  first convolution  all convolutions")
    for title, weights in convolutions.items():
        first, everything = (100 * near_zero_share(part) for part in (weights[:1], weights))
        print(f"{title:<{width}}  {first:>17.1f}  {everything:>16.1f}")
    print(f"kernels of the first convolution in {output}")


def show_curves(arguments: argparse.Namespace) -> None:
    runs = [resolve(run) for run in arguments.runs]
    output = output_file(arguments.output, runs[0] / "curves.png")
    logs = titled_logs(runs)
    save_figure(convergence_figure({title: [log] for title, log in logs.items()}, arguments.key), output)
    print(f"{arguments.key} of {', '.join(logs)} in {output}")


def output_file(given: str | None, default: Path) -> Path:
    """Where the picture goes; InputError where it cannot."""
    path = Path(given) if given else default
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"--output {path} is not a .png or .jpg file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    return path
