"""`Ramp`: how much goes into one batch; fixed where it hardly matters (CPUs), elsewhere measured on a short ramp."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from hftl.regular import read_bounded
from hftl.store.files import write_file

T = TypeVar("T")

# Tokens (for rows of different lengths) or rows (where all cost the same) in one batch.
CPU_TOKENS, CPU_ROWS = 1024, 16
RAMP_TOKENS = (8_192, 16_384, 32_768, 65_536, 131_072)
RAMP_ROWS = (32, 64, 128, 256, 512)
SECONDS_PER_STEP = 0.5
# A larger batch must earn its memory.
GAIN = 1.03


@dataclass
class Ramp:
    """Tries budgets from small to large while work goes on, and stays with the best.

    Attributes:
        steps: budgets to try; a single one is simply used.
        at: the step in use.
        settled: whether trying is over.
    """

    steps: Sequence[int]
    at: int = 0
    settled: bool = False
    rates: list[float] = field(default_factory=list)
    _cost: int = 0
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        self.settled = self.settled or len(self.steps) == 1

    @property
    def budget(self) -> int:
        """The cost that the next batch may have."""
        return self.steps[self.at]

    def saw(self, cost: int, seconds: float) -> None:
        """Learn that a batch of this cost took so long."""
        if self.settled or cost < self.budget // 2:
            return
        self._cost += cost
        self._seconds += seconds
        if self._seconds < SECONDS_PER_STEP:
            return
        self.rates.append(self._cost / self._seconds)
        self._cost, self._seconds = 0, 0.0
        if len(self.rates) > 1 and self.rates[-1] < GAIN * self.rates[-2]:
            self.at -= 1
            self.settled = True
        elif self.at + 1 < len(self.steps):
            self.at += 1
        else:
            self.settled = True

    def too_large(self, cost: int) -> None:
        """Learn that a batch of this cost does not fit the device's memory."""
        self.steps = [*[step for step in self.steps if step < cost], max(cost // 2, 1)][: len(self.steps)]
        self.at = min(self.at, len(self.steps) - 1)
        while self.at and self.steps[self.at] >= cost:
            self.at -= 1
        self.settled = True


def ramp_for(device: torch.device, *, by_tokens: bool, key: str, memory: Path) -> Ramp:
    """The ramp for a device: settled on what was remembered under ``key``, or to be climbed.

    On CPUs the budget is fixed: it hardly changes the speed, and with a fixed one two runs on one machine that compute
    the same missing rows are equal to the bit. (Other missing rows make other batches, whose sums round differently.)
    """
    if device.type == "cpu":
        return Ramp([CPU_TOKENS if by_tokens else CPU_ROWS])
    budget = remembered(memory).get(key)
    if isinstance(budget, int) and budget > 0:
        return Ramp([budget])
    return Ramp(RAMP_TOKENS if by_tokens else RAMP_ROWS)


def within_budget(rows: Iterable[T], cost: Callable[[T], int], ramp: Ramp) -> Iterator[list[T]]:
    """Rows gathered until the ramp's budget is full, padding included.

    Args:
        rows: in the order in which they are batched.
        cost: what a row costs; a batch costs its longest row times its rows.
        ramp: asked before each batch.
    """
    batch: list[T] = []
    longest = 0
    for row in rows:
        longest = max(longest, cost(row))
        if batch and longest * (len(batch) + 1) > ramp.budget:
            yield batch
            batch, longest = [], cost(row)
        batch.append(row)
    if batch:
        yield batch


def remember(ramp: Ramp, key: str, memory: Path) -> None:
    """Keep what a ramp settled on for the next run; what is not written is measured again."""
    if not ramp.settled or len(ramp.steps) == 1:
        return
    keep_remembered(memory, key, ramp.budget)


def keep_remembered(memory: Path, key: str, value: float) -> None:
    """Write a small fact where `remembered` finds it; one that cannot be written is found out again."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, (json.dumps(remembered(memory) | {key: value}, indent=1) + "\n").encode())
    except OSError:
        return


def remembered(memory: Path) -> dict[str, object]:
    """The small facts in a file, by key; none where it cannot be read."""
    try:
        read = json.loads(read_bounded(memory, 1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
