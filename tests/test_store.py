"""The feature store: what goes in comes out, for whom and in what order it was asked."""

import itertools
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
import xxhash

from hftl.errors import StoreError
from hftl.store import gather as gather_module
from hftl.store.digests import digest_texts
from hftl.store.lookup import RowIndex
from hftl.store.store import (
    ColumnSpec,
    FeatureStore,
    MissingRowsError,
    NonFiniteError,
    Ragged,
    cache_root,
)

N = 200
COLUMNS = {
    "pooled": ColumnSpec("float32", (5,)),
    "half": ColumnSpec("float16", (2, 3)),
    "brain": ColumnSpec("bfloat16", (4,)),
    "double": ColumnSpec("float64", ()),
    "tokens": ColumnSpec("bfloat16", (3,), ragged=True),
    "ids": ColumnSpec("int64", (), ragged=True),
    "truncated": ColumnSpec("bool", ()),
    "small": ColumnSpec("int8", (1,)),
    "nothing": ColumnSpec("float32", (0,)),
}


def digests(n: int = N, prefix: str = "row") -> np.ndarray:
    return digest_texts([(f"{prefix} {i}",) for i in range(n)])


def features(n: int = N) -> dict:
    generator = torch.Generator().manual_seed(n)
    lengths = torch.randint(0, 4, (n,), generator=generator)
    total = int(lengths.sum())
    return {
        "pooled": torch.randn(n, 5, generator=generator),
        "half": torch.randn(n, 2, 3, generator=generator).half(),
        "brain": torch.randn(n, 4, generator=generator).bfloat16(),
        "double": torch.randn(n, generator=generator, dtype=torch.float64),
        "tokens": Ragged(torch.randn(total, 3, generator=generator).bfloat16(), lengths),
        "ids": Ragged(torch.randint(-9, 9, (total,), generator=generator), lengths),
        "truncated": torch.rand(n, generator=generator) > 0.5,
        "small": torch.randint(-128, 127, (n, 1), generator=generator).to(torch.int8),
        "nothing": torch.zeros(n, 0),
    }


def take(value, rows):
    """The plain way to pick rows."""
    if not isinstance(value, Ragged):
        return torch.stack([value[i] for i in rows]) if len(rows) else value[:0]
    parts = list(torch.split(value.values, value.lengths.tolist()))
    values = torch.cat([parts[i] for i in rows]) if len(rows) else value.values[:0]
    return Ragged(values, value.lengths[list(rows)])


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        pairs = [(got[name], value)]
        if isinstance(value, Ragged):
            pairs = [(got[name].values, value.values), (got[name].lengths, value.lengths)]
        for a, b in pairs:
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert torch.equal(a, b)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "cache")


@pytest.fixture
def space(store):
    space = store.space({"model": "some/model"}, "some/model")
    space.create({"split": [1, 2]}, COLUMNS)
    return space


def fill(space, pieces=(0, 70, 71, 200)):
    whole = features()
    for begin, end in itertools.pairwise(pieces):
        part = {name: take(value, range(begin, end)) for name, value in whole.items()}
        space.commit(digests()[begin:end], part, None)
    return whole


def again(space):
    """The same space, as another process sees it."""
    return FeatureStore(space.path.parent.parent).space(space.identity, "any label")


@pytest.mark.parametrize("order", ["same", "reversed", "shuffled with duplicates", "one", "none"])
def test_rows_come_back_bit_for_bit_in_the_order_asked(space, order):
    whole = fill(space)
    chosen = {
        "same": list(range(N)),
        "reversed": list(range(N))[::-1],
        "shuffled with duplicates": np.random.default_rng(0).integers(0, N, 500).tolist(),
        "one": [150],
        "none": [],
    }[order]
    want = {name: take(value, chosen) for name, value in whole.items()}
    for reader in (space, again(space)):
        assert_same(reader.gather(digests()[chosen]), want)


def test_small_copies_and_small_shards_give_the_same(space, monkeypatch):
    monkeypatch.setattr(gather_module, "SHARD_BYTES", 3000)
    monkeypatch.setattr(gather_module, "_COPY_BYTES", 100)
    whole = fill(space)
    assert len(space.shard_sizes()) == 8
    chosen = np.random.default_rng(0).permutation(N)
    want = {name: take(value, chosen.tolist()) for name, value in whole.items()}
    assert_same(again(space).gather(digests()[chosen]), want)


def test_known(space):
    assert not space.known(digests()).any()
    other = again(space)
    fill(space, (0, 50))
    for reader in (space, other, again(space)):  # also one that had looked before
        assert reader.known(digests()).tolist() == [True] * 50 + [False] * 150
    assert not space.known(digests(5, "other")).any()
    assert space.known(digests()[:0]).shape == (0,)


def test_a_missing_row_is_an_error_that_says_which(space):
    fill(space, (0, 50))
    with pytest.raises(MissingRowsError, match="2 of 4 rows are not in") as caught:
        space.gather(digests()[[3, 60, 4, 61]])
    assert caught.value.rows.tolist() == [1, 3]


