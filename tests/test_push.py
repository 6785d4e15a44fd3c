"""Pushing a run to a Hub: what goes there, in which commits, and what becomes of faults on the way."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import hub_client
import pytest
from hub_client import Client
from hub_server import Hub

from hftl.errors import HubError, UserError
from hftl.store.files import size_and_checksum

TOKEN = "hf_canary_0123456789"


def weights(value: int = 0, size: int = 4096) -> bytes:
    """A safetensors file with one tensor of bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([value]) * size


def make_run(folder: Path, value: int = 0, **more: bytes) -> Path:
    """A finished run's folder, as `hftl run` leaves it, with things in it that are nobody's business."""
    files = {
        "recipe.json": b"{}",
        "metrics.json": b'{"eval": {}, "features": {}}',
        "events.jsonl": b"{}",
        "model/config.json": b'{"model_type": "vit"}',
        "model/model.safetensors": weights(value),
        "model/preprocessor_config.json": b"{}",
        "model/README.md": b'---\nlicense: mit\n---\nmodel="PATH_OR_REPO_ID" %d' % value,
        "model/optimizer.pt": b"pickle",
        "model/notes.txt": b"secret",
        "model/.env": b"HF_TOKEN=hf_secret",
        "model/checkpoint-5/model.safetensors": weights(),
    }
    for name, content in (files | more).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


PUSHED = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", ".gitattributes"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.user("me", TOKEN)
        running.user("you", "hf_you")
        running.user("me", "hf_reader", role="read")
        yield running


@pytest.fixture(autouse=True)
def no_faults_left(request: pytest.FixtureRequest, hub: Hub) -> Iterator[None]:
    yield
    left = [fault for fault in hub.faults if fault.times > 0 and fault.times < 100]
    hub.faults.clear()
    assert not left, "a fault that was asked for was never met"


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home"), TOKEN) as running:
        yield running


def push(client: Client, run: Path, repo_id: str, token: str = TOKEN, **options: Any) -> dict[str, Any]:
    return client(hub_client.push, run, repo_id, token=token, **options)


