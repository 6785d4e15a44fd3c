"""Tagged words on MiniLM: head, LoRA and full fine-tuning beside each other, and the head beside scikit-learn's.

    python benchmarks/tokens.py DATA [--epochs 3] [--methods head,lora,full] [--out FOLDER] [--memory WORDS]

DATA is any reference to sentences with tags, such as a folder with WNUT-17's train.jsonl, validation.jsonl and
test.jsonl. The grid of scikit-learn's LogisticRegression is solved on the same features, standardised; its best C is
chosen by F1 on the validation split. Where seqeval is installed, the run's F1 is compared with its.

``--memory`` measures instead what the head takes beside its features, on so many random words of 384 numbers and 13
tags.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import hftl
from hftl.frozen.matrix import Features
from hftl.heads import fit_linear
from hftl.metrics.resampled import resampled_metric
from hftl.tasks import Task

GRID = (0.001, 0.002, 0.004, 0.01, 0.02, 0.05, 0.1, 1.0, 10.0)
METHODS: dict[str, Any] = {"head": hftl.Head, "lora": hftl.LoRA, "full": hftl.Full}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--methods", default="head,lora,full")
    parser.add_argument("--out", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--memory", type=int, metavar="WORDS")
    chosen = parser.parse_args()
    if chosen.memory:
        memory(chosen.memory)
        return
    print("| | F1 | precision | recall | seconds of training |\n|---|---|---|---|---|", flush=True)
    for name in chosen.methods.split(","):
        method = METHODS[name]() if name == "head" else METHODS[name](epochs=chosen.epochs)
        recipe = hftl.Recipe(backbone="minilm-l6", data=chosen.data, method=method)
        run = hftl.run(recipe, out=chosen.out / name, quiet=True)
        assert run is not None
        found, seconds = run.metrics["eval"], run.metrics["seconds"]["train"]
        line(name, found["f1"], found["precision"], found["recall"], seconds)
        by_seqeval(chosen.out / name / "predictions.parquet", found["f1"])
    if "head" in chosen.methods:
        grid(recipe.model_copy(update={"method": hftl.Head()}), chosen.out / "head")


def line(name: str, f1: float, precision: float, recall: float, seconds: float) -> None:
    """One line of the table."""
    print(f"| {name} | {f1:.4f} | {precision:.4f} | {recall:.4f} | {seconds:,.1f} |", flush=True)


def by_seqeval(file: Path, f1: float) -> None:
    """How far a run's F1 is from seqeval's on its predictions."""
    try:
        from seqeval.metrics import f1_score
    except ImportError:
        return
    table = pq.read_table(file).to_pydict()
    theirs = float(f1_score(table["label"], table["prediction"]))
    print(f"seqeval's F1 of these predictions is {theirs:.10f}, {abs(theirs - f1):.1e} away", flush=True)


def grid(recipe: hftl.Recipe, run: Path) -> None:
    """The best of a grid of scikit-learn's, on the same features."""
    from sklearn.linear_model import LogisticRegression

    features = hftl.features(recipe, quiet=True)
    (train, y), (validation, _), (test, _) = (features.of(name) for name in ("train", "validation", "test"))
    mean, deviation = train.mean(0), train.std(0)
    kept = deviation > 1e-6 * deviation.max()
    train, validation, test = ((each[:, kept] - mean[kept]) / deviation[kept] for each in (train, validation, test))
    best: tuple[float, float, float, float] = (-1.0, 0.0, 0.0, 0.0)
    for c in GRID:
        started = time.monotonic()
        head = LogisticRegression(C=c, max_iter=1000).fit(train, y)
        seconds = time.monotonic() - started
        chosen_by = f1_of(head.predict_proba(validation), features, "validation")
        reached = f1_of(head.predict_proba(test), features, "test")
        print(
            f"scikit-learn, C={c:g}: F1 {chosen_by:.4f} on validation, {reached:.4f} on test, {seconds:,.1f} s",
            flush=True,
        )
        best = max(best, (chosen_by, reached, c, seconds))
    ours = json.loads((run / "metrics.json").read_text())["eval"]["f1"]
    print(f"the best by validation, C={best[2]:g}: {best[1]:.4f} on test; the head above: {ours - best[1]:+.4f}")


def f1_of(scores: np.ndarray, features: Features, split: str) -> float:
    """F1 of entities on a split, whose rows of one name are the words of one sentence."""
    names = np.array(features.row_names, dtype=object)[features.split == split]
    ends = np.flatnonzero(names[1:] != names[:-1]) + 1
    labels = np.empty(len(ends) + 1, dtype=object)
    for row, part in enumerate(np.split(features.of(split)[1], ends)):
        labels[row] = part
    once = np.ones((1, len(labels)))
    return float(resampled_metric(Task.TOKEN_LABELS, scores, labels, once, features.label_names)[0])


def memory(words: int) -> None:
    """What solving a head takes beside the features of so many words."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(words, 384, generator=generator)
    truth = torch.randn(384, 13, generator=generator)
    labels = torch.cat(
        [
            (part @ truth + 20 * torch.randn(len(part), 13, generator=generator)).argmax(1)
            for part in features.split(100_000)
        ]
    )
    held = words // 5
    sentences = torch.arange(words - held) // 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    fit_linear(
        features[:-held],
        labels[:-held],
        task=Task.SINGLE_LABEL,
        num_labels=13,
        validation=(features[-held:], labels[-held:]),
        groups=sentences,
    )
    after, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, features.nbytes
    print(
        f"{words:,} words: features {size / 1e9:.2f} GB, the head {(after - before) / 1e9:.2f} GB more "
        f"({(after - before) / size:.2f} times the features), {time.monotonic() - started:,.1f} s"
    )


if __name__ == "__main__":
    main()
