"""How many threads small problems are worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hftl.heads.matrix import Matrix

# Multiplications of one pass over the rows below which threads wait for one another longer than they work. On a machine
# that others use, a thread that is not running holds up all others at every product.
WORTH_THREADS = 1 << 28


@contextmanager
def threads_for(features: Matrix, columns: int) -> Iterator[None]:
    """One thread of the CPU where products of the features (n, dim) with so many columns are small; else all of them.

    Sums may differ in the last bits, as they do from one number of threads to another.
    """
    before = torch.get_num_threads()
    small = features.device.type == "cpu" and before > 1 and features.numel() * columns < WORTH_THREADS
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)
