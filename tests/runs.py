"""Running hftl as a user does, and making small data for it."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hftl.cli import main
from hftl.store.store import cache_root

RECIPES = Path(__file__).parent.parent / "recipes"


class Cli:
    """The command line in this process: exit status, output, and one line of error.

    A page takes a third of the time of a small run, so that a run writes one only where a test says ``--report``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        no_page = () if arguments[:1] != ("run",) or "--report" in arguments else ("--no-report",)
        self.monkeypatch.setattr(sys, "argv", ["hftl", *map(str, arguments), *no_page])
        self.capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        self.out, self.err = self.capsys.readouterr()
        return status

    def ok(self, *arguments: str | Path) -> str:
        """Run a command that must succeed; its output."""
        status = self(*arguments)
        assert status == 0, self.err
        return self.out

    def refused(self, *arguments: str | Path) -> str:
        """Run a command whose input is wrong; the one line that says so."""
        status = self(*arguments)
        assert status == 2, (status, self.out, self.err)
        lines = [line for line in self.err.splitlines() if line.startswith("hftl: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def card_code(card: str) -> str:
    """The first example in Python of a card."""
    return card.split("```python\n")[1].split("```")[0]


def stored_shards() -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Of each shard of the store, the identity of its space, and what it holds."""
    for file in (cache_root() / "features").glob("*/shards/*.safetensors"):
        yield json.loads((file.parent.parent / "space.json").read_text())["identity"], load_file(file)


def card_example(folder: Path, instead: Mapping[str, str]) -> dict[str, Any]:
    """What the first example of a model's card leaves behind, run with the model's folder in it and other inputs."""
    code = card_code((folder / "README.md").read_text(encoding="utf-8"))
    assert "hftl" not in code
    assert len(code.strip().splitlines()) < 24
    for said, given in {"PATH_OR_REPO_ID": str(folder), **instead}.items():
        code = code.replace(said, given)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


def metrics(run: Path) -> dict[str, Any]:
    """A run's metrics.json."""
    read: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return read


def predictions(run: Path) -> dict[str, list[Any]]:
    """A run's predictions.parquet, by column."""
    read: dict[str, list[Any]] = pq.read_table(run / "predictions.parquet").to_pydict()
    return read


def write_images(folder: Path, per_class: int = 6, classes: int = 3, seed: int = 0, size: int = 20) -> Path:
    """A folder ``class/file.png`` of noise around a colour for each class."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 90, (size, size, 3)) + np.eye(3, dtype=int)[label % 3] * 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label}" / f"{i}.png")
    return folder


SUBJECTS = {
    "cats": ["cat", "red cat", "blue cat"],
    "dogs": ["dog", "red dog", "blue dog"],
    "birds": ["bird", "two bird"],
}
VERBS = ["sat", "ran", "flew"]
PLACES = ["under the tree", "over a rug", "under two mat", "over the hill", "under one red tree"]


def write_texts(path: Path, rows: int, *, pairs: bool = False, seed: int = 0) -> Path:
    """A csv of short sentences (or pairs) in the tiny tokenizer's words; the subject is the label."""
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "label"] if pairs else ["text", "label"])
        for _ in range(rows):
            label = rng.choice(sorted(SUBJECTS))
            text = f"the {rng.choice(SUBJECTS[label])} {rng.choice(VERBS)} {rng.choice(PLACES)}"
            writer.writerow([text, f"who {rng.choice(VERBS)}", label] if pairs else [text, label])
    return path


ENTITIES = {"animal": ["cat", "dog", "bird"], "place": ["tree", "hill", "rug"]}


def write_sentences(path: Path, rows: int, seed: int = 0) -> Path:
    """A jsonl file of sentences in the tiny tokenizer's words; a colour before an animal or place belongs to it."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            words, tags = [], []
            for _ in range(draw.choice([1, 2, 3])):
                kind = draw.choice(sorted(ENTITIES))
                entity = [*draw.choice([[], ["red"], ["two", "blue"]]), draw.choice(ENTITIES[kind])]
                words += [draw.choice(["the", "a", "one"]), *entity, draw.choice(["sat", "ran", "flew"])]
                tags += ["O", f"B-{kind}", *[f"I-{kind}"] * (len(entity) - 1), "O"]
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return path
