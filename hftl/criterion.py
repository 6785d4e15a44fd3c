"""`Criterion`: the metric that chooses, and which way of it is better.

Whatever is chosen by a number is chosen by this one: the strength of a head, the epoch that is kept, a backbone or a
depth that the scout advises. It is the task's own metric unless a recipe names another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftl.errors import RecipeError
from hftl.metric_functions import MetricLike, metric_name, metric_values
from hftl.plugins.registry import metrics as plugin_metrics
from hftl.tasks import Task, for_whole_rows
from hftl.wording import did_you_mean, listing, named_error

if TYPE_CHECKING:
    import numpy as np

    from hftl.intervals import Array

# Bootstrap samples of a metric that is a function: each costs a call, of those of hftl none does.
_FUNCTION_RESAMPLES = 400
# Samples that the standard error along a path is estimated from.
_ERROR_RESAMPLES = 100
# What a share of 0 counts as, where shares of neighbours or of all rows are taken for probabilities.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Criterion:
    """The metric that chooses.

    Attributes:
        task: what the labels are.
        name: of the metric, as it stands in ``metrics.json``.
        greater_is_better: which way of it is better.
        is_stated: whether a recipe asked for it; if not, it is the task's own.
        compute: gives it of logits, labels and thresholds; None for one of hftl's own.
    """

    task: Task
    name: str
    greater_is_better: bool
    is_stated: bool = False
    compute: MetricLike | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_task(cls, task: Task) -> Criterion:
        """The metric that chooses where nobody names one."""
        return cls(task, task.metric, task.directions[task.metric])

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "more is better" if self.greater_is_better else "less is better"

    @property
    def sign(self) -> float:
        """What a value is multiplied with, so that more is better."""
        return 1.0 if self.greater_is_better else -1.0

    @property
    def best(self) -> float:
        """What no model exceeds, times `sign`: 1 of a share, 0 of a loss; infinite where nobody can tell."""
        if not self.is_own:
            return math.inf
        return 1.0 if self.greater_is_better else 0.0

    @property
    def is_share(self) -> bool:
        """Whether it is on the scale of a share, so that a hundredth is a point."""
        return self.is_own and self.greater_is_better

    @property
    def is_own(self) -> bool:
        """Whether hftl itself computes it."""
        return self.compute is None and self.name in self.task.directions

    @property
    def needs_probabilities(self) -> bool:
        """Whether scores that only order the classes do not suffice."""
        return self.name == "log_loss" or not self.is_own

    @property
    def samples(self) -> int:
        """How many bootstrap samples its interval is made of."""
        from hftl.intervals import RESAMPLES

        return RESAMPLES if self.is_own else _FUNCTION_RESAMPLES

    def rank(self, value: float | None) -> float:
        """What orders values, the better one larger; undefined ones come last."""
        return -math.inf if value is None or not math.isfinite(value) else self.sign * value

    def at(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        counts: Array,
        thresholds: Sequence[float] | None = None,
        *,
        label_names: Sequence[str] = (),
    ) -> Array:
        """The metric on samples in which each row stands so many times.

        Args:
            logits: (n, C), or (words, C); for a regression the predicted targets.
            labels: (n,) class numbers, (n, C), or tags of sentences.
            counts: float64 (b, n), whole numbers.
            thresholds: of several labels, the probability of each above which it is predicted; None for 0.5.
            label_names: of tags, which say what an entity is; else not needed.

        Returns:
            float64 (b,); NaN where a sample leaves the metric undefined.

        Raises:
            RecipeError: the metric is a function, and fails.
        """
        import numpy as np

        if self.compute is not None:
            repeated = (np.repeat(np.arange(len(labels)), times.astype(np.int64)) for times in counts)
            return np.array([self._called(logits[rows], labels[rows], thresholds) for rows in repeated])
        # Brought only here: a run's record is read without SciPy.
        from hftl.metrics.resampled import resampled_metric, resampled_value

        if self.name == self.task.metric:
            return resampled_metric(self.task, logits, labels, counts, label_names)
        if not self.is_own:
            raise RecipeError(f"metric {self.name!r} is a function of another run's recipe, which is not at hand")
        return resampled_value(self.task, self.name, self._probabilities(logits), labels, counts, thresholds)

    def value(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        thresholds: Sequence[float] | None = None,
        *,
        label_names: Sequence[str] = (),
    ) -> float:
        """The metric of predictions, NaN where it is undefined; see `at`.

        Args:
            logits: (n, C), or (words, C).
            labels: (n,) or (n, C), or tags of sentences.
            thresholds: as of `at`.
            label_names: of tags, which say what an entity is; else not needed.
        """
        import numpy as np

        return float(self.at(logits, labels, np.ones((1, len(labels))), thresholds, label_names=label_names)[0])

    def judge(
        self, logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None, *, with_error: bool
    ) -> tuple[float, float]:
        """The metric of predictions, NaN where it is undefined, and its standard error under resampled rows.

        Args:
            logits: (n, C).
            labels: (n,) or (n, C).
            thresholds: as of `at`.
            with_error: whether the error is asked for; 0 otherwise.
        """
        import numpy as np

        from hftl.intervals import resamples

        value = self.value(logits, labels, thresholds)
        if not with_error:
            return value, 0.0
        draws: list[float] = []
        for counts in resamples(len(labels), most=_ERROR_RESAMPLES):
            draws += self.at(logits, labels, counts, thresholds).tolist()
        known = [draw for draw in draws if math.isfinite(draw)]
        return value, float(np.std(known)) if known else 0.0

    def _called(self, logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None) -> float:
        assert self.compute is not None
        try:
            values = self.compute(logits, labels, thresholds)
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"metric {self.name!r} failed, so it cannot choose: {named_error(error)}; choose by another, --metric"
            ) from error
        if self.name in values:
            return float(values[self.name])
        raise RecipeError(
            f"metric {self.name!r} gives {listing(list(values))}, so nothing says which of them chooses: let it give "
            f"one number, or one called {self.name!r}"
        )

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        import numpy as np
        from scipy.special import expit, softmax  # type: ignore[import-untyped]

        logits = logits.astype(np.float64)
        made: Callable[[], np.ndarray] = self.task.case(
            single_label=lambda: softmax(logits, axis=1),
            multi_label=lambda: expit(logits),
            regression=lambda: logits,
            token_labels=for_whole_rows,
        )
        return made()


def as_logits(task: Task, shares: np.ndarray) -> np.ndarray:
    """Shares (n, C) that stand for probabilities, as logits that give them; targets as they are."""
    import numpy as np
    from scipy.special import logit

    clipped = np.clip(shares.astype(np.float64), _LEAST_SHARE, 1 - _LEAST_SHARE)
    made: Callable[[], np.ndarray] = task.case(
        single_label=lambda: np.log(clipped),
        multi_label=lambda: logit(clipped),
        regression=lambda: shares,
        token_labels=lambda: np.log(clipped),
    )
    return made()


def criterion_of(
    task: Task, metric: str | None, greater_is_better: bool | None, functions: Sequence[MetricLike] = ()
) -> Criterion:
    """The metric that a recipe chooses by.

    Args:
        task: what the labels are.
        metric: its name: one of hftl's own, of a plugin's, or of the recipe's functions; None for the task's own.
        greater_is_better: which way is better, where the metric is a function that does not say so itself by an
            attribute of that name; None where it does.
        functions: metrics that the recipe brings.

    Raises:
        RecipeError: the task has no such metric, or nobody says which way is better.
    """
    if metric is None:
        if greater_is_better is not None:
            raise RecipeError("greater_is_better is the direction of metric, and none is named: give --metric too")
        return Criterion.of_task(task)
    own = task.directions
    if metric in own:
        if greater_is_better not in (None, own[metric]):
            which = "more" if own[metric] else "less"
            raise RecipeError(f"metric {metric!r}: {which} is better; leave out greater_is_better")
        return Criterion(task, metric, own[metric], is_stated=True)
    found = _functions(task, functions)
    if metric not in found:
        known = [*own, *found]
        raise RecipeError(
            f"metric {metric!r}: {task.words} has {listing(known, len(known))}{did_you_mean(metric, known)}"
        )
    function, says = found[metric]
    if greater_is_better is None and says is None:
        raise RecipeError(
            f"metric {metric!r} is a function, and nothing says which way is better: add --greater-is-better or "
            f"--no-greater-is-better, or choose by one of {listing(list(own), len(own))}"
        )
    if None not in (greater_is_better, says) and greater_is_better != says:
        raise RecipeError(
            f"metric {metric!r} says greater_is_better={says} itself, and the recipe {greater_is_better}; leave one out"
        )
    direction = bool(says if greater_is_better is None else greater_is_better)
    return Criterion(task, metric, direction, is_stated=True, compute=function)


def _functions(task: Task, functions: Sequence[MetricLike]) -> dict[str, tuple[MetricLike, bool | None]]:
    """The metrics that are functions, by name: how each is computed, and which way is better where it says so."""
    found: dict[str, tuple[MetricLike, bool | None]] = {}
    for each in plugin_metrics():
        found[each.name] = (_of_plugin(each.compute, task), getattr(each.compute, "greater_is_better", None))
    for function in functions:
        found[metric_name(function)] = (_of_recipe(function, task), getattr(function, "greater_is_better", None))
    return found


def _of_plugin(compute: MetricLike, task: Task) -> MetricLike:
    def call(logits: np.ndarray, labels: np.ndarray, _: Sequence[float] | None) -> Mapping[str, Any]:
        values: Mapping[str, Any] = compute(logits, labels, str(task))
        return values

    return call


def _of_recipe(function: MetricLike, task: Task) -> MetricLike:
    def call(logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None) -> Mapping[str, Any]:
        return metric_values(function, logits, labels, task, thresholds)

    return call
