"""The steps of tuning, in their order: search, choose, repeat the choice, run it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftl.criterion import Criterion
from hftl.errors import ConvergenceError, Interrupted, UserError
from hftl.frozen.recipe import chooses
from hftl.progress import Progress
from hftl.recipes import Recipe, changed
from hftl.runs.provenance import record_of
from hftl.terminal import Terminal
from hftl.tuning.bench import Bench, Pruned
from hftl.tuning.search import Search
from hftl.tuning.study import THE_RECIPE, Trials
from hftl.tuning.tuned import TriedTrial
from hftl.wording import named_error, one_line, printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

LARGEST_SEED = 2**32 - 1
# What a trial may run into that says something of its values, and nothing of the machine or of hftl.
OF_ITS_VALUES = (UserError, ConvergenceError, torch.OutOfMemoryError)


@dataclass
class Job:
    """A search of a recipe's values.

    Attributes:
        name: the recipe's name.
        recipe: as it stands, with a validation split.
        space: what may be tried.
        bench: trains and judges.
        folder: of the study.
        say: for a line after each trial.
    """

    name: str
    recipe: Recipe
    space: Search
    bench: Bench
    folder: Path
    say: Terminal

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """What scores depend on, beside the values that are tried."""
        start = self.bench.start(self.recipe)
        record = record_of(self.name, self.recipe, start.spec, start.target.backbone, start.data, self.criterion)
        return {
            THE_RECIPE: record.recipe,
            "the backbone": record.backbone.identity,
            "the data": record.data.identity,
            "what is searched": self.space.spelt(),
            "the metric": self.criterion.name,
        }

    @property
    def criterion(self) -> Criterion:
        """What chooses."""
        return chooses(self.recipe, self.bench.start(self.recipe).data.task)

    @property
    def metric(self) -> str:
        """Its name."""
        return self.criterion.name

    @cached_property
    def trials(self) -> Trials:
        """The trials of the search."""
        return self._trials("search", self.made_with)

    # ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────

    def search(self, wanted: int) -> None:
        """Try until so many trials ended, those of earlier processes and of others counted; all, where there are fewer.

        Raises:
            Interrupted: it was asked to stop.
        """
        if own := self.space.own(self.recipe):
            # Then what is chosen is never worse than the recipe as it stands, on these rows.
            self.trials.plan([own])
        if self.space.size <= wanted:
            wanted = int(self.space.size)
            self.trials.plan(list(self.space.combinations()))
            self.say.print(f"search    all {wanted:,} combinations")
        done = len(self.trials.ended())
        if done:
            self.say.print(f"search    {done:,} trials are there already")
        with Progress("tune", wanted, quiet=self.say.quiet, unit="trials", done=min(done, wanted)) as progress:
            while trial := self.trials.deal(wanted, self.space.suggested, self.say.print):
                self._try(trial)
                progress.advance()

    def best(self) -> FrozenTrial:
        """The best trial; of equals the first, which is the recipe as it stands where that is among them.

        Raises:
            UserError: every trial failed.
        """
        ended = self.trials.ended()
        finished = [trial for trial in ended if trial.state.name == "COMPLETE"]
        if not finished:
            raise UserError(f"all {len(ended):,} trials failed; the first one: {ended[0].user_attrs.get('why')}")
        return max(finished, key=lambda trial: (self.criterion.rank(trial.value), -trial.number))

    def tried(self) -> list[TriedTrial]:
        """All trials that ended."""
        return [_tried(trial) for trial in self.trials.ended()]

    def _try(self, trial: Trial) -> None:
        values = dict(trial.params)
        twin = next((each for each in self.trials.ended() if each.params == values), None)
        if twin is not None:
            # The same seed and the same values give the same model.
            same = twin.value if twin.state.name == "COMPLETE" else None
            about = {name: twin.user_attrs[name] for name in ("state", "epochs") if name in twin.user_attrs}
            self.trials.tell(trial, same, **about, seconds=0.0, why=f"as trial {twin.number}")
            self._print(self.trials, trial, f"trial {trial.number}")
        else:
            self._judged(self.trials, trial, self.recipe, f"trial {trial.number}")

    # ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────

    def repeat(self, best: FrozenTrial, times: int) -> list[FrozenTrial]:
        """The chosen recipe trained with fresh seeds, which draw fresh validation rows where these are drawn.

        Returns:
            The repeats that ended, at most so many.

        Raises:
            Interrupted: it was asked to stop.
        """
        if not times:
            return []
        chosen = changed(self.recipe, best.params)
        repeats = self._trials(f"repeats of trial {best.number}", {**self.made_with, "what is repeated": best.params})
        repeats.plan([{"seed": (self.recipe.seed + number) % (LARGEST_SEED + 1)} for number in range(1, times + 1)])
        with Progress("repeat", times, quiet=self.say.quiet, unit="seeds", done=len(repeats.ended())) as progress:
            while trial := repeats.deal(
                times, lambda trial: trial.suggest_int("seed", 0, LARGEST_SEED), self.say.print
            ):
                self._judged(repeats, trial, chosen, f"seed {trial.params['seed']}", spread=True)
                progress.advance()
        return repeats.ended()[:times]

    # ── one trial ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _trials(self, name: str, made_with: Mapping[str, Any]) -> Trials:
        return Trials(
            self.folder, name, maximize=self.criterion.greater_is_better, made_with=made_with, seed=self.recipe.seed
        )

    def _judged(self, trials: Trials, trial: Trial, recipe: Recipe, what: str, *, spread: bool = False) -> None:
        """Train and judge, and keep what came of it; an interruption leaves the trial to be done again."""
        started, reached = time.monotonic(), 0

        def watch(epoch: int, value: float) -> None:
            nonlocal reached
            reached = epoch
            # Repeats are few and their scores are wanted whole.
            if not spread and trials.report(trial, epoch, value):
                raise Pruned

        def tell(value: float | None, **about: Any) -> None:
            trials.tell(trial, value, seconds=round(time.monotonic() - started, 3), **about)

        try:
            judged = self.bench.judge(changed(recipe, trial.params), trials.place(trial), watch, spread=spread)
        except Pruned:
            tell(None, state="pruned", epochs=reached)
        except OF_ITS_VALUES as error:
            why = one_line(error) if isinstance(error, (UserError, ConvergenceError)) else named_error(error)
            tell(None, state="failed", why=why)
        except BaseException as error:
            trials.give_up(trial)
            if isinstance(error, Interrupted):
                raise Interrupted(
                    f"stopped in {what}; whatever ended before it is kept: run the same command again to go on"
                ) from error
            raise
        else:
            tell(judged.value, state="finished", epochs=judged.epochs, spread=judged.spread)
        self._print(trials, trial, what)

    def _print(self, trials: Trials, trial: Trial, what: str) -> None:
        """A line about a trial that ended."""
        ended = _tried(next(each for each in trials.ended() if each.number == trial.number))
        score = "failed" if ended.score is None else f"{self.metric} {ended.score:.4f}"
        stopped = f", pruned after epoch {ended.epochs}" if ended.state == "pruned" else ""
        why = f" ({ended.why})" if ended.why else ""
        tried = "" if trials is not self.trials else f": {said_values(ended.values)}"
        self.say.print(f"{what:<9} {score}{stopped}{why}, {ended.seconds:.1f} s{tried}")


def said_values(values: Mapping[str, Any]) -> str:
    """A trial's values for a person: ``method.lr=0.00031, method.r=8``."""
    said = [f"{field}={f'{value:.3g}' if isinstance(value, float) else value}" for field, value in values.items()]
    return printable(", ".join(said))


def _tried(trial: FrozenTrial) -> TriedTrial:
    about = trial.user_attrs
    state = about.get("state", "finished")
    score = None if state == "failed" else trial.value
    return TriedTrial(
        trial.number,
        dict(trial.params),
        state,
        score,
        about.get("epochs"),
        about.get("seconds", 0.0),
        about.get("why", ""),
    )
