"""Thresholds of several labels: macro F1 on fresh rows of 0.5, of the best cut on held-out rows (0 s.e.), and of the
cut nearest half of the best F1 within so many standard errors of the best.

    python benchmarks/thresholds.py

Made sets: emotions (28 labels, from 0.3 % to 20 % of the rows, overlapping), the same with logits twice too large, and
labels that are nearly separable.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import tell_machine

from hftl.heads import thresholds
from hftl.heads.thresholds import best_thresholds, f1_scores

STANDARD_ERRORS = (0.0, 1.0, 1.1, 1.5, 2.0)


def scores(
    rng: np.random.Generator, rows: int, rates: np.ndarray, apart: np.ndarray, times: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (n, labels), calibrated where ``times`` is 1, and labels: normal distributions, so far apart."""
    truth = rng.random((rows, len(rates))) < rates
    seen = rng.normal(0, 1, truth.shape) + truth * apart
    logits = seen * apart - apart**2 / 2 + np.log(rates / (1 - rates))
    return torch.from_numpy(1 / (1 + np.exp(-times * logits))), torch.from_numpy(truth.astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    draws = parser.parse_args().draws
    emotions = np.geomspace(0.003, 0.2, 28)
    kinds = {
        "emotions": (emotions, np.linspace(1.2, 2.5, 28), 1.0),
        "overconfident": (emotions, np.linspace(1.2, 2.5, 28), 2.0),
        "nearly separable": (np.linspace(0.05, 0.4, 8), np.full(8, 6.5), 1.0),
    }
    print(f"{'labels':<17} {'held out':>8} {'0.5':>7}  " + "  ".join(f"{z:g} s.e." for z in STANDARD_ERRORS))
    for name, made in kinds.items():
        for rows in (300, 1000, 5000):
            rng = np.random.default_rng(0)
            found = []
            for _ in range(draws):
                held_out, fresh = scores(rng, rows, *made), scores(rng, 20_000, *made)
                cuts = [torch.full((len(made[0]),), 0.5)]
                for thresholds.WITHIN in STANDARD_ERRORS:
                    cuts.append(best_thresholds(*held_out))
                found.append([float(f1_scores(fresh[0] > cut, fresh[1]).mean()) for cut in cuts])
            mean = np.mean(found, 0)
            print(f"{name:<17} {rows:>8,} {mean[0]:>7.4f}  " + "  ".join(f"{value:.4f}" for value in mean[1:]))


if __name__ == "__main__":
    tell_machine()
    main()
