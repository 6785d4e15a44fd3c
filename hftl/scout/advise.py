"""``advise``: ask what is worth asking within a budget of minutes, and end with one command to run."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState

from hftl.backbones.protocol import Target
from hftl.backbones.untrained import Untrained
from hftl.criterion import Criterion
from hftl.data import Data
from hftl.data.division import hold_out_rows
from hftl.errors import BackboneError, HftlError, Interrupted
from hftl.frozen.head import train_head
from hftl.frozen.recipe import chooses, probe_of, stored_features, view_of
from hftl.intervals import LEVEL, Difference, Interval
from hftl.methods import Full, Head, LoRA, Partial
from hftl.plugins.spec import BackboneSpec
from hftl.recipes import Recipe
from hftl.runs.again import RecipeLike, as_recipe, reference_of
from hftl.scored import Score, better_by, scored
from hftl.scout.answer import Answer
from hftl.scout.audit import audit
from hftl.scout.cost import count_lacking, first_pass
from hftl.scout.curve import curve
from hftl.scout.layers import layers
from hftl.scout.rank import cheapest_of_best, rank
from hftl.scout.stored import Reader, reading, refuse_words, training_part
from hftl.scout.transfer import transfer
from hftl.wording import named_error, plural

# A probe above this has little room that fine-tuning could win.
ROOM_BELOW = 0.98
# A step of training costs about three forwards; a trial shorter than so many rows says nothing.
STEP_COST, EPOCHS, FEWEST_ROWS = 3.0, 2, 64
HELD_OUT = 0.3
# How much of the budget the first features may take.
SHARE_OF_FIRST = 0.5


@dataclass(frozen=True)
class Trial:
    """A short fine-tuning beside the frozen head, on the same rows.

    Attributes:
        method: ``head``, ``partial``, ``lora`` or ``full``.
        score: the metric that chooses on held-out training rows.
        gain: over the frozen head; None for the head itself.
        seconds: that it took.
    """

    method: str
    score: Interval
    gain: Difference | None
    seconds: float


@dataclass(frozen=True, repr=False)
class Advice(Answer):
    """What to do with some data, and why.

    Attributes:
        backbone: the one to take.
        metric: the one that chooses.
        evidence: one sentence for each question that was asked.
        trials: short trainings; empty where the probe leaves no room, or time did not suffice.
        skipped: what was not asked, and why.
        advice: one sentence.
        command: what to run.
        minutes: that it all took.
    """

    table: ClassVar[str] = "trials"

    backbone: str
    metric: str
    evidence: list[str]
    trials: list[Trial]
    skipped: list[str]
    advice: str
    command: str
    minutes: float


@dataclass
class _Clock:
    """What is left of the budget."""

    minutes: float
    started: float

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return 60 * self.minutes - (time.monotonic() - self.started)


@dataclass
class _Budgeted:
    """What was asked within a budget, and what was not."""

    clock: _Clock
    evidence: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], str], first: Callable[[], float] = lambda: 0.0) -> None:
        """Ask where there is time; what cannot be answered is no end of the others.

        Args:
            what: the question's name.
            question: its answer in one sentence.
            first: seconds until the features are there that it is asked of.
        """
        more = "give more with --minutes"
        if self.clock.left <= 0:
            self.skipped.append(f"{what}: the {self.clock.minutes:g} minutes were over; {more}")
            return
        try:
            if (needed := first()) > (left := self.clock.left):
                why = f"its features would take about {needed:,.0f} s, and {left:,.0f} s are left"
                self.skipped.append(f"{what}: {why}; {more}")
                return
            self.evidence.append(question())
        except Interrupted:
            raise
        except HftlError as error:
            self.skipped.append(f"{what}: {error}")


def advise(
    recipe: RecipeLike,
    *,
    minutes: float = 10.0,
    backbones: Sequence[str] = (),
    subset: int | None = None,
    name: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Advice:
    """Rank, transfer, layers, audit and curve in this order, then short trials, as far as the time suffices.

    What a first extraction will take is measured on a few rows before it begins. Where features of all rows would take
    more than half of the budget, so many rows are used as that suffices for; what would not end in what is left then is
    not asked. A trial is made as small as the time that is left. All questions are asked of training rows (the audit
    looks for leaks as well).

    Args:
        recipe: the data and a backbone; as of `hftl.run`.
        minutes: the budget.
        backbones: others to rank beside the recipe's own.
        subset: use only about so many training rows, stratified.
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
    asked = _Budgeted(_Clock(minutes, time.monotonic()))
    references = list(dict.fromkeys([recipe.backbone, *backbones]))
    how = {"offline": offline, "allow_pickle": allow_pickle, "on_bad_row": on_bad_row, "quiet": quiet}

    with reading(**how, of_words=True) as reader:  # type: ignore[arg-type]
        subset = _affordable(recipe, references, reader, subset, asked)
    ranking = rank(recipe, references, subset=subset, name=name, **how)  # type: ignore[arg-type]
    asked.evidence.append(ranking.advice)
    chosen = cheapest_of_best(ranking.backbones)
    recipe = recipe.model_copy(update={"backbone": chosen.backbone})
    with reading(**how) as reader:  # type: ignore[arg-type]
        lacking = _Lacking.of(recipe, reader, subset, chosen.rows_per_second)
    depth: list[int] = []

    def asked_layers() -> str:
        answer = layers(recipe, subset=subset, name=name, **how)  # type: ignore[arg-type]
        depth.extend([answer.chosen, len(answer.depths)])
        return answer.advice

    def asked_transfer() -> str:
        return transfer(recipe, subset=subset, seeds=1, **how).advice  # type: ignore[arg-type]

    asked.ask("transfer", asked_transfer, lacking.of_twin)
    if recipe.depth is None:
        asked.ask("layers", asked_layers, lacking.of_depths)
    asked.ask("audit", lambda: audit(recipe, **how).advice, lacking.of_all_splits)  # type: ignore[arg-type]
    asked.ask("curve", lambda: curve(recipe, subset=subset, **how).advice)  # type: ignore[arg-type]

    trials: list[Trial] = []
    clock, skipped = asked.clock, asked.skipped
    if chosen.score.criterion.is_share and chosen.probe.value > ROOM_BELOW:
        skipped.append(f"trials: {ranking.metric} {chosen.probe.value:.3f} leaves little that fine-tuning could win")
    elif clock.left < 10:
        skipped.append("trials: no time was left; give more with --minutes")
    else:
        with reading(**how) as reader:  # type: ignore[arg-type]
            trials = _trials(recipe, reader, clock, chosen.rows_per_second, subset, skipped)
    sentence, flags = _conclusion(trials, depth, ranking.metric)
    command = f"hftl run {name} {shlex.join(['--backbone', chosen.backbone, *flags])}"
    took = (time.monotonic() - clock.started) / 60
    return Advice(chosen.backbone, ranking.metric, asked.evidence, trials, skipped, sentence, command, round(took, 2))


