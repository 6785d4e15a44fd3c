"""How one strength is chosen from a path."""

from typing import Literal

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
        groups: (n,) int64, the fold of each row; not every number need occur.
    """
    # Over folds where there are some: rows of one fold share a head, so their losses are not independent.
    place = torch.unique(groups, return_inverse=True)[1]
    count = int(place.max()) + 1
    if count == 1:
        means = losses / weights.mean()
    else:
        one_hot = torch.nn.functional.one_hot(place, count).double()
        means = (losses @ one_hot) / (weights @ one_hot)
    return float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0
