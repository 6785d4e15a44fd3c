"""Do intervals hold what they say? Simulated problems whose truth is known; and what cross-validation costs.

python benchmarks/intervals.py test              # 95 % intervals of a test split, 500 draws each
python benchmarks/intervals.py cv                # of cross-validated heads, about the head on all rows
python benchmarks/intervals.py speed train.csv   # --cv 5x3 beside one run's head, on the features of texts

"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import tell_machine
from scipy.special import stdtrit

from hftl.heads import fit_linear, fit_linear_folds
from hftl.heads.folds import task_folds
from hftl.intervals import SPREAD_OF_HEADS
from hftl.metrics.resampled import resampled_metrics
from hftl.scored import intervals_of
from hftl.tasks import Task

DRAWS, TRUTH_ROWS = 500, 400_000
NAMES = {
    Task.SINGLE_LABEL: ("accuracy", "f1_macro", "log_loss"),
    Task.MULTI_LABEL: ("subset_accuracy", "f1_macro", "map"),
    Task.REGRESSION: ("r2", "mae", "pearson"),
}


@dataclass(frozen=True)
class World:
    """Where rows come from; groups share a part of what makes a model wrong."""

    task: Task
    group_size: float = 1.0
    shared: float = 0.6

    def draw(self, rows: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores and labels of so many rows by a fixed model, and the rows' groups."""
        count = max(2, round(rows / self.group_size))
        sizes = generator.poisson(self.group_size - 1, count) + 1 if self.group_size > 1 else np.ones(count, int)
        groups = np.repeat(np.arange(count), sizes)
        n = len(groups)
        of_group = generator.normal(size=(count, 3))[groups]
        mix = self.shared if self.group_size > 1 else 0.0
        noise = np.sqrt(mix) * of_group + np.sqrt(1 - mix) * generator.normal(size=(n, 3))
        if self.task is Task.REGRESSION:
            truth = generator.normal(size=(n, 1))
            return truth + 0.7 * noise[:, :1], truth, groups
        if self.task is Task.MULTI_LABEL:
            labels = (generator.random((n, 3)) < [0.3, 0.15, 0.5]).astype(np.float32)
            return torch.from_numpy(2.2 * labels - 1.1 + noise).sigmoid().numpy(), labels, groups
        classes = generator.choice(3, n, p=[0.15, 0.35, 0.5])
        logits = 1.6 * np.eye(3)[classes] + noise
        return torch.from_numpy(logits).softmax(1).numpy(), classes, groups


def test() -> None:
    """Intervals of a fixed model on drawn test splits, about its score on very many rows."""
    print(f"share of {DRAWS} intervals that hold the truth (mean width); 95 % is wanted, 93 to 97 is chance")
    for task in (Task.SINGLE_LABEL, Task.REGRESSION, Task.MULTI_LABEL):
        for group_size, sizes in ((1.0, (30, 100, 300, 1_000)), (8.0, (160, 320, 800))):
            world = World(task, group_size)
            scores, labels, _ = world.draw(TRUTH_ROWS, np.random.default_rng(10**6))
            truth = {
                k: float(v[0]) for k, v in resampled_metrics(task, scores, labels, np.ones((1, len(labels)))).items()
            }
            for rows in sizes:
                held: dict[str, list[bool]] = {name: [] for name in NAMES[task]}
                width: dict[str, list[float]] = {name: [] for name in NAMES[task]}
                for seed in range(DRAWS):
                    scores, labels, groups = world.draw(rows, np.random.default_rng(seed))
                    made = intervals_of(task, scores, labels, groups=groups if group_size > 1 else None, seed=seed)
                    for name in held:
                        if (interval := made.of.get(name)) is not None:
                            held[name].append(interval.low <= truth[name] <= interval.high)
                            width[name].append(interval.high - interval.low)
                of = f"{rows} rows" if group_size == 1 else f"{rows} rows in {round(rows / group_size)} groups"
                told = ", ".join(f"{n} {100 * np.mean(held[n]):.1f} % ({np.mean(width[n]):.3f})" for n in held)
                print(f"{task.words}, {of}: {told}", flush=True)