def _affordable(
    recipe: Recipe,
    references: Sequence[str],
    reader: Reader,
    subset: int | None,
    asked: _Budgeted,
) -> int | None:
    """How many training rows to use, so that computing their features leaves time for questions; None for all."""
    passes, rows, fewest = [], 0, FEWEST_ROWS
    silent = reader.silent()
    for reference in references:
        made = recipe.model_copy(update={"backbone": reference})
        try:
            spec, target, data = silent.inputs(made)
            part = training_part(data, subset, recipe.seed)
            passes.append(first_pass(spec, target, part, view_of(made, target.backbone)))
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:  # whatever a backbone's own code raises
            asked.skipped.append(f"an estimate of what {reference} takes: {named_error(error)[:160]}")
            continue
        refuse_words(data)
        rows, fewest = len(part.train), max(FEWEST_ROWS, 2 * len(part.label_names) if part.task.is_exclusive else 0)
    left, needed = asked.clock.left, sum(each.seconds for each in passes)
    if not needed:
        return subset
    computed, seconds = sum(each.rows for each in passes), left * SHARE_OF_FIRST
    reader.say.print(f"estimate  {plural(computed, 'row')} to compute: about {needed:,.0f} s of {left:,.0f} s")
    if needed <= seconds:
        return subset
    running = sum(1 / each.speed for each in passes if each.rows)
    suffices = max(fewest, int((seconds - sum(each.start for each in passes)) / running))
    if suffices >= rows:
        return subset
    asked.skipped.append(
        f"{rows - suffices:,} of {rows:,} training rows: computing the features of all would take about {needed:,.0f} "
        "s; give more with --minutes"
    )
    return suffices


