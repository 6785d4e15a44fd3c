"""Many processes on one space at once, without locks."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_sixteen_writers_and_eight_readers_without_locks(tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crowd.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failed"] == 0, done.stderr
    assert report["violations"] == []
    assert report["orphans"] == 0
    assert report["committed"] > 1000
    assert len(report["looks"]) == 8
    assert min(report["looks"]) >= 2
    assert report["shards"] == 1
