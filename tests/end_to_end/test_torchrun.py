"""``torchrun``: two machines with a rendezvous train what one machine with two processes trains.

The machines are two agents on this one, each with a working folder of its own, so that what one of them reads of the
other's files would be missing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from detkt.engine.run_folder import RUN_FILES

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
SECONDS = 300  # of a busy machine; alone the whole test takes a tenth


@pytest.fixture
def agent(tmp_path):
    """``agent(folder, flags, arguments)``: a torchrun in *folder*, on one CPU thread, that calls detkt's module."""
    started = []

    def start(folder: Path, flags: list[str], arguments: list[str]) -> subprocess.Popen:
        folder.mkdir()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [*TORCHRUN, *flags, "-m", "detkt", "train-det", *arguments],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def finished(processes: list[subprocess.Popen]) -> list[str]:
    """What they told, once all have ended without an error."""
    told = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(told)
    return told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_machines_do_what_two_processes_of_one_do(agent, tiny_file, tmp_path):
    # Halves of a batch hold two pictures each, so that the processes have different ones to average over.
    arguments = ["--config", str(tiny_file), "--method", "kd", "--quiet", "--output", "run"]
    arguments += ["train.epochs=1", "train.stage_limit=3", "train.log_every=1"]
    alone = finished([agent(tmp_path / "alone", ["2", "--standalone"], arguments)])
    machines = [tmp_path / "first", tmp_path / "second"]
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"]
    told = finished([agent(folder, ["1", *meeting, "--rdzv-id", "1"], arguments) for folder in machines])

    summary = "kd on tiny, seed 0: "
    assert [sum(text.count(summary) for text in texts) for texts in (alone, told)] == [1, 1]
    written = [folder / "run" for folder in machines if any(folder.iterdir())]
    assert len(written) == 1, "process 0 alone writes, on its machine"
    run, other = written[0], tmp_path / "alone" / "run"
    assert all({path.name for path in folder.iterdir()} >= set(RUN_FILES) for folder in (run, other))
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (run, other)]
    assert [line["step"] for line in logs[0]] == [1, 2, 3]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["kd"] == pytest.approx(theirs["kd"], rel=1e-5)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert value.allclose(expected[name], rtol=1e-4, atol=1e-6), name
    scores = [json.loads((folder / "metrics.json").read_text())["map_voc07"] for folder in (run, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
