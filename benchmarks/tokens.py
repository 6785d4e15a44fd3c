"""Tagged words on MiniLM: head, LoRA and full fine-tuning beside each other, and the head beside scikit-learn's.

    python benchmarks/tokens.py DATA [--epochs 3] [--methods head,lora,full] [--limit ROWS] [--out FOLDER]
    python benchmarks/tokens.py --memory WORDS

DATA is any reference to sentences with tags, such as a folder with WNUT-17's train.jsonl, validation.jsonl and
test.jsonl. Each method has its usual learning rate, and is a run of its own under ``--out``: one that is finished is
read there and not done again, one that was stopped goes on, which the table says. ``--limit`` takes so many training
rows. The grid of scikit-learn's LogisticRegression is solved on the same features, standardised; its best C is chosen
by F1 on the validation split. Where seqeval is installed, the runs' F1 are compared with its.

``--memory`` measures instead what the head takes beside its features, on so many random words of 384 numbers and 13
tags.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from llm_memory import resident
from machine import tell_machine

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
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--memory", type=int, metavar="WORDS")
    chosen = parser.parse_args()
    if chosen.memory:
        memory(chosen.memory)
        return
    if not chosen.data:
        parser.error("give the data, or --memory WORDS")
    print("| | F1 | precision | recall | epochs (kept) | seconds of features | of training |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in chosen.methods.split(","):
        method = METHODS[name]() if name == "head" else METHODS[name](epochs=chosen.epochs)
        recipe = hftl.Recipe(backbone="minilm-l6", data=chosen.data, method=method, limit=chosen.limit)
        line(name, finished(recipe, chosen.out / name))
    for name in chosen.methods.split(","):
        run = chosen.out / name
        by_seqeval(name, run / "predictions.parquet", metrics_of(run)["eval"]["f1"])
    if "head" in chosen.methods:
        grid(recipe.model_copy(update={"method": hftl.Head()}), metrics_of(chosen.out / "head")["eval"]["f1"])


def finished(recipe: hftl.Recipe, out: Path) -> dict[str, Any]:
    """The metrics of a run, which is done now unless it is finished."""
    if not (out / "metrics.json").is_file():
        goes_on = out.exists() and not isinstance(recipe.method, hftl.Head)
        hftl.run(recipe, out=out, quiet=True, report=False, resume=goes_on)
    return metrics_of(out)


def metrics_of(run: Path) -> dict[str, Any]:
    """What a finished run measured."""
    read: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return read


def line(name: str, told: dict[str, Any]) -> None:
    """One line of the table."""
    found, seconds, training = told["eval"], told["seconds"], told.get("finetune")
    epochs = f"{len(training['epochs']) - 1} ({training['kept_epoch']})" if training else "–"
    stopped = " (resumed: of the last part)" if training and training["resumed_at"] else ""
    print(
        f"| {name} | {found['f1']:.4f} | {found['precision']:.4f} | {found['recall']:.4f} | {epochs} | "
        f"{seconds['extract']:,.1f} | {seconds['train']:,.1f}{stopped} |",
        flush=True,
    )


def by_seqeval(name: str, file: Path, f1: float) -> None:
    """How far a run's F1 is from seqeval's on its predictions."""
    try:
        from seqeval.metrics import f1_score
    except ImportError:
        return
    table = pq.read_table(file).to_pydict()
    theirs = float(f1_score(table["label"], table["prediction"]))
    print(f"seqeval's F1 of the predictions of {name} is {theirs:.10f}, {abs(theirs - f1):.1e} away", flush=True)


def grid(recipe: hftl.Recipe, ours: float) -> None:
    """The best of a grid of scikit-learn's, on the same features, beside the F1 of hftl's head."""
    from sklearn.linear_model import LogisticRegression

    features = hftl.features(recipe, quiet=True)
    (train, y), (validation, _), (test, _) = (features.of(name) for name in ("train", "validation", "test"))
    mean, deviation = train.mean(0), train.std(0)
    kept = deviation > 1e-6 * deviation.max()
    train, validation, test = ((each[:, kept] - mean[kept]) / deviation[kept] for each in (train, validation, test))
    tried: list[tuple[float, float, float]] = []
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
        tried.append((chosen_by, reached, c))
    for what, best in (
        ("chosen by F1 on validation", max(tried)),
        ("best on test, which nobody may choose by", max(tried, key=lambda each: each[1])),
    ):
        print(f"scikit-learn, {what}, C={best[2]:g}: {best[1]:.4f} on test; the head above: {ours - best[1]:+.4f}")


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
    """What solving a head takes beside the features of so many words, chosen on folds and on a validation split."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(words, 384, generator=generator)
    truth = torch.randn(384, 13, generator=generator)
    labels = torch.cat(
        [
            (part @ truth + 20 * torch.randn(len(part), 13, generator=generator)).argmax(1)
            for part in features.split(100_000)
        ]
    )
    held, sentences = words // 5, torch.arange(words) // 20
    # What a library takes once is not the head's.
    fit_linear(features[:2000], labels[:2000], task=Task.SINGLE_LABEL, num_labels=13, groups=sentences[:2000])
    for how in ("folds", "validation"):
        rows = slice(None) if how == "folds" else slice(held, None)
        judges = None if how == "folds" else (features[:held], labels[:held])
        # From here on the peak is counted anew.
        Path("/proc/self/clear_refs").write_text("5")
        before, started = resident("VmRSS"), time.monotonic()
        fit_linear(
            features[rows],
            labels[rows],
            task=Task.SINGLE_LABEL,
            num_labels=13,
            # Of as many as a run tries memory is the same.
            strengths=[10_000.0, 1000.0, 100.0],
            validation=judges,
            groups=sentences[rows],
        )
        more, size, seconds = resident("VmHWM") - before, features.nbytes, time.monotonic() - started
        print(
            f"{words:,} words, {how}: features {size / 1e9:.2f} GB, at its peak the head {more / 1e9:.2f} GB more "
            f"({more / size:.2f} times the features), {seconds:,.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    tell_machine()
    main()
