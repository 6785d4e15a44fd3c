"""Is the embedded default's transfer real? Accuracy on handwritten digits, beside three ways without transfer.

    python benchmarks/transfer.py [--seeds 5] [--threads 2] [--scratch-epochs E] [--model DIR]

Contestants, on the fixed test third of ``sample:digits`` (599 images):

- *glyph ViT, frozen*: hftl/glyph-vit-tiny's CLS feature with a linear head;
- *random ViT, frozen*: the same network at random initialisation, the same head;
- *ViT from scratch*: the same network, all of it trained on the same images (AdamW, warm-up and cosine, at least 40
  epochs and 300 steps, random shift, turn and scale);
- *raw pixels*: the same head on the 64 grey levels.

A seed draws the labelled images (the same for all four), the random networks and the order of training. Every linear
head gets its strength and its scaling (per feature, or one for all) by cross-validation on its own training images.
"""

import argparse
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hftl.samples import digits, path

LABELS_PER_CLASS = (5, 10, 20, None)
NUM_LABELS = 10


def images(split: str) -> tuple[list[Image.Image], np.ndarray]:
    rows = digits()[split]
    return [Image.open(io.BytesIO(row.encoded)) for row in rows], np.array([int(row.label) for row in rows])


def choose(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Rows of a training set with ``per_class`` images of each digit, or all of them."""
    if per_class is None:
        return np.arange(len(labels))
    rng = np.random.RandomState(seed)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(NUM_LABELS)]
    )


def linear_head(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Predict with logistic regression; strength and scaling are chosen by five-fold cross-validation."""
    train, test = train / train.std(), test / train.std()
    head = Pipeline([("scale", StandardScaler()), ("fit", LogisticRegression(max_iter=1000, tol=1e-3))])
    grid = {"scale": [StandardScaler(), FunctionTransformer()], "fit__C": np.logspace(-4, 1, 6)}
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a weak strength stopped early is judged as it stands
        return GridSearchCV(head, grid, scoring="neg_log_loss", cv=folds).fit(train, labels).predict(test)


@torch.inference_mode()
def cls_features(model: torch.nn.Module, pixels: Tensor) -> np.ndarray:
    """What the class's own linear classifier sees: CLS after the last layer norm."""
    return model.eval().base_model(pixels).last_hidden_state[:, 0].numpy()


def jitter(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Shift by up to about one of eight pixels, turn by up to about 10 degrees, scale by up to about 10 %."""
    n = len(pixels)
    angle, zoom = torch.randn(n, generator=rng) * 0.1, 1 + torch.randn(n, generator=rng) * 0.07
    shift = torch.randn(n, 2, generator=rng) * 0.08
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = (torch.stack((cos, -sin, shift[:, 0]), -1), torch.stack((sin, cos, shift[:, 1]), -1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def from_scratch(
    model: torch.nn.Module, pixels: Tensor, labels: np.ndarray, test: Tensor, epochs: int, seed: int
) -> np.ndarray:
    """Train the whole network and predict."""
    target, rng = torch.from_numpy(labels), torch.Generator().manual_seed(seed)
    batch = min(64, len(labels))
    steps = epochs * max(1, len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=rng).split(batch)[: max(1, len(labels) // batch)]:
            logits = model(jitter(pixels[rows], rng)).logits
            functional.cross_entropy(logits, target[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        return model.eval()(test).logits.argmax(-1).numpy()


def table(scores: dict[str, dict[int | None, list[float]]]) -> str:
    columns = ["labels per class", *(str(k) if k else "all (about 120)" for k in LABELS_PER_CLASS)]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---|" * len(LABELS_PER_CLASS)]
    for name, by_count in scores.items():
        cells = (f"{np.mean(s):.3f} ± {np.std(s, ddof=len(s) > 1):.3f}" for s in by_count.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch-epochs", type=int, help="default: as many as make 300 steps, at least 40")
    parser.add_argument("--model", type=Path, default=path("glyph-vit-tiny"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()

    processor = AutoImageProcessor.from_pretrained(args.model)
    (train_images, train_y), (test_images, test_y) = images("train"), images("test")

    def pixels(pictures: list[Image.Image]) -> Tensor:
        return processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")[
            "pixel_values"
        ]

    def grey(pictures: list[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(picture, dtype=np.float64).ravel() for picture in pictures])

    def random_network(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(args.model, num_labels=NUM_LABELS)
        return AutoModelForImageClassification.from_config(config)

    train_x, test_x = pixels(train_images), pixels(test_images)
    pretrained = AutoModelForImageClassification.from_pretrained(args.model, num_labels=NUM_LABELS)
    spaces: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
        "glyph ViT, frozen + linear head": lambda _: (
            cls_features(pretrained, train_x),
            cls_features(pretrained, test_x),
        ),
        "random ViT, frozen + linear head": lambda seed: (
            cls_features(random_network(seed), train_x),
            cls_features(random_network(seed), test_x),
        ),
        "raw pixels + linear head": lambda _: (grey(train_images), grey(test_images)),
    }
    scratch = "the same ViT trained from scratch"
    scores: dict[str, dict[int | None, list[float]]] = {
        name: {count: [] for count in LABELS_PER_CLASS} for name in (*spaces, scratch)
    }
    for seed in range(args.seeds):
        features = {name: space(seed) for name, space in spaces.items()}
        for count in LABELS_PER_CLASS:
            rows = choose(train_y, count, seed)
            for name, (train, test) in features.items():
                predicted = linear_head(train[rows], train_y[rows], test, seed)
                scores[name][count].append(float((predicted == test_y).mean()))
            epochs = args.scratch_epochs or max(40, 300 // max(1, len(rows) // 64))
            predicted = from_scratch(random_network(seed), train_x[rows], train_y[rows], test_x, epochs, seed)
            scores[scratch][count].append(float((predicted == test_y).mean()))
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s", flush=True)

    print(f"\nTest accuracy on 599 handwritten digits, mean ± standard deviation over {args.seeds} seeds:\n")
    print(table(scores))
    glyph, *others = scores
    behind = [
        f"{name} at {count or 'all'} labels"
        for name in others
        for count in LABELS_PER_CLASS
        if np.mean(scores[name][count]) >= np.mean(scores[glyph][count])
    ]
    print(
        f"\nThe glyph ViT is not ahead of: {'; '.join(behind)}."
        if behind
        else "\nThe glyph ViT is ahead everywhere."
    )


if __name__ == "__main__":
    main()
