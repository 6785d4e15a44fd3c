"""The scout's claims, measured: coverage of its intervals, false differences, seconds and memory of its answers.

python benchmarks/scout.py coverage            200 simulated problems whose truth is known (minutes)
python benchmarks/scout.py threads             small heads, as they are solved and by two threads
python benchmarks/scout.py memory [DATA]       peak memory of each answer on stored features
python benchmarks/scout.py seconds [DATA]      each answer on stored features (2,000 rows; audit: all)
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
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
from hftl.heads import fit_linear
from hftl.heads import threads as heads_threads
from hftl.metrics.resampled import resampled_metric
from hftl.scout.probe import ahead_by, linear_probe
from hftl.tasks import Task

FRESH = 20_000


def drawn(rows: int, classes: int, means: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Gaussian classes around their means, seen by two backbones; without classes one number of the first one's."""
    labels = torch.randint(0, max(classes, 1), (rows,), generator=generator)
    one, other = (means[labels] + torch.randn(rows, means.shape[1], generator=generator) for _ in range(2))
    if classes:
        return one, other, labels
    return one, other, one @ means[0, :, None] + torch.randn(rows, 1, generator=generator)


def coverage(problems: int, rows: int, width: int, classes: int) -> None:
    """How often the interval holds the score of the run's head on fresh rows, and equal backbones are called different.

    Two backbones see the same classes, each under noise of its own, so neither is better.
    """
    # The classes are as far apart in any number of dimensions.
    apart, task = 0.6 * (20 / width) ** 0.5, Task.SINGLE_LABEL if classes else Task.REGRESSION
    held: list[bool] = []
    widths, errors, p_values, plain = [], [], [], []
    for seed in range(problems):
        generator = torch.Generator().manual_seed(seed)
        means = apart * torch.randn(max(classes, 1), width, generator=generator)
        *known, labels = drawn(rows, classes, means, generator)
        *fresh, truth = drawn(FRESH, classes, means, generator)
        how = {"num_labels": max(classes, 1), "seed": seed}
        scores = []
        for features, unseen in list(zip(known, fresh, strict=True))[: 2 if classes else 1]:
            scores.append(linear_probe(features, labels, criterion=Criterion.of_task(task), folds=5, **how))
            logits = fit_linear(features, labels, task=task, **how).logits(unseen)
            value = resampled_metric(task, logits.numpy(), truth.numpy(), np.ones((1, FRESH)))[0]
            interval = scores[-1].interval
            held.append(interval.low <= value <= interval.high)
            widths.append(interval.high - interval.low)
            errors.append(interval.value - value)
        if classes:
            p_values.append(ahead_by(*scores).p)
            low, high = np.quantile(scores[0].draws - scores[1].draws, [0.025, 0.975])
            plain.append(low > 0 or high < 0)
    print(f"{problems} problems of {rows} rows, {width} features, {classes or 'no'} classes")
    print(f"95 % interval holds the score on fresh rows       {np.mean(held):.1%} (mean width {np.mean(widths):.3f})")
    print(f"score above that on fresh rows                    {np.mean(errors):+.4f}")
    if classes:
        print(f"equal backbones called different                  {np.mean(np.array(p_values) < 0.05):.1%}")
        print(f"the same by the rows alone                        {np.mean(plain):.1%}")


def seconds(data: str, backbone: str, pooling: str) -> None:
    """Seconds and growth of peak memory of each answer, on at most 2,000 rows (the audit: all), once all is stored."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HFTL_CACHE"] = folder
        recipe = hftl.Recipe(backbone=backbone, data=data, method=hftl.Head(pooling=pooling))
        options = {"subset": 2000, "quiet": True}
        answers: dict[str, Callable[[], object]] = {
            # Five backbones cost five times what one does.
            "rank of 5": lambda: [hftl.rank(recipe, [backbone], **options) for _ in range(5)],
            "transfer": lambda: hftl.transfer(recipe, **options),
            "curve": lambda: hftl.curve(recipe, **options),
            "layers": lambda: hftl.layers(recipe, **options),
            "audit": lambda: hftl.audit(recipe, quiet=True),
        }
        print(f"{data} on {backbone}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
        for name, answer in answers.items():
            first = timed(answer)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            again = timed(answer)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(f"{name:9}  first {first:6.1f} s   stored {again:6.1f} s   memory +{grown / 1024:.0f} MB")


def memory(data: str, backbone: str, pooling: str) -> None:
    """Peak memory of an answer on all stored rows above that of a process which has answered once."""
    recipe = hftl.Recipe(backbone=backbone, data=data, method=hftl.Head(pooling=pooling))
    stored = hftl.features(recipe, quiet=True).of("train")[0]
    print(
        f"features of the training rows: {stored.nbytes / 2**20:.0f} MB, {torch.get_num_threads()} threads", flush=True
    )
    hftl.transfer(recipe, seeds=1, subset=200, quiet=True)
    for name in ("rank", "audit", "transfer", "curve"):
        code = f"""
