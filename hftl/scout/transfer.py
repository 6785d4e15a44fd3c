"""``transfer``: is it worth anything that the backbone was pretrained, and for which classes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from hftl.backbones.protocol import Target
from hftl.backbones.untrained import Untrained
from hftl.criterion import as_logits
from hftl.data import Texts
from hftl.data.division import fold_count, folds_of
from hftl.errors import BackboneError, CutError, DataError
from hftl.heads.folds import task_folds
from hftl.intervals import (
    LEVEL,
    SPREAD_OF_HEADS,
    Array,
    Difference,
    Interval,
    at_least_by_chance,
    difference,
    holm,
    percentiles,
    resamples,
)
from hftl.progress import counted
from hftl.runs.again import RecipeLike, as_recipe
from hftl.scored import Score, each_output, scored, telling_rows
from hftl.scout.answer import Answer
from hftl.scout.plain import image_features, text_scores
from hftl.scout.probe import probe_rows, unless_nothing
from hftl.scout.stored import TrainingRows, reading, training_part
from hftl.tasks import Task

NO_NETWORK, RANDOM_WEIGHTS = "no network", "random weights"


@dataclass(frozen=True)
class Rival:
    """Something that never saw the data of the pretraining, and how far the pretrained backbone is ahead of it.

    Attributes:
        name: what it is.
        score: the metric that chooses, on the same held-out rows.
        gain: how much better the pretrained backbone is, above 0 where it is; p adjusted for all rivals.
        draws: its score with predictions, one for each draw of random weights.
    """

    name: str
    score: Interval
    gain: Difference
    draws: list[Score] = field(repr=False, compare=False)


@dataclass(frozen=True)
class OutputTransfer:
    """One class, label or target: the pretrained backbone against the best rival that looks at the rows.

    Attributes:
        name: of the class, label or target.
        pretrained: F1 of a class; the task's metric of a label or a target.
        rival: the same of the best rival.
        blind: the same of one answer for all rows; a rival that is no better knows nothing of this class.
        gain: the pretrained backbone's minus the rival's; p adjusted for all outputs.
    """

    name: str
    pretrained: float
    rival: float
    blind: float
    gain: Difference


@dataclass(frozen=True, repr=False)
class Transfer(Answer):
    """Whether the transfer is positive.

    Attributes:
        verdict: ``positive``: better beyond noise than random weights and than no look at the rows, and not worse than
            a model without a network; ``negative``: worse than a rival beyond noise; else ``none``.
        metric: the one that chooses.
        rows: training rows that were used.
        backbone: what was pretrained.
        pretrained: its cross-validated linear probe.
        rivals: from best to worst.
        outputs: each class, label or target, the most hurt first.
        hurt: names of those that are worse than with the best rival beyond noise.
        notes: what could not be compared, and why.
        advice: one sentence.
    """

    table: ClassVar[str] = "rivals"

    verdict: str
    metric: str
    rows: int
    backbone: str
    pretrained: Interval
    rivals: list[Rival]
    outputs: list[OutputTransfer]
    hurt: list[str]
    notes: list[str]
    advice: str


def transfer(
    recipe: RecipeLike,
    *,
    subset: int | None = None,
    folds: int = 5,
    seeds: int = 3,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Transfer:
    """Compare a pretrained backbone with what needs no pretraining, by the same head on the same folds.

    Every model judges a whole fold, trained on the others: words and pixels would take long for more of them.

    The rivals: the same architecture with random weights (the mean of several draws), a model without a network (TF-IDF
    n-grams; colours, edges and pixels), and the most frequent class (or the mean). The random twins' features are kept
    like all others.

    Args:
        recipe: the backbone and the data; as of `hftl.run`.
        subset: use only about so many training rows, stratified.
        folds: of the cross-validation.
        seeds: how many twins with random weights.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        DataError: nothing can be compared with it.
        CutError: the backbone cannot be cut exactly.
    """
    recipe, _ = as_recipe(recipe)
    with reading(offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet) as reader:
        spec, target, data = reader.inputs(recipe)
        part = training_part(data, subset, recipe.seed)
        known = reader.rows(recipe, spec, target, part)
        asked, folds = folds, fold_count(known.split, folds)
        pretrained = probe_rows(known, folds, parts=1)
        rivals: dict[str, list[Score]] = {}
        notes = (
            [] if folds == asked else [f"cross-validated in {folds} folds, not {asked}: rows are divided by a column"]
        )
        try:
            twins = [Target(Untrained(target.backbone, recipe.seed + i), target.config) for i in range(seeds)]
            drawn = counted(RANDOM_WEIGHTS, twins, unit="twins", quiet=reader.quiet)
            made = [probe_rows(reader.rows(recipe, spec, twin, part), folds, parts=1) for twin in drawn]
            rivals[f"{RANDOM_WEIGHTS}, {seeds} times"] = made
        except (BackboneError, CutError) as error:
            notes.append(f"not compared with {RANDOM_WEIGHTS}: {error}")
        if isinstance(known.split.inputs, Texts) and known.criterion.needs_probabilities:
            notes.append(
                f"not compared with a model without a network: its scores are no probabilities, which "
                f"{known.criterion.name} asks for"
            )
        elif plain := _without_network(known, folds, pretrained.rows):
            rivals[NO_NETWORK] = [plain]
        else:
            notes.append(f"no model without a network is known for {target.backbone.modality}")
        blind = "most frequent class" if known.task.is_exclusive else "no features"
        try:
            rivals[blind] = [_constant(known, pretrained)]
        except DataError as error:
            # Of one answer for all rows, a correlation says nothing.
            notes.append(f"not compared with one answer for all rows: {error}")
        if not rivals:
            raise DataError(f"there is nothing to compare {target.backbone.name} with: {'; '.join(notes)}")
    gains = {name: _gain(pretrained, scores) for name, scores in rivals.items()}
    adjusted = holm([gain.p for gain in gains.values()])
    met = [
        Rival(name, _mean(rivals[name]), replace(gain, p=p), rivals[name])
        for (name, gain), p in zip(gains.items(), adjusted, strict=True)
    ]
    met.sort(key=lambda rival: -known.criterion.rank(rival.score.value))
    # What gives every row the same answer is no rival for a single class.
    seeing = next((rival for rival in met if len(rivals) == 1 or rival.name != blind), met[0])
    outputs = _by_output(known, pretrained, seeing.draws)
    hurt = [
        each.name for each in outputs if each.gain.value < 0 and each.gain.p < 1 - LEVEL and each.rival > each.blind
    ]
    verdict = _verdict(met)
    return Transfer(
        verdict,
        known.criterion.name,
        len(known.split),
        target.backbone.name,
        pretrained.interval,
        met,
        outputs,
        hurt,
        notes,
        _said_of_transfer(verdict, pretrained.interval, met, hurt),
    )


def _without_network(known: TrainingRows, folds: int, judged: np.ndarray) -> Score | None:
    """The model without a network for what the backbone reads, on the rows that it judged; None where none is known."""
    inputs, modality = known.split.inputs, known.target.backbone.modality
    if isinstance(inputs, Texts):
        given = folds_of(known.split, known.task, folds, known.seed)
        dealt = task_folds(known.labels, known.task, folds, known.seed).numpy() if given is None else given
        # Rows of a class that is all in one fold are held out of no head: scores of other rows could not be paired.
        dealt = np.where(np.isin(np.arange(len(dealt)), judged), dealt, -1)
        outputs = len(known.data.label_names)
        scores = text_scores(inputs, known.split.labels, dealt, task=known.task, num_labels=outputs)
        return _scored_alike(known, judged, scores, spread=SPREAD_OF_HEADS)
    if modality != "image":
        return None
    return probe_rows(replace(known, features=image_features(inputs)), folds, parts=1)


def _constant(known: TrainingRows, pretrained: Score) -> Score:
    """The same answer for every row: the mean of the labels."""
    answer = known.targets.mean(0).expand(len(pretrained.rows), -1).numpy()
    answer = as_logits(known.task, answer) if known.criterion.is_stated else answer
    return _scored_alike(known, pretrained.rows, answer)


def _scored_alike(known: TrainingRows, rows: np.ndarray, scores: np.ndarray, spread: float = 1.0) -> Score:
    """A rival's score, on the samples of rows that the backbone's own is made of."""
    groups = known.split.marks.groups
    return scored(known.criterion, known.split.labels, rows, scores, seed=known.seed, spread=spread, groups=groups)


def _mean(scores: Sequence[Score]) -> Interval:
    """The mean of several models' scores of the same rows."""
    if len(scores) == 1:
        return scores[0].interval
    mean = float(np.mean([score.interval.value for score in scores]))
    draws = np.mean([score.draws for score in scores], axis=0)
    return percentiles(mean, draws, spread=SPREAD_OF_HEADS).within(*scores[0].criterion.bounds)


