"""Is the embedded default's transfer real? Accuracy on handwritten digits, beside three ways without transfer.

    python benchmarks/transfer.py [--seeds 5] [--threads 2] [--model DIR]

Contestants, on the fixed test third of ``sample:digits`` (599 images):

- *glyph ViT, frozen*: hftl/glyph-vit-tiny's CLS feature with a linear head;
- *random ViT, frozen*: the same network at random initialisation, the same head;
- *ViT from scratch*: the same network, all of it trained on the same images (AdamW, warm-up and cosine, at least 40
  epochs and 300 steps of 64, which is where longer training stops to help; random shift, turn and scale; bf16);
- *raw pixels*: the same head on the 64 grey levels.

A seed draws the labelled images (the same for all four), the random networks and the order of training. Every linear
head gets its strength and its scaling (per feature, or one for all) by cross-validation on its own training images.
"""

import argparse
import io
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import tell_machine
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hftl.samples import digits, path

LABELS_PER_CLASS = (5, 10, 20, None)
NUM_LABELS = 10
GLYPH, RANDOM, SCRATCH, PIXELS = "glyph ViT, frozen", "random ViT, frozen", "ViT from scratch", "raw pixels"


def images(split: str) -> tuple[list[Image.Image], np.ndarray]:
    rows = digits()[split]
    return [Image.open(io.BytesIO(row.encoded)) for row in rows], np.array([int(row.label) for row in rows])


def choose(labels: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Rows of a training set with ``per_class`` images of each digit, or all of them."""
    if per_class is None:
        return np.arange(len(labels))
    rng = np.random.RandomState(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in range(NUM_LABELS)])


def linear_head(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Predict with logistic regression; strength and scaling are chosen by five-fold cross-validation."""
    train, test = train / train.std(), test / train.std()
    head = Pipeline([("scale", StandardScaler()), ("fit", LogisticRegression(max_iter=1000, tol=1e-3))])
    grid = {"scale": [StandardScaler(), FunctionTransformer()], "fit__C": np.logspace(-4, 1, 6)}
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak strength stopped early is judged as it stands
        return GridSearchCV(head, grid, scoring="neg_log_loss", cv=folds).fit(train, labels).predict(test)


class Digits:
    """Both splits as the contestants see them: pixels for the networks, grey levels, labels."""

    def __init__(self, model: Path) -> None:
        processor = AutoImageProcessor.from_pretrained(model)
        self.pixels: dict[str, Tensor] = {}
        self.grey: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            pictures, self.labels[split] = images(split)
            rgb = [picture.convert("RGB") for picture in pictures]
            self.pixels[split] = processor(rgb, return_tensors="pt")["pixel_values"]
            self.grey[split] = np.stack([np.asarray(picture, dtype=np.float64).ravel() for picture in pictures])


def random_network(model: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # Eager attention trains faster than the fused kernel for 17 tokens on a CPU.
    config = AutoConfig.from_pretrained(model, num_labels=NUM_LABELS)
    return AutoModelForImageClassification.from_config(config, attn_implementation="eager")


@torch.inference_mode()
def cls_features(model: nn.Module, pixels: Tensor) -> np.ndarray:
    """What the class's own linear classifier sees: CLS after the last layer norm."""
    return model.eval().base_model(pixels).last_hidden_state[:, 0].double().numpy()


def jitter(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Shift by up to about one of eight pixels, turn by up to about 10 degrees, scale by up to about 10 %."""
    n = len(pixels)
    angle, zoom = torch.randn(n, generator=rng) * 0.1, 1 + torch.randn(n, generator=rng) * 0.07
    shift = torch.randn(n, 2, generator=rng) * 0.08
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = (torch.stack((cos, -sin, shift[:, 0]), -1), torch.stack((sin, cos, shift[:, 1]), -1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def from_scratch(model: nn.Module, pixels: Tensor, labels: np.ndarray, test: Tensor, seed: int) -> np.ndarray:
    """Train the whole network and predict."""
    target, rng = torch.from_numpy(labels), torch.Generator().manual_seed(seed)
    batch = min(64, len(labels))
    steps_per_epoch = len(labels) // batch
    epochs = max(40, 300 // steps_per_epoch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * steps_per_epoch, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=rng).split(batch)[:steps_per_epoch]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(jitter(pixels[rows], rng)).logits
            functional.cross_entropy(logits.float(), target[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    with torch.inference_mode():
        return model.eval()(test).logits.argmax(-1).numpy()


def accuracies(data: Digits, model: Path, seed: int) -> dict[str, list[float]]:
    """Test accuracy of each contestant at each of ``LABELS_PER_CLASS``, for one seed."""
    pretrained = AutoModelForImageClassification.from_pretrained(model, num_labels=NUM_LABELS)
    spaces = {
        GLYPH: {split: cls_features(pretrained, pixels) for split, pixels in data.pixels.items()},
        RANDOM: {split: cls_features(random_network(model, seed), pixels) for split, pixels in data.pixels.items()},
        PIXELS: data.grey,
    }
    scores: dict[str, list[float]] = {name: [] for name in (GLYPH, RANDOM, SCRATCH, PIXELS)}
    for per_class in LABELS_PER_CLASS:
        rows = choose(data.labels["train"], per_class, seed)
        labels = data.labels["train"][rows]
        predicted = {n: linear_head(x["train"][rows], labels, x["test"], seed) for n, x in spaces.items()}
        network = random_network(model, seed)
        predicted[SCRATCH] = from_scratch(network, data.pixels["train"][rows], labels, data.pixels["test"], seed)
        for name, label in predicted.items():
            scores[name].append(float((label == data.labels["test"]).mean()))
    return scores


def report(runs: list[dict[str, list[float]]]) -> str:
    """A Markdown table, mean and standard deviation over runs, and who is not beaten."""
    columns = (
        "labels per class",
        *(str(count) if count else "all (about 120)" for count in LABELS_PER_CLASS),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    means = {}
    for name in runs[0]:
        scores = np.array([run[name] for run in runs])
        means[name], spread = scores.mean(axis=0), scores.std(axis=0, ddof=min(1, len(runs) - 1))
        cells = (f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(means[name], spread, strict=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    unbeaten = [name for name in means if name != GLYPH and (means[name] >= means[GLYPH]).any()]
    verdict = f"not ahead everywhere of {', '.join(unbeaten)}" if unbeaten else "ahead of all at every count"
    return "\n".join((*lines, "", f"The frozen glyph ViT is {verdict}."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=path("glyph-vit-tiny"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    start, runs, data = time.perf_counter(), [], Digits(args.model)
    for seed in range(args.seeds):
        runs.append(accuracies(data, args.model, seed))
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\nAccuracy on {len(data.labels['test'])} handwritten digits, mean ± sd over {args.seeds} seeds:\n")
    print(report(runs))


if __name__ == "__main__":
    tell_machine()
    main()
