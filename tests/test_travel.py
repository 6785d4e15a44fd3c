"""Features that travel: handed on as they are, taken in verified and apart, and used only where they are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import hub_client
import numpy as np
import pytest
import runs
import tiny
import torch
from hub_client import Client
from hub_server import Hub
from runs import Cli, metrics, predictions
from test_run import write_recipe

import hftl
from hftl.errors import HubError, StoreError, UserError
from hftl.frozen.augmented import names_of_views
from hftl.frozen.trusted import trusted_spaces
from hftl.runs.folder import RunFolder
from hftl.runs.record import Metrics
from hftl.store import description
from hftl.store.description import Description
from hftl.store.digests import digest_bytes, digest_texts
from hftl.store.foreign import Origin, foreign_folder
from hftl.store.shard import Shard, encode, file_name
from hftl.store.space import Space
from hftl.store.store import ColumnSpec, FeatureStore, Ragged
from hftl.travel.place import FolderPlace, place_name, place_of
from hftl.travel.pull import pull_space as pull
from hftl.travel.push import push_space as push
from hftl.travel.push import to_hand_on

TOKEN = "hf_canary_travel"
LONG = bool(os.environ.get("HFTL_LONG"))
COLUMNS = {
    "features": ColumnSpec("float32", (3,)),
    "tokens": ColumnSpec("float16", (2,), ragged=True),
    "truncated": ColumnSpec("uint8", ()),
}
IDENTITY = {"model": "org/model", "commit": "c0ffee" * 6 + "c0ff", "modality": "text", "pooling": "native"}


def rows(ids: range) -> dict[str, Any]:
    numbers = torch.tensor(list(ids))
    tokens = torch.repeat_interleave(numbers, numbers % 3)
    return {
        "features": numbers[:, None].float() + torch.arange(3) / 4,
        "tokens": Ragged(torch.stack([tokens, -tokens], 1).half(), numbers % 3),
        "truncated": (numbers % 2).to(torch.uint8),
    }


def names(ids: range) -> np.ndarray:
    return digest_texts([(f"row {i}",) for i in ids])


def filled(root: Path, *parts: range, identity: dict[str, Any] = IDENTITY, info: str = "cut") -> Space:
    """A space with a shard for each part, as runs leave it."""
    space = FeatureStore(root).space(identity, "org/model")
    space.create({"of": info}, COLUMNS)
    for part in parts:
        space.commit(names(part), rows(part))
    return space


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").glob("*.safetensors")}


def pulled(root: Path, source: str) -> tuple[Origin, Space]:
    pull(FeatureStore(root), source)
    found = FeatureStore(root).foreign(source)
    assert found is not None
    return found


# ── a folder, an address ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_holds_the_shards_as_they_are_and_again_only_what_is_new(tmp_path: Path):
    space, there = filled(tmp_path / "mine", range(10), range(10, 25)), tmp_path / "there"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    assert shards(there) == shards(space.path)
    assert (there / "space.json").read_bytes() == (space.path / "space.json").read_bytes()
    before = {path: path.stat().st_ino for path in there.rglob("*")}
    again = push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    assert [upload.path for upload in again.uploads] == ["README.md"]
    space.commit(names(range(25, 30)), rows(range(25, 30)))
    more = push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    assert len(more.uploads) == 2
    assert shards(there) == shards(space.path)
    assert all(path.stat().st_ino == number for path, number in before.items() if path.name != "README.md")
    assert "30 rows in 3 shards" in (there / "README.md").read_text()


def test_pulled_rows_are_equal_and_kept_apart_with_their_origin(tmp_path: Path):
    space, there, yours = filled(tmp_path / "mine", range(10), range(10, 25)), tmp_path / "there", tmp_path / "yours"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    origin, foreign = pulled(yours, str(there))
    assert (origin.name, origin.commit, origin.complete) == (str(there), None, True)
    assert shards(foreign.path) == shards(space.path)
    taken = foreign.gather(names(range(25)))
    assert torch.equal(taken["features"], rows(range(25))["features"])
    # Apart: the store's own space of the same identity knows nothing of them.
    assert not FeatureStore(yours).space(IDENTITY, "x").known(names(range(25))).any()
    (summary,) = FeatureStore(yours).spaces()
    assert (summary.origin, summary.rows, summary.label) == (str(there), 25, "org/model")
    assert FeatureStore(yours).compact() == 0
    assert not FeatureStore(tmp_path / "third").root.exists()
    with pytest.raises(StoreError, match="no other cache"):
        FeatureStore(tmp_path / "third").merge(FeatureStore(yours))


def test_a_pull_brings_what_is_new_drops_what_is_gone_and_fetches_nothing_twice(tmp_path: Path):
    space, there, yours = filled(tmp_path / "mine", range(10), range(10, 25)), tmp_path / "there", tmp_path / "yours"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    store = FeatureStore(yours)
    assert pull(store, str(there)).fetched == 2
    assert pull(store, str(there)).fetched == 0
    gone = next(iter(shards(there)))
    (there / "shards" / gone).unlink()
    space.commit(names(range(25, 30)), rows(range(25, 30)))
    push(store=FeatureStore(tmp_path / "mine"), name="org/model", target=str(there))
    (there / "shards" / gone).unlink()
    done = pull(store, str(there))
    assert (done.fetched, done.removed) == (1, 1)
    assert shards(foreign_folder(yours, str(there))) == shards(there)


def test_what_fsspec_reaches_is_a_place_too(tmp_path: Path):
    space = filled(tmp_path / "mine", range(10), range(10, 25))
    address = f"memory://{tmp_path.name}/features/"
    push(FeatureStore(tmp_path / "mine"), "org/model", address)
    origin, foreign = pulled(tmp_path / "yours", address.rstrip("/"))
    assert origin.name == address.rstrip("/")
    assert shards(foreign.path) == shards(space.path)
    # What broke off there has another size, and is written again.
    (first, *_) = fsspec.filesystem("memory").find(f"/{tmp_path.name}/features/shards")
    fsspec.filesystem("memory").pipe_file(first, b"cut")
    assert [u.path for u in push(FeatureStore(tmp_path / "mine"), "org/model", address).uploads][:-1] == [
        f"shards/{Path(first).name}"
    ]
    with pytest.raises(UserError, match="cannot be reached"):
        pull(FeatureStore(tmp_path / "yours"), "nowhere://features")
    with pytest.raises(HubError, match="cannot be reached"):
        pull(FeatureStore(tmp_path / "yours"), "ftp://127.0.0.1:9/features")


def test_a_pull_that_fails_at_its_first_file_leaves_the_mirror_of_use(tmp_path: Path):
    filled(tmp_path / "mine", range(10))
    there, yours = tmp_path / "there", tmp_path / "yours"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    pulled(yours, str(there))
    (there / "space.json").write_text("broken")
    for store in (FeatureStore(yours), FeatureStore(tmp_path / "new")):
        with pytest.raises(UserError, match="damaged"):
            pull(store, str(there))
    found = FeatureStore(yours).foreign(str(there))
    assert found is not None
    assert found[0].complete
    assert FeatureStore(tmp_path / "new").spaces() == []


def test_a_description_or_card_that_is_too_large_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(tmp_path / "mine", range(10))
    there = tmp_path / "there"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there), license="cc-by-4.0")
    with (there / "README.md").open("a") as file:
        file.write("x" * (1 << 20))
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    assert "license: cc-by-4.0" not in (there / "README.md").read_text()
    os.truncate(there / "space.json", description.LARGEST + 1)
    monkeypatch.setattr(FolderPlace, "fetch", None)
    with pytest.raises(UserError, match="larger than any that hftl writes"):
        pull(FeatureStore(tmp_path / "yours"), str(there))


@pytest.mark.parametrize("address", ["memory://{}/features", "{}/there"])
def test_shards_that_are_merged_while_they_are_sent_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
):
    filled(tmp_path / "mine", range(10), range(10, 25))

    def merged(*given: Any, **named: Any) -> Any:
        handed = to_hand_on(*given, **named)
        assert FeatureStore(tmp_path / "mine").compact() > 0
        return handed

    monkeypatch.setattr("hftl.travel.push.to_hand_on", merged)
    target = address.format(tmp_path if address.endswith("there") else tmp_path.name)
    with pytest.raises(StoreError, match="org/model: shards were merged while they were sent: push again"):
        push(FeatureStore(tmp_path / "mine"), "org/model", target)
    monkeypatch.undo()
    push(FeatureStore(tmp_path / "mine"), "org/model", target)


def test_an_origin_of_which_nothing_was_read_is_not_named_as_a_source(tmp_path: Path):
    told = {"origin": "me/x", "commit": "c0ffee", "space": "s", "checked": 0}
    made = Metrics.model_construct(features={"foreign": [{**told, "rows": 0}, {**told, "rows": 7}]})
    assert made.foreign == [("me/x at c0ffee", 7)]


def test_a_name_is_found_without_reaching_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def reached(*_: Any) -> None:
        raise AssertionError

    for text in (f"file://{tmp_path}/x/", str(tmp_path / "x"), "me/x", "memory://a/b/", "~/x"):
        assert place_name(text) == place_of(text).name
    monkeypatch.setattr(fsspec.core, "url_to_fs", reached)
    with pytest.raises(UserError, match="nothing of it is here; get it with: hftl cache pull sftp://host/x"):
        trusted_spaces(FeatureStore(tmp_path), ["sftp://alice:se@cret@host/x"])


def test_a_password_in_an_address_goes_nowhere_but_there(tmp_path: Path):
    filled(tmp_path / "mine", range(10))
    address = f"memory://alice:secret@{tmp_path.name}/features"
    push(FeatureStore(tmp_path / "mine"), "org/model", address)
    done = pull(FeatureStore(tmp_path / "yours"), address)
    assert done.origin.name == f"memory://{tmp_path.name}/features"
    assert FeatureStore(tmp_path / "yours").foreign(place_name(address))
    kept = [*(tmp_path / "yours").rglob("*")]
    assert not [path for path in kept if "secret" in path.name or (path.is_file() and b"secret" in path.read_bytes())]
    card = fsspec.filesystem("memory").cat(f"/alice:secret@{tmp_path.name}/features/README.md")
    assert b"secret" not in card
    with pytest.raises(HubError) as refused:
        pull(FeatureStore(tmp_path / "yours"), "ftp://alice:secret@127.0.0.1:9/features")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", ["~nobody-there/x", "features", "../me/x/y z", "https://a.b/c", "hf://datasets/me/x", ""]
)
def test_what_is_no_place_is_refused(tmp_path: Path, wrong: str):
    with pytest.raises(UserError):
        pull(FeatureStore(tmp_path), wrong)


def forged(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Put other numbers into every shard of a pushed folder, under the names that their checksums give."""
    description = Description.load(folder / "space.json")
    assert description is not None
    space = Space(folder, description.identity, "x", FeatureStore(folder)._files, 0o700)
    for name in space.shard_sizes():
        shard = space.read_shard(name)
        columns = {n: np.array(v) if isinstance(v, np.ndarray) else v for n, v in shard.columns.items()}
        change(columns)
        parts = encode(Shard(np.array(shard.digests), columns), space.columns, space.id, "forged")
        (folder / "shards" / name).unlink()
        (folder / "shards" / file_name(parts)).write_bytes(b"".join(parts))


