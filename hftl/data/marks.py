"""What columns beside inputs and labels say of rows, for how they are divided: groups, strata, folds, times."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from hftl.errors import DataError

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """The columns that a person names for how rows are divided; None for one that is not used.

    Attributes:
        group: rows of one group stay together.
        time: training is older than what is tested.
        stratify: parts have each of its values in proportion; the labels do otherwise.
        fold: the fold that each row is in.
    """

    group: str | None = None
    time: str | None = None
    stratify: str | None = None
    fold: str | None = None

    def __post_init__(self) -> None:
        others = [name for name in ("group", "stratify", "fold") if getattr(self, name) is not None]
        if self.time is not None and others:
            raise DataError(
                f"time and {others[0]} ask for different divisions: the past and what follows it, and rows of a column "
                "kept together or in proportion; leave one of them out"
            )

    def columns(self) -> dict[str, str]:
        """The columns that are used, by what they are used for."""
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        return {what: column for what, column in asked.items() if column is not None}


@dataclass(frozen=True)
class Marks:
    """What these columns say of n rows, int64 (n,) or None where nothing is asked.

    Attributes:
        groups: the group of each row, the same number in all splits.
        strata: the stratum of each row.
        folds: the fold of each row, from 0.
        times: when each row is from; only their order counts.
        names: of the groups, by their numbers.
    """

    groups: Numbers | None = None
    strata: Numbers | None = None
    folds: Numbers | None = None
    times: np.ndarray | None = None
    names: tuple[str, ...] = ()

    @property
    def group_names(self) -> list[str] | None:
        """The name of each row's group; None where rows have none."""
        return None if self.groups is None else [self.names[group] for group in self.groups.tolist()]

    def select(self, rows: np.ndarray) -> Marks:
        """Those of some rows, by position."""
        marked = ("groups", "strata", "folds", "times")
        taken = {name: value[rows] for name in marked if (value := getattr(self, name)) is not None}
        return replace(self, **taken)


NO_MARKS = Marks()
