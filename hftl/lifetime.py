"""Lifetimes of processes: whether another one runs, and ending with the launcher that started this one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

LAUNCHER = "HFTL_LAUNCHER"
"""The environment variable in which `hftl run --num-processes` tells its workers its own process id."""
# Windows has no SIGHUP, which comes when a terminal is closed.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals that ask a process to stop."""
SECONDS_BETWEEN_LOOKS = 1.0
_PR_SET_PDEATHSIG = 1
_ENDED = "ZX"


def started_at(pid: int) -> int | None:
    """When a process started, in the kernel's ticks, so that a later one of the same number is told apart.

    None where the system does not say, or the process is gone.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_running(pid: int, started: int | None = None) -> bool:
    """Whether a process of this machine runs; one that ended and was not yet waited for does not.

    Args:
        pid: its number.
        started: when it started, as `started_at` gave it; None if unknown.
    """
    if os.name == "nt":  # os.kill would end it
        return True
    if not is_known(pid):
        return False
    fields = _stat(pid)
    if not fields:
        return True
    return fields[0] not in _ENDED and (started is None or int(fields[19]) == started)


def is_known(pid: int) -> bool:
    """Whether the system still knows a process of this machine, be it that it ended and was not yet waited for.

    Not for Windows, where asking would end it.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _stat(pid: int) -> list[str]:
    """What Linux tells of a process from its state on; nothing elsewhere."""
    with suppress(OSError):
        # The name before may itself hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def follow_launcher() -> None:
    """End this process when the launcher that started it is gone, as after ``kill -9``.

    Else it would train on beside the run that is resumed, or wait for ever for processes that are gone. What was
    committed stays. Does nothing in a process that was not started by `hftl run --num-processes` or by torch's
    elastic launcher (``torchrun``, ``accelerate launch``): whoever else starts processes may mean them to outlive it.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    # At once and by the kernel; the thread below looks once a second, and only while Python lets it.
    end_with_parent()
    watched = int(launcher) if launcher is not None else parent
    threading.Thread(target=_end_with, args=(parent, watched), name="follow-launcher", daemon=True).start()


def end_with_parent() -> None:
    """Have Linux kill this process when the thread of its parent ends that started it; elsewhere nothing happens."""
    if sys.platform == "linux":
        # Brought only here, because every command imports this module.
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with(parent: int, launcher: int) -> None:
    # The launcher may be the parent's parent: hftl starts accelerate, and that starts the workers.
    while os.getppid() == parent and is_running(launcher):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(128 + 9)
