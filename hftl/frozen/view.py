"""`View`: what is kept of a backbone's pass over a row. A view of a backbone names a feature space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.bare import OWN, Bare, PooledClassifier
from hftl.backbones.batching import equal_length_probes, needs_equal_lengths, of_equal_length_only
from hftl.backbones.cut.blocks import blocks_cut
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.search import find_cut, pooled_cut, prepare_head
from hftl.backbones.pooling import Pooled
from hftl.backbones.precision import DTYPES, Precision, in_float32
from hftl.backbones.protocol import Backbone, at_depth
from hftl.backbones.weights import NameRule
from hftl.data.augment import Augmentation
from hftl.errors import CutError
from hftl.frozen.rounding import stored_dtype
from hftl.methods import Pooling, Storage
from hftl.store.identity import space_id
from hftl.store.shard import ColumnSpec, Digests
from hftl.store.space import Space
from hftl.store.stat_index import StatIndex, digest_files
from hftl.store.store import FeatureStore

# Raised whenever a change in hftl.frozen or hftl.backbones.cut can change a stored number of any backbone.
EXTRACTOR_VERSION = 1
# Raised whenever the same numbers would change a picture otherwise.
AUGMENTATION_VERSION = 1
# What the identity of a space says besides, where rows ran in batches of equal length. It is not there otherwise: the
# first release padded all batches, and what it stored of models that padding does not change is as good as ever.
EQUAL_LENGTHS: dict[str, Any] = {"batches": "equal lengths"}


@dataclass(frozen=True)
class View:
    """What is kept of a backbone's pass.

    Attributes:
        pooling: ``"native"`` for what the model's own head reads, else how the frozen body's last output is pooled; see
            `hftl.backbones.pooling.Pooled`.
        precision: of the pass: ``"no"`` for float32 throughout, ``"bf16"`` or ``"fp16"`` for autocast, or for
            weights of a text backbone that were read in it.
        depth: after how many blocks the pass ends, with the final norm; None for the backbone as it is. It names the
            space that this view of the backbone at that depth has.
        blocks: of how many of the first blocks everything that they return is kept, for those behind them to be
            trained on; None for what a head reads.
        device: the kind of device, where the precision is not ``"no"`` and blocks are kept: which tensors autocast
            makes of which type depends on it.
        storage: of numbers on the disk; ``"float32"`` keeps each type as it was computed.
        augmentation: what changed the pictures before the pass; None for pictures as they are.
    """

    pooling: Pooling = "native"
    precision: Precision = "no"
    depth: int | None = None
    blocks: int | None = None
    device: str | None = None
    storage: Storage = "float32"
    augmentation: Augmentation | None = None

    @classmethod
    def of(cls, backbone: Backbone, pooling: Pooling, precision: Precision, storage: Storage = "float32") -> View:
        """The view that a head asks for; the own head of a base model reads what that is pooled to."""
        own: Any = backbone.pooling.kind if isinstance(backbone, Bare) and pooling == "native" else pooling
        return cls(own, precision, storage=storage)

    @property
    def parts(self) -> list[View]:
        """The views that are stored for this one, whose vectors stand behind each other."""
        kinds: Any = Pooled(self.pooling).parts
        return [replace(self, pooling=kind) for kind in kinds]

    def beside(self, backbone: Backbone) -> list[View]:
        """Other poolings that the same pass gives, which cost a vector a row to keep, and may be asked for next."""
        if self.pooling == "native":
            return []
        kinds: Any = backbone.poolings if isinstance(backbone, Bare) else ["cls", "mean"]
        return [view for kind in kinds if (view := replace(self, pooling=kind)) not in self.parts]

    @property
    def autocast(self) -> torch.dtype | None:
        """What torch computes in where it deems that safe; None for float32 throughout."""
        return None if self.precision == "no" else DTYPES[self.precision]

    def identity(self) -> dict[str, Any]:
        """The view's part of a feature space's identity."""
        named: dict[str, Any] = {"pooling": self.pooling, "precision": self.precision, "storage": self.storage}
        changed = {"augmentation": AUGMENTATION_VERSION, **asdict(self.augmentation)} if self.augmentation else None
        if self.blocks is None:
            return named | {"view": changed or "none"}
        storage = "as computed" if self.storage == "float32" else self.storage
        return named | {"storage": storage, "view": {"blocks": self.blocks, "device": self.device, **(changed or {})}}

    def find_cut(self, model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> tuple[Cut, bool]:
        """Where the model is cut for this view, proved on the probes; and whether rows need batches of equal length.

        The head is left with random values.

        Raises:
            CutError: no cut is exact, or a row's numbers depend on its batch mates.
        """
        with in_float32(model):
            return self._find_cut(model, head, probes)

    def _find_cut(self, model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]]) -> tuple[Cut, bool]:
        name = type(model).__name__
        prepare_head(model, head, probes)
        if self.blocks is not None:
            if needs_equal_lengths(model, probes, name):
                raise CutError("padding changes this model's numbers, and training pads")
            # Without padding a row's numbers are those of the row alone, on a CPU to the bit.
            ragged = any("attention_mask" in probe for probe in probes)
            return blocks_cut(model, head, self.blocks, probes, self.autocast), ragged
        if self.pooling == "native":
            equal_lengths = needs_equal_lengths(model, probes, name)
            return find_cut(model, head, equal_length_probes(model, probes) if equal_lengths else probes), equal_lengths
        if self.pooling in OWN and getattr(model, "lacks_pooler", False):
            raise CutError(f"{name}: its weights lack what its pooled output is made by: take another pooling")
        cut = pooled_cut(model, head, probes, self.pooling)
        if self.pooling == "last" and (own := _reads_the_same(model, head, probes, cut)):
            return own, needs_equal_lengths(model, probes, name)
        capture = Capture(model, [cut])
        return cut, of_equal_length_only(lambda batch: capture(batch)[0]["features"], probes, name)


def _reads_the_same(
    model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]], pooled: Cut
) -> Cut | None:
    """The cut at the model's own head, where that reads just what is pooled: then its own class can hold the result."""
    if isinstance(model, PooledClassifier):
        return None
    try:
        own = find_cut(model, head, probes)
    except CutError:
        return None
    if own.kind != "linear":
        return None
    both = Capture(model, [own, pooled])
    pairs = [[kept["features"] for kept in both(batch)] for batch in probes]
    return own if all(torch.equal(*pair) for pair in pairs) else None


