"""``detkt compare`` on tiny runs: beside others, stopped, failed, as commands, and collected from their files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.cli.compare import main
from detkt.engine.jobs import threads_each
from detkt.engine.stops import Interrupted
from detkt.evaluation.outcomes import read_outcomes


@pytest.fixture(scope="module")
def compared(tiny_file, tmp_path_factory) -> tuple[Path, str]:
    """Two methods with two seeds, one after the other; and what that printed."""
    root, told = tmp_path_factory.mktemp("compared"), io.StringIO()
    with contextlib.redirect_stdout(told):
        main(call(tiny_file, root, "none,kd", "0,1"))
    return root, told.getvalue()


def call(file: Path, root: Path, methods: str, seeds: str) -> list[str]:
    flags = ["--config", str(file), "--methods", methods, "--seeds", seeds, "--output", str(root)]
    return [*flags, "--quiet", "train.epochs=1", "train.log_every=2"]


def test_side_by_side_gives_what_one_after_the_other_gives(compared, tiny_file, tmp_path, capsys):
    main([*call(tiny_file, tmp_path, "none,kd", "1"), "--jobs", "2"])
    out = capsys.readouterr().out
    for name in ("none", "kd"):
        assert f"{name}, seed 1: started, log in {tmp_path}/tiny-{name}-s1.txt" in out
        assert f"{name}, seed 1: done (" in out
        ours, theirs = (
            json.loads((each / f"tiny-{name}-s1" / "metrics.json").read_text()) for each in (tmp_path, compared[0])
        )
        for key in ("map_voc07", "map_area", "per_class", "updates"):
            assert ours[key] == theirs[key]
    assert "(2 of 2, " in out
    assert "| kd " in out


def test_a_run_keeps_what_became_of_its_pictures(compared):
    root, _ = compared
    for folder in root.glob("tiny-*-s?"):
        outcomes, metrics = read_outcomes(folder / "pictures.npz"), json.loads((folder / "metrics.json").read_text())
        assert len(outcomes.pictures) == 6
        once = outcomes.measures(np.ones((1, 6), dtype=np.int64))
        for measure in ("map_voc07", "map_area"):
            assert once[measure][0] == pytest.approx(metrics[measure], abs=1e-12)


def test_the_table_is_written_with_its_numbers_and_chart(compared):
    root, out = compared
    table, numbers = (root / "table.md").read_text(), json.loads((root / "comparison.json").read_text())
    assert table in out
    assert numbers["against"] == "none"
    rows = {row["method"]: row for row in numbers["rows"]}
    assert rows["none"]["difference"] is None
    difference = rows["kd"]["difference"]
    assert (difference["pairs"], difference["holds"]) == (2, "pictures + seeds")
    runs = json.loads((root / "table.json").read_text())
    means = [sum(run["map_voc07"] for run in runs[name]) / 2 for name in ("kd", "none")]
    assert difference["value"] == pytest.approx(means[0] - means[1])
    assert "2 pairs of seeds can give no p below 0.5" in out
    assert (root / "chart.png").stat().st_size > 10_000
    assert not (root / "curves.png").exists()


def test_runs_from_anywhere_are_compared(compared, tmp_path, capsys):
    root, _ = compared
    main(["--runs", str(root), "--output", str(tmp_path / "folders")])
    expected = json.loads((root / "comparison.json").read_text())
    assert json.loads((tmp_path / "folders" / "comparison.json").read_text()) == expected
    files = tmp_path / "files"
    files.mkdir()
    for method, name in (("none", "plain"), ("kd", "ours")):
        for seed in (0, 1):
            for file, ending in (("metrics.json", "json"), ("pictures.npz", "npz")):
                shutil.copy(root / f"tiny-{method}-s{seed}" / file, files / f"{name}-s{seed}.{ending}")
    main(["--runs", *map(str, files.glob("*.json")), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["against"] == "plain"
    for row in expected["rows"]:
        row["method"] = {"none": "plain", "kd": "ours"}[row["method"]]
    assert sorted(found["rows"], key=str) == sorted(expected["rows"], key=str)
    main(["--runs", str(root / "table.json"), "--output", str(tmp_path / "table"), "--against", "kd"])
    (plain,) = [
        r for r in json.loads((tmp_path / "table/comparison.json").read_text())["rows"] if r["method"] == "none"
    ]
    assert plain["difference"]["holds"] == "seeds"
    assert "Some intervals leave out the draw of the pictures" in capsys.readouterr().out


def test_a_score_that_is_missing_leaves_strict_json(compared, tmp_path):
    root, _ = compared
    table = json.loads((root / "table.json").read_text())
    table["kd"][1]["map_voc07"] = None
    (tmp_path / "table.json").write_text(json.dumps(table))
    main(["--runs", str(tmp_path / "table.json"), "--output", str(tmp_path / "out")])
    for name in ("comparison.json", "table.json"):
        text = (tmp_path / "out" / name).read_text()
        json.loads(text, parse_constant=lambda constant, name=name: pytest.fail(f"{name}: {constant}"))


def test_a_run_of_before_is_looked_at_once(compared, tmp_path, capsys):
    root, _ = compared
    copy = tmp_path / "runs"
    shutil.copytree(root, copy)
    kept = {}
    for folder in copy.glob("tiny-*-s?"):
        kept[folder] = (folder / "pictures.npz").read_bytes()
        (folder / "pictures.npz").unlink()
    main(["--runs", str(copy), "--output", str(tmp_path / "seeds"), "--seeds-only"])
    assert not list(copy.glob("*/pictures.npz"))
    main(["--runs", str(copy), "--output", str(tmp_path / "out"), "--quiet"])
    assert capsys.readouterr().out.count("its pictures are looked at, once") == 4
    assert all((folder / "pictures.npz").read_bytes() == content for folder, content in kept.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runs {root} --methods kd", "--methods is for runs that are to be made; leave it out with --runs"),
        ("--runs {root}/no", "cannot read {root}/no: No such file or directory"),
        ("--runs {root}/tiny-kd-s0/model.json", "model.json is not the metrics.json of a finished run; leave it out"),
        ("--runs {root} --measure top1", "--measure top1: no such score; there are: map_voc07, map_area, map_coco"),
        ("--runs {root} --against nine", "--against nine: no such row"),
        ("--methods none --seeds 1,b", "--seeds '1,b' is not a comma-separated list of whole numbers"),
        ("--methods none --jobs -1", "--jobs is -1; give 1 or more"),
        ("--methods none,kd --against ktan", "--against ktan: no such row; there are: none, kd"),
        ("--methods none --measure top1", "--measure top1: no such score; there are: map_voc07, map_area, map_coco"),
        ("--methods kd,none,kd --jobs 2", "kd, seed 0: asked for twice, and both would go to {out}/shapes-kd-s0"),
    ],
)
def test_what_cannot_be_compared_is_told(compared, tmp_path, flags, message):
    root, _ = compared
    with pytest.raises(InputError) as stopped:
        main([*flags.format(root=root).split(), "--output", str(tmp_path / "out")])
    assert message.format(root=root, out=tmp_path / "out") in str(stopped.value)
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_a_seed_given_twice_is_one_run(tiny_file, tmp_path, capsys):
    main([*call(tiny_file, tmp_path, "none", "0,0,1"), "--print-jobs"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_printed_commands_run_alone_and_are_collected(tiny_file, tmp_path, capsys):
    flags = call(tiny_file, tmp_path, "none,kd", "3")
    main([*flags, "--print-jobs", "--jobs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not list(tmp_path.iterdir())
    threads, *words = shlex.split(lines[1])
    assert threads == f"OMP_NUM_THREADS={threads_each(1)}"
    start = words.index("--methods")
    assert " ".join(words[:start]) == command("compare")
    assert words[start : start + 4] == ["--methods", "kd", "--seeds", "3"]
    main(words[start:])
    assert capsys.readouterr().out.splitlines() == [f"kd, seed 3: training in {tmp_path}/tiny-kd-s3"]
    assert not (tmp_path / "table.md").exists()
    main([*flags, "--print-jobs"])
    assert len(capsys.readouterr().out.splitlines()) == 1, "one is done"
    main([*call(tiny_file, tmp_path, "kd", "3"), "--print-jobs"])
    assert capsys.readouterr() == ("", ""), "all are done: an array has no line to run"
    main([*flags, "--collect"])
    assert capsys.readouterr().out.splitlines()[2].startswith("| kd ")


def test_a_run_that_fails_is_named_and_the_others_go_on(tiny_file, tmp_path, capsys):
    # KTAN's stages need more updates than there are.
    flags = [*call(tiny_file, tmp_path, "ktan,none", "0"), "methods.ktan.warmup_steps=30"]
    with pytest.raises(InputError) as stopped:
        main([*flags, "--jobs", "1"])
    out = capsys.readouterr().out
    assert "ktan, seed 0: failed with status 2 (1 of 2, " in out
    assert "| none " in out
    assert str(stopped.value).startswith("1 of 2 runs failed, the others are finished: ktan, seed 0: error: ")
    assert f"(see {tmp_path}/tiny-ktan-s0.txt)" in str(stopped.value)


def test_ctrl_c_saves_all_and_the_same_command_goes_on(tiny_file, tmp_path):
    folders = [tmp_path / f"tiny-{name}-s0" for name in ("none", "kd")]
    flags = [*call(tiny_file, tmp_path, "none,kd", "0"), "train.epochs=5000", "--jobs", "2"]

    def interrupt() -> None:
        """Once both have begun to train."""
        logs = [folder / "log.jsonl" for folder in folders]
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and not all(log.exists() and log.stat().st_size for log in logs):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(Interrupted) as stopped:
        main(flags)
    watcher.join()
    assert (stopped.value.signal, stopped.value.folder) == (signal.SIGINT, tmp_path)
    for folder in folders:
        assert (folder / "last.pt").exists()
        assert not (folder / "metrics.json").exists()
        assert "stopped by SIGINT" in folder.with_suffix(".txt").read_text()
