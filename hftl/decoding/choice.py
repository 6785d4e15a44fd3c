"""Threads or processes, and how many: chosen by what waiting for rows costs while work goes on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

# What starting costs: an interpreter of its own that imports torch and transformers, beside the work.
SECONDS_TO_START = 3.0
# Processes beyond what is needed now, because pictures differ and a forward may get faster.
SPARE = 1.5


@dataclass
class Stretch:
    """A stretch of time in which rows were encoded and taken; it begins when it is made.

    Attributes:
        rows: encoded, by whichever process.
        decoding: seconds of a core that encoding in this process took.
        waited: seconds that whoever takes the rows waited for them.
        seconds: on the clock, once it is `ended`.
        busy: seconds of all cores that this process used, once it is `ended`.
    """

    rows: int = 0
    decoding: float = 0.0
    waited: float = 0.0
    seconds: float = field(default_factory=lambda: -time.perf_counter())
    busy: float = field(default_factory=lambda: -time.process_time())

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() + self.seconds

    def ended(self) -> Stretch:
        """The stretch as it was until now."""
        return replace(self, seconds=self.age, busy=time.process_time() + self.busy)


@dataclass
class Choice:
    """What is known of a work that takes rows from threads.

    Processes are started once waiting for rows, on cores that meanwhile stood idle, has cost as much as starting them.
    So a short work never starts any, and a long one loses at most about twice that. Where threads keep all cores busy,
    as two do on two cores, or where the model is the slower half, nothing is lost by waiting.

    Attributes:
        cores: that this process may use.
        rows: encoded so far.
        decoding: seconds of a core that encoding these rows took.
        seconds: on the clock.
        waited: of these, those in which whoever takes the rows waited for them.
        lost: of these, what idle cores could have saved.
    """

    cores: int
    rows: int = 0
    decoding: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    lost: float = 0.0

    def saw(self, stretch: Stretch) -> None:
        """Learn of a stretch of time."""
        self.rows += stretch.rows
        self.decoding += stretch.decoding
        self.seconds += stretch.seconds
        self.waited += stretch.waited
        self.lost += stretch.waited * max(0.0, 1 - stretch.busy / (stretch.seconds * self.cores))

    @property
    def pays(self) -> bool:
        """Whether to start processes."""
        return self.rows > 0 and self.cores > 1 and self.lost >= SECONDS_TO_START

    @property
    def rate(self) -> float:
        """Rows in a second on the clock."""
        return self.rows / max(self.seconds, 1e-9)

    @property
    def count(self) -> int:
        """How many processes keep up with whoever takes the rows, at most one for each core."""
        taking = max(self.seconds - self.waited, 1e-9)
        return max(1, min(self.cores, math.ceil(SPARE * self.decoding / taking)))
