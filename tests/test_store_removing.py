"""Removing what is stored: sizes have units, most of a store goes only with a yes, and a run meanwhile counts right."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from runs import Cli
from test_run import write_recipe

from hftl.errors import UserError
from hftl.store.space import Space
from hftl.store.store import ColumnSpec, FeatureStore
from hftl.wording import size_in_bytes


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HFTL_PLUGINS", "")
    return FeatureStore(tmp_path / "cache")


def fill(store: FeatureStore, name: str, rows: int, used: float) -> Space:
    """A space that no process has open."""
    space = store.space({"model": name}, name)
    space.create({}, {"f": ColumnSpec("float32", (256,))})
    digests = np.arange(rows * 2, dtype=np.uint64).view(np.uint8).reshape(rows, 16)
    space.commit(digests, {"f": np.zeros((rows, 256), np.float32)})
    for lease in (space.path / "leases").iterdir():
        lease.unlink()
    os.utime(space.path / "last_used", (used, used))
    return space


@pytest.mark.parametrize(
    ("text", "size"),
    [("20G", 20 * 10**9), ("1.5 kb", 1500), ("500MB", 5 * 10**8), ("2t", 2 * 10**12), ("0B", 0), (" 7B ", 7)],
)
def test_a_size_is_a_number_and_its_unit(text: str, size: int):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["20", "20.5", "0", "1e3G", "-1G", "nanG", "infG", "G", "", "20GG", "2_0G", "٢G"])
def test_what_is_no_size_with_a_unit_is_refused(text: str):
    with pytest.raises(UserError, match="unit"):
        size_in_bytes(text)


def test_a_bare_number_removes_nothing_and_the_advice_works(store: FeatureStore, cli: Cli):
    fill(store, "a", 100, 1e8)
    line = cli.refused("cache", "gc", "20")
    assert "write 20G" in line
    assert cli.ok("cache", "gc", "20G", "--json").strip() == "[]"
    assert len(store.spaces()) == 1


def test_most_of_a_store_goes_only_with_a_yes(store: FeatureStore, cli: Cli):
    fill(store, "small", 100, 1e8)
    fill(store, "large", 300, 2e8)
    total = store.stats().bytes
    # The small one alone is less than half: nobody is asked.
    assert [row["label"] for row in json.loads(cli.ok("cache", "gc", f"{total - 1}B", "--json"))] == ["small"]
    line = cli.refused("cache", "gc", "1K")
    assert "1 space" in line
    assert "--yes" in line
    assert "--yes" in cli.refused("cache", "clear", "--all")
    assert len(store.spaces()) == 1
    assert [row["label"] for row in json.loads(cli.ok("cache", "gc", "1K", "--yes", "--json"))] == ["large"]
    assert json.loads(cli.ok("cache", "clear", "--all", "--json")) == [], "of nothing there is nothing to ask"


def test_a_space_that_is_named_goes_without_a_question(store: FeatureStore, cli: Cli):
    fill(store, "a", 100, 1e8)
    cli.ok("cache", "clear", "a")
    assert store.spaces() == []


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_at_a_terminal_the_question_is_asked(store: FeatureStore, answer: str, left: int):
    fill(store, "a", 100, 1e8)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "hftl", "cache", "clear", "--all", "--json"],
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert "go on?" in done.stderr
    assert done.returncode == left
    assert len(store.spaces()) == left


def test_a_run_whose_features_are_cleared_meanwhile_counts_each_row_once(
    store: FeatureStore, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`hftl cache clear --force` between the computing of the rows and their reading: all are computed again."""
    real, cleared = Space.gather_arrays, []

    def clear_first(self: Space, *arguments: object) -> object:
        if not cleared:
            cleared.extend(store.clear(force=True))
        return real(self, *arguments)

    monkeypatch.setattr(Space, "gather_arrays", clear_first)
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "backbone"), runs.write_images(tmp_path / "data"))
    cli.ok("run", recipe, "--out", tmp_path / "run")
    assert len(cleared) == 1
    counts = runs.metrics(tmp_path / "run")["features"]
    assert (counts["rows"], counts["computed"], counts["reused"]) == (18, 18, 0)
