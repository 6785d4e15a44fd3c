"""WebDataset shards as data: what is read of them is what the unpacked files hold, and odd members are named."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
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
from hftl.data.evaluation import load_evaluation_data
from hftl.errors import DataError
from hftl.extraction import missing_features
from hftl.frozen.extract import digest_rows
from hftl.store.stat_index import StatIndex


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
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"train-000.tar: changed since its members were listed: run again"):
        data.train.inputs[len(data.train) - 1]


def labelled(folder: Path, name: str, labels: list[str]) -> Path:
    """A shard of short texts with the classes ``labels``."""
    members = [m for i, label in enumerate(labels) for m in ((f"{i}.txt", b"t%d" % i), (f"{i}.cls", label.encode()))]
    return write_shard(folder / name, members)


def test_class_names_that_look_like_numbers_are_the_same_classes_in_all_splits(tmp_path: Path):
    labelled(tmp_path, "train.tar", ["3.1", "3.10", "rc"] * 4)
    labelled(tmp_path, "test.tar", ["3.10", "3.1", "3.1"])
    data = load(f"{tmp_path}/*.tar", wants="text")
    assert data.label_names == ["3.1", "3.10", "rc"]
    assert data.test.labels.tolist() == [1, 0, 0]
    known = {"wants": "text", "task": "single_label", "label_names": data.label_names}
    assert load_evaluation_data(f"{tmp_path}/test.tar", **known).split.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("cells", "names"), [([0, 1], ["0", "1"]), (["3.1", "3.10"], ["3.1", "3.10"])])
def test_a_json_entry_called_cls_is_what_json_says(tmp_path: Path, cells: list[object], names: list[str]):
    rows = [json.dumps({"cls": cells[i % 2]}).encode() for i in range(8)]
    members = [m for i, row in enumerate(rows) for m in ((f"{i}.txt", b"t%d" % i), (f"{i}.json", row))]
    data = load(str(write_shard(tmp_path / "a.tar", members)), wants="text")
    assert data.label_names == names


def test_a_shard_that_is_written_again_in_another_order_pairs_no_picture_with_another_label(tmp_path: Path):
    rows = pictures(tmp_path / "images")
    # Of one length, so that every place is a row of either order.
    longest = max(len(content) for _, content, _ in rows)
    rows = [(key, content.ljust(longest, b"\0"), label) for key, content, label in rows]
    path = as_shards(tmp_path / "shards", rows, shards=1) / "train-000.tar"
    index = StatIndex(tmp_path / "index")
    data = load(str(path))
    digest_rows(data.train.inputs, index)
    as_shards(tmp_path / "other", rows[::-1], shards=1)
    shutil.copyfile(tmp_path / "other" / "train-000.tar", path)
    # Also where the digests of the other order are known.
    again = load(str(path))
    digest_rows(again.train.inputs, index)
    for read in (lambda: data.train.inputs[0], lambda: digest_rows(data.train.inputs, index)):
        with pytest.raises(DataError, match=r"train-000\.tar: changed since its members were listed: run again"):
            read()
    assert {again.train.inputs[row] for row in range(len(again.train))} <= {content for _, content, _ in rows}


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_sparse_member_is_passed_over_unless_it_is_needed(tmp_path: Path, form: str):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"t{i}")
        (tmp_path / f"{i}.cls").write_text("ab"[i % 2])
    for name in ("z.bin", "7.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(8 << 20)
    members = [f"{i}.{ending}" for i in range(6) for ending in ("txt", "cls")]
    pack = ["tar", "-S", f"--format={form}", "-C", tmp_path, "-cf"]
    subprocess.run([*pack, tmp_path / "a.tar", *members, "z.bin"], check=True)
    data = load(str(tmp_path / "a.tar"), wants="text")
    assert sum(data.sizes().values()) == 6
    assert "passed over 1 member (no plain file, or of no row)" in data.notes
    subprocess.run([*pack, tmp_path / "b.tar", *members, "7.txt"], check=True)
    with pytest.raises(DataError, match=r"b\.tar:7\.txt: a sparse member, which is not read: pack it without --sparse"):
        load(str(tmp_path / "b.tar"), wants="text")


def test_tables_beside_shards_are_said_with_the_pattern_to_give(tmp_path: Path):
    folder = as_shards(tmp_path / "shards [1]", pictures(tmp_path / "images"))
    (folder / "train-000_stats.json").write_text('{"count": 8}')
    with pytest.raises(
        DataError, match=r"tar files and tables lie side by side: give '(.*)' for the tar files"
    ) as said:
        load(str(folder))
    # The advice works when it is followed.
    pattern = str(said.value).split("'")[1]
    assert sum(load(pattern).sizes().values()) == 24


def test_where_keys_end_is_said_where_it_matters(tmp_path: Path):
    image = png(tmp_path / "images")
    dotted = [m for i in range(8) for m in ((f"x{i}.v1.jpg", image), (f"x{i}.v1.cls", b"ab"[i % 2 : i % 2 + 1]))]
    with pytest.raises(DataError, match=r"a key ends at the first dot of the file name, .* 'v1.jpg', 'v1.cls', is the"):
        load(str(write_shard(tmp_path / "a.tar", dotted)))
    dated = [(f"{year}.{month}.jpg", image) for month in (1, 2) for year in (2023, 2024)]
    with pytest.raises(DataError, match=r"key '2023' stands in two places: .* ends at the first dot of the file name"):
        load(str(write_shard(tmp_path / "b.tar", dated)))


def test_a_run_on_a_pattern_is_run_again_from_anywhere(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    as_shards(tmp_path / "shards", pictures(tmp_path / "images"))
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), "shards/train-{000..002}.tar")
    cli.ok("run", recipe, "--out", tmp_path / "first", "--quiet")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cli.ok("run", tmp_path / "first", "--out", tmp_path / "again", "--quiet")
    assert runs.metrics(tmp_path / "again")["eval"] == runs.metrics(tmp_path / "first")["eval"]
    assert runs.metrics(tmp_path / "again")["features"]["computed"] == 0
    # What predict does not read it says in a line, and who reads it.
    for word in ("../shards/train-000.tar", "../shards/train-*.tar", "../shards/train-{000..002}.tar", "s3://b/a.png"):
        line = cli.refused("predict", tmp_path / "first", word)
        assert f"{word}: predict reads files, folders and tables that lie here" in line
        assert "evaluate reads" in line
