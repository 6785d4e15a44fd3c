"""`Tuned`: what tuning found, and the interval of a choice that was repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

from hftl.intervals import LEVEL, Difference, Interval
from hftl.scout.answer import Answer


@dataclass(frozen=True)
class TriedTrial:
    """One trial.

    Attributes:
        number: of the trial, from 0.
        values: what it tried, by field.
        state: ``finished``, ``pruned`` (it was worse than the median of the others at the same epoch), ``failed``.
        score: the metric on the validation rows; of a pruned trial where it ended; None for a failed one.
        epochs: how many it trained; None for a head, and where it failed.
        seconds: what it took.
        why: why it failed, or which trial had tried the same; empty otherwise.
    """

    number: int
    values: dict[str, Any]
    state: str
    score: float | None
    epochs: int | None
    seconds: float
    why: str = ""

    @property
    def ended(self) -> str:
        """How it ended, and why."""
        return ", ".join(part for part in (self.state, self.why) if part)


@dataclass(frozen=True)
class Tuned(Answer):
    """What tuning found.

    Attributes:
        folder: where everything is.
        metric: what chose, on the validation rows.
        validation_rows: how many there are.
        trials: in the order of their numbers.
        best: number of the chosen trial.
        chosen: its values.
        searched: its score in the search: the best of many, and so too good.
        repeats: its scores with fresh seeds.
        repeated: their mean and its interval; None where it was not repeated.
        run: folder of the run of the chosen recipe.
        tested: the metric of that run on the test rows, which chose nothing.
        gain: how much better it is than a run of the recipe as it stands, on the same test rows; None where the recipe
            as it stands was chosen.
        recipe: the file of the chosen recipe.
        report: the page.
        advice: what came out, in a sentence or two.
        notes: what a person should know before the numbers are believed.
    """

    table: ClassVar[str] = "trials"
    folder: str
    metric: str
    validation_rows: int
    trials: list[TriedTrial]
    best: int
    chosen: dict[str, Any]
    searched: float
    repeats: list[float]
    repeated: Interval | None
    run: str
    tested: Interval
    gain: Difference | None
    recipe: str
    report: str
    advice: str
    notes: list[str]

    def from_the_best(self) -> list[TriedTrial]:
        """The trials, those first whose score is nearest that of the best one; failed ones last."""
        return sorted(self.trials, key=lambda each: math.inf if each.score is None else abs(each.score - self.searched))


def repeated_score(scores: Sequence[float], *, drawn_anew: float = 0.0, spread: float = 0.0) -> Interval:
    """The mean score of a recipe that was trained with several seeds, and its 95 % interval.

    Student's t over the seeds. Where each seed draws its own validation rows, the rows that trainings share make the
    scores resemble one another, and the variance is corrected for it (Nadeau & Bengio, *Inference for the
    generalization error*, Machine Learning 52, 2003). Where all seeds are judged on the same rows, what other rows
    would change is added: no number of seeds takes it away.

    Args:
        scores: two or more.
        drawn_anew: validation rows for each training row, where each seed draws its own; 0 where all share them.
        spread: standard deviation that other rows would give a score, where all seeds share them; else 0.
    """
    count, mean = len(scores), float(np.mean(scores))
    of_seeds = float(np.std(scores, ddof=1)) * math.sqrt(1 / count + drawn_anew)
    tail = 1 - (1 - LEVEL) / 2
    half = math.hypot(float(stdtrit(count - 1, tail)) * of_seeds, float(ndtri(tail)) * spread)
    return Interval(mean, mean - half, mean + half)
