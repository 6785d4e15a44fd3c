"""Features by parts: machines that know nothing of one another, killed and repeated, and one store of all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
from runs import Cli
from test_run import write_recipe

from hftl import Recipe, features
from hftl.errors import RecipeError, StoreError
from hftl.extraction import missing_features
from hftl.frozen.shares import Share
from hftl.store.digests import digest_texts
from hftl.store.store import ColumnSpec, FeatureStore

PARTS = 8 if os.environ.get("HFTL_LONG") else 3
COLUMNS = {"vector": ColumnSpec("float32", (3,))}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    data = runs.write_images(tmp_path / "images", per_class=9)
    return Recipe(backbone=str(tiny.save("vit", tmp_path / "vit")), data=str(data))


def test_parts_hold_each_row_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    whole = features(recipe, quiet=True)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "parts"))
    assert len(missing_features(recipe, quiet=True).missing) == len(whole.row_names)
    parts = [features(recipe, part=f"{number}/4", quiet=True) for number in (3, 1, 4)]
    assert missing_features(recipe, part="3/4", quiet=True).missing == []
    lacking = missing_features(recipe, quiet=True)
    last = features(recipe, part="2/4", quiet=True)
    assert sorted(lacking.missing) == sorted(last.row_names)
    assert sum(lacking.rows.values()) - sum(lacking.stored.values()) == len(last.row_names)
    found = {name: row for part in (*parts, last) for name, row in zip(part.row_names, part.matrix, strict=True)}
    assert sum(len(part.row_names) for part in (*parts, last)) == len(found) == len(whole.row_names)
    # Rows ran in other batches.
    np.testing.assert_allclose(np.stack([found[name] for name in whole.row_names]), whole.matrix, atol=1e-5)
    assert missing_features(recipe, quiet=True).missing == []


def test_more_parts_than_rows_leave_some_with_nothing(recipe: Recipe):
    sizes = [len(features(recipe, part=f"{number}/64", quiet=True).row_names) for number in (1, 64)]
    assert sizes == [1, 0]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_a_part_that_is_none_is_refused(text: str):
    with pytest.raises(RecipeError, match="write which of how many"):
        Share.parse(text)


def test_status_says_what_is_missing_and_ends_with_1(recipe: Recipe, cli: Cli, tmp_path: Path):
    path = str(write_recipe(tmp_path, Path(recipe.backbone), Path(str(recipe.data))))
    cli.ok("features", path, "--part", "1/2")
    assert cli("features", path, "--status", "--json") == 1
    assert "rows are not stored, such as" in cli.err
    said = json.loads(cli.out)
    assert sum(row["missing"] for row in said["splits"]) == len(said["missing"]) > 0
    cli.ok("features", path, "--part", "2/2")
    assert json.loads(cli.ok("features", path, "--status", "--json"))["missing"] == []


def test_parts_at_once_some_killed_and_repeated_hold_each_row_once(recipe: Recipe, tmp_path: Path):
    path = write_recipe(tmp_path, Path(recipe.backbone), Path(str(recipe.data)))

    def start(number: int) -> subprocess.Popen[bytes]:
        part = [sys.executable, "-m", "hftl", "features", str(path), "--part", f"{number}/{PARTS}", "--quiet"]
        return subprocess.Popen(part, cwd=tmp_path)

    running = [start(number) for number in range(1, PARTS + 1)]
    store = FeatureStore(Path(os.environ["HFTL_CACHE"]))
    while not store.spaces() and any(process.poll() is None for process in running):
        time.sleep(0.01)
    killed = running[: PARTS * 3 // 8]
    for process in killed:
        process.send_signal(signal.SIGKILL)
    for process in running:
        process.wait()
    again = [start(number) for number in range(1, len(killed) + 1)]
    assert [process.wait() for process in (*running[len(killed) :], *again)] == [0] * PARTS
    assert missing_features(recipe, quiet=True).missing == []
    store.compact()
    (space,) = store.spaces()
    assert space.rows == len(features(recipe, quiet=True).row_names)


def filled(root: Path, numbers: range, info: str = "cut") -> FeatureStore:
    store = FeatureStore(root)
    space = store.space({"model": "m"}, "m")
    space.create({"of": info}, COLUMNS)
    for start in range(numbers.start, numbers.stop, 10):
        rows = range(start, min(start + 10, numbers.stop))
        space.commit(digest_texts([(str(i),) for i in rows]), {"vector": torch.tensor([[float(i)] * 3 for i in rows])})
    return store


def assert_holds(store: FeatureStore, numbers: range) -> None:
    space = store.space({"model": "m"}, "m")
    vectors = space.gather(digest_texts([(str(i),) for i in numbers]))["vector"]
    assert vectors[:, 0].tolist() == list(numbers)


def test_a_merged_store_holds_the_rows_of_both_once(tmp_path: Path):
    store, other = filled(tmp_path / "one", range(35)), filled(tmp_path / "two", range(25, 60))
    (report,) = store.merge(other)
    assert (report.rows, report.damaged, report.refused) == (25, 0, None)
    assert_holds(store, range(60))
    assert_holds(other, range(25, 60))
    assert store.merge(other)[0].rows == 0
    store.compact()
    assert store.spaces()[0].rows == 60


def test_a_new_space_is_taken_in_whole(tmp_path: Path):
    store = FeatureStore(tmp_path / "one")
    assert store.merge(filled(tmp_path / "two", range(30)))[0].rows == 30
    assert_holds(store, range(30))


def test_a_damaged_shard_of_the_other_is_left_out_and_counted(tmp_path: Path, cli: Cli):
    other = filled(tmp_path / "two", range(30))
    shard = next((tmp_path / "two").rglob("shards/*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert cli("cache", "merge", tmp_path / "two", "--json") == 1
    assert "not all was taken in" in cli.err
    (report,) = json.loads(cli.out)
    assert (report["rows"], report["damaged"]) == (20, 1)
    # It stays as it is, and is said again.
    assert other.spaces()[0].rows == 30
    assert cli("cache", "merge", tmp_path / "two", "--json") == 1


def test_another_cut_is_refused_and_named(tmp_path: Path):
    store, other = filled(tmp_path / "one", range(10)), filled(tmp_path / "two", range(30), info="another")
    (report,) = store.merge(other)
    assert report.rows == 0
    assert "another cut" in str(report.refused)
    assert store.spaces()[0].rows == 10


def test_what_is_no_cache_is_refused(tmp_path: Path):
    store = filled(tmp_path / "one", range(10))
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    for wrong in (tmp_path / "nothing", tmp_path / "one"):
        with pytest.raises(StoreError, match="no other cache"):
            store.merge(FeatureStore(wrong))
