"""Sixteen writers, eight readers and no locks on one space.

Usage: crowd.py ROOT. `flock` does nothing, as on some network file systems. Prints a report as one JSON
object.
"""

import fcntl
import json
import os
import random
import sys
import traceback
from pathlib import Path

fcntl.flock = lambda fd, operation: None

import crashmodel  # noqa: E402
import numpy as np  # noqa: E402

from hftl.store.compaction import compact  # noqa: E402

WRITERS, READERS, COMMITS, ROWS = 16, 8, 12, 3000


def write(root: Path, seed: int) -> None:
    random_ = random.Random(seed)
    space = crashmodel.open_space(root)
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    notes = os.open(root / f"{seed}.journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for _ in range(COMMITS):
        first = random_.randrange(ROWS - 50)
        ids = np.arange(first, first + random_.randrange(1, 50))
        crashmodel.commit(space, ids)
        os.write(notes, ids.astype(np.int64).tobytes())
        if random_.random() < 0.3:
            compact(space, worthwhile=2)


def journal(root: Path) -> np.ndarray:
    parts = [np.frombuffer(path.read_bytes(), np.int64) for path in root.glob("*.journal")]
    return np.unique(np.concatenate([np.arange(0), *parts]))


def read(root: Path, seed: int) -> None:
    """Whatever was committed before one looks is there, and right, at any time."""
    space = crashmodel.open_space(root)
    looks = 0
    while not (root / "done").exists() or not looks:
        committed = journal(root)
        assert space.known(crashmodel.digests_of(committed)).all(), "a committed row was not seen"
        chosen = np.random.default_rng(seed + looks).permutation(committed)[:500]
        assert crashmodel.wrong_rows(space, chosen) == 0, "a wrong row was served"
        looks += 1
    (root / f"{seed}.looks").write_text(str(looks))


def start(work, *args) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(root: Path) -> dict:
    readers = [start(read, root, 100 + i) for i in range(READERS)]
    writers = [start(write, root, i) for i in range(WRITERS)]
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in writers)
    (root / "done").touch()
    failed += sum(os.waitpid(pid, 0)[1] != 0 for pid in readers)
    committed = journal(root)
    violations = crashmodel.violations(root, committed, np.arange(ROWS))
    space = crashmodel.open_space(root)
    compact(space, worthwhile=2)
    violations += crashmodel.violations(root, committed, np.arange(ROWS))
    return {
        "failed": failed,
        "violations": violations,
        "committed": len(committed),
        "looks": [int(path.read_text()) for path in root.glob("*.looks")],
        "shards": len(space.shard_sizes()),
        "orphans": len(crashmodel.temporary_files(root)),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