def command(
    hub: Hub, home: Path, *arguments: object, token: str | None = TOKEN, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    line = [sys.executable, "-m", "hftl", *map(str, arguments)]
    return subprocess.run(line, env=hub.environment(home, token, **env), capture_output=True, text=True, timeout=120)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a command says what is wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("hftl: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


# ── what goes up ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_goes_up_in_one_commit_and_only_what_a_model_is_made_of(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    done = command(hub, tmp_path, "push", run, "me/flowers")
    repo = hub.repos["models", "me/flowers"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed    {hub.url}/me/flowers/commit/{repo.head.sha}"
    assert repo.private
    assert len(repo.history()) == 2
    assert set(repo.head.files) == PUSHED
    assert repo.head.files["model.safetensors"].content == weights()
    assert b'model="me/flowers"' in repo.head.files["README.md"].content
    assert any(r.headers.get("user-agent", "").startswith("hftl/0.") for r in hub.requests)


def test_a_dry_run_lists_files_with_sizes_and_asks_the_hub_nothing(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.requests)
    done = command(hub, tmp_path, "push", make_run(tmp_path / "run"), "me/dry", "--dry-run", token=None)
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if len(line.split()) == 3}
    assert set(lines) == PUSHED - {".gitattributes"}
    assert lines["model.safetensors"] == ["4.2", "kB"]
    assert len(hub.requests) == before


ONNX_FILES = {
    "onnx/model.onnx": b"an onnx file",
    "onnx/config.json": b"{}",
    "onnx/README.md": b"its card",
    "onnx/notes.txt": b"secret",
    "onnx-int8/model.onnx": b"a smaller one",
}


def onnx_facts(content: bytes, folder: Path) -> bytes:
    (folder / "stamped").write_bytes(content)
    return json.dumps({"checksum": size_and_checksum(folder / "stamped")[1]}).encode()


def test_what_was_exported_as_onnx_goes_up_beside_the_model_and_is_cleared_away_with_it(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    facts = {"onnx/export.json": onnx_facts(ONNX_FILES["onnx/model.onnx"], tmp_path)}
    run = make_run(tmp_path / "run", **ONNX_FILES, **facts)
    push(client, run, "me/onnx")
    files = hub.repos["models", "me/onnx"].head.files
    assert set(files) == PUSHED | {"onnx/model.onnx", "onnx/model_quantized.onnx"}
    assert files["onnx/model.onnx"].content == b"an onnx file"
    assert files["onnx/model_quantized.onnx"].content == b"a smaller one"
    push(client, make_run(tmp_path / "plain", value=1), "me/onnx")
    assert set(hub.repos["models", "me/onnx"].head.files) == PUSHED


def test_an_onnx_file_other_than_the_one_that_was_compared_is_not_pushed(client: Client, tmp_path: Path) -> None:
    facts = {"onnx/export.json": onnx_facts(b"another", tmp_path)}
    with pytest.raises(UserError, match="is not the file that was exported: export the run again"):
        push(client, make_run(tmp_path / "run", **ONNX_FILES, **facts), "me/changed")


def test_public_is_said_and_a_repository_that_is_there_keeps_who_sees_it(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    push(client, run, "me/open", public=True)
    assert not hub.repos["models", "me/open"].private
    push(client, run, "me/closed")
    assert push(client, run, "me/closed")["notes"] == []
    assert "stays private" in push(client, run, "me/closed", public=True)["notes"][0]
    assert "stays public" in push(client, run, "me/open")["notes"][0]
    assert not hub.repos["models", "me/open"].private
    assert hub.repos["models", "me/closed"].private


def test_the_same_run_again_changes_nothing_and_another_run_replaces_it(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    first = push(client, make_run(tmp_path / "a"), "me/again")
    repo = hub.repos["models", "me/again"]
    uploads = hub.count("PUT", "")
    assert push(client, tmp_path / "a", "me/again")["commit"] == first["commit"]
    assert (len(repo.history()), hub.count("PUT", "")) == (2, uploads)

    hub.add("me/again", {"LICENSE": b"mine", "images/photo.png": b"mine"})
    config = b'{"base_model_name_or_path": "user/vit"}'
    adapter = {"adapter/adapter_config.json": config, "adapter/adapter_model.safetensors": weights(7)}
    push(client, make_run(tmp_path / "b", **adapter), "me/again")
    # The model of the first run is gone, for transformers would load one of the two; what is not ours is still there.
    assert set(repo.head.files) == {
        ".gitattributes",
        "LICENSE",
        "images/photo.png",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_branch_is_made_and_a_pull_request_leaves_the_main_branch_alone(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    hub.add("you/model", {"config.json": b"theirs", "README.md": b"theirs"})
    done = push(client, run, "you/model", create_pr=True)
    theirs = hub.repos["models", "you/model"]
    assert done["url"] == f"{hub.url}/you/model/discussions/1"
    assert theirs.head.files["config.json"].content == b"theirs"
    assert theirs.at("refs/pr/1").files["model.safetensors"].content == weights()

    push(client, run, "me/branched", revision="v2")
    mine = hub.repos["models", "me/branched"]
    assert set(mine.at("v2").files) == PUSHED
    assert set(mine.head.files) == {".gitattributes"}


def test_a_run_that_is_unfinished_empty_or_a_link_to_elsewhere_is_not_pushed(client: Client, tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "a")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        push(client, unfinished, "me/no")
    weightless = make_run(tmp_path / "b")
    (weightless / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        push(client, weightless, "me/no")
    linked = make_run(tmp_path / "c")
    (tmp_path / "secret").write_text("secret")
    (linked / "model" / "config.json").unlink()
    (linked / "model" / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="is a link"):
        push(client, linked, "me/no")
    adapter = {
        "adapter/adapter_model.safetensors": weights(),
        "adapter/adapter_config.json": b'{"base_model_name_or_path": "/home/alice/vit"}',
    }
    with pytest.raises(UserError, match=r"base model is not on the Hub.*RUN/model"):
        push(client, make_run(tmp_path / "d", **adapter), "me/no")
    with pytest.raises(UserError, match="no folder"):
        push(client, tmp_path / "nothing", "me/no")


@pytest.mark.parametrize(
    "repo_id",
    ["flowers", "../flowers", "me/../you/x", "me/a b", "me/x\n", "me/[red]x", "me/", "/etc/passwd", "me/x/y", ""],
)
def test_what_is_no_name_of_a_repository_is_refused_before_anything_is_sent(
    hub: Hub, client: Client, tmp_path: Path, repo_id: str
) -> None:
    before = len(hub.requests)
    with pytest.raises(UserError, match="write user/name") as caught:
        push(client, make_run(tmp_path / "run"), repo_id)
    assert str(caught.value).isprintable()
    assert len(hub.requests) == before


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_twenty_pushes_at_once_are_twenty_commits(hub: Hub, client: Client, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), value=i) for i in range(20)]
    commits = client(hub_client.push_at_once, runs, "me/race")
    repo = hub.repos["models", "me/race"]
    history = repo.history()
    assert len(set(commits)) == 20
    assert [c.sha for c in history if c.sha in commits] == [c.sha for c in history[:-1]]
    assert sorted(repo.commits[sha].files["model.safetensors"].content for sha in commits) == [
        weights(i) for i in range(20)
    ]
    assert sum(r.status == 412 for r in hub.requests) > 0


FAULTS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "asked and made": [
        ("GET", "/api/models/", {"status": 503, "times": 3, "retry_after": 0}),
        ("POST", "/repos/create", {"status": 429, "times": 2, "retry_after": 0}),
    ],
    "made, answer lost": [("POST", "/repos/create", {"cut": "after"})],
    "uploaded": [
        ("POST", "/preupload/", {"status": 503, "retry_after": 0}),
        ("PUT", "", {"cut": "request"}),
    ],
    "checked": [
        ("POST", "/validate-yaml", {"status": 502, "times": 2, "retry_after": 0}),
        ("PUT", "", {"status": 500}),
        ("GET", "/tree/", {"cut": "answer"}),
    ],
    "committed": [
        ("POST", "/commit/", {"status": 408, "times": 1, "retry_after": 0}),
        ("POST", "/commit/", {"status": 409, "times": 1}),
        ("POST", "/commit/", {"status": 412, "times": 1}),
        ("POST", "/commit/", {"status": 503, "times": 2, "retry_after": 0}),
    ],
    "commit cut before": [("POST", "/commit/", {"cut": "request"})],
    "commit done, answer cut": [("POST", "/commit/", {"cut": "answer"})],
    "commit done, answer lost": [("POST", "/commit/", {"cut": "after"})],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_for_and_the_run_is_there_once(
    hub: Hub, client: Client, tmp_path: Path, fault: str
) -> None:
    repo_id = f"me/{fault.replace(' ', '-').replace(',', '')}"
    value = 100 + list(FAULTS).index(fault)
    for method, path, options in FAULTS[fault]:
        hub.fail(method, path, **options)
    done = push(client, make_run(tmp_path / "run", value=value), repo_id)
    repo = hub.repos["models", repo_id]
    assert (repo.head.sha, len(repo.history())) == (done["commit"], 2)
    assert set(repo.head.files) == PUSHED
    assert repo.head.files["model.safetensors"].content == weights(value)


@pytest.mark.parametrize(
    ("status", "says", "kind"),
    [
        (401, "does not accept your token", UserError),
        (403, "refused to your token", UserError),
        (429, "allows no more requests", HubError),
        (503, "answered Server error '503", HubError),
    ],
)
def test_what_does_not_pass_is_one_line_after_a_bounded_number_of_tries(
    hub: Hub, client: Client, tmp_path: Path, status: int, says: str, kind: type[Exception]
) -> None:
    run, repo_id = make_run(tmp_path / "run"), f"me/never-{status}"
    hub.fail("POST", "/commit/", status=status, times=1000, retry_after=0)
    before = len(hub.requests)
    with pytest.raises(kind, match=says) as caught:
        push(client, run, repo_id)
    assert "\n" not in str(caught.value)
    assert len(hub.requests) - before < 60
    assert set(hub.repos["models", repo_id].head.files) == {".gitattributes"}


def test_a_server_that_asks_to_wait_for_too_long_is_not_waited_for(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("GET", "/api/models/me/busy", status=429, retry_after=86_400)
    with pytest.raises(HubError, match="allows no more requests"):
        push(client, make_run(tmp_path / "run"), "me/busy")


def test_the_wait_that_a_server_asks_for_is_kept_in_seconds_or_to_a_date(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    date = int(time.time()) + 3
    hub.fail("POST", "/repos/create", status=429, retry_after=1)
    hub.fail("POST", "/commit/", status=503, **{"Retry-After": formatdate(date, usegmt=True)})
    push(client, make_run(tmp_path / "run"), "me/waited")
    assert time.time() >= date


def test_without_the_right_to_push_there_nothing_is_made_and_the_line_says_why(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    for token, repo_id, says in [
        ("", "me/x", "without a token: log in with `hf auth login`"),
        ("hf_unknown", "me/x", "does not accept your token"),
        ("hf_reader", "me/x", "refused to your token"),
        (TOKEN, "you/x", "refused to your token"),
    ]:
        with pytest.raises(UserError, match=says):
            push(client, run, repo_id, token=token)
    with pytest.raises(UserError, match="no such repository"):
        push(client, run, "you/nothing", create_pr=True)
    hub.add("you/gated", {"README.md": b""}, gated=True)
    with pytest.raises(UserError, match=r"is gated: ask for access at http://127.0.0.1:\d+/you/gated"):
        push(client, run, "you/gated", create_pr=True)
    assert ("models", "me/x") not in hub.repos


def test_a_file_that_did_not_arrive_is_no_success(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add("me/ignoring", {".gitignore": b"config.json"})
    with pytest.raises(HubError, match=r"1 files, config\.json among them, are not there"):
        push(client, make_run(tmp_path / "run"), "me/ignoring")


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add("you/asked", {"README.md": b""})
    hub.fail("POST", "/commit/", cut="after")
    with pytest.raises(HubError, match="/you/asked/discussions whether it is there"):
        push(client, make_run(tmp_path / "run"), "you/asked", create_pr=True)
    assert [ref for ref in hub.repos["models", "you/asked"].refs if ref.startswith("refs/pr/")] == ["refs/pr/1"]


def test_an_interrupted_push_goes_on_where_it_was(hub: Hub, client: Client, tmp_path: Path) -> None:
    more = {f"model/model-0000{i}-of-00003.safetensors": weights(200 + i) for i in (1, 2, 3)}
    run = make_run(tmp_path / "run", value=200, **more)
    hub.fail("POST", "/commit/", status=403)
    with pytest.raises(UserError):
        push(client, run, "me/resumed")
    uploads = hub.count("PUT", "")
    push(client, run, "me/resumed")
    assert hub.count("PUT", "") == uploads
    assert len(hub.repos["models", "me/resumed"].head.files) == len(PUSHED) + 3


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = command(hub, tmp_path, "push", make_run(tmp_path / "run"), "me/x", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert told(done).endswith("failed: http://127.0.0.1:9 cannot be reached; push again when it can")


def test_a_command_that_fails_says_so_in_one_line_and_the_token_is_in_none(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    hub.fail("POST", "/repos/create", status=403)
    done = command(hub, tmp_path, "push", run, "me/refused")
    assert (done.returncode, "refused to your token" in told(done)) == (2, True)
    hub.fail("POST", "/commit/", status=503, times=1000, retry_after=0)
    done = command(hub, tmp_path, "--debug", "push", run, "me/refused", HF_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    uploaded = [blob.content for repo in hub.repos.values() for c in repo.commits.values() for blob in c.files.values()]
    printed = [done.stdout.encode(), done.stderr.encode()]
    assert not any(TOKEN.encode() in content for content in [*kept, *uploaded, *printed])