def test_what_arrives_otherwise_than_its_checksum_says_is_left_out_and_named(tmp_path: Path, cli: Cli):
    filled(tmp_path / "mine", range(10), range(10, 25))
    there = tmp_path / "there"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    bad = next((there / "shards").iterdir())
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    (there / "shards" / "notes.txt").write_text("no shard")
    assert cli("cache", "pull", str(there), "--json") == 1
    assert f"1 shard of {there} were left out, such as {bad.name}: its checksum is wrong" in cli.err
    told = json.loads(cli.out)
    assert (told["fetched"], list(told["refused"])) == (1, [bad.name])
    (summary,) = FeatureStore(tmp_path / "hftl-cache").spaces()
    assert summary.shards == 1
    assert not (summary.path / "incoming").exists()


def test_foreign_rows_that_are_no_numbers_are_left_out(tmp_path: Path):
    filled(tmp_path / "mine", range(10))
    push(FeatureStore(tmp_path / "mine"), "org/model", str(tmp_path / "there"))
    forged(tmp_path / "there", lambda columns: columns["features"].fill(np.nan))
    done = pull(FeatureStore(tmp_path / "yours"), str(tmp_path / "there"))
    assert list(done.refused.values()) == ["its features (features) are NaN or infinite"]


def test_a_place_that_holds_something_else_is_not_written_to(tmp_path: Path):
    filled(tmp_path / "mine", range(10))
    store = FeatureStore(tmp_path / "mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.md").write_text("mine")
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(UserError, match=r"holds something else \('cat.jpg'\)"):
        push(store, "org/model", str(tmp_path / "photos"))
    assert (tmp_path / "photos" / "README.md").read_text() == "mine"
    push(store, "org/model", str(tmp_path / "there"))
    other = filled(tmp_path / "other", range(10), identity=IDENTITY | {"pooling": "mean"})
    with pytest.raises(UserError, match="holds another space"):
        push(FeatureStore(tmp_path / "other"), other.path.name, str(tmp_path / "there"))
    filled(tmp_path / "cut", range(10), info="another")
    with pytest.raises(UserError, match="another cut"):
        push(FeatureStore(tmp_path / "cut"), "org/model", str(tmp_path / "there"))
    pull(store, str(tmp_path / "there"))
    with pytest.raises(UserError, match="was made elsewhere"):
        push(store, str(tmp_path / "there"), str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="is not there"):
        push(store, "org/unknown", str(tmp_path / "elsewhere"))


