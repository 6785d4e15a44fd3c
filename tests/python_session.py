"""What is typed into Python: each line of standard input is the representation of a piece of source, run in order."""

from __future__ import annotations

import ast
import contextlib
import sys
import traceback
from typing import Any


def main() -> None:
    """Run each piece; ``done``, or a traceback on one line, says how it ended. What pieces print goes to stderr."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    for line in sys.stdin:
        said = "done"
        with contextlib.redirect_stdout(sys.stderr):
            try:
                exec(compile(ast.literal_eval(line), "<page>", "exec"), variables)
            except BaseException:
                said = ascii(traceback.format_exc())[1:-1]
        print(said, flush=True)


if __name__ == "__main__":
    main()
