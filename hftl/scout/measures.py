"""What features say of labels without a head being trained: evidence of a linear model, and spread between classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hftl.heads.baselines import ledoit_wolf
from hftl.heads.basis import row_blocks

# Ratios of prior to noise precision that are tried before the best one is refined; beyond them the evidence is flat.
_RATIOS = torch.logspace(-12, 12, 121, dtype=torch.float64)
_REFINEMENTS = 40
_GOLDEN = (math.sqrt(5) - 1) / 2
# Directions with less than this share of the largest variance are rounding noise of float32 features.
_RANK_TOLERANCE = 1e-12
PERMUTATIONS = 100


def log_evidence(features: Tensor, targets: Tensor) -> float:
    """LogME: the largest log evidence of a Bayesian linear model per row, averaged over targets.

    The model of You et al., *LogME: practical assessment of pre-trained models for transfer learning*, ICML 2021,
    section 4: ``y ~ N(F w, 1/beta)``, ``w ~ N(0, 1/alpha)``, without a bias. Integrated over w it is
    ``y ~ N(0, (I + F F^T / r) / beta)`` with ``r = alpha / beta``. The best beta is known for each r, so one number is
    searched for each target. Nothing is dropped where features have fewer dimensions than columns (their code leaves
    out ``-(D - k)/2 log alpha`` there).

    Args:
        features: (n, D) floating point.
        targets: (n, C) float64: one-hot classes, labels, or numbers.

    Returns:
        Natural logarithm of a density, divided by n; larger is better.
    """
    rows = len(features)
    squares, energy, rest = _spectrum(features, targets.double())

    def evidence(ratio: Tensor) -> Tensor:
        """At a ratio for each target (C,), or one for all (1,): the log evidence of each target at its best beta."""
        growth = 1 + squares[:, None] / ratio  # (k, C or 1)
        noise = ((energy / growth).sum(0) + rest) / rows
        # A target that the features give exactly has no noise; the density is bounded where float64 ends.
        return -0.5 * (rows * ((2 * math.pi * noise.clamp_min(1e-300)).log() + 1) + growth.log().sum(0))

    tried = torch.stack([evidence(ratio[None]) for ratio in _RATIOS.to(squares.device)])
    best = tried.argmax(0)
    step = float((_RATIOS[1] / _RATIOS[0]).log())
    centre = _RATIOS.to(squares.device).log()[best]
    low, high = centre - step, centre + step
    for _ in range(_REFINEMENTS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        better = evidence(left.exp()) > evidence(right.exp())
        low, high = torch.where(better, low, left), torch.where(better, right, high)
    return float(evidence(((low + high) / 2).exp()).mean() / rows)


def _spectrum(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared singular values (k,) of the features, each target's energy along the left vectors (k, C), and the rest.

    From the smaller of the two products, because the features need not fit into memory twice.
    """
    total = targets.square().sum(0)
    if len(features) < features.shape[1]:
        gram = features.double() @ features.double().T
        squares, vectors = torch.linalg.eigh(gram)
        kept = squares > _RANK_TOLERANCE * squares[-1]
        along = vectors[:, kept].T @ targets
    else:
        width = features.shape[1]
        gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        products = torch.zeros(width, targets.shape[1], dtype=torch.float64, device=features.device)
        for rows, block in row_blocks(features, features.device):
            gram += block.T @ block
            products += block.T @ targets[rows]
        squares, vectors = torch.linalg.eigh(gram)
        kept = squares > _RANK_TOLERANCE * squares[-1]
        along = (vectors[:, kept].T @ products) / squares[kept].sqrt()[:, None]
    energy = along.square()
    return squares[kept], energy, (total - energy.sum(0)).clamp_min(0)


@dataclass(frozen=True)
class HScore:
    """The H-score, and what it would be without any relation between features and labels.

    Attributes:
        value: of the labels.
        null: its mean over permuted labels.
        p: share of permutations that reach the value, the labels themselves counted.
    """

    value: float
    null: float
    p: float


def h_score(features: Tensor, labels: Tensor, *, permutations: int = PERMUTATIONS, seed: int = 0) -> HScore:
    """The regularised H-score: between-class covariance in units of the features' own, shrunk.

    ``tr(S_a^-1 (1 - a) S_z)`` with the Ledoit-Wolf shrinkage a (Ibrahim, Ponomareva & Mazumder, *Newer is not always
    better*, ECML 2022, section 4). It grows with the number of dimensions whatever the labels are, so it stands beside
    its value under permuted labels.

    Args:
        features: (n, D) floating point.
        labels: (n,) int64 classes.
        permutations: how many times labels are shuffled.
        seed: of the shuffles.
    """
    # In float32, as the features are: in float64 a copy of them would take twice their memory.
    centred = features.float() - features.double().mean(0).float()
    covariance = torch.zeros(centred.shape[1], centred.shape[1], dtype=torch.float64, device=features.device)
    for _, block in row_blocks(centred, features.device):
        covariance += block.T @ block / len(centred)
    shrinkage = ledoit_wolf(centred.square().sum(1).square().mean(), covariance, len(centred))
    level = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=torch.float64, device=features.device)
    shrunk = (1 - shrinkage) * covariance + max(shrinkage, _RANK_TOLERANCE) * level.clamp_min(1e-300) * identity
    # Coordinates in which the shrunk covariance is the identity: a class mean's length there is what it adds.
    whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), identity, upper=False)
    classes = torch.unique(labels, return_inverse=True)[1]
    counts = torch.bincount(classes).double()

    def score(order: Tensor) -> float:
        one_hot = torch.nn.functional.one_hot(classes[order], len(counts)).float()
        # Of the sums, not of all rows: in the other coordinates these would be a copy of the features.
        sums = (one_hot.T @ centred).double() @ whitening.T
        return float((1 - shrinkage) * (sums.square().sum(1) / counts).sum() / len(centred))

    generator = torch.Generator().manual_seed(seed)
    value = score(torch.arange(len(labels)))
    null = [score(torch.randperm(len(labels), generator=generator)) for _ in range(permutations)]
    return HScore(value, sum(null) / len(null), (1 + sum(each >= value for each in null)) / (1 + len(null)))
