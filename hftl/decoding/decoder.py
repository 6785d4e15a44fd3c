"""`Decoder`: a backbone's rows, encoded in threads of this process or, where these do not keep up, in other processes.

Threads share Python's lock, which the many small steps of preprocessing hand to and fro: on sixteen cores they decode
little more than on two. Work begins in threads always, so nothing waits for processes to start. Each thread then hands
its rows to a process and waits; whatever a process does not answer, for whatever reason, the thread does itself, so
errors, warnings and what is read of a damaged file are those of this process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from hftl.ahead import ahead
from hftl.backbones.protocol import Backbone, Encoded
from hftl.decoding.choice import Choice, Stretch
from hftl.decoding.pool import Pool
from hftl.decoding.request import Change, Request, encoded_rows
from hftl.errors import RecipeError
from hftl.progress import say_among

T = TypeVar("T")
R = TypeVar("R")

STATED = "HFTL_DECODE_PROCESSES"
"""The environment variable that states how many processes decode, from the first rows on; 0 for threads alone."""
WINDOW = 1.0
# How long processes are tried, and how much faster than threads they have to be.
TRIAL, GAIN = 3.0, 1.1
# Rows that no process read and this one could: after so many the processes are not like it.
REFUSED = 8


class Decoder:
    """Encodes the rows of one backbone, from any thread.

    Args:
        backbone: who encodes.
        processes: how many are to decode, from the first rows on; 0 for none; None to find out.

    Attributes:
        backbone: who encodes.
        threads: how many may ask at a time.
    """

    def __init__(self, backbone: Backbone, processes: int | None = None) -> None:
        self.backbone = backbone
        cores = usable_cores()
        self.threads = max(cores, processes or 0)
        # A tokenizer uses threads of its own; and only Linux forks an interpreter safely that has imported torch.
        self._may_start = backbone.wants == "file" and sys.platform == "linux" and processes != 0
        self._stated = processes
        # What threads did, and what processes do; the latter from when they are ready.
        self._by_threads, self._by_processes = Choice(cores), Choice(cores)
        self._stretch = Stretch()
        self._pool: Pool | None = None
        self._left = 0
        self._refused = 0
        self._seen_ready = self._settled = False
        self._sample: Request | None = None
        self._lock = threading.Lock()

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
        left = pool.left if pool is not None else 0
        encoded = pool(request) if pool is not None else None
        before = time.thread_time()
        if encoded is None:
            encoded = encoded_rows(self.backbone, request)
            # Where one of the processes was ended meanwhile, none refused the rows.
            if pool is not None and pool.ready and pool.left == left:
                self._count_refused(pool)
        with self._lock:
            self._stretch.rows += len(encoded)
            self._stretch.decoding += time.thread_time() - before
            if self._sample is None and encoded and self._may_start:
                self._sample = Request(contents[:1], names[:1])
                if self._stated:
                    self._start(self._stated)
        return encoded

    def ahead(self, work: Callable[[T], R], items: Iterable[T], threads: int, depth: int = 2) -> Iterator[R]:
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
        """End the processes; rows are decoded in threads from here on."""
        self._may_start = False
        if self._pool is not None:
            self._pool.close()

    # ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, count: int) -> None:
        assert self._sample is not None
        self._left = count
        try:
            self._pool = Pool(self.backbone, self._sample, count)
        except OSError as error:  # no more files may be open
            self._may_start = False
            say_among(
                f"threads of one process decode alone, because {count} others cannot be reached: {error.strerror}"
            )

    def _count_refused(self, pool: Pool) -> None:
        """Note rows that no process read and this one could."""
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
        self._look_after(self._pool, stretch)

    def _look_after(self, pool: Pool, stretch: Stretch) -> None:
        """Keep processes while they are there and faster than threads; say what becomes of them."""
        if pool.why_not is not None:
            say_among(f"{self.backbone.name}: threads of one process decode alone, because {pool.why_not}")
            self.close()
        elif not pool.ready:
            return
        elif pool.left < self._left:
            self._left = pool.left
            rest = f"the other {self._left} go on" if self._left else "threads go on"
            say_among(f"a process that decodes was ended, perhaps because memory is short: {rest}")
            if not self._left:
                self.close()
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
            self.close()
            return
        say_among(f"{pool.left} processes decode from here on: {now:,.0f} rows/s, {before:,.0f} by threads")


def usable_cores() -> int:
    """Cores that this process may use, shared with those that a launcher started beside it on this machine."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, known // max(1, int(beside) if beside.isdecimal() else 1))


_latest: Decoder | None = None


def decoder_of(backbone: Backbone) -> Decoder:
    """The decoder of a backbone. There is one at a time: that of another backbone ends its processes.

    Raises:
        RecipeError: the number of processes that is stated is none, or there can be none here.
    """
    global _latest
    if _latest is None or _latest.backbone is not backbone:
        stated = os.environ.get(STATED, "").strip()
        if stated and not (stated.isascii() and stated.isdecimal()):
            raise RecipeError(f"{STATED}={stated!r}: give the number of processes that decode, or 0 for threads alone")
        if stated and int(stated) and sys.platform != "linux":
            raise RecipeError(f"{STATED}={stated}: processes decode on Linux alone; leave it out, and threads do")
        if _latest is not None:
            _latest.close()
        _latest = Decoder(backbone, int(stated) if stated else None)
    return _latest


def _forget() -> None:
    """In a process that was forked of this one: the sockets are the other's, and its threads' locks stay locked."""
    global _latest
    _latest = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
