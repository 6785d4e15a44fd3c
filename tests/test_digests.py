"""Digests of rows, and the index that remembers those of unchanged files."""

import hashlib
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftl.errors import StoreError
from hftl.store import stat_index
from hftl.store.digests import digest_bytes, digest_texts
from hftl.store.stat_index import RACY_NS, StatIndex, digest_files


def expected_file(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, person=b"hftl-file").digest()


def test_texts_are_blake2b_of_length_prefixed_utf8():
    rows = [("héllo", "wörld"), ("x",), ("",)]
    digests = digest_texts(rows)
    assert digests.shape == (3, 16)
    assert digests.dtype == np.uint8
    for row, digest in zip(rows, digests, strict=True):
        data = b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in row)
        assert digest.tobytes() == hashlib.blake2b(data, digest_size=16, person=b"hftl-text").digest()


@given(st.lists(st.lists(st.text(), min_size=1, max_size=3).map(tuple), unique=True))
def test_different_rows_have_different_digests(rows):
    assert len({digest.tobytes() for digest in digest_texts(rows)}) == len(rows)


def test_rows_that_join_to_the_same_text_differ():
    rows = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("é",), ("e\u0301",), ("\ud800",)]
    assert len({digest.tobytes() for digest in digest_texts(rows)}) == len(rows)


def test_no_rows(tmp_path):
    assert digest_texts([]).shape == (0, 16)
    assert digest_files([], StatIndex(tmp_path / "index")).shape == (0, 16)


def test_a_path_and_its_bytes_have_the_same_digest(tmp_path):
    big = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(big)
    (tmp_path / "b").write_bytes(b"")
    digests = digest_files([tmp_path / "a", big, str(tmp_path / "b"), b""], StatIndex(tmp_path / "index"))
    assert [d.tobytes() for d in digests] == [expected_file(big)] * 2 + [expected_file(b"")] * 2
    assert digest_bytes(big) == expected_file(big)


def test_texts_and_files_are_different_domains():
    data = (1).to_bytes(8, "little") + b"a"
    assert digest_texts([("a",)])[0].tobytes() != digest_bytes(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"gone\.jpg"):
        digest_files([tmp_path / "gone.jpg"], StatIndex(tmp_path / "index"))


# -- the index ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    paths = [folder / f"{i}.jpg" for i in range(50)]
    for i, path in enumerate(paths):
        path.write_bytes(f"content {i}".encode())
    return paths


@pytest.fixture
def later(monkeypatch):
    """Moves the index's clock: files are at rest without a wait."""
    real = stat_index._now_ns

    def move(seconds: float) -> None:
        monkeypatch.setattr(stat_index, "_now_ns", lambda: real() + int(seconds * 1e9))

    return move


@pytest.fixture
def reads(monkeypatch):
    """The paths whose content was read."""
    seen: list[str] = []
    real = stat_index.read_digest
    monkeypatch.setattr(stat_index, "read_digest", lambda path: (seen.append(path), real(path))[1])
    return seen


def right(paths) -> list[bytes]:
    return [expected_file(Path(path).read_bytes()) for path in paths]


def ask(index: StatIndex, paths) -> list[bytes]:
    return [digest.tobytes() for digest in digest_files(paths, index)]


def test_unchanged_files_are_read_once(tmp_path, files, later, reads):
    later(10)
    assert ask(StatIndex(tmp_path / "index"), files) == right(files)
    assert len(reads) == 50
    assert ask(StatIndex(tmp_path / "index"), files[::-1] + files[:3]) == right(files[::-1] + files[:3])
    assert len(reads) == 50


def test_only_what_changed_is_read_again(tmp_path, files, later, reads):
    later(10)
    index = StatIndex(tmp_path / "index")
    ask(index, files)
    reads.clear()
    files[3].write_bytes(b"longer than before")
    files[4].write_bytes(b"CONTENT 4")  # the same size
    before = files[5].stat()
    files[5].write_bytes(b"CONTENT 5")
    os.utime(files[5], ns=(before.st_atime_ns, before.st_mtime_ns))  # rsync -t, cp -p: the mtime lies
    files[6].unlink()
    files[7].rename(files[6])
    files[7].write_bytes(b"new")
    later(20)
    assert ask(index, files) == right(files)
    assert sorted(reads) == [str(files[i]) for i in range(3, 8)]
    later(30)
    assert ask(index, files) == right(files)
    assert len(reads) == 5