def test_a_damaged_shard_is_set_aside_and_not_handed_on(tmp_path: Path):
    space = filled(tmp_path / "mine", range(10), range(10, 25))
    bad = next((space.path / "shards").iterdir())
    bad.write_bytes(bad.read_bytes()[:-1] + b"x")
    done = push(FeatureStore(tmp_path / "mine"), "org/model", str(tmp_path / "there"))
    assert done.notes == ["1 damaged shard set aside and not pushed"]
    assert bad.name not in shards(tmp_path / "there")
    assert len(shards(tmp_path / "there")) == 1


def test_gc_verify_and_clear_know_foreign_spaces(tmp_path: Path, cli: Cli):
    filled(tmp_path / "mine", range(10), range(10, 25))
    there = tmp_path / "there"
    push(FeatureStore(tmp_path / "mine"), "org/model", str(there))
    store = FeatureStore(tmp_path / "hftl-cache")
    _, foreign = pulled(store.root, str(there))
    assert str(there) in cli.ok("cache", "ls")
    assert json.loads(cli.ok("cache", "verify", "--json"))[0]["rows"] == 25
    bad = next((foreign.path / "shards").iterdir())
    bad.write_bytes(b"rotten")
    assert cli("cache", "verify") == 1
    # Pulled again, the damaged shard comes back.
    assert json.loads(cli.ok("cache", "pull", str(there), "--json"))["fetched"] == 1
    del foreign
    for lease in store.root.rglob("leases/*"):
        lease.unlink()
    assert [space.origin for space in store.gc(0)] == [str(there)]
    assert store.spaces() == []
    pull(store, str(there))
    assert str(there) in cli.ok("cache", "clear", str(there), "--force")
    assert store.spaces() == []


