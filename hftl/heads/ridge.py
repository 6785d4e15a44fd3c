"""Ridge regression of several targets over a path of strengths, with exact leave-one-out errors.

In the coordinates of ``basis.py`` the normal equations are diagonal, so every strength is solved in closed
form from one pass over the rows, and a second pass gives all leave-one-out residuals from the leverages
(Golub, Heath & Wahba, *Generalized cross-validation as a method for choosing a good ridge parameter*,
Technometrics 21 (1979), eq. 2.1).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.basis import Basis, default_strengths, fit_basis, row_blocks
from hftl.heads.fit import HeadFit, LinearOptions
from hftl.heads.judging import MetricSays, chosen_of, entry_of, judged


def fit_ridge(
    features: Tensor, targets: Tensor, options: LinearOptions, validation: tuple[Tensor, Tensor] | None
) -> HeadFit:
    """Minimise ``sum_i |y_i - W x_i - b|^2 + strength |W|^2``, the strength chosen by leave-one-out error.

    The error of each target is divided by its variance, so that targets of any scale count alike. Everything
    is computed in float64.

    Args:
        features: (n, dim).
        targets: (n, num_targets) float64.
        options: how to choose.
        validation: features and targets to choose on in place of leave-one-out.

    Raises:
        DataError: there are fewer than two rows.
    """
    total = len(features)
    basis, strengths, mean, shrink, products = _path(features, targets, options)
    variance = (targets - mean).square().mean(0).clamp_min(1e-300)
    weight_path = shrink[:, :, None] * products  # (strengths, rank, targets)

    if validation is None and options.dealt is not None and len(torch.unique(options.dealt)) > 1:
        residuals, chosen_on = _fold_residuals(features, targets, strengths, options), "folds that were dealt"
    elif validation is None:
        chosen_on = "leave-one-out"
        residuals = _left_out_residuals(features, targets - mean, basis, weight_path, shrink)
    else:
        chosen_on = "validation split"
        z = basis.transform(validation[0], torch.float64)[:, :-1]
        residuals = (validation[1] - mean - z @ weight_path).transpose(0, 1)
    chosen, path, by = _choice(
        strengths, residuals, targets if validation is None else validation[1], variance, options
    )

    theta = torch.cat([weight_path[chosen], mean[None]])
    weight, shift = basis.unfold(theta)
    mse = residuals[:, chosen].square().mean(0).tolist()
    gradient = (total * basis.variance + strengths[chosen])[:, None] * weight_path[chosen] - products
    report: dict[str, Any] = {
        "kind": "ridge",
        "rule": options.rule,
        "chosen_on": chosen_on,
        "path": path,
        "chosen": strengths[chosen],
        **by,
        "mse": mse,
        "r2": [1 - m / float(v) for m, v in zip(mse, variance, strict=True)],
        "iterations": 1,
        "gradient_norm": float(gradient.abs().max() / total) if basis.rank else 0.0,
        "converged": True,
    }
    return HeadFit(weight.float(), shift.float(), report)


def _fold_residuals(features: Tensor, targets: Tensor, strengths: list[float], options: LinearOptions) -> Tensor:
    """What each row lies above what heads of the other folds predict: (n, strengths, targets).

    Rows of one group are alike, so a row's own group must be out of its fold's heads, as leave-one-out cannot have it.
    """
    assert options.dealt is not None
    dealt = options.dealt.to(features.device)
    residuals = torch.zeros(len(targets), len(strengths), targets.shape[1], dtype=torch.float64, device=targets.device)
    for fold in torch.unique(dealt).tolist():
        held = dealt == fold
        known = replace(options, strengths=strengths)
        basis, _, mean, shrink, products = _path(features[~held], targets[~held], known)
        z = basis.transform(features[held], torch.float64)[:, :-1]
        predicted = mean + z @ (shrink[:, :, None] * products)
        residuals[held] = (targets[held] - predicted).transpose(0, 1)
    return residuals


def _choice(
    strengths: list[float], residuals: Tensor, targets: Tensor, variance: Tensor, options: LinearOptions
) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """The chosen strength's place, the path's entries, and what a report tells of the choice.

    Args:
        strengths: from strong to weak.
        residuals: (n, strengths, targets), what rows that were not fitted lie above what is predicted for them.
        targets: (n, targets), of these rows.
        variance: (targets,), which the errors are divided by.
        options: how to choose.
    """
    relative = (residuals.square() / variance).mean(2)  # (n, strengths)
    scores = relative.mean(0).tolist()
    errors = (relative.std(0, correction=0) / len(relative) ** 0.5).tolist()
    found: list[MetricSays] = []
    if (judge := options.judge) is not None:
        predicted = (targets[:, None] - residuals).unbind(1)
        found = [judged(judge, each, targets, None, rule=options.rule) for each in predicted]
    chosen, by = chosen_of(scores, errors, options.rule, options.judge, found)
    path: list[dict[str, Any]] = [
        {"strength": strength, "validation": score, "se": error}
        for strength, score, error in zip(strengths, scores, errors, strict=True)
    ]
    for entry, each in zip(path, found, strict=False):
        entry.update(entry_of(each))
    return chosen, path, by


def left_out_predictions(features: Tensor, targets: Tensor, options: LinearOptions) -> tuple[Tensor, float]:
    """What a head fitted without the row predicts for each row, float32 (n, num_targets), and its strength.

    The strength is the one that `fit_ridge` chooses; arguments and errors are the same.
    """
    basis, strengths, mean, shrink, products = _path(features, targets, options)
    variance = (targets - mean).square().mean(0).clamp_min(1e-300)
    residuals = _left_out_residuals(features, targets - mean, basis, shrink[:, :, None] * products, shrink)
    chosen, _, _ = _choice(strengths, residuals, targets, variance, options)
    return (targets - residuals[:, chosen]).float(), strengths[chosen]


def _path(
    features: Tensor, targets: Tensor, options: LinearOptions
) -> tuple[Basis, list[float], Tensor, Tensor, Tensor]:
    """The coordinates, the strengths (s,), the targets' mean, what each strength shrinks by (s, rank), and products."""
    if len(features) < 2:
        raise DataError("regression needs at least two training rows")
    total, device = len(features), targets.device
    weights = torch.ones(total, dtype=torch.float64, device=device)
    basis = fit_basis(features, weights, standardize=options.standardize, bias=options.bias)
    strengths = options.strengths or default_strengths(basis)
    mean = targets.mean(0) if options.bias else torch.zeros_like(targets[0])
    products = torch.zeros(basis.rank, targets.shape[1], dtype=torch.float64, device=device)
    for rows, block in row_blocks(features, device):
        products += basis.transform(block, torch.float64)[:, :-1].T @ (targets[rows] - mean)
    # The axes are principal, so the normal equations of every strength are diagonal.
    shrink = 1 / (total * basis.variance + torch.tensor(strengths, dtype=torch.float64, device=device)[:, None])
    return basis, strengths, mean, shrink, products


def _left_out_residuals(features: Tensor, targets: Tensor, basis: Basis, weight_path: Tensor, shrink: Tensor) -> Tensor:
    """What each row lies above what the head fitted without it predicts: (n, strengths, targets), centred targets.

    Without row i, its residual grows from ``e_i`` to ``e_i / (1 - h_i)`` with the leverage
    ``h_i = 1 / n + sum_j z_ij^2 / (lambda_j + strength)``, the first term being the free bias.
    """
    parts = []
    for rows, block in row_blocks(features, targets.device):
        z = basis.transform(block, torch.float64)[:, :-1]
        leverage = float(basis.bias) / len(features) + z.square() @ shrink.T
        residual = targets[rows, None] - (z @ weight_path).transpose(0, 1)
        parts.append(residual / (1 - leverage).clamp_min(1e-12)[:, :, None])
    return torch.cat(parts)