@dataclass(frozen=True)
class _Lacking:
    """Seconds that the features of a question take, of rows that are not stored; of what is loaded for it nothing."""

    recipe: Recipe
    spec: BackboneSpec
    target: Target
    data: Data
    part: Data
    subset: int | None
    speed: float

    @classmethod
    def of(cls, recipe: Recipe, reader: Reader, subset: int | None, speed: float) -> _Lacking:
        spec, target, data = reader.silent().inputs(recipe)
        return cls(recipe, spec, target, data, training_part(data, subset, recipe.seed), subset, speed)

    def of_twin(self) -> float:
        """Of `transfer`: what random weights give for the rows; none of a backbone that has no such twin."""
        try:
            twin = Target(Untrained(self.target.backbone, self.recipe.seed), self.target.config)
        except BackboneError:
            return 0.0
        return self._seconds(self.part, target=twin)

    def of_depths(self) -> float:
        """Of `layers`: one pass for all depths, of all splits unless some training rows were chosen."""
        return self._seconds(self.data if self.subset is None else self.part, depth=1)

    def of_all_splits(self) -> float:
        """Of `audit`, which reads every row."""
        return self._seconds(self.data)

    def _seconds(self, data: Data, *, target: Target | None = None, depth: int | None = None) -> float:
        view = replace(view_of(self.recipe, self.target.backbone), depth=depth)
        return count_lacking(self.spec, target or self.target, data, view) / self.speed


def _trials(
    recipe: Recipe, reader: Reader, clock: _Clock, speed: float, subset: int | None, skipped: list[str]
) -> list[Trial]:
    """The frozen head and short fine-tunings on the same rows, each as large as its share of the time allows."""
    methods: list[Partial | LoRA | Full] = [Partial(epochs=EPOCHS), LoRA(epochs=EPOCHS), Full(epochs=EPOCHS)]
    spec, target, data = reader.inputs(recipe)
    part = training_part(data, subset, recipe.seed)
    # Forwards over the held-out rows are part of it.
    rows = int(clock.left / len(methods) * speed / (STEP_COST * EPOCHS * (1 - HELD_OUT) + (EPOCHS + 1) * HELD_OUT))
    if rows < FEWEST_ROWS:
        skipped.append(f"trials: {clock.left:.0f} s suffice for {rows} rows, which says nothing; give more --minutes")
        return []
    part = training_part(part, rows, recipe.seed)
    stays, held = hold_out_rows(part.train, part.task, HELD_OUT, recipe.seed)
    trial = replace(part, train=part.train.select(stays), test=part.train.select(held, "test"))
    features = stored_features(
        spec,
        target,
        trial,
        [view_of(recipe, target.backbone)],
        reader.say,
        on_bad_row=reader.on_bad_row,
        quiet=reader.quiet,
    )
    trial = features.readable(trial)
    began = time.monotonic()
    criterion = chooses(recipe, trial.task)
    head = train_head(
        probe_of(recipe),
        target,
        features,
        trial,
        seed=recipe.seed,
        device=PartialState().device,
        criterion=criterion,
    )
    frozen = _scored(criterion, trial, head.logits, recipe.seed)
    made = [Trial("head", frozen.interval, None, round(time.monotonic() - began, 1))]
    # Brought only here: PEFT takes a second to import.
    from hftl.finetune.feasible import check
    from hftl.finetune.train import finetune

    for method in methods:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hftl-advise-") as folder:
            try:
                check(method, target, Path(folder))
                trained = finetune(
                    method,
                    target,
                    trial,
                    criterion=criterion,
                    start=head.parameters,
                    seed=recipe.seed,
                    folder=Path(folder),
                    quiet=reader.quiet,
                )
            except Interrupted:
                raise
            except HftlError as error:
                skipped.append(f"trial of {method.name}: {error}")
                continue
        score = _scored(criterion, trial, trained.logits, recipe.seed)
        gain = better_by(score, frozen)
        made.append(Trial(method.name, score.interval, gain, round(time.monotonic() - began, 1)))
    return made


def _scored(criterion: Criterion, trial: Data, logits: torch.Tensor, seed: int) -> Score:
    labels = trial.test.labels
    every, groups = np.arange(len(labels)), trial.test.marks.groups
    return scored(criterion, labels, every, logits.numpy(), seed=seed, groups=groups)


def _conclusion(trials: Sequence[Trial], depth: Sequence[int], metric: str) -> tuple[str, list[str]]:
    """One sentence, and the flags that follow from it."""
    gains = [(each.gain, each.method) for each in trials if each.gain]
    better = [(gain, method) for gain, method in gains if gain.value > 0 and gain.p < 1 - LEVEL]
    if better:
        # All are measured from the same head, so the largest gain is the best score.
        gain, method = max(better, key=lambda each: each[0].value)
        said = f"Fine-tune with {method}: in a short trial on one split it won {gain} of {metric} over the frozen head."
        return said, ["--method", method]
    why = "no short trial beat it beyond noise" if trials else "it is what the evidence supports"
    if depth and depth[0] < depth[1]:
        said = f"Take the frozen head on the first {depth[0]} of {depth[1]} blocks: {why}, and fewer blocks are faster."
        return said, ["--method", Head().name, "--depth", str(depth[0])]
    return f"Take the frozen head: {why}.", ["--method", Head().name]
