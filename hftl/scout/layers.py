"""``layers``: how deep a backbone has to be for the data, and what that says of cutting and of freezing it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from accelerate import PartialState
from torch import Tensor, nn

from hftl.backbones.batching import batch_groups, on_device
from hftl.backbones.protocol import Target
from hftl.data import Data
from hftl.data.division import fold_count
from hftl.errors import RecipeError
from hftl.frozen.depths import stack_of
from hftl.frozen.recipe import probe_of, stored_features, view_of
from hftl.frozen.view import View
from hftl.intervals import Difference, Interval
from hftl.methods import Pooling
from hftl.onednn import speed_up
from hftl.plugins.spec import BackboneSpec
from hftl.progress import counted
from hftl.recipes import Recipe
from hftl.runs.again import RecipeLike, as_recipe, reference_of
from hftl.scored import Score
from hftl.scout.answer import Answer
from hftl.scout.cost import measured_once
from hftl.scout.probe import ahead_by, probe_rows, tied_groups
from hftl.scout.stored import Reader, TrainingRows, reading, training_part

# Noise may hide a loss that nobody would give away: the chosen depth's probe is at most so far below the best one's.
MOST_LOST = 0.005
# What tells how fast a depth is: rows of a batch, and how often each model runs on it.
TIMED_BATCH_ROWS, ROUNDS = 16, 5


@dataclass(frozen=True)
class DepthScore:
    """What a backbone's first blocks are worth on some data.

    Attributes:
        depth: how many blocks.
        probe: the exact linear head on held-out rows, on what the recipe's own head would read.
        parameters: numbers in the model that a run at this depth exports.
        same: whether the depth is of the first group of `tied_groups`, in which nothing better differs from the best.
        score: the probe with its bootstrap draws.
    """

    depth: int
    probe: Interval
    parameters: int
    same: bool
    score: Score = field(repr=False, compare=False)


@dataclass(frozen=True)
class Together:
    """One head on the features of several depths side by side (as Head2Toe, Evci et al. 2022).

    No format that is exported holds such a head, so it says what depths know together, and is no model.

    Attributes:
        depths: which.
        probe: the exact linear head on held-out rows.
        gain: over the best single depth.
    """

    depths: list[int]
    probe: Interval
    gain: Difference


@dataclass(frozen=True, repr=False)
class Layers(Answer):
    """A probe for each depth of a backbone.

    Attributes:
        metric: the probe's: the one that chooses.
        rows: training rows that were used.
        folds: of the cross-validation.
        depths: from 1 to all of its blocks.
        best: the depth with the best probe.
        chosen: the shallowest depth that is the same within noise as the best, and at most half a point below it.
        pooled: the probe of the chosen depth on other poolings of the tokens, ``mean`` and ``cls``, where the backbone
            reads texts.
        speedup: how many times as fast the chosen depth's forward is as that of all blocks, measured on this machine.
        advice: one sentence.
        commands: what runs the chosen depth; and what freezes as many blocks and trains the others, where there are
            others.
        together: one head on the depths that were asked for; None where none were.
    """

    table: ClassVar[str] = "depths"

    metric: str
    rows: int
    folds: int
    depths: list[DepthScore]
    best: int
    chosen: int
    pooled: Mapping[str, Interval]
    speedup: float
    advice: str
    commands: list[str]
    together: Together | None = None


def layers(
    recipe: RecipeLike,
    *,
    together: Sequence[int] = (),
    subset: int | None = None,
    folds: int = 5,
    name: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Layers:
    """Probe every depth of a recipe's backbone on its training rows; one pass of the backbone serves all depths.

    All pairs of depths are compared on the same rows by a paired bootstrap with Holm's correction. The features of all
    rows stay in the store, so that a run at any depth computes none of them again.

    Args:
        recipe: the backbone, the data, and what its head reads; its own depth does not matter; as of `hftl.run`.
        together: depths whose features are probed side by side as well.
        subset: use, and compute, only about so many training rows, stratified.
        folds: of the cross-validation.
        name: the recipe as it is written behind ``hftl run``, for the command; None for what was given, or RECIPE.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the recipe or its data cannot be used, or the backbone has no depths.
        CutError: a depth cannot be read from the whole model's pass.
    """
    name = name or reference_of(recipe)
    recipe, _ = as_recipe(recipe)
    recipe = recipe.model_copy(update={"depth": None})
    with reading(offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet) as reader:
        spec, target, data = reader.inputs(recipe)
        depths = range(1, stack_of(target.backbone).blocks + 1)
        if unknown := [depth for depth in together if depth not in depths]:
            raise RecipeError(f"layers {unknown[0]}: {target.backbone.name} has the depths 1 to {depths[-1]}")
        own = view_of(recipe, target.backbone)
        poolings: Sequence[Pooling] = ("mean", "cls") if target.backbone.wants == "text" else ()
        views = [own, *(replace(own, pooling=pooling) for pooling in poolings if pooling != own.pooling)]
        kept = data if subset is None else training_part(data, subset, recipe.seed)
        # The deepest first: by it the store remembers how many rows the device takes at once.
        every = [replace(view, depth=depth) for depth in reversed(depths) for view in views]
        stored_features(spec, target, kept, every, reader.say, on_bad_row=on_bad_row, quiet=reader.quiet, gather=False)
        asked = _Asked(recipe, spec, target, training_part(data, subset, recipe.seed), reader)
        whole = asked.rows(own, depths[-1])
        folds = fold_count(whole.split, folds)
        # The features of one depth at a time beside the whole's: of all together there are as many times as many.
        scores = {
            depth: probe_rows(asked.rows(own, depth), folds)
            for depth in counted("layers", depths, unit="depths", quiet=reader.quiet)
        }
        order = sorted(depths, key=lambda depth: (-scores[depth].merit, depth))
        best, groups = order[0], tied_groups([scores[depth] for depth in order])
        same = {depth: group == 1 for depth, group in zip(order, groups, strict=True)}
        enough = scores[best].merit - _most_lost(scores[best])
        chosen = min(depth for depth in depths if same[depth] and scores[depth].merit >= enough)
        curve = [
            DepthScore(
                depth,
                scores[depth].interval,
                sum(value.numel() for value in target.at_depth(depth).skeleton().parameters()),
                same[depth],
                scores[depth],
            )
            for depth in depths
        ]
        pooled: dict[str, Interval] = {
            view.pooling: probe_rows(asked.rows(view, chosen), folds).interval for view in views[1:]
        }
        beside = {depth: asked.rows(own, depth) for depth in sorted(set(together))}
        side_by_side = _together(beside, scores[best], folds) if beside else None
        speedup = 1.0
        if chosen < depths[-1]:
            short = asked.rows(own, chosen)
            what = f"{short.stored.id} {whole.stored.id}"
            speedup = measured_once(what, lambda: times_as_fast(short, whole))
    metric = whole.criterion.name
    advice = _sentence(curve, best, chosen, metric, speedup)
    commands = [f"hftl run {name} --depth {chosen}"]
    if chosen < len(curve):
        commands.append(f"hftl run {name} --method partial --freeze {chosen}")
    return Layers(
        metric, len(whole.split), folds, curve, best, chosen, pooled, round(speedup, 3), advice, commands, side_by_side
    )


@dataclass(frozen=True)
class _Asked:
    """What the depths are asked of; by now everything is stored."""

    recipe: Recipe
    spec: BackboneSpec
    target: Target
    data: Data
    reader: Reader

    def rows(self, view: View, depth: int) -> TrainingRows:
        """The training rows' features in a view at a depth."""
        head = probe_of(self.recipe).model_copy(update={"pooling": view.pooling})
        made = self.recipe.model_copy(update={"method": head})
        # What was computed and reused was said once.
        return self.reader.silent().rows(made, self.spec, self.target.at_depth(depth), self.data)


