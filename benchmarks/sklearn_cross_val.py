"""Cross-validation in scikit-learn, on texts that go through a backbone once.

    python benchmarks/sklearn_cross_val.py [FILE.csv] [--rows 5000] [--backbone minilm-l6]

Five folds of logistic regression behind `hftl.sklearn.FrozenFeatures`, on an empty store and again on the full one,
beside what the same five folds cost with the backbone inside each (each fold encodes its rows again), and beside
scikit-learn alone on the exported matrix, whose scores have to be equal. Seconds are of CPU time. Without a file the
texts are made up.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import tell_machine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

import hftl
from hftl.sklearn import FrozenFeatures

FOLDS = 5


def made_up(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    words = np.array(["card", "transfer", "lost", "rate", "cash", "refund", "limit", "account", "pending", "top-up"])
    topics = rng.integers(0, len(words), rows)
    texts = [f"{words[t]} {' '.join(rng.choice(words, 8))} {i}" for i, t in enumerate(topics)]
    return pd.DataFrame({"text": texts, "label": words[topics]})


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    # Of this process, all threads: other work on the machine does not count.
    started = time.process_time()
    made = work()
    return made, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--backbone", default="minilm-l6")
    options = parser.parse_args()
    frame = pd.read_csv(options.file) if options.file else made_up(options.rows)
    text, label = frame.columns[:2]
    frame = frame.drop_duplicates(text).sample(min(options.rows, len(frame)), random_state=0).reset_index(drop=True)
    texts, labels = frame[text], frame[label]
    head = LogisticRegression(max_iter=1000, C=10.0)
    pipeline = make_pipeline(FrozenFeatures(options.backbone), head)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HFTL_CACHE"] = cache
        _, once = timed(lambda: FrozenFeatures(options.backbone).fit_transform(texts))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HFTL_CACHE"] = cache
        scores, cold = timed(lambda: cross_val_score(pipeline, texts, labels, cv=FOLDS))
        again, warm = timed(lambda: cross_val_score(pipeline, texts, labels, cv=FOLDS))
        recipe = hftl.Recipe(backbone=options.backbone, data=frame[[text, label]])
        features = hftl.features(recipe, quiet=True)
        (file,) = features.write(Path(cache) / "matrix.parquet")
        exported = pd.read_parquet(file).set_index("row")
        matrix = np.stack(exported.loc[[f"DataFrame row {i + 1}" for i in range(len(frame))], "features"].to_list())
        alone, plain = timed(lambda: cross_val_score(head, matrix, labels, cv=FOLDS))
    print(f"{len(frame):,} texts, {labels.nunique()} classes, {FOLDS} folds, accuracy {scores.mean():.4f}")
    print(f"scores equal to scikit-learn's on the exported matrix: {np.array_equal(scores, alone)}")
    print(f"differences of folds: {np.abs(scores - alone).max():.1e}, {np.abs(again - alone).max():.1e}")
    print(f"all texts through the backbone, once      {once:7.1f} s")
    print(f"cross-validation, store empty             {cold:7.1f} s  {cold / (once + plain):.2f} x pass and heads")
    print(f"cross-validation, every row stored        {warm:7.1f} s  {warm / plain:.2f} x the heads")
    print(f"the heads alone, on the exported matrix   {plain:7.1f} s")
    # Each fold transforms its training rows and its held-out rows: all of them, FOLDS times.
    inside = FOLDS * once + plain
    print(f"the backbone inside each fold would take  {inside:7.1f} s  {inside / cold:.1f} x the first")


if __name__ == "__main__":
    tell_machine()
    main()
