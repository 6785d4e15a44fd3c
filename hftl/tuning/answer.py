"""What is said at the end of tuning: the choice, what it is worth, and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hftl.criterion import Criterion, as_logits
from hftl.intervals import Difference, Interval
from hftl.report.alike import OpenedRun
from hftl.report.compared import page_of
from hftl.report.comparison import Comparison, compare
from hftl.report.parts import Cell, Page, Part, Table, count_cell
from hftl.scored import scored
from hftl.tuning.job import Job, said_values
from hftl.tuning.tuned import TriedTrial, Tuned, repeated_score
from hftl.wording import plural

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PAGE = "report.html"


def answer_of(
    job: Job, best: FrozenTrial, again: Sequence[FrozenTrial], runs: Sequence[Path], file: Path
) -> tuple[Tuned, Page]:
    """What tuning found, and the page about it.

    Args:
        job: whose search is over.
        best: the chosen trial.
        again: its repeats that ended.
        runs: folders of the runs on the test rows, the chosen recipe's last; before it the recipe as it stands, unless
            that is what was chosen.
        file: of the chosen recipe.
    """
    compared = compare(runs) if len(runs) > 1 else None
    finished = [trial for trial in again if trial.state.name == "COMPLETE"]
    data = job.bench.start(job.recipe).data
    tested, gain = _tested(runs[-1], compared)
    assert best.value is not None
    trials, repeated = job.tried(), _repeated(job, finished)
    answer = Tuned(
        folder=str(job.folder),
        metric=job.metric,
        validation_rows=len(data.test),
        trials=trials,
        best=best.number,
        chosen=dict(best.params),
        searched=best.value,
        repeats=[trial.value for trial in finished if trial.value is not None],
        repeated=repeated,
        run=str(runs[-1]),
        tested=tested,
        gain=gain,
        recipe=str(file),
        report=str(job.folder / PAGE),
        advice=_advice(job, best, repeated, tested, compared),
        notes=_notes(trials, again),
    )
    return answer, _page(answer, compared)


def _repeated(job: Job, finished: Sequence[FrozenTrial]) -> Interval | None:
    scores = [trial.value for trial in finished if trial.value is not None]
    if len(scores) < 2:
        return None
    data = job.bench.start(job.recipe).data
    if job.recipe.validation_size is not None:
        score = repeated_score(scores, drawn_anew=len(data.test) / len(data.train))
    else:
        score = repeated_score(scores, spread=float(np.mean([trial.user_attrs["spread"] for trial in finished])))
    return score.within(*job.criterion.bounds)


def _tested(run: Path, compared: Comparison | None) -> tuple[Interval, Difference | None]:
    """The metric of the chosen recipe's run on the test rows, and how far it is ahead of the recipe as it stands."""
    if compared is not None:
        return compared.runs[-1].score, compared.runs[-1].against_first
    opened = OpenedRun.of(run)
    tested, criterion = opened.tested, opened.record.criterion
    # A function of the recipe is not at hand in a folder.
    criterion = criterion if criterion.is_own else Criterion.of_task(tested.task)
    logits, every = as_logits(tested.task, tested.scores), np.arange(len(tested))
    found = scored(
        criterion,
        tested.labels,
        every,
        logits,
        seed=0,
        groups=tested.groups,
        thresholds=tested.thresholds,
        label_names=tested.names,
    )
    return found.interval, None


def _advice(
    job: Job, best: FrozenTrial, repeated: Interval | None, tested: Interval, compared: Comparison | None
) -> str:
    many = plural(len(job.trials.ended()), "trial")
    said = [f"trial {best.number} ({said_values(best.params)}) is chosen: {job.metric} {best.value:.3f} on validation"]
    if repeated is None:
        said.append(f"the best of {many}, and so too good (--repeats says what it is with fresh seeds)")
    else:
        said.append(f"the best of {many}, and so too good; with fresh seeds it is {repeated}")
    if compared is None:
        ahead = "it is the recipe as it stands: nothing that was tried is better"
    else:
        run = compared.runs[-1]
        assert run.against_first is not None
        than = "as" if run.verdict.startswith("the same") else "than"
        ahead = f"{run.verdict} {than} the recipe as it stands, {run.against_first.signed()}"
    return f"{', '.join(said)}; on the test rows, which chose nothing, {tested}; {ahead}"


def _notes(trials: Sequence[TriedTrial], again: Sequence[FrozenTrial]) -> list[str]:
    count = Counter(trial.state for trial in trials)
    notes = []
    if count["pruned"]:
        notes.append(f"{plural(count['pruned'], 'trial')} ended early, below the median of the others at that epoch")
    if count["failed"]:
        first = next(trial for trial in trials if trial.state == "failed")
        notes.append(f"{plural(count['failed'], 'trial')} failed; trial {first.number}: {first.why}")
    if failed := [trial for trial in again if trial.state.name != "COMPLETE"]:
        why = failed[0].user_attrs.get("why")
        notes.append(
            f"with fresh seeds {len(failed)} of {len(again)} trainings failed, and the mean is of the others: {why}"
        )
    return notes


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(answer: Tuned, compared: Comparison | None) -> Page:
    """The search first, then the two runs side by side."""
    rest = page_of(compared) if compared else None
    return Page(
        "hftl tune",
        f"{plural(len(answer.trials), 'trial')}, chosen by {answer.metric} on validation rows",
        f"{answer.advice[0].upper()}{answer.advice[1:]}.",
        [*answer.notes, *(rest.warnings if rest else [])],
        [_search_part(answer), *(rest.parts if rest else [])],
    )


def _search_part(answer: Tuned) -> Part:
    fields = list(answer.chosen)
    rows = [
        [
            count_cell(trial.number),
            *(_value_cell(trial.values.get(field)) for field in fields),
            Cell("") if trial.score is None else Cell(f"{trial.score:.4f}", trial.score, trial.number == answer.best),
            Cell(trial.ended),
            Cell("" if trial.epochs is None else str(trial.epochs), trial.epochs),
            Cell(f"{trial.seconds:.1f}", trial.seconds),
        ]
        for trial in answer.from_the_best()
    ]
    heads = ["trial#", *fields, f"{answer.metric}#", "ended", "epochs#", "seconds#"]
    lines = [f"All trials are judged on the same {plural(answer.validation_rows, 'validation row')}."]
    if answer.repeated is not None:
        each = ", ".join(f"{score:.4f}" for score in answer.repeats)
        lines.append(f"The chosen recipe with fresh seeds: {each}; mean and 95 % interval {answer.repeated}.")
    return Part("The search", lines, tables=[Table(heads, rows)])


def _value_cell(value: object) -> Cell:
    return Cell(f"{value:.3g}", value) if isinstance(value, float) else Cell(str(value))
