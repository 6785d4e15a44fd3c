"""Features on Ray's workers: the same numbers in the same store, whatever happens to a worker."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import runs
import tiny
import yaml
from PIL import Image
from runs import Cli
from test_run import write_recipe
from test_tar_shards import as_shards, pictures

from hftl import Recipe, features
from hftl.data import load_data
from hftl.decoding import cores
from hftl.errors import BackboneError, BadRowError, DataError, HftlError
from hftl.extraction import missing_features
from hftl.frozen import on_ray
from hftl.frozen.deal import Deal
from hftl.frozen.extract import ConcatRows, digest_rows
from hftl.frozen.recipe import backbone_of
from hftl.frozen.view import View, open_space
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore, cache_root

pytest.importorskip("ray", reason="the extra hftl[ray] is not installed")
# Ray reads options of its own that it has deprecated.
on_workers = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def without_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker is dealt out holds for its whole process, which here is that of the tests."""
    monkeypatch.setattr(cores, "_share", None)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Ray on this machine with two CPUs, as somebody started it before hftl."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    # Five blocks of 64 rows, the last one not full.
    data = runs.write_images(tmp_path / "images", per_class=100)
    return Recipe(backbone=str(tiny.save("vit", tmp_path / "vit")), data=str(data))


def documented(path: Path) -> list[str]:
    """The command of the cluster file in the docs, with a recipe of the test."""
    page = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    (file,) = re.findall(r'yaml title="ray-features.yaml"\n(.*?)```', page, re.DOTALL)
    hftl, command, recipe, *flags = shlex.split(yaml.safe_load(file)["spec"]["entrypoint"])
    assert (hftl, recipe) == ("hftl", "/shared/recipe.py")
    return [command, str(path), *flags]


def written(recipe: Recipe, folder: Path) -> Path:
    return write_recipe(folder, Path(recipe.backbone), Path(str(recipe.data)))


@on_workers
def test_workers_store_what_one_process_does(
    two_workers: None, recipe: Recipe, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The last row, so that those before it stand in the same batches with it and without it.
    test = load_data(recipe.data, wants="file").test.inputs
    bad = test.path(len(test) - 1)
    bad.write_bytes(b"no picture")
    path = written(recipe, tmp_path)
    said = cli.ok(*documented(path), "--on-bad-row", "skip")
    assert "299 computed, 0 reused" in said
    assert f"1 row could not be decoded and were left out; {test.name(len(test) - 1)}: not an image" in said
    made = features(recipe, on_bad_row="skip", quiet=True)
    cli.ok("cache", "compact")
    (space,) = FeatureStore(cache_root()).spaces()
    assert space.rows == 299

    with monkeypatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(tmp_path / "alone"))
        alone = features(recipe, on_bad_row="skip", quiet=True)
        assert [each.name for each in FeatureStore(cache_root()).spaces()] == [space.name]
    # Blocks are whole batches of one process.
    np.testing.assert_array_equal(made.matrix, alone.matrix)
    assert made.row_names == alone.row_names

    monkeypatch.setattr(on_ray, "_started", lambda: pytest.fail("Ray was asked"))
    bad.unlink()
    said = cli.ok("features", path, "--on", "ray", "--set", "method.views=2", "--set", "method.flip=true")
    assert "0 computed, 299 reused" in said
    assert "views     left out" in said


