"""Whatever goes wrong ends in one line and a status; a pipe that closes and a signal end it quietly and in order."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import Cli

import hftl
from hftl.cli import at_hand

ENVIRONMENT = {**os.environ, "HFTL_PLUGINS": "", "COLUMNS": "200"}


def shell(line: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which $HFTL is the command."""
    return subprocess.run(
        ["bash", "-c", line],
        env=ENVIRONMENT | {"HFTL": f"{sys.executable} -m hftl"} | more,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `hftl recipes` meet an exception that no room expects."""

    def fail(text: str) -> str:
        raise error

    monkeypatch.setattr(at_hand, "_summary", fail)
    Path("any.py").write_text("@recipe")


@pytest.mark.parametrize("error", [TypeError("no\n\x1b[31mway"), RecursionError(), MemoryError(), AssertionError()])
def test_what_nobody_expected_is_one_line_that_says_what_to_do(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    failing_with(error, monkeypatch)
    assert cli("recipes") == 1
    (line,) = cli.err.splitlines()
    assert line.startswith(f"hftl: {type(error).__name__}")
    assert line.isprintable()
    assert "run the command again with --debug, and report what it prints at https://" in line
    # The advice, followed.
    assert cli("recipes", "--debug") == 1
    assert "Traceback (most recent call last)" in cli.err
    assert cli.err.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y\x1b[2J"), 2, "Permission denied: /x/y\ufffd[2J"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "File name too long: x"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "Input/output error: x"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
        (hftl.DataError("a\nb"), 2, "a b"),
        (hftl.StoreError("c"), 1, "c"),
        (SystemExit("stop\x07here"), 1, "stop\ufffdhere"),
    ],
)
def test_errors_of_the_system_and_of_ours_are_one_line_with_the_status_that_fits(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, says: str
):
    failing_with(error, monkeypatch)
    assert cli("recipes") == status
    (line,) = cli.err.splitlines()
    assert line.startswith(f"hftl: {says}")
    assert cli("recipes", "--debug") == status


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["push"], "Missing argument 'run'; see `hftl push --help`"),
        (["backbones", "--modaliti", "image"], "No such option: --modaliti"),
        (["bacbones"], "No such command 'bacbones'. Did you mean 'backbones'?"),
        (["run", "--num-processes", "many"], "Invalid value for '--num-processes'"),
        (["cache", "clean"], "No such command 'clean'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(cli: Cli, arguments: list[str], says: str):
    line = cli.refused(*arguments)
    assert says in line
    assert cli.err.splitlines() == [line]


def test_the_version_is_printed_alone(cli: Cli):
    assert cli.ok("--version") == f"hftl {hftl.__version__}\n"
    assert cli("") == 2


@pytest.mark.parametrize("command", ["recipes", "recipes --json", "--help", "--version", "new recipe mine"])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, command: str):
    (tmp_path / "r.py").write_text("# @recipe\n")
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "hftl", *command.split()]
    done = subprocess.run(
        line, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=tmp_path, check=False, timeout=60
    )
    os.close(writer)
    # What a shell reports of any program there.
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_terminal_without_our_characters_gets_marks(tmp_path: Path):
    (tmp_path / "r.py").write_text('"""Blüten · ✿"""\n# @recipe\n', encoding="utf-8")
    done = shell("$HFTL recipes", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, "Bl?ten" in done.stdout) == (0, True), done.stderr


SLEEPER = """
import sys, time
from hftl.cli import at_hand, main
def wait(text):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("cleaned", flush=True)
at_hand._summary = wait
sys.argv = ["hftl", "recipes"]
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_however_often_it_comes_lets_the_work_end_and_is_said_once(tmp_path: Path, name: str):
    (tmp_path / "r.py").write_text("@recipe\n")
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    for _ in range(5):
        process.send_signal(getattr(signal, name))
        time.sleep(0.02)
    out, err = process.communicate(timeout=30)
    assert out == "cleaned\n", err
    (line,) = err.splitlines()
    assert line.startswith(f"hftl: {'interrupted' if name == 'SIGINT' else f'stopped by {name}'}; what was computed")
    assert process.returncode == 130


def test_handlers_of_the_caller_are_back_after_a_command(cli: Cli):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    cli.ok("recipes")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_starts_without_collecting_and_then_collects_as_python_does() -> None:
    script = """
import gc, weakref
from hftl.cli.startup import OBJECTS_OF_LIBRARIES, put_off_collection

class Cycle:
    def __init__(self):
        self.me = self

usual, runs = gc.get_threshold(), gc.get_stats()[0]["collections"]
put_off_collection()
kept = [[] for _ in range(OBJECTS_OF_LIBRARIES // 2)]
assert gc.get_stats()[0]["collections"] == runs
kept += [[] for _ in range(OBJECTS_OF_LIBRARIES)]
assert gc.get_threshold() == usual and gc.get_freeze_count() >= OBJECTS_OF_LIBRARIES and not gc.callbacks
seen = weakref.ref(Cycle())
more = [[] for _ in range(10 * usual[0])]
assert seen() is None
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_command_lets_transformers_list_its_models_once_and_alike() -> None:
    script = """
import sys
from hftl.cli.startup import read_models_once
read_models_once()
import transformers
from transformers.utils import import_utils
scans = import_utils.create_import_structure_from_path.cache_info().misses
assert scans > 400
from transformers import AutoConfig, BertModel
models = sys.modules["transformers.models"]
# Of the folders of the models that were asked for only.
assert import_utils.create_import_structure_from_path.cache_info().misses < scans + 10
usual = import_utils._LazyModule(
    models.__name__, models.__file__, import_utils.define_import_structure(models.__file__), models.__spec__
)
assert len(usual._modules) > 1000 and models._modules == usual._modules
assert models._class_to_module == usual._class_to_module
assert models._object_missing_backend == usual._object_missing_backend
assert sorted(models.__all__) == sorted(usual.__all__) and transformers.models is models
"""
    subprocess.run([sys.executable, "-c", script], check=True)