def test_a_shard_is_a_safetensors_file_with_named_columns(space):
    whole = fill(space, (0, N))
    (name,) = space.shard_sizes()
    with safetensors.safe_open(space.path / "shards" / name, "pt") as file:
        assert torch.equal(file.get_tensor("brain"), whole["brain"])
        assert torch.equal(file.get_tensor("tokens"), whole["tokens"].values)
        assert torch.equal(file.get_tensor("tokens.lengths"), whole["tokens"].lengths)
        assert np.array_equal(file.get_tensor("digests").numpy(), digests())
        assert file.metadata()["space"] == space.id
    data = (space.path / "shards" / name).read_bytes()
    assert name == xxhash.xxh3_128(data).hexdigest() + ".safetensors"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", ["pooled", "half", "brain", "double", "tokens"])
def test_rows_that_are_not_finite_are_named_and_nothing_is_stored(space, column, bad):
    values = features()
    row = int(np.flatnonzero(values["tokens"].lengths.numpy())[7])
    if column == "tokens":
        values[column].values[int(values[column].lengths[:row].sum())][1] = bad
    else:
        values[column].view(N, -1)[row, 0] = bad
    names = [f"train/cat/{i}.jpg" for i in range(N)]
    with pytest.raises(NonFiniteError, match=rf"train/cat/{row}\.jpg: the features \({column}\)") as caught:
        space.commit(digests(), values, names)
    assert caught.value.rows.tolist() == [row]
    assert not space.known(digests()).any()


def test_bad_rows_of_all_columns_are_told_at_once(space):
    values = features()
    values["pooled"][3] = float("nan")
    values["half"][5] = float("inf")
    with pytest.raises(NonFiniteError, match=r"row 3, row 5: the features \(pooled, half\)") as caught:
        space.commit(digests(), values)
    assert caught.value.rows.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("half"), "has the columns"),
        (lambda v: v.update(pooled=v["pooled"].double()), "'pooled' is stored as float32, not float64"),
        (lambda v: v.update(pooled=v["pooled"][:, :4]), "'pooled' of .* 200 rows got"),
        (lambda v: v.update(pooled=v["pooled"][:-1]), "'pooled' of .* 200 rows got"),
        (lambda v: v.update(tokens=v["tokens"].values), "'tokens' of .* ragged"),
        (
            lambda v: v.update(truncated=Ragged(v["truncated"], torch.ones(N, dtype=torch.int64))),
            "'truncated'",
        ),
        (lambda v: v.update(ids=Ragged(v["ids"].values, v["ids"].lengths + 1)), "'ids' of"),
    ],
)
def test_rows_that_do_not_fit_the_space_are_refused(space, change, message):
    values = features()
    change(values)
    with pytest.raises(StoreError, match=message):
        space.commit(digests(), values)
    assert space.shard_sizes() == {}


def test_commit_before_create_is_refused(store):
    with pytest.raises(StoreError, match="not created"):
        store.space({"model": "x"}, "x").commit(digests(), features())


# -- spaces ------------------------------------------------------------------------------------------------


def test_opening_writes_nothing(store):
    space = store.space({"model": "x"}, "x")
    assert space.info is None
    assert not space.known(digests()).any()
    assert not store.root.exists()


def test_create_is_idempotent_and_refuses_other_content(space):
    space.create({"split": [1, 2]}, COLUMNS)
    other = again(space)
    assert other.info == {"split": [1, 2]}
    assert other.columns == COLUMNS
    other.create({"split": [1, 2]}, COLUMNS)
    with pytest.raises(StoreError, match="created with other content"):
        other.create({"split": [1, 3]}, COLUMNS)
    with pytest.raises(StoreError, match="created with other content"):
        other.create({"split": [1, 2]}, {**COLUMNS, "small": ColumnSpec("int8", (2,))})


def test_racing_creators(store):
    one, two, three = (store.space({"model": "x"}, "x") for _ in range(3))
    one.create({"a": 1}, COLUMNS)
    two.create({"a": 1}, COLUMNS)  # did not know of the first
    with pytest.raises(StoreError, match="other content"):
        three.create({"a": 2}, COLUMNS)


def test_the_label_is_for_people_only(store):
    one = store.space({"model": "x"}, "Some/Model v2")
    one.create({}, COLUMNS)
    assert one.path.name == f"some-model-v2-{one.id[:16]}"
    assert store.space({"model": "x"}, "another name").path == one.path
    assert store.space({"model": "y"}, "Some/Model v2").path != one.path


@pytest.mark.parametrize("label", ["", "///", "..", "a" * 300, "日本語"])
def test_any_label_makes_a_folder_name(store, label):
    space = store.space({"model": "x"}, label)
    space.create({}, COLUMNS)
    assert space.path.parent == store.root / "features"
    assert space.path.is_dir()


def test_a_shard_of_another_space_is_not_served(store, space):
    fill(space)
    other = store.space({"model": "other"}, "other")
    other.create({"split": [1, 2]}, COLUMNS)
    for name in space.shard_sizes():
        (other.path / "shards" / name).write_bytes((space.path / "shards" / name).read_bytes())
    assert not other.known(digests()).any()


