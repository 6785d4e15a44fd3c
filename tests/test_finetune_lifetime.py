"""Workers end with their launcher, a folder has one writer, signals end a run in one line, damage is passed over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune import small
from runs import Cli, write_images
from test_finetune_checkpoint import save

from hftl.backbones.vision import ImageBackbone
from hftl.errors import UserError
from hftl.finetune.checkpoint import read_newest
from hftl.finetune.loop import Loop
from hftl.lifetime import is_running, started_at
from hftl.runs.folder import RunFolder
from hftl.runs.writer import GONE_SECONDS, WRITER
from hftl.store.files import process_mark

NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="kills processes as only POSIX can")

# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WORKER = """
import time
from hftl.lifetime import follow_launcher
follow_launcher()
print("ready", flush=True)
time.sleep(60)
"""
# As hftl starts accelerate, and that starts the workers, in sessions of their own.
LAUNCHER = """
import os, subprocess, sys
worker, depth = sys.argv[1], int(sys.argv[2])
if depth == 2:
    os.environ["HFTL_LAUNCHER"] = str(os.getpid())
command = [sys.executable, "-c", worker] if depth == 1 else [sys.executable, *sys.orig_argv[1:-1], "1"]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
line = child.stdout.readline()
print(line.strip() if depth == 2 else f"{child.pid}", flush=True)
child.wait()
"""


def starting(depth: int, **environment: str) -> tuple[subprocess.Popen[str], int]:
    """A launcher with a worker that is so many processes away, and the worker's number."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WORKER, str(depth)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert launcher.stdout is not None
    return launcher, int(launcher.stdout.readline())


