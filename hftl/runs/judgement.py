"""Judgements on a result: what a person should know before the numbers are believed or the model is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftl.criterion import Criterion
from hftl.runs.record import Metrics
from hftl.tasks import Task

# What each of `hftl.heads.baselines` does, for a person.
FREE = {
    "majority": "always saying the most frequent class",
    "prototype": "the nearest class mean of the same features",
    "knn": "the nearest neighbours among the same features",
    "lexicon": "giving each word the tag that it most often had in training",
    "zero_shot": "the backbone's text tower without a label",
}


def judgements(metrics: Metrics, criterion: Criterion) -> list[str]:
    """Lines for a person: the result is below what costs nothing, or training made the start worse.

    Args:
        metrics: what came out of a run.
        criterion: the metric that chose.
    """
    finetune = metrics.finetune or {}
    return [
        *_below_baselines(metrics, criterion.task),
        *_below_start(finetune, criterion),
        *_from_start(finetune, criterion),
    ]


def _below_baselines(metrics: Metrics, task: Task) -> list[str]:
    value = metrics.eval.get(task.metric)
    if not task.has_classes:
        # An r2 of 0 is that of the mean.
        below = isinstance(value, float) and value < 0
        return [f"below     r2 {value:.4f} is less than the mean of the targets gives at no cost: 0"] if below else []
    baselines = (metrics.head or metrics.finetune or {}).get("baselines", {})
    if not baselines or not isinstance(value, float):
        return []
    best = max(baselines, key=lambda name: baselines[name])
    if value >= baselines[best]:
        return []
    free = f"{FREE.get(best, best)} gives at no cost: {baselines[best]:.4f}"
    return [f"below     {task.metric} {value:.4f} is less than {free}"]


def _below_start(finetune: Mapping[str, Any], criterion: Criterion) -> list[str]:
    start, history = finetune.get("start"), finetune.get("epochs")
    if not start or not history:
        return []
    split, advice = start["split"], "lower --lr, or use --method head"
    kept = history[finetune["kept_epoch"]]
    if finetune["kept_epoch"] == 0:
        metric = criterion.name
        others = [epoch[metric] for epoch in history[1:] if epoch[metric] is not None]
        best = (
            f": {metric} {_value(kept[metric])}, then {_value(max(others, key=criterion.rank))} at best"
            if others
            else ""
        )
        return [f"start     kept, because no epoch was better on the {split} split{best}; {advice}"]
    worse = ", ".join(f"{name} from {_value(start[name])} to {_value(kept[name])}" for name in start["better_in"])
    return [f"start     better than the result on the {split} split: {worse}; {advice}"] if worse else []


def _from_start(finetune: Mapping[str, Any], criterion: Criterion) -> list[str]:
    """From the start to the epoch that is kept: the last line, so that nobody has to look for it."""
    start, history = finetune.get("start"), finetune.get("epochs")
    if not start or not history or not finetune["kept_epoch"]:
        return []
    kept, name = finetune["kept_epoch"], criterion.name
    before, after = start[name], history[kept][name]
    if before is None or after is None:
        how = "not to be compared"
    else:
        gain = criterion.rank(after) - criterion.rank(before)
        how = "better" if gain > 0 else "worse" if gain < 0 else "the same"
    said = f"{name} {_value(before)} → {_value(after)} on the {start['split']} split: {how}"
    return [f"epochs    start → epoch {kept} of {len(history) - 1}: {said}"]


def _value(value: float | None) -> str:
    return "no number" if value is None else f"{value:,.4f}"
