"""Reading ahead: work done in threads a few items before it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int, depth: int = 2) -> Iterator[R]:
    """Do ``work`` on each item in worker threads; results in the items' order.

    Args:
        work: called in a worker thread; what it raises is raised here, when its result is due.
        items: taken from as the work goes on.
        workers: threads.
        depth: items a worker that are waiting or done at any moment; this bounds the memory.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Whoever stops early, by an error or an interrupt, must not wait for work that nobody will read.
            pool.shutdown(wait=True, cancel_futures=True)
