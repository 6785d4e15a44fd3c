"""Cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

# What Linux allows the container this process is in: microseconds of a core in so many microseconds, or "max".
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may use, at least one.

    Those that it is bound to, as many as its container's quota allows, its part of them where a launcher started
    others beside it on this machine, and no more than `take_share` was told.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(bound, _quota() or bound)
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    known = allowed // max(1, int(beside) if beside.isdecimal() else 1)
    return max(1, min(known, _share or known))


_share: int | None = None


def take_share(cores: int) -> None:
    """Let this process use no more cores, where a scheduler deals them out and binds nobody to them, as Ray does.

    Args:
        cores: how many, at least 1.
    """
    global _share
    _share = cores


def _quota() -> int | None:
    """Whole cores that a quota allows; None where there is no container, or it has no quota."""
    try:
        allowed, period = CPU_MAX.read_text().split()
        return max(1, int(allowed) // int(period))
    except (OSError, ValueError):
        return None