@on_workers
@pytest.mark.skipif(not os.environ.get("HFTL_LONG"), reason="a worker takes seconds to start again (HFTL_LONG=1)")
def test_a_killed_worker_costs_nothing_but_time(two_workers: None, recipe: Recipe, cli: Cli, tmp_path: Path):
    # Pictures that take a while, so that the other worker is amid a block when the first one has stored its own.
    for i in range(12):
        Image.new("L", (6000 + i, 6000)).save(tmp_path / "images" / f"class{i % 3}" / f"large{i}.png")
    path = written(recipe, tmp_path)
    killed: list[int] = []

    def kill_one() -> None:
        while not list(cache_root().glob("features/*/shards/*.safetensors")):
            time.sleep(0.01)
        workers = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or ())]
        workers[0].send_signal(signal.SIGKILL)
        killed.append(workers[0].pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert "312 computed, 0 reused" in cli.ok("features", path, "--on", "ray")
    killer.join()
    assert killed
    store = FeatureStore(cache_root())
    store.compact()
    assert store.spaces()[0].rows == 312
    assert missing_features(recipe, quiet=True).missing == []


# ── what a worker does, without Ray ──────────────────────────────────────────────────────────────────────────────────


class Job:
    """The rows of a folder of pictures, and a worker for them."""

    def __init__(self, recipe: Recipe, **changes: object) -> None:
        spec, backbone = backbone_of(recipe, BackboneOptions())
        self.data = load_data(recipe.data, wants=backbone.wants, suffixes=backbone.suffixes)
        store, view = FeatureStore(cache_root()), View.of(backbone, "native", "no")
        self.space = open_space(store, backbone, spec.origin, view)
        self.rows = ConcatRows([self.data.train.inputs])
        self.digests, _ = digest_rows(self.data.train.inputs, store.file_digests)
        plain = on_ray._without_data(recipe)
        said = {"views": {view: self.space.identity}, "on_bad_row": "error", **changes}
        self.work = on_ray.Work(plain, BackboneOptions(), self.data.task, self.data.label_names, cache_root(), **said)

    def told(self) -> dict[str, object]:
        block = on_ray._as_block(self.rows, self.digests, np.arange(len(self.rows)))
        made = on_ray.Worker(self.work, cores=1)(block)
        assert made["rows"].to_pylist() == [len(self.rows)]
        return on_ray.json.loads(made["told"][0].as_py())


def error_of(told: dict[str, object]) -> HftlError:
    return on_ray.error_from_json(told["error"])


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    data = runs.write_images(tmp_path / "images", per_class=4)
    return Recipe(backbone=str(tiny.save("vit", tmp_path / "vit")), data=str(data))


def test_a_worker_decodes_on_what_ray_deals_it_out(small: Recipe):
    # Two machines of eight CPUs: two workers each. Beside a GPU a worker has its part of all cores.
    assert Deal.of([{"CPU": 8.0}, {"CPU": 8.0}, {"memory": 1.0}]) == Deal(workers=4, gpus=0, cpus=4, cores=4)
    assert Deal.of([{"CPU": 2.0}, {}]) == Deal(workers=2, gpus=0, cpus=1, cores=1)
    assert Deal.of([{"CPU": 64.0, "GPU": 4.0}, {"CPU": 8.0}]) == Deal(workers=4, gpus=1, cpus=1, cores=16)
    Job(small).told()
    assert cores.usable_cores() == 1


def test_a_block_may_be_done_twice(small: Recipe):
    job = Job(small)
    assert job.told() == job.told() == {"bad": [], "rounding": 0.0}
    (space,) = FeatureStore(cache_root()).spaces()
    assert (space.rows, space.shards) == (len(job.rows), 1)


@pytest.mark.parametrize("kind", ["texts", "pairs", "shards"])
def test_rows_of_other_kinds_are_those_of_one_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if kind == "shards":
        data, backbone = (
            as_shards(tmp_path / "shards", pictures(tmp_path / "images")),
            tiny.save("vit", tmp_path / "vit"),
        )
    else:
        data = runs.write_texts(tmp_path / "data.csv", 40, pairs=kind == "pairs")
        backbone = tiny.save("bert", tmp_path / "bert")
    recipe = Recipe(backbone=str(backbone), data=str(data))
    job = Job(recipe)
    assert job.told() == {"bad": [], "rounding": 0.0}
    # The training rows, all of which are stored.
    made = job.space.gather(job.digests)["features"]
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "alone"))
    alone = features(recipe, quiet=True)
    np.testing.assert_allclose(made, alone.matrix[alone.split == "train"], atol=1e-5)


def test_a_file_that_is_another_one_for_a_worker_is_refused(small: Recipe):
    job = Job(small, on_bad_row="skip")
    path = job.data.train.inputs.path(2)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert isinstance(error_of(job.told()), DataError)
    assert f"reads other bytes at {path}" in str(error_of(job.told()))
    path.unlink()
    assert f"cannot read {path}: No such file" in str(error_of(job.told()))


def test_a_bad_row_is_named_as_elsewhere(small: Recipe):
    job = Job(small)
    path = job.data.train.inputs.path(2)
    path.write_bytes(b"no picture")
    job = Job(small)
    error = error_of(job.told())
    assert isinstance(error, BadRowError)
    assert error.row == job.data.train.inputs.name(2)
    assert Job(small, on_bad_row="skip").told()["bad"] == [[2, error.row, error.why]]


def test_a_backbone_that_is_another_one_for_a_worker_is_refused(small: Recipe):
    job = Job(small)
    shutil.rmtree(small.backbone)
    tiny.save("vit", Path(small.backbone), seed=1)
    error = error_of(job.told())
    assert isinstance(error, BackboneError)
    assert "is not the same on a worker of Ray: weights differ" in str(error)
    assert FeatureStore(cache_root()).spaces() == []


def test_a_cluster_that_is_not_there_is_said_at_once(small: Recipe, cli: Cli, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        assert cli("features", written(small, tmp_path), "--on", "ray") == 1
    assert re.search(r"hftl: RAY_ADDRESS=127.0.0.1:\d+: no cluster answers there: ConnectionRefusedError", cli.err)


def test_what_ray_cannot_do_is_said_in_one_line(small: Recipe, cli: Cli, tmp_path: Path, monkeypatch):
    path = written(small, tmp_path)
    assert "--status computes nothing" in cli.refused("features", path, "--status", "--on", "ray")
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert "pip install 'hftl[ray]'" in cli.refused("features", path, "--on", "ray")
