"""A warm run's part of the feature store: digests of known rows, and their features from the disk to memory.

    python benchmarks/warm.py [--rows 1000000] [--repeats 5] [--json]

Each figure is the median of some repeats, each in a fresh process after its imports. Files are in the page
cache, as in a second run on one machine. `fill` is what it costs to allocate and fill a matrix of that
size. Targets: 1,000,000 × 384 rows, shuffled, opened and gathered in 5 s with peak memory 1.5 × the matrix;
digests and features of 10,000 known texts in 0.5 s, of 10,000 JPEGs in 1 s.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import tell_machine
from PIL import Image

from hftl.store.digests import digest_texts
from hftl.store.stat_index import RACY_NS, StatIndex, digest_files
from hftl.store.store import ColumnSpec, FeatureStore

DIM = 384
CHUNK = 40_000
SMALL = 10_000
TARGETS = {"gather": (5.0, "s"), "memory": (1.5, "x"), "texts": (0.5, "s"), "jpegs": (1.0, "s")}


def digests_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 16), dtype=np.uint8)


def texts() -> list[tuple[str]]:
    random = np.random.default_rng(0)
    return [(f"{i} " + " ".join(map(str, random.integers(0, 10**6, 10))),) for i in range(SMALL)]


def space_of(root: Path, name: str):
    space = FeatureStore(root).space({"benchmark": name}, name)
    space.create({}, {"features": ColumnSpec("float32", (DIM,))})
    return space


# -- prepared once -----------------------------------------------------------------------------------------


def fill(root: Path, name: str, digests: np.ndarray) -> None:
    space = space_of(root, name)
    random = np.random.default_rng(2)
    for begin in range(0, len(digests), CHUNK):
        part = digests[begin : begin + CHUNK]
        space.commit(part, {"features": random.standard_normal((len(part), DIM), dtype=np.float32)})


def write_jpegs(folder: Path) -> None:
    """10,000 photographs' worth of bytes: some real encodings of 500 × 375, each file different."""
    folder.mkdir()
    random = np.random.default_rng(3)
    encoded = []
    for _ in range(50):
        coarse = random.integers(0, 256, (40, 53, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for i in range(SMALL):
        # Bytes after the end of the image are legal, and make another file of it.
        (folder / f"{i:05}.jpg").write_bytes(encoded[i % 50] + i.to_bytes(4, "little"))


# -- measured, each in a process of its own ----------------------------------------------------------------


def measure_gather(root: Path, rows: int) -> dict[str, float]:
    digests = digests_of(rows)[np.random.default_rng(4).permutation(rows)]
    begin = time.perf_counter()
    space = space_of(root, "large")
    assert space.known(digests).all()
    features = space.gather(digests)["features"]
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert isinstance(features, torch.Tensor)
    return {"gather": seconds, "memory": peak / (features.numel() * 4)}


def measure_texts(root: Path, _rows: int) -> dict[str, float]:
    rows = texts()
    begin = time.perf_counter()
    digests = digest_texts(rows)
    space = space_of(root, "texts")
    assert space.known(digests).all()
    space.gather(digests)
    return {"texts": time.perf_counter() - begin}


def measure_jpegs(root: Path, _rows: int) -> dict[str, float]:
    paths = sorted(str(path) for path in (root / "jpegs").iterdir())
    begin = time.perf_counter()
    digests = digest_files(paths, StatIndex(root / "digests" / "files.safetensors"))
    space = space_of(root, "jpegs")
    assert space.known(digests).all()
    space.gather(digests)
    return {"jpegs": time.perf_counter() - begin}


def measure_allocation(_root: Path, rows: int) -> dict[str, float]:
    """The least that any way of loading costs: the memory for the matrix. On a virtual machine it may be most."""
    begin = time.perf_counter()
    np.empty((rows, DIM), np.float32).fill(0)
    return {"fill": time.perf_counter() - begin}


MEASURES = {"allocation": measure_allocation, "gather": measure_gather, "texts": measure_texts, "jpegs": measure_jpegs}


def prepare(root: Path, rows: int) -> None:
    fill(root, "large", digests_of(rows))
    fill(root, "texts", digest_texts(texts()))
    write_jpegs(root / "jpegs")
    time.sleep(RACY_NS / 1e9 + 1)  # the index remembers files that are at rest
    paths = sorted(str(path) for path in (root / "jpegs").iterdir())
    fill(root, "jpegs", digest_files(paths, StatIndex(root / "digests" / "files.safetensors")))


def run(root: Path, rows: int, repeats: int) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in MEASURES:
            command = [sys.executable, __file__, "--measure", name, "--root", str(root), "--rows", str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
            for key, value in json.loads(done.stdout).items():
                results.setdefault(key, []).append(value)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.root, arguments.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.rows)
        results = run(Path(folder), arguments.rows, arguments.repeats)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{arguments.rows:,} x {DIM} float32 rows, shuffled; {SMALL:,} texts; {SMALL:,} JPEGs")
    for name, values in results.items():
        median = statistics.median(values)
        line = f"{name:7} {median:6.2f} ({min(values):.2f} to {max(values):.2f})"
        if name in TARGETS:
            target, unit = TARGETS[name]
            line += f"  target {target} {unit}  {'ok' if median <= target else 'MISSED'}"
        print(line)


if __name__ == "__main__":
    tell_machine()
    main()