import resource, hftl
recipe = hftl.Recipe(backbone={backbone!r}, data={data!r}, method=hftl.Head(pooling={pooling!r}))
hftl.rank(recipe, [recipe.backbone], subset=200, quiet=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hftl.{name}(recipe, {"[recipe.backbone], " if name == "rank" else ""}quiet=True)
print("{name}: +", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MB", flush=True)
"""
        subprocess.run([sys.executable, "-c", code], check=True)


def threads() -> None:
    """How much longer small cross-validations take with two threads at every product than as they are solved."""
    torch.set_num_threads(2)
    worth = heads_threads.WORTH_THREADS
    for rows, width, classes in ((100, 20, 3), (300, 20, 3), (300, 192, 10)):
        features, _, labels = drawn(rows, classes, torch.randn(classes, width), torch.Generator().manual_seed(0))
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


def agreement(data: str, backbone: str, pooling: str) -> None:
    """Kendall's tau between depths ordered by a quarter of the training rows and by all of them."""
    recipe = hftl.Recipe(backbone=backbone, data=data, method=hftl.Head(pooling=pooling))
    whole = hftl.layers(recipe, quiet=True)
    part = hftl.layers(recipe, subset=whole.rows // 4, quiet=True)
    ranked = hftl.rank(recipe, [backbone], subset=whole.rows // 4, quiet=True)
    print(f"{data} on {backbone}: {part.rows:,} of {whole.rows:,} rows; rank on the part {ranked.backbones[0].probe}")
    for one, other in zip(whole.depths, part.depths, strict=True):
        print(f"depth {one.depth:2}   all rows {one.probe}   a quarter {other.probe}")
    pairs = [(one, other) for one, other in itertools.combinations(range(len(whole.depths)), 2)]
    sure = [
        (one, other) for one, other in pairs if ahead_by(whole.depths[one].score, whole.depths[other].score).p < 0.05
    ]
    thirds = [pair for pair in pairs if all((k + 1) % 3 == 0 for k in pair)]
    for what, chosen in (
        ("all pairs of depths", pairs),
        ("pairs of depths 3, 6, …", thirds),
        ("pairs that differ beyond noise on all rows", sure),
    ):
        agree = [
            np.sign(whole.depths[a].probe.value - whole.depths[b].probe.value)
            * np.sign(part.depths[a].probe.value - part.depths[b].probe.value)
            for a, b in chosen
        ]
        print(f"tau over {len(chosen)} {what}: {np.mean(agree):.2f}")


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    tell_machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "seconds", "memory", "threads", "noise", "agreement"])
    parser.add_argument("data", nargs="?", default="sample:digits")
    parser.add_argument("--backbone", default="hftl/glyph-vit-tiny")
    parser.add_argument("--pooling", default="native")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--classes", type=int, default=3, help="of the simulated problems; 0 for a regression")
    asked = parser.parse_args()
    answers = {
        "coverage": lambda: coverage(asked.problems, asked.rows, asked.width, asked.classes),
        "memory": lambda: memory(asked.data, asked.backbone, asked.pooling),
        "seconds": lambda: seconds(asked.data, asked.backbone, asked.pooling),
        "noise": noise,
        "threads": threads,
        "agreement": lambda: agreement(asked.data, asked.backbone, asked.pooling),
    }
    answers[asked.what]()
