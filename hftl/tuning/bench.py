"""One trial: a recipe, trained on its training rows and judged on its validation rows. Test rows are not read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from hftl.backbones.protocol import Target
from hftl.data import Data
from hftl.errors import ConvergenceError, RecipeError, UserError
from hftl.export.trained import Trained
from hftl.frozen.features import StoredFeatures
from hftl.frozen.recipe import chooses, inputs_of, memory_of, probe_of, views_of
from hftl.methods import Head
from hftl.pipeline import check_aim, check_method, needs_features, solved_head, start_of, starting_features
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.recipes import Recipe
from hftl.scored import scored
from hftl.terminal import Terminal

T = TypeVar("T")
Watching: TypeAlias = Callable[[int, float], None]

# Backbones, depths or poolings whose rows are kept in memory; others are read from the store again.
KEPT = 4


class Pruned(Exception):  # noqa: N818 (nothing went wrong)
    """A trial that need not go on."""


@dataclass(frozen=True)
class Start:
    """What trials of one backbone begin with.

    Attributes:
        spec: who registered the backbone.
        target: the backbone, and the configuration of what it becomes.
        data: training and validation rows; the latter stand in the place of the test rows too.
        features: of these rows; None where a method needs none.
    """

    spec: BackboneSpec
    target: Target
    data: Data
    features: StoredFeatures | None


@dataclass(frozen=True)
class TrialScore:
    """What a trial came to.

    Attributes:
        value: of the metric on the validation rows.
        spread: standard deviation that other validation rows would give it.
        epochs: how many were trained; None for a head.
    """

    value: float
    spread: float
    epochs: int | None


class Bench:
    """Trains what trials try; what they share (rows, features, the solved head) is had once.

    Args:
        say: for what is found, inferred and computed.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle.
        on_bad_row: ``"error"`` or ``"skip"``.
    """

    def __init__(
        self,
        say: Terminal,
        *,
        offline: bool = False,
        allow_pickle: bool = False,
        on_bad_row: str = "error",
    ) -> None:
        self.say = say
        self.offline, self.allow_pickle, self.on_bad_row = offline, allow_pickle, on_bad_row
        self._starts: dict[Any, Start] = {}
        self._heads: dict[Any, Trained] = {}

    def start(self, recipe: Recipe) -> Start:
        """The backbone, the rows and their features, of which those that are stored are not computed again.

        Raises:
            UserError: something of it cannot be used.
        """
        # A bound is of what is in memory together.
        kept = KEPT if recipe.memory is None else 1
        return _made_once(self._starts, _start_of(recipe), lambda: self._started(recipe), kept)

    def judge(self, recipe: Recipe, where: Path, watch: Watching, *, spread: bool = False) -> TrialScore:
        """Train a recipe's model and judge it.

        Args:
            recipe: what to try; it brings, or sets aside, a validation split.
            where: the folder for checkpoints.
            watch: is told the metric after each epoch; raises `Pruned` to end the trial.
            spread: whether to tell how far other validation rows would have moved the value.

        Raises:
            UserError: the recipe does not fit its backbone or its data.
            HftlError: training failed.
        """
        start = self.start(recipe)
        data, task = start.data, start.data.task
        trained = self._trained(recipe, start, where, watch)
        logits = trained.logits.numpy()
        criterion = chooses(recipe, task)
        # As a run decides: where labels are decided one by one, at the thresholds that it would export.
        thresholds = trained.report.get("thresholds")
        names = data.label_names
        value = criterion.value(logits, data.test.labels, thresholds, label_names=names)
        if not math.isfinite(value):
            raise ConvergenceError(f"{criterion.name} is undefined on the validation rows")
        moved = 0.0
        if spread:
            every, groups = np.arange(len(data.test)), data.test.marks.groups
            found = scored(
                criterion,
                data.test.labels,
                every,
                logits,
                seed=recipe.seed,
                groups=groups,
                thresholds=thresholds,
                label_names=names,
            )
            moved = float(found.draws.std())
        epochs = trained.report.get("epochs")
        return TrialScore(value, moved, len(epochs) - 1 if epochs else None)

    def _started(self, recipe: Recipe) -> Start:
        options = BackboneOptions(recipe.max_length, self.offline, self.allow_pickle)
        # The first says what was found; the others differ in what the search names.
        say = self.say if not self._starts else Terminal(quiet=True)
        spec, target, data = inputs_of(recipe, say, options)
        if data.task.of_words:
            raise UserError(f"{data.ref}: each word has a label, and tuning judges whole rows only: run the recipe")
        check_aim(recipe, data)
        if data.validation is None:
            raise RecipeError("tuning chooses on a validation split: add --validation-size 0.2")
        # Whatever judges a test split judges this one; the data's own is not looked at.
        data = replace(data, test=replace(data.validation, name="test"), outside=None)
        features = None
        if needs_features(recipe):
            how: dict[str, Any] = {"on_bad_row": self.on_bad_row, "quiet": self.say.quiet, "trust": ()}
            how["memory"] = memory_of(recipe, data, say)
            features = starting_features(recipe, spec, target, data, say, **how)
        elif self.on_bad_row == "skip":
            # Brought only here, as PEFT is.
            from hftl.finetune.rows import without_bad_rows

            data, _ = without_bad_rows(target.backbone, data)
        return Start(spec, target, features.readable(data) if features else data, features)

    def _trained(self, recipe: Recipe, start: Start, where: Path, watch: Watching) -> Trained:
        check_method(recipe, start.target, where, resume=False, track=())
        head = self._head(recipe, start) if start.features else None
        if isinstance(recipe.method, Head):
            assert head is not None
            return head
        # Brought only here: PEFT takes a second to import.
        from hftl.finetune.train import finetune

        criterion = chooses(recipe, start.data.task)
        metric = criterion.name

        def log(event: str, **values: Any) -> None:
            if event == "epoch" and values["epoch"] and values.get(metric) is not None:
                watch(values["epoch"], values[metric])

        features = start.features
        return finetune(
            recipe.method,
            start.target,
            start.data,
            criterion=criterion,
            start=start_of(recipe, start.target, start.data, head),
            aim=recipe.aim,
            seed=recipe.seed,
            folder=where,
            known=features.digests if features else None,
            log=log,
            quiet=self.say.quiet,
        )

    def _head(self, recipe: Recipe, start: Start) -> Trained:
        key = (_start_of(recipe), probe_of(recipe).model_dump_json())
        silent = Terminal(quiet=self.say.quiet)
        return _made_once(
            self._heads, key, lambda: solved_head(recipe, start.target, start.features, start.data, silent), KEPT
        )


def _start_of(recipe: Recipe) -> tuple[Any, ...]:
    """What of a recipe its start depends on; all other fields are the same in all trials."""
    probe = probe_of(recipe)
    method = (
        probe.pooling,
        probe.mixed_precision,
        probe.storage,
        probe.quantize,
        # A hidden layer is not trained from blocks.
        probe.hidden is None,
        isinstance(recipe.method, Head),
        needs_features(recipe),
        views_of(recipe),
    )
    return (recipe.backbone, recipe.depth, recipe.max_length, recipe.seed, *method)


def _made_once(memory: dict[Any, T], key: Any, make: Callable[[], T], most: int) -> T:
    """What was made for a key, made if it is not there; the oldest goes where there are too many."""
    if key not in memory:
        if len(memory) >= most:
            memory.pop(next(iter(memory)))
        memory[key] = make()
    return memory[key]
