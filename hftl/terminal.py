"""`Terminal`: where text for people is printed; nothing that other people wrote can command the terminal from there."""

from __future__ import annotations

from typing import IO, Any, ClassVar

from rich.console import Console
from rich.text import Text

from hftl.wording import plain


class Terminal(Console):
    """rich's console for text that is not only our own: no markup, no highlighting, no folding, no control characters.

    Args:
        quiet: print nothing.
        file: where to; standard output if not given.
    """

    redrawing: ClassVar[Terminal | None] = None
    """The terminal whose last line is redrawn at the moment."""

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None) -> None:
        # In a notebook rich would make a block of HTML of each line.
        super().__init__(quiet=quiet, file=file, markup=False, highlight=False, emoji=False, force_jupyter=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print lines of text as they are but for what cannot be shown; tables and the like as rich does."""
        lines = [Text(plain(each)) if isinstance(each, str) else each for each in objects]
        # Text is never folded, because a program may read it and a person may copy a path from it.
        folds = not all(isinstance(each, Text) for each in lines)
        # Two consoles on one screen do not know of one another: what stands above a line that redraws is printed by it.
        above = Terminal.redrawing if self.is_terminal and not self.quiet else None
        Console.print(above or self, *lines, **{"soft_wrap": not folds, **options})

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends quietly; rich would end with status 1."""
        raise  # rich calls this while it handles the error
