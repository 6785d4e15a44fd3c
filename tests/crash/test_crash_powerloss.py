"""A power cut after any step of a commit, a creation or a compaction."""

import os
import shutil
from collections.abc import Iterator

import crashmodel
import numpy as np
import powerloss
import pytest

from hftl.store import space as space_module
from hftl.store.compaction import compact
from hftl.store.shard import ShardFile

ROWS = np.arange(60)


def record(root, files=None):
    """Create a space, commit, compact, commit; returns the log, and how long it was after each commit."""
    files = files or powerloss.Recorder()
    space = crashmodel.open_space(root, files=files)
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    commits = []
    for begin in range(0, 40, 10):
        crashmodel.commit(space, ROWS[begin : begin + 10])
        commits.append((len(files.log), ROWS[begin : begin + 10]))
    assert compact(space, worthwhile=2) == 4
    crashmodel.commit(space, ROWS[40:])
    commits.append((len(files.log), ROWS[40:]))
    return files.log, commits


def cut_everywhere(tmp_path, files=None, worst_only=False) -> Iterator[str]:
    """What is broken after some power cut."""
    root = tmp_path / "store"
    log, commits = record(root, files)
    seen = set()
    for length, state in powerloss.states(log, worst_only):
        committed = np.concatenate([rows for end, rows in commits if end <= length] or [ROWS[:0]])
        key = (len(committed), *sorted((str(p), d) for p, d in state.items() if d is not None))
        if key in seen:
            continue
        seen.add(key)
        after = tmp_path / "after"
        powerloss.build(state, tmp_path, after)
        yield from [f"step {length}: {x}" for x in crashmodel.violations(after / "store", committed, ROWS)]
        yield from [f"step {length}, later: {x}" for x in go_on(after / "store")]
        shutil.rmtree(after)
    assert len(seen) > (6 if worst_only else 100)


def go_on(root) -> list[str]:
    """The next run computes what is missing."""
    space = crashmodel.open_space(root)
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    missing = ROWS[~space.known(crashmodel.digests_of(ROWS))]
    crashmodel.commit(space, missing)
    return crashmodel.violations(root, ROWS, ROWS[:0])


@pytest.fixture
def after_folder(tmp_path, monkeypatch):
    (tmp_path / "after").mkdir()
    real = powerloss.build
    monkeypatch.setattr(powerloss, "build", lambda s, a, b: (b.mkdir(exist_ok=True), real(s, a, b)))
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # the checks need no real disk
    return tmp_path


def test_any_power_cut_leaves_what_was_committed(after_folder):
    assert list(cut_everywhere(after_folder)) == []


class KilledOnce(powerloss.Recorder):
    """A first process that is killed at its ``kill_at``-th step; a second one then does all of the work."""

    def __init__(self, kill_at: int) -> None:
        super().__init__()
        self.kill_at = kill_at

    def fsync_folder(self, path):
        self.kill_at -= 1
        if self.kill_at == 0:
            raise KeyboardInterrupt
        super().fsync_folder(path)


@pytest.mark.parametrize("kill_at", range(1, 6))
def test_what_a_killed_creator_left_unsynced_is_synced_by_the_next(after_folder, kill_at):
    files = KilledOnce(kill_at)
    with pytest.raises(KeyboardInterrupt):
        crashmodel.open_space(after_folder / "store", files=files).create(crashmodel.INFO, crashmodel.COLUMNS)
    assert list(cut_everywhere(after_folder, files, worst_only=True)) == []


class NoFsync(powerloss.Recorder):
    def fsync(self, fd):
        pass


class NoFolderFsync(powerloss.Recorder):
    def fsync_folder(self, path):
        pass


@pytest.mark.parametrize("files", [NoFsync, NoFolderFsync])
def test_the_test_notices_a_missing_fsync(after_folder, files):
    assert any("committed rows lost" in what for what in cut_everywhere(after_folder, files()))


def test_the_test_notices_a_missing_rename(after_folder, monkeypatch):
    def write_in_place(files, path, parts, mode, *, new=False):
        fd = files.open(path, mode)
        for part in parts:
            files.write(fd, memoryview(part).cast("B"))
        files.fsync(fd)
        files.close(fd)
        files.fsync_folder(path.parent)

    monkeypatch.setattr(space_module, "write_atomically", write_in_place)
    recorder = powerloss.Recorder()
    recorder.write = lambda fd, data: whole_write(recorder, fd, data)
    assert any("before they were whole" in what for what in cut_everywhere(after_folder, recorder))


def whole_write(recorder, fd, data):
    done = 0
    while done < len(data):
        done += powerloss.Recorder.write(recorder, fd, data[done:])
    return done


def test_the_test_notices_a_missing_checksum(after_folder, monkeypatch):
    # Without fsync, a name may reach the disk before its bytes; without a checksum, these zeros are served.
    monkeypatch.setattr(ShardFile, "check", lambda self, name: None)
    assert any("wrong rows served" in what for what in cut_everywhere(after_folder, NoFsync()))
