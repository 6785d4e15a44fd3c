"""Peak memory and time of writing stored features to a file, by the number of rows.

    python benchmarks/export.py
    python benchmarks/export.py --rows 10000 100000 --width 384

Fills a store in a temporary folder with random numbers, and writes them in processes of their own: block by block, as
`hftl features --export` does, and from a matrix in memory, as `Features.write` does. Reported is how far the resident
memory rose above what it was with the rows' names and digests at hand. Mapped pages of the store count, which the
system takes back when it needs them; `anonymous` leaves them out. Linux only, because peaks are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import tell_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, rows, width, way = arguments.one
        one(Path(folder), int(rows), int(width), way)
        return
    print(f"{'rows':>10} {'matrix MB':>10} {'way':22}{'peak MB':>9}{'anonymous':>11}{'seconds':>9}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), rows, arguments.width)
            for way in ("blocks .parquet", "blocks .npy", "blocks .safetensors", "memory .parquet"):
                words = [sys.executable, __file__, "--one", folder, str(rows), str(arguments.width), way]
                told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                size = f"{rows:10,} {rows * arguments.width * 4 / 1e6:10,.0f}"
                print(
                    f"{size} {way:22}{told['peak']:9,.0f}{told['anonymous']:11,.0f}{told['seconds']:9.2f}", flush=True
                )


def digests_of(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 16), dtype=np.uint8)


def space_at(folder: Path):
    from hftl.store.store import FeatureStore

    return FeatureStore(folder / "store").space({"model": "benchmark"}, "benchmark")


def content(width: int):
    from hftl.backbones.cut.cut import Cut
    from hftl.frozen.view import Content

    return Content("Benchmark", Cut("linear", ["head.weight"], "head", width=width), None)


def fill(folder: Path, rows: int, width: int) -> None:
    space, made = space_at(folder), content(width)
    space.create(made.as_info(), made.columns("float32"))
    digests, rng = digests_of(rows), np.random.default_rng(1)
    for start in range(0, rows, 100_000):
        part = digests[start : start + 100_000]
        vectors = rng.standard_normal((len(part), width)).astype(np.float32)
        space.commit(part, {"features": vectors, "truncated": np.zeros(len(part), np.uint8)})


def one(folder: Path, rows: int, width: int, way: str) -> None:
    from hftl.frozen.features import SplitFeatures, StoredFeatures
    from hftl.frozen.formats import About
    from hftl.frozen.stored_matrix import StoredMatrix

    # What a run has at hand anyway; another order than the store's, as data have.
    order = np.random.default_rng(2).permutation(rows)
    digests = digests_of(rows)[order]
    names = [f"train.csv row {row}" for row in order]
    about = About(order % 10, [str(label) for label in range(10)], names, np.repeat(np.array(["train"]), rows))
    space = space_at(folder)
    space.known(digests[:1])
    splits = {"train": SplitFeatures(None, digests)}  # type: ignore[arg-type]
    stored = StoredMatrix(StoredFeatures([space], content(width), splits, {}, [], 0.0), about)
    how, ending = way.split()
    if ending == ".parquet":
        import datasets  # noqa: F401  # whose import is not what is measured
    watching = Watch()
    started = time.perf_counter()
    (stored if how == "blocks" else stored.in_memory()).write(folder / f"out{ending}")
    seconds = time.perf_counter() - started
    peak, anonymous = watching.ended()
    print(json.dumps({"peak": peak, "anonymous": anonymous, "seconds": seconds}))


class Watch:
    """Looks at this process's memory fifty times a second; rises in MB."""

    def __init__(self) -> None:
        self._first = memory()
        self._most = [0.0, 0.0]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = [
                max(most, now - first) for most, now, first in zip(self._most, memory(), self._first, strict=True)
            ]

    def ended(self) -> list[float]:
        self._done.set()
        self._thread.join()
        return self._most


def memory() -> tuple[float, float]:
    """Resident memory, and that part of it that no file stands behind, in MB."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmRSS"].split()[0]) / 1e3, int(said["RssAnon"].split()[0]) / 1e3


if __name__ == "__main__":
    tell_machine()
    main()
