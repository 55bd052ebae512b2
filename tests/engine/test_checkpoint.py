"""Checkpoints: written whole or not at all, read without running anything, with the random state they carry."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource

import numpy as np
import pytest
import torch

from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.base.seeds import random_state, restore_random_state, seed_everything
from detkt.engine.checkpoint import keep_last, load_checkpoint, older_checkpoints, prune, save_checkpoint

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "half": torch.tensor([1.5], dtype=torch.bfloat16)},
    "step": 7,
    "seconds": 1.25,
    "names": ["x", None, True],
}


def raises(error):
    def write(path):
        path.write_text("half of it")
        raise error

    return write


@pytest.fixture
def kept(tmp_path):
    """A folder that holds a good checkpoint and nothing else; it must be so at the end."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    found = load_checkpoint(path)
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])
    assert found["weights"]["half"].dtype == torch.bfloat16
    assert {key: found[key] for key in ("step", "seconds", "names")} == {
        key: STATE[key] for key in ("step", "seconds", "names")
    }
    save_checkpoint(path, {**STATE, "step": 8})
    assert load_checkpoint(path)["step"] == 8
    assert os.listdir(tmp_path) == ["last.pt"]


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before(kept):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match=r"cannot write .*last\.pt: No space left on device; free space"):
        write_atomically(kept, raises(full))


def test_a_disk_that_fills_up_under_torch_leaves_the_checkpoint_before(kept):
    """A limit on the size of files makes torch's own writer fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*last\.pt: .*; free space") as refused:
            save_checkpoint(kept, {"weights": torch.zeros(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_while_writing_leaves_the_checkpoint_before(kept, stop):
    with pytest.raises(stop):
        write_atomically(kept, raises(stop()))


def test_a_failing_save_leaves_the_checkpoint_before(kept, monkeypatch):
    def save(state, path):
        path.write_bytes(b"PK")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . file write failed\nframe #0")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(InputError, match="file write failed; free space") as refused:
        save_checkpoint(kept, STATE)
    assert "\n" not in str(refused.value)


def test_a_failing_rename_or_flush_leaves_the_checkpoint_before(kept, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(InputError, match="Input/output error"):
                save_checkpoint(kept, STATE)


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    """A process that is killed cannot remove its temporary file: it must be the next write's to replace."""
    path = tmp_path / "last.pt"

    class Killed(BaseException):
        pass

    left = []

    def write(temporary):
        left.append(temporary)
        raise Killed

    with pytest.raises(Killed):
        write_atomically(path, write)
    left[0].write_bytes(b"half")
    save_checkpoint(path, STATE)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_file_is_flushed_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, do=original: (calls.append(name), do(*a)))
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("parent", ["nowhere", "file"])
def test_a_folder_that_is_none_is_one_line(tmp_path, parent):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*last\.pt: "):
        save_checkpoint(tmp_path / parent / "last.pt", STATE)