def _most_lost(best: Score) -> float:
    """How much of the metric may be lost: half a point, or half a hundredth of what is on no scale of points."""
    return MOST_LOST * (1.0 if best.criterion.is_share else abs(best.interval.value))


def _together(beside: Mapping[int, TrainingRows], best: Score, folds: int) -> Together:
    features = torch.cat([rows.features for rows in beside.values()], 1)
    score = probe_rows(replace(next(iter(beside.values())), features=features), folds)
    return Together(list(beside), score.interval, ahead_by(score, best))


def times_as_fast(short: TrainingRows, whole: TrainingRows) -> float:
    """How many times as fast one depth's forward is as another's, preprocessing left out.

    Both run in turn on the same few rows, because a machine that others use is not equally fast at two moments.
    """
    device = PartialState().device
    backbone, inputs = whole.target.backbone, whole.split.inputs
    chosen = range(min(TIMED_BATCH_ROWS, len(whole.split)))
    encoded = backbone.encode([inputs[i] for i in chosen], [inputs.name(i) for i in chosen])
    groups = batch_groups(encoded, equal_lengths=bool(whole.stored.content.equal_lengths))
    batches = [on_device(backbone.collate([encoded[i] for i in group]), device) for group in groups]
    models = [rows.target.build()[0].to(device) for rows in (short, whole)]
    for model in models:
        speed_up(model)
        _forward_seconds(model, batches)
    ratios = []
    for _ in range(ROUNDS):
        fast, slow = (_forward_seconds(model, batches) for model in models)
        ratios.append(slow / fast)
    return statistics.median(ratios)


def _forward_seconds(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    started = time.monotonic()
    with torch.inference_mode():
        for batch in batches:
            # A device that works on its own is waited for by reading from it.
            model(**batch).logits.sum().item()
    return time.monotonic() - started


def _sentence(curve: Sequence[DepthScore], best: int, chosen: int, metric: str, speedup: float) -> str:
    scores: Mapping[int, Interval] = {each.depth: each.probe for each in curve}
    if chosen == len(curve):
        lost = "half a point" if curve[0].score.criterion.is_share else "half a hundredth"
        return f"All {chosen} blocks are needed: {metric} {scores[chosen]}, and fewer lose more than noise or {lost}."
    first = "the first block" if chosen == 1 else f"the first {chosen} blocks"
    same = f"is the same within noise as depth {best}, {metric} {scores[best]}" if chosen != best else "is the best"
    return (
        f"Depth {chosen} of {len(curve)} {same}: {metric} {scores[chosen]}, {speedup:.1f} times as fast; where the "
        f"others are fine-tuned, {first} can stay frozen."
    )
