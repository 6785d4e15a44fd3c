"""Exact heads against scikit-learn, in one run, paired:   python benchmarks/heads.py

Each round times, one after another and on the same features (standardised, float32):

* scikit-learn: ONE ``LogisticRegression(C=10)`` fit, to its default gradient tolerance of 1e-4 and to 1e-6;
* one strength: ``fit_linear`` at C=10, to a comparable gradient;
* the whole job: ``fit_linear`` over 20 strengths and 5 folds, calibrated, refitted. At its default relative
  tolerance of 1e-10 the exported head's gradient is below 1e-6; at 5e-4 it is below 1e-4.

It prints the times, the largest gradient entry of each solution, recomputed in float64, and the medians of the
rounds' ratios. The job may end its path before the weakest strengths, where they have clearly made it worse.
``--features FILE.safetensors``, as ``hftl features RECIPE --export`` writes it, takes real ones for generated ones;
``--parity`` compares the solutions instead of the times: scikit-learn to a gradient of 1e-8 beside ``fit_linear`` at
its defaults, for three strengths. ``--large`` adds 100,000 x 768 x 100, for ``fit_linear`` only. ``--device cuda``
computes hftl's heads on a GPU. On a machine that does other work, ``--threads 1`` and the environment variable
OMP_NUM_THREADS=1 keep threads from waiting for one another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from machine import tell_machine
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from hftl.heads import HeadFit, fit_linear

T = TypeVar("T")
C = 10.0
# scikit-learn's gradient tolerance, and the relative tolerances of fit_linear that end below it: for C, for the job.
TOLERANCES = ((1e-4, 1e-3, 5e-4), (1e-6, 5e-7, 1e-10))


def generated(rows: int, dim: int, classes: int) -> dict[str, Tensor]:
    """Features shaped like a sentence encoder's: class means and noise that share a decaying spectrum."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, dim + 1) ** -0.5
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    means = torch.randn(classes, dim, generator=generator)
    held = rows // 4
    labels = torch.randint(0, classes, (rows + held,), generator=generator)
    noise = torch.randn(rows + held, dim, generator=generator)
    features = ((0.7 * means[labels] + noise) * spectrum) @ mixing
    return {
        "x_train": features[:rows],
        "y_train": labels[:rows],
        "x_test": features[rows:],
        "y_test": labels[rows:],
    }


