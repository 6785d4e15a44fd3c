"""Judgements on a result: what a person should know before the numbers are believed or the model is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftl.criterion import Criterion
from hftl.runs.record import Metrics
from hftl.tasks import Task
from hftl.wording import listing, printable

# What each of `hftl.heads.baselines` does, for a person.
FREE = {
    "majority": "always saying the most frequent class",
    "prototype": "the nearest class mean of the same features",
    "knn": "the nearest neighbours among the same features",
    "lexicon": "giving each word the tag that it most often had in training",
    "zero_shot": "the backbone's text tower without a label",
}


def judgements(metrics: Metrics, criterion: Criterion) -> list[str]:
    """Lines for a person: what was asked was not reached, what costs nothing is better, training made the start worse.

    Args:
        metrics: what came out of a run.
        criterion: the metric that chose.
    """
    finetune = metrics.finetune or {}
    return [
        *_not_reached(metrics),
        *_abstention(metrics),
        *_scope(metrics),
        *_below_baselines(metrics, criterion.task),
        *_below_start(finetune, criterion),
        *_from_start(finetune, criterion),
    ]


def _not_reached(metrics: Metrics) -> list[str]:
    """Labels that have no threshold with the precision or the recall that was asked for."""
    report = metrics.training
    if not (labels := report.get("not_reached")):
        return []
    names = list(metrics.eval["per_class"])
    return [
        f"labels    {listing([names[label] for label in labels])}: no threshold reaches {report['thresholds_for']} on "
        "held-out rows, so that of the largest F1 decides"
    ]


def _abstention(metrics: Metrics) -> list[str]:
    """What abstaining gains, and where test rows are answered less or more often than was asked."""
    report = metrics.training
    asked, known = report.get("abstention"), metrics.known_intervals()
    if not asked or "coverage" not in known:
        return []
    below, reached = report["abstain_below"], known["coverage"]
    if not below:
        return [
            "abstains  the model never abstains: too many held-out rows have the very same score for a threshold to "
            "part them"
        ]
    gain = (
        f"accuracy {metrics.eval['accuracy_answered']:.4f} on them, {metrics.eval['accuracy']:.4f} on all"
        if metrics.eval["accuracy_answered"] is not None
        else "nothing is left"
    )
    answered = f"{reached.value:.1%} of test rows are answered; {gain}"
    lines = [f"abstains  the model abstains where the score is below {below:.4f}: {answered}"]
    if not reached.low <= asked["asked"] <= reached.high:
        than = "fewer" if reached.value < asked["asked"] else "more"
        lines.append(
            f"coverage  {than} test rows are answered than the {asked['asked']:.1%} that were asked for, by more than "
            "chance explains: they are not like the held-out rows of training"
        )
    return lines


def _scope(metrics: Metrics) -> list[str]:
    """What tells rows that are out of scope from the others best."""
    report = metrics.out_of_scope
    if not report:
        return []
    best = max(report["auroc"], key=report["auroc"].__getitem__)
    rows = f"{report['rows']:,} rows labelled {printable(report['label'])!r} from {report['against']:,} test rows"
    abstains = f"; the model abstains on {report['abstains']:.1%} of them" if "abstains" in report else ""
    return [f"scope     {best.replace('_', ' ')} tells {rows} best: AUROC {report['auroc'][best]:.4f}{abstains}"]


def among_rows(name: str, training: Mapping[str, Any]) -> str:
    """What is said beside a head that costs nothing of the rows that it looks at, where these are not all."""
    rows = training.get("neighbours_among")
    return f" among {rows:,} training rows drawn at random" if name == "knn" and rows else ""


def _below_baselines(metrics: Metrics, task: Task) -> list[str]:
    value = metrics.eval.get(task.metric)
    if not task.has_classes:
        # An r2 of 0 is that of the mean.
        below = isinstance(value, float) and value < 0
        return [f"below     r2 {value:.4f} is less than the mean of the targets gives at no cost: 0"] if below else []
    baselines = metrics.training.get("baselines", {})
    if not baselines or not isinstance(value, float):
        return []
    best = max(baselines, key=lambda name: baselines[name])
    if value >= baselines[best]:
        return []
    what = FREE.get(best, best) + among_rows(best, metrics.training)
    free = f"{what} gives at no cost: {baselines[best]:.4f}"
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
