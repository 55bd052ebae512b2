"""``detkt reproduce``: every table's plan, and one from end to end with tiny nets on tiny pictures."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from tiny import TINY_OPTIONS

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.cli.reproduce import main
from detkt.engine.recipes import RECIPES, find_recipe, plan
from detkt.prepare.sources import SOURCES


@pytest.fixture(scope="module")
def small(voc_folder) -> list[str]:
    """The flags that make KTAN's table of it that a minute is enough for."""
    options = json.dumps(TINY_OPTIONS)
    return [
        "voc2007-table2", "--data-root", str(voc_folder), "--as-is", "--rows", "none,fitnet,ktan", "--quiet",
        "student.architecture=fasterrcnn_resnet10x0.125_c4", "teacher.architecture=fasterrcnn_resnet10x0.25_c4",
        "student.weights=null", "teacher.weights=null", f"student.options={options}", f"teacher.options={options}",
        "train.epochs=2", "train.batch_size=4", "train.workers=0", "train.warmup_steps=2", "train.device=cpu",
        "methods.ktan.regressor_steps=3", "methods.ktan.warmup_steps=3", "methods.ktan.discriminator_width=8",
        "methods.dln.regressor_steps=3",
    ]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_table_can_be_planned(name, tmp_path):
    recipe = find_recipe(name)
    made = plan(recipe, recipe.methods(), [0, 1], tmp_path)
    assert {job.config.method_name for job in made.students()} == set(recipe.load().paper) - {"teacher"}
    published = name.startswith("imagenet")  # such teachers are not trained, and nobody can download these pictures
    teachers = [] if published else ["teacher"]
    if published:
        assert recipe.data is None and made.jobs[0].config.data.format == "imagenet"
    else:
        assert SOURCES[recipe.data].format in ("voc", made.jobs[0].config.data.format.removeprefix("t"))
    assert [job.folder.name for job in made.jobs if job.config.role == "teacher"] == teachers
    teacher = (None, "imagenet") if published else (str(tmp_path / "teacher"), None)
    assert all((job.config.teacher.checkpoint, job.config.teacher.weights) == teacher for job in made.then)
    assert len({job.folder for job in made.jobs}) == len(made.jobs) == len(teachers) + 2 * len(recipe.methods())
    for job in made.then:
        starts = job.config.method in recipe.from_plain
        seed = job.config.train.seed
        assert job.config.student.checkpoint == (str(tmp_path / f"none-s{seed}") if starts else None)


def test_settings_of_rows_and_teachers(tmp_path):
    made = plan(RECIPES["voc2007-ft"], ["none", "ft"], [0], tmp_path)
    assert [(job.folder.name, job.config.train.weight_decay, job.config.train.clip_norm) for job in made.jobs] == [
        ("teacher", 0.0001, 0),
        ("none-s0", 0.0005, 10),
        ("ft-s0", 0.0005, 10),
    ]
    made = plan(RECIPES["cifar10-kr"], ["none", "kr", "nst"], [0], tmp_path)
    assert [job.config.student.architecture for job in made.students()] == [
        "cifar_resnet8x1.25",
        "cifar_resnet8x1.1",
        "cifar_resnet8x1.25",
    ]
    made = plan(RECIPES["cifar10-ktan"], ["ktan"], [2], tmp_path, ["train.epochs=3"])
    rates = {job.folder.name: job.config.train.lr_per_image for job in made.jobs}
    assert rates == {"teacher": 0.00625, "none-s2": 0.00625, "ktan-s2": 0.0003125}, "the plain student is its start"
    assert {job.config.train.epochs for job in made.jobs} == {3}
    made = plan(RECIPES["imagenet-kr"], ["nst", "kr"], [0], tmp_path)
    assert [(job.config.train.lr_per_image, job.config.train.weight_decay) for job in made.jobs] == [
        (0.1 / 256, 1e-4),
        (0.005 / 256, 1e-5),
    ]


def test_imagenet_is_not_prepared_but_has_to_be_there(tmp_path, capsys):
    main(["imagenet-ft", "--rows", "none,ft", "--print-jobs"])
    lines, told = (text.splitlines() for text in capsys.readouterr())
    assert [shlex.split(line)[-1] for line in lines] == ["none-s0", "ft-s0"]
    assert told[0] == "# line 1: first, in any order"
    with pytest.raises(InputError, match="no such folder; give the one that holds train/CLASS/"):
        main(["imagenet-ft", "--data-root", str(tmp_path / "none"), "--hours"])