def _gain(pretrained: Score, rivals: Sequence[Score]) -> Difference:
    """How much better the pretrained backbone is than the mean of several models on the same rows."""
    sign = pretrained.criterion.sign
    value = pretrained.interval.value - float(np.mean([rival.interval.value for rival in rivals]))
    draws = pretrained.draws - np.mean([rival.draws for rival in rivals], axis=0)
    gain = difference(sign * value, sign * draws, pretrained.units, spread=SPREAD_OF_HEADS)
    return unless_nothing(pretrained.criterion, gain)


def _by_output(known: TrainingRows, pretrained: Score, rivals: Sequence[Score]) -> list[OutputTransfer]:
    """Each class, label or target, the most hurt first."""
    labels = known.split.labels[pretrained.rows]

    def measured(times: Array) -> tuple[Array, Array]:
        """The pretrained backbone's and the rivals' mean, (b, C) each."""
        ours = each_output(known.task, pretrained.scores, labels, times)
        return ours, np.mean([each_output(known.task, rival.scores, labels, times) for rival in rivals], axis=0)

    (ours,), (theirs,) = measured(np.ones((1, len(labels))))
    groups = known.split.marks.groups
    groups = None if groups is None else groups[pretrained.rows]
    drawn = [measured(times) for times in resamples(len(labels), groups=groups, seed=known.seed)]
    draws = np.concatenate([one - other for one, other in drawn])
    occurring = [k for k in range(len(ours)) if np.isfinite(ours[k])]
    # The draw of the rival that does most like the pretrained backbone tells least.
    each_telling = [telling_rows(known.task, pretrained.scores, rival.scores, labels) for rival in rivals]
    telling = np.min(each_telling, axis=0).tolist()
    gains = {}
    for k in occurring:
        value = float(ours[k] - theirs[k])
        # A sample without a row of the class says nothing of it.
        drawn_gains = np.where(np.isfinite(draws[:, k]), draws[:, k], value)
        whole = difference(value, drawn_gains, pretrained.units, spread=SPREAD_OF_HEADS)
        gain = at_least_by_chance(whole, telling[k])
        gains[k] = unless_nothing(known.criterion, gain)
    adjusted = dict(zip(occurring, holm([gains[k].p for k in occurring]), strict=True))
    names, blind = known.data.label_names, _blind(known.task, labels, len(ours))
    outputs = [
        OutputTransfer(names[k], float(ours[k]), float(theirs[k]), float(blind[k]), replace(gains[k], p=adjusted[k]))
        for k in occurring
    ]
    return sorted(outputs, key=lambda each: each.gain.value)


