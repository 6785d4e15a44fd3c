"""Heads without training, to print beside a result: nearest class mean, nearest neighbours, and words by heart."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.checks import check_features

_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_BLOCK_ROWS = 1024


def baselines(
    train_features: Tensor, train_labels: Tensor, eval_features: Tensor, eval_labels: Tensor
) -> dict[str, Tensor]:
    """Which evaluation rows the heads that cost nothing get right: bool (m,) on the CPU, by the head's name.

    ``majority`` always says the most frequent class; ``prototype`` and ``knn`` are the two below.

    Args:
        train_features: (n, dim) floating point.
        train_labels: (n,) int64 class indices.
        eval_features: (m, dim).
        eval_labels: (m,) int64.
    """
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("eval", eval_features, eval_labels),
    ):
        check_features(features, f"{name} features")
        if tuple(labels.shape) != (len(features),):
            raise DataError(f"{name} labels: expected shape ({len(features)},), got {tuple(labels.shape)}")
    majority = torch.mode(train_labels).values
    predictions = {
        "majority": majority.expand_as(eval_labels),
        "prototype": prototype(train_features, train_labels, eval_features),
        "knn": knn(train_features, train_labels, eval_features),
    }
    return {name: (p == eval_labels).cpu() for name, p in predictions.items()}


def lexicon(
    train: Sequence[Sequence[str]], labels: Iterable[Iterable[int]], test: Sequence[Sequence[str]]
) -> list[int]:
    """The label that each test word most often had in training, or most words where it is new: (words,).

    Args:
        train: the words of the training sentences.
        labels: class numbers of these words.
        test: the words of the sentences to label.
    """
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for words, numbers in zip(train, labels, strict=True):
        for word, number in zip(words, numbers, strict=True):
            seen[word][int(number)] += 1
    often = sum(seen.values(), Counter()).most_common(1)[0][0]
    known = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    return [known.get(word, often) for words in test for word in words]


def prototype(train_features: Tensor, train_labels: Tensor, eval_features: Tensor) -> Tensor:
    """The class (m,) with the nearest mean under a shared covariance, shrunk as far as the data ask for.

    Linear discriminant analysis with equal priors and the shrinkage of Ledoit & Wolf, *A well-conditioned
    estimator for large-dimensional covariance matrices*, J. Multivariate Analysis 88 (2004), on standardised
    features.
    """
    classes, index = torch.unique(train_labels, return_inverse=True)
    mean, deviation = train_features.double().mean(0), train_features.double().std(0, correction=0)
    scale = torch.where(deviation > 1e-7 * mean.abs(), deviation, 1.0)
    x = (train_features.double() - mean) / scale
    one_hot = torch.nn.functional.one_hot(index, len(classes)).double()
    means = (one_hot.T @ x) / one_hot.sum(0)[:, None]
    residual = x - means[index]
    covariance = residual.T @ residual / len(x)
    shrinkage = ledoit_wolf(residual, covariance)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # Where no row differs from its class mean, every direction counts alike.
    level = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + max(shrinkage, 1e-9) * level * identity
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance))
    scores = ((eval_features.double() - mean) / scale) @ weight - (means.T * weight).sum(0) / 2
    return torch.index_select(classes, 0, scores.argmax(1))


def ledoit_wolf(residual: Tensor, covariance: Tensor) -> float:
    """The shrinkage, from 0 to 1, towards a multiple of the identity (Ledoit & Wolf 2004, section 3.2).

    Args:
        residual: (n, dim) centred rows.
        covariance: (dim, dim), ``residual.T @ residual / n``.
    """
    rows, dim = residual.shape
    spread = covariance.square().sum() - covariance.diagonal().sum().square() / dim
    noise = (residual.square().sum(1).square().mean() - covariance.square().sum()) / rows
    return float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0


def knn(train_features: Tensor, train_labels: Tensor, eval_features: Tensor) -> Tensor:
    """The class (m,) with most weight among the nearest rows; see `neighbour_scores`."""
    classes, index = torch.unique(train_labels, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(index, len(classes)).float()
    return torch.index_select(classes, 0, neighbour_scores(train_features, one_hot, eval_features).argmax(1))


def neighbour_scores(
    train_features: Tensor,
    targets: Tensor,
    eval_features: Tensor,
    *,
    own: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """The mean target of the 20 nearest rows by cosine similarity of centred features, the nearer the weightier.

    A neighbour counts ``exp(similarity / 0.07)`` (Wu et al., *Unsupervised feature learning via
    non-parametric instance discrimination*, CVPR 2018, section 3.4).

    Args:
        train_features: (n, dim) floating point.
        targets: (n, C) floating point: one-hot classes, labels, or numbers.
        eval_features: (m, dim).
        own: the evaluation rows are the training rows, and none is its own neighbour.
        groups: (n,) int64 of rows that are their own evaluation rows; no row of its own group is a row's neighbour.

    Returns:
        (m, C) in the targets' dtype.
    """
    # Centred, because features of one network share a large common direction that hides differences of angle.
    mean = train_features.mean(0)
    train = torch.nn.functional.normalize(train_features - mean)
    neighbours = min(_NEIGHBOURS, len(train) - own)
    scores = []
    for start in range(0, len(eval_features), _BLOCK_ROWS):
        block = eval_features[start : start + _BLOCK_ROWS]
        similarity = torch.nn.functional.normalize(block - mean) @ train.T
        if own:
            similarity.diagonal(start).fill_(-torch.inf)
        if groups is not None:
            similarity[groups[start : start + len(block), None] == groups] = -torch.inf
        nearest, rows = similarity.topk(neighbours)
        # A softmax: the largest weight is 1, so that none is lost to rounding where all are far.
        weights = (nearest / _TEMPERATURE).softmax(1).to(targets.dtype)
        scores.append(torch.bmm(weights[:, None], targets[rows])[:, 0])
    return torch.cat(scores)
