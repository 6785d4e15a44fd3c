"""`View`: what is kept of a backbone's pass over a row. A view of a backbone names a feature space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.search import find_cut, pooled_cut
from hftl.backbones.protocol import Backbone
from hftl.backbones.weights import NameRule
from hftl.store.shard import ColumnSpec
from hftl.store.space import Space
from hftl.store.stat_index import digest_files
from hftl.store.store import FeatureStore

# Raised whenever a change in hftl.frozen or hftl.backbones.cut can change a stored number of any backbone.
EXTRACTOR_VERSION = 1

Pooling = Literal["native", "mean", "cls"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class View:
    """What is kept of a backbone's pass.

    Attributes:
        pooling: ``"native"`` for what the model's own head reads, else the ``"mean"`` or the first (``"cls"``) token of
            the frozen body's last output.
        precision: of the pass: ``"no"`` for float32 throughout, ``"bf16"`` or ``"fp16"`` for autocast.
    """

    pooling: Pooling = "native"
    precision: Precision = "no"

    @property
    def autocast(self) -> torch.dtype | None:
        """What torch computes in where it deems that safe; None for float32 throughout."""
        return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def identity(self) -> dict[str, Any]:
        """The view's part of a feature space's identity."""
        return {"pooling": self.pooling, "precision": self.precision, "storage": "float32", "view": "none"}

    def find_cut(self, model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> Cut:
        """Where the model is cut for this view, proved on the probes.

        Raises:
            CutError: no cut is exact.
        """
        if self.pooling == "native":
            return find_cut(model, head, probes)
        return pooled_cut(model, head, probes, self.pooling)


@dataclass(frozen=True)
class Content:
    """What a feature space records of the model that filled it; with it a warm run needs no weights.

    Attributes:
        architecture: the model's class.
        cut: where it is cut.
        weights: how the checkpoint's tensors are renamed for an export; None where only the class itself can save it.
    """

    architecture: str
    cut: Cut
    weights: NameRule | None

    def columns(self) -> dict[str, ColumnSpec]:
        """The columns that each row has in the space."""
        columns = {name: _column(dtype, shape) for name, (dtype, shape) in self.cut.kept().items()}
        return columns | {"truncated": ColumnSpec("uint8", ())}

    def as_info(self) -> dict[str, Any]:
        """The form in space.json; the cut keeps the name that it had there in the first release."""
        weights = asdict(self.weights) if self.weights else None
        return {"architecture": self.architecture, "split": asdict(self.cut), "weights": weights}

    @classmethod
    def of(cls, space: Space) -> Content:
        """What a space that was created records."""
        info = space.info or {}
        weights = NameRule(**info["weights"]) if info["weights"] else None
        return cls(info["architecture"], Cut.from_json(info["split"]), weights)


def _column(dtype: str, shape: Sequence[int]) -> ColumnSpec:
    ragged = bool(shape) and shape[0] == -1
    return ColumnSpec(dtype, tuple(shape[1:] if ragged else shape), ragged)


def open_space(store: FeatureStore, backbone: Backbone, origin: Mapping[str, str], view: View) -> Space:
    """The feature space of a backbone's view: named by everything that can change a number in it.

    Args:
        store: where features are kept.
        backbone: the pretrained network.
        origin: who registered it, and the version of the features; see `hftl.BackboneSpec.origin`.
        view: what is kept of its pass.

    Raises:
        BackboneError: the backbone's files cannot be read.
        StoreError: the space cannot be read, or was written by a newer version.
    """
    identity = {
        "extractor": EXTRACTOR_VERSION,
        "plugin": dict(origin),
        **backbone.identity(),
        "weights": None,
        **view.identity(),
    }
    if backbone.commit is None:
        # A commit names the weights' bytes; local files are named by their content.
        files = sorted(set(backbone.weight_files().values()))
        identity["weights"] = [digest.tobytes().hex() for digest in digest_files(files, store.file_digests)]
    return store.space(identity, backbone.name)
