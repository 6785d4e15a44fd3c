"""The peak of a process's memory."""

from __future__ import annotations

import sys

import torch


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process had: a GPU's where it computes on one, else the machine's; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024
