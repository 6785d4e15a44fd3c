"""Does a quarter of the rows rank depths as all of them do?   python benchmarks/agreement.py [--data FOLDER]

FOLDER (../shared/data by default) holds trashnet, clothing_small, banking77 and deit-tiny-patch16-224. Kendall's tau,
-1 to 1, with the probe of every depth on all training rows, over all pairs of depths, over those of depths 3, 6, 9, 12,
and over the pairs that all rows tell apart (the 95 % interval of the paired difference leaves out 0):

- a quarter: of the probe on a quarter of the rows, which are drawn several times;
- other folds: of the probe on all rows again, with other folds;
- rows drawn again: of the probe on all rows, judged on bootstrap samples of them: as far as it agrees with itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from machine import tell_machine

import hftl
from hftl import Head, Layers, Recipe
from hftl.scout.probe import ahead_by

Pairs = Sequence[tuple[int, int]]


def tau(one: np.ndarray, other: np.ndarray, pairs: Pairs) -> float:
    """Pairs in the same order less those in the other one, as a share of all; equal scores are in none."""
    signs = [np.sign(one[a] - one[b]) * np.sign(other[a] - other[b]) for a, b in pairs]
    return float(np.mean(signs))


def merits(answer: Layers) -> np.ndarray:
    return np.array([each.score.merit for each in answer.depths])


def compare(name: str, recipe: Recipe, draws: int) -> None:
    whole = hftl.layers(recipe, quiet=True)
    own, depths = merits(whole), [each.depth for each in whole.depths]
    seeds = [recipe.model_copy(update={"seed": recipe.seed + 1 + k}) for k in range(draws)]
    quarters = [hftl.layers(each, subset=whole.rows // 4, quiet=True) for each in seeds]
    others = [hftl.layers(each, quiet=True) for each in seeds]
    every = list(combinations(range(len(depths)), 2))
    of_pairs = {
        "all pairs": every,
        "depths 3, 6, …": [pair for pair in every if all(depths[k] % 3 == 0 for k in pair)],
        "told apart": [pair for pair in every if _apart(whole, *pair)],
    }
    drawn = np.array([each.score.draws for each in whole.depths]).T[:200]
    print(f"{name}, {whole.metric} of {whole.rows:,} rows and of {quarters[0].rows:,}; {draws} draws")
    for one, other in zip(whole.depths, quarters[0].depths, strict=True):
        print(f"  depth {one.depth:2}   all rows {one.probe}   the first quarter {other.probe}")
    for what, pairs in of_pairs.items():
        _show(
            f"{what} ({len(pairs)})",
            {
                "a quarter": [tau(own, merits(each), pairs) for each in quarters],
                "other folds": [tau(own, merits(each), pairs) for each in others],
                "rows drawn again": [tau(own, each, pairs) for each in drawn],
            },
        )


def _apart(whole: Layers, one: int, other: int) -> bool:
    gain = ahead_by(whole.depths[one].score, whole.depths[other].score)
    return gain.low > 0 or gain.high < 0


def _show(what: str, taus: Mapping[str, Sequence[float]]) -> None:
    told = [f"{name} {np.mean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for name, each in taus.items()]
    print(f"  {what:22} {', '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where the sets are")
    parser.add_argument("--only", help="names of sets, separated by commas")
    parser.add_argument("--draws", type=int, default=5, help="of a quarter of the rows")
    given = parser.parse_args()
    deit = str(given.data / "deit-tiny-patch16-224")
    recipes = {
        "trashnet": Recipe(backbone=deit, data=str(given.data / "trashnet")),
        "clothing_small": Recipe(backbone=deit, data=str(given.data / "clothing_small")),
        "banking77": Recipe(backbone="minilm-l6", data=str(given.data / "banking77"), method=Head(pooling="mean")),
    }
    for name in (given.only or ",".join(recipes)).split(","):
        compare(name, recipes[name], given.draws)


if __name__ == "__main__":
    tell_machine()
    main()
