"""Are the probabilities true? Temperature scaling and the numbers that show what it changed.

Guo et al., *On calibration of modern neural networks*, ICML 2017: one temperature, fitted on rows that the
head has not seen, minimises the negative log-likelihood of ``softmax(logits / temperature)``; the order of
the labels stays.
"""

from typing import Any

import torch
from torch import Tensor

from hftl.tasks import Link

_BINS = 15
_NEWTON_STEPS = 50
_HOTTEST = 20.0
# What is made of logits is many times as large, and of millions of rows would outgrow their features.
BLOCK_ROWS = 1 << 15


def fit_temperature(logits: Tensor, targets: Tensor, weights: Tensor, loss: Link, *, start: float = 1.0) -> float:
    """Find the temperature that minimises the weighted log-loss of ``logits / temperature``.

    The log-loss is convex in the inverse temperature, which Newton steps find, bisection taking over where
    they leave the bracket. Logits that are perfect, or no better than chance, have no finite optimum: the
    inverse temperature stays within [1/20, 20].

    Args:
        logits: (n, outputs) float32.
        targets: (n,) int64 classes for ``softmax``, (n, outputs) zeros and ones for ``sigmoid``.
        weights: (n, 1) or (n, outputs) weights of the losses.
        loss: which probabilities the logits stand for.
        start: a temperature near it.
    """
    # In the inverse temperature the loss is convex; in the temperature itself it is not.
    coldest, hottest = _HOTTEST, 1 / _HOTTEST
    low, high, beta = hottest, coldest, min(max(1 / start, hottest), coldest)
    for _ in range(_NEWTON_STEPS):
        gradient, curvature = _slope_and_curvature(logits, targets, weights, beta, loss)
        if (beta == coldest and gradient <= 0) or (beta == hottest and gradient >= 0):
            break
        low, high = (low, beta) if gradient > 0 else (beta, high)
        step = beta - gradient / curvature if curvature > 0 else (hottest if gradient > 0 else coldest)
        if low < step < high:
            proposal = step
        elif step >= high == coldest or step <= low == hottest:
            # Nobody has looked there yet.
            proposal = coldest if step >= high else hottest
        else:
            proposal = (low * high) ** 0.5
        if abs(proposal - beta) <= 1e-5 * beta:
            break
        beta = proposal
    return 1 / beta


def _slope_and_curvature(
    logits: Tensor, targets: Tensor, weights: Tensor, beta: float, loss: Link
) -> tuple[float, float]:
    """Derivatives of the summed log-loss of ``beta * logits`` by ``beta``."""
    blocks = zip(*(torch.split(each, BLOCK_ROWS) for each in (logits, targets, weights)), strict=True)
    sums = [_slope_and_curvature_of(x, y, w, beta, loss) for x, y, w in blocks]
    return sum(slope for slope, _ in sums), sum(curvature for _, curvature in sums)


def _slope_and_curvature_of(
    logits: Tensor, targets: Tensor, weights: Tensor, beta: float, loss: Link
) -> tuple[float, float]:
    """The same of some rows."""
    if loss == "softmax":
        probabilities = (beta * logits).softmax(-1)
        mean = (probabilities * logits).sum(-1, keepdim=True)
        slope = mean - logits.gather(1, targets[:, None])
        curvature = (probabilities * (logits - mean).square()).sum(-1, keepdim=True)
    else:
        probabilities = (beta * logits).sigmoid()
        slope = (probabilities - targets) * logits
        curvature = probabilities * (1 - probabilities) * logits.square()
    return float((weights * slope).sum()), float((weights * curvature).sum())


def calibration_report(logits: Tensor, targets: Tensor, temperature: float, loss: Link) -> dict[str, Any]:
    """Expected calibration error, Brier score and log-loss on held-out rows, before and after the temperature.

    Args:
        logits: (n, outputs) logits before the temperature.
        targets: (n,) int64 classes or (n, outputs) zeros and ones.
        temperature: what the logits are divided by.
        loss: which probabilities the logits stand for.
    """
    before, table_before = _scores(logits, targets, 1.0, loss)
    after, table_after = _scores(logits, targets, temperature, loss)
    return {
        "temperature": temperature,
        "rows": len(logits),
        "before": before,
        "after": after,
        "reliability_before": table_before,
        "reliability": table_after,
    }


def _scores(
    logits: Tensor, targets: Tensor, temperature: float, loss: Link
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Expected calibration error, Brier score and log-loss of ``logits / temperature``, and the table behind them."""
    parts = [
        _scores_of(block.double() / temperature, truth, loss)
        for block, truth in zip(torch.split(logits, BLOCK_ROWS), torch.split(targets, BLOCK_ROWS), strict=True)
    ]
    confidence, correct, brier, log_loss = (torch.cat(each) for each in zip(*parts, strict=True))
    del parts  # of several labels they are as large again
    ece, table = reliability(confidence.flatten(), correct.flatten())
    return {"ece": ece, "brier": float(brier.mean()), "log_loss": float(log_loss.mean())}, table


def _scores_of(logits: Tensor, targets: Tensor, loss: Link) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Confidence, whether it was right, squared error and log-loss: float64 (n,), or (n, outputs) of several labels."""
    if loss == "softmax":
        log_probabilities = logits.log_softmax(-1)
        confidence, predicted = log_probabilities.exp().max(-1)
        truth = torch.nn.functional.one_hot(targets, logits.shape[1])
        squared = (log_probabilities.exp() - truth).square().sum(-1)
        losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
        return confidence, (predicted == targets).double(), squared, losses
    probabilities = logits.sigmoid()
    losses = torch.nn.functional.softplus(logits) - targets * logits
    return probabilities, targets.double(), (probabilities - targets).square(), losses


def reliability(confidence: Tensor, correct: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over 15 equal bins (Guo et al., eq. 3), and the table behind it.

    Args:
        confidence: (n,) probabilities.
        correct: (n,) ones where the event happened, else zeros.
    """
    bins = (confidence * _BINS).long().clamp(0, _BINS - 1)
    count = torch.zeros(_BINS, dtype=torch.float64, device=confidence.device)
    count.index_add_(0, bins, torch.ones_like(count[:1]).expand(len(bins)))
    total_confidence = torch.zeros_like(count).index_add_(0, bins, confidence.double())
    total_correct = torch.zeros_like(count).index_add_(0, bins, correct.double())
    ece = float((total_confidence - total_correct).abs().sum() / max(len(confidence), 1))
    table = [
        {
            "from": i / _BINS,
            "to": (i + 1) / _BINS,
            "rows": int(count[i]),
            "confidence": float(total_confidence[i] / count[i]),
            "accuracy": float(total_correct[i] / count[i]),
        }
        for i in range(_BINS)
        if count[i] > 0
    ]
    return ece, table
