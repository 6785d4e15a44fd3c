"""``layers``: how deep a backbone has to be for the data, and what that says of cutting and of freezing it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hftl.backbones.protocol import Target
from hftl.data import Data
from hftl.frozen.depths import stack_of
from hftl.frozen.recipe import probe_of, stored_features, view_of
from hftl.frozen.view import Pooling, View
from hftl.intervals import LEVEL, Interval
from hftl.plugins.spec import BackboneSpec
from hftl.recipes import Recipe
from hftl.scout.answer import Answer
from hftl.scout.cost import rows_per_second
from hftl.scout.probe import Score, compare, linear_probe
from hftl.scout.stored import Reader, TrainingRows, reading, training_part
from hftl.terminal import Terminal


@dataclass(frozen=True)
class DepthScore:
    """What a backbone's first blocks are worth on some data.

    Attributes:
        depth: how many blocks.
        probe: the exact linear head on held-out rows, on what the recipe's own head would read.
        pooled: the same on other poolings of the tokens: ``mean`` and ``cls``, where the backbone reads texts.
        parameters: numbers in the model that a run at this depth exports.
        same: whether the probe is the same within noise as the best depth's.
        score: the probe with its bootstrap draws.
    """

    depth: int
    probe: Interval
    pooled: dict[str, Interval]
    parameters: int
    same: bool
    score: Score = field(repr=False, compare=False)


@dataclass(frozen=True)
class Layers(Answer):
    """A probe for each depth of a backbone.

    Attributes:
        metric: the probe's: ``accuracy``, ``map`` or ``r2``.
        rows: training rows that were used.
        folds: of the cross-validation.
        depths: from 1 to all of its blocks.
        best: the depth with the best probe.
        chosen: the shallowest depth that is the same within noise as the best.
        speedup: how many times as many rows a second the chosen depth reads as all blocks do, measured on this machine.
        advice: one sentence.
        commands: what runs the chosen depth; and what freezes as many blocks and trains the others, where there are
            others.
    """

    metric: str
    rows: int
    folds: int
    depths: list[DepthScore]
    best: int
    chosen: int
    speedup: float
    advice: str
    commands: list[str]


def layers(
    recipe: Recipe,
    *,
    subset: int | None = None,
    folds: int = 5,
    name: str = "RECIPE",
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Layers:
    """Probe every depth of a recipe's backbone on its training rows; one pass of the backbone serves all depths.

    Each depth is compared with the best one on the same rows by a paired bootstrap with the corrected variance of
    Nadeau & Bengio. The features of all rows stay in the store, so that a run at any depth computes none of them again.

    Args:
        recipe: the backbone, the data, and what its head reads; its own depth does not matter.
        subset: use, and compute, only about so many training rows, stratified.
        folds: of the cross-validation.
        name: the recipe's name, for the commands.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the recipe or its data cannot be used, or the backbone has no depths.
        CutError: a depth cannot be read from the whole model's pass.
    """
    recipe = recipe.model_copy(update={"depth": None})
    with reading(offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet) as reader:
        spec, target, data = reader.inputs(recipe)
        depths = range(1, stack_of(target.backbone).blocks + 1)
        own = view_of(recipe)
        poolings: Sequence[Pooling] = ("mean", "cls") if target.backbone.wants == "text" else ()
        views = [own, *(replace(own, pooling=pooling) for pooling in poolings if pooling != own.pooling)]
        kept = data if subset is None else training_part(data, subset, recipe.seed)
        # The deepest first: by it the store remembers how many rows the device takes at once.
        every = [replace(view, depth=depth) for depth in reversed(depths) for view in views]
        stored_features(spec, target, kept, every, reader.say, on_bad_row=on_bad_row, quiet=reader.quiet)
        asked = _Asked(recipe, spec, target, training_part(data, subset, recipe.seed), reader)
        known = {depth: asked.rows(own, depth) for depth in depths}
        scores = {depth: _probed(rows, folds) for depth, rows in known.items()}
        best = max(depths, key=lambda depth: (scores[depth].interval.value, -depth))
        same = {depth: compare(scores[best], scores[depth], folds).p >= 1 - LEVEL for depth in depths}
        chosen = min(depth for depth in depths if same[depth])
        curve = [
            DepthScore(
                depth,
                scores[depth].interval,
                {view.pooling: _probed(asked.rows(view, depth), folds).interval for view in views[1:]},
                sum(value.numel() for value in known[depth].target.skeleton().parameters()),
                same[depth],
                scores[depth],
            )
            for depth in depths
        ]
        whole = known[depths[-1]]
        speedup = rows_per_second(known[chosen]) / rows_per_second(whole) if chosen < depths[-1] else 1.0
    metric = whole.task.metric
    advice = _sentence(curve, best, chosen, metric, speedup)
    commands = [["hftl", "run", name, "--depth", str(chosen)]]
    if chosen < len(curve):
        commands.append(["hftl", "run", name, "--method", "partial", "--set", f"method.freeze={chosen}"])
    shown = [shlex.join(command) for command in commands]
    return Layers(metric, len(whole.split), folds, curve, best, chosen, round(speedup, 3), advice, shown)


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
        silent = replace(self.reader, say=Terminal(quiet=True), quiet=True)
        return silent.rows(made, self.spec, self.target.at_depth(depth), self.data)


def _probed(known: TrainingRows, folds: int) -> Score:
    labels = len(known.data.label_names)
    return linear_probe(known.features, known.labels, task=known.task, num_labels=labels, folds=folds, seed=known.seed)


def _sentence(curve: Sequence[DepthScore], best: int, chosen: int, metric: str, speedup: float) -> str:
    scores: Mapping[int, Interval] = {each.depth: each.probe for each in curve}
    if chosen == len(curve):
        return f"All {chosen} blocks are needed: {metric} {scores[chosen]}, and with fewer it is worse beyond noise."
    same = f"is the same within noise as depth {best}, {metric} {scores[best]}" if chosen != best else "is the best"
    return (
        f"Depth {chosen} of {len(curve)} {same}: {metric} {scores[chosen]}, {speedup:.1f} times as fast; where the "
        f"others are fine-tuned, the first {chosen} blocks can stay frozen."
    )
