"""Formats of the store: what the first release wrote is read, and what a newer one wrote is passed over and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs
import tiny
import torch
from runs import Cli, metrics
from test_run import write_recipe

from hftl.store import description
from hftl.store.description import Description
from hftl.store.digests import digest_texts
from hftl.store.space import Space
from hftl.store.store import FeatureStore
from hftl.store.values import Ragged

STORES = Path(__file__).parent / "stores"


def test_what_the_first_release_wrote_is_read(tmp_path: Path):
    """A store that its code wrote: no space of this format may ever need to be computed again."""
    shutil.copytree(STORES / "format-1", tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    space = store.space({"model": "org/first", "commit": "c0ffee", "modality": "text"}, "org/first")
    digests = digest_texts([(f"row {i}",) for i in range(10)])
    assert space.known(digests).all()
    assert space.info == {"what": "first release"}
    rows = space.gather(digests)
    ids = torch.arange(10)
    tokens = torch.repeat_interleave(ids, ids % 3)
    assert torch.equal(rows["even"], ids[:, None].float() + torch.arange(3) / 4)
    assert torch.equal(rows["tokens"].values, torch.stack([tokens, -tokens], 1).bfloat16())
    assert torch.equal(rows["truncated"], (ids % 2).to(torch.uint8))
    space.create({"what": "first release"}, space.columns)
    ragged = Ragged(rows["tokens"].values, torch.tensor([len(tokens)]))
    one = {"even": torch.zeros(1, 3), "tokens": ragged, "truncated": torch.zeros(1, dtype=torch.uint8)}
    space.commit(digest_texts([("new",)]), one)
    assert [(report.rows, report.bad) for report in store.verify()] == [(11, [])]


def test_fields_that_a_later_release_adds_are_passed_over(tmp_path: Path):
    shutil.copytree(STORES / "format-1", tmp_path / "store")
    path = next((tmp_path / "store").rglob("space.json"))
    content = json.loads(path.read_text())
    del content["checksum"]
    content["added"] = {"by": "a later release"}
    content["checksum"] = description._checksum(content)
    path.write_text(json.dumps(content))
    (summary,) = FeatureStore(tmp_path / "store").spaces()
    assert (summary.label, summary.rows, summary.unread) == ("org/first", 10, None)


def made_newer(space: Space) -> bytes:
    """Write a space's description as a release with the next format would; what is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "FORMAT", description.FORMAT + 1)
        text = Description(space.identity, space.label, space.info or {}, space.columns).encode()
    (space.path / "space.json").write_bytes(text)
    return text


def contents(folder: Path) -> dict[str, bytes]:
    """What matters of a space's folder; who uses it and when is noted there by whoever looks."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")}


def test_beside_a_newer_space_an_older_hftl_computes_apart_and_says_so(cli: Cli, tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_texts(tmp_path / "data.csv", 40))
    cli.ok("run", recipe, "--out", "one")
    store = FeatureStore(tmp_path / "hftl-cache")
    for summary in store.spaces():
        space = store._open(summary.path)
        assert space is not None
        made_newer(space)
    before = contents(store.root / "features")
    newer = list(store.root.glob("features/*/space.json"))
    out = cli.ok("run", recipe, "--out", "two")
    said = [line for line in out.splitlines() if "does not read" in line]
    assert len(said) == 1
    assert "it computed apart" in said[0]
    assert metrics(Path("two"))["features"]["computed"] == metrics(Path("one"))["features"]["computed"] > 0
    assert metrics(Path("two"))["eval"] == metrics(Path("one"))["eval"]
    cli.ok("run", recipe, "--out", "three")
    assert metrics(Path("three"))["features"]["computed"] == 0
    after = contents(store.root / "features")
    assert {path: after[path] for path in before} == before
    listed = json.loads(cli.ok("cache", "ls", "--json"))
    assert {(space["unread"], "-format1-" in space["name"]) for space in listed} == {("2", False), (None, True)}
    assert "format 2" in cli.ok("cache", "ls")
    # A release that reads both takes the folder of the newer format.
    for path in newer:
        path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 1'))
        described = json.loads(path.read_text())
        del described["checksum"]
        path.write_text(json.dumps({**described, "checksum": description._checksum(described)}))
        assert store.space(described["identity"], "x").path == path.parent


def test_verify_and_merge_name_a_format_that_they_do_not_read(cli: Cli, tmp_path: Path):
    shutil.copytree(STORES / "format-1", tmp_path / "hftl-cache")
    store = FeatureStore(tmp_path / "hftl-cache")
    space = store.space({"model": "org/first", "commit": "c0ffee", "modality": "text"}, "org/first")
    text = made_newer(space)
    assert "format 2" in cli.ok("cache", "verify")
    assert (space.path / "space.json").read_bytes() == text
    (report,) = FeatureStore(tmp_path / "other").merge(store)
    assert report.refused == "it has format 2, which this hftl does not read"
