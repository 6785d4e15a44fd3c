"""Head, LoRA, partial and full fine-tuning in one table: accuracy over seeds, seconds, peak memory.

    python benchmarks/methods_table.py digits [--seeds 3] [--epochs 5]
    python benchmarks/methods_table.py images --backbone FOLDER_OR_ID --data FOLDER [--freeze 8] [--epochs 2]
    python benchmarks/methods_table.py text --data FOLDER [--per-class 20] [--test-rows 1000]

``digits`` is the embedded default; ``text`` takes a folder with ``train.csv`` and ``test.csv`` (columns text and
label) and the package that carries MiniLM's weights. Each run has a process of its own; features are cached within
one call, so that of the first seed only the head pays for them. ``full, random head`` shows what the solved head is
worth.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import tell_machine

METHODS = ("head", "lora", "partial", "full", "full, random head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["digits", "images", "text"])
    parser.add_argument("--backbone")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--freeze", type=int, default=-2)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--methods", default="; ".join(METHODS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["HFTL_CACHE"] = str(Path(temporary) / "cache")
        case = case_of(arguments, Path(temporary))
        for method in arguments.methods.split("; "):
            options = options_of(method, arguments)
            runs = [one(case, options, seed, Path(temporary)) for seed in range(arguments.seeds)]
            print(line(method, runs), flush=True)


def case_of(arguments: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    print(f"| {'method':17} | accuracy (mean ± sd of seeds) | seconds (of them extract) | peak memory |")
    print("|---|---|---|---|")
    if arguments.case == "digits":
        return {"backbone": "hftl/glyph-vit-tiny", "data": "sample:digits"}
    if arguments.case == "images":
        return {"backbone": arguments.backbone, "data": str(arguments.data)}
    sample(arguments.data / "train.csv", temporary / "train.csv", arguments.per_class, None)
    sample(arguments.data / "test.csv", temporary / "test.csv", None, arguments.test_rows)
    folder = temporary / "data"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (temporary / name).rename(folder / name)
    return {"backbone": arguments.backbone or "minilm-l6", "data": str(folder)}


def sample(source: Path, target: Path, per_class: int | None, rows: int | None) -> None:
    """A random sample of a table, the same each time."""
    with source.open(newline="") as file:
        table = list(csv.DictReader(file))
    random.Random(0).shuffle(table)
    of_class: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in table:
        of_class[row["label"]].append(row)
    chosen = [row for group in of_class.values() for row in group[:per_class]] if per_class else table[:rows]
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": row["text"], "label": row["label"]} for row in chosen)


def options_of(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    name = method.split(",")[0]
    if name == "head":
        return {"name": "head"}
    options: dict[str, Any] = {"name": name, "epochs": arguments.epochs, "keep": 1}
    if name == "partial":
        options["freeze"] = arguments.freeze
    if "random" in method:
        options["init"] = "random"
    return options


def one(case: dict[str, Any], options: dict[str, Any], seed: int, temporary: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    out = temporary / f"run-{time.monotonic_ns()}"
    job = json.dumps({**case, "method": options, "seed": seed, "out": str(out)})
    child = subprocess.Popen([sys.executable, __file__, job], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(said.decode())
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        "accuracy": metrics["eval"]["accuracy"],
        "seconds": metrics["seconds"],
        "memory": usage.ru_maxrss * 1024,
    }


def line(method: str, runs: list[dict[str, Any]]) -> str:
    accuracies = np.array([run["accuracy"] for run in runs])
    seconds = [run["seconds"] for run in runs]
    total, extract = (np.mean([s[name] for s in seconds]) for name in ("total", "extract"))
    memory = max(run["memory"] for run in runs)
    return (
        f"| {method:17} | {accuracies.mean():.4f} ± {accuracies.std(ddof=min(1, len(runs) - 1)):.4f} "
        f"| {total:.1f} ({extract:.1f}) | {memory / 2**20:.0f} MiB |"
    )


def run_one(job: dict[str, Any]) -> None:
    from hftl.methods import METHODS as CLASSES
    from hftl.pipeline import run
    from hftl.recipes import Recipe

    method = CLASSES[job["method"]["name"]].model_validate(job["method"])
    recipe = Recipe(backbone=job["backbone"], data=job["data"], method=method, seed=job["seed"])
    run(recipe, out=Path(job["out"]), quiet=True)


if __name__ == "__main__":
    tell_machine()
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        run_one(json.loads(sys.argv[1]))
    else:
        main()
