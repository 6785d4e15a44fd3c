"""Do the scout's intervals hold what they say? Simulated problems whose truth is known (minutes each on two cores).

python benchmarks/coverage.py rank [--rows 300 --width 20 --classes 3]    five backbones of the same worth
python benchmarks/coverage.py layers        six depths of the same worth, most of whose noise is one
python benchmarks/coverage.py transfer      the pretrained backbone beside random weights and no network
python benchmarks/coverage.py curve         scores of fewer labels, and what twice the labels bring

Each says how often a 95 % interval holds the truth of 200 problems (92 to 98 % is wanted), and how often what is the
same was called different (at most 5 %). The truth is the score on 20,000 fresh rows of the head on all rows; of a curve
that of heads on fresh draws of so many rows. `--classes 0` is a regression.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from machine import tell_machine

from hftl.criterion import Criterion
from hftl.data import Data, Texts
from hftl.data.dataset import Split
from hftl.data.marks import Marks
from hftl.heads import fit_linear
from hftl.intervals import Interval, holm
from hftl.metrics.resampled import resampled_metric
from hftl.scored import Score
from hftl.scout.curve import _answer, _measured
from hftl.scout.probe import ahead_by, probe_rows, tied_groups
from hftl.scout.stored import TrainingRows
from hftl.scout.transfer import _by_output, _gain, _mean
from hftl.tasks import Task

FRESH, SURE = 20_000, 0.05
# Training sets of each size that the truth of a learning curve is the mean of.
DRAWS_OF_TRUTH = 10


@dataclass
class Problem:
    """Classes around their means, or one number, seen by several backbones under noise of their own.

    Attributes:
        rows: labelled ones.
        width: numbers a feature has.
        classes: how many; 0 for a regression.
        seed: of all of it.
        shared: how much of the noise's variance is the same for all backbones.
    """

    rows: int
    width: int
    classes: int
    seed: int
    shared: float = 0.0
    means: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        # The classes are as far apart in any number of dimensions.
        apart = 0.6 * (20 / self.width) ** 0.5
        self.means = apart * self._noise(max(self.classes, 1))

    def _noise(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.width, generator=self.generator)

    def drawn(self, backbones: int, rows: int, weaker: float = 1.0) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features by each backbone, and labels; all backbones but the first see ``weaker`` times the noise."""
        if not self.classes:
            seen = self._noise(rows)
            labels = seen @ self.means[0, :, None] + torch.randn(rows, 1, generator=self.generator)
            return [seen + (weaker if i else 1.0) * self._noise(rows) for i in range(backbones)], labels
        labels = torch.randint(0, self.classes, (rows,), generator=self.generator)
        common = self.shared**0.5 * self._noise(rows)
        own = (1 - self.shared) ** 0.5
        noise = [(common + own * self._noise(rows)) * (weaker if i else 1.0) for i in range(backbones)]
        return [self.means[labels] + each for each in noise], labels

    def known(self, features: torch.Tensor, labels: torch.Tensor) -> TrainingRows:
        """As the scout reads them from the store."""
        task = Task.SINGLE_LABEL if self.classes else Task.REGRESSION
        rows = Texts([("",)] * len(labels), [str(i) for i in range(len(labels))])
        split = Split("train", rows, labels.numpy(), Marks())
        names = [f"class {i}" for i in range(self.classes)] or ["number"]
        data = Data("simulated", task, names, split, None, split.select(np.zeros(0, dtype=np.int64), "test"), [], {})
        return TrainingRows(features, split, data, None, None, False, self.seed, Criterion.of_task(task))  # type: ignore[arg-type]

    def truth(self, known: TrainingRows, unseen: torch.Tensor, truth: torch.Tensor) -> float:
        """The score on fresh rows of the head on all rows that are known, as a run exports it."""
        head = fit_linear(known.features, known.labels, task=known.task, num_labels=self.outputs, seed=self.seed)
        return self.score(head.logits(unseen), truth)

    def score(self, logits: torch.Tensor, truth: torch.Tensor) -> float:
        task = Task.SINGLE_LABEL if self.classes else Task.REGRESSION
        return float(resampled_metric(task, logits.numpy(), truth.numpy(), np.ones((1, len(truth))))[0])

    @property
    def outputs(self) -> int:
        return max(self.classes, 1)


class Tally:
    """What was counted over problems."""

    def __init__(self) -> None:
        self.held: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
        self.called: dict[str, list[float]] = defaultdict(list)

    def interval(self, what: str, interval: Interval, truth: float) -> None:
        held = interval.low <= truth <= interval.high
        self.held[what].append((held, interval.high - interval.low, interval.value - truth))

    def different(self, what: str, share: float) -> None:
        self.called[what].append(share)

    def show(self) -> None:
        for what, rows in self.held.items():
            share, width, error = np.mean(np.array(rows, dtype=float), axis=0)
            print(
                f"{what}: held in {share:.1%} of {len(rows)} (mean width {width:.3f}, value {error:+.4f} above truth)"
            )
        for what, shares in self.called.items():
            print(f"{what}: {np.mean(shares):.1%}", flush=True)


