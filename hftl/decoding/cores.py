"""Cores that this process may use."""

from __future__ import annotations

import os

from hftl.control_groups import control_groups

# By version of a control group: microseconds of a core in so many microseconds; "max" or -1 for no quota.
_QUOTA_FILES = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}


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
    """Whole cores that the smallest quota allows; None where there is none."""
    quotas = []
    for folder, version in control_groups("cpu"):
        try:
            allowed, period = " ".join((folder / name).read_text() for name in _QUOTA_FILES[version]).split()
            if int(allowed) > 0:
                quotas.append(int(allowed) // int(period))
        except (OSError, ValueError):
            continue
    return max(1, min(quotas)) if quotas else None
