"""The backbone under test: its rows, its model, and copies of it that may be tampered with."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hftl.backbones.batching import batch_groups, equal_length_probes, needs_equal_lengths
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.search import find_cut
from hftl.backbones.loading import load_backbone, reopened
from hftl.backbones.protocol import Backbone, Encoded
from hftl.errors import BadRowError, CutError
from hftl.frozen.view import View, open_space
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore
from hftl.tasks import Task
from hftl.testing.tampering import linked_copy

Plain: TypeAlias = Callable[[Path, Sequence[Any]], np.ndarray]

LABELS = ["first", "second", "third"]
TEXTS: list[Any] = [
    ("One.",),
    ("Who is it that reads the words which nobody else would have thought worth reading, and why?",),
    ("A sentence of middling length.",),
    ("Ten words are enough for a sentence that says nothing.",),
]


class CheckError(AssertionError):
    """A backbone does not keep one of the promises that hftl is built on."""


class Subject:
    """The backbone under test, its rows, and what the checks share."""

    def __init__(
        self, ref: str, rows: Sequence[Any] | None, plain: Plain | None, tolerance: float, folder: Path
    ) -> None:
        self.ref = ref
        self.tolerance = tolerance
        self.folder = folder
        self.plain = plain
        self._rows = rows

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone as a run loads it, once."""
        return self.load()

    def load(self) -> Backbone:
        """The backbone as a run loads it, anew."""
        return load_backbone(find(self.ref), BackboneOptions())

    @cached_property
    def rows(self) -> list[Any]:
        """The raw rows: given, or made up."""
        if self._rows is not None:
            return list(self._rows)
        if self.backbone.wants == "text":
            # A backbone may refuse what is longer than its limit; it is honest, and the other rows will do.
            return [row for row in TEXTS if self._takes(row)]
        if ".png" in self.backbone.suffixes:
            return images()
        raise CheckError("give check_backbone rows=[…]: at least three encoded files of different sizes")

    def _takes(self, row: Any) -> bool:
        try:
            self.backbone.encode([row], ["row"])
        except BadRowError:
            return False
        return True

    @cached_property
    def config(self) -> Any:
        """The exported model's configuration for three labels."""
        return self.backbone.config(Task.SINGLE_LABEL, LABELS)

    @cached_property
    def parts(self) -> tuple[nn.Module, set[str], Cut]:
        """The model with a random head, the head's parameters, and the cut."""
        model, head = self.backbone.build(self.config)
        probes = self.backbone.probes()
        try:
            equal_lengths = needs_equal_lengths(model, probes)
        except CutError:
            equal_lengths = False
        return model, head, find_cut(model, head, equal_length_probes(model, probes) if equal_lengths else probes)

    @cached_property
    def equal_lengths(self) -> bool:
        """Whether rows run in batches of equal length, as they do in hftl where padding changes the model's numbers."""
        model, _, _ = self.parts
        try:
            return needs_equal_lengths(model, self.backbone.probes())
        except CutError:  # a check of its own says what that means
            return False

    def encode(self, backbone: Backbone, rows: Sequence[Any]) -> list[Encoded]:
        """Rows made ready, named by their position."""
        return backbone.encode(list(rows), [f"row {i}" for i in range(len(rows))])

    def logits(self, rows: Sequence[Any]) -> Tensor:
        """The model's logits of rows, each alone."""
        with torch.no_grad():
            alone = [self.parts[0](**self.backbone.collate([row])).logits for row in self.encode(self.backbone, rows)]
        return torch.cat(alone)

    def features(self, rows: Sequence[Any], backbone: Backbone | None = None, model: Any = None) -> list[list[Tensor]]:
        """What is kept of each row, computed in one batch."""
        used = backbone or self.backbone
        encoded = self.encode(used, rows)
        groups = batch_groups(encoded, equal_lengths=self.equal_lengths)
        capture = Capture(model or self.parts[0], [self.parts[2]])
        features: dict[int, list[Tensor]] = {}
        for group in groups:
            kept = capture(used.collate([encoded[i] for i in group]))[0]
            features |= {row: [kept[name][i] for name in sorted(kept)] for i, row in enumerate(group)}
        return [features[i] for i in range(len(rows))]

    def space(self, backbone: Backbone) -> str:
        """The name of the backbone's feature space."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return open_space(FeatureStore(Path(folder)), backbone, {"name": "test"}, View()).id

    @contextmanager
    def moved(self) -> Iterator[tuple[Path, Callable[[], Any]]]:
        """A copy of the backbone's folder whose files may be changed, and what makes the backbone of it anew."""
        source = getattr(self.backbone, "source", None)
        if source is None:
            raise NotImplementedError("the backbone has no attribute `source`, as hftl.PretrainedBackbone has")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            target = Path(folder) / "model"
            linked_copy(Path(source.folder), target)
            yield target, lambda: reopened(self.backbone, replace(source, folder=target, commit=None))

    def same(self, left: Sequence[Sequence[Tensor]], right: Sequence[Sequence[Tensor]]) -> float | None:
        """The largest difference as a share of the largest value; None if it is within the tolerance."""
        worst = 0.0
        for ours, theirs in zip(left, right, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                if a.shape != b.shape:
                    return float("inf")
                scale = max(1.0, float(b.float().abs().max())) if b.numel() else 1.0
                worst = max(worst, float((a.float() - b.float()).abs().max()) / scale if b.numel() else 0.0)
        return None if worst <= self.tolerance else worst


def images() -> list[bytes]:
    """Four images of different sizes, as PNG."""
    from PIL import Image

    noise = np.random.default_rng(0)
    encoded = []
    for height, width in ((48, 64), (64, 48), (33, 90), (50, 50)):
        # Smooth, because noise of single pixels says little once it is resized.
        small = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


def fingerprint_of_rows(subject: Subject, backbone: Backbone) -> list[Any]:
    """What a backbone makes of the rows, in a form that can be compared."""
    return sums(subject.encode(backbone, subject.rows))


def sums(encoded: Sequence[Encoded]) -> list[Any]:
    """Rows in a form that can be compared."""
    return [
        {name: torch.as_tensor(value).double().flatten().tolist() for name, value in row.inputs.items()}
        for row in encoded
    ]
