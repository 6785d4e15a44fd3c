"""Pretrain hftl/glyph-vit-tiny on letters and symbols, never digits.   python recipes/pretrain/glyph_vit.py --out DIR

Two steps, both on images drawn by ``glyphs.draw`` as training goes, no image twice:

1. a small convolutional teacher learns to name the characters (it needs far fewer images for this than a ViT);
2. the ViT learns to predict the teacher's features from its CLS output, and to name the characters.

Only the ViT is kept: DIR holds a standard transformers folder (``ViTModel`` in fp16, ``ViTImageProcessor``). The same
seed, thread count, kind of CPU and library versions give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from glyphs import SIZE, Atlas, build_atlas, draw, fonts
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

MIN_GLYPHS = 8  # a class needs this many drawings over all fonts
BATCH = 128
FEATURES = 192
MEAN, STD = 0.25, 0.3  # of the drawn images, about; also the processor's


def vit_config() -> ViTConfig:
    """The shipped network: 16 patches and CLS, 1.8 M parameters."""
    return ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=FEATURES,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=4 * FEATURES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # near 1/sqrt(hidden_size): so narrow a network starts slowly from the usual 0.02
    )


class Teacher(nn.Module):
    """A plain convolutional network on 16x16 images."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *self._block(1, 32), *self._block(32, 32), nn.MaxPool2d(2),
            *self._block(32, 64), *self._block(64, 64), nn.MaxPool2d(2),
            *self._block(64, 128), nn.Flatten(),
            nn.Linear(128 * 16, FEATURES, bias=False), nn.BatchNorm1d(FEATURES),
        )  # fmt: skip
        self.classifier = nn.Linear(FEATURES, num_labels)

    @staticmethod
    def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        """Return normalised features ``(n, FEATURES)`` before their ReLU."""
        return self.body(functional.avg_pool2d(image[:, :1], SIZE // 16))


class Student(nn.Module):
    """The ViT with two linear read-outs of its CLS feature, dropped afterwards: teacher's features, character."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        # Eager attention: for 17 tokens on a CPU it trains twice as fast as the fused kernel.
        config = vit_config()
        config._attn_implementation = "eager"
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.mimic = nn.Linear(FEATURES, FEATURES)
        self.classifier = nn.Linear(FEATURES, num_labels)

    def forward(self, image: Tensor) -> Tensor:
        """Return the CLS feature ``(n, FEATURES)`` after the last layer norm: what a linear classifier will see."""
        return self.vit(image).last_hidden_state[:, 0]


def batches(atlas: Atlas, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images ``(BATCH, 3, SIZE, SIZE)`` and their classes.

    A class is drawn in proportion to the square root of its number of glyphs.
    """
    weight = torch.bincount(atlas.label)[atlas.label].float() ** -0.5
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.multinomial(weight, BATCH, replacement=True, generator=rng)
        image = draw(atlas, rows, seed * 1_000_003 + step)
        yield ((image[:, None] - MEAN) / STD).expand(-1, 3, -1, -1), atlas.label[rows]


Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fit(
    name: str, model: nn.Module, loss: Loss, data: Iterator[tuple[Tensor, Tensor]], steps: int, peak: float
) -> None:
    """Train with AdamW, warm-up and cosine; ``loss`` gives the loss and the share of characters named rightly."""
    decay = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]
    rest = [p for p in model.parameters() if p.ndim not in (2, 4)]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * k / steps))
    )
    model.train()
    start, mean_loss, mean_right = time.perf_counter(), 0.0, 0.0
    for step, (image, label) in enumerate(data, start=1):
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the CPU has AVX-512 BF16
            value, right = loss(image, label)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        keep = 0.0 if step == 1 else 0.99
        mean_loss = keep * mean_loss + (1 - keep) * value.item()
        mean_right = keep * mean_right + (1 - keep) * right.item()
        if step % 100 == 0 or step == steps:
            elapsed = time.perf_counter() - start
            print(
                f"{name} {step}/{steps}  loss {mean_loss:.3f}  named rightly {mean_right:.3f}  "
                f"{step * BATCH / elapsed:.0f} glyphs/s  {elapsed / step * (steps - step) / 60:.1f} min left",
                flush=True,
            )
    model.eval()


def train_teacher(atlas: Atlas, steps: int, seed: int) -> Teacher:
    """Train the convolutional network to name the characters."""
    torch.manual_seed(seed)
    teacher = Teacher(len(atlas.names))

    def loss(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = teacher.classifier(teacher(image).relu())
        return functional.cross_entropy(logits.float(), label), (logits.argmax(-1) == label).float().mean()

    fit("teacher", teacher, loss, batches(atlas, steps, 2 * seed), steps, peak=3e-3)
    return teacher


def train_student(atlas: Atlas, teacher: Teacher, steps: int, seed: int) -> ViTModel:
    """Train the ViT to predict the teacher's features, and to name the characters."""
    torch.manual_seed(seed)
    student = Student(len(atlas.names))

    def loss(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = teacher(image)
        feature = student(image)
        logits = student.classifier(feature)
        mimic = functional.mse_loss(student.mimic(feature).float(), target.float())
        value = 8.0 * mimic + 0.3 * functional.cross_entropy(logits.float(), label)
        return value, (logits.argmax(-1) == label).float().mean()

    fit("student", student, loss, batches(atlas, steps, 2 * seed + 1), steps, peak=2e-3)
    return student.vit


def save(vit: ViTModel, out: Path) -> None:
    """Write the transformers folder: weights stored as fp16, to be loaded and run as fp32."""
    vit.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "model.safetensors").chmod(0o644)
    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(out)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one: the same result on any number of cores")
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--student-steps", type=int, default=4000)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    atlas = build_atlas(fonts(), MIN_GLYPHS)
    print(f"{len(atlas.label)} glyphs of {len(atlas.names)} characters from {len(fonts())} fonts", flush=True)
    teacher = train_teacher(atlas, args.teacher_steps, args.seed)
    save(train_student(atlas, teacher, args.student_steps, args.seed), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
