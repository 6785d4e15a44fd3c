"""Linear heads on cached features, solved exactly over a path of L2 strengths.

The strengths are walked from strong to weak. At each, the heads of all folds are one stack of problems for L-BFGS,
started from the previous solution; the rows held out from each head score the strength. The chosen strength is solved
once more on all training rows, started from the mean of the folds' heads, to a tolerance at which the objective is
exact in float32. Everything is mapped back to raw features at the end, so that ``logits = x @ weight.T + bias``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.basis import fit_basis
from hftl.heads.folds import stratified_folds
from hftl.heads.lbfgs import Solution, minimize
from hftl.heads.objective import NO_FOLD, Loss, Objective, Rows

Task = Literal["single_label", "multi_label", "regression"]
Rule = Literal["best", "one_se"]

_PATH_TOLERANCE = 1e-3
_FINAL_TOLERANCE = 1e-7
_RESIDENT_BYTES = 8 << 30


@dataclass(frozen=True)
class HeadFit:
    """A solved linear head: ``logits = x @ weight.T + bias`` on raw features.

    Attributes:
        weight: (num_labels, dim) float32, standardisation and temperature folded in.
        bias: (num_labels,) float32.
        report: what ``metrics.json`` tells about the head; plain JSON values.
    """

    weight: Tensor
    bias: Tensor
    report: dict[str, Any]

    def logits(self, features: Tensor) -> Tensor:
        """Apply the head to raw features (n, dim): (n, num_labels) float32."""
        return features @ self.weight.T.to(features.device) + self.bias.to(features.device)


def default_strengths(dim: int, count: int = 20) -> list[float]:
    """A path of L2 strengths for ``dim`` standardised features, from strong to weak.

    The logits of a head drawn from the penalty's own prior have variance ``dim / strength``; the path spans standard
    deviations from 1/10 to 30.
    """
    return [dim * 10.0 ** (2 - 5 * i / (count - 1)) for i in range(count)]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    *,
    task: Task,
    num_labels: int,
    strengths: Sequence[float] | None = None,
    folds: int = 5,
    rule: Rule = "best",
    class_weight: Literal["balanced"] | Sequence[float] | None = None,
    sample_weight: Tensor | None = None,
    standardize: bool = True,
    calibrate: bool = True,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> HeadFit:
    """Solve a linear head over a path of L2 strengths, choose one on held-out rows, and solve it on all rows."""
    assert task == "single_label"
    loss: Loss = "softmax"
    device = features.device
    if not bool(torch.isfinite(features).all()):
        raise DataError("features contain NaN or Inf")
    weights = torch.ones(len(features), dtype=torch.float64, device=device)
    if sample_weight is not None:
        weights *= sample_weight.double()
    if class_weight == "balanced":
        counts = torch.bincount(labels, minlength=num_labels).double()
        weights *= (len(labels) / (num_labels * counts.clamp_min(1)))[labels]
    elif class_weight is not None:
        weights *= torch.tensor(list(class_weight), dtype=torch.float64, device=device)[labels]
    basis = fit_basis(features, weights, standardize=standardize, device=device)
    fold = stratified_folds(labels, folds, seed)
    rows = Rows(features, labels, weights, fold, basis, device=device, budget=_RESIDENT_BYTES)
    held_out = torch.arange(folds, device=device)
    prior = torch.zeros(num_labels, dtype=torch.float64, device=device).index_add_(0, labels, weights)
    theta = torch.zeros(folds, basis.rank + 1, num_labels, dtype=torch.float64, device=device)
    theta[:, -1] = (prior.clamp_min(0.5) / prior.sum()).log()
    theta = theta.flatten(1)
    path, heads = [], []
    for strength in sorted(strengths or default_strengths(features.shape[1]), reverse=True):
        objective = Objective(
            rows, loss, num_labels, torch.full_like(held_out, strength, dtype=torch.float64), held_out
        )
        theta = _solve(objective, theta, _PATH_TOLERANCE).x
        nll, accuracy = [], []
        for index, logits in objective.held_out_logits(theta):
            nll.append(torch.nn.functional.cross_entropy(logits, labels[index]))
            accuracy.append((logits.argmax(1) == labels[index]).double().mean())
        mean = torch.stack(nll).mean()
        path.append(
            {"strength": strength, "validation": float(mean), "accuracy": float(torch.stack(accuracy).mean())}
        )
        heads.append(theta)
    best = min(range(len(path)), key=lambda i: path[i]["validation"])
    start = heads[best].mean(0, keepdim=True)
    final = Objective(
        rows,
        loss,
        num_labels,
        torch.tensor([path[best]["strength"]], dtype=torch.float64, device=device),
        torch.tensor([NO_FOLD], device=device),
    )
    solution = _solve(final, start, _FINAL_TOLERANCE)
    weight, bias = basis.unfold(solution.x[0].view(-1, num_labels))
    report = {
        "kind": "linear",
        "path": path,
        "chosen": path[best]["strength"],
        "iterations": int(solution.iterations[0]),
        "gradient_norm": float(solution.gradient.abs().max()),
        "converged": bool(solution.converged[0]),
    }
    return HeadFit(weight.float(), bias.float(), report)


def _solve(objective: Objective, start: Tensor, tolerance: float) -> Solution:
    curvature = objective.curvature(start)
    floor = 1e-6 * curvature.amax(1, keepdim=True)
    return minimize(objective.evaluate, start, 1 / torch.maximum(curvature, floor), tolerance=tolerance)
