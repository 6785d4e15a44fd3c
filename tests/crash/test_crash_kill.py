"""SIGKILL at random moments: nothing committed is lost, nothing wrong is served, nothing is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

# HFTL_CRASH_ROUNDS=2000 is the long mode.
ROUNDS = int(os.environ.get("HFTL_CRASH_ROUNDS", "300"))


def test_writers_killed_at_random_moments(tmp_path):
    script = Path(__file__).with_name("killrounds.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(ROUNDS), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert report["kills"] == ROUNDS
    assert report["orphans_left"] == 0
    # The kills did fall into commits, and the writers did get something done.
    assert report["orphans_made"] > ROUNDS / 30
    assert report["committed"] > ROUNDS
