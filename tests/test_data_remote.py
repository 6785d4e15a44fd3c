"""Data at addresses: brought here once and whole, read as a file is, and brought again when they change."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import tiny
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants
from runs import Cli, write_texts
from test_tar_shards import as_shards, load, pictures

from hftl import Head, Recipe, features
from hftl import run as hftl_run
from hftl.errors import DataError, HubError


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is reached is the memory of this process.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[MemoryFileSystem, str]]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem, f"/{tmp_path.name}"
    if filesystem.exists(f"/{tmp_path.name}"):
        filesystem.rm(f"/{tmp_path.name}", recursive=True)


def test_a_model_of_tables_at_an_address_is_that_of_the_files(bucket, tmp_path: Path):
    filesystem, root = bucket
    for name, rows, seed in (("train", 60, 0), ("test", 20, 1)):
        write_texts(tmp_path / f"{name}.csv", rows, seed=seed)
        filesystem.put_file(str(tmp_path / f"{name}.csv"), f"{root}/data/{name}.csv")
    backbone = str(tiny.save("bert", tmp_path / "bert"))
    (tmp_path / "here").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").rename(tmp_path / "here" / f"{name}.csv")
    made = {}
    for name, ref in {"far": f"memory:/{root}/data", "near": str(tmp_path / "here")}.items():
        recipe = Recipe(backbone=backbone, data=ref, method=Head(folds=2))
        run = hftl_run(recipe, out=tmp_path / name, quiet=True)
        made[name] = (run.metrics["eval"], (tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert made["far"] == made["near"]


def test_shards_at_an_address_give_the_same_features(bucket, tmp_path: Path):
    filesystem, root = bucket
    shards = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    filesystem.put(str(shards), f"{root}/shards", recursive=True)
    backbone = str(tiny.save("vit", tmp_path / "vit"))
    near = features(Recipe(backbone=backbone, data=f"{shards}/train-*.tar"), quiet=True)
    for pattern in ("train-{000..002}.tar", "train-*.tar", ""):
        far = features(Recipe(backbone=backbone, data=f"memory:/{root}/shards/{pattern}"), quiet=True)
        np.testing.assert_array_equal(far.matrix, near.matrix)
        assert far.row_names == near.row_names


def test_what_is_here_is_not_brought_again_until_it_changes(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filesystem, root = bucket
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(20)], "label": ["a", "b"] * 10})
    content = io.BytesIO()
    frame.to_parquet(content)
    filesystem.pipe_file(f"{root}/a.parquet", content.getvalue())
    url = f"memory:/{root}/a.parquet"
    first = load(url, wants="text")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", lambda *_, **__: pytest.fail("brought again"))
        assert [*load(url, wants="text").train.inputs] == [*first.train.inputs]
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(MemoryFileSystem, "ukey", lambda *_: pytest.fail("asked"))
        offline = load(url, wants="text")
        assert "from the cache, because this is offline" in offline.notes
        assert [*offline.train.inputs] == [*first.train.inputs]
        with pytest.raises(DataError, match="it was not brought here while there was a network: run once with one"):
            load(f"memory:/{root}/b.parquet", wants="text")
    frame["text"] = [f"other {i}" for i in range(20)]
    content = io.BytesIO()
    frame.to_parquet(content)
    filesystem.pipe_file(f"{root}/a.parquet", content.getvalue())
    assert all(text.startswith("other") for (text,) in load(url, wants="text").train.inputs)


def test_what_breaks_off_is_brought_whole_the_next_time(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filesystem, root = bucket
    filesystem.put_file(str(write_texts(tmp_path / "a.csv", 60)), f"{root}/a.csv")
    url = f"memory:/{root}/a.csv"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "size", lambda *_: 1_000_000)
        with pytest.raises(HubError, match=r"a.csv: cannot be read: .*broke off at .* run the same command again"):
            load(url, wants="text")
    assert sum(load(url, wants="text").sizes().values()) == 60


def test_offline_takes_all_of_an_address_or_nothing(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filesystem, root = bucket
    shards = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    filesystem.put(str(shards), f"{root}/shards", recursive=True)
    url, opened = f"memory:/{root}/shards/*.tar", MemoryFileSystem._open

    def broken(self, path: str, *args, **kwargs):
        if path.endswith("002.tar"):
            raise ConnectionError("the network is gone")
        return opened(self, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", broken)
        with pytest.raises(HubError, match="the network is gone"):
            load(url)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="2 of 3 files were brought; run once with a network"):
            load(url)
    assert sum(load(url).sizes().values()) == 24
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sum(load(url).sizes().values()) == 24


def test_runs_started_together_bring_each_file_once(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filesystem, root = bucket
    shards = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    filesystem.put(str(shards), f"{root}/shards", recursive=True)
    opened, brought = MemoryFileSystem._open, []

    def counted(self, path: str, *args, **kwargs):
        brought.append(path)
        time.sleep(0.05)
        return opened(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", counted)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda _: sum(load(f"memory:/{root}/shards").sizes().values()), range(4)))
    assert rows == [24] * 4
    assert sorted(brought) == [f"{root}/shards/train-{number:03}.tar" for number in range(3)]


def test_names_of_any_case_are_read_and_hidden_ones_are_left_out(bucket, tmp_path: Path):
    filesystem, root = bucket
    shards = as_shards(tmp_path / "shards", pictures(tmp_path / "images"), shards=1)
    content = (shards / "train-000.tar").read_bytes()
    for name in ("A.TAR", ".ipynb_checkpoints/A.TAR"):
        filesystem.pipe_file(f"{root}/b/{name}", content)
    for ref in ("b", "b/A.TAR", "b/*.TAR"):
        assert sum(load(f"memory:/{root}/{ref}").sizes().values()) == 24


def test_a_cell_of_somebody_elses_table_is_no_path_of_this_machine(bucket, tmp_path: Path):
    filesystem, root = bucket
    rows = pictures(tmp_path / "images", per_class=2)
    table = "".join(f"{tmp_path}/images/{key}.png,{label}\n" for key, _, label in rows)
    filesystem.pipe_file(f"{root}/a.csv", f"image,label\n{table}".encode())
    with pytest.raises(DataError, match=r"a\.csv"):
        load(f"memory:/{root}/a.csv")


def test_what_cannot_be_reached_is_one_line_without_a_password(bucket, cli: Cli, tmp_path: Path):
    _, root = bucket
    backbone = str(tiny.save("bert", tmp_path / "bert"))
    for ref, message in {
        f"memory:/{root}/none.csv": "FileNotFoundError",
        f"memory:/{root}/*.csv": "nothing that is read is there",
        "nothing://x/a.csv": "nothing",
        "https://example.org/a.csv": "fetch the file, and give that",
        "memory://user:secret@host/a.csv": "leave the name and the password out",
    }.items():
        said = cli.refused("features", "--backbone", backbone, "--data", ref)
        assert message in said
        assert "secret" not in cli.err + cli.out
