"""Metrics that a recipe brings: plain functions, told apart by what their parameters are called.

``function(y_true, y_pred)`` is scikit-learn's form, ``function(logits, labels, task)`` that of a plugin's metric
(``task`` may be left out). Any other names are refused: whether a function wants labels first, classes or logits, its
names alone tell.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hftl.errors import RecipeError
from hftl.tasks import Task
from hftl.wording import listing, named_error

if TYPE_CHECKING:
    import numpy as np

MetricLike = Callable[..., Any]
# The first form whose names all stand there is meant: scikit-learn's functions have an option called labels, too.
_FORMS = ({"y_true", "y_pred"}, {"logits", "labels"})
_WANTED = "name them (y_true, y_pred), as scikit-learn does, or (logits, labels, task)"


def metric_name(function: MetricLike) -> str:
    """What a metric is called: the function's name, or that of the function which a `functools.partial` fills in.

    A partial that was given a ``__name__`` has that one.
    """
    own = getattr(function, "__name__", None)
    return str(own or (metric_name(function.func) if isinstance(function, partial) else type(function).__name__))


def qualified_name(function: MetricLike) -> str:
    """Where a metric is from, for a run's record: ``package.module:function``."""
    source = function.func if isinstance(function, partial) else function
    return f"{getattr(source, '__module__', None) or type(source).__module__}:{metric_name(function)}"


def check_metrics(functions: Sequence[MetricLike]) -> None:
    """See that each metric has a name of its own and parameters that say what it wants.

    Raises:
        RecipeError: one has not.
    """
    names = [metric_name(function) for function in functions]
    for name, function in zip(names, functions, strict=True):
        if name == "<lambda>":
            raise RecipeError("metrics: a lambda has no name to stand in metrics.json; write a function with def")
        if names.count(name) > 1:
            raise RecipeError(f"metrics: two are called {name!r}; give one another __name__")
        _parameters(name, function)


def _parameters(name: str, function: MetricLike) -> set[str]:
    """The names of the values that a metric wants.

    Raises:
        RecipeError: they are none that hftl knows.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise RecipeError(f"metric {name!r}: its parameters cannot be read; wrap it in a function with def") from error
    names = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    form = next((form for form in _FORMS if form <= names), None)
    if form is None:
        raise RecipeError(f"metric {name!r}: its parameters are {listing([p.name for p in parameters])}; {_WANTED}")
    known = form | (names & {"task"} if "logits" in form else set())
    for each in parameters:
        required = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if required and each.name not in known:
            raise RecipeError(
                f"metric {name!r}: its parameter {each.name!r} has no default; fill it in with functools.partial"
            )
    return known


def add_own_metrics(
    values: dict[str, Any],
    functions: Sequence[MetricLike],
    logits: np.ndarray,
    labels: np.ndarray,
    task: Task,
    thresholds: Sequence[float] | None,
) -> list[str]:
    """Add what a recipe's own metrics make of predictions; a metric may return one number, or several by name.

    Args:
        values: what is known already; gets the new values, None for a metric that failed or gave no finite number.
        functions: as `check_metrics` found them good.
        logits: (n, C) float32: what the model returns; for a regression the predicted targets.
        labels: (n,) int64 class numbers, or float32 (n, C).
        task: what the labels are.
        thresholds: of several labels, the probability of each above which it is predicted; None for 0.5.

    Returns:
        What went wrong, a sentence for each metric whose value is missing.
    """
    problems = []
    for function in functions:
        name = metric_name(function)
        try:
            named = metric_values(function, logits, labels, task, thresholds)
        except (Exception, SystemExit) as error:
            problems.append(f"metric {name!r} failed, so its value is missing: {named_error(error)}")
            named = {name: math.nan}
        for key, value in named.items():
            if key in values:
                problems.append(f"metric {key!r} is left out: hftl has a value of that name; rename the function")
            else:
                values[key] = value if math.isfinite(value) else None
    return problems


def metric_values(
    function: MetricLike, logits: np.ndarray, labels: np.ndarray, task: Task, thresholds: Sequence[float] | None
) -> dict[str, float]:
    """What one function makes of predictions, by name; arguments are those of `add_own_metrics`.

    Raises:
        Exception: whatever the function raises.
    """
    name = metric_name(function)
    given = {"logits": logits, "labels": labels, "task": str(task)}
    known = _parameters(name, function)
    if "y_true" in known:
        given = dict(zip(("y_true", "y_pred"), _decided(logits, labels, task, thresholds), strict=True))
    made = function(**{each: given[each] for each in known})
    return {str(key): float(value) for key, value in _as_named_values(made, name).items()}


def _as_named_values(made: Any, name: str) -> Mapping[str, Any]:
    return made if isinstance(made, Mapping) else {name: made}


def _decided(
    logits: np.ndarray, labels: np.ndarray, task: Task, thresholds: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted: class numbers (n,), of sentences those of all words; labels of 0 and 1 (n, C); or targets,
    (n,) of one, (n, C) of several.
    """
    one_target = labels.ndim == 2 and labels.shape[1] == 1
    # Brought only here: a recipe without metrics is read without SciPy.
    from scipy.special import logit  # type: ignore[import-untyped]

    cuts = 0.0 if thresholds is None else logit(list(thresholds))
    make: Callable[[], tuple[np.ndarray, np.ndarray]] = task.case(
        single_label=lambda: (labels, logits.argmax(1)),
        multi_label=lambda: (labels.astype(int), (logits > cuts).astype(int)),
        regression=lambda: (labels[:, 0], logits[:, 0]) if one_target else (labels, logits),
        token_labels=lambda: (task.by_line(labels), logits.argmax(1)),
    )
    return make()
