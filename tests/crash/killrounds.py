"""Kill writers with SIGKILL at random moments, and look at the store after each.

Usage: killrounds.py ROOT ROUNDS SEED. Prints a report as one JSON object. The writers are forked from this
process, which has imported all they need, so that a round takes some 20 ms.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import crashmodel
import numpy as np

from hftl.store.compaction import compact

ROUNDS_PER_SPACE = 8
LONGEST = 0.03


def write_for_ever(root: Path, name: str, journal: Path, seed: int, ready: int) -> None:
    """Commit, note what was committed, now and then compact; until killed."""
    random_ = random.Random(seed)
    notes = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ready, b"!")
    space = crashmodel.open_space(root, name)
    space.create(crashmodel.INFO, crashmodel.COLUMNS)
    while True:
        first = random_.randrange(5000)
        ids = np.arange(first, first + random_.randrange(1, 40))
        crashmodel.commit(space, ids)
        os.write(notes, ids.astype(np.int64).tobytes())
        if random_.random() < 0.15:
            compact(space, worthwhile=2)


def one_round(root: Path, name: str, journal: Path, random_: random.Random) -> None:
    seed = random_.randrange(1 << 30)
    ready, child_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_for_ever(root, name, journal, seed, child_ready)
        finally:
            os._exit(70)  # reached only by an error, which is printed
    os.close(child_ready)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(random_.random() * LONGEST)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("a writer ended by itself")


def main(root: Path, rounds: int, seed: int) -> dict:
    random_ = random.Random(seed)
    report = {"kills": 0, "committed": 0, "violations": [], "orphans_made": 0, "orphans_left": 0}
    everything = np.arange(5100)
    for number in range(rounds):
        name = f"space{number // ROUNDS_PER_SPACE}"
        journal = root / f"{name}.journal"
        one_round(root, name, journal, random_)
        report["kills"] += 1
        report["orphans_made"] += len(crashmodel.temporary_files(root))
        committed = np.frombuffer(journal.read_bytes(), np.int64)
        found = crashmodel.violations(root, committed, everything, name)
        report["violations"] += [f"round {number}: {violation}" for violation in found]
        # The next user of the space cleans up after the dead.
        space = crashmodel.open_space(root, name)
        space.create(crashmodel.INFO, crashmodel.COLUMNS)
        report["orphans_left"] += len(crashmodel.temporary_files(root))
        if number % ROUNDS_PER_SPACE == ROUNDS_PER_SPACE - 1 or number == rounds - 1:
            report["committed"] += len(np.unique(committed))
    return report


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