def ends(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


@NEEDS_POSIX
@pytest.mark.parametrize(
    ("depth", "environment"), [(1, {"TORCHELASTIC_RUN_ID": "none"}), (2, {})], ids=["elastic", "hftl"]
)
def test_a_worker_ends_when_its_launcher_is_killed(depth: int, environment: dict[str, str]) -> None:
    launcher, worker = starting(depth, **environment)
    assert is_running(worker)

    launcher.kill()

    assert ends(worker)
    launcher.communicate()


@NEEDS_POSIX
def test_a_process_that_no_launcher_of_ours_started_outlives_its_parent() -> None:
    launcher, worker = starting(1)

    launcher.kill()
    launcher.communicate()
    time.sleep(1.5)

    assert is_running(worker)
    os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_process_that_nobody_waited_for_and_a_later_one_of_its_number_do_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while is_running(child.pid):
        time.sleep(0.01)

    os.kill(child.pid, 0)  # its number is still taken
    child.wait()
    started = started_at(os.getpid())
    assert started is not None
    assert is_running(os.getpid(), started)
    assert not is_running(os.getpid(), started - 1)


# ── one writer ───────────────────────────────────────────────────────────────────────────────────────────────────────

WRITES = """
import sys, time
from pathlib import Path
from hftl.runs.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]))
(folder.path / "recipe.json").write_text("{}")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the folder ``run``."""
    process = subprocess.Popen([sys.executable, "-c", WRITES, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_and_told_of_the_first_until_that_is_killed(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    for resume in (False, True):
        with pytest.raises(UserError, match=rf"^process {writer.pid} on \S+ writes to .*run: .*another folder with"):
            RunFolder.create(tmp_path / "run", resume=resume)
    assert len(list((tmp_path / "run").glob(f"{WRITER}*"))) == 1

    # Not waited for: its number stays taken, as in a container whose first process waits for nobody.
    writer.kill()
    deadline = time.monotonic() + 10
    while is_running(writer.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    folder = RunFolder.create(tmp_path / "run", resume=True)

    assert len(list((tmp_path / "run").glob(f"{WRITER}*"))) == 1
    folder.release()
    assert not list((tmp_path / "run").glob(f"{WRITER}*"))


def test_a_writer_on_another_machine_counts_while_it_gives_signs(tmp_path: Path) -> None:
    lease = tmp_path / "run" / f"{WRITER}{'0' * 8}-77-{'0' * 8}"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"pid": 77, "host": "elsewhere", "started": 1}))
    (tmp_path / "run" / "recipe.json").write_text("{}")

    with pytest.raises(UserError, match=r"^process 77 on elsewhere writes to .*; if it is gone, try again in two min"):
        RunFolder.create(tmp_path / "run", resume=True)
    long_ago = time.time() - GONE_SECONDS - 10
    os.utime(lease, (long_ago, long_ago))
    RunFolder.create(tmp_path / "run", resume=True).release()
    assert not lease.exists()


def test_a_folder_that_holds_only_the_lease_of_a_killed_process_is_as_good_as_new(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mark = process_mark().split("-")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{WRITER}{mark[0]}-{child.pid}-{mark[2]}").write_text("")

    RunFolder.create(tmp_path / "run").release()


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    small.image_backbone(tmp_path / "base")
    write_images(tmp_path / "pictures", 8)
    file = tmp_path / "small.py"
    file.write_text(
        "from hftl import Full, Recipe, recipe\n\n\n@recipe\ndef small() -> Recipe:\n"
        f"    return Recipe(backbone={str(tmp_path / 'base')!r}, data={str(tmp_path / 'pictures')!r},\n"
        "                  method=Full(epochs=2, batch_size=4, init='random'))\n"
    )
    return file


def five_times(number: int) -> None:
    """Send this process a signal five times in a tenth of a second, from another thread."""

    def send() -> None:
        for _ in range(5):
            os.kill(os.getpid(), number)
            time.sleep(0.02)

    threading.Thread(target=send).start()


def signalled(monkeypatch: pytest.MonkeyPatch, step: int, send: Callable[[], None]) -> None:
    accumulate = Loop.accumulate

    def sending(self: Loop, batches: Any, number: int) -> torch.Tensor:
        if number == step:
            send()
        return accumulate(self, batches, number)

    monkeypatch.setattr(Loop, "accumulate", sending)


@NEEDS_POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_burst_of_signals_saves_the_state_once_and_is_no_traceback(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    signalled(monkeypatch, 2, lambda: five_times(number))

    assert cli("run", recipe, "--out", tmp_path / "run", "--quiet") == 130
    # What is left of the burst must find somebody who expects it.
    time.sleep(0.15)

    line = cli.err.strip().splitlines()[-1]
    assert line.startswith("hftl: stopped after step ")
    assert " the state is saved; to go on: hftl run " in line
    assert "Traceback" not in cli.err
    checkpoint, problems = read_newest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert not problems
    assert not list((tmp_path / "run").glob(f"{WRITER}*"))


@NEEDS_POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_features_are_computed_ends_in_a_line(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    encode = ImageBackbone.encode

    def sending(self: ImageBackbone, rows: Any, names: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        return encode(self, rows, names)

    monkeypatch.setattr(ImageBackbone, "encode", sending)

    assert cli("run", recipe, "--method", "head", "--out", tmp_path / "run", "--quiet") == 130
    time.sleep(0.1)

    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert f"hftl: {what}; what was computed so far is kept: run the same command again to go on" in cli.err
    assert "Traceback" not in cli.err


@NEEDS_POSIX
def test_a_hangup_that_was_told_to_be_ignored_stays_ignored(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signalled(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        cli.ok("run", recipe, "--out", tmp_path / "run", "--quiet")
    finally:
        signal.signal(signal.SIGHUP, before)


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def nested(depth: int) -> str:
    return '{"files": ' + "[" * depth + "]" * depth + ', "format": 1}'


MANIFESTS = {
    "nan": '{"format": NaN, "files": {}}',
    "infinite": '{\n "format": Infinity\n}\n',
    "deep": nested(100_000),
    "huge": '{"format": ' + "9" * 5000 + "}",
    "list": "[]",
    "elsewhere": json.dumps({"format": 1, "files": {"state.json": {}, "../../x": {}}}, indent=1) + "\n",
    "nothing": json.dumps({"format": 1, "files": []}, indent=1) + "\n",
    "surrogate": '{"format": "\\ud800"}',
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS)
def test_whatever_a_manifest_holds_the_older_whole_checkpoint_is_used(tmp_path: Path, content: str) -> None:
    save(tmp_path, 2)
    (save(tmp_path, 4) / "manifest.json").write_text(content)

    checkpoint, problems = read_newest(tmp_path)

    assert checkpoint is not None
    assert checkpoint.step == 2
    assert len(problems) == 1
    assert len(problems[0]) < 200


@NEEDS_POSIX
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path: Path, name: str) -> None:
    save(tmp_path, 2)
    path = save(tmp_path, 4) / name
    path.unlink()
    os.mkfifo(path)

    checkpoint, problems = read_newest(tmp_path)

    assert checkpoint is not None
    assert (checkpoint.step, len(problems)) == (2, 1)


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, torch
from hftl.errors import HftlError
from hftl.finetune.checkpoint import read_newest, step_name, write_checkpoint
from hftl.runs.folder import RunFolder
from hftl.tasks import Task

run = RunFolder(Path(sys.argv[1]))
small, large = ({"model": {"weight": torch.zeros(n)}} for n in (10, 100_000))
write_checkpoint(run.path / "checkpoints", step_name(1), {"step": 1}, small)
# A file may not grow further, as on a disk that is full.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
names = [str(i) * 50 for i in range(3000)]
for write in (
    lambda: write_checkpoint(run.path / "checkpoints", step_name(2), {"step": 2}, large),
    lambda: run.write_json("some.json", ["x" * 50] * 3000),
    lambda: run.log("some", values=["x" * 50] * 3000),
    lambda: run.write_predictions(Task("single_label"), names, np.zeros(3000, int), np.eye(2)[[0] * 3000], ["a", "b"]),
):
    try:
        write()
    except HftlError as error:
        print(error)
found, problems = read_newest(run.path / "checkpoints")
print(found.step, problems, sorted(path.name for path in (run.path / "checkpoints").iterdir()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_names_the_place_says_what_to_do_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    places = ["checkpoints/step-00000002", "some.json", "events.jsonl", "predictions.parquet"]
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert str(tmp_path / place) in line
        assert "File too large" in line
        assert "free some space" in line
        assert "--resume" in line
    assert last == "1 [] ['step-00000001']"


def test_an_export_that_finds_no_room_says_where(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_processor = ImageBackbone.save_processor

    def full(self: ImageBackbone, folder: Path) -> None:
        del self, folder
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageBackbone, "save_processor", full)
    assert cli("run", recipe, "--out", tmp_path / "run", "--quiet") == 1
    assert f"hftl: cannot write {tmp_path / 'run'}: No space left on device; free some space" in cli.err

    # Nothing is trained again.
    monkeypatch.setattr(ImageBackbone, "save_processor", save_processor)
    said = cli.ok("run", recipe, "--out", tmp_path / "run", "--resume")
    assert "resume    from step 10 of 10" in said
    shutil.rmtree(tmp_path / "run")
