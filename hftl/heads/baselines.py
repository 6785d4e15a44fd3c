"""Heads without training, to print beside a result: nearest class mean, nearest neighbours, and words by heart."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.basis import row_blocks
from hftl.heads.checks import check_features
from hftl.heads.matrix import Matrix

_NEIGHBOURS = 20
_TEMPERATURE = 0.07
# Of evaluation rows so many are compared at a time, or fewer, so that their similarities bound the memory.
_BLOCK_ROWS, _BLOCK_NUMBERS = 1024, 1 << 24
NEIGHBOURS_AMONG = 20_000
"""Training rows, drawn at random, among which neighbours are looked for where not all are in memory."""


def baselines(
    train_features: Tensor | Matrix, train_labels: Tensor, eval_features: Tensor | Matrix, eval_labels: Tensor
) -> dict[str, Tensor]:
    """Which evaluation rows the heads that cost nothing get right: bool (m,) on the CPU, by the head's name.

    ``majority`` always says the most frequent class; ``prototype`` and ``knn`` are the two below. Of a matrix that is
    not in memory, ``knn`` looks among `NEIGHBOURS_AMONG` rows.

    Args:
        train_features: (n, dim) floating point.
        train_labels: (n,) int64 class indices.
        eval_features: (m, dim).
        eval_labels: (m,) int64.
    """
    train, asked = check_features(train_features, "train features"), check_features(eval_features, "eval features")
    for name, features, labels in (("train", train, train_labels), ("eval", asked, eval_labels)):
        if tuple(labels.shape) != (len(features),):
            raise DataError(f"{name} labels: expected shape ({len(features)},), got {tuple(labels.shape)}")
    majority = torch.mode(train_labels).values
    predictions = {
        "majority": majority.expand_as(eval_labels),
        "prototype": prototype(train, train_labels, asked),
        "knn": knn(train, train_labels, asked),
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


def prototype(train_features: Tensor | Matrix, train_labels: Tensor, eval_features: Tensor | Matrix) -> Tensor:
    """The class (m,) with the nearest mean under a shared covariance, shrunk as far as the data ask for.

    Linear discriminant analysis with equal priors and the shrinkage of Ledoit & Wolf, *A well-conditioned
    estimator for large-dimensional covariance matrices*, J. Multivariate Analysis 88 (2004), on standardised
    features.
    """
    train, asked, device = Matrix.of(train_features), Matrix.of(eval_features), train_labels.device
    classes, index = torch.unique(train_labels, return_inverse=True)
    count, dim = train.shape
    zeros = torch.zeros(dim, dtype=torch.float64, device=device)
    if train.in_memory:
        whole = train.whole().to(device).double()
        mean, deviation = whole.mean(0), whole.std(0, correction=0)
        del whole
    else:
        mean = sum((block.sum(0) for _, block in row_blocks(train, device)), zeros) / count
        squares = sum(((block - mean).square().sum(0) for _, block in row_blocks(train, device)), zeros)
        deviation = (squares / count).sqrt()
    scale = torch.where(deviation > 1e-7 * mean.abs(), deviation, 1.0)
    means = zeros.expand(len(classes), -1).clone()
    for rows, block in row_blocks(train, device):
        means += torch.nn.functional.one_hot(index[rows], len(classes)).double().T @ ((block - mean) / scale)
    means /= torch.bincount(index)[:, None]
    covariance, fourth = zeros.expand(dim, -1).clone(), zeros[:1].clone()
    for rows, block in row_blocks(train, device):
        residual = (block - mean) / scale - means[index[rows]]
        covariance += residual.T @ residual / count
        fourth += residual.square().sum(1).square().sum() / count
    shrinkage = ledoit_wolf(fourth, covariance, count)
    identity = torch.eye(dim, dtype=torch.float64, device=device)
    # Where no row differs from its class mean, every direction counts alike.
    level = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + max(shrinkage, 1e-9) * level * identity
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance))
    shift = (means.T * weight).sum(0) / 2
    nearest = torch.empty(len(asked), dtype=torch.int64, device=device)
    for rows, block in row_blocks(asked, device):
        nearest[rows] = (((block - mean) / scale) @ weight - shift).argmax(1)
    return torch.index_select(classes, 0, nearest)


def ledoit_wolf(fourth: Tensor, covariance: Tensor, rows: int) -> float:
    """The shrinkage, from 0 to 1, towards a multiple of the identity (Ledoit & Wolf 2004, section 3.2).

    Args:
        fourth: the mean over centred rows of the fourth power of their lengths.
        covariance: (dim, dim) of these rows, divided by how many they are.
        rows: how many.
    """
    spread = covariance.square().sum() - covariance.diagonal().sum().square() / len(covariance)
    noise = (fourth - covariance.square().sum()) / rows
    return float((noise / spread).clamp(0, 1)) if spread > 0 else 1.0


def neighbours_among(train: Matrix) -> int:
    """Among how many rows neighbours are looked for.

    To compare each row with each would take hours where rows do not fit into memory.
    """
    return len(train) if train.in_memory else min(len(train), NEIGHBOURS_AMONG)


def knn(train_features: Tensor | Matrix, train_labels: Tensor, eval_features: Tensor | Matrix) -> Tensor:
    """The class (m,) with most weight among the nearest rows; see `neighbour_scores`."""
    train, asked = Matrix.of(train_features), Matrix.of(eval_features)
    classes, index = torch.unique(train_labels, return_inverse=True)
    if (among := neighbours_among(train)) < len(train):
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:among].sort().values
        train, index = train.take(drawn.to(index.device)), index[drawn.to(index.device)]
    one_hot = torch.nn.functional.one_hot(index, len(classes)).float()
    known = train.whole()
    nearest = asked.made(lambda rows: neighbour_scores(known, one_hot, rows).argmax(1)[:, None], 1, torch.int64)
    return torch.index_select(classes, 0, nearest[:, 0])


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
    train = _normalised(train_features - mean)
    neighbours = min(_NEIGHBOURS, len(train) - own)
    scores = []
    together = min(_BLOCK_ROWS, max(1, _BLOCK_NUMBERS // len(train)))
    for start in range(0, len(eval_features), together):
        block = eval_features[start : start + together]
        similarity = _normalised(block - mean) @ train.T
        if own:
            similarity.diagonal(start).fill_(-torch.inf)
        if groups is not None:
            similarity[groups[start : start + len(block), None] == groups] = -torch.inf
        nearest, rows = similarity.topk(neighbours)
        # A softmax: the largest weight is 1, so that none is lost to rounding where all are far.
        weights = (nearest / _TEMPERATURE).softmax(1).to(targets.dtype)
        scores.append(torch.bmm(weights[:, None], targets[rows])[:, 0])
        del similarity  # or the next block's would stand beside it
    return torch.cat(scores)


def _normalised(rows: Tensor) -> Tensor:
    """Rows (n, dim) of length one, in the place of those that are given."""
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(1e-12))