def test_every_printed_line_is_a_command_whatever_its_number(small, tmp_path, capsys):
    """`sed -n Np` of an array of jobs takes lines by number, so nothing but commands may be among them."""
    main([*(flag for flag in small if flag != "--as-is"), "--output", str(tmp_path), "--print-jobs", "--seeds", "0,1"])
    lines, told = (text.splitlines() for text in capsys.readouterr())
    assert told[0] == "# line 1: first, the data"
    assert lines[0].startswith(f"{command('prepare')} voc2007 --data-root ")
    assert all(line.startswith(f"{command('reproduce')} ") for line in lines[1:])
    assert len(lines) == 1 + 1 + 3 * 2
    groups = [re.match(r"# lines? (\d+)(?:-(\d+))?: ", line) for line in told[:-1]]
    numbers = [n for one in groups for n in range(int(one[1]), int(one[2] or one[1]) + 1)]
    assert numbers == list(range(1, len(lines) + 1)), "each line is in one group, in their order"


def test_a_table_from_end_to_end(small, tmp_path, capsys):
    root = tmp_path / "table"
    call = [*small, "--output", str(root)]
    # Measured with random weights, which no rate may drive away.
    main([*call, "--hours", "methods.ktan.regressor_lr=1e20", "methods.ktan.discriminator_lr=1e20"])
    out = capsys.readouterr().out
    for name in ("teacher", "none", "fitnet", "ktan"):
        assert re.search(rf"^  {name}: 0\.0\d h a run$", out, re.MULTILINE)
    assert re.search(
        r"^4 runs, 0\.\d\d hours to expect one after the other on .+, scoring not counted$", out, re.MULTILINE
    )
    assert not root.exists()

    main([*call, "--print-jobs"])
    lines, told = (text.splitlines() for text in capsys.readouterr())
    assert [shlex.split(line)[-1] for line in lines] == ["teacher", "none-s0", "fitnet-s0", "ktan-s0"]
    # KTAN's student starts from the plain one, so it waits for that, too.
    assert told == [
        "# lines 1-2: first, in any order",
        "# lines 3-4: when all of those are finished, in any order",
        "# in the end the same command without --print-jobs, for the table",
    ]
    with pytest.raises(InputError, match="--only ktan-s0 reads the model of .*/teacher, which is not finished yet"):
        main([*call, "--only", "ktan-s0"])
    main([*call, "--only", "teacher"])
    teacher = (root / "teacher" / "metrics.json").read_bytes()
    capsys.readouterr()

    main([*call, "--no-hours"])
    out = capsys.readouterr().out
    assert (root / "teacher" / "metrics.json").read_bytes() == teacher, "what is finished is kept"
    assert "teacher: " not in out
    assert "KTAN, Table 2" in out
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")]
        for line in (root / "table.md").read_text().splitlines()
        if line.startswith("|")
    }
    assert {name: row[-2] for name, row in cells.items() if name in ("none", "fitnet", "ktan", "teacher")} == {
        "none": "70.4",
        "fitnet": "71.4",
        "ktan": "73.0",
        "teacher": "75.4",
    }
    assert cells["teacher"][3] == f"{100 * json.loads(teacher)['map_voc07']:.1f}"
    config = (root / "ktan-s0" / "config.yaml").read_text()
    assert f"checkpoint: {root}/none-s0" in config and f"checkpoint: {root}/teacher" in config

    main([*call, "--no-hours"])
    assert "training in" not in capsys.readouterr().out
    main([*call, "--hours"])
    assert capsys.readouterr().out == "", "nothing is left to do"


def test_the_list_names_tables_and_rows(capsys):
    main(["--list"])
    out = capsys.readouterr().out
    assert "voc2007-table2: KTAN, Table 2" in out
    assert "rows none, kd, fitnet, dln, ktan, ktan+kd; config voc2007_resnet152_resnet50" in out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("", "the following arguments are required: TABLE"),
        ("voc2007-table3", r"unknown table 'voc2007-table3' \(did you mean 'voc2007-table2'\?\)"),
        ("voc2007-table2 --rows none,ktn", r"--rows: no row 'ktn' \(did you mean 'ktan'\?\); there are: none, kd"),
        ("voc2007-table2 --only kd-s3", "--only kd-s3: no such run; there are: teacher, none-s0, "),
        ("voc2007-table2 --seeds a", "--seeds 'a' is not a comma-separated list of whole numbers"),
    ],
)
def test_what_cannot_be_reproduced_is_told(call, message):
    with pytest.raises(InputError, match=message):
        main(call.split())