def test_a_file_that_is_still_warm_is_not_trusted(tmp_path, files, reads):
    index = StatIndex(tmp_path / "index")
    ask(index, files)
    ask(index, files)
    assert len(reads) == 100


@pytest.mark.parametrize("seed", range(4))
def test_a_rewrite_within_one_tick_is_noticed(tmp_path, monkeypatch, seed):
    """A file system whose clock ticks every 2 s, same inode, same size: the hardest case for an index."""
    random_ = random.Random(seed)
    clock = [10**18]
    times = {}
    paths = [str(tmp_path / name) for name in "abc"]
    tick = 2_000_000_000

    def write(path):
        Path(path).write_bytes(random_.choice([b"0", b"1", b"2"]))
        times[path] = clock[0] // tick * tick

    monkeypatch.setattr(stat_index, "_now_ns", lambda: clock[0])
    monkeypatch.setattr(stat_index, "_status_of", lambda path: (1, times[path], times[path], 7))
    reads = []
    real = stat_index.read_digest
    monkeypatch.setattr(stat_index, "read_digest", lambda path: (reads.append(path), real(path))[1])
    index = StatIndex(tmp_path / "index")
    for path in paths:
        write(path)
    for _ in range(300):
        clock[0] += random_.choice([0, 0, 1, 10**8, 10**9, 3 * 10**9])
        if random_.random() < 0.4:
            write(random_.choice(paths))
        assert ask(index, paths) == right(paths)
    assert len(reads) < 900  # and yet it does remember


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, files, later, monkeypatch):
    later(10)
    real = stat_index.read_digest

    def read_then_change(path):
        digest = real(path)
        if path == str(files[0]):
            Path(path).write_bytes(os.urandom(20))
        return digest

    index = StatIndex(tmp_path / "index")
    with monkeypatch.context() as patched:
        patched.setattr(stat_index, "read_digest", read_then_change)
        ask(index, files)
    assert ask(index, files) == right(files)


def test_a_damaged_index_is_rebuilt(tmp_path, files, later):
    later(10)
    path = tmp_path / "index"
    index = StatIndex(path)
    want = ask(index, files)
    whole = path.read_bytes()
    random_ = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        kind = random_.randrange(3)
        if kind == 0:
            damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del damaged[random_.randrange(len(damaged)) :]
        else:
            at = random_.randrange(len(damaged))
            damaged[at : at + 64] = os.urandom(64)
        path.write_bytes(bytes(damaged))
        assert ask(index, files) == want
    assert ask(StatIndex(path), files) == want


def test_what_other_processes_remember_is_kept(tmp_path, files, later, reads):
    later(10)
    one, other = StatIndex(tmp_path / "index"), StatIndex(tmp_path / "index")
    ask(one, files[:20])
    ask(other, files[20:])
    ask(one, files)
    assert len(reads) == 50


def test_an_index_that_cannot_be_written_costs_only_time(tmp_path, files, later, reads):
    later(10)
    (tmp_path / "file").write_bytes(b"")
    index = StatIndex(tmp_path / "file" / "index")  # its folder cannot exist
    assert ask(index, files) == ask(index, files) == right(files)
    assert len(reads) == 100


def test_long_unseen_files_are_forgotten(tmp_path, files, later, reads):
    index = StatIndex(tmp_path / "index")
    later(10)
    ask(index, files)
    size = (tmp_path / "index").stat().st_size
    later(100 * 86_400)
    files[0].write_bytes(b"x")
    later(100 * 86_400 + 10)
    ask(index, files[:1])
    assert (tmp_path / "index").stat().st_size < size / 5
    reads.clear()
    assert ask(index, files) == right(files)
    assert len(reads) == 49


def _use(index, folder, seed):
    stat_index._now_ns = lambda real=stat_index._now_ns: real() + RACY_NS * 5
    paths = sorted(Path(folder).iterdir())
    random.Random(seed).shuffle(paths)
    for i in range(0, 50, 5):
        assert ask(StatIndex(index), paths[i : i + 5]) == right(paths[i : i + 5])


def test_concurrent_processes(tmp_path, files, later, reads):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_use, args=(tmp_path / "index", files[0].parent, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    later(10)
    assert ask(StatIndex(tmp_path / "index"), files) == right(files)
    assert len(reads) < 50  # most of it survived the race
    assert not list(tmp_path.glob(".tmp*"))
