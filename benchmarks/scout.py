"""What the scout's answers cost once features are stored, and three networks of one architecture.

python benchmarks/scout.py seconds [DATA --backbone B --pooling P]    each answer (2,000 rows; audit: all)
python benchmarks/scout.py memory [DATA --backbone B --pooling P]     peak memory of each answer
python benchmarks/scout.py threads                                    small heads, as they are solved and by two threads
python benchmarks/scout.py noise                                      rank networks that saw letters, nothing, and noise
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import tell_machine
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification

import hftl
from hftl import samples
from hftl.criterion import Criterion
from hftl.heads import threads as heads_threads
from hftl.scout.probe import linear_probe
from hftl.tasks import Task

# What a process says of an answer: how far its peak memory rose above that of one that has answered a small question.
PEAK = """
import resource, hftl
recipe = hftl.Recipe.model_validate({recipe!r})
hftl.rank(recipe, [recipe.backbone], subset=200, quiet=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hftl.{name}(recipe, {hands}quiet=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def seconds(recipe: hftl.Recipe) -> None:
    """Seconds of each answer, on at most 2,000 rows (the audit: all), once all is stored; the targets are 20 each."""
    options = {"subset": 2000, "quiet": True}
    answers: dict[str, Callable[[], object]] = {
        # Five backbones cost five times what one does.
        "rank of 5": lambda: [hftl.rank(recipe, [recipe.backbone], **options) for _ in range(5)],
        "layers": lambda: hftl.layers(recipe, **options),
        "transfer": lambda: hftl.transfer(recipe, **options),
        "curve": lambda: hftl.curve(recipe, **options),
        "audit": lambda: hftl.audit(recipe, quiet=True),
    }
    rows = len(hftl.features(recipe, quiet=True))
    print(f"{recipe.data} on {recipe.backbone}: {rows:,} rows to audit, {torch.get_num_threads()} threads", flush=True)
    for name, answer in answers.items():
        answer()
        busy = time.process_time()
        took = timed(answer)
        print(f"{name:9}  {took:5.1f} s (target 20), {time.process_time() - busy:5.1f} s of processors", flush=True)


def memory(recipe: hftl.Recipe) -> None:
    """Peak memory of an answer on all stored rows, beside the features that it is asked of."""
    stored = hftl.features(recipe, quiet=True)
    every, train = stored.matrix.nbytes / 2**20, stored.of("train")[0].nbytes / 2**20
    print(f"features: {train:.0f} MB of the training rows, {every:.0f} MB of all splits", flush=True)
    # The random twins' are computed apart from what is measured, and those of all depths.
    hftl.transfer(recipe, quiet=True)
    hftl.layers(recipe, quiet=True)
    for name in ("rank", "layers", "transfer", "curve", "audit"):
        hands = "[recipe.backbone], " if name == "rank" else ""
        code = PEAK.format(recipe=recipe.model_dump(), name=name, hands=hands)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        grown, of = float(done.stdout), every if name == "audit" else train
        print(f"{name:9}  +{grown:4.0f} MB, {grown / of:4.1f} x the features (target 2)", flush=True)


def threads() -> None:
    """How much longer small cross-validations take with two threads at every product than as they are solved."""
    torch.set_num_threads(2)
    worth = heads_threads.WORTH_THREADS
    for rows, width, classes in ((100, 20, 3), (300, 20, 3), (300, 192, 10)):
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, classes, (rows,), generator=generator)
        features = torch.randn(classes, width)[labels] + torch.randn(rows, width, generator=generator)
        taken: dict[str, list[float]] = {"as it is": [], "two threads": []}
        for _ in range(3):
            for name, least in (("as it is", worth), ("two threads", 0)):
                heads_threads.WORTH_THREADS = least
                own = Criterion.of_task(Task.SINGLE_LABEL)
                how = {"criterion": own, "num_labels": classes, "folds": 5, "seed": 0}
                taken[name].append(timed(lambda f=features, y=labels, h=how: linear_probe(f, y, **h)))
        ratios = [two / one for one, two in zip(*taken.values(), strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{rows} x {width}: two threads take {np.median(ratios):.2f} times as long ({spread})", flush=True)


def noise() -> None:
    """Rank, on digits, three networks of one architecture that saw letters, nothing, and noise."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HFTL_CACHE"] = f"{folder}/cache"
        glyphs = samples.path("glyph-vit-tiny")
        torch.manual_seed(0)
        random = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(glyphs))
        random.save_pretrained(f"{folder}/random")
        shutil.copy(Path(glyphs) / "preprocessor_config.json", f"{folder}/random")
        pixels = np.random.default_rng(0)
        for row in range(600):
            where = Path(folder, "noise", f"class{row % 10}")
            where.mkdir(parents=True, exist_ok=True)
            picture = pixels.integers(0, 256, (28, 28, 3)).astype(np.uint8)
            Image.fromarray(picture).save(where / f"{row}.png")
        recipe = hftl.Recipe(
            backbone=f"{folder}/random", data=f"{folder}/noise", method=hftl.Full(epochs=5, init="random", lr=3e-4)
        )
        run = hftl.run(recipe, out=f"{folder}/run", quiet=True)
        assert run is not None
        digits = hftl.Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits")
        names = ["hftl/glyph-vit-tiny", f"{folder}/random", str(run.folder / "model")]
        for each in hftl.rank(digits, names, quiet=True).backbones:
            shown = {names[1]: "random weights", names[2]: "pretrained on noise"}.get(each.backbone, each.backbone)
            print(f"group {each.group}  {shown:22} {each.probe}  k-NN {each.knn.value:.3f}")


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    tell_machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seconds", "memory", "threads", "noise"])
    parser.add_argument("data", nargs="?", default="sample:digits")
    parser.add_argument("--backbone", default="hftl/glyph-vit-tiny")
    parser.add_argument("--pooling", default="native")
    asked = parser.parse_args()
    about = hftl.Recipe(backbone=asked.backbone, data=asked.data, method=hftl.Head(pooling=asked.pooling))
    answers = {
        "memory": lambda: memory(about),
        "seconds": lambda: seconds(about),
        "noise": noise,
        "threads": threads,
    }
    answers[asked.what]()