def test_a_path_of_the_pushing_machine_stays_there(tmp_path: Path):
    home = Path.home()
    store = FeatureStore(tmp_path / "mine")
    for told in ("/home/alice/weights", "C:\\Users\\alice\\weights", f"see {home}/x", "~/weights/x"):
        space = filled(store.root, range(5), identity=IDENTITY | {"plugin": {"file": told}})
        with pytest.raises(UserError, match=r"its space.json.identity.plugin.file names a file of this machine"):
            push(store, space.path.name, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


# ── the card ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def snippet(folder: Path) -> str:
    return runs.card_code((folder / "README.md").read_text())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_cards_lines_of_python_read_the_rows_without_hftl(tmp_path: Path, dtype: str):
    columns = {**COLUMNS, "tokens": ColumnSpec(dtype, (2,), ragged=True)}
    space = FeatureStore(tmp_path / "mine").space(IDENTITY, "org/model")
    space.create({}, columns)
    for part in (range(10), range(10, 25)):
        made = rows(part)
        tokens = Ragged(made["tokens"].values.to(getattr(torch, dtype)), made["tokens"].lengths)
        space.commit(names(part), {**made, "tokens": tokens})
    push(FeatureStore(tmp_path / "mine"), "org/model", str(tmp_path / "there"))
    code = snippet(tmp_path / "there")
    assert "import hftl" not in code
    assert "from hftl" not in code
    variables: dict[str, Any] = {}
    exec(code.replace('"FOLDER"', repr(str(tmp_path / "there"))), variables)
    row = variables["row_of"]("row 17")
    assert np.asarray(row["features"]).tolist() == [17, 17.25, 17.5]
    assert torch.as_tensor(row["tokens"]).float().tolist() == [[17, -17]] * 2
    assert len(variables["features"]) == 25


def test_the_cards_lines_find_changed_views_of_a_picture(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"a picture")
    identity = {**IDENTITY, "modality": "image", "storage": "bf16", "view": {"augmentation": 1}}
    space = FeatureStore(tmp_path / "mine").space(identity, "org/model")
    space.create({}, {"features": ColumnSpec("bfloat16", (1,))})
    digests = names_of_views(np.tile(np.frombuffer(digest_bytes(b"a picture"), np.uint8), (3, 1)), [1, 2, 3])
    space.commit(digests, {"features": torch.tensor([[1.0], [2.0], [3.0]]).bfloat16()})
    push(FeatureStore(tmp_path / "mine"), "org/model", str(tmp_path / "there"))
    assert "stored in bf16, of changed views of pictures" in (tmp_path / "there" / "README.md").read_text()
    variables: dict[str, Any] = {}
    exec(snippet(tmp_path / "there").replace('"FOLDER"', repr(str(tmp_path / "there"))), variables)
    assert variables["row_of"](tmp_path / "a.png", 2)["features"].tolist() == [2.0]


def test_the_card_says_what_the_rows_are_and_a_licence_once_stated_stays(tmp_path: Path, cli: Cli):
    filled(tmp_path / "hftl-cache", range(10))
    there = tmp_path / "there"
    cli.ok("cache", "push", "org/model", str(there), "--license", "cc-by-4.0")
    text = (there / "README.md").read_text()
    for said in (
        "license: cc-by-4.0",
        IDENTITY["commit"],
        "10 rows in 1 shard",
        "What they reveal",
        "`tokens` float16",
    ):
        assert said in text
    cli.ok("cache", "push", "org/model", str(there))
    assert (there / "README.md").read_text() == text
    listed = json.loads(cli.ok("cache", "push", "org/model", str(tmp_path / "dry"), "--dry-run", "--json"))
    assert [each["file"] for each in listed][1:] == ["space.json", "README.md"]
    assert not (tmp_path / "dry").exists()
    assert "Hub's id of a licence" in cli.refused("cache", "push", "org/model", str(there), "--license", "my own\nx")


def test_what_is_damaged_newer_or_asked_for_in_vain_is_one_line(tmp_path: Path, cli: Cli):
    filled(tmp_path / "hftl-cache", range(10))
    there = tmp_path / "there"
    assert "--public is for repositories" in cli.refused("cache", "push", "org/model", str(there), "--public")
    cli.ok("cache", "push", "org/model", str(there))
    good = (there / "space.json").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "FORMAT", 2)
        newer = Description(IDENTITY, "x", {}, COLUMNS).encode()
    for text, said in ((newer, "has format 2, this hftl knows 1: update hftl"), (good[:-20].encode(), "is damaged")):
        (there / "space.json").write_bytes(text)
        assert said in cli.refused("cache", "pull", str(there))
        assert said in cli.refused("cache", "push", "org/model", str(there))
    assert "get it with" in cli.refused(
        "run",
        "--backbone",
        "hftl/glyph-vit-tiny",
        "--data",
        "sample:digits",
        "--limit",
        "40",
        "--trust-features",
        str(there),
    )


