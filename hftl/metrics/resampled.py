"""A task's metrics on many bootstrap samples of the same rows at once."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from hftl.metrics.entities import SentenceSums
from hftl.metrics.values import LEAST, Array, ratio
from hftl.tasks import Task, for_whole_rows


def resampled_metric(task: Task, scores: Array, labels: Array, counts: Array, label_names: Sequence[str] = ()) -> Array:
    """The metric that chooses (`Task.metric`) on samples in which each row stands so many times.

    With every count 1 it is what `hftl.metrics.evaluate_predictions` reports under that name.

    Args:
        task: what the labels are.
        scores: float (n, C): logits, or anything that orders as they do; for a regression the predicted targets.
        labels: (n,) class numbers, or (n, C); tags of sentences.
        counts: float64 (b, n).
        label_names: of tags, which say what an entity is; else not needed.

    Returns:
        float64 (b,); NaN where a sample leaves the metric undefined.
    """
    entity_f1: Callable[[Array, Array, Array], Array] = partial(_entity_f1, label_names)
    measure: Callable[[Array, Array, Array], Array] = task.case(
        single_label=_accuracy,
        multi_label=_mean_average_precision,
        regression=_r2,
        token_labels=entity_f1,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return measure(scores, labels, counts)


def _entity_f1(label_names: Sequence[str], scores: Array, labels: Array, counts: Array) -> Array:
    return SentenceSums.of(scores, labels, label_names).at(counts)["f1"]


def resampled_metrics(
    task: Task,
    scores: Array,
    labels: Array,
    counts: Array,
    thresholds: Sequence[float] | None = None,
) -> dict[str, Array]:
    """Every number of `hftl.metrics.evaluate_predictions` on samples in which each row stands so many times.

    Args:
        task: what the labels are.
        scores: float (n, C): probabilities, as `hftl.tasks.Task.scores` gives them; for a regression the predicted
            targets.
        labels: (n,) class numbers, or (n, C). Not of tags: `hftl.metrics.entities.SentenceSums` has their numbers.
        counts: float64 (b, n).
        thresholds: of several labels, the probability of each above which it is predicted; None for 0.5.

    Returns:
        By name float64 (b,); NaN where a sample leaves a number undefined.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: make() for name, make in _makers(task, scores, labels, counts, thresholds).items()}


