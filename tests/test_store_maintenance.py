"""Looking after a store: list, verify, compact, gc, clear; and the runs that use it meanwhile."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hftl.errors import StoreError
from hftl.store import compaction
from hftl.store.store import ColumnSpec, FeatureStore, Ragged, compact

COLUMNS = {"pooled": ColumnSpec("float32", (8,)), "tokens": ColumnSpec("float16", (), ragged=True)}


def digests(ids):
    halves = np.stack([np.asarray(ids, np.uint64), np.full(len(ids), 7, np.uint64)], 1)
    return halves.view(np.uint8).reshape(-1, 16)


def features(ids):
    ids = torch.as_tensor(list(ids), dtype=torch.int64)
    tokens = torch.repeat_interleave(ids, ids % 3)
    return {"pooled": ids[:, None].float() + torch.arange(8), "tokens": Ragged(tokens.half(), ids % 3)}


def commit(space, ids):
    space.commit(digests(ids), features(ids))


def assert_right(space, ids):
    got, want = space.gather(digests(ids)), features(ids)
    assert torch.equal(got["pooled"], want["pooled"])
    assert torch.equal(got["tokens"].values, want["tokens"].values)
    assert torch.equal(got["tokens"].lengths, want["tokens"].lengths)


def make(store, name, rows=100):
    identity = {"model": f"org/{name}", "commit": "c0ffee", "modality": "text"}
    space = store.space(identity, f"org/{name}")
    space.create({}, COLUMNS)
    commit(space, range(rows))
    return space


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "cache")


def used_at(space, when):
    os.utime(space.path / "last_used", (when, when))


def close(space):
    """As if the process that had it open were gone."""
    for lease in (space.path / "leases").iterdir():
        lease.unlink()


# -- ls, stats, verify -------------------------------------------------------------------------------------


def test_a_person_sees_what_each_space_is(store):
    old, new = make(store, "old"), make(store, "new", 50)
    commit(new, range(50, 70))
    used_at(old, 1_000_000_000)
    first, second = store.spaces()
    assert (first.label, second.label) == ("org/new", "org/old")
    assert (first.rows, first.shards, second.rows, second.shards) == (70, 2, 100, 1)
    assert (first.commit, first.modality, first.id) == ("c0ffee", "text", new.id)
    assert first.bytes == sum(path.stat().st_size for path in new.path.rglob("*") if path.is_file())
    assert second.last_used == 1_000_000_000
    assert json.loads(json.dumps(second.to_json()))["last_used"] == "2001-09-09T01:46:40Z"
    assert first.in_use
    stats = store.stats()
    assert (stats.spaces, stats.rows, stats.shards) == (2, 170, 3)
    assert stats.bytes == first.bytes + second.bytes


def test_an_empty_store(store):
    assert store.spaces() == []
    assert store.stats().bytes == 0
    assert store.verify() == []
    assert store.gc(0) == []
    assert store.clear() == []
    assert store.compact() == 0


def test_looking_is_not_using(store):
    space = make(store, "a")
    used_at(space, 1_000_000_000)
    close(space)
    store.spaces()
    store.verify()
    store.compact()
    (summary,) = store.spaces()
    assert summary.last_used == 1_000_000_000
    assert not summary.in_use


def test_verify_finds_damage_and_the_rows_are_computed_again(store):
    space = make(store, "a")
    commit(space, range(100, 150))
    names = list(space.shard_sizes())
    victim = next(space.path / "shards" / name for name in names if len(space.read_shard(name).digests) == 50)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(bytes(data))
    (report,) = store.verify()
    assert (report.rows, report.bad, report.orphans) == (100, [victim.name], 0)
    (report,) = store.verify()
    assert (report.rows, report.bad, report.space.quarantined) == (100, [], 1)
    fresh = store.space(space.identity, "x")
    assert fresh.known(digests(range(150))).tolist() == [True] * 100 + [False] * 50
    commit(fresh, range(100, 150))
    assert_right(fresh, range(150))


def test_verify_names_a_damaged_description(store):
    space = make(store, "a")
    (space.path / "space.json").write_text("{")
    (report,) = store.verify()
    assert report.bad == ["space.json"]
    (summary,) = store.spaces()
    assert summary.id == ""
    assert summary.rows == 100
    (report,) = store.verify()  # said once; the next run writes it anew, and the rows are still there
    assert report.bad == []
    fresh = store.space(space.identity, "x")
    fresh.create({}, COLUMNS)
    assert_right(fresh, range(100))


# -- compaction --------------------------------------------------------------------------------------------


def test_small_shards_become_one_and_rows_are_kept_once(store):
    space = make(store, "a", 10)
    reader = store.space(space.identity, "x")
    assert_right(reader, range(10))
    for begin in range(5, 100, 5):
        commit(space, range(begin, begin + 10))
    assert len(space.shard_sizes()) == 20
    assert compact(space) == 20
    assert len(space.shard_sizes()) == 1
    (summary,) = store.spaces()
    assert summary.rows == 105
    for each in (space, reader, store.space(space.identity, "x")):  # the second one listed the old shards
        assert_right(each, np.random.default_rng(0).permutation(105))
    assert compact(space) == 0


def test_few_shards_are_left_alone(store):
    space = make(store, "a")
    commit(space, range(100, 110))
    assert compact(space) == 0
    assert store.compact() == 2


def test_large_shards_are_left_alone_and_their_rows_not_copied(store, monkeypatch):
    space = make(store, "a", 1000)
    monkeypatch.setattr(compaction, "SMALL_BYTES", 5000)
    large = set(space.shard_sizes())
    for begin in range(990, 1050, 5):
        commit(space, range(begin, begin + 5))
    assert compact(space) == 12
    assert large < set(space.shard_sizes())
    assert store.spaces()[0].rows == 1050
    assert_right(store.space(space.identity, "x"), range(1050))


def test_merged_shards_have_a_bounded_size(store, monkeypatch):
    space = make(store, "a", 10)
    for begin in range(10, 300, 10):
        commit(space, range(begin, begin + 10))
    monkeypatch.setattr(compaction, "SHARD_BYTES", 5 * max(space.shard_sizes().values()))
    assert compact(space) == 30
    assert 6 <= len(space.shard_sizes()) <= 8
    assert_right(store.space(space.identity, "x"), range(300))


def test_a_reader_whose_shard_vanishes_looks_again(store):
    space = make(store, "a", 10)
    for begin in range(10, 100, 10):
        commit(space, range(begin, begin + 10))
    reader = store.space(space.identity, "x")
    assert reader.known(digests(range(100))).all()
    real = reader.read_shard
    pending = [True]

    def compact_first(name):
        if pending and pending.pop():
            compact(space)
        return real(name)

    reader.read_shard = compact_first
    assert_right(reader, range(100))


def test_equal_rows_in_another_order_survive_two_compactions_at_once(store, monkeypatch):
    """Two compactions that each take the other's result for a source must not remove the last copy."""
    one = make(store, "a", 0)
    commit(one, [1])
    commit(one, [0, 1])
    two = store.space(one.identity, "x")
    real = one.write_shard

    def write_then_other_compacts(shard):
        name = real(shard)
        compact(two, worthwhile=2)
        return name

    monkeypatch.setattr(compaction.filelock, "FileLock", lambda *args, **kwargs: _NoLock())
    one.write_shard = write_then_other_compacts
    compact(one, worthwhile=2)
    assert_right(store.space(one.identity, "x"), [0, 1])