def compared(tally: Tally, scores: list[Score]) -> None:
    """How often equal backbones were called different: of all pairs, and whether any was."""
    ordered = sorted(scores, key=lambda score: -score.merit)
    pairs = [(i, j) for i in range(len(ordered)) for j in range(i + 1, len(ordered))]
    adjusted = holm([ahead_by(ordered[i], ordered[j]).p for i, j in pairs])
    tally.different("pairs of the same worth called different", float(np.mean(np.array(adjusted) < SURE)))
    tally.different("problems with any such pair", float(max(tied_groups(ordered)) > 1))


def alike(tally: Tally, problem: Problem, backbones: int) -> None:
    """Cross-validated probes of backbones that are equally good."""
    features, labels = problem.drawn(backbones, problem.rows)
    unseen, truth = problem.drawn(backbones, FRESH)
    scores = []
    for ours, theirs in zip(features, unseen, strict=True):
        known = problem.known(ours, labels)
        scores.append((probe_rows(known, 5), problem.truth(known, theirs, truth)))
    best = max(scores, key=lambda each: each[0].merit)
    for score, value in scores:
        tally.interval("probe", score.interval, value)
    tally.interval("probe of the best of them", best[0].interval, best[1])
    compared(tally, [score for score, _ in scores])


def rank(tally: Tally, problem: Problem) -> None:
    alike(tally, problem, 5)


def layers(tally: Tally, problem: Problem) -> None:
    problem.shared = 0.7
    alike(tally, problem, 6)


def transfer(tally: Tally, problem: Problem) -> None:
    """The pretrained backbone beside a rival of one model and one of three draws; equally good, and worse by noise."""
    for what, weaker in (("equal rivals", 1.0), ("weaker rivals", 1.25)):
        features, labels = problem.drawn(5, problem.rows, weaker)
        unseen, truth = problem.drawn(5, FRESH, weaker)
        known = [problem.known(each, labels) for each in features]
        scores = [probe_rows(each, 5, parts=1) for each in known]
        values = [problem.truth(each, fresh, truth) for each, fresh in zip(known, unseen, strict=True)]
        gains = [_gain(scores[0], scores[1:2]), _gain(scores[0], scores[2:])]
        tally.interval(f"{what}: gain over one model", gains[0], values[0] - values[1])
        tally.interval(f"{what}: gain over the mean of three draws", gains[1], values[0] - float(np.mean(values[2:])))
        tally.interval(f"{what}: the mean of three draws", _mean(scores[2:]), float(np.mean(values[2:])))
        if weaker == 1.0:
            adjusted = holm([gain.p for gain in gains])
            tally.different("equal rivals called better or worse", float(np.mean(np.array(adjusted) < SURE)))
            outputs = _by_output(known[0], scores[0], scores[1:2])
            tally.different("classes called hurt or helped", float(np.mean([o.gain.p < SURE for o in outputs])))


def curve(tally: Tally, problem: Problem) -> None:
    """Points of a curve, and twice the labels."""
    (features,), labels = problem.drawn(1, problem.rows)
    (unseen,), truth = problem.drawn(1, FRESH)
    known = problem.known(features, labels)
    sizes, scores = _measured(known, 5, quiet=True)
    answer = _answer(known, sizes, scores)
    how = {"task": known.task, "num_labels": problem.outputs, "calibrate": False}

    def expected(rows: int) -> float:
        values, strengths = [], None
        for draw in range(DRAWS_OF_TRUTH):
            (ours,), theirs = problem.drawn(1, rows)
            head = fit_linear(ours, theirs, strengths=strengths, seed=draw, **how)
            strengths = strengths or [float(head.report["chosen"])]
            values.append(problem.score(head.logits(unseen), truth))
        return float(np.mean(values))

    at = {point.rows: expected(point.rows) for point in answer.points}
    for place, point in enumerate(answer.points):
        which = "fewest labels" if not place else "most labels" if point.rows == sizes[-1] else "sizes between"
        tally.interval(f"score at {which}", point.score, at[point.rows])
    tally.different("curves that say what twice the labels would bring", float(answer.doubled is not None))
    if answer.doubled is not None:
        gained = expected(2 * problem.rows) - expected(problem.rows)
        tally.interval("twice the labels bring", answer.doubled, gained)


QUESTIONS = {"rank": rank, "layers": layers, "transfer": transfer, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=QUESTIONS)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--classes", type=int, default=3, help="0 for a regression")
    asked = parser.parse_args()
    tally = Tally()
    for seed in range(asked.problems):
        QUESTIONS[asked.what](tally, Problem(asked.rows, asked.width, asked.classes, seed))
    kind = f"{asked.classes} classes" if asked.classes else "a regression"
    print(f"{asked.what}: {asked.problems} problems of {asked.rows} rows, {asked.width} features, {kind}")
    tally.show()


if __name__ == "__main__":
    tell_machine()
    main()
