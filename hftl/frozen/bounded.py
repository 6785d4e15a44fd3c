"""How much memory rows may take, and whether their features are read into it or in blocks out of the store."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import psutil

from hftl.backbones.cut.cut import Cut
from hftl.control_groups import control_groups
from hftl.errors import RecipeError
from hftl.heads.baselines import NEIGHBOURS_AMONG
from hftl.heads.calibration import BLOCK_ROWS
from hftl.heads.lbfgs import MEMORY
from hftl.heads.path import heads_together
from hftl.heads.thresholds import CUTS_TOGETHER
from hftl.terminal import Terminal
from hftl.wording import human_bytes

# Of a row, beside its features: its name and place in the store, label, weight, fold, and what sorts them.
_ROW_BYTES = 160
# What is there however few rows there are: blocks, the part of a shard that they are read from, kernels of oneDNN, and
# what is read of libraries only then.
_FIXED_BYTES = 256 << 20
# Of each pair of features: the covariances that axes and the nearest class mean are found of, several in float64.
_AXES_BYTES = 48
# The same of a head that is scaled by rows of its own.
_SCALES_BYTES = 20
# Of each parameter of a head: itself, its gradient, its curvature and where they go, in float64.
_PARAMETER_BYTES = 160
# Of each probability of a block of rows that is judged, and of each cut between two of them.
_JUDGED_BYTES, _CUT_BYTES = 64, 160
# Where nobody says how much: the share of what is free that is taken at most.
_FREE_SHARE = 0.5
# By version of a control group: the limit, what is used, and what of it is given back where it is short.
_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
# From malloc.h: blocks of at least so many bytes are mapped each for itself.
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20


@dataclass(frozen=True)
class Solved:
    """What decides how much a head takes while it is solved, beside rows and the width of their features.

    Attributes:
        outputs: how many numbers are said of each row.
        output_bytes: what is kept of each of them, for each row.
        cuts: whether a threshold is chosen for each output, one after the other.
        heads: solved side by side.
        strengths: that they are solved at, one after the other.
        crossed: folds of which heads without each two are solved side by side too, each with scales of its own.
    """

    outputs: int
    output_bytes: int
    cuts: bool
    heads: int
    strengths: int
    crossed: int = 0

    def row_bytes(self, rows: int) -> int:
        """Bytes that what is said of so many rows takes."""
        together = min(rows * self.outputs, max(rows, CUTS_TOGETHER)) if self.cuts else 0
        return rows * self.outputs * (self.output_bytes + 8 * self.crossed) + _CUT_BYTES * together

    def bytes_at(self, width: int, rows: int) -> int:
        """Bytes beside rows: axes, heads of all folds at all strengths, what is judged, and who is near to whom."""
        size = (min(width, rows) + 1) * self.outputs
        pairs = self.crossed * (self.crossed - 1) // 2
        heads = max(self.heads, pairs)
        history = 2 * MEMORY * 4 * size * min(heads, heads_together(size))
        return (
            (_AXES_BYTES + _SCALES_BYTES * pairs) * width**2
            + heads * size * (_PARAMETER_BYTES + 4 * self.strengths)
            + history
            + _JUDGED_BYTES * min(rows, BLOCK_ROWS) * self.outputs
            + min(rows, NEIGHBOURS_AMONG) * (8 * width + 12 * self.outputs)
        )


NOTHING_SOLVED = Solved(0, 0, False, 0, 0)


@dataclass(frozen=True)
class Memory:
    """What rows may take, beside libraries and the model's weights.

    Attributes:
        stated: bytes, of all processes on a machine together; None for half of what is free.
        solved: the head.
        held: bytes that the rows themselves take already.
        whole: why features have to be in memory all at once, for a person; None where blocks will do.
        say: where it is said that they are read in blocks.
        further: vectors beside one for each row: of more views of a picture, or words of a sentence.
        processes: how many of this machine hold all rows.
    """

    stated: int | None
    solved: Solved
    held: int
    whole: str | None
    say: Terminal
    further: int = 0
    processes: int = 1

    def in_blocks(self, cut: Cut, rows: int) -> int | None:
        """Bytes that blocks of features may take; None where all of them are to be in memory.

        Args:
            cut: what is kept of a row.
            rows: how many there are.

        Raises:
            RecipeError: what has to be in memory is more than was stated.
        """
        self.check(cut, rows)
        most = self.stated if self.stated is not None else int(_FREE_SHARE * free_memory())
        together = self._in_memory(cut.width, rows)
        if self._why_whole(cut) is not None or together <= most:
            return None
        self.say.print(
            f"memory    {human_bytes(4 * cut.width * rows)} of features are read in blocks, at every step of the "
            f"solver; in memory they are from --memory {_said(together)} on"
        )
        return max(most // self.processes - self._beside(rows, cut.width), _FIXED_BYTES)

    def check(self, cut: Cut, rows: int) -> None:
        """See that so many rows fit, as their features are to be read.

        Raises:
            RecipeError: they are more than was stated.
        """
        whole = self._why_whole(cut)
        if whole is None:
            self.holds(rows, cut.width, cut.width)
            return
        together = self._in_memory(cut.width, rows)
        if self.stated is not None and (together > self.stated or not cut.width):
            size = f", {human_bytes(4 * cut.width * (rows + self.further))} of {rows:,} rows" if cut.width else ""
            advice = f"give --memory {_said(together)} or more, or leave it out" if cut.width else "leave it out"
            raise RecipeError(f"--memory {_said(self.stated)}: {whole}{size}: {advice}")

    def holds(self, rows: int, width: int = 0, likely: int = 0) -> None:
        """See that so many rows fit, with blocks of their features.

        Args:
            rows: how many.
            width: numbers of a row's features, at least.
            likely: numbers that there will be, where that is not known yet; the advice is for so many.

        Raises:
            RecipeError: they are more than was stated.
        """
        if self.stated is None or self._in_parts(width, rows) <= self.stated:
            return
        enough = self._in_memory(likely, rows) if self.whole and likely else self._in_parts(likely, rows)
        why = f"; {self.whole}" if self.whole else ""
        raise RecipeError(
            f"--memory {_said(self.stated)}: names, labels and predictions of {rows:,} rows, and the head, take "
            f"{human_bytes(self._beside(rows, width))}, and blocks of features {human_bytes(_FIXED_BYTES)}"
            f"{self._of_each()}{why}: give --memory {_said(enough)} or more"
        )

    def _beside(self, rows: int, width: int) -> int:
        """Bytes that so many rows, and a head on them, take beside features."""
        solved = self.solved
        lines = rows + self.further
        return self.held + lines * _ROW_BYTES + solved.row_bytes(lines) + solved.bytes_at(width, lines)

    def _in_parts(self, width: int, rows: int) -> int:
        """Bytes that all processes take together where features are read in blocks."""
        return self.processes * (self._beside(rows, width) + _FIXED_BYTES)

    def _in_memory(self, width: int, rows: int) -> int:
        """Bytes that all processes take together where features are in memory.

        They are copied once in float64, where what costs nothing is set beside the result.
        """
        return self._in_parts(width, rows) + self.processes * 12 * width * (rows + self.further)

    def _of_each(self) -> str:
        return f", in each of {self.processes} processes" if self.processes > 1 else ""

    def _why_whole(self, cut: Cut) -> str | None:
        return self.whole or _whole(cut)


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

    So it stays for the whole process, also a notebook's, where a bound was once stated.

    It keeps those of up to 32 MB for itself otherwise, in pieces that no block of another size fits into: of a run on
    1,000,000 rows that was 80 MB beside 600 MB.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def free_memory() -> int:
    """Memory that is free here: the machine's, or what is left of the control group's and of those that it is in."""
    free = int(psutil.virtual_memory().available)
    for folder, version in control_groups("memory"):
        limit, used, kept = _GROUP_FILES[version]
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            # It has no limit ("max"), or is seen under another path from within a container.
            continue
        free = min(free, max(0, most - taken + int(told.get(kept, 0))))
    return free
