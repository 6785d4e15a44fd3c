"""How one strength is chosen from a path, and how the thresholds of a multi-label head are tuned."""

from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["best", "one_se"]


def choose(scores: list[float], errors: list[float], rule: Rule) -> int:
    """The index of the chosen entry of a path that runs from strong to weak regularisation.

    Args:
        scores: validation losses, smaller is better.
        errors: their standard errors.
        rule: ``best`` takes the smallest loss; ``one_se`` the strongest regularisation whose loss is within
            one standard error of it (Breiman et al., *Classification and regression trees*, 1984, section
            3.4.3).
    """
    best = min(range(len(scores)), key=scores.__getitem__)
    if rule == "best":
        return best
    return next(i for i, score in enumerate(scores) if score <= scores[best] + errors[best])


def standard_error(losses: Tensor, weights: Tensor, groups: Tensor) -> float:
    """The standard error of a mean loss: over folds, or over rows where there is only one group.

    Args:
        losses: (n,) weighted losses of held-out rows.
        weights: (n,) their weights.
        groups: (n,) int64, the fold of each row.
    """
    # Over folds where there are some: rows of one fold share a head, so their losses are not independent.
    count = int(groups.max()) + 1
    if count == 1:
        means = losses / weights.mean()
    else:
        one_hot = torch.nn.functional.one_hot(groups, count).double()
        means = (losses @ one_hot) / (weights @ one_hot)
    return float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0


def best_thresholds(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each label the threshold with the largest F1 on held-out rows, halfway between two probabilities.

    Args:
        probabilities: (n, labels).
        targets: (n, labels) zeros and ones.

    Returns:
        (labels,) thresholds and (labels,) the F1 there. A label without a positive row keeps 0.5, with F1
        zero.
    """
    ordered, order = probabilities.double().sort(dim=0, descending=True)
    hits = targets.double().gather(0, order).cumsum(0)
    positives = targets.double().sum(0)
    predicted = torch.arange(1, len(ordered) + 1, device=ordered.device, dtype=torch.float64)[:, None]
    f1 = 2 * hits / (predicted + positives)
    below = torch.cat([ordered[1:], torch.zeros_like(ordered[:1])])
    f1 = f1.masked_fill(below == ordered, -1.0)  # a threshold cannot part equal probabilities
    best, cut = f1.max(0)
    threshold = (ordered.gather(0, cut[None]) + below.gather(0, cut[None]))[0] / 2
    return torch.where(positives > 0, threshold, 0.5), torch.where(positives > 0, best, 0.0)


def threshold_report(
    logits: Tensor, targets: Tensor, index: Tensor | None = None, num_labels: int = 0
) -> dict[str, Any]:
    """The thresholds of labels on held-out rows, and what they are worth there.

    Args:
        logits: (n, labels) of rows that were not trained on.
        targets: (n, labels) zeros and ones.
        index: (labels,) which of ``num_labels`` these are; the others keep 0.5. None where they are all.
        num_labels: how many there are.
    """
    thresholds, f1 = best_thresholds(logits.sigmoid(), targets)
    if index is not None:
        every = torch.full((num_labels,), 0.5, dtype=thresholds.dtype, device=thresholds.device)
        every[index] = thresholds
        thresholds = every
    return {
        "thresholds": thresholds.tolist(),
        "f1_macro_at_half": float(f1_scores(logits > 0, targets).mean()),
        "f1_macro_at_thresholds": float(f1.mean()),
    }


def f1_scores(predicted: Tensor, targets: Tensor) -> Tensor:
    """F1 of each label (labels,) for boolean predictions (n, labels); zero where there is no positive."""
    hits = (predicted * targets).double().sum(0)
    return 2 * hits / (predicted.double().sum(0) + targets.double().sum(0)).clamp_min(1.0)