def _blind(task: Task, labels: np.ndarray, outputs: int) -> Array:
    """F1 of always saying a class, average precision of always the same score, r2 of the mean: float64 (C,)."""
    if task.is_exclusive:
        share = np.bincount(labels, minlength=outputs) / len(labels)
        return 2 * share / (1 + share)
    return labels.mean(0).astype(np.float64) if task.has_classes else np.zeros(outputs)


def _verdict(met: Sequence[Rival]) -> str:
    certain = {rival.name: rival.gain.value for rival in met if rival.gain.p < 1 - LEVEL}
    if any(value < 0 for value in certain.values()):
        return "negative"
    # Pretraining is what random weights lack. A model without a network may do as well, which the advice says.
    names = [rival.name for rival in met]
    has_twins = any(name.startswith(RANDOM_WEIGHTS) for name in names)
    needed = [name for name in names if name != NO_NETWORK or not has_twins]
    return "positive" if all(name in certain for name in needed) else "none"


def _said_of_transfer(verdict: str, pretrained: Interval, met: Sequence[Rival], hurt: Sequence[str]) -> str:
    best = met[0]
    against = f"{pretrained} against {best.score} of the best rival ({best.name})"
    if verdict == "positive":
        worse = f", but it hurts {', '.join(hurt[:5])}" if hurt else ""
        as_good = [rival for rival in met if rival.gain.p >= 1 - LEVEL]
        same = " A model without a network is as good within noise, and cheaper." if as_good else ""
        return f"The transfer is positive: {against}{worse}.{same}"
    if verdict == "negative":
        return f"The transfer is negative: {against}; take another backbone, or none."
    return f"No transfer can be seen: {against}; try another backbone (hftl rank), or label more rows."
