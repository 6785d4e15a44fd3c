"""The scout's claims, measured: coverage of its intervals, false differences, seconds and memory of its answers.

python benchmarks/scout.py coverage            200 simulated problems whose truth is known (about five minutes)
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
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification

import hftl
from hftl import samples
from hftl.heads import fit_linear
from hftl.scout.probe import ahead_by, linear_probe
from hftl.tasks import Task

CLASSES, FRESH = 3, 20_000


def drawn(rows: int, means: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes around their means."""
    labels = torch.randint(0, len(means), (rows,), generator=generator)
    return means[labels] + torch.randn(rows, means.shape[1], generator=generator), labels


def coverage(problems: int, rows: int, width: int) -> None:
    """How often the interval holds the head's accuracy on fresh rows, and equal backbones are called different."""
    # The classes are as far apart in any number of dimensions.
    apart = 0.6 * (20 / width) ** 0.5
    held, widths, different, naive = 0, [], 0, 0
    for seed in range(problems):
        generator = torch.Generator().manual_seed(seed)
        means = apart * torch.randn(CLASSES, width, generator=generator)
        features, labels = drawn(rows, means, generator)
        fresh, truth = drawn(FRESH, means, generator)
        # A second backbone of the same worth: the same classes under noise of its own.
        twin = means[labels] + torch.randn(rows, width, generator=generator)
        options = {"task": Task.SINGLE_LABEL, "num_labels": CLASSES, "folds": 5, "seed": seed}
        one, other = linear_probe(features, labels, **options), linear_probe(twin, labels, **options)
        head = fit_linear(features, labels, task="single_label", num_labels=CLASSES, calibrate=False, seed=seed)
        accuracy = float((head.logits(fresh).argmax(1) == truth).double().mean())
        held += one.interval.low <= accuracy <= one.interval.high
        widths.append(one.interval.high - one.interval.low)
        different += ahead_by(one, other, 5).p < 0.05
        plain = one.draws - other.draws
        naive += np.quantile(plain, 0.025) > 0 or np.quantile(plain, 0.975) < 0
    print(f"{problems} problems of {rows} rows, {width} features, {CLASSES} classes")
    print(
        f"95 % interval holds the accuracy on fresh rows     {held / problems:.1%} (mean width {np.mean(widths):.3f})"
    )
    print(f"equal backbones called different                   {different / problems:.1%}")
    print(f"the same without the correction for shared folds   {naive / problems:.1%}")


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
    """Peak memory of an answer on all rows above that of a process which has answered once, each in a process."""
    for name in ("rank", "audit", "transfer", "curve"):
        code = f"""
import resource, hftl
recipe = hftl.Recipe(backbone={backbone!r}, data={data!r}, method=hftl.Head(pooling={pooling!r}))
hftl.rank(recipe, [recipe.backbone], subset=200, quiet=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hftl.{name}(recipe, {"[recipe.backbone], " if name == "rank" else ""}quiet=True)
print("{name}: +", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MB")
"""
        subprocess.run([sys.executable, "-c", code], check=True)


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
        (one, other)
        for one, other in pairs
        if ahead_by(whole.depths[one].score, whole.depths[other].score, whole.folds).p < 0.05
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "seconds", "memory", "noise", "agreement"])
    parser.add_argument("data", nargs="?", default="sample:digits")
    parser.add_argument("--backbone", default="hftl/glyph-vit-tiny")
    parser.add_argument("--pooling", default="native")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--width", type=int, default=20)
    asked = parser.parse_args()
    answers = {
        "coverage": lambda: coverage(asked.problems, asked.rows, asked.width),
        "memory": lambda: memory(asked.data, asked.backbone, asked.pooling),
        "seconds": lambda: seconds(asked.data, asked.backbone, asked.pooling),
        "noise": noise,
        "agreement": lambda: agreement(asked.data, asked.backbone, asked.pooling),
    }
    answers[asked.what]()
