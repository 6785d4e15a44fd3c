"""Repeated cross-validation of a whole run: every training row is scored by models that have not seen it.

Everything is done anew for each fold, the choice of a strength or an epoch included, so that a fold's rows have no say
in the model that scores them (nested cross-validation).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.data.division import folds_of
from hftl.errors import RecipeError, UserError
from hftl.export.trained import Trained, not_kept
from hftl.finetune.resume import differences
from hftl.frozen.features import StoredFeatures, taken
from hftl.heads.folds import task_folds
from hftl.intervals import SPREAD_OF_HEADS
from hftl.metrics.resampled import resampled_metrics
from hftl.metrics.values import to_plain
from hftl.progress import counted
from hftl.scored import Intervals, intervals_of
from hftl.tasks import Task

FILE = "out_of_fold.parquet"
# In a run's folder, what folds of fine-tuning said, until the run is finished.
FOLDS = "cv"
# Relative distance from the minimum at which a fold's head stops: far below what its rows can tell apart.
FOLD_TOLERANCE = 1e-5
# Between the seeds of one deal and the next.
SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Plan:
    """How often rows are dealt into how many folds."""

    folds: int
    repeats: int

    @classmethod
    def of(cls, text: str) -> Plan:
        """Read ``5x3``: 5 folds, dealt 3 times; ``5`` is ``5x1``.

        Raises:
            RecipeError: it is nothing of the kind.
        """
        folds, _, repeats = text.lower().partition("x")
        try:
            plan = cls(int(folds), int(repeats or 1))
        except ValueError:
            plan = cls(0, 0)
        if plan.folds < 2 or plan.repeats < 1:
            raise RecipeError(f"--cv {text!r}: give folds and how often they are dealt, such as 5x3; at least 2x1")
        return plan

    @property
    def trainings(self) -> int:
        """How many models are trained beside the one that is exported."""
        return self.folds * self.repeats

    def __str__(self) -> str:
        return f"{self.folds} folds, dealt {'once' if self.repeats == 1 else f'{self.repeats} times'}"


def dealt_for(plan: Plan, split: Split, task: Task, seed: int) -> np.ndarray:
    """The fold of each row in each repeat, int64 (repeats, n), from 0; -1 of rows that are all there is of a class.

    Raises:
        DataError: there are fewer groups than folds.
        RecipeError: folds are given, and the plan is for others, or for several deals of them.
    """
    if split.marks.folds is not None:
        if plan.repeats > 1:
            raise RecipeError(f"folds that are given cannot be dealt {plan.repeats} times: give --cv {plan.folds}")
        if (given := len(np.unique(split.marks.folds))) != plan.folds:
            raise RecipeError(f"the column of folds has {given} in training, not {plan.folds}: give --cv {given}")
    dealt = []
    for repeat in range(plan.repeats):
        # Far apart, so that runs of neighbouring seeds share no deal.
        own = seed + SEED_STEP * repeat
        by_columns = folds_of(split, task, plan.folds, own, flag="--cv")
        if by_columns is None:
            by_columns = task_folds(torch.from_numpy(split.labels), task, plan.folds, own).numpy()
        dealt.append(by_columns)
    return np.stack(dealt)


@dataclass(frozen=True)
class Crossed:
    """What models say of training rows that they have not seen.

    Attributes:
        plan: how rows were dealt.
        split: the rows that were scored, those that stood in a fold.
        folds: int64 (repeats, n), the fold of each.
        logits: float32 (repeats, n, C).
        thresholds: float64 (repeats, n, C), those of the model that scored the row; None where labels need none.
        free: of what costs nothing, which rows it gets right: bool (repeats, n).
        by_fold: of each training its repeat, fold, rows, the metric that chooses, and the strength.
        places: int64 (n,), where these rows stand in training.
        is_all: whether the data bring no test split, so that these scores are the run's.
    """

    plan: Plan
    split: Split
    folds: np.ndarray
    logits: np.ndarray
    thresholds: np.ndarray | None
    free: dict[str, np.ndarray]
    by_fold: list[dict[str, Any]]
    places: np.ndarray
    is_all: bool

    def as_json(self, task: Task, seed: int) -> dict[str, Any]:
        """What ``metrics.json`` has."""
        return {
            "folds": self.plan.folds,
            "repeats": self.plan.repeats,
            "rows": len(self.split),
            "in_place_of_a_test_split": self.is_all,
            "eval": to_plain(self.values(task)),
            "intervals": self.intervals(task, seed).as_json(),
            "trainings": self.by_fold,
        }

    def deals(self) -> list[tuple[np.ndarray, Any]]:
        """Logits (n, C) of each deal, and the thresholds (n, C) that decide about them, or None."""
        cuts: Sequence[Any] = [None] * len(self.logits) if self.thresholds is None else list(self.thresholds)
        return list(zip(self.logits, cuts, strict=True))

    def scores(self, task: Task) -> np.ndarray:
        """Probabilities or predicted targets: (repeats, n, C)."""
        return np.stack([task.scores(torch.from_numpy(each)).numpy() for each in self.logits])

    def values(self, task: Task) -> dict[str, float]:
        """Every metric on all rows together, the mean over repeats; NaN where undefined."""
        once = np.ones((1, len(self.split)))
        each = [
            resampled_metrics(task, scores, self.split.labels, once, cut)
            for scores, (_, cut) in zip(self.scores(task), self.deals(), strict=True)
        ]
        return {name: float(np.mean([found[name][0] for found in each])) for name in each[0]}

    def intervals(self, task: Task, seed: int) -> Intervals:
        """How sure they are of the model that is trained on all rows."""
        groups = self.split.marks.groups
        return intervals_of(
            task,
            self.scores(task),
            self.split.labels,
            thresholds=self.thresholds,
            groups=groups,
            seed=seed,
            spread=SPREAD_OF_HEADS,
        )

    def write(self, folder: Path, task: Task, names: Sequence[str]) -> None:
        """Write ``out_of_fold.parquet``: one line for each row and repeat, with the fold that it was held out in."""
        tables = []
        scores, groups = self.scores(task), self.split.marks.group_names
        for repeat, (folds, each) in enumerate(zip(self.folds, scores, strict=True)):
            cuts: Any = None if self.thresholds is None else self.thresholds[repeat]
            columns: dict[str, Any] = {
                "row": [self.split.inputs.name(i) for i in range(len(self.split))],
                "repeat": np.full(len(folds), repeat + 1),
                "fold": folds + 1,
                "label": task.truth(self.split.labels, names),
                "prediction": task.predicted(each, names, cuts),
                "scores": list(each),
            }
            tables.append(pa.table(columns | ({} if groups is None else {"group": groups})))
        pq.write_table(pa.concat_tables(tables), folder / FILE)


# Trains on a part and gives its model's logits of the part's test split; None on processes that only lend a hand.
Train = Callable[[Data, StoredFeatures | None, str], "Trained | None"]
# Trains without each fold of one deal, all at once; None where that cannot be done.
Together = Callable[[np.ndarray], "list[Trained] | None"]


def cross_validated(
    plan: Plan,
    data: Data,
    features: StoredFeatures | None,
    train: Train,
    together: Together,
    *,
    criterion: Criterion,
    seed: int,
    quiet: bool,
) -> Crossed | None:
    """Train without each fold in turn, and score the fold.

    Args:
        plan: how rows are dealt.
        data: whose training rows are dealt; a validation split serves every training.
        features: theirs, where they are stored.
        train: trains on a part.
        together: trains without each fold of a deal.
        criterion: the metric that is told of each fold.
        seed: decides the folds.
        quiet: show no progress.

    Returns:
        None on processes that only lend a hand.
    """
    dealt = dealt_for(plan, data.train, data.task, seed)
    logits = np.zeros((plan.repeats, len(data.train), len(data.label_names)), dtype=np.float32)
    thresholds = np.full(logits.shape, 0.5)
    by_fold: list[dict[str, Any]] = []
    free: dict[str, np.ndarray] = {}
    of_deal: list[Trained] | None = None
    trained: Trained | None = None
    pairs = [(repeat, fold) for repeat in range(plan.repeats) for fold in range(plan.folds)]
    for repeat, fold in counted("cv", pairs, unit="trainings", quiet=quiet):
        held = dealt[repeat] == fold
        if fold == 0:
            of_deal = together(dealt[repeat])
        if not held.any():
            continue
        if of_deal is not None:
            trained = of_deal[fold]
        else:
            trained = train(*_without_fold(data, features, held), f"{repeat + 1}-{fold + 1}")
        if trained is None:
            continue
        logits[repeat, held] = trained.logits.numpy()
        thresholds[repeat, held] = trained.report.get("thresholds", 0.5)
        truth = data.train.labels[held]
        try:
            value = criterion.value(trained.logits.numpy(), truth, trained.report.get("thresholds"))
        except RecipeError:
            # A function may need, say, a class that the fold lacks; what it says of a fold decides nothing.
            value = math.nan
        strength = trained.report.get("chosen")
        by_fold.append(
            {
                "repeat": repeat + 1,
                "fold": fold + 1,
                "rows": int(held.sum()),
                criterion.name: value if math.isfinite(value) else None,
                **({"strength": strength} if isinstance(strength, float) else {}),
            }
        )
        for name, right in trained.free.items():
            free.setdefault(name, np.zeros(dealt.shape, dtype=bool))[repeat, held] = right
    if trained is None:
        return None
    # A class of one row stays out of every deal alike.
    scored = np.flatnonzero((dealt >= 0).all(0))
    decided = thresholds[:, scored] if data.task.link == "sigmoid" else None
    split = data.train.select(scored, "test")
    known = {name: each[:, scored] for name, each in free.items()}
    return Crossed(
        plan, split, dealt[:, scored], logits[:, scored], decided, known, by_fold, scored, not len(data.test)
    )


# ── a fold that fine-tuning scored ───────────────────────────────────────────────────────────────────────────────────


def write_fold(folder: Path, trained: Trained, made_with: dict[str, Any]) -> None:
    """Keep what a fold's model said, so that a run that is stopped need not train it again; its checkpoints go.

    Args:
        folder: of the fold's checkpoints; the file stands beside it.
        trained: the fold's model.
        made_with: everything that it depends on; see `hftl.finetune.resume.settings`.
    """
    kept = {"thresholds": trained.report["thresholds"]} if "thresholds" in trained.report else {}
    free = {name: right.tolist() for name, right in trained.free.items()}
    content = json.dumps({"made_with": made_with, "logits": trained.logits.tolist(), "report": kept, "free": free})
    file = _fold_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".part")
    written.write_text(content, encoding="utf-8")
    # Whole or not at all: a run may be killed between.
    written.replace(file)
    rmtree(folder, ignore_errors=True)


def read_fold(folder: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """What `write_fold` kept; None where there is nothing, or nothing that says what it is of.

    Raises:
        UserError: it is of other rows or other settings.
    """
    file = _fold_file(folder)
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "made_with" not in content:
        return None
    if other := differences(content["made_with"], made_with):
        raise UserError(f"cannot resume, because the run began otherwise: {other}; use the same, or start anew")
    return content


def of_fold(content: dict[str, Any]) -> Trained:
    """A fold's model again, which can no longer be exported."""

    free = {name: np.array(right) for name, right in content["free"].items()}
    logits = torch.tensor(content["logits"], dtype=torch.float32)
    return Trained(logits, "finetune", content["report"], not_kept, free=free)


def _fold_file(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"


def _without_fold(data: Data, features: StoredFeatures | None, held: np.ndarray) -> tuple[Data, StoredFeatures | None]:
    """Training without some of its rows, which are the test split."""
    stays, drawn = np.flatnonzero(~held), np.flatnonzero(held)
    part = replace(data, train=data.train.select(stays), test=data.train.select(drawn, "test"))
    splits = dict(features.splits) if features else {}
    if splits:
        whole = splits["train"]
        splits |= {"train": taken(whole, stays), "test": taken(whole, drawn, "test")}
    if data.validation is not None and data.task.is_exclusive:
        # A class may stand in one fold only: without it no row can be learnt from, and none can judge.
        known = np.flatnonzero(np.isin(data.validation.labels, part.train.labels))
        part = replace(part, validation=data.validation.select(known) if len(known) else None)
        judges = splits.pop("validation", None)
        if judges is not None and len(known):
            splits["validation"] = taken(judges, known)
    return part, replace(features, splits=splits) if features else None
