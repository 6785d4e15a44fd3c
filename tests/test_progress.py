"""Progress: an estimate that holds, nothing for what is short, and words that suit a terminal, a log and a notebook."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from hftl import progress
from hftl.progress import Progress, counted, said_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_is_left_is_estimated_by_work_not_by_rows(clock: list[float]):
    """Texts run longest first: here half of the rows are four fifths of the work."""
    costs = [40] * 50 + [10] * 50
    bar = Progress("features", 100, quiet=True)
    bar.expect(sum(costs))
    for done, cost in enumerate(costs, 1):
        clock[0] += cost / 100
        bar.advance(1, work=cost)
        assert done == 1 or bar.seconds_left == pytest.approx(sum(costs[done:]) / 100)


def test_the_estimate_does_not_count_what_went_before_the_first_rows(clock: list[float]):
    bar = Progress("features", 11, quiet=True)
    clock[0] += 60  # a model is loaded
    bar.advance()
    for _ in range(5):
        clock[0] += 1
        bar.advance()
    assert bar.seconds_left == pytest.approx(5)
    assert bar.rate == "1.0 rows/s"


def test_a_run_that_goes_on_counts_from_where_it_was(clock: list[float]):
    bar = Progress("train", 100, quiet=True, unit="steps", done=90)
    clock[0] += 1
    bar.advance()
    clock[0] += 1
    bar.advance()
    assert (bar.done, bar.seconds_left) == (92, pytest.approx(8))


def test_nothing_is_shown_of_what_ends_within_two_seconds(clock: list[float]):
    stream = io.StringIO()
    with Progress("rows", 3, stream=stream) as bar:
        for _ in range(3):
            clock[0] += 0.6
            bar.advance()
    assert stream.getvalue() == ""


def test_a_log_has_a_line_each_half_minute_and_one_at_the_end(clock: list[float]):
    stream = io.StringIO()
    with Progress("rows", 100, stream=stream) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.advance(note="loss 0.5")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "rows: 30 of 100 rows, 70 s left, 1.0 rows/s, loss 0.5"
    assert lines[-1] == "rows: 100 rows in 2 min (1.0 rows/s)"


def test_progress_within_progress_shares_a_line(clock: list[float]):
    stream = io.StringIO()
    with Progress("rank", 2, unit="backbones", stream=stream) as outer:
        for _ in counted("path", range(40), unit="strengths"):
            clock[0] += 1
        outer.advance()
    assert stream.getvalue().splitlines() == [
        "rank: 0 of 2 backbones · path: 30 of 40 strengths, 10 s left",
        "rank: 1 backbones in 40 s",
    ]
    # Without another around it, nobody asked for it.
    assert list(counted("path", [1, 2], unit="strengths")) == [1, 2]


def test_how_many_there_are_need_not_be_known(clock: list[float]):
    stream = io.StringIO()
    with Progress("predict", None, stream=stream) as bar:
        clock[0] += 31
        bar.advance(7)
        clock[0] += 31
        bar.advance(7)
    assert stream.getvalue().splitlines()[0] == "predict: 7 rows, 0.2 rows/s"


def test_seconds_are_said_as_a_person_would():
    assert [said_seconds(s) for s in (0.04, 8, 42, 200, 3900)] == ["0.0 s", "8.0 s", "42 s", "3 min", "1 h 05 min"]


SLOW = """
import sys
from hftl import progress
from hftl.terminal import Terminal
progress.SHOWN_AFTER = 0.0
say = Terminal()
with progress.Progress("rows", 3) as bar:
    for k in range(3):
        bar.advance()
        say.print(f"said {k}")
        print(f"printed {k}")
"""


def in_a_terminal(code: str, stdout: int | None) -> tuple[str, str]:
    """Run code whose standard error (and output, if no other is given) is a terminal; what both received."""
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=terminal if stdout is None else stdout,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(terminal)
        received = b""
        while True:
            try:
                block = os.read(screen, 4096)
            except OSError:
                break
            received += block
            if not block:
                break
        out = process.stdout.read().decode() if process.stdout else ""
    os.close(screen)
    assert process.returncode == 0, received
    return received.decode(), out


def test_a_terminal_shows_one_line_that_redraws_below_what_is_said():
    shown, _ = in_a_terminal(SLOW, None)
    for k in range(3):
        assert f"said {k}\r\n" in shown
        assert f"printed {k}\r\n" in shown
    # The line is erased each time, and at the end.
    assert shown.count("\x1b[2K") >= 3
    assert any("rows: 3 rows in 0." in line for line in shown.splitlines())
    assert shown.endswith("\x1b[1A\x1b[2K")


def test_a_program_that_reads_the_output_gets_what_is_printed():
    _, out = in_a_terminal(SLOW, subprocess.PIPE)
    assert out.splitlines() == [f"{what} {k}" for k in range(3) for what in ("said", "printed")]


NOTEBOOK = """
import time
from hftl import progress
from hftl.progress import Progress
progress.SHOWN_AFTER = 0.2
with Progress("rows", 40) as bar:
    for _ in range(40):
        time.sleep(0.05)
        bar.advance()
"""


def test_a_notebook_shows_one_output_that_is_written_again(tmp_path: Path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert output.data["text/plain"].startswith("rows: 40 rows in 2")
