"""``rank``: which of several backbones suits the data, and which of those that are equally good is cheapest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from hftl.backbones.loading import load_backbone
from hftl.errors import HftlError, RecipeError
from hftl.intervals import Interval
from hftl.plugins.registry import backbone_claims, find
from hftl.plugins.spec import BackboneOptions
from hftl.progress import counted
from hftl.recipes import Recipe
from hftl.runs.again import RecipeLike, as_recipe, reference_of
from hftl.scored import Score
from hftl.scout.answer import Answer
from hftl.scout.cost import parameters, rows_per_second
from hftl.scout.measures import HScore, h_score, log_evidence
from hftl.scout.probe import neighbour_rows, probe_rows, tied_groups
from hftl.scout.stored import TrainingRows, reading
from hftl.wording import named_error, plural


@dataclass(frozen=True)
class RankedBackbone:
    """What one backbone's features are worth on some data.

    Attributes:
        backbone: its reference.
        probe: the exact linear head on held-out rows.
        knn: the 20 nearest rows, nothing trained.
        log_evidence: LogME; compares backbones on the same rows.
        h_score: the regularised H-score beside its value under permuted labels; None where labels are no classes.
        parameters: numbers in the checkpoint.
        rows_per_second: measured on this machine.
        bytes_per_row: what a row takes in the store.
        notes: what a person should know about these numbers.
        score: the probe with its bootstrap draws.
        group: 1 for the best and all that are the same within noise, 2 for the next, …
    """

    backbone: str
    probe: Interval
    knn: Interval
    log_evidence: float
    h_score: HScore | None
    parameters: int
    rows_per_second: float
    bytes_per_row: int
    notes: list[str]
    score: Score = field(repr=False, compare=False)
    group: int = 0


@dataclass(frozen=True)
class FailedBackbone:
    """A backbone that could not be ranked, and why."""

    backbone: str
    why: str


@dataclass(frozen=True, repr=False)
class Ranking(Answer):
    """Backbones ordered by their probe.

    Attributes:
        metric: the probe's and k-NN's: the one that chooses.
        rows: training rows that were used.
        folds: of the cross-validation.
        backbones: from best to worst.
        failed: those that could not be used.
        advice: one sentence.
        command: what runs the advised backbone.
    """

    table: ClassVar[str] = "backbones"

    metric: str
    rows: int
    folds: int
    backbones: list[RankedBackbone]
    failed: list[FailedBackbone]
    advice: str
    command: str


def rank(
    recipe: RecipeLike,
    backbones: Sequence[str],
    *,
    subset: int | None = None,
    folds: int = 5,
    name: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Ranking:
    """Rank backbones by a cross-validated linear probe on the recipe's training rows.

    Where words have labels, whole sentences are held out, and F1 of entities is compared.
    Scores of all pairs are compared on the same rows by a paired bootstrap with Holm's correction; what is the same
    within noise stands in one group, of which the advice takes the fastest. Features stay in the store, so running the
    winner computes at most the rows that were not used.

    Args:
        recipe: the data, and how features are made, as of `hftl.run`; its own backbone is ranked only if it is among
            the others.
        backbones: references.
        subset: use only about so many training rows, stratified.
        folds: of the cross-validation.
        name: the recipe as it is written behind ``hftl run``, for the command; None for what was given, or RECIPE.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: no backbone could be used, or the data cannot be.
    """
    name = name or reference_of(recipe)
    recipe, _ = as_recipe(recipe)
    asked = list(dict.fromkeys(backbones))
    if not asked:
        raise RecipeError("no backbone to rank: give --backbones A,B,C, or --all")
    ranked: list[RankedBackbone] = []
    failed: list[FailedBackbone] = []
    metric, rows = "", 0
    with reading(
        offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet, of_words=True
    ) as reader:
        for reference in counted("rank", asked, unit="backbones", quiet=reader.quiet):
            try:
                known = reader.training(recipe.model_copy(update={"backbone": reference}), subset)
                metric, rows = known.criterion.name, len(known.split)
                ranked.append(_ranked(reference, known, folds))
            except HftlError as error:
                failed.append(FailedBackbone(reference, str(error)))
            except (Exception, SystemExit) as error:  # whatever a backbone's own code raises
                failed.append(FailedBackbone(reference, named_error(error)))
            if failed and failed[-1].backbone == reference:
                reader.say.print(f"          {reference} is left out: {failed[-1].why}")
    if not ranked:
        raise RecipeError(f"no backbone could be ranked; {failed[0].backbone}: {failed[0].why}")
    ranked.sort(key=lambda each: -each.score.merit)
    groups = tied_groups([each.score for each in ranked])
    ranked = [replace(each, group=group) for each, group in zip(ranked, groups, strict=True)]
    advice, command = _advised_backbone(ranked, metric, name)
    return Ranking(metric, rows, folds, ranked, failed, advice, command)


def registered_alike(recipe: Recipe) -> list[str]:
    """Names of all registered backbones that read what the recipe's own backbone reads.

    Raises:
        UserError: the recipe's backbone cannot be found or loaded.
    """
    spec = find(recipe.backbone)
    modality = spec.modality
    if modality == "any":
        modality = load_backbone(spec, BackboneOptions(recipe.max_length)).modality
    claims = backbone_claims().values()
    return [specs[0].name for specs in claims if len(specs) == 1 and specs[0].modality == modality]


def _ranked(reference: str, known: TrainingRows, folds: int) -> RankedBackbone:
    task, labels = known.task, known.labels
    probe = probe_rows(known, folds)
    neighbours = neighbour_rows(known)
    notes = ["its head reads every token: their mean was probed"] if known.averaged else []
    if alone := len(known.split) - len(probe.rows):
        notes.append(
            f"{plural(alone, 'sentence')} with a tag that only one fold has: not held out"
            if task.of_words
            else f"{alone:,} rows stand alone in their class and were not held out"
        )
    return RankedBackbone(
        reference,
        probe.interval,
        neighbours.interval,
        log_evidence(known.features, known.targets.double()),
        h_score(known.features, labels, seed=known.seed) if task.unit.is_exclusive else None,
        parameters(known.target),
        rows_per_second(known),
        known.bytes_per_row,
        notes,
        probe,
    )


def cheapest_of_best(ranked: Sequence[RankedBackbone]) -> RankedBackbone:
    """The fastest of those that are the same within noise as the best."""
    return max((each for each in ranked if each.group == ranked[0].group), key=lambda each: each.rows_per_second)


def _advised_backbone(ranked: Sequence[RankedBackbone], metric: str, name: str) -> tuple[str, str]:
    chosen = cheapest_of_best(ranked)
    equals = [each for each in ranked if each.group == chosen.group]
    command = f"hftl run {name} {shlex.join(['--backbone', chosen.backbone])}"
    if len(ranked) == 1:
        return f"{chosen.backbone} is the only one that could be ranked: {metric} {chosen.probe}.", command
    if len(equals) == 1:
        return f"{chosen.backbone} is the best: {metric} {chosen.probe}, the others are worse beyond noise.", command
    others = f"{len(equals)} backbones are the same within noise"
    return f"{others}; {chosen.backbone} is the fastest of them: {metric} {chosen.probe}.", command
