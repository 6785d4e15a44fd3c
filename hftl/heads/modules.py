"""Two small heads for those who ask: a perceptron on one vector, attentive pooling over tokens.

Both are trained by ``native.py`` on standardised features, and the standardisation is folded into their
weights.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hftl.errors import DataError
from hftl.heads.basis import fit_basis
from hftl.heads.checks import check_features
from hftl.heads.linear import fit_linear
from hftl.heads.native import Features, NativeFit, Params, fit_native
from hftl.tasks import Task


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
    hidden: int = 512,
    dropout: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> NativeFit:
    """Train a perceptron with one hidden layer (GELU): parameters for ``mlp_logits`` on raw features.

    Args:
        features: (n, dim).
        labels: as for ``fit_linear``.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        hidden: units of the hidden layer.
        dropout: on the hidden units, in training.
        seed: decides the initial weights, and all that ``fit_native`` decides by it.
        options: further arguments of ``fit_native``; a validation split is ``({"features": matrix},
            labels)``.
    """
    check_features(features)
    mean, scale = _standardisation(features)
    generator = torch.Generator().manual_seed(seed)
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
        units = F.dropout(units, dropout, train)
        return F.linear(units, params["output.weight"], params["output.bias"])

    fit = fit_native(
        forward,
        params,
        {"features": features},
        labels,
        task=task,
        num_labels=num_labels,
        seed=seed,
        **options,
    )
    weight = fit.params["hidden.weight"] / scale.to(fit.params["hidden.weight"])
    bias = fit.params["hidden.bias"] - weight @ mean.to(weight)
    folded = {**fit.params, "hidden.weight": weight, "hidden.bias": bias}
    return NativeFit(folded, {**fit.report, "kind": "mlp"})


def attentive_logits(params: Params, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Logits (n, num_labels) of one attention query over raw tokens (n, t, dim), the first ``lengths`` of
    each row.

    The query's softmax over tokens weighs their mean, and a linear layer follows (the single-query form of
    attention pooling in Lee et al., *Set transformer*, ICML 2019, section 3.2, without its values'
    projection).
    """
    scores = tokens @ params["query"]
    padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
    attention = scores.masked_fill(padding, -torch.inf).softmax(-1)
    pooled = (attention[:, None, :] @ tokens)[:, 0]
    return F.linear(pooled, params["output.weight"], params["output.bias"])


def fit_attentive(
    tokens: Tensor,
    lengths: Tensor,
    labels: Tensor,
    *,
    task: Task | str,
    num_labels: int,
    seed: int = 0,
    **options: Any,
) -> NativeFit:
    """Train attentive pooling: parameters for ``attentive_logits`` on raw tokens.

    It starts where exact solutions end: a query of zero is mean pooling, and the linear layer is the solved
    head on mean-pooled tokens.

    Args:
        tokens: (n, t, dim) float32, padded at the end; what stands in the padding is not read.
        lengths: (n,) int64, tokens of each row, at least one.
        labels: as for ``fit_linear``.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        seed: as for ``fit_native``.
        options: further arguments of ``fit_native``; a validation split is
            ``({"tokens": tokens, "lengths": lengths}, labels)``.
    """
    if tokens.ndim != 3 or bool((lengths < 1).any()) or bool((lengths > tokens.shape[1]).any()):
        raise DataError("attentive pooling: expected tokens (n, t, dim) and lengths from 1 to t")
    padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
    tokens = tokens.masked_fill(padding[:, :, None], 0.0)
    pooled = tokens.sum(1) / lengths[:, None]
    mean, scale = _standardisation(pooled)
    linear = fit_linear((pooled - mean) / scale, labels, task=task, num_labels=num_labels, seed=seed)
    params = {
        "query": torch.zeros(tokens.shape[2], device=tokens.device),
        "output.weight": linear.weight,
        "output.bias": linear.bias,
    }

    def forward(params: Params, inputs: Features, train: bool) -> Tensor:  # noqa: ARG001
        standard = (inputs["tokens"] - mean) / scale
        return attentive_logits(params, standard, inputs["lengths"])

    inputs = {"tokens": tokens, "lengths": lengths}
    fit = fit_native(forward, params, inputs, labels, task=task, num_labels=num_labels, seed=seed, **options)
    # A shift of the tokens moves all scores of a row alike, so the query needs the scale only.
    weight = fit.params["output.weight"] / scale.to(fit.params["output.weight"])
    folded = {
        "query": fit.params["query"] / scale.to(weight),
        "output.weight": weight,
        "output.bias": fit.params["output.bias"] - weight @ mean.to(weight),
    }
    return NativeFit(folded, {**fit.report, "kind": "attentive"})


def _standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (dim,) float32 of the rows; constant features keep the scale one."""
    ones = torch.ones(len(features), dtype=torch.float64, device=features.device)
    basis = fit_basis(features, ones, standardize=True, device=features.device)
    return basis.mean.float(), basis.scale.float()
