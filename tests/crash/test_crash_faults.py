"""File calls that fail: a full disk, a broken one, an interrupted call, a short write."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import crashmodel
import numpy as np
import pytest

from hftl.errors import StoreError
from hftl.store import files as files_module
from hftl.store.compaction import compact
from hftl.store.files import FileCalls


class Failing(FileCalls):
    """Fails every ``every``-th call."""

    def __init__(self, every: int, number: int) -> None:
        self.every, self.number = every, number
        self.calls = 0
        self.healthy = False

    def _count(self) -> None:
        self.calls += 1
        if not self.healthy and self.calls % self.every == 0:
            raise OSError(self.number, os.strerror(self.number))


def _failing(name):
    def call(self, *args):
        self._count()
        return getattr(super(Failing, self), name)(*args)

    return call


CALLS = ["open", "write", "fsync", "close", "replace", "place", "fsync_folder", "make_folder", "unlink"]
for _name in CALLS:
    setattr(Failing, _name, _failing(_name))


def test_every_call_of_the_file_layer_can_fail():
    assert sorted(CALLS) == sorted(name for name in vars(FileCalls) if not name.startswith("_"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=errno.errorcode.get)
@pytest.mark.parametrize("every", range(1, 16))
def test_every_kth_call_fails(tmp_path, every, number):
    files = Failing(every, number)
    space = crashmodel.open_space(tmp_path, files=files)
    committed = [np.arange(0)]
    errors = []
    for step in range(12):
        ids = np.arange(step * 10, step * 10 + 10)
        try:
            space.create(crashmodel.INFO, crashmodel.COLUMNS)
            crashmodel.commit(space, ids)
            committed.append(ids)
            if step % 4 == 3:
                compact(space, worthwhile=2)
        except StoreError as error:
            errors.append(str(error))
        assert crashmodel.violations(tmp_path, np.concatenate(committed), np.arange(120)) == []
    for message in errors:
        assert "\n" not in message
        assert os.strerror(number) in message
        assert "nothing that was stored is lost" in message
    assert errors or every > 1
    # The disk is well again: the same process goes on with the same space.
    files.healthy = True
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    missing = np.arange(120)[~space.known(crashmodel.digests_of(np.arange(120)))]
    crashmodel.commit(space, missing)
    assert crashmodel.violations(tmp_path, np.arange(120), []) == []


@pytest.mark.parametrize("every", range(2, 16))
def test_an_interrupted_call_is_made_again(tmp_path, every):
    class InterruptedBeforeTheRename(Failing):
        def close(self, fd):  # Linux has closed it when it says EINTR: never again
            return FileCalls.close(self, fd)

    space = crashmodel.open_space(tmp_path, files=InterruptedBeforeTheRename(every, errno.EINTR))
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    for begin in range(0, 100, 10):
        crashmodel.commit(space, np.arange(begin, begin + 10))
    assert crashmodel.violations(tmp_path, np.arange(100), []) == []


def test_short_writes_are_continued(tmp_path):
    class Short(FileCalls):
        def write(self, fd, data):
            return super().write(fd, data[:7])

    space = crashmodel.open_space(tmp_path, files=Short())
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    crashmodel.commit(space, np.arange(100))
    assert crashmodel.violations(tmp_path, np.arange(100), []) == []


@pytest.mark.parametrize("failing", ["write", "fsync", "replace", "fsync_folder"])
def test_a_failed_commit_leaves_no_temporary_file(tmp_path, monkeypatch, failing):
    class Full(FileCalls):
        pass

    space = crashmodel.open_space(tmp_path, files=Full())
    space.create(crashmodel.INFO, crashmodel.COLUMNS)

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Full, failing, fail, raising=False)
    with pytest.raises(StoreError, match=r"No space left on device; free some space \(hftl cache gc\)"):
        crashmodel.commit(space, np.arange(10))
    assert crashmodel.temporary_files(tmp_path) == []


def test_a_failed_fsync_is_not_tried_again(tmp_path):
    # After a failed fsync the kernel may have dropped the data and say yes the second time.
    class Broken(FileCalls):
        calls = 0

        def fsync(self, fd):
            self.calls += 1
            raise OSError(errno.EIO, "Input/output error")

    files = Broken()
    with pytest.raises(StoreError, match="Input/output error"):
        crashmodel.open_space(tmp_path, files=files).create(crashmodel.INFO, crashmodel.COLUMNS)
    assert files.calls == 1


def test_orphans_of_the_dead_go_and_those_of_the_living_stay(tmp_path, monkeypatch):
    space = crashmodel.open_space(tmp_path)
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = files_module.host_tag()
    shards = space.path / "shards"
    keep = [shards / f".tmp-{here}-{os.getpid()}-00000000", shards / ".tmp-ffffffff-1-00000000"]
    gone = [
        shards / f".tmp-{here}-{dead.pid}-00000000",
        space.path / f".tmp-{here}-{dead.pid}-00000001",
        shards / ".tmp-ffffffff-1-00000001",
    ]
    for path in keep + gone:
        path.write_bytes(b"half a shard")
    os.utime(gone[-1], (1, 1))  # another host's, but nobody has touched it for an hour
    crashmodel.open_space(tmp_path).create(crashmodel.INFO, crashmodel.COLUMNS)
    assert sorted(crashmodel.temporary_files(tmp_path)) == sorted(keep)


def test_a_writer_whose_file_was_cleaned_away_starts_over(tmp_path):
    class Cleaned(FileCalls):
        """Another host's clean-up takes the temporary file of a writer that slept for an hour."""

        done = False

        def replace(self, source, target):
            if not self.done:
                self.done = True
                source.unlink()
            super().replace(source, target)

    space = crashmodel.open_space(tmp_path, files=Cleaned())
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    crashmodel.commit(space, np.arange(10))
    assert crashmodel.violations(tmp_path, np.arange(10), []) == []


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
import crashmodel
from hftl.errors import StoreError
from hftl.store.shard import ColumnSpec

root = Path(sys.argv[1])
space = crashmodel.open_space(root)
space.create(crashmodel.INFO, crashmodel.COLUMNS)
crashmodel.commit(space, np.arange(100))
free_before = len(crashmodel.temporary_files(root))
FILL
errors = []
try:
    crashmodel.commit(space, np.arange(100, 50_000))
except StoreError as error:
    errors.append(str(error))
broken = crashmodel.violations(root, np.arange(100), np.arange(100, 50_000))
left = len(crashmodel.temporary_files(root))
FREE
crashmodel.commit(space, np.arange(100, 50_000))
broken += crashmodel.violations(root, np.arange(50_000), [])
print(json.dumps({"errors": errors, "broken": broken, "left": left}))
"""


def run_full_disk(root, fill, free) -> dict:
    code = FULL_DISK.replace("FILL", fill).replace("FREE", free)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_file_size_limit_is_a_clear_error_and_the_run_goes_on(tmp_path):
    hard = "resource.getrlimit(resource.RLIMIT_FSIZE)[1]"
    report = run_full_disk(
        tmp_path,
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {hard}))",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({hard}, {hard}))",
    )
    assert report["broken"] == []
    assert report["left"] == 0
    assert len(report["errors"]) == 1
    assert "File too large; free some space (hftl cache gc)" in report["errors"][0]


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; the file size limit is tested for everybody")
    try:
        report = run_full_disk(
            disk,
            "(root / 'other').write_bytes(bytes(3_600_000))",
            "(root / 'other').unlink()",
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert report["broken"] == []
    assert report["left"] == 0
    assert len(report["errors"]) == 1
    assert "No space left on device; free some space (hftl cache gc)" in report["errors"][0]
