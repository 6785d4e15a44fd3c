"""What the page of a run costs: CPU seconds of whole runs with and without it, features known, in turns.

    python benchmarks/report.py [TEXTS] [--rounds 3]

Digits on the small ViT that ships with hftl (target: 2 s more); with TEXTS, a table or folder of texts and labels, also
those on MiniLM-L6 by its plugin (target: 10 s more for 10,000 texts of 77 classes).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import tell_machine

ROOT = Path(__file__).parent.parent


def cpu_seconds(*arguments: str) -> float:
    """User and system time of one run, everything that Python imports included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "hftl", "run", *arguments, "--quiet"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def compare(name: str, target: float, rounds: int, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The first run computes the features.
        cpu_seconds(*arguments, "--out", f"{folder}/first", "--no-report")
        without, with_it = [], []
        for i in range(rounds):
            without.append(cpu_seconds(*arguments, "--out", f"{folder}/without{i}", "--no-report"))
            with_it.append(cpu_seconds(*arguments, "--out", f"{folder}/with{i}"))
        size = Path(f"{folder}/with0/report.html").stat().st_size
    more, ratio = median(with_it) - median(without), median(with_it) / median(without)
    print(
        f"{name:8} without {median(without):.2f} s, with {median(with_it):.2f} s: {more:.2f} s more "
        f"(target {target:g}), {ratio:.2f} ×; the page has {size / 1e3:,.0f} kB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    compare("digits", 2, arguments.rounds, str(ROOT / "recipes" / "digits.py"))
    if arguments.texts:
        compare("texts", 10, arguments.rounds, "minilm", "--data", arguments.texts)


if __name__ == "__main__":
    tell_machine()
    main()
