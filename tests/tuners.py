"""Tuning in processes that are killed at random moments, and then in two at once that finish what is left.

Usage: tuners.py FOLDER ROUNDS SEED. FOLDER holds ``backbone`` and ``texts.csv``, and gets the study. Prints a report as
one JSON object. The processes are forks of this one, which has imported all they need.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hftl
from hftl.finetune import train  # noqa: F401 (what a trial imports)
from hftl.tuning import tune  # noqa: F401

SEARCH = {"method.lr": "1e-5..1e-2:log", "method.warmup": "0..0.5:0.1"}
TRIALS = 8


def recipe(folder: Path) -> hftl.Recipe:
    return hftl.Recipe(
        backbone=str(folder / "backbone"),
        data=str(folder / "texts.csv"),
        method=hftl.Full(epochs=1, batch_size=16),
        test_size=0.3,
    )


def tuned(folder: Path) -> dict[str, Any]:
    found = hftl.tune(recipe(folder), SEARCH, trials=TRIALS, repeats=2, name="texts", out=folder / "study", quiet=True)
    return found.as_json()


def start(folder: Path, place: str) -> int:
    """A fork that tunes, and writes the answer or what went wrong to a file."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        (folder / place).write_text(json.dumps(tuned(folder)))
        status = 0
    except BaseException:
        (folder / place).write_text(traceback.format_exc())
    os._exit(status)


def ended(folder: Path) -> dict[str, list[Any]]:
    """Every trial that ended, of the search and of repeats, by study and number, as SQLite has it."""
    file = folder / "study" / "study.db"
    if not file.exists():
        return {}
    # To write too: what a killed process was in the midst of has to be rolled back.
    read = sqlite3.connect(file, timeout=60)
    try:
        rows = read.execute(
            "select s.study_name, t.number, t.state, v.value from trials t join studies s on s.study_id = t.study_id "
            "left join trial_values v on v.trial_id = t.trial_id where t.state in ('COMPLETE', 'PRUNED')"
        ).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return {}
    finally:
        read.close()
    return {f"{name} {number}": [state, value] for name, number, state, value in rows}


def failed(folder: Path) -> int:
    read = sqlite3.connect(folder / "study" / "study.db")
    try:
        return int(read.execute("select count(*) from trials where state = 'FAIL'").fetchone()[0])
    finally:
        read.close()


def main(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    random_ = random.Random(seed)
    violations = []
    for number in range(rounds):
        before = ended(folder)
        pid = start(folder, "killed.json")
        # Somewhere in the next trial or two, whatever that takes on this machine.
        wanted, by_itself = len(before) + random_.randrange(0, 3), 0
        while len(ended(folder)) < wanted and not by_itself:
            by_itself, _ = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)
        if not by_itself:
            time.sleep(random_.random() * 0.4)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        violations += [f"round {number}: {each}" for each in lost(before, ended(folder))]
        if by_itself:
            # Nothing was left to kill: the next rounds are of another study.
            shutil.rmtree(folder / "study")
    before = ended(folder)
    places = ["answer-0.json", "answer-1.json"]
    statuses = [os.waitpid(pid, 0)[1] for pid in [start(folder, place) for place in places]]
    return {
        "violations": [*violations, *lost(before, ended(folder))],
        "statuses": statuses,
        "answers": [(folder / place).read_text() for place in places],
        "trials": TRIALS,
        "failed": failed(folder),
        "left": sorted(path.name for path in (folder / "study").iterdir()),
    }


def lost(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> list[str]:
    return [f"{name} was {was}, is {after.get(name)}" for name, was in before.items() if after.get(name) != was]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
