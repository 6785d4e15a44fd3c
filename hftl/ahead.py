"""Reading ahead: work done in threads a few items before it is needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    depth: int = 2,
    waited: Callable[[float], None] | None = None,
) -> Generator[R, None, None]:
    """Do ``work`` on each item in worker threads; results in the items' order.

    Args:
        work: called in a worker thread; what it raises is raised here, when its result is due.
        items: taken from as the work goes on.
        workers: threads.
        depth: items a worker that are waiting or done at any moment; this bounds the memory.
        waited: told for each result how many seconds its taker waited for it.
    """

    def result(future: Future[R]) -> R:
        before = time.perf_counter()
        done = future.result()
        if waited is not None:
            waited(time.perf_counter() - before)
        return done

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth * workers:
                    yield result(waiting.popleft())
            while waiting:
                yield result(waiting.popleft())
        finally:
            # Whoever stops early, by an error or an interrupt, must not wait for work that nobody will read.
            pool.shutdown(wait=True, cancel_futures=True)
