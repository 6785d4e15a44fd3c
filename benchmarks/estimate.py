"""How well the time left is told while texts go through a backbone.   python benchmarks/estimate.py DATA [--limit 2500]

Features of DATA (texts) are computed into an empty store. At a tenth, a quarter, half and three quarters of the time,
what the progress line said is set beside what it was, and beside what the share of rows alone would have said.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from machine import tell_machine

import hftl
from hftl import progress

SHARES = (0.1, 0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--limit", type=int, default=2500)
    options = parser.parse_args()
    seen: list[tuple[float, float | None, float]] = []
    advance = progress.Progress.advance

    def noted(self: progress.Progress, count: int = 1, work: float | None = None, note: str | None = None) -> None:
        advance(self, count, work, note)
        if self.what == "features" and self.total:
            seen.append((time.monotonic(), self.seconds_left, self.done / self.total))

    progress.Progress.advance = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HFTL_CACHE"] = cache
        recipe = hftl.Recipe(backbone=options.backbone, data=options.data, limit=options.limit)
        hftl.features(recipe, quiet=True)
    start, end = seen[0][0], seen[-1][0]
    for share in SHARES:
        at, said, rows = min(seen, key=lambda each: abs(each[0] - start - share * (end - start)))
        was, by_rows = end - at, (at - start) / rows * (1 - rows)
        told = f"{(said or 0) / was:.2f} of what it was, by rows {by_rows / was:.2f}"
        print(f"after {share:.0%} of {end - start:.0f} s: {told}")


if __name__ == "__main__":
    tell_machine()
    main()