def resampled_value(
    task: Task, name: str, scores: Array, labels: Array, counts: Array, thresholds: Sequence[float] | None = None
) -> Array:
    """One number of `resampled_metrics`, by its name."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _makers(task, scores, labels, counts, thresholds)[name]()


def _makers(
    task: Task, scores: Array, labels: Array, counts: Array, thresholds: Sequence[float] | None
) -> dict[str, Callable[[], Array]]:
    """How each number is made; those that cost much are made only where they are asked for."""
    make: Callable[[], dict[str, Callable[[], Array]]] = task.case(
        single_label=lambda: _class_metrics(scores, labels, counts),
        multi_label=lambda: _label_metrics(scores, labels, counts, 0.5 if thresholds is None else np.array(thresholds)),
        regression=lambda: _target_metrics(scores, labels, counts),
        token_labels=for_whole_rows,
    )
    return make()


def _class_metrics(scores: Array, labels: Array, counts: Array) -> dict[str, Callable[[], Array]]:
    rows, classes, total = np.arange(len(labels)), scores.shape[1], counts.sum(1)
    predicted = scores.argmax(1)
    shape = (len(labels), classes)
    there = counts @ csr_matrix((np.ones(len(labels)), (rows, labels)), shape)
    said = counts @ csr_matrix((np.ones(len(labels)), (rows, predicted)), shape)
    hits = counts @ csr_matrix(((predicted == labels).astype(np.float64), (rows, labels)), shape)
    f1, occurs = _f1(hits, said, there), there + said > 0
    loss = -np.log(np.maximum(scores[rows, labels].astype(np.float64), LEAST))
    return {
        "accuracy": lambda: hits.sum(1) / total,
        "f1_macro": lambda: f1.sum(1) / occurs.sum(1),
        "f1_weighted": lambda: (f1 * there).sum(1) / total,
        "log_loss": lambda: counts @ loss / total,
    }


def _label_metrics(scores: Array, labels: Array, counts: Array, cuts: Array | float) -> dict[str, Callable[[], Array]]:
    truth, positive, total = labels > 0, scores > cuts, counts.sum(1)
    hits, said, there = (counts @ each.astype(np.float64) for each in (truth & positive, positive, truth))
    own = np.where(truth, scores, 1 - scores).astype(np.float64)
    loss = -np.log(np.maximum(own, LEAST)).mean(1)
    return {
        "subset_accuracy": lambda: counts @ (truth == positive).all(1).astype(np.float64) / total,
        "f1_micro": lambda: _f1(hits.sum(1), said.sum(1), there.sum(1)),
        "f1_macro": lambda: _f1(hits, said, there).mean(1),
        "map": lambda: _mean_average_precision(scores, labels, counts),
        "log_loss": lambda: counts @ loss / total,
    }


def _target_metrics(predicted: Array, expected: Array, counts: Array) -> dict[str, Callable[[], Array]]:
    predicted, expected, total = predicted.astype(np.float64), expected.astype(np.float64), counts.sum(1)
    error = predicted - expected
    mse = counts @ error**2 / total[:, None]
    pairs = [(predicted[:, k], expected[:, k]) for k in range(expected.shape[1])]

    def correlation(placed: Callable[[Array, Array], Array]) -> Array:
        each = [_correlation(placed(x, counts), placed(y, counts), counts) for x, y in pairs]
        mean: Array = np.mean(each, axis=0)
        return mean

    return {
        "mse": lambda: mse.mean(1),
        "rmse": lambda: np.sqrt(mse).mean(1),
        "mae": lambda: (counts @ np.abs(error) / total[:, None]).mean(1),
        "r2": lambda: _r2(predicted, expected, counts),
        "pearson": lambda: correlation(_as_they_are),
        "spearman": lambda: correlation(_mean_ranks),
    }


def _as_they_are(values: Array, counts: Array) -> Array:
    """The values themselves in each sample: (b, n)."""
    return np.broadcast_to(values, counts.shape)


def _f1(hits: Array, said: Array, there: Array) -> Array:
    """F1 from counts, 0 where nothing could be counted."""
    return ratio(2 * hits, said + there)


def _correlation(x: Array, y: Array, counts: Array) -> Array:
    """Pearson's correlation of x and y, both (b, n), under counts (b, n)."""
    total = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / total
    y = y - (counts * y).sum(1, keepdims=True) / total
    covariance = (counts * x * y).sum(1)
    # Rounding leaves a little variance of what is constant.
    spread_x, spread_y = ((counts * each**2).sum(1) for each in (x, y))
    varies = np.minimum(spread_x, spread_y) > 1e-12
    correlation: Array = np.where(varies, covariance / np.sqrt(spread_x * spread_y), np.nan)
    return correlation


def _mean_ranks(values: Array, counts: Array) -> Array:
    """The rank of each row in each sample, rows of one value sharing their mean rank: (b, n)."""
    distinct, group = np.unique(values, return_inverse=True)
    size = counts @ csr_matrix((np.ones(len(values)), (np.arange(len(values)), group)), (len(values), len(distinct)))
    mean_rank = np.cumsum(size, axis=1) - (size - 1) / 2
    ranks: Array = mean_rank[:, group]
    return ranks


def _accuracy(scores: Array, labels: Array, counts: Array) -> Array:
    right = (scores.argmax(1) == labels).astype(np.float64)
    share: Array = counts @ right / counts.sum(1)
    return share


def _mean_average_precision(scores: Array, labels: Array, counts: Array) -> Array:
    """The mean over labels that occur of sum(precision × gain in recall), one step for each distinct score."""
    total, occurring = np.zeros(len(counts)), np.zeros(len(counts))
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ordered = scores[order, k]
        # Rows of one score enter together, at the last of them.
        last = np.append(ordered[1:] != ordered[:-1], True)
        weights = counts[:, order]
        hits = np.cumsum(weights * (labels[order, k] > 0), axis=1)[:, last]
        said = np.cumsum(weights, axis=1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0)
        precision = hits / np.maximum(said, 1e-300)
        there = hits[:, -1]
        total += np.where(there > 0, (gained * precision).sum(1) / np.maximum(there, 1e-300), 0.0)
        occurring += there > 0
    mean: Array = total / occurring
    return mean


def _r2(predicted: Array, expected: Array, counts: Array) -> Array:
    """The mean over targets of ``1 - residual / total`` sums of squares."""
    rows = counts.sum(1, keepdims=True)
    # Centred first: the difference of two large squares would lose what is looked for.
    centred = expected - expected.mean(0)
    mean = counts @ centred / rows
    total = counts @ centred**2 - rows * mean**2
    residual = counts @ (predicted - expected) ** 2
    r2: Array = (1 - residual / total).mean(1)
    return r2
