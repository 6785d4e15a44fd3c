"""The coordinates in which heads are solved: centred, scaled, rotated onto principal axes.

An L2 penalty does not see a rotation, and a constant shift is absorbed by the unpenalised bias, so a head
solved in these coordinates maps back to the raw features exactly. Here the Hessian of a linear head is close
to diagonal, which is what makes L-BFGS fast, and directions without variance (constant or duplicated
features, more features than rows) drop out, where the penalised optimum has zero weight anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hftl.heads.matrix import Matrix

# Directions with less than this share of the largest variance are rounding noise of float32 features.
_RANK_TOLERANCE = 1e-12
# A feature that varies by less than this share of its mean is constant to the precision of float32.
_CONSTANT = 1e-7
_BLOCK_ROWS = 2048
STRENGTHS_OF_A_PATH = 20


@dataclass(frozen=True)
class Basis:
    """An affine map from raw features to the solver's coordinates: ``z = ((x - mean) / scale) @ rotation``.

    Attributes:
        mean: (dim,) float64.
        scale: (dim,) float64, all ones unless features are standardised.
        rotation: (dim, rank) float64, orthonormal columns, by decreasing variance.
        variance: (rank,) float64, the weighted variance along each column (about zero where nothing is centred).
        bias: whether heads have a free bias; if not, nothing is centred.
    """

    mean: Tensor
    scale: Tensor
    rotation: Tensor
    variance: Tensor
    bias: bool = True

    @property
    def rank(self) -> int:
        """The number of directions in which the features vary."""
        return self.rotation.shape[1]

    def transform(self, features: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map raw features (n, dim) to (n, rank + 1); the last column is the bias's: ones, or zeros without one."""
        centred = ((features.double() - self.mean) / self.scale).to(dtype)
        last = torch.full((len(features), 1), float(self.bias), dtype=dtype, device=features.device)
        return torch.cat([centred @ self.rotation.to(dtype), last], dim=1)

    def unfold(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Map (rank + 1, outputs) back to raw features: weight (outputs, dim) and bias (outputs,)."""
        weight = (self.rotation @ theta[:-1]).T / self.scale
        return weight, theta[-1] - weight @ self.mean if self.bias else torch.zeros_like(theta[-1])


def default_strengths(basis: Basis) -> list[float]:
    """A path of L2 strengths that suits the features' total variance, from strong to weak.

    Logits of a head drawn from the penalty's own prior have variance ``total / strength``, where ``total`` is
    the number of features that vary, if they are standardised; the path spans standard deviations from 0.2 to 30.
    """
    total = float(basis.variance.sum()) or 1.0
    return [total * 10 ** (1.5 - 4.5 * i / (STRENGTHS_OF_A_PATH - 1)) for i in range(STRENGTHS_OF_A_PATH)]


def fit_basis(features: Matrix, weights: Tensor, *, standardize: bool, bias: bool = True, least: float = 0.0) -> Basis:
    """Find the centre, the scales and the principal axes of weighted rows, in float64 and in blocks of rows.

    Args:
        features: (n, dim) float32.
        weights: (n,) float64, non-negative, on the device where to compute.
        standardize: divide each feature by its standard deviation.
        bias: whether heads have a free bias; without one nothing is centred, and features are scaled by their root mean
            square.
        least: features that deviate less than this share of the largest deviation count as constant.
    """
    weights, device = weights / weights.sum(), weights.device
    dim = features.shape[1]
    mean = torch.zeros(dim, dtype=torch.float64, device=device)
    for rows, block in row_blocks(features, device) if bias else ():
        mean += weights[rows] @ block
    # A second pass: the mean of squares minus the square of the mean loses every digit where the mean is large.
    square = torch.zeros_like(mean)
    for rows, block in row_blocks(features, device):
        square += weights[rows] @ (block - mean).square()
    deviation = square.sqrt()
    constant = (deviation <= _CONSTANT * mean.abs()) | (deviation < least * deviation.max())
    scale = torch.where(constant, 1.0, deviation) if standardize else torch.ones_like(mean)

    # The smaller of the two problems, with the same axes: rows x rows, or features x features.
    if len(features) < dim:
        centred = ((features.whole().to(device).double() - mean) / scale).masked_fill(constant, 0.0)
        _, singular, axes = torch.linalg.svd(weights.sqrt()[:, None] * centred, full_matrices=False)
        variance, rotation = singular.square(), axes.T
    else:
        covariance = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        for rows, block in row_blocks(features, device):
            centred = ((block - mean) / scale).masked_fill(constant, 0.0)
            covariance += centred.T @ (weights[rows, None] * centred)
        variance, rotation = torch.linalg.eigh(covariance)
        variance, rotation = variance.flip(0), rotation.flip(1)
    kept = variance > _RANK_TOLERANCE * variance.max().clamp_min(1e-300)
    rotation = rotation[:, kept].masked_fill(constant[:, None], 0.0)
    return Basis(mean, scale, rotation, variance[kept], bias)


def own_scales(features: Matrix, weights: Tensor, centre: Tensor, *, bias: bool) -> Tensor:
    """What `fit_basis` would scale features by on weighted rows, for several weightings at once; 0 for constant ones.

    Args:
        features: (n, dim).
        weights: (k, n) float64, non-negative.
        centre: (dim,) float64, a point among the rows, from which squares lose no digits; zeros without a bias.
        bias: as of `fit_basis`.

    Returns:
        (k, dim) float64.
    """
    weights = weights / weights.sum(1, keepdim=True)
    mean = torch.zeros(len(weights), len(centre), dtype=torch.float64, device=weights.device)
    square = torch.zeros_like(mean)
    for rows, block in row_blocks(features, weights.device):
        away = block - centre
        mean += weights[:, rows] @ away
        square += weights[:, rows] @ away.square()
    deviation = (square - mean.square()).clamp_min(0).sqrt() if bias else square.sqrt()
    # Also what is lost to rounding beside the distance from the centre.
    noise = _CONSTANT * torch.maximum((centre + mean).abs(), 10 * square.sqrt())
    constant = deviation <= (noise if bias else 0)
    return deviation.masked_fill(constant, 0.0)


def row_blocks(features: Tensor | Matrix, device: torch.device) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """The rows in float64 on a device, a block at a time: all of them at once would take twice the features' memory."""
    for rows, block in Matrix.of(features).blocks(_BLOCK_ROWS):
        yield rows, block.to(device).double()
