"""What comes from a Hub is whole, is asked for a bounded number of times, and not at all where the user said so."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_client import Client, hftl, push, read_data, read_model
from hub_content import BERT, FLOWERS, REVIEWS, VIT, add_reviews, add_usual, flower
from hub_server import Hub
from safetensors.torch import load
from test_push import make_run

from hftl.errors import DataError, HubError

TOKEN = "hf_canary_whole"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("content")
    with Hub() as running:
        running.user("me", TOKEN)
        add_usual(running, folder)
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home"), TOKEN) as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults_left(hub: Hub) -> Iterator[None]:
    yield
    hub.faults.clear()


def copy(hub: Hub, name: str) -> str:
    """The tiny ViT under another name."""
    hub.add(name, {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()})
    return name


def garble(path: Path) -> None:
    """Change some bytes of the blob behind a file, and not its size."""
    content = bytearray(path.resolve().read_bytes())
    content[-4000:] = bytes(255 - byte for byte in content[-4000:])
    path.resolve().write_bytes(content)


# ── whole ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_the_right_size_with_other_bytes_is_found_and_fetched_again_as_the_message_says(
    hub: Hub, client: Client, name: str
) -> None:
    repo = copy(hub, f"a/garbled-{name.partition('.')[0]}")
    folder = client(read_model, repo)["folder"]
    good = (folder / name).read_bytes()
    garble(folder / name)
    with pytest.raises(HubError, match=f"{name} in the Hub's cache is damaged") as caught:
        client(read_model, repo)
    with pytest.raises(HubError, match="is damaged"):
        client(read_model, repo, offline=True)
    advice = shlex.split(str(caught.value).rpartition("fetch it again: ")[2])
    assert advice[0] == "hf"
    command = [str(Path(sys.executable).with_name("hf")), *advice[1:]]
    subprocess.run(command, env=hub.environment(client.home), check=True, capture_output=True, timeout=60)
    assert client(read_model, repo)["folder"] == folder
    assert (folder / name).read_bytes() == good


def test_damaged_weights_never_become_features(hub: Hub, client: Client, tmp_path: Path) -> None:
    repo = copy(hub, "a/damaged")
    garble(client(read_model, repo)["folder"] / "model.safetensors")
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={repo!r}, data={FLOWERS!r})\n"
    )
    status, _, err = client(hftl, "features", recipe)
    assert (status, "hf download" in err) == (1, True)
    assert not list((client.home / "hftl").rglob("*.safetensors"))


def test_features_are_computed_of_a_pickle_only_if_that_is_allowed(hub: Hub, client: Client, tmp_path: Path) -> None:
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    torch.save(load(files.pop("model.safetensors")), tmp_path / "pytorch_model.bin")
    hub.add("a/pickle", files | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone='a/pickle', data={FLOWERS!r})\n"
    )
    status, _, err = client(hftl, "features", recipe, "--export", tmp_path / "f.npy")
    assert (status, "give --allow-pickle" in err) == (2, True)
    status, _, err = client(hftl, "features", recipe, "--export", tmp_path / "f.npy", "--allow-pickle")
    assert status == 0, err
    assert len(np.load(tmp_path / "f.npy")) == 68


def test_a_large_file_is_read_once_until_it_changes(hub: Hub, client: Client) -> None:
    large = bytes(2 << 20)
    name = copy(hub, "a/large")
    hub.add(name, {"large.safetensors": large})
    folder = client(read_model, name)["folder"]
    notes = [path for path in (client.home / "hf").rglob("*.json") if "verified" in path.parts]
    assert {json.loads(path.read_text())["size"] for path in notes} == {len(large)}
    garble(folder / "large.safetensors")
    with pytest.raises(HubError, match=r"large\.safetensors in the Hub's cache is damaged"):
        client(read_model, name)


# ── asked for a bounded number of times ──────────────────────────────────────────────────────────────────────────────

FAILING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "head 503": ("HEAD", "resolve/[^/]*/config.json", {"status": 503, "retry_after": 0}),
    "file 500": ("GET", "resolve/[^/]*/config.json", {"status": 500, "retry_after": 0}),
    "weights cut": ("GET", "^/[0-9a-f]{64}", {}),
}


@pytest.mark.parametrize("fault", FAILING)
def test_nothing_is_asked_for_more_often_than_the_docs_say(hub: Hub, client: Client, fault: str) -> None:
    method, path, options = FAILING[fault]
    name = copy(hub, f"failing/{fault.replace(' ', '-')}")
    hub.fail(method, path, times=1000, **options)
    before = hub.count(method, path)
    with pytest.raises(HubError) as caught:
        client(read_model, name)
    # Once, and five times again; huggingface_hub asks once more for what a file is.
    assert 1 < hub.count(method, path) - before <= 7
    said = str(caught.value)
    assert "\n" not in said
    if fault == "weights cut":
        assert "did not arrive: the connection to the Hub broke off" in said
        assert "not on this machine" not in said


def test_the_same_failure_has_the_same_status_on_read_and_on_push(hub: Hub, client: Client, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='a/nowhere', data='sample:digits')\n"
    )
    for status, expected in ((503, 1), (429, 1), (401, 2), (403, 2)):
        hub.fail("GET", "/api/models/a/nowhere", times=1000, status=status, retry_after=0)
        hub.fail("POST", "/repos/create", times=1000, status=status, retry_after=0)
        assert client(hftl, "run", recipe)[0] == expected
        assert client(hftl, "push", run, f"me/status-{status}")[0] == expected
        hub.faults.clear()
    add_reviews(hub, "someone/failing")
    hub.fail("GET", "/train.csv", times=1000, status=503, retry_after=0)
    with pytest.raises(HubError, match="503"):
        client(read_data, "someone/failing")
    with pytest.raises(DataError, match="no such data set"):
        client(read_data, "someone/nothing-at-all")


def test_a_file_that_is_not_as_long_as_the_hub_says_is_the_connection_s_fault(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    for size, says in ((10, "Consistency check failed: file should be of size"), (0, "peer closed connection")):
        done = client(raised_in_a_plugin, says, size)
        assert done.startswith("HubError: backbone 'theirs' did not arrive: the connection to the Hub broke off")


def raised_in_a_plugin(says: str, consistency: int) -> str:
    """What is said when the Hub's client fails inside a plugin's loader."""
    from huggingface_hub.utils import httpx

    from hftl.backbones.loading import load_backbone
    from hftl.errors import HftlError
    from hftl.plugins.spec import BackboneOptions, BackboneSpec

    def load(options: BackboneOptions) -> Any:
        raise OSError(says) if consistency else httpx.RemoteProtocolError(says)

    try:
        load_backbone(BackboneSpec("theirs", "image", load, plugin="their-plugin"), BackboneOptions())
    except HftlError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_no_signed_address_is_printed(hub: Hub, client: Client, tmp_path: Path) -> None:
    name = copy(hub, "a/signed")
    signed, hub.storage_query = hub.storage_query, "?X-Amz-Signature=canary-signature&Expires=1"
    hub.fail("GET", "^/[0-9a-f]{64}", times=1000, status=403)
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={name!r}, data='sample:digits')\n"
    )
    status, out, err = client(hftl, "run", recipe)
    hub.storage_query = signed
    assert status != 0
    assert any("canary-signature" in request.path for request in hub.requests)
    assert "canary-signature" not in out + err


# ── pushing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conflict_while_a_repository_or_a_branch_is_made_is_waited_for(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    hub.fail("POST", "/repos/create", status=409, times=2)
    push_done = client(push, run, "me/conflict", revision="v2")
    assert push_done["commit"] in hub.repos["models", "me/conflict"].commits
    hub.fail("POST", "/branch/", status=409, times=1)
    client(push, run, "me/conflict", revision="v3")
    assert "v3" in hub.repos["models", "me/conflict"].refs


def test_a_pull_request_of_what_is_there_is_not_opened_and_that_is_said(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    assert client(hftl, "push", run, "me/same")[0] == 0
    status, out, _ = client(hftl, "push", run, "me/same", "--create-pr")
    assert status == 0
    assert "no pull request was opened" in out
    assert out.splitlines()[-1] == f"unchanged {hub.url}/me/same"
    assert not [ref for ref in hub.repos["models", "me/same"].refs if ref.startswith("refs/pr/")]
    # Nor does a plain push of it claim to have pushed.
    status, out, _ = client(hftl, "push", run, "me/same")
    assert out.splitlines()[-1].startswith(f"unchanged {hub.url}/me/same/commit/")


# ── not asked at all ─────────────────────────────────────────────────────────────────────────────────────────────────


def run_offline(backbone: str, data: str, out: str) -> dict[str, Any]:
    """A run from Python with ``offline=True``."""
    import hftl

    done = hftl.run(hftl.Recipe(backbone=backbone, data=data), out=out, offline=True, quiet=True)
    assert done is not None
    return done.metrics["eval"]


@pytest.mark.parametrize(("backbone", "data"), [(VIT, FLOWERS), (BERT, REVIEWS)])
def test_offline_asks_the_hub_nothing_for_model_and_data(
    hub: Hub, client: Client, tmp_path: Path, backbone: str, data: str
) -> None:
    recipe, picture = tmp_path / "r.py", tmp_path / "flower.png"
    picture.write_bytes(flower(0, 0))
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={backbone!r}, data={data!r})\n"
    )
    status, _, err = client(hftl, "run", recipe, "--out", tmp_path / "first")
    assert status == 0, err
    first = json.loads((tmp_path / "first" / "metrics.json").read_text())["eval"]
    before = len(hub.requests)
    assert client(run_offline, backbone, data, str(tmp_path / "second")) == first
    for line in (
        ["run", recipe, "--out", tmp_path / "third"],
        ["features", recipe],
        ["evaluate", tmp_path / "first", "--data", data],
        ["predict", tmp_path / "first", *(["good film"] if backbone == BERT else [picture])],
    ):
        status, _, err = client(hftl, *line, "--offline")
        assert status == 0, (line, err)
    assert len(hub.requests) == before
    # What is not here is said, without a question to the Hub either.
    status, _, err = client(hftl, "run", recipe, "--backbone", "a/never-read", "--offline")
    assert (status, "not on this machine" in err) == (2, True)
    assert len(hub.requests) == before
