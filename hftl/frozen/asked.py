"""Logits of a trained head on rows whose features are stored, so that evaluating a run computes nothing anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hftl.backbones.cut.replay import replaying
from hftl.backbones.loading import load_backbone
from hftl.data import Files, Texts
from hftl.errors import HftlError
from hftl.export.loaded import LoadedModel
from hftl.export.onnx import OnnxNetwork
from hftl.frozen.extract import digest_rows
from hftl.frozen.view import Content, View, open_space
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.store.space import MissingRowsError, Space
from hftl.store.store import FeatureStore
from hftl.store.values import Ragged

REPLAYED_ROWS = 256


def stored_logits(model: LoadedModel, inputs: Files | Texts, store: FeatureStore) -> tuple[np.ndarray, Tensor]:
    """Logits of the rows whose features the store has.

    Args:
        model: a run's model whose head alone was trained; of any other nothing is stored.
        inputs: the rows.
        store: where features are kept.

    Returns:
        The rows' numbers, int64 (m,), and their logits (m, C) float32 on the CPU; none where the run's own features
        are not there any more.
    """
    nothing = np.zeros(0, dtype=np.int64), torch.zeros(0, len(model.label_names))
    space = _space_of(model, store)
    if space is None:
        return nothing
    digests, unreadable = digest_rows(inputs, store.file_digests)
    known = space.known(digests)
    # Rows that cannot be read have no name of their own; whoever asks the model for them learns why.
    known[list(unreadable)] = False
    rows = np.flatnonzero(known)
    if not len(rows):
        return nothing
    try:
        return rows, _head_logits(model, Content.of(space), space.gather(digests[rows]))
    except MissingRowsError:
        # A shard proved damaged and was set aside: the model computes these rows.
        return nothing


def _space_of(model: LoadedModel, store: FeatureStore) -> Space | None:
    """The space that the run's head was trained on; None where there is none, or the backbone is another one by now."""
    if model.run is None or model.record is None or model.record.method["name"] != "head":
        return None
    if isinstance(model.network, OnnxNetwork):
        # What it answers is asked for, not what the head that it was made of does.
        return None
    record, method = model.record, model.record.method
    try:
        spec = find(record.backbone_reference)
        options = BackboneOptions(record.recipe.get("max_length"), offline=True)
        pooling, precision = method["pooling"], method["mixed_precision"]
        backbone = load_backbone(spec, options, record.recipe.get("depth"), pooling, precision, method.get("quantize"))
        space = open_space(store, backbone, spec.origin, View(pooling, precision))
    except HftlError:
        return None
    same = space.id == model.run.metrics().features.get("space")
    return space if same and space.info is not None else None


def _head_logits(model: LoadedModel, content: Content, columns: Mapping[str, Any]) -> Tensor:
    """The head on stored columns of m rows: (m, C) float32 on the CPU."""
    cut, network = content.cut, model.network
    with torch.inference_mode():
        if cut.kind != "replay":
            head = network.layers if cut.kind == "pooled" else network.get_submodule(cut.linear or "")
            logits: Tensor = head(columns["features"].to(model.device))
            return logits.float().cpu()
        kept = {name: _by_row(columns[name]) for name in cut.kept()}
        rows = len(next(iter(kept.values())))
        with replaying(network, cut) as replay:
            blocks = [
                replay({name: _block(value, start, model.device) for name, value in kept.items()})
                for start in range(0, rows, REPLAYED_ROWS)
            ]
    return torch.cat(blocks).float().cpu()


def _by_row(column: Tensor | Ragged) -> Any:
    """A column whose rows can be sliced: a tensor, or a list of tensors where they have lengths of their own."""
    return list(torch.split(column.values, column.lengths.tolist())) if isinstance(column, Ragged) else column


def _block(value: Any, start: int, device: torch.device) -> Any:
    part = value[start : start + REPLAYED_ROWS]
    return [row.to(device) for row in part] if isinstance(part, list) else part.to(device)
