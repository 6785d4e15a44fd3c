"""Damaged bytes: the right rows or a miss, never a wrong feature, never an unexpected exception."""

import os
import random
import shutil
from collections import Counter

import crashmodel
import numpy as np
import pytest

from hftl.store.shard import BadShardError, RaggedArray, ShardFile, decode
from hftl.store.space import MissingRowsError

ROWS = np.arange(12)


@pytest.fixture
def space(tmp_path):
    space = crashmodel.open_space(tmp_path / "store")
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    crashmodel.commit(space, ROWS)
    return space


@pytest.fixture
def shard(space):
    (name,) = space.shard_sizes()
    return space.path / "shards" / name


class Reader:
    """What the store makes of bytes that stand under a shard's name; one open file, for speed."""

    def __init__(self, space, name, path):
        self.space, self.name = space, name
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.outcomes = Counter()

    def read(self, data: bytes) -> None:
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.outcomes[self._outcome()] += 1

    def _outcome(self) -> str:
        try:
            file = ShardFile(self.fd)
            file.check(self.name)
            shard = decode(file.map(), self.space.columns, self.space.id)
        except BadShardError:
            return "miss"
        return "right" if same(shard) else "wrong"


def same(shard) -> bool:
    equal = [np.array_equal(shard.digests, crashmodel.digests_of(ROWS))]
    for column, value in crashmodel.columns_of(ROWS).items():
        if isinstance(value, RaggedArray):
            equal.append(np.array_equal(shard.columns[column].values, value.values))
            equal.append(np.array_equal(shard.columns[column].lengths, value.lengths))
        else:
            equal.append(np.array_equal(shard.columns[column], value))
    return all(equal)


@pytest.fixture
def reader(tmp_path, space, shard):
    reader = Reader(space, shard.name, tmp_path / "copy")
    reader.read(shard.read_bytes())
    assert reader.outcomes == {"right": 1}
    reader.outcomes.clear()
    yield reader
    os.close(reader.fd)


def flips(data: bytes):
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def mutations(data: bytes, count: int):
    """Overwritten, lost, inserted, swapped and repeated bytes; never the same file."""
    random_ = random.Random(0)
    while count:
        damaged = bytearray(data)
        for _ in range(random_.choice([1, 1, 1, 2, 5])):
            a, b = sorted(random_.randrange(len(damaged) + 1) for _ in range(2))
            kind = random_.randrange(6)
            if kind == 0:
                damaged[a:b] = random_.randbytes(b - a)
            elif kind == 1:
                del damaged[a:b]
            elif kind == 2:
                damaged[a:a] = random_.randbytes(random_.randrange(1, 20))
            elif kind == 3:
                damaged[a:b] = bytes(b - a)
            elif kind == 4:
                del damaged[a:]
            else:
                damaged[a:a] = damaged[a:b]
            if not damaged:
                break
        if bytes(damaged) != data:
            count -= 1
            yield bytes(damaged)


def test_every_single_bit_flip_is_a_miss(reader, shard):
    data = shard.read_bytes()
    for damaged in flips(data):
        reader.read(damaged)
    assert reader.outcomes == {"miss": 8 * len(data)}


def test_twenty_thousand_mutations_are_misses(reader, shard):
    for damaged in mutations(shard.read_bytes(), 20_000):
        reader.read(damaged)
    assert reader.outcomes == {"miss": 20_000}


def test_without_the_checksum_wrong_features_would_be_served(reader, shard, monkeypatch):
    monkeypatch.setattr(ShardFile, "check", lambda self, name: None)
    data = shard.read_bytes()
    for damaged in [*flips(data), *mutations(data, 2000)]:
        reader.read(damaged)  # and still no other exception
    assert reader.outcomes["wrong"] > 1000
    assert reader.outcomes["miss"] > 1000


def test_the_whole_store_serves_right_rows_or_none(tmp_path, space, shard):
    """End to end, with fresh processes' eyes: quarantine, miss, computed again."""
    data = shard.read_bytes()
    random_ = random.Random(1)
    some = random_.sample(list(flips(data)), 30) + list(mutations(data, 70))
    for number, damaged in enumerate(some):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "store", root)
        victim = root / shard.relative_to(tmp_path / "store")
        victim.write_bytes(damaged)
        again = crashmodel.open_space(root)
        assert not again.known(crashmodel.digests_of(ROWS)).any()
        assert not victim.exists()
        assert [path.name.split(".")[0] for path in (again.path / "quarantine").iterdir()] == [shard.stem]
        crashmodel.commit(again, ROWS)
        assert crashmodel.wrong_rows(crashmodel.open_space(root), ROWS) == 0
        shutil.rmtree(root)


def test_a_damaged_description_is_written_anew_and_the_rows_stay(tmp_path, space):
    path = space.path / "space.json"
    data = path.read_bytes()
    random_ = random.Random(2)
    some = random_.sample(list(flips(data)), 50) + list(mutations(data, 50))
    for damaged in some:
        path.write_bytes(damaged)
        again = crashmodel.open_space(tmp_path / "store")
        again.create(crashmodel.INFO, crashmodel.COLUMNS)
        assert again.info == crashmodel.INFO
        assert again.known(crashmodel.digests_of(ROWS)).all()
        assert crashmodel.wrong_rows(again, ROWS) == 0
        assert crashmodel.open_space(tmp_path / "store").info == crashmodel.INFO


def test_damage_that_shows_only_when_rows_are_read_is_a_miss(space, shard):
    assert crashmodel.wrong_rows(space, ROWS) == 0
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.unlink()
    shard.write_bytes(bytes(data))
    with pytest.raises(MissingRowsError, match="run again") as caught:
        space.gather_arrays(crashmodel.digests_of(ROWS))
    assert caught.value.rows.tolist() == list(range(len(ROWS)))
    assert not space.known(crashmodel.digests_of(ROWS)).any()
    crashmodel.commit(space, ROWS)
    assert crashmodel.wrong_rows(space, ROWS) == 0


def test_a_disk_error_while_reading_is_a_miss(space, monkeypatch):
    def broken(self, name):
        raise BadShardError("it cannot be read (Input/output error)")

    monkeypatch.setattr(ShardFile, "check", broken)
    assert not crashmodel.open_space(space.path.parent.parent).known(crashmodel.digests_of(ROWS)).any()
