"""What a run's model is worth on rows that it was not trained on: the content of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hftl.backbones.protocol import Target
from hftl.criterion import Criterion
from hftl.crossed import Crossed
from hftl.data import Data
from hftl.export.trained import Trained
from hftl.frozen.features import StoredFeatures
from hftl.frozen.outside import logit_scores, neighbour_distance, scope_report, told_apart
from hftl.frozen.recipe import chooses, views_of
from hftl.methods import PROMPT, Head
from hftl.metric_functions import add_own_metrics
from hftl.metrics import evaluate_predictions
from hftl.plugins.registry import add_metrics
from hftl.recipes import Recipe
from hftl.report.collect import lexicon_scores
from hftl.runs.folder import RunFolder, writing
from hftl.runs.record import Metrics
from hftl.scored import answered_scores, intervals_of, shares_of_right
from hftl.scout.stored import split_matrix
from hftl.scout.zero_shot import known_zero_shot
from hftl.tasks import Task
from hftl.terminal import Terminal

NO_FEATURES = {"rows": 0, "computed": 0, "reused": 0}


def measure(
    recipe: Recipe,
    folder: RunFolder,
    target: Target,
    trained: Trained,
    features: StoredFeatures | None,
    data: Data,
    *,
    say: Terminal,
    crossed: Crossed | None,
) -> Metrics:
    """Metrics on the test split and what training reports; predictions go to ``predictions.parquet``.

    Where cross-validation scored rows in place of a test split, they are of the models that had not seen each row.
    """
    for step in trained.report.get("path", []):
        folder.log("strength", **step)
    task, test = data.task, data.test
    by_folds = crossed if crossed and crossed.is_all else None
    told = crossed.as_json(task, recipe.seed) if crossed else None
    logits = torch.from_numpy(by_folds.logits[0]) if by_folds else trained.logits
    # The final head's own are of rows that it was trained on.
    free = by_folds.free if by_folds and by_folds.free else trained.free
    if task.is_exclusive and not free:
        free = {"majority": test.labels == np.bincount(data.train.labels).argmax()}
    if free:
        shares = shares_of_right(free, test.marks.groups, seed=recipe.seed)
        trained.report["baselines"] = {name: each.value for name, each in shares.items()}
        trained.report["baseline_intervals"] = {name: [each.low, each.high] for name, each in shares.items()}
    if task.of_words:
        trained.report["baselines"] = {"lexicon": lexicon_f1(data)}
    digests = features.splits["test"].digests if features else None
    unseen = known_zero_shot(target, data, digests, prompts_of_start(recipe))
    if unseen is not None:
        trained.report["baselines"]["zero_shot"] = unseen
    thresholds: Any = trained.report.get("thresholds")
    if by_folds and by_folds.thresholds is not None:
        thresholds = by_folds.thresholds[0]
    values = evaluate_predictions(task, logits.numpy(), test.labels, data.label_names, thresholds)
    if told and crossed:
        told["eval"] |= by_functions(told["eval"], recipe, task, crossed.deals(), crossed.split.labels, say=say)
    if told and by_folds:
        values |= told["eval"]
    else:
        values |= by_functions(values, recipe, task, [(logits.numpy(), thresholds)], test.labels, say=say)
    folder.log("eval", **{name: value for name, value in values.items() if isinstance(value, float)})
    names = [test.inputs.name(i) for i in range(len(test))]
    scores = task.scores(logits).numpy()
    named = test.marks.group_names
    below = trained.report.get("abstain_below")
    folder.write_predictions(
        task, names, test.labels, scores, data.label_names, thresholds, abstain_below=below, groups=named
    )
    counts: dict[str, Any] = told_of(features) if features else {**NO_FEATURES}
    if features and features.content.equal_lengths:
        counts["equal_lengths"] = True
    if features and features.rounding:
        counts["rounding"] = features.rounding
    criterion = chooses(recipe, task)
    chosen_by = {"metric": criterion.name, "greater_is_better": criterion.greater_is_better}
    sections: dict[str, Any] = {trained.section: trained.report}
    if told and by_folds:
        intervals = told["intervals"]
    else:
        groups = test.marks.groups
        names_of = data.label_names
        sure = intervals_of(
            task, scores, test.labels, thresholds=thresholds, groups=groups, seed=recipe.seed, label_names=names_of
        )
        if below is not None:
            answered = answered_scores(scores, test.labels, below, groups=groups, seed=recipe.seed)
            values |= {name: each and each.value for name, each in answered.items()}
            sure = replace(sure, of=sure.of | {name: each for name, each in answered.items() if each})
        intervals = sure.as_json()
    if crossed:
        with writing(folder.path):
            crossed.write(folder.path, task, data.label_names)
    rows = {name: count for name, count in data.sizes().items() if name != "test" or not by_folds}
    return Metrics(
        test_views=measured_views(recipe, trained, data),
        out_of_scope=measured_scope(recipe, trained, features),
        eval=values,
        features=counts,
        chosen_by=chosen_by,
        intervals=intervals,
        cross_validation=told,
        rows=rows,
        **sections,
    )


def by_functions(
    known: Mapping[str, Any],
    recipe: Recipe,
    task: Task,
    deals: Sequence[tuple[np.ndarray, Any]],
    labels: np.ndarray,
    *,
    say: Terminal,
) -> dict[str, float | None]:
    """What metrics that are functions, a plugin's and the recipe's own, make of predictions.

    Args:
        known: metrics that are there already, whose names are taken.
        recipe: brings its own.
        task: what the labels are.
        deals: logits and thresholds of the same rows, once or for each deal of folds, of which the mean counts.
        labels: of the rows.
        say: is told of functions that fail.

    Returns:
        By name; None where a function gives no finite number of one of the deals.
    """
    each: list[dict[str, Any]] = []
    problems: list[str] = []
    for logits, thresholds in deals:
        values = dict(known)
        add_metrics(values, logits, labels, task)
        problems += add_own_metrics(values, recipe.metrics, logits, labels, task, thresholds)
        each.append({name: value for name, value in values.items() if name not in known})
    for problem in dict.fromkeys(problems):
        say.print(f"          {problem}")
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(name for values in each for name in values):
        numbers = [value for values in each if (value := values.get(name)) is not None]
        found[name] = float(np.mean(numbers)) if len(numbers) == len(each) else None
    return found


def measured_views(recipe: Recipe, trained: Trained, data: Data) -> dict[str, Any] | None:
    """Metrics of the mean probabilities of several views of each test picture; None where there is only one."""
    views = views_of(recipe)
    if trained.by_views is None or views is None or views.test == 1:
        return None
    logits, thresholds = trained.by_views.numpy(), trained.report.get("thresholds")
    values = evaluate_predictions(data.task, logits, data.test.labels, data.label_names, thresholds)
    told = {name: value for name, value in values.items() if isinstance(value, float)}
    return {"views": views.test, "augmentation": str(views.augmentation), "eval": told}


def prompts_of_start(recipe: Recipe) -> list[str] | None:
    """What fine-tuning starts from, where it starts from what a text tower says of the labels."""
    method = recipe.method
    return None if isinstance(method, Head) or method.init != "zero-shot" else method.prompts or [PROMPT]


def told_of(features: StoredFeatures) -> dict[str, Any]:
    """What features took, and their ``space``.

    Where there are some, of each ``foreign`` space its ``origin``, ``commit``, ``space``, the ``rows`` read and
    ``checked``.
    """
    foreign = {"foreign": [each.as_json() for each in features.trusted]} if features.trusted else {}
    return {**features.counts, "space": features.id, **foreign}


def measured_scope(recipe: Recipe, trained: Trained, features: StoredFeatures | None) -> dict[str, Any] | None:
    """How well test rows are told from rows that are out of scope; None where no label is.

    Distance is in the space of the frozen features, so fine-tuning, which leaves that space, has none.
    """
    if recipe.out_of_scope is None or trained.outside is None or not len(trained.outside):
        return None
    inside, outside = logit_scores(trained.logits), logit_scores(trained.outside)
    if isinstance(recipe.method, Head) and features and features.outside:
        cut, test, beyond = features.content.cut, features.splits["test"], features.outside
        train, asked, far = (split_matrix(part, cut)[0] for part in (features.splits["train"], test, beyond))
        inside["distance"], outside["distance"] = (neighbour_distance(train, rows) for rows in (asked, far))
    found = told_apart(outside, inside, seed=recipe.seed)
    report = scope_report(recipe.out_of_scope, found, len(trained.outside), len(trained.logits))
    if (below := trained.report.get("abstain_below")) is not None:
        top = trained.outside.softmax(-1).max(-1).values
        report["abstains"] = float((top.double() < below).double().mean())
    return report


def lexicon_f1(data: Data) -> float:
    """F1 on the test split of whoever knows the training words by heart, and nothing else."""
    criterion = Criterion.of_task(data.task)
    return criterion.value(lexicon_scores(data), data.test.labels, label_names=data.label_names)
