"""Reading from a Hub with the real clients: revisions, rights, the cache, faults, and what must not be read."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import Client, read_data, read_model
from hub_content import VIT, add_flowers, add_reviews, add_vit
from hub_server import Hub
from safetensors.torch import load_file

from hftl.errors import BackboneError, DataError, HubError


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("content")
    with Hub() as running:
        running.user("me", "hf_me")
        running.user("you", "hf_you")
        add_vit(running, folder / "vit")
        add_flowers(running, folder)
        add_reviews(running)
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def cut_off(hub: Hub, client: Client) -> Iterator[Client]:
    """With the same caches, and offline."""
    with Client(hub, client.home, HF_HUB_OFFLINE="1") as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults_left(hub: Hub) -> Iterator[None]:
    yield
    left = [fault for fault in hub.faults if 0 < fault.times < 100]
    hub.faults.clear()
    assert not left, "a fault that was asked for was never met"


def copy(hub: Hub, name: str, **options: Any) -> str:
    """The tiny ViT under another name."""
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    hub.add(name, files, **options)
    return name


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_comes_with_its_commit_licence_and_safetensors_and_nothing_else(hub: Hub, client: Client) -> None:
    copy(hub, "a/full")
    more = {
        "pytorch_model.bin": b"x",
        "tf_model.h5": b"x",
        "onnx/model.safetensors": b"x",
    }
    hub.add("a/full", more)
    read = client(read_model, "a/full")
    assert read["commit"] == hub.repos["models", "a/full"].head.sha
    assert read["license"] == {"license": "apache-2.0"}
    assert read["files"] == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert hub.count("GET", "full.*onnx|full.*bin|full.*h5") == 0


def test_an_adapter_is_no_backbone(hub: Hub, client: Client) -> None:
    # transformers would load what it names, such as a model of this machine, in place of what is here.
    adapter = {"adapter_config.json": b'{"base_model_name_or_path": "/home"}', "adapter_model.safetensors": b"x"}
    copy(hub, "a/both")
    for name in ("a/both", "a/adapter"):
        hub.add(name, adapter)
        with pytest.raises(BackboneError, match="holds a PEFT adapter: merge it"):
            client(read_model, name)


def test_a_revision_is_a_branch_a_commit_or_a_pull_request(hub: Hub, client: Client) -> None:
    copy(hub, "a/revisions")
    first = hub.repos["models", "a/revisions"].head.sha
    hub.add("a/revisions", {"more.txt": b"2"}, ref="refs/pr/1")
    hub.add("a/revisions", {"more.txt": b"3"})
    refs = hub.repos["models", "a/revisions"].refs
    for revision, commit in [("", refs["main"]), (f"@{first}", first), ("@refs/pr/1", refs["refs/pr/1"])]:
        assert client(read_model, f"a/revisions{revision}")["commit"] == commit
    with pytest.raises(BackboneError, match="has no such revision"):
        client(read_model, "a/revisions@v9")


def test_private_gated_and_unknown_models_say_how_to_get_them(hub: Hub, client: Client) -> None:
    copy(hub, "me/private", private=True)
    copy(hub, "you/gated", gated=True)
    for token in ("", "hf_you"):
        with pytest.raises(BackboneError, match="private and you are not logged in"):
            client(read_model, "me/private", token=token)
    assert client(read_model, "me/private", token="hf_me")["commit"]
    for token in ("", "hf_me"):
        with pytest.raises(
            BackboneError, match=r"gated: ask for access at http://127\.0\.0\.1:\d+/you/gated, then log"
        ):
            client(read_model, "you/gated", token=token)
    hub.repos["models", "you/gated"].allowed.add("me")
    assert client(read_model, "you/gated", token="hf_me")["commit"]
    with pytest.raises(BackboneError, match="is not on the Hub"):
        client(read_model, "a/nothing")
    with pytest.raises(BackboneError, match="does not accept your token"):
        client(read_model, "a/nothing", token="hf_wrong")


def test_offline_reads_the_cache_and_says_what_is_not_in_it(hub: Hub, client: Client, cut_off: Client) -> None:
    commit = client(read_model, VIT)["commit"]
    copy(hub, "a/unread")
    before = len(hub.requests)
    assert client(read_model, VIT, offline=True)["commit"] == commit
    with pytest.raises(BackboneError, match=r"is not on this machine and .* hf download a/unread"):
        client(read_model, "a/unread", offline=True)
    assert cut_off(read_model, VIT)["commit"] == commit
    with pytest.raises(BackboneError, match="offline mode is on"):
        cut_off(read_model, "a/unread")
    with pytest.raises(DataError, match="the Hub cannot be reached"):
        cut_off(read_data, "a/unread")
    assert len(hub.requests) == before


READING = {
    "asked 503": [("GET", "/api/models/", {"status": 503, "times": 2, "retry_after": 0})],
    "asked 429": [("GET", "/tree/", {"status": 429, "times": 1, "retry_after": 0})],
    "head 500": [("HEAD", "/config.json", {"status": 500, "times": 2})],
    "file 502": [("GET", "/config.json", {"status": 502, "times": 2, "retry_after": 0})],
    "weights 503": [("GET", "^/[0-9a-f]{64}", {"status": 503, "times": 2, "retry_after": 0})],
    "weights cut": [("GET", "^/[0-9a-f]{64}", {"times": 2})],
    "answer reset": [("GET", "/tree/", {"cut": "after"})],
}


@pytest.mark.parametrize("fault", READING)
def test_a_download_survives_what_passes(hub: Hub, client: Client, fault: str) -> None:
    name = copy(hub, f"faults/{fault.replace(' ', '-')}")
    marked = hub.repos["models", name].head.files["model.safetensors"].content
    for method, path, options in READING[fault]:
        hub.fail(method, path, **options)
    read = client(read_model, name)
    assert (read["folder"] / "model.safetensors").read_bytes() == marked


def test_what_does_not_pass_is_one_line_after_a_bounded_number_of_tries(hub: Hub, client: Client) -> None:
    copy(hub, "faults/down")
    hub.fail("GET", "/api/models/faults/down", status=503, times=1000, retry_after=0)
    before = len(hub.requests)
    with pytest.raises(HubError, match="the Hub answered Server error '503") as caught:
        client(read_model, "faults/down")
    assert "\n" not in str(caught.value)
    assert len(hub.requests) - before < 20


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pickled(hub: Hub, name: str, content: bytes) -> str:
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    del files["model.safetensors"]
    hub.add(name, files | {"pytorch_model.bin": content})
    return name


def torch_saved(value: Any, folder: Path) -> bytes:
    torch.save(value, folder / "x.bin")
    return (folder / "x.bin").read_bytes()


def test_a_pickle_is_refused_with_a_way_out_and_read_as_tensors_if_asked(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    tied = torch.arange(6.0).reshape(2, 3)
    name = pickled(hub, "a/pickled", torch_saved({"a": tied, "b": tied.T, "c": tied}, tmp_path))
    with pytest.raises(BackboneError, match="give --allow-pickle"):
        client(read_model, name)
    read = client(read_model, name, allow_pickle=True)
    assert (read["pickled"], read["commit"]) == (True, hub.repos["models", name].head.sha)
    tensors = load_file(read["tensors"]["a"])
    assert {name: value.tolist() for name, value in tensors.items()} == {
        "a": tied.tolist(),
        "b": tied.T.tolist(),
        "c": tied.tolist(),
    }
    # Once: the second time it is there, without the Hub too.
    assert client(read_model, name, allow_pickle=True, offline=True)["tensors"] == read["tensors"]


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_code_in_a_pickle_never_runs(hub: Hub, client: Client, tmp_path: Path) -> None:
    bomb = {"weight": torch.zeros(2), "bomb": Bomb(tmp_path / "exploded")}
    for number, content in enumerate([torch_saved(bomb, tmp_path), pickle.dumps(bomb["bomb"]), b"garbage"]):
        name = pickled(hub, f"a/bomb{number}", content)
        with pytest.raises(BackboneError, match="does not hold just tensors") as caught:
            client(read_model, name, allow_pickle=True)
        assert str(caught.value).isprintable()
    assert not (tmp_path / "exploded").exists()


def test_a_repository_cannot_name_files_outside_its_folder(hub: Hub, client: Client) -> None:
    private = client.home / "private.safetensors"
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    weights = files.pop("model.safetensors")
    private.write_bytes(weights)
    # A file of that name in the repository must not hide that another one is meant.
    hub.add("evil/index", files | {"private.safetensors": weights})
    # From snapshots/COMMIT up to the folder that HF_HOME is in; both names lead to a file that is there.
    for name in ("../../../../../private.safetensors", str(private)):
        hub.add("evil/index", {"model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode()})
        with pytest.raises(BackboneError, match=r"names '.*private\.safetensors', which is not in the model's folder"):
            client(read_model, "evil/index")
    for broken in (b"{}", b"[1]", b'{"weight_map": {"a": 1}}', b"\xff"):
        hub.add("evil/index", {"model.safetensors.index.json": broken})
        with pytest.raises(BackboneError, match="is damaged"):
            client(read_model, "evil/index")
    hub.add("evil/names", files | {"model.safetensors": weights, "../../../../escaped.json": b"{}"})
    client(read_model, "evil/names")
    assert not list(client.home.rglob("escaped.json"))


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parquet_csv_and_folders_of_images_are_read_at_their_commit(hub: Hub, client: Client) -> None:
    from hub_content import flower

    folders = {f"train/{kind}/{i}.png": flower(k, i) for k, kind in enumerate(("rose", "fern")) for i in range(6)}
    hub.add("someone/folders", folders | {"test/rose/x.png": flower(0, 77)}, type="datasets")
    images = client(read_data, "nelorth/oxford-flowers", "file")
    assert images["rows"] == {"train": 48, "test": 20}
    assert images["labels"] == ["rose", "fern", "iris", "sun flower"]
    assert images["first"] == flower(0, 0)
    texts = client(read_data, "someone/reviews")
    assert (texts["rows"], texts["labels"]) == ({"train": 48, "test": 12}, ["bad", "good"])
    folder = client(read_data, "someone/folders", "file")
    assert (folder["rows"], sorted(folder["labels"])) == ({"train": 12, "test": 1}, ["fern", "rose"])
    for read, name in [(images, "nelorth/oxford-flowers"), (texts, "someone/reviews"), (folder, "someone/folders")]:
        assert read["commit"] == hub.repos["datasets", name].head.sha


def test_private_gated_and_unknown_data_say_how_to_get_them(hub: Hub, client: Client) -> None:
    add_reviews(hub, "me/data", private=True)
    add_reviews(hub, "you/data", gated=True)
    with pytest.raises(DataError, match="is private"):
        client(read_data, "me/data", token="hf_you")
    assert client(read_data, "me/data", token="hf_me")["labels"] == ["bad", "good"]
    with pytest.raises(
        DataError, match=r"gated data set: accept its terms at http://127\.0\.0\.1:\d+/datasets/you/data"
    ):
        client(read_data, "you/data", token="hf_me")
    with pytest.raises(DataError, match="no such data set"):
        client(read_data, "someone/nothing")
    with pytest.raises(DataError, match="no such data set or revision"):
        client(read_data, "someone/reviews@v9")


def test_a_data_set_cannot_name_files_outside_its_repository(hub: Hub, client: Client) -> None:
    (client.home / "private.csv").write_text("text,label\nsecret,1\n")
    add_reviews(hub, "me/own", private=True)
    outside = [str(client.home / "private.csv"), f"file://{client.home}/private.csv", "../../../private.csv"]
    for number, path in enumerate([*outside, f"{hub.url}/private.csv", "hf://datasets/me/own/train.csv"]):
        readme = f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(path)}\n---\n"
        files = {"README.md": readme.encode(), "a.csv": b"text,label\nx,1\n"}
        hub.add(f"evil/data{number}", files, type="datasets")
        with pytest.raises(DataError, match=f"^evil/data{number}: cannot be loaded from the Hub: ") as caught:
            client(read_data, f"evil/data{number}", token="hf_me")
        assert "secret" not in str(caught.value)


def test_data_survive_what_passes(hub: Hub, client: Client) -> None:
    add_reviews(hub, "someone/shaky")
    hub.fail("GET", "/api/datasets/someone/shaky", status=503, times=2, retry_after=0)
    hub.fail("GET", "/train.csv", cut="answer")
    hub.fail("GET", "/train.csv", status=502, retry_after=0)
    assert client(read_data, "someone/shaky")["rows"] == {"train": 48, "test": 12}


def test_the_cache_stands_in_for_the_hub_only_for_the_commit_that_is_meant(
    hub: Hub, client: Client, cut_off: Client
) -> None:
    add_reviews(hub, "someone/moving", rows=60)
    first = client(read_data, "someone/moving")["commit"]
    add_reviews(hub, "someone/moving", rows=40, ref="v2")
    cached = cut_off(read_data, "someone/moving")
    assert cached["commit"] == first
    assert f"from the cache, because the Hub cannot be asked: commit {first}" in cached["notes"]
    assert cut_off(read_data, f"someone/moving@{first}")["commit"] == first
    assert cut_off(read_data, "someone/moving@main")["commit"] == first
    with pytest.raises(DataError, match="the cache holds another commit"):
        cut_off(read_data, "someone/moving@v2")
    assert client(read_data, "someone/moving@v2")["rows"] == {"train": 32, "test": 8}


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_is_one_line_and_the_download_is_whole_once_there_is_space(hub: Hub, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    name = copy(hub, "a/large")
    hub.add(name, {"vocab.txt": os.urandom(3_000_000)})
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import sys; from pathlib import Path; from hftl.backbones.source import hub_source\n"
        "from hftl.errors import HubError\n"
        "filler = Path(sys.argv[1]) / 'filler'\n"
        "filler.write_bytes(b'x' * 3_000_000)\n"
        "try: hub_source('a/large')\n"
        "except HubError as error: print(error)\n"
        "filler.unlink()\n"
        "print(sorted((p.name, p.stat().st_size) for p in hub_source('a/large').folder.iterdir())[-1])\n"
    )
    script = f'mount -t tmpfs -o size=5m tmpfs "{disk}" && exec "{sys.executable}" -c "$1" "{disk}"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", code],
        env=hub.environment(disk / "home"),
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "does not fit on the disk of" in first
    assert "set HF_HOME" in first
    assert second == "('vocab.txt', 3000000)"
    assert os.strerror(errno.ENOSPC) not in first
