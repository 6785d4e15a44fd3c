"""Ridge regression of several targets over a path of strengths, with exact leave-one-out errors.

In the coordinates of ``basis.py`` the normal equations are diagonal, so every strength is solved in closed
form from one pass over the rows, and a second pass gives all leave-one-out residuals from the leverages
(Golub, Heath & Wahba, *Generalized cross-validation as a method for choosing a good ridge parameter*,
Technometrics 21 (1979), eq. 2.1).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.basis import BLOCK_ROWS, Basis, default_strengths, fit_basis
from hftl.heads.fit import HeadFit
from hftl.heads.selection import Rule, choose


def fit_ridge(
    features: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    strengths: list[float] | None,
    rule: Rule,
    standardize: bool,
    bias: bool,
    validation: tuple[Tensor, Tensor] | None,
) -> HeadFit:
    """Minimise ``sum_i w_i |y_i - W x_i - b|^2 + strength |W|^2``, the strength chosen by leave-one-out
    error.

    The error of each target is divided by its variance, so that targets of any scale count alike. Everything
    is computed in float64.

    Args:
        features: (n, dim), on any device.
        targets: (n, num_targets) float64.
        weights: (n,) float64, positive.
        strengths: from strong to weak; ``default_strengths`` where None.
        rule: ``best`` or ``one_se``.
        standardize: penalise coefficients of standardised features.
        bias: whether there is a free bias.
        validation: features and targets to choose on in place of leave-one-out.
    """
    if len(features) < 2:
        raise DataError("regression needs at least two training rows")
    device = targets.device
    basis = fit_basis(features, weights, standardize=standardize, device=device, bias=bias)
    strengths = strengths or default_strengths(basis)
    total = weights.sum()
    mean = weights @ targets / total if bias else torch.zeros_like(targets[0])
    variance = (weights @ (targets - mean).square() / total).clamp_min(1e-300)
    products = torch.zeros(basis.rank, targets.shape[1], dtype=torch.float64, device=device)
    for span, z in _blocks(features, basis, device):
        products += z[:, :-1].T @ (weights[span, None] * (targets[span] - mean))
    shrink = 1 / (total * basis.variance + torch.tensor(strengths, dtype=torch.float64, device=device)[:, None])
    weight_path = shrink[:, :, None] * products  # (strengths, rank, targets)

    if validation is None:
        errors = _leave_one_out(features, targets - mean, weights, basis, weight_path, shrink)
        row_weights = weights
    else:
        z = basis.transform(validation[0].to(device), torch.float64)[:, :-1]
        errors = (validation[1] - mean - z @ weight_path).square().transpose(0, 1)
        row_weights = torch.ones(len(z), dtype=torch.float64, device=device)
    relative = (errors / variance).mean(2)  # (n, strengths)
    scores, standard_errors = _mean_and_error(relative, row_weights)
    chosen = choose(scores.tolist(), standard_errors.tolist(), rule)

    theta = torch.cat([weight_path[chosen], mean[None]])
    weight, shift = basis.unfold(theta)
    mse = (row_weights @ errors[:, chosen] / row_weights.sum()).tolist()
    gradient = (total * basis.variance + strengths[chosen])[:, None] * weight_path[chosen] - products
    report: dict[str, Any] = {
        "kind": "ridge",
        "rule": rule,
        "chosen_on": "validation split" if validation else "leave-one-out",
        "path": [
            {"strength": s, "validation": float(v), "se": float(e)}
            for s, v, e in zip(strengths, scores, standard_errors, strict=True)
        ],
        "chosen": strengths[chosen],
        "mse": mse,
        "r2": [1 - m / float(v) for m, v in zip(mse, variance, strict=True)],
        "iterations": 1,
        "gradient_norm": float(gradient.abs().max() / total) if basis.rank else 0.0,
        "converged": True,
    }
    return HeadFit(weight.float(), shift.float(), report)


def _leave_one_out(
    features: Tensor, targets: Tensor, weights: Tensor, basis: Basis, weight_path: Tensor, shrink: Tensor
) -> Tensor:
    """Squared error of each row by the head fitted without it: (n, strengths, targets) for centred targets.

    Without row i, its residual grows from ``e_i`` to ``e_i / (1 - h_i)`` with the leverage
    ``h_i = w_i (1 / sum w + sum_j z_ij^2 / (lambda_j + strength))``, the first term being the free bias.
    """
    parts = []
    for span, z in _blocks(features, basis, targets.device):
        z = z[:, :-1]
        leverage = weights[span, None] * (float(basis.bias) / weights.sum() + z.square() @ shrink.T)
        residual = targets[span, None] - (z @ weight_path).transpose(0, 1)
        parts.append((residual / (1 - leverage).clamp_min(1e-12)[:, :, None]).square())
    return torch.cat(parts)


def _mean_and_error(errors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean over rows of (n, strengths), and the standard error of that mean."""
    share = (weights / weights.sum())[:, None]
    mean = (share * errors).sum(0)
    return mean, (share.square() * (errors - mean).square()).sum(0).sqrt()


def _blocks(features: Tensor, basis: Basis, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    for first in range(0, len(features), BLOCK_ROWS):
        span = slice(first, min(first + BLOCK_ROWS, len(features)))
        yield span, basis.transform(features[span].to(device), torch.float64)
