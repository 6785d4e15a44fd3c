"""Features in files: every library that is promised to read them does, and a file is whole or not there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import runs
import safetensors.numpy
import tiny
from runs import Cli
from safetensors import safe_open
from test_run import write_recipe

import hftl
from hftl import Features
from hftl.errors import HftlError, RecipeError
from hftl.frozen import formats, matrix, stored_matrix
from hftl.frozen.formats import About, write_blocks

ROWS, WIDTH = 50, 6
NAMES = ["cat", "dog, small", "naïve"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven lines of the made-up features to a block."""
    for module in (matrix, stored_matrix):
        monkeypatch.setattr(module, "BLOCK_BYTES", 7 * 4 * WIDTH)


def made(kind: str = "single", rows: int = ROWS) -> Features:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, rows) if kind == "single" else rng.random((rows, 3)).astype(np.float32)
    split = np.array(["train"] * (rows * 4 // 5) + ["test"] * (rows - rows * 4 // 5))
    names = [f"folder/{i}.png" for i in range(rows)]
    return Features(rng.standard_normal((rows, WIDTH)).astype(np.float32), labels, NAMES, names, split)


def test_parquet_is_asked_in_duckdb(tmp_path: Path):
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed; the extra hftl[test] brings it")
    features, path = made(), tmp_path / "features.parquet"
    features.write(path)
    asked = (
        "select label_name, count(*), avg(features[1]) from read_parquet(?) where split = 'train' group by label_name"
    )
    found = {str(name): (rows, mean) for name, rows, mean in duckdb.execute(asked, [str(path)]).fetchall()}
    train = features.split == "train"
    for label, name in enumerate(NAMES):
        own = train & (features.labels == label)
        assert found[name] == (own.sum(), pytest.approx(features.matrix[own, 0].mean(), abs=1e-6))
    nearest = "select row from read_parquet(?) order by list_distance(features, ?) limit 1"
    assert duckdb.execute(nearest, [str(path), features.matrix[7].tolist()]).fetchall() == [(features.row_names[7],)]


@pytest.mark.parametrize("kind", ["single", "several"])
def test_parquet_is_read_by_arrow_polars_and_datasets(kind: str, tmp_path: Path):
    features = made(kind)
    path = tmp_path / "features.parquet"
    assert features.write(path) == [path]
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == 8
    frame = polars.read_parquet(path)
    whole = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    names = [*table.column_names]
    assert names == ["row", "split", "label", *["label_name"] * (kind == "single"), "features"]
    assert table["row"].to_pylist() == frame["row"].to_list() == whole["row"][:] == features.row_names
    assert table["split"].to_pylist() == frame["split"].to_list() == whole["split"][:] == features.split.tolist()
    for read in (np.stack(table["features"].to_numpy()), frame["features"].to_numpy(), np.array(whole["features"][:])):
        np.testing.assert_array_equal(read.astype(np.float32), features.matrix)
    np.testing.assert_array_equal(np.array(whole["label"][:], dtype=features.labels.dtype), features.labels)
    assert json.loads(table.schema.metadata[b"label_names"]) == NAMES
    if kind == "single":
        assert whole.features["label"].names == NAMES
        assert table["label"].to_pylist() == features.labels.tolist()
        assert frame["label_name"].to_list() == [NAMES[label] for label in features.labels]


@pytest.mark.parametrize("kind", ["single", "several"])
def test_numpy_and_safetensors_read_theirs(kind: str, tmp_path: Path):
    features = made(kind)
    assert features.write(tmp_path / "f.npy") == [tmp_path / "f.npy", tmp_path / "f.json"]
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy", mmap_mode="r"), features.matrix)
    beside = json.loads((tmp_path / "f.json").read_text())
    np.testing.assert_array_equal(np.array(beside["labels"], dtype=features.labels.dtype), features.labels)
    features.write(tmp_path / "f.safetensors")
    read = safetensors.numpy.load_file(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(read["features"], features.matrix)
    np.testing.assert_array_equal(read["labels"], features.labels)
    with safe_open(tmp_path / "f.safetensors", "np") as opened:
        metadata = {name: json.loads(value) for name, value in opened.metadata().items()}
    for facts in (beside, metadata):
        assert facts["rows"] == features.row_names
        assert facts["splits"] == features.split.tolist()
        assert facts["label_names"] == NAMES


@pytest.mark.parametrize("ending", formats.WRITERS)
def test_no_rows_are_a_file_without_rows(ending: str, tmp_path: Path):
    made(rows=0).write(tmp_path / f"none{ending}")
    shapes = {
        ".parquet": lambda path: pq.read_table(path).num_rows,
        ".npy": lambda path: len(np.load(path)),
        ".safetensors": lambda path: len(safetensors.numpy.load_file(path)["features"]),
    }
    assert shapes[ending](tmp_path / f"none{ending}") == 0


@pytest.mark.parametrize("ending", formats.WRITERS)
def test_names_that_are_no_text_are_told_apart_in_every_format(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules[__name__], "NAMES", ["caf\udce9", "caf\udcea", "plain"])
    features = made()
    features.row_names[3] = "caf\udce9.png"
    features.write(tmp_path / f"f{ending}")
    read = {
        ".parquet": lambda: pq.read_table(tmp_path / "f.parquet")["row"].to_pylist(),
        ".npy": lambda: json.loads((tmp_path / "f.json").read_text())["rows"],
        ".safetensors": lambda: json.loads(safe_open(tmp_path / "f.safetensors", "np").metadata()["rows"]),
    }
    assert read[ending]()[3] == "caf\\udce9.png"
    if ending == ".parquet":
        names = pq.read_table(tmp_path / "f.parquet")["label_name"].to_pylist()
        assert set(names) == {"caf\\udce9", "caf\\udcea", "plain"}


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from hftl.frozen.formats import About, write_blocks

def blocks():
    yield np.zeros((5, 4), np.float32)
    os.kill(os.getpid(), signal.SIGKILL)

about = About(np.zeros(10, np.int64), ["a"], [str(i) for i in range(10)], np.array(["train"] * 10))
write_blocks(Path(sys.argv[1]), about, 4, blocks())
"""


@pytest.mark.parametrize("ending", formats.WRITERS)
def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(ending: str, tmp_path: Path):
    path = tmp_path / f"f{ending}"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    made().write(path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_error_midway_leaves_the_file_that_was_there(tmp_path: Path):
    features = made()
    path = tmp_path / "f.parquet"
    features.write(path)
    before = path.read_bytes()

    def blocks() -> Iterator[np.ndarray]:
        yield features.matrix[:5]
        raise HftlError("the store is gone")

    about = About(features.labels, NAMES, features.row_names, features.split)
    with pytest.raises(HftlError, match="the store is gone"):
        write_blocks(path, about, WIDTH, blocks())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_no_safetensors_reader_would_take_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(formats, "LARGEST_METADATA", 500)
    with pytest.raises(RecipeError, match=r"the names of 50 rows .*: write .parquet or .npy"):
        made().write(tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HftlError, match=r"cannot write .*/file/f.npy"):
        made().write(tmp_path / "file" / "f.npy")


def test_stored_features_are_written_as_python_has_them(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("bert", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_texts(tmp_path / "data.csv", 40))
    # Two rows to a block, so that splits end within one.
    monkeypatch.setattr(stored_matrix, "BLOCK_BYTES", 3 * 4 * 32)
    cli.ok("features", recipe, "--export", "f.parquet")
    features = hftl.features(str(recipe), quiet=True)
    table = pq.read_table("f.parquet")
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), features.matrix)
    assert table["row"].to_pylist() == features.row_names
    assert table["label"].to_pylist() == features.labels.tolist()
    assert pq.ParquetFile("f.parquet").num_row_groups > 13


def test_words_have_a_line_each(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("bert", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_sentences(tmp_path / "data.jsonl", 20))
    monkeypatch.setattr(stored_matrix, "BLOCK_BYTES", 3 * 4 * 32)
    cli.ok("features", recipe, "--export", "f.safetensors")
    features = hftl.features(str(recipe), quiet=True)
    read = safetensors.numpy.load_file("f.safetensors")
    assert len(features) > 60
    np.testing.assert_array_equal(read["features"], features.matrix)
    np.testing.assert_array_equal(read["labels"], features.labels)


def test_a_head_that_reads_every_token_has_no_matrix_and_leaves_the_file_that_was_there(cli: Cli, tmp_path: Path):
    backbone = tiny.save("modernbert-mean", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_texts(tmp_path / "data.csv", 20))
    Path("f.npy").write_text("old")
    assert "no matrix" in cli.refused("features", recipe, "--export", "f.npy")
    assert Path("f.npy").read_text() == "old"