def test_a_label_is_no_markup(tmp_path: Path):
    space = FeatureStore(tmp_path / "mine").space(IDENTITY, "x](http://evil) <b>\n# y")
    space.create({}, COLUMNS)
    space.commit(names(range(5)), rows(range(5)))
    push(FeatureStore(tmp_path / "mine"), space.path.name, str(tmp_path / "there"))
    title = next(line for line in (tmp_path / "there" / "README.md").read_text().splitlines() if line.startswith("# "))
    assert not set("[]()<>") & set(title)


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a folder that a lab pushed its features to."""
    home = tmp_path_factory.mktemp("lab")
    backbone = tiny.save("bert", home / "backbone")
    recipe = write_recipe(home, backbone, runs.write_texts(home / "data.csv", 90))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(home / "cache"))
        hftl.features(str(recipe), quiet=True)
    store = FeatureStore(home / "cache")
    (native,) = (space.name for space in store.spaces() if space.identity["pooling"] == "native")
    push(store, native, str(home / "there"))
    return recipe, home / "there"


@pytest.fixture
def lab(pushed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The recipe, and a copy of that folder; this machine's own store is empty."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "own"))
    return pushed[0], Path(shutil.copytree(pushed[1], tmp_path / "there"))


def run_metrics(cli: Cli, recipe: Path, out: str, *more: str) -> dict[str, Any]:
    cli.ok("run", recipe, "--out", out, "--no-report", *more)
    return metrics(Path(out))["features"]


def test_foreign_features_are_used_where_they_are_named_and_only_there(
    lab: tuple[Path, Path], cli: Cli, tmp_path: Path
):
    recipe, there = lab
    distinct = len(names_in(there))
    cli.refused("run", recipe, "--trust-features", str(there))
    assert "get it with: hftl cache pull" in cli.err
    cli.ok("cache", "pull", str(there))
    trusted = run_metrics(cli, recipe, "trusted", "--trust-features", str(there))
    checked = trusted["computed"]
    assert f"{checked} others of it were computed here and agree" in cli.out
    (told,) = trusted["foreign"]
    assert (told["origin"], told["checked"]) == (str(there), checked)
    # Besides the sample those rows that the export is proved on.
    assert 16 < checked <= 16 + 8
    assert told["rows"] >= distinct - checked > 16
    # What was computed here is this store's own, and nothing else.
    spaces = FeatureStore(tmp_path / "own").spaces()
    assert [space.rows for space in spaces if space.origin is None and space.id == told["space"]] == [checked]
    record = RunFolder.open(Path("trusted")).record()
    assert record.trust_features == [str(there)]
    card = Path("trusted/model/README.md").read_text()
    assert "were not computed by this run, but read from there" in card
    assert str(tmp_path) not in card
    # Again: these rows were found right, and the weights stay unread.
    again = run_metrics(cli, recipe, "again", "--trust-features", str(there))
    assert (again["computed"], again["foreign"][0]["checked"]) == (0, 0)
    assert "found right before" in cli.out
    # Not named, not used.
    alone = run_metrics(cli, recipe, "alone")
    assert "foreign" not in alone
    assert alone["computed"] == distinct - checked
    assert predictions(Path("trusted"))["prediction"] == predictions(Path("alone"))["prediction"]
    assert "foreign  " not in cli.out
    repeated = run_metrics(cli, Path("trusted"), "repeated")
    assert "foreign" not in repeated
    assert "are used if --trust-features names them" in cli.err


def test_after_the_own_space_is_cleared_a_checked_origin_is_checked_anew(
    lab: tuple[Path, Path], cli: Cli, tmp_path: Path
):
    recipe, there = lab
    cli.ok("cache", "pull", str(there))
    run_metrics(cli, recipe, "first", "--trust-features", str(there))
    own = [space for space in FeatureStore(tmp_path / "own").spaces() if space.origin is None]
    for space in own:
        cli.ok("cache", "clear", space.name, "--force")
    assert run_metrics(cli, recipe, "second", "--trust-features", str(there))["foreign"][0]["checked"] >= 16


def test_what_another_machine_rounds_otherwise_leaves_the_proof_of_the_export_alone(lab: tuple[Path, Path], cli: Cli):
    recipe, there = lab
    forged(there, lambda columns: columns["features"].__imul__(1.008))
    cli.ok("cache", "pull", str(there))
    assert run_metrics(cli, recipe, "rounded", "--trust-features", str(there))["foreign"][0]["rows"] > 16


def names_in(there: Path) -> set[bytes]:
    from safetensors.numpy import load_file

    return {row.tobytes() for path in (there / "shards").iterdir() for row in load_file(path)["digests"]}


def test_a_forged_shard_with_a_right_checksum_is_caught(lab: tuple[Path, Path], cli: Cli, tmp_path: Path):
    recipe, there = lab
    forged(there, lambda columns: columns["features"].__imul__(-1))
    cli.ok("cache", "pull", str(there))
    assert cli("run", recipe, "--out", "forged", "--trust-features", str(there)) == 1
    wrong = re.search(r" is not used: (\d+) of (\d+) rows differ", cli.err)
    assert wrong is not None
    assert wrong[1] == wrong[2]
    assert not Path("forged/metrics.json").exists()
    # The advice works.
    cli.ok("cache", "clear", cli.err.rpartition("hftl cache clear ")[2].split()[0], "--force")
    assert run_metrics(cli, recipe, "alone")["computed"] == len(names_in(there)) - int(wrong[1])


def test_what_changed_since_it_was_checked_is_checked_again(lab: tuple[Path, Path], cli: Cli):
    recipe, there = lab
    cli.ok("cache", "pull", str(there))
    run_metrics(cli, recipe, "one", "--trust-features", str(there))
    forged(there, lambda columns: columns["features"].__imul__(-1))
    cli.ok("cache", "pull", str(there))
    assert cli("run", recipe, "--out", "two", "--trust-features", str(there)) == 1
    assert "rows differ" in cli.err


def test_features_of_something_else_and_of_another_cut_are_refused(lab: tuple[Path, Path], cli: Cli, tmp_path: Path):
    recipe, there = lab
    cli.ok("cache", "pull", str(there))
    other = cli.refused("run", recipe, "--pooling", "mean", "--trust-features", str(there))
    assert "its features are of something else than this recipe's (another pooling)" in other
    described = Description.load(there / "space.json")
    assert described is not None
    info = {**described.info, "architecture": "Another"}
    text = Description(described.identity, described.label, info, described.columns).encode()
    (there / "space.json").write_bytes(text)
    cli.ok("cache", "pull", str(there))
    assert cli("run", recipe, "--out", "cut", "--trust-features", str(there)) == 1
    assert "records another cut of the model" in cli.err


def test_a_pull_that_did_not_end_is_not_used(lab: tuple[Path, Path], cli: Cli, tmp_path: Path):
    recipe, there = lab
    cli.ok("cache", "pull", str(there))
    folder = foreign_folder(tmp_path / "own", str(there))
    Origin.now(str(there), None, complete=False).write(folder, 0o700)
    assert "not all of it has arrived; go on with: hftl cache pull" in cli.refused(
        "run", recipe, "--trust-features", str(there)
    )
    cli.ok("cache", "pull", str(there))
    run_metrics(cli, recipe, "whole", "--trust-features", str(there))


def test_nothing_of_this_machine_is_in_what_is_pushed(pushed: tuple[Path, Path]):
    recipe, there = pushed
    contents = {path.name: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    for secret in (str(recipe.parent), str(Path.home()), socket.gethostname(), "data.csv", "sat under"):
        assert not [name for name, content in contents.items() if secret.encode() in content], secret


def test_fine_tuning_that_starts_from_no_features_has_no_use_for_foreign_ones(lab: tuple[Path, Path], cli: Cli):
    recipe, there = lab
    said = cli.refused("run", recipe, "--method", "full", "--init", "random", "--trust-features", str(there))
    assert "starts from no features" in said


# ── the Hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.user("me", TOKEN)
        running.user("you", "hf_you")
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home"), TOKEN) as running:
        yield running


def there(hub: Hub, repo_id: str) -> dict[str, bytes]:
    files = hub.repos["datasets", repo_id].head.files
    return {path.rpartition("/")[2]: blob.content for path, blob in files.items() if path.startswith("shards/")}


def test_a_space_goes_to_the_hub_in_one_commit_and_again_only_what_is_new(hub: Hub, client: Client, tmp_path: Path):
    space = filled(tmp_path, range(10), range(10, 25))
    first = client(hub_client.cache_push, tmp_path, "org/model", "me/features")
    repo = hub.repos["datasets", "me/features"]
    assert first["url"] == f"{hub.url}/datasets/me/features/commit/{repo.head.sha}"
    assert (len(repo.history()), repo.private) == (2, True)
    assert set(repo.head.files) == {
        ".gitattributes",
        "README.md",
        "space.json",
        *(f"shards/{n}" for n in shards(space.path)),
    }
    assert there(hub, "me/features") == shards(space.path)
    sent = hub.count("PUT", "")
    assert not client(hub_client.cache_push, tmp_path, "org/model", "me/features")["changed"]
    space.commit(names(range(25, 30)), rows(range(25, 30)))
    client(hub_client.cache_push, tmp_path, "org/model", "me/features")
    assert hub.count("PUT", "") == sent + 1
    assert len(repo.history()) == 3
    assert there(hub, "me/features") == shards(space.path)


def test_the_cards_lines_read_a_repository_of_the_hub(hub: Hub, client: Client, tmp_path: Path):
    filled(tmp_path / "mine", range(10), range(10, 25))
    client(hub_client.cache_push, tmp_path / "mine", "org/model", "me/carded")
    card = hub.repos["datasets", "me/carded"].head.files["README.md"].content.decode()
    code = runs.card_code(card)
    with Client(hub, tmp_path / "stranger", TOKEN) as stranger:
        (features,) = stranger(hub_client.execute, f"{code}\nfound = row_of('row 3')['features'].tolist()", "found")
    assert features == [3, 3.25, 3.5]


def test_what_was_pulled_is_of_a_commit(hub: Hub, client: Client, tmp_path: Path):
    space = filled(tmp_path / "mine", range(10), range(10, 25))
    client(hub_client.cache_push, tmp_path / "mine", "org/model", "me/pinned")
    sha = hub.repos["datasets", "me/pinned"].head.sha
    done = client(hub_client.cache_pull, tmp_path / "yours", "me/pinned")
    assert (done["origin"], done["fetched"]) == (f"me/pinned at {sha[:12]}", 2)
    assert shards(foreign_folder(tmp_path / "yours", "me/pinned")) == shards(space.path)
    assert not list((tmp_path / "yours").rglob("incoming"))
    (summary,) = FeatureStore(tmp_path / "yours").spaces()
    assert (summary.origin, summary.origin_commit) == ("me/pinned", sha)
    assert summary.answers_to("me/pinned")
    gets = hub.count("GET", "^/[0-9a-f]{64}")
    assert client(hub_client.cache_pull, tmp_path / "yours", "me/pinned")["fetched"] == 0
    assert hub.count("GET", "^/[0-9a-f]{64}") == gets


@pytest.mark.parametrize("event", ["request", "response"] if LONG else ["request"])
def test_a_push_that_is_killed_at_any_request_goes_on_in_one_commit(
    hub: Hub, client: Client, tmp_path: Path, event: str
):
    space = filled(tmp_path, range(10), range(10, 25))
    for number in range(1, 100):
        repo_id = f"me/killed-{event}-{number}"
        killed = client(hub_client.killed_at, event, number, hub_client.cache_push, tmp_path, "org/model", repo_id)
        if not killed:
            break
        client(hub_client.cache_push, tmp_path, "org/model", repo_id)
        repo = hub.repos["datasets", repo_id]
        assert there(hub, repo_id) == shards(space.path)
        assert len(repo.history()) == 2
    assert number > 8


@pytest.mark.parametrize("event", ["request", "response"] if LONG else ["response"])
def test_a_pull_that_is_killed_at_any_request_goes_on(hub: Hub, client: Client, tmp_path: Path, event: str):
    space = filled(tmp_path / "mine", range(10), range(10, 25))
    repo_id = f"me/pulled-{event}"
    client(hub_client.cache_push, tmp_path / "mine", "org/model", repo_id)
    for number in range(1, 100):
        root = tmp_path / str(number)
        killed = client(hub_client.killed_at, event, number, hub_client.cache_pull, root, repo_id)
        if not killed:
            break
        left = Origin.read(foreign_folder(root, repo_id))
        assert left is None or not left.complete
        client(hub_client.cache_pull, root, repo_id)
        assert shards(foreign_folder(root, repo_id)) == shards(space.path)
        assert not list(root.rglob(".tmp-*"))
    assert number > 5


FAULTS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "asked": [("GET", "/api/datasets/", {"status": 503, "times": 2, "retry_after": 0})],
    "made, answer lost": [("POST", "/repos/create", {"cut": "after"})],
    "uploaded": [("PUT", "", {"cut": "request"})],
    "commit done, answer lost": [("POST", "/commit/", {"cut": "after"})],
    "committed meanwhile": [("POST", "/commit/", {"status": 412})],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for(hub: Hub, client: Client, tmp_path: Path, fault: str):
    space = filled(tmp_path, range(10), range(10, 25))
    repo_id = f"me/fault-{list(FAULTS).index(fault)}"
    for method, path, options in FAULTS[fault]:
        hub.fail(method, path, **options)
    client(hub_client.cache_push, tmp_path, "org/model", repo_id)
    assert not [each for each in hub.faults if each.times]
    assert there(hub, repo_id) == shards(space.path)
    assert len(hub.repos["datasets", repo_id].history()) == 2


def test_what_breaks_off_while_it_is_pulled_is_asked_for_again(hub: Hub, client: Client, tmp_path: Path):
    space = filled(tmp_path / "mine", range(10), range(10, 25))
    client(hub_client.cache_push, tmp_path / "mine", "org/model", "me/broken")
    hub.fail("GET", "^/[0-9a-f]{64}", cut="answer")
    hub.fail("GET", "/tree/", status=503, retry_after=0)
    client(hub_client.cache_pull, tmp_path / "yours", "me/broken")
    assert not [each for each in hub.faults if each.times]
    assert shards(foreign_folder(tmp_path / "yours", "me/broken")) == shards(space.path)


def test_two_who_push_different_spaces_to_one_new_repository_do_not_mix_them(hub: Hub, client: Client, tmp_path: Path):
    filled(tmp_path, range(10))
    # The other's description appears between the look and the commit.
    other = filled(tmp_path / "other", range(10), identity=IDENTITY | {"pooling": "mean"})
    hub.add("me/mixed", {"README.md": b""}, type="datasets")
    looked: list[int] = []
    take = hub.take_fault

    def meanwhile(method: str, path: str) -> Any:
        if method == "GET" and "/tree/" in path and "me/mixed" in path:
            looked.append(1)
            if len(looked) == 2:
                hub.add("me/mixed", {"space.json": (other.path / "space.json").read_bytes()}, type="datasets")
        return take(method, path)

    hub.take_fault = meanwhile  # type: ignore[method-assign]
    try:
        with pytest.raises(HubError, match=r"(somebody else put space.json there meanwhile|lost every race)"):
            client(hub_client.cache_push, tmp_path, "org/model", "me/mixed")
    finally:
        hub.take_fault = take  # type: ignore[method-assign]
    assert not there(hub, "me/mixed")


def test_who_may_not_and_what_is_not_there_is_one_line(hub: Hub, client: Client, tmp_path: Path):
    filled(tmp_path, range(10))
    with pytest.raises(UserError, match="without a token"):
        client(hub_client.cache_push, tmp_path, "org/model", "me/x", token="")
    with pytest.raises(UserError, match="refused to your token"):
        client(hub_client.cache_push, tmp_path, "org/model", "you/x")
    with pytest.raises(UserError, match="me/nothing is not there, or not for you to see"):
        client(hub_client.cache_pull, tmp_path, "me/nothing")
    hub.add("me/pictures", {"cat.jpg": b"cat", "README.md": b"mine"}, type="datasets")
    with pytest.raises(UserError, match="holds something else"):
        client(hub_client.cache_push, tmp_path, "org/model", "me/pictures")
    with pytest.raises(UserError, match="holds no features that hftl pushed"):
        client(hub_client.cache_pull, tmp_path, "me/pictures")
    assert os.environ.get("HF_TOKEN") != TOKEN