def exported(path: Path) -> dict[str, Tensor]:
    """Training and test rows of a matrix of features."""
    with safe_open(path, "pt") as file:
        splits = np.array(json.loads(file.metadata()["splits"]))
        features, labels = file.get_tensor("features"), file.get_tensor("labels")
    parts = {split: torch.from_numpy(np.flatnonzero(splits == split)) for split in ("train", "test")}
    return {
        f"{letter}_{split}": of[rows]
        for split, rows in parts.items()
        for letter, of in (("x", features), ("y", labels))
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def gradient(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, strength: float) -> float:
    """The largest entry of the gradient of scikit-learn's objective (mean loss, C = 1 / strength), in float64."""
    x, weight, bias = x.double(), weight.cpu().double(), bias.cpu().double()
    residual = (x @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(y, len(weight))
    by_weight = (residual.T @ x + strength * weight) / len(x)
    return float(torch.cat([by_weight.flatten(), residual.mean(0)]).abs().max())


def accuracy(weight: Tensor, bias: Tensor, data: dict[str, Tensor]) -> float:
    logits = data["x_test"] @ weight.T.cpu() + bias.cpu()
    return float((logits.argmax(1) == data["y_test"]).double().mean())


def compare(data: dict[str, Tensor], repeats: int, device: str) -> None:
    x, y = data["x_train"], data["y_train"]
    mean, scale = x.mean(0), x.std(0, correction=0)
    data = {**data, "x_test": (data["x_test"] - mean) / scale}
    x = (x - mean) / scale
    classes = int(y.max()) + 1
    print(
        f"{len(x):,} x {x.shape[1]} x {classes}, {torch.get_num_threads()} threads, hftl on {device}, {repeats} rounds"
    )

    for sklearn_tolerance, one_tolerance, job_tolerance in TOLERANCES:
        compare_at(x, y, data, classes, repeats, device, sklearn_tolerance, one_tolerance, job_tolerance)


def compare_at(
    x: Tensor,
    y: Tensor,
    data: dict[str, Tensor],
    classes: int,
    repeats: int,
    device: str,
    sklearn_tolerance: float,
    one_tolerance: float,
    job_tolerance: float,
) -> None:
    def sklearn_fit() -> LogisticRegression:
        return LogisticRegression(C=C, tol=sklearn_tolerance, max_iter=5000).fit(x.numpy(), y.numpy())

    def fit(**options: Any) -> HeadFit:
        return fit_linear(x.to(device), y.to(device), task="single_label", num_labels=classes, **options)

    print(f" gradient tolerance {sklearn_tolerance:.0e}")
    one_ratios, job_ratios = [], []
    for _ in range(repeats):
        reference, reference_seconds = timed(sklearn_fit)
        one, one_seconds = timed(
            lambda: fit(strengths=[1 / C], calibrate=False, tolerance=one_tolerance, standardize=False)
        )
        job, job_seconds = timed(lambda: fit(tolerance=job_tolerance))
        one_ratios.append(one_seconds / reference_seconds)
        job_ratios.append(job_seconds / reference_seconds)
        weight, bias = (torch.from_numpy(np.asarray(v)) for v in (reference.coef_, reference.intercept_))
        temperature = job.report["calibration"]["temperature"]
        rows = (
            ("scikit-learn, one fit", reference_seconds, weight.float(), bias.float(), 1 / C),
            ("hftl, one strength", one_seconds, one.weight, one.bias, 1 / C),
            (
                f"hftl, {len(job.report['path'])} of 20 strengths",
                job_seconds,
                job.weight * temperature,
                job.bias * temperature,
                job.report["chosen"],
            ),
        )
        for name, seconds, w, b, strength in rows:
            print(
                f"  {name:24} {seconds:7.2f} s  gradient {gradient(w, b, x, y, strength):.1e}"
                f"  accuracy {accuracy(w, b, data):.4f}"
            )
    print(f"  one strength / scikit-learn's one fit: {statistics.median(one_ratios):.2f}   (target 0.5)")
    print(f"  whole job / scikit-learn's one fit:    {statistics.median(job_ratios):.2f}   (target 4)")


def parity(data: dict[str, Tensor], device: str) -> None:
    x, y = data["x_train"], data["y_train"]
    x = (x - x.mean(0)) / x.std(0, correction=0)
    classes = int(y.max()) + 1
    print(f"{len(x):,} x {x.shape[1]} x {classes}, hftl on {device}")
    for c in (0.1, 1.0, 10.0):
        theirs = LogisticRegression(C=c, tol=1e-8, max_iter=50_000).fit(x.double().numpy(), y.numpy())
        mine = fit_linear(
            x.to(device), y.to(device), task="single_label", num_labels=classes, strengths=[1 / c], calibrate=False,
            standardize=False,
        )  # fmt: skip
        solutions = [
            (torch.from_numpy(np.asarray(theirs.coef_)), torch.from_numpy(np.asarray(theirs.intercept_))),
            (mine.weight.cpu().double(), mine.bias.cpu().double()),
        ]
        # Only differences between classes matter: each solution's biases are centred.
        (w, b), (v, d) = ((weight, bias - bias.mean()) for weight, bias in solutions)
        theirs_loss, mine_loss = (objective(weight, bias, x, y, 1 / c) for weight, bias in solutions)
        p, q = ((x.double() @ weight.T + bias).softmax(1) for weight, bias in solutions)
        print(
            f"  C={c:<5g} objective {mine_loss / theirs_loss - 1:+.1e} of scikit-learn's; largest differences: "
            f"coefficients {float((w - v).abs().max()):.1e} (of {float(w.abs().max()):.2f}), "
            f"biases {float((b - d).abs().max()):.1e}, probabilities {float((p - q).abs().max()):.1e}",
            flush=True,
        )


def objective(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, strength: float) -> float:
    """scikit-learn's: the summed loss and half the strength times the squared weights, in float64."""
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y, reduction="sum")
    return float(loss + strength / 2 * weight.square().sum())


def large(device: str) -> None:
    data = generated(100_000, 768, 100)
    x, y = data["x_train"].to(device), data["y_train"].to(device)
    print("100,000 x 768 x 100, fit_linear only")
    one, seconds = timed(
        lambda: fit_linear(x, y, task="single_label", num_labels=100, strengths=[100.0], calibrate=False)
    )
    print(f"  one strength             {seconds:7.2f} s  iterations {one.report['iterations']}")
    whole, seconds = timed(lambda: fit_linear(x, y, task="single_label", num_labels=100))
    print(
        f"  the whole job            {seconds:7.2f} s  strength {whole.report['chosen']:.3g}, "
        f"converged {whole.report['converged']}  accuracy {accuracy(whole.weight, whole.bias, data):.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact heads against scikit-learn.")
    parser.add_argument("--features", type=Path, help="safetensors with x_train, y_train, x_test, y_test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        data = exported(arguments.features) if arguments.features else generated(10_003, 384, 77)
        if arguments.parity:
            parity(data, arguments.device)
            return
        compare(data, arguments.repeats, arguments.device)
        if arguments.large:
            large(arguments.device)


if __name__ == "__main__":
    tell_machine()
    main()
