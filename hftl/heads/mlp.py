"""A perceptron with one hidden layer, for those who ask for more than a linear head on one vector.

It is trained by ``native.py`` on standardised features, and the standardisation is folded into its first layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hftl.heads.basis import fit_basis
from hftl.heads.checks import check_features
from hftl.heads.judging import Judge
from hftl.heads.matrix import Matrix
from hftl.heads.native import Features, NativeFit, Params, fit_native
from hftl.methods import F1, Aim
from hftl.tasks import ClassWeight, Task

DROPOUT = 0.1
"""On the hidden units, in training."""


def mlp_logits(params: Params, features: Tensor) -> Tensor:
    """The perceptron's logits (n, num_labels) for raw features (n, dim)."""
    hidden = F.gelu(F.linear(features, params["hidden.weight"], params["hidden.bias"]))
    return F.linear(hidden, params["output.weight"], params["output.bias"])


def fit_mlp(
    features: Tensor,
    labels: Tensor,
    *,
    task: Task | str,
    num_labels: int,
    hidden: int,
    class_weight: ClassWeight = None,
    validation: tuple[Features, Tensor] | None = None,
    calibrate: bool = True,
    aim: Aim = F1,
    judge: Judge | None = None,
    dealt: Tensor | None = None,
    seed: int = 0,
) -> NativeFit:
    """Train a perceptron with one hidden layer (GELU): parameters for ``mlp_logits`` on raw features.

    Args:
        features: (n, dim), on the device where to train.
        labels: as for ``fit_linear``.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        hidden: units of the hidden layer.
        class_weight: as for ``fit_linear``.
        validation: ``({"features": matrix}, labels)`` to choose on.
        calibrate: as for ``fit_native``.
        aim: as for ``fit_native``.
        judge: as for ``fit_linear``.
        dealt: as for ``fit_native``.
        seed: decides the initial weights, and all that ``fit_native`` decides by it.

    Raises:
        DataError, UserError, ConvergenceError: as ``fit_native``.
    """
    check_features(features)
    mean, scale = _standardisation(features)
    generator = torch.Generator().manual_seed(seed)
    # He et al., Delving deep into rectifiers (ICCV 2015): units keep the variance of standardised inputs.
    first = torch.randn(hidden, features.shape[1], generator=generator) * (2 / features.shape[1]) ** 0.5
    params = {
        "hidden.weight": first.to(features.device),
        "hidden.bias": torch.zeros(hidden, device=features.device),
        "output.weight": torch.zeros(num_labels, hidden, device=features.device),
        "output.bias": torch.zeros(num_labels, device=features.device),
    }

    def forward(params: Params, inputs: Features, train: bool) -> Tensor:
        standard = (inputs["features"] - mean) / scale
        units = F.gelu(F.linear(standard, params["hidden.weight"], params["hidden.bias"]))
        units = F.dropout(units, DROPOUT, train)
        return F.linear(units, params["output.weight"], params["output.bias"])

    fit = fit_native(
        forward,
        params,
        {"features": features},
        labels,
        task=task,
        num_labels=num_labels,
        class_weight=class_weight,
        validation=validation,
        calibrate=calibrate,
        aim=aim,
        judge=judge,
        dealt=dealt,
        seed=seed,
    )
    weight = fit.params["hidden.weight"] / scale
    bias = fit.params["hidden.bias"] - weight @ mean
    folded = {**fit.params, "hidden.weight": weight, "hidden.bias": bias}
    return NativeFit(folded, {**fit.report, "kind": "mlp"})


def _standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (dim,) float32 of the rows; constant features keep the scale one."""
    ones = torch.ones(len(features), dtype=torch.float64, device=features.device)
    basis = fit_basis(Matrix.of(features), ones, standardize=True)
    return basis.mean.float(), basis.scale.float()