def test_a_format_of_the_future_is_passed_over_and_not_touched(space):
    from hftl.store import description

    path = space.path / "space.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "FORMAT", 2)
        text = description.Description(space.identity, "x", {}, {}).encode()
    path.write_bytes(text)
    with pytest.raises(StoreError, match="has format 2, this hftl knows 1: update hftl"):
        space._load()
    apart = again(space)
    assert apart.passed_over == [space.path]
    assert apart.path != space.path
    apart.create({"split": [1, 2]}, COLUMNS)
    fill(apart)
    assert again(space).known(digests()).all()
    assert path.read_bytes() == text


def test_reserved_column_names_are_refused(store):
    for name in ("digests", "x.lengths"):
        with pytest.raises(ValueError, match="column's name"):
            store.space({"model": "x"}, "x").create({}, {name: ColumnSpec("float32", ())})


def test_a_row_committed_twice_is_served_once(space):
    fill(space)
    whole = fill(space)
    assert_same(again(space).gather(digests()), whole)


# -- where, and for whom -----------------------------------------------------------------------------------


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HFTL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / "home" / ".cache" / "hftl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "hftl"
    monkeypatch.setenv("HFTL_CACHE", "~/mine")
    assert cache_root() == tmp_path / "home" / "mine"


def modes(root):
    paths = [root, *root.rglob("*")]
    return {
        "folders": {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_dir()},
        "files": {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths if path.is_file()},
    }


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_new_store_is_private(store, umask):
    before = os.umask(umask)
    try:
        space = store.space({"model": "x"}, "x")
        space.create({}, COLUMNS)
        fill(space)
    finally:
        os.umask(before)
    assert modes(store.root) == {"folders": {"0o700"}, "files": {"0o600"}}


def test_a_store_in_a_folder_for_the_group_is_shared(store):
    store.root.mkdir()
    store.root.chmod(0o2770)
    before = os.umask(0o077)
    try:
        space = store.space({"model": "x"}, "x")
        space.create({}, COLUMNS)
        fill(space)
    finally:
        os.umask(before)
    assert modes(store.root) == {"folders": {"0o2770"}, "files": {"0o660"}}


READ_ONLY = """
import os, sys
from pathlib import Path
import numpy as np
from hftl.errors import StoreError
from hftl.store.store import ColumnSpec, FeatureStore, compact

"".encode("ascii"), "".encode("idna")  # codecs are files that the other user may not be able to read
root, damaged = Path(sys.argv[1]), sys.argv[2] == "damaged"
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
store = FeatureStore(root)
space = store.space({"model": "x"}, "x")
digests = np.arange(32, dtype=np.uint8).reshape(2, 16)
space.create({}, {"f": ColumnSpec("float32", ())})
if damaged:
    assert not space.known(digests).any()
    assert not space.known(digests).any()
else:
    assert space.known(digests).all()
    assert space.gather_arrays(digests[::-1])["f"].tolist() == [2.0, 1.0]
assert compact(space) == 0
assert store.spaces()[0].rows == 2
try:
    space.commit(digests, {"f": np.ones(2, np.float32)})
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("state", ["whole", "damaged"])
def test_a_read_only_store_is_usable(tmp_path, state):
    # A folder that everybody may enter: the reader is somebody else.
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    store = FeatureStore(tmp_path / "cache")
    space = store.space({"model": "x"}, "x")
    space.create({}, {"f": ColumnSpec("float32", ())})
    space.commit(np.arange(32, dtype=np.uint8).reshape(2, 16), {"f": np.array([1, 2], np.float32)})
    (name,) = space.shard_sizes()
    shard = space.path / "shards" / name
    if state == "damaged":
        shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    for path in [store.root, *store.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(store.root), state],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for path in [store.root, *store.root.rglob("*")]:
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "Permission denied; set HFTL_CACHE to a folder that you can write to" in done.stdout
    assert shard.exists()


def test_the_store_imports_no_torch():
    code = "import sys, hftl.store.store, hftl.store.stat_index; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# -- the index ---------------------------------------------------------------------------------------------


def test_the_index_agrees_with_a_dictionary():
    generator = np.random.default_rng(0)
    # Few different bytes: halves collide all the time, whole digests now and then.
    pool = generator.integers(0, 2, (3000, 16), dtype=np.uint8)
    pool[:, 1:8] = 0
    index, where, shards = RowIndex(), {}, {}
    for shard in range(60):
        rows = pool[generator.integers(0, len(pool), generator.integers(0, 60))]
        index.add(rows, shard)
        shards[shard] = [row.tobytes() for row in rows]
        if shard % 7 == 6:
            gone = generator.choice(list(shards), 2, replace=False).tolist()
            index.drop(gone)
            for number in gone:
                del shards[number]
        where = {digest for content in shards.values() for digest in content}
        found, row = index.find(pool)
        for digest, number, at in zip(pool, found.tolist(), row.tolist(), strict=True):
            if number < 0:
                assert digest.tobytes() not in where
            else:
                assert shards[number][at] == digest.tobytes()