# -- reading ---------------------------------------------------------------------------------------------------------


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_pickled_code_is_refused_and_not_run(tmp_path, write):
    path, trap = tmp_path / "last.pt", tmp_path / "sprung"
    write({"format": 1, "step": Trap(trap)}, path)
    with pytest.raises(InputError, match=r"last\.pt is damaged or holds pickled code, which is never run") as refused:
        load_checkpoint(path)
    assert not trap.exists()
    assert "\n" not in str(refused.value)
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap works"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"checkpoint .*last\.pt is damaged"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    """In a weight torch reads it as another number, and says nothing."""
    path, unnoticed = tmp_path / "last.pt", []
    save_checkpoint(path, {"weights": torch.arange(100.0)})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            state = load_checkpoint(path)
        except InputError as refused:
            assert "last.pt is damaged: it is not what was written; resume from another checkpoint" in str(refused)
        else:
            unnoticed.append(place)
            assert torch.equal(state["weights"], torch.arange(100.0))
    # Within the word that announces the checksum: the checksum is not looked for, but nothing else can be wrong.
    assert unnoticed == list(range(len(content) - 16, len(content) - 4))


def test_a_checkpoint_stays_a_file_of_torch(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


@pytest.mark.parametrize("content", [b"not a checkpoint\n", bytes(1000), bytes(range(256)) * 4, b"\x80\x02]q\x00."])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"last\.pt is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("state", [{"format": 99}, {"weights": {}}, [1, 2]])
def test_other_formats_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(InputError, match="not written by this version of detkt"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no checkpoint at .*nothing to resume"):
        load_checkpoint(tmp_path / name)


# -- older ones -----------------------------------------------------------------------------------------------------


def steps_in(folder):
    """Name -> step of every checkpoint in *folder*."""
    return {path.name: load_checkpoint(path)["step"] for path in folder.glob("*.pt")}


@pytest.mark.parametrize("links", [True, False])
def test_the_last_checkpoint_is_kept_under_the_name_of_its_step(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", raises_permission)
    for step in (5, 10):
        save_checkpoint(tmp_path / "last.pt", {**STATE, "step": step})
        keep_last(tmp_path, step)
        keep_last(tmp_path, step)  # a run that was killed right after does it again
    save_checkpoint(tmp_path / "last.pt", {**STATE, "step": 15})
    assert steps_in(tmp_path) == {"last.pt": 15, "checkpoint-5.pt": 5, "checkpoint-10.pt": 10}
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10.pt", "checkpoint-5.pt", "last.pt"]


def raises_permission(*arguments):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_what_a_killed_process_left_does_not_lead_into_another_checkpoint(tmp_path, monkeypatch):
    """It may be a second name of a checkpoint's file: to write through it would change that one."""
    save_checkpoint(tmp_path / "checkpoint-5.pt", {**STATE, "step": 5})
    os.link(tmp_path / "checkpoint-5.pt", tmp_path / ".checkpoint-10.pt.tmp")
    save_checkpoint(tmp_path / "last.pt", {**STATE, "step": 10})
    monkeypatch.setattr(os, "link", raises_permission)
    keep_last(tmp_path, 10)
    assert steps_in(tmp_path) == {"last.pt": 10, "checkpoint-5.pt": 5, "checkpoint-10.pt": 10}


@pytest.mark.parametrize(
    ("keep", "step", "left"),
    [
        (1, 30, []),
        (2, 30, [20]),
        (3, 30, [9, 20]),
        (9, 30, [5, 9, 20]),
        (9, 20, [5, 9]),  # resumed from 9 and now at 20: that 20 is of the course before
        (2, 10, [9]),
    ],
)
def test_pruning(tmp_path, keep, step, left):
    for number in (5, 9, 20):
        (tmp_path / f"checkpoint-{number}.pt").touch()
    for name in ("last.pt", "checkpoint-best.pt", "checkpoint-5.txt"):
        (tmp_path / name).touch()
    prune(tmp_path, step, keep)
    assert sorted(older_checkpoints(tmp_path)) == sorted(tmp_path / f"checkpoint-{number}.pt" for number in left)
    assert all((tmp_path / name).exists() for name in ("last.pt", "checkpoint-best.pt", "checkpoint-5.txt"))


# -- random state ----------------------------------------------------------------------------------------------------


def draw():
    return (
        [random.random(), random.gauss(0, 1)],
        [np.random.rand(), np.random.standard_normal()],  # the global generator is what is tested
        torch.rand(3).tolist() + torch.randn(5).tolist(),
    )


def test_random_state_goes_through_a_checkpoint(tmp_path):
    seed_everything(3)
    draw()  # an odd number of normal numbers: one more is cached
    save_checkpoint(tmp_path / "last.pt", {"random": random_state()})
    expected = draw()
    seed_everything(4)
    assert draw() != expected
    restore_random_state(load_checkpoint(tmp_path / "last.pt")["random"])
    assert draw() == expected


def test_seeds_fix_every_generator():
    first, second, other = [(seed_everything(seed), draw())[1] for seed in (5, 5, 6)]
    assert first == second
    for ours, theirs in zip(first, other, strict=True):
        assert ours != theirs