@dataclass(frozen=True)
class Content:
    """What a feature space records of the model that filled it; with it a warm run needs no weights.

    Attributes:
        architecture: the model's class.
        cut: where it is cut.
        weights: how the checkpoint's tensors are renamed for an export; None where only the class itself can save it.
        equal_lengths: whether rows ran in batches of equal length, because padding changes this model's numbers; None
            in a space of the first release, which did not ask.
    """

    architecture: str
    cut: Cut
    weights: NameRule | None
    equal_lengths: bool | None = False

    def columns(self, storage: Storage) -> dict[str, ColumnSpec]:
        """The columns that each row has in a space of some storage."""
        kept = self.cut.kept().items()
        columns = {name: _column(stored_dtype(dtype, storage), shape) for name, (dtype, shape) in kept}
        return columns | {"truncated": ColumnSpec("uint8", ())}

    def as_info(self) -> dict[str, Any]:
        """The form in space.json; the cut keeps the name that it had there in the first release."""
        weights = asdict(self.weights) if self.weights else None
        return {
            "architecture": self.architecture,
            "split": self.cut.as_json(),
            "weights": weights,
            "equal_lengths": self.equal_lengths,
        }

    @classmethod
    def of(cls, space: Space) -> Content:
        """What a space that was created records."""
        info = space.info or {}
        weights = NameRule(**info["weights"]) if info["weights"] else None
        return cls(info["architecture"], Cut.from_json(info["split"]), weights, info.get("equal_lengths"))


def side_by_side(contents: Sequence[Content]) -> Content:
    """What several spaces record whose vectors stand behind each other: of one, just that."""
    first, cuts = contents[0], [content.cut for content in contents]
    if len(contents) == 1:
        return first
    kind = "+".join(str(cut.pooling) for cut in cuts)
    cut = replace(first.cut, pooling=kind, width=sum(cut.width for cut in cuts))
    return replace(first, cut=cut, equal_lengths=any(content.equal_lengths for content in contents))


def proved_content(
    model: nn.Module, head: set[str], view: View, rule: NameRule | None, probes: Sequence[Mapping[str, Tensor]]
) -> Content:
    """What a new space is to record of a model that was just built; leaves its head with random values.

    Raises:
        CutError: no cut is exact, or a row's numbers depend on its batch mates.
    """
    cut, equal_lengths = view.find_cut(model, head, probes)
    return Content(type(model).__name__, cut, rule, equal_lengths)


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
        BackboneError: the backbone's files cannot be read, or it has no such depth.
        StoreError: the space cannot be read, or was written by a newer version.
    """
    if view.depth is not None:
        backbone = at_depth(backbone, view.depth)
    identity = {
        "extractor": EXTRACTOR_VERSION,
        "plugin": dict(origin),
        **backbone.identity(),
        "weights": None,
        **view.identity(),
    }
    if (weights := digest_weights(backbone, store.file_digests)) is not None:
        identity["weights"] = [digest.tobytes().hex() for digest in weights]
    padded = store.space(identity, backbone.name)
    if padded.info is None or Content.of(padded).equal_lengths is None:
        # Either name may be the space's: only the model, once it is loaded, tells whether padding changes its numbers.
        exact = equal_length_space(store, padded)
        return exact if exact.info is not None else padded
    return padded


def digest_weights(backbone: Backbone, index: StatIndex) -> Digests | None:
    """Digests (m, 16) of a backbone's m files of weights; None where a commit names their bytes.

    Raises:
        StoreError: a file cannot be read.
    """
    if backbone.commit is not None:
        return None
    return digest_files(sorted(set(backbone.weight_files().values())), index)


def equal_length_id(padded: Space) -> str:
    """The id of `equal_length_space`."""
    return space_id({**padded.identity, **EQUAL_LENGTHS})


def equal_length_space(store: FeatureStore, padded: Space) -> Space:
    """The space of the same view with rows in batches of equal length."""
    return store.space({**padded.identity, **EQUAL_LENGTHS}, padded.label)
