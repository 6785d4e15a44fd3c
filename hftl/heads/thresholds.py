"""The threshold of each label, chosen on held-out rows: for F1, or for a precision or a recall that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hftl.methods import F1, Aim

# How many standard errors a cut may lie below the best one and still count as good as it; see `best_thresholds`. A
# tenth more than one, because a difference that a single row makes is hardly more than one.
WITHIN = 1.1
# Probabilities whose cuts are looked at together: some twenty numbers of float64 stand for each.
CUTS_TOGETHER = 1 << 19


@dataclass(frozen=True)
class _Cuts:
    """All places where the rows of each label can be parted, and what is above them; tensors are (cuts, labels).

    Attributes:
        above: the smallest probability above the cut.
        below: the largest below it; 0 under all rows.
        said: rows above.
        hits: those of them that have the label.
        positives: (labels,) rows that have it.
        possible: whether the rows can be parted there; equal probabilities cannot.
    """

    above: Tensor
    below: Tensor
    said: Tensor
    hits: Tensor
    positives: Tensor
    possible: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, targets: Tensor) -> _Cuts:
        ordered, order = probabilities.double().sort(dim=0, descending=True)
        below = torch.cat([ordered[1:], torch.zeros_like(ordered[:1])])
        hits = targets.double().gather(0, order).cumsum(0)
        said = torch.arange(1, len(ordered) + 1, device=ordered.device, dtype=torch.float64)[:, None]
        return cls(ordered, below, said.expand_as(hits), hits, targets.double().sum(0), below < ordered)

    @property
    def f1(self) -> Tensor:
        return 2 * self.hits / (self.said + self.positives)

    @property
    def middle(self) -> Tensor:
        return (self.above + self.below) / 2


def _of_each(cuts: Tensor, chosen: Tensor) -> Tensor:
    """What (cuts, labels) holds at the chosen cut (labels,) of each label: (labels,)."""
    return cuts.gather(0, chosen[None])[0]


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """For each label the cut nearest half of its largest F1, of those whose F1 on held-out rows is within noise of it.

    The cut with the largest F1 follows single rows: where a label is nearly separable, one odd row moves it from 0.5 to
    0.003 and gains nothing on other rows. For calibrated probabilities the best threshold is known: half of the largest
    F1 (Lipton, Elkan & Naryanaswamy, *Optimal thresholding of classifiers to maximize F1 measure*, ECML 2014), so 0.5
    for a separable label, and less for a rare one that is hard to see. It is taken wherever the rows do not speak
    against it: where the F1 of its cut is no more than one standard error below the largest, as under the rule of one
    standard error (Breiman et al. 1984), here the error of the difference on the same rows, by the delta method. Else
    it is the cut nearest to it of which that is true, because nobody promises that probabilities are calibrated. The
    cut nearest 0.5 within noise was tried and loses what thresholds are for.

    Args:
        probabilities: (n, labels).
        targets: (n, labels) zeros and ones.

    Returns:
        (labels,) float64; 0.5 for a label without a positive row.
    """
    return _by_label(_best_of, probabilities, targets)


def _by_label(choose: Callable[[Tensor, Tensor], Tensor], probabilities: Tensor, targets: Tensor) -> Tensor:
    """What is chosen for each label, (labels, …), of a few labels at a time: cuts outweigh probabilities by far."""
    return torch.cat([choose(probabilities[:, some], targets[:, some]) for some in _few_labels(probabilities)])


def _few_labels(of: Tensor) -> Iterator[slice]:
    """Labels of (n, labels) that are looked at together."""
    together = max(1, CUTS_TOGETHER // max(len(of), 1))
    for start in range(0, max(of.shape[1], 1), together):
        yield slice(start, start + together)


def _best_of(probabilities: Tensor, targets: Tensor) -> Tensor:
    """See `best_thresholds`."""
    cuts = _Cuts.of(probabilities, targets)
    f1 = cuts.f1.masked_fill(~cuts.possible, -1.0)
    largest, best = f1.max(0)
    near = cuts.possible & (largest - f1 <= WITHIN * _standard_errors(cuts, best))
    wanted = largest / 2
    # A threshold is exceeded, not reached.
    holds = (cuts.below <= wanted) & (wanted < cuts.above)
    thresholds = torch.where(holds, wanted, cuts.middle)
    distance = (thresholds - wanted).abs().masked_fill(~near, torch.inf)
    return torch.where(cuts.positives > 0, _of_each(thresholds, distance.min(0).indices), 0.5)


def _standard_errors(cuts: _Cuts, best: Tensor) -> Tensor:
    """The standard error (cuts, labels) of the difference in F1 between the best cut and each other.

    A row moves the F1 of a cut by ``(2 hit - F1 (said + true)) / (rows said + rows true)``, its influence; the
    variance of a difference is the sum of the squared differences of influences (Efron & Tibshirani 1993, chapter 21).
    """
    said, hits, positives = cuts.said, cuts.hits, cuts.positives
    scale, f1 = 1 / (said + positives), cuts.f1
    # Of a row that is said and true, said alone, true alone; that of one that is neither is 0.
    both, alone = scale * (2 - 2 * f1), -scale * f1
    best_both, best_alone = both.gather(0, best[None]), alone.gather(0, best[None])
    best_said, best_hits = said.gather(0, best[None]), hits.gather(0, best[None])
    wider = said > best_said
    inner_said, inner_hits = torch.minimum(said, best_said), torch.minimum(hits, best_hits)
    outer_said, outer_hits = torch.maximum(said, best_said), torch.maximum(hits, best_hits)
    between_true = outer_hits - inner_hits
    between_false = outer_said - inner_said - between_true
    # Between the two cuts a row is said by the wider one alone.
    true_moves = torch.where(wider, both - best_alone, best_both - alone)
    false_moves = torch.where(wider, alone, best_alone)
    variance = (
        inner_hits * (both - best_both) ** 2
        + (inner_said - inner_hits) * (alone - best_alone) ** 2
        + between_true * true_moves**2
        + between_false * false_moves**2
        + (positives - outer_hits) * (alone - best_alone) ** 2
    )
    return variance.sqrt()


def asked_thresholds(probabilities: Tensor, targets: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
    """For each label the cut that has the precision, or the recall, that is asked for.

    For a precision the one with the most hits, that is the largest recall; for a recall the one with the largest
    precision.

    Args:
        probabilities: (n, labels).
        targets: (n, labels) zeros and ones.
        aim: a precision or a recall.

    Returns:
        (labels,) float64 thresholds, and (labels,) whether the label reaches it; where it does not, and where it has no
        positive row, the threshold is that of `best_thresholds`.
    """
    found = _by_label(partial(_asked_of, aim=aim), probabilities, targets)
    return found[:, 0], found[:, 1] > 0


def _asked_of(probabilities: Tensor, targets: Tensor, aim: Aim) -> Tensor:
    """See `asked_thresholds`: (labels, 2) float64, the threshold and whether it is reached."""
    cuts = _Cuts.of(probabilities, targets)
    if aim.metric == "precision":
        enough, merit = cuts.hits / cuts.said >= aim.least, cuts.hits
    else:
        enough, merit = cuts.hits / cuts.positives.clamp_min(1) >= aim.least, cuts.hits / cuts.said
    allowed = enough & cuts.possible & (cuts.hits > 0)
    reached = allowed.any(0)
    chosen = merit.masked_fill(~allowed, -torch.inf).max(0).indices
    thresholds = torch.where(reached, _of_each(cuts.middle, chosen), _best_of(probabilities, targets))
    return torch.stack([thresholds, reached.double()], 1)


def threshold_report(
    logits: Tensor, targets: Tensor, aim: Aim = F1, *, index: Tensor | None = None, num_labels: int = 0
) -> dict[str, Any]:
    """The thresholds of labels on held-out rows, and what they are worth there.

    Args:
        logits: (n, labels) of rows that were not trained on.
        targets: (n, labels) zeros and ones.
        aim: what they are chosen for.
        index: (labels,) which of ``num_labels`` these are; the others keep 0.5. None where they are all.
        num_labels: how many there are.

    Returns:
        ``thresholds``, ``thresholds_for``, ``f1_macro_at_half``, ``f1_macro_at_thresholds``; and where a precision or a
        recall was asked for ``not_reached``, the numbers of the labels that have no such cut and were given that of F1.
    """
    probabilities = logits.sigmoid()
    numbers = torch.arange(logits.shape[1], device=logits.device) if index is None else index
    asked: dict[str, Any] = {}
    if aim.metric == "f1":
        thresholds = best_thresholds(probabilities, targets)
    else:
        thresholds, reached = asked_thresholds(probabilities, targets, aim)
        unknown = set(range(num_labels)) - set(numbers.tolist())
        asked = {"not_reached": sorted({*numbers[~reached].tolist(), *unknown})}
    above = torch.cat([probabilities[:, some].double() > thresholds[some] for some in _few_labels(targets)], 1)
    at_thresholds = f1_scores(above, targets)
    if index is not None:
        every = torch.full((num_labels,), 0.5, dtype=thresholds.dtype, device=thresholds.device)
        every[index] = thresholds
        thresholds = every
    return {
        "thresholds": thresholds.tolist(),
        "thresholds_for": str(aim),
        **asked,
        "f1_macro_at_half": float(f1_scores(logits > 0, targets).mean()),
        "f1_macro_at_thresholds": float(at_thresholds.mean()),
    }


def f1_scores(predicted: Tensor, targets: Tensor) -> Tensor:
    """F1 of each label (labels,) for boolean predictions (n, labels); zero where there is no positive."""
    return torch.cat([_f1_of(predicted[:, some], targets[:, some]) for some in _few_labels(targets)])


def _f1_of(predicted: Tensor, targets: Tensor) -> Tensor:
    """See `f1_scores`."""
    hits = (predicted * targets).double().sum(0)
    return 2 * hits / (predicted.double().sum(0) + targets.double().sum(0)).clamp_min(1.0)
