"""Ridge regression of several targets over a path of strengths, with exact leave-one-out errors.

In the coordinates of ``basis.py`` the normal equations are diagonal, so every strength is solved in closed
form from one pass over the rows, and a second pass gives all leave-one-out residuals from the leverages
(Golub, Heath & Wahba, *Generalized cross-validation as a method for choosing a good ridge parameter*,
Technometrics 21 (1979), eq. 2.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.basis import Basis, default_strengths, fit_basis, row_blocks
from hftl.heads.fit import HeadFit, LinearOptions
from hftl.heads.judging import MetricSays, chosen_of, entry_of, judged
from hftl.heads.matrix import Matrix


def fit_ridge(
    features: Matrix, targets: Tensor, options: LinearOptions, validation: tuple[Matrix, Tensor] | None
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
    variance = _variance(targets, mean)
    weight_path = shrink[:, :, None] * products  # (strengths, rank, targets)

    judging = targets if validation is None else validation[1]
    if validation is None and options.dealt is not None and len(torch.unique(options.dealt)) > 1:
        residuals, chosen_on = _fold_residuals(features, targets, strengths, options), "folds that were dealt"
    elif validation is None:
        chosen_on = "leave-one-out"
        residuals = _left_out_residuals(features, targets - mean, basis, weight_path, shrink)
    else:
        chosen_on = "validation split"
        residuals = _residuals(validation, basis, mean, weight_path)
    errors = _Errors.of(residuals, judging, variance, len(strengths), keep=options.judge is not None)
    chosen, path, by = _choice(strengths, errors, judging, options)

    theta = torch.cat([weight_path[chosen], mean[None]])
    weight, shift = basis.unfold(theta)
    mse = (errors.squares[chosen] / errors.count).tolist()
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


# Which rows, and what they lie above what is predicted for them without them: (m, strengths, targets) float64.
Residuals: TypeAlias = Iterator[tuple[slice | Tensor, Tensor]]


@dataclass
class _Errors:
    """What is kept of residuals, which together would be many times the targets.

    Attributes:
        count: rows so far.
        mean: (strengths,), of the squares in units of the targets' variances.
        apart: (strengths,), the sum of the squared distances of these from their mean.
        squares: (strengths, targets), the sums of the squares themselves.
        predicted: (n, strengths, targets) float32; None where nobody asks for it.
    """

    count: int
    mean: Tensor
    apart: Tensor
    squares: Tensor
    predicted: Tensor | None

    @classmethod
    def of(cls, residuals: Residuals, targets: Tensor, variance: Tensor, strengths: int, *, keep: bool) -> "_Errors":
        """Of all residuals of rows that have these targets (n, targets); ``keep`` what was predicted."""
        rows, width = targets.shape
        zeros = targets.new_zeros(strengths)
        predicted = torch.empty(rows, strengths, width, device=targets.device) if keep else None
        found = cls(0, zeros, zeros.clone(), targets.new_zeros(strengths, width), predicted)
        for which, block in residuals:
            found._add(block, variance)
            if predicted is not None:
                predicted[which] = (targets[which][:, None] - block).float()
        return found

    def _add(self, residuals: Tensor, variance: Tensor) -> None:
        squares = residuals.square()
        relative = (squares / variance).mean(2)
        mean, new = relative.mean(0), len(relative)
        # Chan, Golub & LeVeque (1983): sums of squares about a mean that is not known yet would lose digits.
        away, before = mean - self.mean, self.count
        self.count += new
        self.apart = self.apart + (relative - mean).square().sum(0) + away.square() * (before * new / self.count)
        self.mean = self.mean + away * new / self.count
        self.squares = self.squares + squares.sum(0)


def _variance(targets: Tensor, mean: Tensor) -> Tensor:
    return (targets - mean).square().mean(0).clamp_min(1e-300)


def _residuals(validation: tuple[Matrix, Tensor], basis: Basis, mean: Tensor, weight_path: Tensor) -> Residuals:
    """What validation rows lie above what is predicted for them."""
    features, targets = validation
    for rows, block in row_blocks(features, targets.device):
        z = basis.transform(block, torch.float64)[:, :-1]
        yield rows, (targets[rows] - mean - z @ weight_path).transpose(0, 1)


def _fold_residuals(features: Matrix, targets: Tensor, strengths: list[float], options: LinearOptions) -> Residuals:
    """What each row lies above what heads of the other folds predict.

    Rows of one group are alike, so a row's own group must be out of its fold's heads, as leave-one-out cannot have it.
    """
    assert options.dealt is not None
    dealt = options.dealt.to(targets.device)
    for fold in torch.unique(dealt).tolist():
        held = dealt == fold
        known = replace(options, strengths=strengths)
        basis, _, mean, shrink, products = _path(features.take(~held), targets[~held], known)
        own, numbers = (features.take(held), targets[held]), torch.nonzero(held).flatten()
        for rows, residuals in _residuals(own, basis, mean, shrink[:, :, None] * products):
            yield numbers[rows], residuals


def _choice(
    strengths: list[float], errors: _Errors, targets: Tensor, options: LinearOptions
) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """The chosen strength's place, the path's entries, and what a report tells of the choice.

    Args:
        strengths: from strong to weak.
        errors: of rows that were not fitted.
        targets: (n, targets), of these rows.
        options: how to choose.
    """
    scores = errors.mean.tolist()
    apart = (errors.apart.sqrt() / errors.count).tolist()
    found: list[MetricSays] = []
    if (judge := options.judge) is not None:
        assert errors.predicted is not None
        found = [judged(judge, each, targets, None, rule=options.rule) for each in errors.predicted.unbind(1)]
    chosen, by = chosen_of(scores, apart, options.rule, options.judge, found)
    path: list[dict[str, Any]] = [
        {"strength": strength, "validation": score, "se": error}
        for strength, score, error in zip(strengths, scores, apart, strict=True)
    ]
    for entry, each in zip(path, found, strict=False):
        entry.update(entry_of(each))
    return chosen, path, by


def left_out_predictions(features: Matrix, targets: Tensor, options: LinearOptions) -> tuple[Tensor, float]:
    """What a head fitted without the row predicts for each row, float32 (n, num_targets), and its strength.

    The strength is the one that `fit_ridge` chooses; arguments and errors are the same.
    """
    basis, strengths, mean, shrink, products = _path(features, targets, options)
    residuals = _left_out_residuals(features, targets - mean, basis, shrink[:, :, None] * products, shrink)
    errors = _Errors.of(residuals, targets, _variance(targets, mean), len(strengths), keep=True)
    assert errors.predicted is not None
    chosen, _, _ = _choice(strengths, errors, targets, options)
    return errors.predicted[:, chosen].clone(), strengths[chosen]


def _path(
    features: Matrix, targets: Tensor, options: LinearOptions
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


def _left_out_residuals(
    features: Matrix, targets: Tensor, basis: Basis, weight_path: Tensor, shrink: Tensor
) -> Residuals:
    """What each row lies above what the head fitted without it predicts, of centred targets.

    Without row i, its residual grows from ``e_i`` to ``e_i / (1 - h_i)`` with the leverage
    ``h_i = 1 / n + sum_j z_ij^2 / (lambda_j + strength)``, the first term being the free bias.
    """
    for rows, block in row_blocks(features, targets.device):
        z = basis.transform(block, torch.float64)[:, :-1]
        leverage = float(basis.bias) / len(features) + z.square() @ shrink.T
        residual = targets[rows][:, None] - (z @ weight_path).transpose(0, 1)
        yield rows, residual / (1 - leverage).clamp_min(1e-12)[:, :, None]