def cv() -> None:
    """Two intervals of 5 folds dealt 3 times: what a run reports, and Nadeau and Bengio's corrected t."""
    print("share of intervals that hold the score of the head on all rows; 95 % is wanted")
    for task, count, width, groups_of in (
        (Task.SINGLE_LABEL, 150, 20, 1),
        (Task.SINGLE_LABEL, 600, 60, 1),
        (Task.SINGLE_LABEL, 600, 20, 6),
        (Task.REGRESSION, 150, 15, 1),
        (Task.REGRESSION, 600, 40, 1),
    ):
        ours, theirs, wide = [], [], []
        for seed in range(200):
            generator = torch.Generator().manual_seed(seed)
            x, y, groups, truth_x, truth_y = _drawn(task, count, width, groups_of, generator)
            how = {"task": task, "num_labels": 3 if task.has_classes else 1, "strengths": [10.0, 100.0]}
            final = fit_linear(x, y, **how)
            aim = _value(task, final.logits(truth_x), truth_y)
            logits, by_fold = np.zeros((3, count, how["num_labels"])), []
            for repeat in range(3):
                folds = task_folds(y, task, 5, seed * 10 + repeat, groups).numpy()
                held = [torch.from_numpy(folds == fold) for fold in range(5)]
                if task.has_classes:
                    said = [each.logits for each in fit_linear_folds(x, y, torch.from_numpy(folds), **how)]
                else:
                    said = [fit_linear(x[~rows], y[~rows], **how).logits(x[rows]) for rows in held]
                for rows, each in zip(held, said, strict=True):
                    logits[repeat, rows] = each.numpy()
                    by_fold.append(_value(task, each, y[rows]))
            scores = np.stack([task.scores(torch.from_numpy(each)).numpy() for each in logits])
            name = task.metric
            made = intervals_of(
                task,
                scores,
                y.numpy(),
                groups=None if groups is None else groups.numpy(),
                seed=seed,
                spread=SPREAD_OF_HEADS,
            ).of[name]
            ours.append(made.low <= aim <= made.high)
            half = stdtrit(14, 0.975) * np.sqrt((1 / 15 + 1 / 4) * np.var(by_fold, ddof=1))
            theirs.append(abs(np.mean(by_fold) - aim) <= half)
            wide.append((made.high - made.low, 2 * half))
        a, b = np.mean(wide, axis=0)
        grouped = f" in groups of {groups_of}" if groups_of > 1 else ""
        print(
            f"{task.words}, {count} x {width}{grouped}: bootstrap over rows {100 * np.mean(ours):.1f} % ({a:.3f}), "
            f"corrected t {100 * np.mean(theirs):.1f} % ({b:.3f})",
            flush=True,
        )


def _drawn(task: Task, rows: int, width: int, groups_of: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    fresh = 20_000 // groups_of * groups_of
    means = 0.5 * torch.randn(3, width, generator=generator) * (20 / width) ** 0.5
    groups = None if groups_of == 1 else torch.arange(rows) // groups_of
    parts = []
    for count, grouped in ((rows, groups is not None), (fresh, groups is not None)):
        units = count // groups_of
        own = torch.randn(units, width, generator=generator).repeat_interleave(groups_of, 0) if grouped else 0
        x = torch.randn(count, width, generator=generator) * (0.8 if grouped else 1.0) + 0.6 * own
        if task.has_classes:
            y = torch.randint(0, 3, (units,), generator=generator).repeat_interleave(groups_of)
            parts += [x + means[y], y]
        else:
            weight = means[0][:, None]
            parts += [x, x @ weight + torch.randn(count, 1, generator=generator)]
    return parts[0], parts[1], groups, parts[2], parts[3]


def _value(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> float:
    once = np.ones((1, len(labels)))
    return float(resampled_metrics(task, task.scores(logits).numpy(), labels.numpy(), once)[task.metric][0])


def speed(file: Path, repeats: int) -> None:
    """One run's head, and 5 folds dealt 3 times of the same, as `hftl run --cv 5x3` does it."""
    import hftl
    from hftl.crossed import FOLD_TOLERANCE, Plan, cross_validated
    from hftl.frozen.features import taken
    from hftl.frozen.head import train_folds, train_head
    from hftl.frozen.recipe import chooses, inputs_of, probe_of, stored_features, view_of
    from hftl.plugins.spec import BackboneOptions
    from hftl.terminal import Terminal

    recipe = hftl.Recipe(backbone="minilm-l6", data=str(file), method=hftl.Head(pooling="mean"))
    say = Terminal(quiet=True)
    spec, target, data = inputs_of(recipe, say, BackboneOptions(None), set_aside=False)
    features = stored_features(
        spec, target, data, [view_of(recipe, target.backbone)], say, on_bad_row="error", quiet=False
    )
    criterion = chooses(recipe, data.task)

    head, device = probe_of(recipe), torch.device("cpu")

    def train(part, kept, _=""):  # type: ignore[no-untyped-def]
        return train_head(head, target, kept, part, seed=0, device=device, tolerance=FOLD_TOLERANCE)

    def together(dealt):  # type: ignore[no-untyped-def]
        return train_folds(head, target, features, data, dealt, seed=0, device=device, tolerance=FOLD_TOLERANCE)

    rows = np.arange(len(data.train))
    whole = replace(data, test=data.train.select(rows, "test"))
    splits = {**features.splits, "test": taken(features.splits["train"], rows, "test")}
    all_rows = replace(features, splits=splits)
    how = {"criterion": criterion, "seed": 0, "quiet": False}

    def folds(plan, at_once):  # type: ignore[no-untyped-def]
        return cross_validated(plan, data, features, train, at_once, **how)

    for _ in range(repeats):
        one = timed(lambda: train_head(head, target, all_rows, whole, seed=0, device=device))
        crossed = timed(lambda: folds(Plan(5, 3), together))
        apart = timed(lambda: folds(Plan(5, 1), lambda _: None))
        print(
            f"{len(rows):,} rows, CPU seconds: one head {one:.1f}; 5x3 takes {crossed / one:.2f} times as long, "
            f"and {3 * apart / one:.2f} times where each fold's head is solved by itself",
            flush=True,
        )


def timed(work: Callable[[], object]) -> float:
    """Seconds of CPU time, of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    tell_machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("test", "cv", "speed"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="of the measurement of speed")
    asked = parser.parse_args()
    speed(asked.file, asked.repeats) if asked.what == "speed" else {"test": test, "cv": cv}[asked.what]()
