"""How deep a backbone has to be: the curve of `hftl layers`, what ``--depth auto`` costs, and how much faster it is.

python benchmarks/depth.py BACKBONE DATA [--pooling mean] [--subset N] [--rows 256]

Prints a probe for each depth, test scores of the run at full depth and of ``--depth auto``, and rows a second of the
two exported models, measured in turn on the same rows, preprocessing left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import tell_machine

import hftl
from hftl.backbones.loading import load_backbone
from hftl.backbones.matching import data_for
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions

BATCH = 32
ROUNDS = 5


def encoded(reference: str, data: str, rows: int) -> list[dict[str, torch.Tensor]]:
    """Batches of the test split, as the models read them."""
    backbone = load_backbone(find(reference), BackboneOptions(offline=True))
    test = data_for(backbone, data).test.inputs
    count = min(rows, len(test))
    made = backbone.encode([test[i] for i in range(count)], [test.name(i) for i in range(count)])
    return [backbone.collate(made[start : start + BATCH]) for start in range(0, count, BATCH)]


def seconds(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backbone")
    parser.add_argument("data")
    parser.add_argument("--pooling", default="native")
    parser.add_argument("--subset", type=int, help="training rows that the curve is made of")
    parser.add_argument("--rows", type=int, default=256)
    asked = parser.parse_args()
    recipe = hftl.Recipe(backbone=asked.backbone, data=asked.data, method=hftl.Head(pooling=asked.pooling))
    started = time.monotonic()
    found = hftl.layers(recipe, subset=asked.subset, offline=True, quiet=True)
    print(f"layers: {found.rows:,} training rows, {time.monotonic() - started:.0f} s")
    print("|".join(["", "depth", found.metric, "parameters", "as good as the best", ""]))
    print("|" + "---|" * 4)
    for each in found.depths:
        numbers = [str(each.probe), f"{each.parameters / 1e6:.1f} M"]
        print("|".join(["", str(each.depth), *numbers, "yes" if each.same else "no", ""]))
    for pooling, score in found.pooled.items():
        print(f"pooling {pooling} at depth {found.chosen}: {score}")
    print(found.advice)
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        # What ``--depth auto`` takes, without asking for it twice.
        for name, depth in (("full", None), ("auto", found.chosen)):
            made = recipe.model_copy(update={"depth": depth})
            done = hftl.run(made, out=Path(folder, name), offline=True, quiet=True)
            assert done is not None
            runs[name] = done
            print(f"{name}: test {found.metric} {done.metrics['eval'][found.metric]:.4f}, {done.metrics['features']}")
        models = {name: hftl.load(done.folder, offline=True).network for name, done in runs.items()}
        batches = encoded(asked.backbone, asked.data, asked.rows)
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                times[name].append(seconds(model, batches))
    rows = {name: asked.rows / statistics.median(taken) for name, taken in times.items()}
    pairs = [full / auto for full, auto in zip(times["full"], times["auto"], strict=True)]
    print(
        f"exported models: full {rows['full']:.0f} rows/s, auto (depth {found.chosen}) {rows['auto']:.0f} rows/s; "
        f"{statistics.median(pairs):.2f} times as fast ({min(pairs):.2f} to {max(pairs):.2f} in {ROUNDS} rounds)"
    )


if __name__ == "__main__":
    tell_machine()
    main()
