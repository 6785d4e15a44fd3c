"""`Decoder`: a backbone's rows, encoded in threads of this process or, where these do not keep up, in other processes.

Threads share Python's lock, which the many small steps of preprocessing hand to and fro: on sixteen cores they decode
little more than on two. Work begins in threads always, so nothing waits for processes to start. Each thread then hands
its rows to a process and waits; whatever a process does not answer, for whatever reason, the thread does itself, so
errors, warnings and what is read of a damaged file are those of this process. Processes that nobody asks for a minute
end; work that goes on later begins in threads again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from hftl.ahead import ahead
from hftl.backbones.protocol import Backbone, Encoded
from hftl.decoding.choice import Choice, Stretch
from hftl.decoding.cores import usable_cores
from hftl.decoding.pool import Pool
from hftl.decoding.request import Change, Request, Unread, encoded_rows
from hftl.errors import RecipeError
from hftl.progress import say_among

T = TypeVar("T")
R = TypeVar("R")

STATED = "HFTL_DECODE_PROCESSES"
"""The environment variable that states how many processes decode, from the first rows on; 0 for threads alone."""
WINDOW = 1.0
# How long processes are tried, and how much faster than threads they have to be.
TRIAL, GAIN = 3.0, 1.1
# Rows that a process could not read and this one could: after so many the processes are not like it.
REFUSED = 8


class Decoder:
    """Encodes the rows of one backbone, from any thread.

    Args:
        backbone: who encodes.
        processes: how many are to decode, from the first rows on; 0 for none; None to find out.

    Attributes:
        backbone: who encodes.
        threads: how many may ask at a time; one for texts, because a tokenizer must not be used by two at once.
    """

    def __init__(self, backbone: Backbone, processes: int | None = None) -> None:
        self.backbone = backbone
        self._cores = usable_cores()
        of_files = backbone.wants == "file"
        self.threads = max(self._cores, processes or 0) if of_files else 1
        # A tokenizer uses threads of its own; and only Linux forks an interpreter safely that has imported torch.
        self._may_start = of_files and sys.platform == "linux" and processes != 0
        self._stated = processes
        self._stretch = Stretch()
        self._sample: Request | None = None
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """Know nothing yet of threads and processes."""
        self._pool: Pool | None = None
        # What threads did, and what processes do; the latter from when they are ready.
        self._by_threads, self._by_processes = Choice(self._cores), Choice(self._cores)
        self._seen_ready = self._settled = False
        self._lost = self._refused = 0

    def __call__(
        self, contents: Sequence[Any], names: Sequence[str], changes: Sequence[Change | None] | None = None
    ) -> list[Encoded]:
        """Rows as the model reads them.

        Args:
            contents: encoded files, or tuples of strings.
            names: what a person calls them.
            changes: what makes of each file the one to encode; None where they stay as they are.

        Raises:
            BadRowError: a row cannot be decoded.
        """
        request = Request(contents, names, changes)
        pool = self._pool if names else None
        answer = pool(request) if pool is not None else None
        before = time.thread_time()
        encoded = answer if isinstance(answer, list) else encoded_rows(self.backbone, request)
        if pool is not None and answer is Unread.REFUSED:
            self._count_refused(pool)
        with self._lock:
            self._stretch.rows += len(encoded)
            self._stretch.decoding += time.thread_time() - before
            if encoded and self._may_start and self._pool is None:
                self._sample = self._sample or Request(contents[:1], names[:1])
                if self._stated:
                    self._start(self._stated)
        return encoded

    def ahead(
        self, work: Callable[[T], R], items: Iterable[T], threads: int, depth: int = 2
    ) -> Generator[R, None, None]:
        """`hftl.ahead.ahead`, watched: where whoever takes the results waits for them, processes may be started.

        Args:
            work: asks this decoder for rows.
            items: what it is given.
            threads: that do it.
            depth: items a thread that are waiting or done at any moment.
        """
        # What lies between two such works says nothing about either.
        self._stretch = Stretch()
        return ahead(work, items, threads, depth, self._saw_waiting if self._may_start else None)

    @property
    def is_ready(self) -> bool:
        """Whether processes take rows."""
        return self._pool is not None and self._pool.ready

    @property
    def refusal(self) -> str | None:
        """Why processes cannot be used, once that is known."""
        return self._pool.why_not if self._pool is not None else None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; rows that are asked for later are decoded as if they were the first."""
        pool = self._pool
        if pool is None:
            return
        pool.close()
        with self._lock:
            # Processes that cannot be used, or do not pay, are not tried again.
            if self._may_start and pool.why_not is None and self._pool is pool:
                self._begin()

    def _give_up(self) -> None:
        """Leave rows to threads from here on."""
        self._may_start = False
        self.close()

    # ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, count: int) -> None:
        assert self._sample is not None
        try:
            self._pool = Pool(self.backbone, self._sample, count, idle=self.close)
        except OSError as error:  # no more files may be open
            self._may_start = False
            say_among(
                f"threads of one process decode alone, because {count} others cannot be reached: {error.strerror}"
            )

    def _count_refused(self, pool: Pool) -> None:
        """Note rows that a process could not read and this one could."""
        with self._lock:
            self._refused += 1
            unlike = self._refused == REFUSED
        if unlike:
            pool.why_not = "other processes could not read what this one reads"
            pool.close()

    def _saw_waiting(self, seconds: float) -> None:
        """Learn how long a result was waited for; called by whoever takes them."""
        self._stretch.waited += seconds
        if self._stretch.age < WINDOW or not self._may_start:
            return
        with self._lock:
            stretch, self._stretch = self._stretch.ended(), Stretch()
            if self._pool is None:
                self._by_threads.saw(stretch)
                if self._by_threads.pays and self._sample:
                    self._start(self._by_threads.count)
                return
            pool = self._pool
        self._look_after(pool, stretch)

    def _look_after(self, pool: Pool, stretch: Stretch) -> None:
        """Keep processes while they are there and faster than threads; say what becomes of them."""
        if pool.why_not is not None:
            say_among(f"{self.backbone.name}: threads of one process decode alone, because {pool.why_not}")
            self._give_up()
        elif pool.lost > self._lost:
            self._lost = pool.lost
            rest = f"the other {pool.left} go on" if pool.left else "threads go on"
            say_among(f"a process that decodes was ended, perhaps because memory is short: {rest}")
            if not pool.left:
                self._give_up()
        elif not pool.ready:
            return
        elif not self._seen_ready:
            # They were not for the whole of this stretch.
            self._seen_ready = True
        elif not self._settled:
            self._by_processes.saw(stretch)
            if self._by_processes.seconds >= TRIAL:
                self._settle(pool)

    def _settle(self, pool: Pool) -> None:
        """Keep processes if they are faster; those that are stated are kept."""
        self._settled = True
        before, now = self._by_threads.rate, self._by_processes.rate
        if self._stated:
            return
        if now < GAIN * before:
            self._give_up()
            return
        say_among(f"{pool.left} processes decode from here on: {now:,.0f} rows/s, {before:,.0f} by threads")


_latest: Decoder | None = None
_latest_lock = threading.Lock()


def decoder_of(backbone: Backbone) -> Decoder:
    """The decoder of a backbone: the latest, where it is that of this one.

    Asking for another ends the processes of the latest; whoever still works with that one may start them again.

    Raises:
        RecipeError: the number of processes that is stated is none, or there can be none here.
    """
    global _latest
    with _latest_lock:
        if _latest is None or _latest.backbone is not backbone:
            stated = _stated_processes()
            if _latest is not None:
                _latest.close()
            _latest = Decoder(backbone, stated)
        return _latest


def _stated_processes() -> int | None:
    stated = os.environ.get(STATED, "").strip()
    if stated and not (stated.isascii() and stated.isdecimal()):
        raise RecipeError(f"{STATED}={stated!r}: give the number of processes that decode, or 0 for threads alone")
    if stated and int(stated) and sys.platform != "linux":
        raise RecipeError(f"{STATED}={stated}: processes decode on Linux alone; leave it out, and threads do")
    return int(stated) if stated else None


def _forget() -> None:
    """In a process that was forked of this one: the sockets are the other's, and its threads' locks stay locked."""
    global _latest, _latest_lock
    _latest, _latest_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
