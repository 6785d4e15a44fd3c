"""A study on disk: trials in SQLite, dealt to any number of processes of one machine, and none lost but a killed one.

Optuna suggests, prunes and stores. What is dealt is decided under a lock, so that processes together try as many as
were asked for; a trial belongs to a process, and where that is gone another process takes the trial up, once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from hftl.errors import HftlError, UserError
from hftl.lifetime import is_running, started_at
from hftl.recipes import fields_of_result
from hftl.wording import one_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

DATABASE, LOCK = "study.db", "study.lock"
# What trials carry beside their values.
OWNER, PLANNED, AGAIN, MADE_WITH = "owner", "planned", "again", "made_with"
# Of what scores depend on, beside the values that are tried.
THE_RECIPE = "the recipe"
SECONDS_BETWEEN_LOOKS = 0.5
# A process that waits for another to have written.
SECONDS_TO_WRITE = 120


def check_optuna() -> None:
    """See that the library of the extra is here.

    Raises:
        UserError: it is not.
    """
    if find_spec("optuna") is None:
        raise UserError("tuning needs optuna: pip install 'hftl[tune]'")


class Trials:
    """The trials of one name in a folder's study.

    Args:
        folder: where the database is, or will be.
        name: of the trials.
        maximize: whether more is better.
        made_with: what trials depend on, plain JSON, by a word for a person.
        seed: of what is suggested.

    Raises:
        UserError: the folder has trials of this name that were made with something else.
        HftlError: the database cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, *, maximize: bool, made_with: Mapping[str, Any], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)
        self.folder, self.name, self.seed = folder, name, seed
        self._lock = FileLock(folder / LOCK)
        with self._held():
            storage = _storage(folder / DATABASE)
            self._study: Study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
            self._refuse_other(json.loads(json.dumps(made_with, default=str)))

    def plan(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        """Put combinations before whatever is suggested; one that is there already is not put there again."""
        with self._held():
            for values in combinations:
                self._study.enqueue_trial(dict(values), user_attrs={PLANNED: dict(values)}, skip_if_exists=True)

    def deal(self, wanted: int, suggest: Callable[[Trial], object], say: Callable[[str], None]) -> Trial | None:
        """The next trial for this process; None when so many are done, be it by others, for whom it waits.

        Args:
            wanted: trials to try in all.
            suggest: gives a new trial its values.
            say: takes a line for a person who waits.
        """
        said = False
        while True:
            with self._held():
                self._take_up_the_dead()
                if self._count("COMPLETE", "PRUNED", "RUNNING") < wanted:
                    return self._asked(suggest)
                if not self._count("RUNNING"):
                    return None
            if not said:
                said = True
                say("tune      the last trials are another process's; waiting for them")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def place(self, trial: Trial | FrozenTrial) -> Path:
        """The folder in which a trial may keep what it needs; it is removed when the trial ends, however it does."""
        return self.folder / f".{self.name.replace(' ', '-')}-{trial.number}"

    def tell(self, trial: Trial, value: float | None, **about: Any) -> None:
        """Say how a trial ended: with a value, or (None) pruned or failed, which is not tried again.

        Args:
            trial: as `deal` gave it.
            value: of the metric.
            about: whatever else is to be kept, plain JSON.
        """
        from optuna.trial import TrialState

        with self._held():
            for name, what in about.items():
                trial.set_user_attr(name, what)
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            # First: of a trial that has ended nobody cleans up.
            shutil.rmtree(self.place(trial), ignore_errors=True)
            self._study.tell(trial, value, state=state, skip_if_finished=True)

    def give_up(self, trial: Trial) -> None:
        """End a trial that was interrupted, and put it before the others again."""
        with self._held():
            self._again(next(each for each in self._study.get_trials() if each.number == trial.number))

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Say what a trial reached by a step; whether it is to end there, being worse than the median of the others."""
        with self._held():
            trial.report(value, step)
            return bool(trial.should_prune())

    def ended(self) -> list[FrozenTrial]:
        """Trials that ended with a value, or were pruned, in the order of their numbers."""
        with self._held():
            return self._of("COMPLETE", "PRUNED")

    # ── under the lock ───────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _held(self) -> Iterator[None]:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DatabaseError

        try:
            with self._lock:
                yield
        except (StorageInternalError, DatabaseError, OSError) as error:
            why = one_line(error.__cause__ or error, 100)
            raise HftlError(
                f"{self.folder / DATABASE} cannot be read or written ({why}): free some space there or see that you "
                "may write, and run the same command again; if it is damaged, give another folder with --out"
            ) from error

    def _asked(self, suggest: Callable[[Trial], object]) -> Trial:
        from optuna.samplers import TPESampler

        # A seed for each trial: one for the study would draw the same numbers again in every process, and after a kill.
        number = len(self._study.get_trials(deepcopy=False))
        drawn = np.random.SeedSequence([self.seed, number]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(drawn[0]))
        trial = self._study.ask()
        suggest(trial)
        trial.set_user_attr(OWNER, [os.getpid(), started_at(os.getpid())])
        return trial

    def _take_up_the_dead(self) -> None:
        for trial in self._of("RUNNING"):
            # Without an owner it was dealt by a process that died under the lock.
            owner = trial.user_attrs.get(OWNER)
            if owner is None or not is_running(*owner):
                self._again(trial)

    def _again(self, trial: FrozenTrial) -> None:
        from optuna.trial import TrialState

        values = {**trial.user_attrs.get(PLANNED, {}), **trial.params}
        shutil.rmtree(self.place(trial), ignore_errors=True)
        self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        # One that kills its process, for want of memory perhaps, must not do so for ever.
        if values and not trial.user_attrs.get(AGAIN):
            self._study.enqueue_trial(values, user_attrs={PLANNED: values, AGAIN: True})

    def _of(self, *states: str) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name in states]

    def _count(self, *states: str) -> int:
        return len(self._of(*states))

    def _refuse_other(self, made_with: Mapping[str, Any]) -> None:
        before = self._study.user_attrs.get(MADE_WITH)
        if before is None:
            self._study.set_user_attr(MADE_WITH, made_with)
            return
        if THE_RECIPE in made_with and THE_RECIPE in before:
            # Fields that came later, and those that say nothing of a score, make no other search.
            made_with, before = (
                {**each, THE_RECIPE: fields_of_result(each[THE_RECIPE])} for each in (made_with, before)
            )
        if other := [name for name in made_with if made_with[name] != before.get(name)]:
            raise UserError(
                f"{self.folder} holds trials of another search ({', '.join(other)} differ): give another folder with "
                "--out, or go on with the same recipe and --search"
            )


def _storage(file: Path) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy import URL

    # As an object, because a path may hold what means something in an address.
    address = URL.create("sqlite", database=str(file)).render_as_string()
    return RDBStorage(address, engine_kwargs={"connect_args": {"timeout": SECONDS_TO_WRITE}})
