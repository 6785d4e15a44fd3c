"""WebDataset shards as data: what is read of them is what the unpacked files hold, and odd members are named."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from runs import Cli
from test_run import write_recipe

from hftl import Head, Recipe, features
from hftl import run as hftl_run
from hftl.data import load_data
from hftl.errors import DataError
from hftl.extraction import missing_features


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pictures(folder: Path, per_class: int = 8) -> list[tuple[str, bytes, str]]:
    """Key, bytes and class of pictures."""
    runs.write_images(folder, per_class=per_class)
    files = sorted(folder.rglob("*.png"))
    return [(f"{file.parent.name}/{file.stem}", file.read_bytes(), file.parent.name) for file in files]


def as_shards(folder: Path, rows: list[tuple[str, bytes, str]], shards: int = 3) -> Path:
    for number in range(shards):
        members = []
        for key, content, label in rows[number::shards]:
            members += [(f"{key}.png", content), (f"{key}.cls", f"{label}\n".encode())]
        write_shard(folder / f"train-{number:03}.tar", members)
    return folder


def load(ref: str, wants: str = "file", **options):
    return load_data(ref, wants=wants, suffixes=[".png", ".jpg"] if wants == "file" else [], **options)


def test_members_are_rows_named_by_shard_and_key(tmp_path: Path):
    rows = pictures(tmp_path / "images")
    folder = as_shards(tmp_path / "shards", rows)
    data = load(f"{folder}/train-{{000..002}}.tar", test_size=0.25)
    found = {}
    for split in data.splits():
        for row, label in enumerate(split.labels):
            found[split.inputs.name(row)] = (split.inputs[row], data.label_names[label])
    expected = {
        f"train-{number:03}.tar:{key}": (content, label)
        for number in range(3)
        for key, content, label in rows[number::3]
    }
    assert found == expected


@pytest.mark.parametrize(
    "ref", ["train-{000..002}.tar", "train-*.tar", "train-00[0-2].tar", "train-{000,001,002}.tar", ""]
)
def test_patterns_and_folders_stand_for_the_same_shards(tmp_path: Path, ref: str):
    folder = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    data = load(str(folder / ref))
    assert sum(data.sizes().values()) == 24
    assert data.identity["files"] == load(str(folder)).identity["files"]


def test_the_names_of_shards_say_the_split(tmp_path: Path):
    rows = pictures(tmp_path / "images")
    as_shards(tmp_path / "shards", rows)
    write_shard(tmp_path / "shards" / "val-000.tar", [("x/1.png", rows[0][1]), ("x/1.cls", b"class0")])
    data = load(f"{tmp_path}/shards/{{train,val}}-*.tar")
    assert data.sizes() == {"train": 24, "test": 1}


def test_features_and_model_are_those_of_the_unpacked_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = pictures(tmp_path / "images")
    shards = as_shards(tmp_path / "shards", rows)
    # The same rows in the same order, as a table of paths.
    with (tmp_path / "images" / "rows.csv").open("w") as table:
        table.write("file_name,cls\n")
        for number in range(3):
            table.writelines(f"{key}.png,{label}\n" for key, _, label in rows[number::3])
    backbone = str(tiny.save("vit", tmp_path / "vit"))
    packed = Recipe(backbone=backbone, data=f"{shards}/train-*.tar", method=Head(folds=2))
    plain = packed.model_copy(update={"data": f"{tmp_path}/images/rows.csv"})
    made = features(packed, quiet=True)
    # Rows have their names of their content: nothing is left to compute.
    assert missing_features(plain, quiet=True).missing == []
    np.testing.assert_array_equal(made.matrix, features(plain, quiet=True).matrix)
    models = [hftl_run(recipe, out=tmp_path / name, quiet=True) for name, recipe in (("a", packed), ("b", plain))]
    assert models[0].metrics["eval"] == models[1].metrics["eval"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_a_warm_run_reads_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hftl.store import digests, stat_index

    shards = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    recipe = Recipe(backbone=str(tiny.save("vit", tmp_path / "vit")), data=str(shards))
    monkeypatch.setattr(stat_index, "RACY_NS", -(10**12))
    features(recipe, quiet=True)
    monkeypatch.setattr(digests.FilePart, "read", lambda self: pytest.fail("read"))
    assert missing_features(recipe, quiet=True).missing == []


def test_json_members_are_columns(tmp_path: Path):
    path = write_shard(
        tmp_path / "a.tar",
        [
            member
            for i in range(12)
            for member in (
                (f"{i:03}.txt", f"text number {i}".encode()),
                (f"{i:03}.json", json.dumps({"label": ["x", "y"][i % 2], "txt": "other", "width": i}).encode()),
            )
        ],
    )
    data = load(str(path), wants="text")
    assert data.identity["columns"] == {"inputs": ["txt"], "labels": ["label"]}
    assert ("text number 3",) in [*data.train.inputs, *data.test.inputs]
    # What a member and the json call alike is told apart.
    other = load(str(path), wants="text", input_columns=["json.txt"], label_columns=["label"])
    assert other.train.inputs[0] == ("other",)


def test_whole_numbers_are_class_numbers_in_all_shards_alike(tmp_path: Path):
    folder = tmp_path / "shards"
    for shard, labels in enumerate((["0", "1"] * 3, ["10", "1"] * 3)):
        write_shard(
            folder / f"{shard}.tar",
            [m for i, c in enumerate(labels) for m in ((f"{i}.txt", b"t%d" % i), (f"{i}.cls", c.encode()))],
        )
    assert load(str(folder), wants="text").label_names == ["0", "1", "10"]


def png(folder: Path) -> bytes:
    return pictures(folder, per_class=1)[0][1]


def test_odd_members_are_named_in_one_line(tmp_path: Path):
    image = png(tmp_path / "images")
    good = [m for i in range(6) for m in ((f"{i}.png", image + bytes([i])), (f"{i}.cls", b"ab"[i % 2 : i % 2 + 1]))]
    cases = {
        "twice": ([*good, ("1.png", image)], r"twice.tar:1.png: the key '1' stands in two places"),
        "second": ([*good, ("7.png", image), ("7.jpg", image)], r"second.tar:7.jpg: the row has a second input"),
        "up": ([*good, ("../8.png", image)], r"up.tar:../8.png: an unsafe name"),
        "root": ([*good, ("/etc/8.png", image)], r"root.tar:/etc/8.png: an unsafe name"),
        "bell": ([*good, ("9\a.png", image)], r"bell.tar:9.*.png: an unsafe name"),
        "label": ([*good, ("7.png", image)], r"label.tar:7: no label .* in column 'cls', as in 1 row"),
        "json": ([*good, ("7.json", b"{")], r"json.tar:7.json: not JSON"),
        "latin": ([*good, ("7.cls", b"\xe9")], r"latin.tar:7.cls: not UTF-8"),
        "none": ([("readme", b"x")], r"none.tar: no rows"),
    }
    for name, (members, message) in cases.items():
        path = write_shard(tmp_path / f"{name}.tar", members)
        with pytest.raises(DataError, match=message) as error:
            load(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [100, 512, 700, 5000])
def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, cut: int):
    path = as_shards(tmp_path / "shards", pictures(tmp_path / "images"), shards=1) / "train-000.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: last.offset_data + 512 - cut])
    with pytest.raises(DataError, match=r"train-000.tar: after class\d/\d: damaged tar file"):
        load(str(path))
    # A header that is overwritten looks like an end to tarfile.
    path.write_bytes(whole[: last.offset] + b"\xff" * 512 + whole[last.offset + 512 :])
    with pytest.raises(DataError, match="damaged tar file: what follows is no member"):
        load(str(path))


def test_a_picture_that_cannot_be_decoded_is_named_and_may_be_skipped(tmp_path: Path, cli: Cli):
    rows = pictures(tmp_path / "images")
    rows[5] = (rows[5][0], b"no picture", rows[5][2])
    shards = as_shards(tmp_path / "shards", rows)
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), f"{shards}/train-*.tar")
    assert f"train-002.tar:{rows[5][0]}: " in cli.refused("features", recipe)
    assert "1 row could not be decoded" in cli.ok("features", recipe, "--on-bad-row", "skip")


def test_what_is_not_there_or_packed_is_said(tmp_path: Path):
    folder = as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    for ref, message in {
        "train-{000..004}.tar": "train-003.tar is not there, nor are 1 others",
        "test-*.tar": "no file matches",
        "train-{4..1}.tar": "counts from the lower",
        "train.tar.gz": "unpack it to .tar",
    }.items():
        with pytest.raises(DataError, match=message):
            load(f"{folder}/{ref}")


def test_a_shard_that_changes_under_a_run_is_met(tmp_path: Path):
    path = as_shards(tmp_path / "shards", pictures(tmp_path / "images"), shards=1) / "train-000.tar"
    data = load(str(path))
    shutil.copyfile(path, tmp_path / "whole.tar")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"train-000.tar:class\d/\d: the file cannot be read: it ends .* too early"):
        data.train.inputs[len(data.train) - 1]