class _NoLock:
    def acquire(self):
        raise NotImplementedError

    def release(self):
        pass


def test_a_damaged_shard_does_not_stop_a_compaction(store):
    space = make(store, "a", 10)
    commit(space, range(10, 20))
    commit(space, range(20, 30))
    fresh = store.space(space.identity, "x")
    victim = space.path / "shards" / sorted(space.shard_sizes())[1]
    lost = space.read_shard(victim.name).digests.copy()
    victim.write_bytes(b"nonsense")
    assert compact(fresh, worthwhile=2) == 2
    assert store.spaces()[0].rows == 20
    assert not fresh.known(lost).any()


# -- gc and clear ------------------------------------------------------------------------------------------


def test_gc_removes_the_least_recently_used_first(store):
    spaces = [make(store, name) for name in "abcd"]
    for space, when in zip(spaces, [3e8, 1e8, 4e8, 2e8], strict=True):
        used_at(space, when)
        close(space)
    size = store.stats().bytes
    assert store.gc(size) == []
    removed = store.gc(size // 2)
    assert [summary.label for summary in removed] == ["org/b", "org/d"]
    assert [summary.label for summary in store.spaces()] == ["org/c", "org/a"]
    assert store.stats().bytes <= size // 2
    assert_right(spaces[2], range(100))
    assert len(store.gc(0)) == 2
    assert list((store.root / "features").iterdir()) == []


def test_using_a_space_makes_it_recent(store):
    make(store, "a")
    space = make(store, "b")
    used_at(space, 1e8)
    before = time.time() - 5
    assert_right(store.space(space.identity, "x"), range(3))
    assert min(summary.last_used for summary in store.spaces()) > before


HOLD = """
import sys
from pathlib import Path
from hftl.store.store import FeatureStore
space = FeatureStore(Path(sys.argv[1])).space({"model": "org/a", "commit": "c0ffee", "modality": "text"}, "x")
print("ready", flush=True)
if sys.stdin.readline() == "die\\n":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hold(store):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("end", ["die", "return"])
def test_a_space_that_another_process_has_open_stays(store, end):
    space = make(store, "a")
    close(space)
    process = hold(store)
    used_at(space, 1e8)  # long ago: a run may train for days on what it has read
    assert store.gc(0) == []
    assert store.spaces()[0].in_use
    with pytest.raises(StoreError, match="in use: org-a-"):
        store.clear()
    process.communicate(f"{end}\n")
    assert not store.spaces()[0].in_use
    assert len(store.gc(0)) == 1


def test_another_hosts_lease_counts_for_a_day(store):
    space = make(store, "a")
    close(space)
    lease = space.path / "leases" / "ffffffff-1-00000000"
    lease.touch()
    assert store.gc(0) == []
    os.utime(lease, (time.time() - 90_000,) * 2)
    assert len(store.gc(0)) == 1


def test_a_space_is_given_back_when_its_object_goes(store):
    space = make(store, "a")
    assert store.spaces()[0].in_use
    del space
    assert not store.spaces()[0].in_use


def test_clear_by_name(store):
    spaces = {name: make(store, name) for name in "abcd"}
    for space in spaces.values():
        close(space)
    assert [summary.label for summary in store.clear("org/a")] == ["org/a"]
    assert [summary.label for summary in store.clear(spaces["b"].path.name)] == ["org/b"]
    assert [summary.label for summary in store.clear(spaces["c"].id[:10])] == ["org/c"]
    with pytest.raises(StoreError, match="is called 'org/e'; hftl cache ls lists them"):
        store.clear("org/e")
    assert len(store.clear()) == 1
    assert store.spaces() == []


def test_a_run_whose_space_is_cleared_goes_on(store):
    space = make(store, "a")
    assert len(store.clear(force=True)) == 1
    commit(space, range(100, 120))
    fresh = store.space(space.identity, "x")
    assert fresh.columns == COLUMNS
    assert fresh.known(digests(range(120))).tolist() == [False] * 100 + [True] * 20
    assert space.known(digests(range(120))).tolist() == [False] * 100 + [True] * 20
    assert_right(fresh, range(100, 120))


def test_gc_cleans_up_after_crashes(store):
    space = make(store, "a")
    (space.path / "quarantine").mkdir()
    (space.path / "quarantine" / "x").write_bytes(b"x")
    trash = store.root / "features" / ".trash-ffffffff-1-00000000"
    trash.mkdir()
    orphan = space.path / "shards" / ".tmp-ffffffff-1-00000000"
    orphan.write_bytes(b"x")
    os.utime(orphan, (1, 1))
    assert store.gc(1 << 40) == []
    assert not trash.exists()
    assert not orphan.exists()
    assert store.spaces()[0].quarantined == 0
    assert_right(space, range(100))
