"""How much memory rows may take, and whether their features are read into it or in blocks out of the store."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from hftl.backbones.cut.cut import Cut
from hftl.errors import RecipeError
from hftl.terminal import Terminal
from hftl.wording import human_bytes

# Of a row, beside its features: its name and place in the store, label, weight, fold, and what sorts them.
_ROW_BYTES = 160
# Of each label of a row: its logit by the heads of folds, and copies of that while it is judged.
_LABEL_BYTES = 16
# What is there however few rows there are: blocks, the part of a shard that they are read from, the heads of all folds,
# kernels of oneDNN, and what is read of libraries only then.
_FIXED_BYTES = 256 << 20
# Where nobody says how much: the share of what is free that is taken at most.
_FREE_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")
# From malloc.h: blocks of at least so many bytes are mapped each for itself.
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20


@dataclass(frozen=True)
class Memory:
    """What rows may take, beside libraries and the model's weights.

    Attributes:
        stated: bytes; None for half of what is free.
        labels: how many numbers are said of each row.
        held: bytes that the rows themselves take already.
        whole: why features have to be in memory all at once, for a person; None where blocks will do.
        say: where it is said that they are read in blocks.
    """

    stated: int | None
    labels: int
    held: int
    whole: str | None
    say: Terminal

    def in_blocks(self, cut: Cut, rows: int) -> int | None:
        """Bytes that blocks of features may take; None where all of them are to be in memory.

        Args:
            cut: what is kept of a row.
            rows: how many there are.

        Raises:
            RecipeError: what has to be in memory is more than was stated.
        """
        most = self.stated if self.stated is not None else int(_FREE_SHARE * free_memory())
        whole = self.whole or _whole(cut)
        features, beside = 4 * cut.width * rows, self._beside(rows)
        # They are copied once in float64, where what costs nothing is set beside the result.
        together = beside + 3 * features + _FIXED_BYTES
        if whole is None and together > most:
            self.holds(rows)
            self.say.print(
                f"memory    {human_bytes(features)} of features are read in blocks, at every step of the solver; in "
                f"memory they are from --memory {_said(together)} on"
            )
            return max(most - beside, _FIXED_BYTES)
        if self.stated is not None and (together > most or not cut.width):
            size = f", {human_bytes(features)} of {rows:,} rows" if features else ""
            advice = f"give --memory {_said(together)} or more, or leave it out" if cut.width else "leave it out"
            raise RecipeError(f"--memory {_said(self.stated)}: {whole}{size}: {advice}")
        return None

    def holds(self, rows: int) -> None:
        """See that so many rows fit, with blocks of their features.

        Raises:
            RecipeError: they are more than was stated.
        """
        beside = self._beside(rows)
        if self.stated is not None and beside + _FIXED_BYTES > self.stated:
            raise RecipeError(
                f"--memory {_said(self.stated)}: names, labels and predictions of {rows:,} rows take "
                f"{human_bytes(beside)}, and blocks of features {human_bytes(_FIXED_BYTES)}: give --memory "
                f"{_said(beside + _FIXED_BYTES)} or more"
            )

    def _beside(self, rows: int) -> int:
        """Bytes that so many rows take beside their features."""
        return self.held + rows * (_ROW_BYTES + self.labels * _LABEL_BYTES)


def _whole(cut: Cut) -> str | None:
    """Why features of a kind have to be in memory all at once; None where they need not."""
    if cut.words:
        return "heads of words are solved on all features in memory"
    if cut.kind not in ("linear", "pooled"):
        return "a head that reads every token is trained on all features in memory"
    return None


def _said(size: int) -> str:
    """Bytes as an option has them, rounded up."""
    return f"{-(-size // 10**6)}M" if size < 10**10 else f"{-(-size // 10**9)}G"


def give_back_freed() -> None:
    """Let glibc hand large blocks back to the system as soon as they are freed; nothing where the C library is another.

    It keeps those of up to 32 MB for itself otherwise, in pieces that no block of another size fits into: of a run on
    1,000,000 rows that was 80 MB beside 600 MB.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def free_memory() -> int:
    """Memory that is free here: the machine's, or what is left of the container's."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        reclaimable = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # No container, or one without a limit ("max").
        return free
    return min(free, max(0, limit - used + int(reclaimable.get("inactive_file", 0))))
